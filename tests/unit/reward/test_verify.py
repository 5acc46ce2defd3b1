"""Packaging and verification: one packaged model, and every way to spoil it."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from reward_lab import INIT, WORDS, load, packaged, preferences, tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rayrlhf.data.exchange import encode_response
from rayrlhf.data.schema import pair
from rayrlhf.errors import ModelError
from rayrlhf.models.export import export_model
from rayrlhf.models.load import make_policy
from rayrlhf.reward.judge import score_preferences
from rayrlhf.reward.model import ModelTerm
from rayrlhf.reward.package import stats_of
from rayrlhf.reward.stats import Probe, load_stats, template_digest
from rayrlhf.reward.terms import ScoreRequest
from rayrlhf.reward.verify import Finding, stock_backends, verify


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packaged(tmp_path_factory.mktemp("packaged") / "reward_model")


@pytest.fixture
def model(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "reward_model"))


def failures(directory: Path) -> dict[str, Finding]:
    found = verify(str(directory), stock_backends(), tolerance=1e-4)
    return {finding.check: finding for finding in found if not finding.passed}


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_packaged_model_gives_every_tool_the_same_scores(good: Path) -> None:
    found = verify(str(good), stock_backends(), tolerance=1e-4)
    assert [finding.check for finding in found if not finding.passed] == []
    assert len(found) == 8
    assert all(finding.deviation < 1e-4 for finding in found if finding.deviation is not None)
    assert len(load_stats(good).probes) == 32


def test_a_missing_head_is_found(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert "lacks the weights score.weight" in failures(model)["files"].told


def test_pad_equal_to_eos_is_found(model: Path) -> None:
    change(model / "config.json", pad_token_id=json.loads((model / "config.json").read_text())["eos_token_id"])
    assert "give it a pad token of its own" in failures(model)["files"].told


def test_a_sigmoid_is_found_by_its_cause_and_by_its_effect(model: Path) -> None:
    change(model / "config.json", problem_type=None)
    found = failures(model)
    assert set(found) == {"raw scores", "text-classification pipeline"}
    assert found["text-classification pipeline"].told.endswith("a sigmoid is applied")


@pytest.mark.parametrize(
    ("template", "passes"),
    [
        ("{% for m in messages %}{{ m['content'] }}EOS\n{% endfor %}", True),
        (
            "{% for m in messages %}{{ m['content'] | trim }}EOS{% endfor %}{% if add_generation_prompt %} {% endif %}",
            True,
        ),
        # The last response is written otherwise than others: what comes after it decides on what stands before.
        ("{% for m in messages %}{{ loop.length }}{{ m['content'] | upper }}EOS{% endfor %}", False),
        ("{{ 1 / 0 }}", False),
    ],
)
def test_conversations_must_be_read_as_the_template_writes_them(model: Path, template: str, passes: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = template.replace("EOS", tokenizer.eos_token)
    tokenizer.save_pretrained(model)
    change(model / "reward_stats.json", template=template_digest(AutoTokenizer.from_pretrained(model)))
    found = failures(model)
    assert ("template" not in found) == passes
    assert passes or "chat template" in found["template"].told or "than the template" in found["template"].told


def test_another_template_than_at_packaging_is_found(model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(model)
    assert "not those of packaging" in failures(model)["template"].told


def test_a_missing_token_is_found(model: Path) -> None:
    stats = json.loads((model / "reward_stats.json").read_text())
    stats["probes"][0]["ids"][0] = 100_000
    (model / "reward_stats.json").write_text(json.dumps(stats))
    found = verify(str(model), {}, tolerance=1e-4)
    assert "token 100000 of a probe is missing" in next(f.told for f in found if f.check == "tokens")


def test_other_weights_than_at_packaging_are_found(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["score.weight"] = 1.1 * weights["score.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    found = failures(model)
    assert "scoring pool" in found
    assert "tolerance 0.0001 is exceeded" in found["scoring pool"].told


def test_without_statistics_there_is_nothing_to_verify(model: Path) -> None:
    (model / "reward_stats.json").unlink()
    assert "has no reward_stats.json" in failures(model)["files"].told
    (model / "reward_stats.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read"):
        load_stats(model)


def test_heads_are_one_backbone_and_stock_tools_read_their_mean(tmp_path: Path) -> None:
    directory = packaged(tmp_path / "reward_model", heads=3)
    model = load(directory)
    assert model.members == 3
    scored = score_preferences(model, preferences(8), max_length=64)
    raw = np.concatenate(scored.scores)
    stock = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    with torch.no_grad():
        plain = [float(stock(torch.from_numpy(s.astype(np.int64))[None]).logits[0, 0]) for s in scored.sequences]
    np.testing.assert_allclose(raw.mean(1), plain, atol=1e-5)
    assert raw.std(1).min() > 1e-3
    assert failures(directory) == {}


def test_members_are_whole_models_and_stock_tools_read_the_first(tmp_path: Path) -> None:
    directory = packaged(tmp_path / "reward_model", members=3)
    model = load(directory)
    assert model.members == 3
    stats = load_stats(directory)
    raw = np.concatenate(score_preferences(model, preferences(), max_length=64).scores)
    standard = (raw - raw.mean(0)) / raw.std(0)
    score, spread = stats.combined(raw, "mean_std", penalty=0.5)
    np.testing.assert_allclose(spread, standard.std(1), atol=1e-4)
    np.testing.assert_allclose(score, standard.mean(1) - 0.5 * standard.std(1), atol=1e-4)
    assert failures(directory) == {}


def test_probes_are_texts_also_where_prompt_and_response_meet_in_one_token(tmp_path: Path) -> None:
    directory = packaged(tmp_path / "reward_model")
    model = load(directory)
    rows = [pair("Guest: ", f"{WORDS[1 + i % 7]} inn {i}", f"{WORDS[1 + i % 5]} bread") for i in range(20)]
    scored = score_preferences(model, rows, max_length=64)
    apart = {tuple(sequence.tolist()) for sequence in scored.sequences}
    stats = stats_of(model, scored, max_length=64)
    assert not any(tuple(probe.ids) in apart for probe in stats.probes)
    stats.save(directory)
    assert failures(directory) == {}


def test_as_a_reward_it_leaves_out_the_share_of_length_that_is_asked_for(tmp_path: Path) -> None:
    directory = packaged(tmp_path / "reward_model", members=2)
    model, stats = load(directory), load_stats(directory)
    rows = preferences(12)
    requests = [
        ScoreRequest(
            name=row.origin,
            prompt=row.prompt,
            response=row.chosen,
            token_ids=model.encode(row.prompt, row.chosen)[0],
            finished=True,
            reference=None,
        )
        for row in rows
    ]
    raw = model.score([(request.token_ids,) for request in requests])
    lengths = np.array([len(encode_response(model.tokenizer, row.chosen)) for row in rows])
    assert len(set(lengths.tolist())) > 2
    assert all(abs(scale.length_slope) > 1e-3 for scale in stats.members)
    wanted = [
        (raw[:, k] - 0.5 * scale.length_slope * np.log1p(lengths) - scale.mean) / scale.std
        for k, scale in enumerate(stats.members)
    ]
    term = ModelTerm(
        model,
        combination="mean",
        penalty=0.0,
        policy_tokenizer=model.tokenizer,
        standardize=False,
        length_correction=0.5,
    )
    np.testing.assert_allclose([score.value for score in term.score(requests)], np.mean(wanted, axis=0), atol=1e-4)


def test_a_backend_that_deviates_fails_alone(good: Path) -> None:
    def squash(_: str, probes: Sequence[Probe]) -> Sequence[float]:
        return [1.0 / (1.0 + math.exp(-probe.score)) for probe in probes]

    found = verify(str(good), {"squashed": squash}, tolerance=1e-4)
    assert [(f.check, f.told.endswith("a sigmoid is applied")) for f in found if not f.passed] == [("squashed", True)]


def test_a_model_that_stock_transformers_cannot_read_is_said_to_be_so_and_replayed_by_the_scoring_pool(
    tmp_path: Path,
) -> None:
    export_model(make_policy(INIT | {"model_type": "cohere"}, tokenizer(), seed=1), tokenizer(), tmp_path / "base")
    directory = packaged(tmp_path / "reward_model", heads=2)
    found = {finding.check: finding for finding in verify(str(directory), stock_backends(), tolerance=1e-4)}
    assert "no AutoModelForSequenceClassification for cohere" in found["stock transformers"].told
    assert found["scoring pool"].deviation is not None
    assert [finding for finding in found.values() if not finding.passed] == []
    assert "text-classification pipeline" not in found
    assert load(directory).members == 2


def test_ids_beyond_the_models_embeddings_are_read_as_text(good: Path) -> None:
    model = load(good)
    term = ModelTerm(model, combination="mean", penalty=0.0, policy_tokenizer=tokenizer(), standardize=False)
    ids = np.array([*tokenizer()("the inn has").input_ids, tokenizer().eos_token_id], dtype=np.int32)
    unknown = np.insert(ids, 2, model.readers[0].embeddings + 7)
    scores = [
        term.score(
            [ScoreRequest(name="s", prompt="", response="the inn has", token_ids=own, finished=True, reference=None)]
        )
        for own in (ids, unknown)
    ]
    assert scores[0][0].value == pytest.approx(scores[1][0].value, abs=1e-6)
