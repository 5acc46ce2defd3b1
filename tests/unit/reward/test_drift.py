"""Accuracy by subset, against the scores of the responses one by one."""

from pathlib import Path

import numpy as np
from reward_lab import load, preferences, save_reward_model

from rayrlhf.reward.drift import accuracy_by_subset, accuracy_on


def test_accuracy_is_the_share_of_pairs_in_order_by_subset(tmp_path: Path) -> None:
    model, rows = load(save_reward_model(tmp_path / "model")), preferences()

    def score(prompt: object, text: str) -> float:
        return float(model.score([model.encode(str(prompt), text)])[0, 0])

    right = np.array([score(row.prompt, row.chosen) > score(row.prompt, row.rejected) for row in rows])
    even = np.array([row.subset == "even" for row in rows])
    found = accuracy_on(model, rows, max_length=64)
    assert found is not None
    assert (found["pairs"], found["accuracy"]) == (len(rows), right.mean())
    assert found["low"] <= found["accuracy"] <= found["high"]
    odd, nobody, same = accuracy_by_subset(model, rows, ["odd", "nobody", "even"], max_length=64)
    assert nobody is None
    assert odd is not None
    assert same is not None
    assert (odd["pairs"], odd["accuracy"]) == ((~even).sum(), right[~even].mean())
    assert (same["pairs"], same["accuracy"]) == (even.sum(), right[even].mean())
    assert accuracy_on(model, [], max_length=64) is None
