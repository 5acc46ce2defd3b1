"""An ensemble of an encoder and a decoder, each with a tokenizer of its own, against what stock transformers makes of each."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from reward_lab import WORDS, load, preferences, save_reward_model, tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizerFast,
)

from rayrlhf.data.schema import Preference, pair
from rayrlhf.data.tokenizer import load_tokenizer
from rayrlhf.errors import DataError, ModelError
from rayrlhf.models.checks import check_scorer
from rayrlhf.models.export import export_reward_model
from rayrlhf.models.load import make_reward_model
from rayrlhf.reward.batch import Scoring, score_file
from rayrlhf.reward.judge import judge, score_preferences
from rayrlhf.reward.model import ModelTerm, RewardModel
from rayrlhf.reward.package import save_stats
from rayrlhf.reward.stats import load_stats
from rayrlhf.reward.terms import ScoreRequest
from rayrlhf.reward.verify import stock_backends, verify

POSITIONS = 40


def save_encoder(directory: Path) -> Path:
    """A BERT that reads words, in lower case; the decoder of the lab reads pieces of bytes, as they are."""
    root = directory.with_name("encoder")
    root.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "guest", ":", *map(str, range(20)), *WORDS]
    (root / "vocab.txt").write_text("\n".join(vocabulary))
    words = BertTokenizerFast(vocab=str(root / "vocab.txt"), vocab_file=str(root / "vocab.txt"))
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    settings = BertConfig(vocab_size=len(vocabulary), initializer_range=0.3, max_position_embeddings=POSITIONS, **shape)
    BertModel(settings).save_pretrained(root / "base")
    words.save_pretrained(root / "base")
    own = load_tokenizer(str(root / "base"))
    made = make_reward_model(str(root / "base"), own, seed=1)
    export_reward_model(made, own, directory, state_dict=dict(made.state_dict()))
    return directory


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoder is the plain model; below it the encoder, and another decoder that reads as the first does."""
    directory = tmp_path_factory.mktemp("mixed") / "reward_model"
    save_reward_model(directory)
    save_encoder(directory / "members" / "01")
    save_reward_model(directory / "members" / "02", seed=12)
    model = load(directory)
    save_stats(model, score_preferences(model, preferences(), max_length=64), max_length=64)
    return directory


def by_hand(directory: Path, row: Preference) -> float:
    """Stock forward of one text in float64, tokenized as the family's own users would."""
    stock = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float64).eval()
    own = AutoTokenizer.from_pretrained(directory)
    if own.cls_token is not None:
        ids = own(str(row.prompt), row.chosen)["input_ids"]
    else:
        ids = [*own(row.prompt + row.chosen)["input_ids"], own.eos_token_id]
    with torch.no_grad():
        kinds = torch.zeros(1, len(ids), dtype=torch.long)
        extra = {"token_type_ids": kinds} if own.cls_token is not None else {}
        return float(stock(torch.tensor([ids]), **extra).logits[0, 0])


def request(row: Preference, *, response: str | None = None) -> ScoreRequest:
    text = row.chosen if response is None else response
    ids = np.array([*tokenizer()(row.prompt + text).input_ids, tokenizer().eos_token_id], dtype=np.int32)
    return ScoreRequest(name=row.origin, prompt=row.prompt, response=text, token_ids=ids, finished=True, reference=None)


def term(directory: Path, how: str = "mean_std") -> ModelTerm:
    return ModelTerm(
        load(directory),
        combination=how,  # type: ignore[arg-type]
        penalty=0.5,
        policy_tokenizer=tokenizer(),
        standardize=False,
    )


def test_scores_are_those_of_each_stock_model_standardised_and_combined_by_hand(mixed: Path) -> None:
    rows = preferences(12, seed=5)
    members = [mixed, mixed / "members" / "01", mixed / "members" / "02"]
    raw = np.array([[by_hand(member, row) for member in members] for row in rows])
    scales = json.loads((mixed / "reward_stats.json").read_text())["members"]
    standard = (raw - [scale["mean"] for scale in scales]) / [scale["std"] for scale in scales]
    assert np.abs(standard[:, 0] - standard[:, 1]).min() > 1e-3
    found = term(mixed).score([request(row) for row in rows])
    np.testing.assert_allclose([f.spread for f in found], standard.std(1), atol=1e-4)
    np.testing.assert_allclose([f.value for f in found], standard.mean(1) - 0.5 * standard.std(1), atol=1e-4)
    soft = [f.value for f in term(mixed, "soft_min").score([request(row) for row in rows])]
    np.testing.assert_allclose(soft, -np.log(np.exp(-0.5 * standard).mean(1)) / 0.5, atol=1e-4)


def test_members_that_read_alike_share_a_reader(mixed: Path) -> None:
    model = load(mixed)
    assert (model.members, model.models, len(model.readers)) == (3, 3, 2)
    words = model.readers[1].tokenizer.convert_ids_to_tokens(model.encode("Guest 3:", " the inn")[1])
    assert words == ["[CLS]", "guest", "3", ":", "[SEP]", "the", "inn", "[SEP]"]


def test_each_member_is_a_reward_model_of_its_own_that_verifies(mixed: Path, tmp_path: Path) -> None:
    found = verify(str(mixed), stock_backends(), tolerance=1e-4)
    assert [(f.check, f.told) for f in found if not f.passed] == []
    replayed = {f.check for f in found if f.deviation is not None}
    assert {"scoring pool", "members/01: scoring pool", "members/02: text-classification pipeline"} <= replayed
    assert load(mixed / "members" / "01").members == len(load_stats(mixed / "members" / "01").members) == 1
    spoilt = Path(shutil.copytree(mixed, tmp_path / "spoilt"))
    config = spoilt / "members" / "01" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"problem_type": None}))
    failed = {f.check for f in verify(str(spoilt), stock_backends(), tolerance=1e-4) if not f.passed}
    assert failed == {"members/01: raw scores", "members/01: text-classification pipeline"}


def test_figures_are_of_the_rows_that_every_member_can_read(mixed: Path) -> None:
    model = load(mixed)
    # Bytes where the other has whole words: one token there, several here.
    long = pair("Guest 1:", " zz zz zz zz zz zz zz zz", " inn", origin="p:long")
    rows = [*preferences(10), long]
    scored = score_preferences(model, rows, max_length=20)
    assert scored.left_out == len(rows) - len(scored.rows) >= 1
    assert long not in scored.rows
    assert judge(scored, load_stats(mixed)).figures["members"] == 3
    chat = pair([{"role": "user", "content": "hello"}], " inn", " ale", origin="p:chat")
    with pytest.raises((DataError, ModelError), match="chat template"):
        score_preferences(model, [chat], max_length=20)


def test_a_text_that_one_member_cannot_read_has_no_score_and_names_the_member(mixed: Path) -> None:
    row = preferences(1)[0]
    # Words enough for the positions of the encoder; the decoder's are not learnt.
    short, long = term(mixed).score([request(row), request(row, response=" inn" * POSITIONS)])
    assert short.value is not None
    assert long.value is None
    assert f"{mixed / 'members' / '01'} cannot read sample {row.origin}" in str(long.reason)
    assert f"the model {POSITIONS} positions" in str(long.reason)


def test_a_file_is_scored_by_all_of_them(mixed: Path, tmp_path: Path) -> None:
    rows = preferences(5)
    lines = [json.dumps({"prompt": row.prompt, "response": row.chosen}) for row in rows]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    how = Scoring(combination="mean_std", penalty=0.5)
    model, stats = load(mixed), load_stats(mixed)
    score_file(model, stats, tmp_path / "in.jsonl", tmp_path / "out.jsonl", how, progress=lambda *_: None)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    wanted = term(mixed).score([request(row) for row in rows])
    np.testing.assert_allclose([row["score"] for row in found], [own.value for own in wanted], atol=1e-4)


def test_a_member_that_is_lost_or_no_reward_model_is_found(mixed: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(mixed, tmp_path / "copied"))
    check_scorer(str(copied), max_length=32)
    with pytest.raises(ModelError, match=rf"exceeds the {POSITIONS} positions of the reward model .*members/01"):
        check_scorer(str(copied), max_length=POSITIONS + 1)
    (copied / "members" / "01" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"members/01 holds no weights"):
        check_scorer(str(copied), max_length=32)
    shutil.rmtree(copied / "members")
    with pytest.raises(ModelError, match=r"has 1 members and its reward_stats.json tells of 3"):
        term(copied)


def test_a_text_longer_than_the_budget_of_a_micro_batch_is_read_alone(mixed: Path) -> None:
    """The budget holds the longest text of the policy's tokens; a member's tokenizer may need more of them."""
    small = RewardModel(str(mixed), device="cpu", dtype="float32", micro_batch_tokens=8)
    texts = [small.encode(row.prompt, row.chosen) for row in preferences(4)]
    assert max(len(text[0]) for text in texts) > 8
    np.testing.assert_allclose(small.score(texts), load(mixed).score(texts), atol=1e-5)
