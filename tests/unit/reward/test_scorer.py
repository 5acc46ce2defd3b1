"""The scorer against stock transformers, one sequence at a time, and what it refuses."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerBase

from rayrlhf.data.exchange import encode_prompt, encode_response
from rayrlhf.data.schema import PromptRow
from rayrlhf.data.tokenizer import load_tokenizer, train_tokenizer
from rayrlhf.errors import DataError, ModelError
from rayrlhf.models.export import export_model
from rayrlhf.models.load import make_policy, make_reward_model
from rayrlhf.reward.model import ModelTerm, RewardModel
from rayrlhf.reward.scorer import Gold, Scored, TrajectoryScorer, WeightedTerm
from rayrlhf.reward.terms import ScoreRequest, TermScore, missing
from rayrlhf.types import SampleId, Trajectory, VersionSpan

INIT: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "initializer_range": 0.2,
}
TEMPERATURE = 0.7
DIALOGUES = [
    ("A guest asks for a room.", "There is one under the roof."),
    ("Bread?", "No."),
    ("The rider is wet and the night is long.", "Sit by the fire, and dry your cloak."),
    ("A dog barks.", "Hush"),
]


@functools.cache
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer([text for pair in DIALOGUES for text in pair], vocab_size=300)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`reference/` and `reward/`, the second on another backbone than the first."""
    root = tmp_path_factory.mktemp("models")
    for name, seed in (("reference", 0), ("base", 1)):
        export_model(make_policy(INIT, tokenizer(), seed=seed), tokenizer(), root / name)
    export_model(make_reward_model(str(root / "base"), tokenizer(), seed=2), tokenizer(), root / "reward")
    return root


def scorer(
    models: Path,
    *,
    reward_model_dir: str | None = None,
    reference_dir: str | None = None,
    dtype: str = "auto",
    micro_batch_tokens: int = 4096,
    terms: list[WeightedTerm] | None = None,
    prompts: list[PromptRow] | None = None,
    gold: Gold | None = None,
) -> TrajectoryScorer:
    policy = load_tokenizer(str(models / "reference"))
    if terms is None:
        directory = reward_model_dir or str(models / "reward")
        model = RewardModel(directory, device="cpu", dtype=dtype, micro_batch_tokens=micro_batch_tokens)
        term = ModelTerm(model, combination="mean", penalty=0.0, policy_tokenizer=policy, standardize=False)
        terms = [WeightedTerm(name="model reward", term=term, weight=1.0)]
    return TrajectoryScorer(
        terms,
        tokenizer=policy,
        reference_dir=reference_dir or str(models / "reference"),
        prompt_of=lambda sample_id: None if prompts is None else prompts[sample_id.prompt_id],
        micro_batch_tokens=micro_batch_tokens,
        temperature=TEMPERATURE,
        device="cpu",
        dtype=dtype,
        gold=gold,
    )


def trajectories() -> list[Trajectory]:
    """The dialogues; the last response is cut, so that no end token follows it."""
    made = []
    for number, (prompt, response) in enumerate(DIALOGUES):
        ids = encode_response(tokenizer(), response)
        cut = number == len(DIALOGUES) - 1
        ids = ids[:-1] if cut else ids
        made.append(
            Trajectory(
                sample_id=SampleId("ppo", 3, number, 0),
                prompt_ids=encode_prompt(tokenizer(), prompt),
                response_ids=ids,
                rollout_logprobs=np.full(len(ids), -1.0, dtype=np.float32),
                finish="length" if cut else "eos",
                version_spans=(VersionSpan(version=3, start=0, end=len(ids)),),
            )
        )
    return made


def whole(trajectory: Trajectory) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([trajectory.prompt_ids, trajectory.response_ids]).astype(np.int64))[None]


def damage(source: Path, target: Path, name: str) -> Path:
    """A copy of a model directory with one weight that is not a number."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    weights = load_file(target / "model.safetensors")
    weights[name] = torch.full_like(weights[name], torch.nan)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


@torch.no_grad()
def test_scores_are_those_of_the_stock_reward_model(models: Path) -> None:
    stock = AutoModelForSequenceClassification.from_pretrained(models / "reward")
    scored = scorer(models).score(trajectories()).trajectories
    wanted = [float(stock(whole(t)).logits[0, 0]) for t in trajectories()]
    assert np.std(wanted) > 0.1
    assert [item.score for item in scored] == pytest.approx(wanted, abs=1e-5)
    assert [item.trajectory.sample_id.prompt_id for item in scored] == [0, 1, 2, 3]


@torch.no_grad()
def test_reference_logprobs_are_those_of_the_stock_policy_at_the_sampling_temperature(models: Path) -> None:
    stock = AutoModelForCausalLM.from_pretrained(models / "reference")
    for item in scorer(models).score(trajectories()).trajectories:
        trajectory = item.trajectory
        logits = stock(whole(trajectory)).logits[0].double() / TEMPERATURE
        logprobs = logits.log_softmax(dim=-1)[:-1].gather(-1, whole(trajectory)[0, 1:, None])[:, 0]
        assert item.ref_logprobs.dtype == np.float32
        assert item.ref_logprobs.shape == trajectory.response_ids.shape
        np.testing.assert_allclose(item.ref_logprobs, logprobs[len(trajectory.prompt_ids) - 1 :], atol=1e-5)


def test_the_texts_and_the_trajectory_go_along(models: Path) -> None:
    given = trajectories()
    scored = scorer(models).score(given).trajectories
    assert [(item.prompt_text, item.response_text) for item in scored] == DIALOGUES
    assert all(item.trajectory is trajectory for item, trajectory in zip(scored, given, strict=True))
    assert {item.gold for item in scored} == {None}


def test_gold_is_asked_for_prompt_and_response(models: Path) -> None:
    asked = []

    def gold(prompt: str, response: str) -> float:
        asked.append((prompt, response))
        return float(len(prompt) - len(response))

    scored = scorer(models, gold=gold).score(trajectories()).trajectories
    assert sorted(asked) == sorted(DIALOGUES)
    assert [item.gold for item in scored] == [float(len(p) - len(r)) for p, r in DIALOGUES]


def test_micro_batches_change_nothing(models: Path) -> None:
    longest = max(whole(t).shape[1] for t in trajectories())
    together, apart = (scorer(models, micro_batch_tokens=n).score(trajectories()).trajectories for n in (4096, longest))
    backwards = scorer(models, micro_batch_tokens=2 * longest).score(trajectories()[::-1]).trajectories[::-1]
    for a, b, c in zip(together, apart, backwards, strict=True):
        assert a.score == pytest.approx(b.score, abs=1e-5) == pytest.approx(c.score, abs=1e-5)
        np.testing.assert_allclose(a.ref_logprobs, b.ref_logprobs, atol=1e-5)
        np.testing.assert_allclose(a.ref_logprobs, c.ref_logprobs, atol=1e-5)
    with pytest.raises(DataError, match=f"A row of {longest} tokens does not fit"):
        scorer(models, micro_batch_tokens=longest - 1).score(trajectories())


def test_nothing_to_score_is_nothing(models: Path) -> None:
    assert scorer(models).score([]) == Scored(trajectories=[], missing=[])


def test_bfloat16_models_are_close(models: Path) -> None:
    exact, rounded = (
        scorer(models, dtype=dtype).score(trajectories()).trajectories for dtype in ("float32", "bfloat16")
    )
    for a, b in zip(exact, rounded, strict=True):
        assert a.score == pytest.approx(b.score, abs=0.2)
        assert b.ref_logprobs.dtype == np.float32
        assert 0 < np.abs(a.ref_logprobs - b.ref_logprobs).max() < 0.5


def test_a_reward_model_of_another_vocabulary_reads_the_texts_with_its_own_tokens(models: Path, tmp_path: Path) -> None:
    other = train_tokenizer(["quite another text, for quite other words"], vocab_size=280)
    export_model(make_policy(INIT, other, seed=1), other, tmp_path / "base")
    export_model(make_reward_model(str(tmp_path / "base"), other, seed=2), other, tmp_path / "reward")
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    scored = scorer(models, reward_model_dir=str(tmp_path / "reward")).score(trajectories()).trajectories
    for item, (prompt, response) in zip(scored, DIALOGUES, strict=True):
        ids = np.concatenate([encode_prompt(other, prompt), encode_response(other, response)])
        ids = ids[:-1] if item.trajectory.finish == "length" else ids
        with torch.no_grad():
            wanted = float(stock(torch.from_numpy(ids.astype(np.int64))[None]).logits[0, 0])
        assert item.score == pytest.approx(wanted, abs=1e-5)


class Fixed:
    """A term with given answers."""

    def __init__(self, answers: list[TermScore]) -> None:
        self.answers = answers
        self.asked: list[ScoreRequest] = []

    def score(self, requests: Sequence[ScoreRequest]) -> list[TermScore]:
        self.asked = list(requests)
        return self.answers


def test_terms_are_summed_standardised_and_a_missing_one_leaves_the_sample_out(models: Path) -> None:
    first = Fixed([TermScore(value=v) for v in (1.0, 2.0, 3.0, 4.0)])
    second = Fixed([TermScore(value=10.0, spread=0.5), missing("the server slept"), *first.answers[2:]])
    terms = [
        WeightedTerm(name="first", term=first, weight=2.0),
        WeightedTerm(name="second", term=second, weight=-1.0, mean=4.0, std=3.0),
    ]
    prompts = [PromptRow(prompt=[{"role": "user", "content": p}], reference=f"ref {p}") for p, _ in DIALOGUES]
    found = scorer(models, terms=terms, prompts=prompts).score(trajectories())
    assert [item.score for item in found.trajectories] == pytest.approx([0.0, 6.0 + 1 / 3, 8.0])
    assert found.missing == [(trajectories()[1].sample_id, "the server slept")]
    assert found.trajectories[0].terms == {"first": 1.0, "second": 10.0}
    assert [item.spread for item in found.trajectories] == [0.5, None, None]
    assert [request.reference for request in first.asked] == [f"ref {p}" for p, _ in DIALOGUES]
    assert [request.finished for request in first.asked] == [True, True, True, False]
    assert first.asked[0].prompt == prompts[0].prompt


def test_a_policy_in_place_of_the_reward_model_is_refused(models: Path) -> None:
    with pytest.raises(ModelError, match=r"lacks the weights score\.weight|gives 2 labels"):
        scorer(models, reward_model_dir=str(models / "base"))


def test_a_score_that_is_not_finite_names_its_sample(models: Path, tmp_path: Path) -> None:
    broken = damage(models / "reward", tmp_path / "reward", "score.weight")
    with pytest.raises(ModelError, match=r"^The reward model .* gave sample ppo-3-\d-0 the score \[nan\]\.$"):
        scorer(models, reward_model_dir=str(broken)).score(trajectories())


def test_reference_logprobs_that_are_not_finite_name_their_sample(models: Path, tmp_path: Path) -> None:
    broken = damage(models / "reference", tmp_path / "reference", "model.norm.weight")
    with pytest.raises(
        ModelError, match=r"^The reference policy gave sample ppo-3-\d-0 log-probs that are not finite\.$"
    ):
        scorer(models, reference_dir=str(broken)).score(trajectories())
