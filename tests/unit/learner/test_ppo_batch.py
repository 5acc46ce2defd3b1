"""What is made of a batch before the update, against numbers worked out by hand."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from learner_lab import hand_made, run_config, scored

from rayrlhf.algorithms.rewards import RunningMoments
from rayrlhf.config import PPOConfig
from rayrlhf.errors import NonFiniteError
from rayrlhf.learner.ppo_batch import Estimates, PPOBatch, batch_figures, make_batch, make_targets, pass_figures
from rayrlhf.telemetry.metrics import check_names
from rayrlhf.types import Comparisons, SampleId, ScoredTrajectory, VersionSpan


def settings(**ppo: Any) -> PPOConfig:
    """Neither normalisation, and the KL in the reward, whatever the estimator."""
    given: dict[str, Any] = {
        "normalize_reward": False,
        "whiten_advantages": False,
        "kl": {"placement": "reward"},
        **ppo,
    }
    return run_config(given).ppo


def two_samples(**second: Any) -> list[ScoredTrajectory]:
    """Prompts of 2 and 1 tokens; responses of 2 and 3."""
    prompt = np.array([5, 6], dtype=np.int32)
    return [
        scored(
            SampleId("ppo", 0, 0, 0),
            prompt=prompt,
            response=np.array([7, 8], dtype=np.int32),
            rollout_logprobs=np.array([-1.0, -2.0]),
            ref_logprobs=np.array([-1.5, -1.0]),
            score=2.0,
        ),
        scored(
            SampleId("ppo", 0, 0, 1),
            prompt=prompt[:1],
            response=np.array([9, 10, 11], dtype=np.int32),
            rollout_logprobs=np.array([-3.0, -1.0, -1.0]),
            ref_logprobs=np.array([-3.0, -1.0, -2.0]),
            score=-1.0,
            **second,
        ),
    ]


def estimates(batch: PPOBatch, *, values: float = 0.0, end_values: Sequence[float] | None = None) -> Estimates:
    return Estimates(
        old_logprobs=batch.rollout_logprobs.clone(),
        entropy=1.0,
        values=torch.where(batch.response_mask, values, 0.0),
        end_values=torch.tensor(end_values or [0.0] * len(batch.sequences)),
    )


def targets(scored_: list[ScoredTrajectory], config: PPOConfig, *, kl_coef: float = 0.0, **of: Any) -> Any:
    batch = make_batch(scored_, mask_truncated=config.truncation == "mask")
    return make_targets(batch, estimates(batch, **of), config, kl_coef=kl_coef, moments=None)


def test_layout() -> None:
    batch = make_batch(two_samples(), mask_truncated=False)
    assert batch.response_mask.tolist() == [[False, False, True, True], [False, True, True, True]]
    assert batch.rollout_logprobs.tolist() == [[0, 0, -1, -2], [0, -3, -1, -1]]
    assert batch.ref_logprobs.tolist() == [[0, 0, -1.5, -1], [0, -3, -1, -2]]
    assert batch.groups.tolist() == [0, 0]
    assert batch.trained_rows.tolist() == [0, 1]


def test_groups_are_prompts_of_a_step() -> None:
    samples = hand_made(4, seed=1, per_prompt=2)
    later = replace(samples[3], trajectory=replace(samples[3].trajectory, sample_id=SampleId("ppo", 1, 0, 0)))
    assert make_batch([*samples[:3], later], mask_truncated=False).groups.tolist() == [0, 0, 1, 2]


def test_reward_is_score_at_the_last_token_minus_kl() -> None:
    """k1 is old - ref: row 0 has 0.5 and -1, row 1 has 0, 0 and 1; undiscounted returns are rewards to go."""
    config = settings(gamma=1.0, lam=1.0)
    found, figures = targets(two_samples(), config, kl_coef=0.1)
    expected = torch.tensor([[0, 0, 2.1 - 0.05, 2.1], [0, -1.1, -1.1, -1.1]])
    assert torch.allclose(found.returns, expected)
    assert torch.allclose(found.advantages, expected)
    assert figures["reward/total"] == pytest.approx((2.05 - 1.1) / 2)
    assert figures["policy/advantage_mean"] == pytest.approx((2.05 + 2.1 - 3.3) / 5)


def test_kl_in_the_loss_leaves_the_reward_alone() -> None:
    config = settings(gamma=1.0, lam=1.0, kl={"placement": "loss", "estimator": "k3"})
    found, _ = targets(two_samples(), config, kl_coef=0.1)
    assert torch.allclose(found.returns, torch.tensor([[0, 0, 2.0, 2.0], [0, -1.0, -1.0, -1.0]]))


@pytest.mark.parametrize(
    ("kind", "scale", "expected"),
    [
        ("reinforce", "none", [1.575, -1.575]),
        ("rloo", "none", [3.15, -3.15]),
        ("grpo", "std", [0.5**0.5 + 0.075, -(0.5**0.5) - 0.075]),
        ("grpo", "none", [1.575, -1.575]),
    ],
)
def test_group_advantages_are_of_the_shaped_response_reward(kind: str, scale: str, expected: list[float]) -> None:
    """Scores 2 and -1 of one prompt, KL -0.5 and 1 at 0.1; every token carries its response's advantage."""
    found, _ = targets(two_samples(), settings(advantage=kind, scale=scale), kl_coef=0.1)
    assert torch.allclose(found.advantages[0, 2:], torch.full((2,), expected[0]), atol=1e-5)
    assert torch.allclose(found.advantages[1, 1:], torch.full((3,), expected[1]), atol=1e-5)


def test_bootstrap_puts_the_value_where_it_was_cut_in_place_of_the_score() -> None:
    """gamma 0.5, lambda 1: the last token's return is the score of row 0, and 0.5 times the end's value of row 1."""
    samples = two_samples(finish="length")
    plain, _ = targets(samples, settings(gamma=0.5, lam=1.0), end_values=(10.0, 20.0))
    config = settings(gamma=0.5, lam=1.0, truncation="bootstrap")
    bootstrapped, figures = targets(samples, config, end_values=(10.0, 20.0))
    assert plain.returns[1, 1:].tolist() == [-0.25, -0.5, -1.0]
    assert bootstrapped.returns[1, 1:].tolist() == [2.5, 5.0, 10.0]
    assert bootstrapped.returns[0].tolist() == plain.returns[0].tolist() == [0.0, 0.0, 1.0, 2.0]
    assert figures["reward/total"] == pytest.approx((2.0 + 0.0) / 2)


def test_bootstrap_keeps_the_kl_of_a_cut_response() -> None:
    """k1 is 0, 0 and 1 in row 1."""
    config = settings(gamma=1.0, lam=1.0, truncation="bootstrap")
    found, _ = targets(two_samples(finish="length"), config, kl_coef=0.1, end_values=(10.0, 20.0))
    assert torch.allclose(found.returns[1, 1:], torch.full((3,), 19.9))


def test_repeated_updates_with_bootstrap_come_to_rest_at_the_closed_form() -> None:
    """A prompt whose answers of one token end with score 2 three times of four and are cut, back where they began, else.

    The critic is a table that is set to the mean of the returns of its state: v = 3/4 * 2 + 1/4 * gamma * v.
    """
    rng = np.random.default_rng(0)
    made = hand_made(8, seed=1, truncated=[3, 7], per_prompt=8)
    one_token = [
        scored(
            item.trajectory.sample_id,
            prompt=np.array([5], dtype=np.int32),
            response=np.array([int(rng.integers(2, 9))], dtype=np.int32),
            rollout_logprobs=np.array([-1.0]),
            ref_logprobs=np.array([-1.0]),
            score=2.0,
            finish=item.trajectory.finish,
        )
        for item in made
    ]
    for gamma in (0.9, 1.0):
        config = settings(gamma=gamma, truncation="bootstrap", samples_per_prompt=8)
        value = 0.0
        for _ in range(60):
            found, _ = targets(one_token, config, values=value, end_values=[value] * 8)
            value = float(found.returns[:, 1].mean())
        assert value == pytest.approx(1.5 / (1.0 - 0.25 * gamma), rel=1e-5)


def test_missing_end_is_penalised_after_the_clip() -> None:
    config = settings(gamma=1.0, lam=1.0, missing_eos_penalty=3.0, reward_clip=0.5)
    found, _ = targets(two_samples(finish="length"), config)
    assert torch.allclose(found.returns[0, 2:], torch.full((2,), 0.5))
    assert torch.allclose(found.returns[1, 1:], torch.full((3,), -3.5))


def test_scores_are_normalised_by_moments() -> None:
    batch = make_batch(two_samples(), mask_truncated=False)
    config = settings(gamma=1.0, lam=1.0)
    moments = RunningMoments(count=4, mean=1.0, m2=16.0)  # deviation 2
    found, _ = make_targets(batch, estimates(batch), config, kl_coef=0.0, moments=moments)
    assert torch.allclose(found.returns[:, 3], torch.tensor([0.5, -1.0]))


def test_masked_rows_reach_no_baseline() -> None:
    samples = hand_made(6, seed=3, truncated=[1, 4], per_prompt=3)
    finished = [item for i, item in enumerate(samples) if i not in (1, 4)]
    for kind in ("rloo", "grpo", "reinforce"):
        config = settings(advantage=kind, truncation="mask", whiten_advantages=True, samples_per_prompt=4)
        with_masked, a = targets(samples, config, kl_coef=0.1)
        without, b = targets(finished, config, kl_coef=0.1)
        kept = with_masked.advantages[[0, 2, 3, 5]][:, : without.advantages.shape[1]]
        assert torch.allclose(kept, without.advantages, atol=1e-6)
        assert not with_masked.advantages[[1, 4]].any()
        assert a == pytest.approx(b, abs=1e-6)


def test_whitening_spans_the_valid_tokens_of_the_batch() -> None:
    found, _ = targets(two_samples(), settings(whiten_advantages=True, gamma=1.0, lam=1.0))
    raw = np.array([2.0, 2.0, -1.0, -1.0, -1.0])
    expected = (raw - raw.mean()) / raw.std()
    mask = make_batch(two_samples(), mask_truncated=False).loss_mask
    assert torch.allclose(found.advantages[mask], torch.tensor(expected, dtype=torch.float32), atol=1e-5)


def test_importance_corrects_only_what_the_ratio_does_not() -> None:
    """With the engine's log-probs as denominator the ratio holds the whole correction; a second one would square it."""
    batch = make_batch(two_samples(), mask_truncated=False)
    gap = replace(estimates(batch), old_logprobs=torch.where(batch.response_mask, batch.rollout_logprobs + 0.5, 0.0))
    recompute = settings(importance_cap=1.2)
    found, figures = make_targets(batch, gap, recompute, kl_coef=0.0, moments=None)
    assert found.importance[batch.loss_mask].tolist() == pytest.approx([1.2] * 5)
    assert figures["mismatch/importance_weight"] == pytest.approx(1.2)
    rollout = settings(importance_cap=1.2, old_logprobs="rollout")
    found, _ = make_targets(batch, gap, rollout, kl_coef=0.0, moments=None)
    assert found.importance[batch.loss_mask].tolist() == pytest.approx([1.0] * 5)
    assert torch.equal(found.denominator, batch.rollout_logprobs)


def gaps(batch: PPOBatch) -> Estimates:
    """Learner over engine: 1 and 8 in row 0, 0.25, 1.5 and 1 in row 1."""
    log_ratios = torch.tensor([1.0, 8.0, 0.25, 1.5, 1.0]).log()
    old = batch.rollout_logprobs + torch.zeros(batch.response_mask.shape).masked_scatter(
        batch.response_mask, log_ratios
    )
    return replace(estimates(batch, values=0.5), old_logprobs=old)


@pytest.mark.parametrize(
    ("keys", "importance", "masked"),
    [
        ({"importance_cap": 2.0}, [1.0, 2.0, 0.25, 1.5, 1.0], (None, None)),
        ({"max_staleness": 1}, [1.0, 2.0, 0.25, 1.5, 1.0], (None, None)),
        ({"importance_band": [0.5, 5.0]}, [1.0, 0.0, 0.0, 1.5, 1.0], (0.4, None)),
        ({"importance_band": [0.2, 9.0], "max_staleness": 1}, [1.0, 2.0, 0.25, 1.5, 1.0], (0.0, None)),
        ({"importance_band": [0.2, 9.0]}, [1.0, 8.0, 0.25, 1.5, 1.0], (0.0, None)),
        ({"sequence_band": [0.5, 2.0], "importance_cap": 1.2}, [0.0, 0.0, 0.25, 1.2, 1.0], (None, 0.5)),
        (
            {"sequence_band": [0.5, 2.0], "importance_band": [0.5, 5.0], "max_staleness": 2},
            [0.0, 0.0, 0.0, 1.5, 1.0],
            (0.4, 0.5),
        ),
    ],
)
def test_masks_reach_the_policy_alone(
    keys: dict[str, Any], importance: list[float], masked: tuple[float | None, float | None]
) -> None:
    """Geometric means: 8 ** (1 / 2) = 2.83 in row 0, 0.375 ** (1 / 3) = 0.72 in row 1."""
    batch = make_batch(two_samples(), mask_truncated=False)
    plain, before = make_targets(batch, gaps(batch), settings(), kl_coef=0.1, moments=None)
    found, figures = make_targets(batch, gaps(batch), settings(**keys), kl_coef=0.1, moments=None)
    check_names(figures)
    assert plain.importance is None
    assert found.importance is not None
    assert found.importance[batch.loss_mask].tolist() == pytest.approx(importance)
    assert not found.importance[~batch.loss_mask].any()
    assert figures["mismatch/importance_weight"] == pytest.approx(np.mean(importance))
    shares = (figures.get("mismatch/masked_tokens"), figures.get("mismatch/masked_responses"))
    assert shares == pytest.approx(masked)
    assert not {"mismatch/masked_tokens", "mismatch/masked_responses"} & before.keys()
    for name in ("denominator", "advantages", "returns"):
        assert torch.equal(getattr(found, name), getattr(plain, name))


def test_masked_shares_are_of_what_is_trained() -> None:
    """Row 1 is cut and left out, and its tokens of 0.25 and 1.5 with it."""
    batch = make_batch(two_samples(finish="length"), mask_truncated=True)
    config = settings(importance_band=[0.5, 5.0], sequence_band=[0.5, 2.0], truncation="mask")
    _, figures = make_targets(batch, gaps(batch), config, kl_coef=0.0, moments=None)
    assert figures["mismatch/masked_tokens"] == 0.5
    assert figures["mismatch/masked_responses"] == 1.0
    nothing = make_batch([two_samples(finish="length")[1]], mask_truncated=True)
    _, figures = make_targets(nothing, estimates(nothing), config, kl_coef=0.0, moments=None)
    assert not {"mismatch/masked_tokens", "mismatch/masked_responses"} & figures.keys()


def spanned(*responses: Sequence[int], cut: Sequence[int] = ()) -> list[ScoredTrajectory]:
    """Responses whose tokens were drawn by these versions, in spans of one version each."""
    made = []
    for i, versions in enumerate(responses):
        bounds = [0, *(t for t in range(1, len(versions)) if versions[t] != versions[t - 1]), len(versions)]
        spans = tuple(VersionSpan(version=versions[start], start=start, end=end) for start, end in pairwise(bounds))
        (item,) = rows([len(versions)], [1.0], per_prompt=1)
        finish: Any = "length" if i in cut else "eos"
        trajectory = replace(item.trajectory, sample_id=SampleId("ppo", 0, i, 0), version_spans=spans, finish=finish)
        made.append(replace(item, trajectory=trajectory))
    return made


STALENESS = ("mean", "max", "share_0", "share_1", "share_2", "share_3", "share_4_or_more")


def test_staleness_is_of_tokens_and_spans_are_of_responses() -> None:
    samples = spanned([9, 9, 8], [7, 8, 9, 9], [2, 5])
    batch = make_batch(samples, mask_truncated=False)
    figures = batch_figures(batch, estimates(batch), samples, version=9)
    check_names(figures)
    behind = np.array([0, 0, 1, 2, 1, 0, 0, 7, 4])
    expected = [behind.mean(), 7, *(np.mean(behind == k) for k in range(4)), np.mean(behind >= 4)]
    assert [figures[f"staleness/{name}"] for name in STALENESS] == pytest.approx(expected)
    assert sum(figures[f"staleness/{name}"] for name in STALENESS[2:]) == pytest.approx(1.0)
    assert (figures["rollout/spans"], figures["rollout/spans_max"]) == (pytest.approx(7 / 3), 3.0)
    assert figures["rollout/staleness"] == 7.0


def test_staleness_is_of_the_tokens_that_are_trained() -> None:
    samples = spanned([9, 8], [2], cut=[1])
    batch = make_batch(samples, mask_truncated=True)
    figures = batch_figures(batch, estimates(batch), samples, version=9)
    assert [figures[f"staleness/{name}"] for name in STALENESS] == [0.5, 1.0, 0.5, 0.5, 0.0, 0.0, 0.0]
    assert figures["rollout/staleness"] == 7.0, "its bound is of all responses"
    batch = make_batch(samples[1:], mask_truncated=True)
    figures = batch_figures(batch, estimates(batch), samples[1:], version=9)
    assert not any(name.startswith("staleness/") for name in figures)


def test_figures_of_a_batch() -> None:
    samples = two_samples(finish="length", version=3, gold=0.25)
    batch = make_batch(samples, mask_truncated=False)
    figures = batch_figures(batch, estimates(batch), samples, version=3)
    assert figures["reward/score"] == 0.5
    assert figures["reward/score_std"] == 1.5
    assert figures["reward/gold"] == 0.25
    assert figures["kl/reference"] == pytest.approx((-0.5 + 1.0) / 2)
    assert figures["kl/reference_token"] == pytest.approx(0.5 / 5)
    assert figures["kl/behaviour"] == pytest.approx((-0.5 + 1.0) / 2)
    assert figures["rollout/length"] == 2.5
    assert figures["rollout/length_max"] == 3.0
    assert figures["rollout/truncated"] == 0.5
    assert figures["rollout/staleness"] == 3.0
    assert figures["rollout/version"] == 3.0
    assert figures["mismatch/max"] == 0.0


def test_what_comparisons_say_of_the_judge_is_of_all_of_them() -> None:
    samples = two_samples()
    batch = make_batch(samples, mask_truncated=False)
    assert "reward/position_bias" not in batch_figures(batch, estimates(batch), samples, version=0)
    accounts = [Comparisons(asked=3, read=1, bias=0.3, flipped=1), Comparisons(asked=3, read=3, bias=0.1, flipped=0)]
    judged = [replace(item, comparisons=account) for item, account in zip(samples, accounts, strict=True)]
    figures = batch_figures(batch, estimates(batch), judged, version=0)
    assert figures["reward/position_bias"] == pytest.approx(0.1)
    assert figures["reward/position_flips"] == 0.25
    assert figures["reward/comparisons_unread"] == pytest.approx(1 / 3)
    check_names(figures)


def grouped(*groups: tuple[float, ...], terms: str = "", cut: int = 0) -> list[ScoredTrajectory]:
    """Responses of one token to as many prompts as there are groups; the last `cut` are truncated."""
    samples = [
        scored(
            SampleId("ppo", 0, prompt, k),
            prompt=np.array([5], dtype=np.int32),
            response=np.array([7], dtype=np.int32),
            rollout_logprobs=np.array([-1.0]),
            ref_logprobs=np.array([-1.0]),
            score=float(score),
        )
        for prompt, group in enumerate(groups)
        for k, score in enumerate(group)
    ]
    if terms:
        samples = [replace(item, score=item.score * 0.5, terms={terms: item.score}) for item in samples]
    for i in range(len(samples) - cut, len(samples)):
        samples[i] = replace(samples[i], trajectory=replace(samples[i].trajectory, finish="length"))
    return samples


def figures_of(samples: list[ScoredTrajectory], **options: Any) -> dict[str, float]:
    batch = make_batch(samples, **({"mask_truncated": False} | options))
    return batch_figures(batch, estimates(batch), samples, version=0)


def test_groups_whose_scores_are_all_equal_are_counted() -> None:
    figures = figures_of(grouped((1, 1, 1), (0, 0, 0), (1, 0, 0), (0.5, 0.7, 0.9), (3,)))
    assert figures["reward/groups_equal"] == 0.5, "the prompt with one response is no group"
    assert figures["reward/group_std"] == pytest.approx((3**-0.5 + 0.2) / 4)
    assert "reward/groups_equal" not in figures_of(grouped((1,), (0,)))


def test_groups_are_of_the_responses_that_are_trained() -> None:
    """Without its cut last response the second group is equal."""
    samples = grouped((1, 0), (1, 1, 0), cut=1)
    assert figures_of(samples)["reward/groups_equal"] == 0.0
    assert figures_of(samples, mask_truncated=True)["reward/groups_equal"] == 0.5


def test_pass_figures_are_there_where_every_score_is_0_or_1() -> None:
    samples = grouped((1, 1, 0, 0), (0, 0, 0, 0))
    figures = pass_figures(samples, k=4)
    check_names(figures)
    assert figures["reward/pass_rate"] == 0.25
    assert figures["reward/pass_at_k"] == 0.5
    assert (figures["reward/pass_n"], figures["reward/pass_at_k_n"]) == (8.0, 2.0)
    assert figures["reward/pass_rate_low"] < 0.25 < figures["reward/pass_rate_high"]
    assert pass_figures(samples, k=2)["reward/pass_at_k"] == pytest.approx((1 - 1 / 6) / 2)
    assert pass_figures(grouped((1, 1, 0.5)), k=3) == {}
    assert "reward/pass_at_k" not in pass_figures(grouped((1,), (0,)), k=1)


def test_a_weighted_verifier_is_still_one() -> None:
    assert pass_figures(grouped((1, 0), terms="verify"), k=2)["reward/pass_rate"] == 0.5
    two = [replace(item, terms={"verify": item.score, "format": 0.5}) for item in grouped((0.25, 1))]
    assert pass_figures(two, k=2) == {}


def test_a_solved_prompt_is_not_pushed_down() -> None:
    """Prompt 0 is solved four times; prompt 1 once, by the longest answer."""
    lengths, scores = [4, 4, 4, 4, 8, 2, 2, 2], [1.0] * 4 + [1.0, 0.0, 0.0, 0.0]
    samples = rows(lengths, scores, per_prompt=4)
    for kind, others in (("grpo", [1.5, -0.5, -0.5, -0.5]), ("rloo", [1.0, -1 / 3, -1 / 3, -1 / 3])):
        config = run_config({"advantage": kind, "samples_per_prompt": 4, "kl": {"coef": 0.0}}).ppo
        found, _ = targets(samples, config)
        assert per_response(found, samples) == pytest.approx([0.0] * 4 + others, abs=1e-5)


def test_kl_in_the_reward_stays_outside_of_the_group_deviation() -> None:
    """Equal scores leave the pull of the KL at its own size, and scores keep theirs where the KL is equal."""
    kl = [0.2, 0.4, 0.6, 0.1, 0.3, 0.3, 0.3, 0.3]
    samples = rows([1] * 8, [1.0] * 5 + [0.0] * 3, per_prompt=4, kl=kl)
    for coef in (0.05, 0.5):
        config = settings(advantage="grpo", samples_per_prompt=4, kl={"placement": "reward", "coef": coef})
        found, _ = targets(samples, config, kl_coef=coef)
        pull = [-coef * (own - 0.325) for own in kl[:4]]
        assert per_response(found, samples) == pytest.approx([*pull, 1.5, -0.5, -0.5, -0.5], abs=1e-5)
    loss = run_config({"advantage": "grpo", "samples_per_prompt": 4}).ppo
    found, _ = targets(samples, loss, kl_coef=0.05)
    assert per_response(found, samples)[:4] == [0.0] * 4


def rows(
    lengths: Sequence[int], scores: Sequence[float], *, per_prompt: int, kl: Sequence[float] | None = None
) -> list[ScoredTrajectory]:
    """Responses of given lengths and scores, the KL of each on its first token."""
    kl = [0.0] * len(lengths) if kl is None else kl
    return [
        scored(
            SampleId("ppo", 0, i // per_prompt, i % per_prompt),
            prompt=np.array([5], dtype=np.int32),
            response=np.full(length, 7, dtype=np.int32),
            rollout_logprobs=np.full(length, -1.0),
            ref_logprobs=np.where(np.arange(length) == 0, -1.0 - own, -1.0),
            score=score,
        )
        for i, (length, score, own) in enumerate(zip(lengths, scores, kl, strict=True))
    ]


def per_response(found: Any, samples: list[ScoredTrajectory]) -> list[float]:
    """The advantage at each response's first token, which follows a prompt of one."""
    assert all(len(item.trajectory.prompt_ids) == 1 for item in samples)
    first: list[float] = found.advantages[:, 1].tolist()
    return first


@pytest.mark.parametrize("advantage", ["gae", "grpo", "reinforce"])
def test_without_an_uncertainty_weight_nothing_changes_and_with_one_only_the_advantages(advantage: str) -> None:
    """Weighted last: the returns are as without it, and no sample gets a part of what another lost."""
    alike = [replace(item, spread=None) for item in hand_made(12, seed=3, per_prompt=2)]
    spreads = [None, 0.0, 0.5, 1.0, 2.0, 50.0] * 2
    samples = [replace(item, spread=own) for item, own in zip(alike, spreads, strict=True)]
    config = settings(advantage=advantage, whiten_advantages=True)
    plain, figures = targets(alike, config, kl_coef=0.1)
    same, unchanged = targets(samples, config, kl_coef=0.1)
    assert torch.equal(plain.advantages, same.advantages)
    assert figures == unchanged
    assert "policy/certainty" not in figures
    weighted = config.model_copy(update={"uncertainty_weight": 2.0})
    found, told = targets(samples, weighted, kl_coef=0.1)
    wanted = [1.0 if own is None else 1.0 / (1.0 + 2.0 * own**2) for own in spreads]
    torch.testing.assert_close(found.advantages, plain.advantages * torch.tensor(wanted).unsqueeze(1))
    assert torch.equal(found.returns, plain.returns)
    assert told.pop("policy/certainty") == pytest.approx(np.mean(wanted))
    assert told == figures
    check_names(["policy/certainty"])


def test_a_cut_response_that_is_not_trained_on_its_score_is_not_weighed_by_it() -> None:
    samples = [replace(item, spread=1.0) for item in two_samples(finish="length")]
    plain, _ = targets(samples, settings(truncation="bootstrap"), end_values=[0.0, 4.0])
    found, told = targets(samples, settings(truncation="bootstrap", uncertainty_weight=1.0), end_values=[0.0, 4.0])
    assert torch.equal(found.advantages[1], plain.advantages[1])
    torch.testing.assert_close(found.advantages[0], plain.advantages[0] / 2)
    assert told["policy/certainty"] == pytest.approx(0.75)


@pytest.mark.parametrize("where", ["score", "engine", "reference", "spread"])
def test_what_is_not_finite_is_named_and_refused(where: str) -> None:
    samples = two_samples()
    bad = np.array([-1.0, np.nan, -1.0], dtype=np.float32)
    if where == "score":
        samples[1] = replace(samples[1], score=float("nan"))
    elif where == "spread":
        samples[1] = replace(samples[1], spread=float("inf"))
    elif where == "engine":
        samples[1] = replace(samples[1], trajectory=replace(samples[1].trajectory, rollout_logprobs=bad))
    else:
        samples[1] = replace(samples[1], ref_logprobs=bad)
    with pytest.raises(NonFiniteError, match=rf"{where}.*ppo-0-0-1"):
        make_batch(samples, mask_truncated=False)
