"""Rankings, ties, ratings and several heads, from rows to gradients."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from learner_lab import ALONE, ids, largest_difference, parameters, preference, reward_model, run_config, tokenizer

from rayrlhf.algorithms.preference_loss import LossSettings
from rayrlhf.config import RewardConfig
from rayrlhf.data.length_balance import balance_lengths
from rayrlhf.data.rows import Rows
from rayrlhf.data.token_codecs import preference_examples
from rayrlhf.errors import DataError
from rayrlhf.learner.build import resampled, share_of
from rayrlhf.learner.objectives import PreferenceObjective, targets_of
from rayrlhf.learner.supervised import SupervisedLearner
from rayrlhf.types import PreferenceExample

NAN = float("nan")
in_memory = preference_examples.in_memory


def rankings(count: int, *, seed: int) -> list[PreferenceExample]:
    """Two to four responses each, ranked by their last id; the prompt's length is the number of the row."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        k = int(rng.integers(2, 5))
        sequences = tuple(ids(rng, int(rng.integers(4, 12))) for _ in range(k))
        ranks = tuple(int(rank) for rank in np.argsort(np.argsort([s[-1] for s in sequences])))
        rows.append(preference(sequences, ranks=ranks, ratings=tuple(float(-rank) for rank in ranks)))
        rows[-1] = replace(rows[-1], prompt_length=number)
    return rows


def numbers(rows: Rows[PreferenceExample]) -> list[int]:
    """Which of `rankings` they are, by the rows and by the column alike."""
    assert [row.prompt_length for row in rows] == rows.column("prompt_length").tolist()
    return rows.column("prompt_length").tolist()


def learner(rows: list[PreferenceExample], settings: LossSettings, *, budget: int = 4096) -> SupervisedLearner:
    config = run_config(
        reward={"prompts_per_step": 8, "micro_batch_tokens": budget, "optim": {"lr": 1e-3, "eps": 1e-4}}
    )
    return SupervisedLearner(
        config,
        config.reward,
        PreferenceObjective(settings),
        model=reward_model(),
        tokenizer=tokenizer(),
        train=in_memory(rows),
        heldout=in_memory(rankings(9, seed=2)),
        ranks=ALONE,
        seed=0,
    )


@pytest.mark.parametrize("kind", ["bradley_terry", "plackett_luce", "regression"])
def test_responses_of_a_prompt_stay_together_and_the_split_changes_no_gradient(kind: str) -> None:
    trained = []
    for budget in (64, 4096):
        made = learner(rankings(16, seed=1), LossSettings(kind=kind), budget=budget)  # type: ignore[arg-type]
        figures = [made.train_step() for _ in range(3)]
        trained.append(parameters(made._core.model))
    assert largest_difference(*trained) < 2e-6
    assert 0.0 <= figures[0]["reward/accuracy"] <= 1.0


def test_a_ranking_scores_each_response_once() -> None:
    """The loss of K responses from one pass, against every pair on its own in float64."""
    rows = rankings(8, seed=1)
    made = learner(rows, LossSettings())
    model = reward_model().double()
    losses = []
    for row in rows:
        with torch.no_grad():
            scores = [float(model(torch.from_numpy(s.astype(np.int64))[None]).logits[0, 0]) for s in row.sequences]
        pairs = [
            (a, b)
            for a, i in zip(scores, row.ranks, strict=True)
            for b, j in zip(scores, row.ranks, strict=True)
            if i < j
        ]
        losses.append(np.mean([np.logaddexp(0.0, b - a) for a, b in pairs]))
    assert made.train_step()["reward/loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert made.tokens == sum(len(s) for row in rows for s in row.sequences)


def test_targets_are_padded_to_the_longest_ranking() -> None:
    rng = np.random.default_rng(0)
    two = preference((ids(rng, 4), ids(rng, 5)), ranks=(1, 0), margin=2.0)
    one = preference((ids(rng, 4),), labels=(1.0,))
    found = targets_of([two, one])
    assert found.valid.tolist() == [[True, True], [True, False]]
    assert found.rank.tolist() == [[1, 0], [-1, -1]]
    assert found.label[1, 0] == 1.0
    assert found.label.isnan().sum() == 3
    assert found.margin.tolist() == [2.0, 0.0]


def test_bootstrap_samples_differ_by_seed_and_have_the_counts_of_one() -> None:
    rows = in_memory(rankings(400, seed=1))
    members = RewardConfig(members=2)
    first, again, second = (resampled(rows, members, seed=seed) for seed in (1, 1, 2))
    assert numbers(first) == numbers(again) != numbers(second)
    assert len(first) == 400
    assert len(set(numbers(first))) == pytest.approx(400 * (1 - np.exp(-1)), rel=0.1)
    weights = np.array([row.head_weights for row in resampled(rows, RewardConfig(heads=3), seed=1)])
    assert weights.shape == (400, 3)
    assert weights.mean() == pytest.approx(1.0, abs=0.1)
    assert (weights == 0).mean() == pytest.approx(np.exp(-1), abs=0.05)
    assert resampled(rows, RewardConfig(heads=3, bootstrap=False), seed=1) is rows
    assert resampled(rows, RewardConfig(), seed=1) is rows


def test_a_larger_share_of_the_rows_holds_every_smaller_one() -> None:
    rows = in_memory(rankings(200, seed=1))
    shares = [share_of(rows, share, seed=3) for share in (0.1, 0.25, 1.0)]
    assert [len(share) for share in shares] == [20, 50, 200]
    kept = [set(numbers(share)) for share in shares]
    assert kept[0] < kept[1] < kept[2]
    assert numbers(shares[2]) == list(range(200))
    assert numbers(shares[1]) == sorted(kept[1]) != numbers(share_of(rows, 0.25, seed=4))
    with pytest.raises(DataError, match=r"reward\.train_share=0\.001 of 200 training preferences is none: raise it"):
        share_of(rows, 0.001, seed=3)


def test_balanced_lengths_give_half_of_the_weight_to_each_side() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(600):
        short, long = ids(rng, int(rng.integers(3, 8))), ids(rng, int(rng.integers(8, 14)))
        longer_wins = rng.uniform() < 0.8
        rows.append(preference((long, short), ranks=(0, 1) if longer_wins else (1, 0)))
    wins = np.array([row.ranks == (0, 1) for row in rows])
    for strength, share in ((0.0, wins.mean()), (1.0, 0.5)):
        weights = pair_weights(balance_lengths(in_memory(rows), strength=strength))
        assert weights[wins].sum() / weights.sum() == pytest.approx(share, abs=0.01)
        assert weights.mean() == pytest.approx(1.0)
    halfway = pair_weights(balance_lengths(in_memory(rows), strength=0.5))
    assert 0.5 < halfway[wins].sum() / halfway.sum() < wins.mean()
    cut = [replace(row, sequences=tuple(sequence[:2] for sequence in row.sequences)) for row in rows]
    assert pair_weights(balance_lengths(in_memory(cut), strength=0.5)) == pytest.approx(halfway)


def test_balanced_lengths_weigh_each_pair_of_a_ranking_as_if_it_stood_alone() -> None:
    rng = np.random.default_rng(0)
    rows = [
        preference(
            tuple(ids(rng, int(n)) for n in rng.integers(3, 30, size=4)), ranks=tuple(rng.permutation(4).tolist())
        )
        for _ in range(50)
    ]
    alone = [
        (row, i, j, preference((row.sequences[i], row.sequences[j]), ranks=(0, 1)))
        for row in rows
        for i, j in itertools.product(range(4), repeat=2)
        if row.ranks[i] < row.ranks[j]
    ]
    balanced = balance_lengths(in_memory(rows), strength=0.7)
    found = {id(row): own.pair_weights for row, own in zip(rows, balanced, strict=True)}
    wanted = pair_weights(balance_lengths(in_memory([own for *_, own in alone]), strength=0.7))
    assert [found[id(row)][i, j] for row, i, j, _ in alone] == pytest.approx(wanted.tolist())
    assert np.std(wanted) > 0.01
    first = targets_of(balance_lengths(in_memory([rows[0], alone[0][3]]), strength=0.7))
    assert first.pair_weight.shape == (2, 4, 4)
    assert first.pair_weight[1, 2:].tolist() == [[1.0] * 4] * 2


def pair_weights(rows: Rows[PreferenceExample]) -> np.ndarray:
    """Of rows with one strict pair each."""
    weights = []
    for row in rows:
        better, worse = row.ranks.index(0), row.ranks.index(1)
        weights.append(1.0 if row.pair_weights is None else float(row.pair_weights[better, worse]))
    return np.array(weights)


def test_rows_without_a_length_difference_keep_their_weight() -> None:
    rng = np.random.default_rng(0)
    same = preference((ids(rng, 5), ids(rng, 5)), ranks=(0, 1))
    tied = preference((ids(rng, 5), ids(rng, 9)), ranks=(0, 0))
    even = in_memory([same, tied])
    assert balance_lengths(even, strength=1.0) is even
    uneven = preference((ids(rng, 5), ids(rng, 9)), ranks=(0, 1))
    assert (targets_of(balance_lengths(in_memory([same, tied, uneven]), strength=1.0)[:2]).pair_weight == 1.0).all()
