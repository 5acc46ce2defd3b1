"""Rewards of several kinds in the real loop, and what becomes of a score that cannot be had."""

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import QUICKSTART, TINY, rayrlhf, rows, succeed
from engine_lab import make_judge
from judge_lab import OWN_ANSWER, PRINCIPLES, JudgeServer
from rouge_score.rouge_scorer import RougeScorer
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, BertTokenizerFast

from rayrlhf.algorithms.bradley_terry import bradley_terry
from rayrlhf.config import load_config
from rayrlhf.data.dataset import load_preferences

pytestmark = pytest.mark.slow

SUMMARIZE = QUICKSTART.with_name("summarize_rouge.yaml")
FUNCTIONS = """
import ctypes
import pathlib
import zlib


def mostly(prompt, response, reference):
    with open(pathlib.Path(__file__).with_name("asked"), "a") as log:
        log.write(f"{len(response)}\\n")
    if zlib.crc32((prompt + response).encode()) % 20 == 0:
        raise TimeoutError("the judge did not answer")
    return len(response) / 100.0


def never(prompt, response, reference):
    return None


def crash(prompt, response, reference):
    ctypes.string_at(0)
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "judges.py").write_text(FUNCTIONS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    return tmp_path


def test_an_ensemble_beside_a_function_that_fails_now_and_then(trained: Path, functions: Path) -> None:
    """Two whole models, trained and verified; one answer in twenty is missing: dropped, counted, and the mean stays."""
    start = [*TINY, "stages=[reward,ppo]", "model.init=null", f"model.path={trained / 'sft'}", "reward.members=2"]
    size = [
        "ppo.updates=2",
        "ppo.prompts_per_step=32",
        "ppo.samples_per_prompt=4",
        "ppo.optim.lr=0",
        "ppo.max_missing=0.2",
    ]
    model = "{kind: model, ensemble: mean_std, penalty: 1.0, weight: 0.5}"
    both = f'ppo.rewards=[{model}, {{kind: function, target: "judges:mostly", mean: 1.0, std: 2.0}}]'
    succeed("run", str(QUICKSTART), *start, *size, both, f"output_dir={functions}", "name=two")
    run = functions / "two"

    assert (run / "reward_model" / "members" / "01" / "config.json").exists()
    assert {row["stage"] for row in rows(run / "metrics.jsonl")} == {"reward", "reward_01", "ppo"}
    summary = json.loads((run / "summary.json").read_text())["stages"]
    assert summary["reward"]["members"] == 2
    evaluation = json.loads((run / "reward_model" / "evaluation.json").read_text())
    assert summary["reward"]["heldout_accuracy"] == evaluation["accuracy"]
    assert "Disagreement of the ensemble" in (run / "report.html").read_text()
    told = succeed("verify", str(run / "reward_model"), timeout=200.0)
    assert "FAILED" not in told
    assert "vLLM pooling" in told

    last = rows(run / "metrics.jsonl", stage="ppo")[-1]
    assert last["ledger/issued"] == 256 == last["ledger/trained"] + last["ledger/dropped"]
    assert last["ledger/lost"] == last["ledger/duplicated"] == last["ledger/in_flight"] == 0
    assert 3 < last["ledger/dropped"] == summary["ppo"]["samples_dropped"]
    samples = rows(run / "samples.jsonl", stage="ppo")
    assert len(samples) == last["ledger/trained"]
    for row in samples:
        learned, length = row["terms"]["model reward_model"], row["terms"]["judges:mostly"]
        assert length == pytest.approx(len(row["response"]) / 100.0)
        assert row["score"] == pytest.approx(0.5 * learned + (length - 1.0) / 2.0)
        assert row["spread"] > 0
    asked = [int(line) / 100.0 for line in (functions / "asked").read_text().splitlines()]
    assert sum(len(row["response"]) for row in samples) / len(samples) / 100 == pytest.approx(
        sum(asked) / len(asked), rel=0.1
    )


def test_members_of_two_families_weigh_what_ppo_learns(trained: Path, encoder: Path, tmp_path: Path) -> None:
    """An encoder of words beside the policy's own backbone, trained, verified, judged, and PPO weighted by their spread."""
    start = [*TINY, "stages=[reward,ppo]", "model.init=null", f"model.path={trained / 'sft'}"]
    bases = ["reward.members=2", f"reward.base=[{encoder}, {trained / 'sft'}]"]
    ppo = ["ppo.uncertainty_weight=1.0", "ppo.rewards=[{kind: model, ensemble: soft_min, penalty: 1.0}]"]
    place = [f"output_dir={tmp_path}", "name=mixed"]
    succeed("run", str(QUICKSTART), *start, *bases, *ppo, *place)
    run = tmp_path / "mixed"
    reward_model = run / "reward_model"
    families = [
        json.loads((path / "config.json").read_text())["model_type"]
        for path in (reward_model, reward_model / "members" / "01")
    ]
    assert families == ["bert", "qwen2"]
    samples, updates = rows(run / "samples.jsonl", stage="ppo"), rows(run / "metrics.jsonl", stage="ppo")
    for row in updates[1:]:
        own = [sample["spread"] for sample in samples if sample["step"] == row["step"]]
        assert min(own) > 0
        assert row["policy/certainty"] == pytest.approx(sum(1 / (1 + s**2) for s in own) / len(own), rel=1e-4)
    assert updates[-1]["ledger/dropped"] == 0
    checked = succeed("verify", str(reward_model), "--no-vllm", timeout=200.0)
    assert "FAILED" not in checked
    assert checked.count("members/01: ") * 2 == checked.count(" passed ") == 16
    pairs = [{"prompt": f"Guest: {i}", "chosen": " a room for you", "rejected": " no"} for i in range(20)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    succeed(
        "evaluate", "reward", str(reward_model), str(tmp_path / "pairs.jsonl"), "--output", str(tmp_path / "judged")
    )
    judged = json.loads((tmp_path / "judged" / "evaluation.json").read_text())
    assert (judged["members"], judged["pairs"]) == (2, 20)
    assert json.loads((reward_model / "evaluation.json").read_text())["left_out"] == 0


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT that reads the words of the task, and any other letter by letter."""
    root = tmp_path_factory.mktemp("encoder")
    texts = (r.text for row in load_preferences(load_config(QUICKSTART, TINY)).train for r in row.responses)
    letters = [*map(chr, range(33, 127))]
    words = sorted({word for text in texts for word in re.findall(r"[a-z]{2,}", text.lower())})
    parts = [*letters, *(f"##{letter}" for letter in letters), *words]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *parts]
    (root / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizerFast(vocab=str(root / "vocab.txt"), vocab_file=str(root / "vocab.txt"))
    shape = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(vocabulary), **shape)).save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    return root / "base"


def test_a_learning_curve_of_two_shares_judged_alike(trained: Path, tmp_path: Path) -> None:
    start = [*TINY, f"reward.base={trained / 'sft'}", f"output_dir={tmp_path}", "name=more"]
    told = succeed("reward", "curve", str(QUICKSTART), *start, "--share", "1", "--share", "0.25")
    points = json.loads((tmp_path / "more-curve" / "learning_curve.json").read_text())
    assert [point["share"] for point in points] == [0.25, 1.0]
    assert points[0]["rows"] * 4 == points[1]["rows"]
    assert points[0]["pairs"] == points[1]["pairs"]
    runs = [tmp_path / f"more-share-{share}" for share in ("0.25", "1")]
    assert [rows(run / "metrics.jsonl", stage="reward")[-1]["step"] for run in runs] == [4, 12]
    for point, run in zip(points, runs, strict=True):
        assert (
            point["accuracy"] == json.loads((run / "summary.json").read_text())["stages"]["reward"]["heldout_accuracy"]
        )
    assert f"{points[1]['accuracy']:.3f}" in told
    assert "What more labels bring" in (tmp_path / "more-curve" / "learning_curve.html").read_text()
    judged = [run / "reward_model" / "evaluation.json" for run in runs]
    stamps = [path.stat().st_mtime_ns for path in judged]
    succeed("reward", "curve", str(QUICKSTART), *start, "--share", "1", "--share", "0.25", "--resume")
    assert stamps == [path.stat().st_mtime_ns for path in judged]


def test_summaries_are_rewarded_by_rouge_against_their_references(tmp_path: Path) -> None:
    things, states = ("harbour", "mill", "chapel", "bridge", "ferry"), ("closed", "flooded", "burnt", "sold")
    documents = {
        f"We came by the {a}, which was {p}, and saw that the {b} was {q}.\nSummary: ": f"{a} {p}, {b} {q}"
        for a, b in itertools.permutations(things, 2)
        for p, q in itertools.product(states, repeat=2)
    }
    lines = (json.dumps({"prompt": prompt, "response": summary}) for prompt, summary in documents.items())
    (tmp_path / "documents.jsonl").write_text("\n".join(lines))
    small = [option for option in TINY if not option.startswith("data.task")]
    succeed("run", str(SUMMARIZE), *small, f"data.root={tmp_path}", f"output_dir={tmp_path}", "name=short")
    scored = [row for row in rows(tmp_path / "short" / "samples.jsonl") if row["stage"] in ("ppo", "eval")]
    rouge = RougeScorer(["rougeL"])
    wanted = [rouge.score(documents[row["prompt"]], row["response"])["rougeL"].fmeasure for row in scored]
    assert [row["score"] for row in scored] == pytest.approx(wanted)
    assert max(wanted) > min(wanted)
    heldout = {row["prompt"] for row in scored if row["stage"] == "eval"}
    assert heldout
    assert not heldout & {row["prompt"] for row in scored if row["stage"] == "ppo"}


def test_judges_compare_the_responses_in_the_scoring_worker_and_over_http(ppo_only: list[str], tmp_path: Path) -> None:
    """A model of its own by vLLM, and a server that knows what is longer: every training score is redone from the texts."""
    here = f"name: here, path: {make_judge(tmp_path / 'judge')}, max_length: 1024, kv_cache_gib: 0.125, max_tokens: 16"
    server = JudgeServer(bias=0.5)
    try:
        there = f"name: there, urls: [{server.url}], model: m, weight: 2.0, std: 4.0"
        both = ", ".join(f"{{kind: judge, principles: {PRINCIPLES}, {where}}}" for where in (here, there))
        size = ["ppo.advantage=grpo", "ppo.updates=2", "ppo.prompts_per_step=4", "ppo.samples_per_prompt=4"]
        size += ["ppo.evaluate_prompts=8", f"ppo.rewards=[{both}]", f"output_dir={tmp_path}", "name=judged"]
        told = succeed("run", str(QUICKSTART), *ppo_only, *size)
    finally:
        server.http.shutdown()
    run = tmp_path / "judged"
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in rows(run / "samples.jsonl", stage="ppo"):
        groups.setdefault((row["step"], row["prompt"]), []).append(row)
        assert row["score"] == pytest.approx(row["terms"]["here"] + 2.0 * row["terms"]["there"] / 4.0)
    assert [len(group) for group in groups.values()] == [4] * 8
    for group in groups.values():
        leads = np.subtract.outer(*[[float(len(row["response"])) for row in group]] * 2)
        wins = (1 / (1 + np.exp(-leads - 0.5)) + 1 / (1 + np.exp(-leads + 0.5))) / 2
        wanted = bradley_terry(wins * (1 - np.eye(4)))
        assert [row["terms"]["there"] for row in group] == pytest.approx(wanted, abs=1e-6)
        assert sum(row["terms"]["here"] for row in group) == pytest.approx(0.0, abs=1e-6)
        assert len({row["terms"]["here"] for row in group}) > 1
    for row in rows(run / "samples.jsonl", stage="eval"):
        lead = len(row["response"]) - len(OWN_ANSWER)  # the task's prompts have no reference
        assert np.sign(row["terms"]["there"]) == np.sign(lead)
    for row in rows(run / "metrics.jsonl", stage="ppo")[1:]:
        assert -0.5 < row["reward/position_bias"] < 0.5
        assert 0.0 <= row["reward/position_flips"] <= 1.0
        assert row["reward/comparisons_unread"] == 0.0
        assert row["reward/score"] == pytest.approx(0.0, abs=1e-6)
    assert "the judge preferred the response shown first" in told
    assert "share of comparisons whose winner changes with the order" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "cause"), [("never", "gave no score"), ("crash", "ended its process by SIGSEGV (a segmentation fault)")]
)
def test_scores_that_cannot_be_had_stop_the_run_with_the_cause(
    ppo_only: list[str], functions: Path, name: str, cause: str
) -> None:
    reward = f'ppo.rewards=[{{kind: function, target: "judges:{name}"}}]'
    done = rayrlhf("run", str(QUICKSTART), *ppo_only, reward, f"output_dir={functions}", f"name={name}")
    assert done.returncode == 1
    told = done.stderr.strip().splitlines()[-1]
    assert "have no score" in told
    assert f"judges:{name} {cause}" in told
    assert f"judges:{name}" in json.loads((functions / name / "failure.json").read_text())["message"]


def test_the_guard_stops_and_restores_the_best_policy(ppo_only: list[str], trained: Path, tmp_path: Path) -> None:
    """What is rewarded is the opposite of what the judge says; rollouts that ran ahead are dropped, none is lost."""
    judge = shutil.copytree(trained / "reward_model", tmp_path / "judge")
    flawed = f"ppo.rewards=[{{kind: model, path: {trained / 'reward_model'}, weight: -1.0}}]"
    guard = ["ppo.guard.action=stop", f"ppo.guard.judge={judge}", "ppo.guard.patience=1", "ppo.evaluate_every=1"]
    wild = ["ppo.updates=20", "ppo.kl.coef=0", "ppo.optim.lr=0.005", "ppo.max_staleness=1", "ppo.evaluate_prompts=32"]
    told = succeed("run", str(QUICKSTART), *ppo_only, flawed, *guard, *wild, f"output_dir={tmp_path}", "name=wild")
    assert "Over-optimisation: the judge has fallen from" in told
    summary = json.loads((tmp_path / "wild" / "summary.json").read_text())["stages"]["ppo"]
    assert summary["guard_stopped"]
    assert summary["policy_versions"] < 20
    assert summary["samples_lost"] == summary["samples_duplicated"] == 0
    evaluated = {row["step"]: row for row in rows(tmp_path / "wild" / "metrics.jsonl", stage="ppo")}
    best = evaluated[summary["guard_peak_step"]]
    assert best["eval/judge"] == max(row["eval/judge"] for row in evaluated.values())
    assert summary["score_after"] == best["eval/score"]
    last = evaluated[max(evaluated)]
    assert last["guard/below_peak"] > 3.0
    assert last["eval/judge"] < best["eval/judge"]
    assert (tmp_path / "wild" / "policy" / "config.json").exists()


def test_by_default_the_policy_of_the_judges_peak_is_exported(
    ppo_only: list[str], trained: Path, tmp_path: Path
) -> None:
    """Training goes on past the peak, and is gone on with after its end; what was best stays what is exported."""
    judge = shutil.copytree(trained / "reward_model", tmp_path / "judge")
    flawed = f"ppo.rewards=[{{kind: model, path: {trained / 'reward_model'}, weight: -1.0}}]"
    wild = [f"ppo.guard.judge={judge}", "ppo.evaluate_every=1", "ppo.kl.coef=0", "ppo.optim.lr=0.005"]
    start = [
        *ppo_only,
        flawed,
        *wild,
        "ppo.updates=6",
        "ppo.evaluate_prompts=32",
        f"output_dir={tmp_path}",
        "name=past",
    ]
    told = succeed("run", str(QUICKSTART), *start)
    run = tmp_path / "past"
    summary = json.loads((run / "summary.json").read_text())["stages"]["ppo"]
    evaluated = {row["step"]: row for row in rows(run / "metrics.jsonl", stage="ppo")}
    best = max(evaluated, key=lambda step: evaluated[step]["eval/judge"])
    assert best < 6 == summary["policy_versions"]
    assert summary["exported_step"] == best
    assert summary["score_after"] == evaluated[best]["eval/score"]
    assert f"Exported the policy of update {best}, the best on the held-out prompts by the guard's judge" in told
    anew = [row for row in rows(run / "samples.jsonl", stage="confirm") if row["step"] == best]
    assert summary["score_confirmed"] == pytest.approx(sum(row["score"] for row in anew) / len(anew))
    assert {row["policy_version"] for row in anew} == {best}
    kept = run / "checkpoints" / "best" / f"step_{best:06d}" / "policy" / "model.safetensors"
    assert (run / "policy" / "model.safetensors").read_bytes() == kept.read_bytes()
    if best == 0:
        first, exported = (load_file(path / "model.safetensors") for path in (trained / "sft", run / "policy"))
        assert all(torch.equal(first[name], exported[name]) for name in first)
