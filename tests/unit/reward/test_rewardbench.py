"""Our accuracies against those of the rewardbench package on the same scores, where it is installed."""

import json
from pathlib import Path

import numpy as np
import pytest
from reward_lab import WORDS, load, packaged

from rayrlhf.config import DataConfig, SourceConfig
from rayrlhf.data.dataset import read_preferences
from rayrlhf.reward.judge import judge, score_preferences

datasets = pytest.importorskip("datasets")
utils = pytest.importorskip("rewardbench.utils", reason="the rewardbench package is not installed")


def judged(tmp_path: Path, rows: list[dict[str, object]]) -> tuple[dict[str, object], list[np.ndarray], list[str]]:
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(path="p.jsonl", format="preferences")
    records = read_preferences(source, DataConfig(root=str(tmp_path)), seed=0)
    found = judge(score_preferences(load(packaged(tmp_path / "m")), records, max_length=64))
    return found.figures, [scores[:, 0] for scores in found.scored.scores], [row.subset for row in found.scored.rows]


def texts(rng: np.random.Generator, count: int) -> list[str]:
    return [" ".join(rng.choice(WORDS, size=int(rng.integers(3, 9)))) for _ in range(count)]


def test_best_of_four_with_ties(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(60):
        good, *bad = texts(rng, 4)
        bad[0] = good if i % 10 == 0 else bad[0]  # the same text has the same score: a tie
        rows.append({"id": str(i), "prompt": f"q{i}", "chosen": [good], "rejected": bad, "subset": "Focus"})
    figures, scores, _ = judged(tmp_path, rows)
    flat = {"text": [""] * 4 * len(scores), "scores": np.concatenate(scores).tolist()}
    theirs = utils.reroll_and_score_dataset(datasets.Dataset.from_dict(flat), [4] * len(scores))
    assert figures["best_of_k_accuracy"] == pytest.approx(np.mean(theirs["results"]))


def test_sections_of_pairs(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    subsets = ["alpacaeval-easy", "alpacaeval-hard", "donotanswer"]
    rows = [
        {"prompt": f"q{i}", "chosen": c, "rejected": r, "subset": subsets[i % 3]}
        for i, (c, r) in enumerate(texts(rng, 2) for _ in range(60))
    ]
    figures, _, names = judged(tmp_path, rows)
    by_subset = figures["by_subset"]
    assert isinstance(by_subset, dict)
    accuracies = {name: by_subset[name]["accuracy"] for name in subsets}
    counts = {name: names.count(name) for name in subsets}
    theirs = utils.calculate_scores_per_section(counts, {"Everything": subsets}, accuracies)
    assert figures["strict_accuracy"] == pytest.approx(theirs["Everything"])
