"""What the metrics say of samples that older versions drew, against closed forms.

A policy of three outcomes is small enough for every sample to be had in exact proportion: what is measured is then the
expectation itself.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from learner_lab import policy_model, ppo_learner, run_config, sample, scored

from rayrlhf.algorithms.policy_loss import policy_loss
from rayrlhf.learner.ppo import PPOLearner
from rayrlhf.learner.ppo_batch import Estimates, batch_figures, make_batch, make_targets
from rayrlhf.telemetry.metrics import check_names
from rayrlhf.types import SampleId, ScoredTrajectory, VersionSpan

REF = np.array([0.5, 0.3, 0.2])
NEW = np.array([0.2, 0.3, 0.5])
NEXT = np.array([0.1, 0.3, 0.6])
"""What the policy is after some passes of the update."""
VERSION = 7
STALENESS = pytest.mark.parametrize(
    ("staleness", "drawn"), [(0, NEW), (1, np.array([0.3, 0.3, 0.4])), (4, REF), (4, np.array([0.6, 0.2, 0.2]))]
)
SCORES = (1.0, -2.0, 0.5)
FIRST = 10
"""Token id of outcome 0."""


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * np.log(p / q)).sum())


def drawn_by(policy: np.ndarray, *, version: int, count: int = 10, first_id: int = 0) -> list[ScoredTrajectory]:
    """Responses of one token in exact proportion to `policy`."""
    outcomes = np.repeat(np.arange(3), np.rint(policy * count).astype(int))
    return [
        scored(
            SampleId("ppo", 0, first_id + i, 0),
            prompt=np.array([5], dtype=np.int32),
            response=np.array([FIRST + outcome], dtype=np.int32),
            rollout_logprobs=np.log(policy[[outcome]]),
            ref_logprobs=np.log(REF[[outcome]]),
            score=SCORES[outcome],
            version=version,
        )
        for i, outcome in enumerate(outcomes)
    ]


def laid_out(samples: list[ScoredTrajectory], *policies: np.ndarray) -> tuple[Any, list[torch.Tensor]]:
    """The batch, and the log-probs of its tokens under each of the policies."""
    batch = make_batch(samples, mask_truncated=False)
    tokens = torch.tensor([[0, int(item.trajectory.response_ids[0]) - FIRST] for item in samples])
    laid = [torch.where(batch.response_mask, torch.tensor(np.log(p)).float()[tokens], 0.0) for p in policies]
    return batch, laid


def estimates(old: torch.Tensor) -> Estimates:
    return Estimates(old_logprobs=old, entropy=1.0, values=torch.zeros_like(old), end_values=torch.zeros(len(old)))


def figures(samples: list[ScoredTrajectory]) -> dict[str, float]:
    batch, (old,) = laid_out(samples, NEW)
    found = batch_figures(batch, estimates(old), samples, version=VERSION)
    check_names(found)
    return found


@STALENESS
def test_kl_is_that_of_the_policy_it_names(staleness: int, drawn: np.ndarray) -> None:
    found = figures(drawn_by(drawn, version=VERSION - staleness))
    assert found["kl/reference"] == pytest.approx(kl(NEW, REF), rel=1e-5) == pytest.approx(0.2749, abs=1e-4)
    assert found["kl/reference_token"] == pytest.approx(kl(NEW, REF), rel=1e-5)
    assert found["kl/behaviour"] == pytest.approx(kl(drawn, REF), abs=1e-6)
    assert found["rollout/staleness"] == staleness


def test_kl_of_a_batch_of_several_versions() -> None:
    samples = drawn_by(NEW, version=VERSION) + drawn_by(REF, version=VERSION - 2, first_id=10)
    samples += drawn_by(np.array([0.6, 0.2, 0.2]), version=VERSION - 4, first_id=20)
    assert figures(samples)["kl/reference"] == pytest.approx(kl(NEW, REF), rel=1e-5)


@STALENESS
def test_mismatch_is_of_tokens_of_the_same_weights(staleness: int, drawn: np.ndarray) -> None:
    found = figures(drawn_by(drawn, version=VERSION - staleness))
    names = {f"mismatch/{name}" for name in ("p50", "p95", "p99", "max", "outside")}
    assert names & found.keys() == (set() if staleness else names)
    mixed = figures(drawn_by(drawn, version=VERSION - staleness) + drawn_by(NEW, version=VERSION, first_id=10))
    assert mixed["mismatch/max"] == pytest.approx(0.0, abs=1e-6)


@STALENESS
@pytest.mark.parametrize("denominator", ["recompute", "rollout"])
def test_figures_of_the_update(staleness: int, drawn: np.ndarray, denominator: str) -> None:
    """approx_kl is KL(old || next), old being the denominator; the importance weight is min(old / drawn, cap) as drawn."""
    samples = drawn_by(drawn, version=VERSION - staleness)
    batch, (old, after) = laid_out(samples, NEW, NEXT)
    options = {"advantage": "reinforce", "old_logprobs": denominator, "max_staleness": 4}
    config = run_config(options | {"normalize_reward": False, "whiten_advantages": False, "kl": {"coef": 0.0}}).ppo
    targets, found = make_targets(batch, estimates(old), config, kl_coef=0.0, moments=None, version=VERSION)
    parts = policy_loss(
        after,
        targets.denominator,
        targets.advantages,
        batch.loss_mask,
        token_count=len(samples),
        clip_low=0.2,
        clip_high=0.2,
        dual_clip=None,
        importance=targets.importance,
        stale_ratio=targets.stale_ratio,
    )
    base = NEW if denominator == "recompute" else drawn
    assert float(parts.approx_kl) == pytest.approx(kl(base, NEXT), rel=1e-4)
    assert found["mismatch/importance_weight"] == pytest.approx((drawn * np.minimum(base / drawn, 2.0)).sum(), rel=1e-5)
    assert found["policy/advantage_mean"] == pytest.approx(0.0, abs=1e-6)
    ratio = NEXT / base
    clipped = np.clip(ratio, 0.8, 1.2)
    gain = np.array(SCORES) - (drawn * SCORES).sum()
    objective = np.minimum(ratio * gain, clipped * gain)
    assert float(parts.loss) == pytest.approx(-(drawn * np.minimum(base / drawn, 2.0) * objective).sum(), rel=1e-4)
    assert float(parts.clip_fraction) == pytest.approx(drawn[objective != ratio * gain].sum(), abs=1e-6)


@STALENESS
def test_scores_are_of_the_policy_that_drew(staleness: int, drawn: np.ndarray) -> None:
    found = figures(drawn_by(drawn, version=VERSION - staleness))
    assert found["reward/score"] == pytest.approx((drawn * SCORES).sum())
    assert found["reward/score_std"] == pytest.approx(
        ((drawn * np.square(SCORES)).sum() - found["reward/score"] ** 2) ** 0.5
    )


# -- several tokens -------------------------------------------------------------------------------------------------

Chain = tuple[np.ndarray, np.ndarray]
"""Chances of the first token, and of the second after the first (rows); outcome 0 ends the response."""
CHAINS: dict[str, Chain] = {
    "ref": (np.array([0.5, 0.3, 0.2]), np.array([[1, 0, 0], [0.2, 0.2, 0.6], [0.3, 0.4, 0.3]])),
    "new": (np.array([0.2, 0.3, 0.5]), np.array([[1, 0, 0], [0.4, 0.3, 0.3], [0.1, 0.5, 0.4]])),
    "drawn": (np.array([0.4, 0.4, 0.2]), np.array([[1, 0, 0], [0.2, 0.5, 0.3], [0.2, 0.3, 0.5]])),
}
PATHS = [(0,), *((a, b) for a in (1, 2) for b in range(3))]


def along(name: str, path: tuple[int, ...]) -> np.ndarray:
    first, second = CHAINS[name]
    return np.log([first[path[0]], *(second[path[0], b] for b in path[1:])])


@pytest.mark.parametrize("who", ["drawn", "new", "first token drawn, then new"])
def test_kl_of_responses_of_several_tokens(who: str) -> None:
    """Weights of the second token alone, or of whole responses at the first, would be off: lengths and states differ too.

    In the third case the version changed within the response, which its spans tell.
    """
    truth = sum(np.exp(along("new", p).sum()) * (along("new", p) - along("ref", p)).sum() for p in PATHS)
    tokens = sum(np.exp(along("new", p).sum()) * len(p) for p in PATHS)
    k1, log_weights = [], []
    samples: list[ScoredTrajectory] = []
    for path in PATHS:
        drawn = along("drawn" if who == "drawn" else "new", path)
        if who.startswith("first"):
            drawn = np.concatenate([along("drawn", path)[:1], drawn[1:]])
        for _ in range(round(float(np.exp(drawn.sum())) * 100)):
            samples.append(_sampled(path, drawn, who, len(samples)))
            k1.append(along("new", path))
            log_weights.append(drawn)
    batch = make_batch(samples, mask_truncated=False)
    old = torch.zeros(batch.response_mask.shape).masked_scatter(
        batch.response_mask, torch.tensor(np.concatenate(k1)).float()
    )
    found = batch_figures(batch, estimates(old), samples, version=VERSION)
    assert len(samples) == 100
    assert found["kl/reference"] == pytest.approx(truth, rel=1e-5)
    assert found["kl/reference_token"] == pytest.approx(truth / tokens, rel=1e-5)


def _sampled(path: tuple[int, ...], drawn: np.ndarray, who: str, number: int) -> ScoredTrajectory:
    versions = {"drawn": (VERSION - 4, VERSION - 4), "new": (VERSION, VERSION)}.get(who, (VERSION - 1, VERSION))
    item = scored(
        SampleId("ppo", 0, number, 0),
        prompt=np.arange(5, 6 + number % 3, dtype=np.int32),
        response=np.array([FIRST + outcome for outcome in path], dtype=np.int32),
        rollout_logprobs=drawn,
        ref_logprobs=along("ref", path),
        score=0.0,
    )
    spans = tuple(VersionSpan(version=versions[i], start=i, end=i + 1) for i in range(len(path)))
    return replace(item, trajectory=replace(item.trajectory, version_spans=spans))


def test_where_the_weights_leave_too_little_there_is_no_figure() -> None:
    """A batch of which one response in a hundred carries the whole weight."""
    far = np.array([0.01, 0.01, 0.98])
    samples = drawn_by(np.array([0.98, 0.01, 0.01]), version=VERSION - 4, count=100)
    batch, (old,) = laid_out(samples, far)
    found = batch_figures(batch, estimates(old), samples, version=VERSION)
    assert "kl/reference" not in found
    assert "kl/reference_token" not in found
    assert found["kl/behaviour"] == pytest.approx(kl(np.array([0.98, 0.01, 0.01]), REF), abs=1e-5)


# -- the real learner -----------------------------------------------------------------------------------------------


def distribution(model: Any, prompt: np.ndarray) -> torch.Tensor:
    """Log-probabilities of the first token after a prompt."""
    with torch.no_grad():
        row: torch.Tensor = (
            model(torch.from_numpy(prompt.astype(np.int64))[None]).logits[0, -1].double().log_softmax(-1)
        )
    return row


def exact(samples: list[ScoredTrajectory], value: Callable[[np.ndarray], float]) -> float:
    """Mean of `value` over the prompts of the batch."""
    prompts = Counter(tuple(item.trajectory.prompt_ids.tolist()) for item in samples)
    return sum(value(np.array(p)) * n for p, n in prompts.items()) / len(samples)


@pytest.fixture(scope="module")
def stale() -> tuple[PPOLearner, list[ScoredTrajectory]]:
    """A learner four updates after its policy, the reference, drew one token to each of many prompts."""
    kl_options = {"controller": "adaptive", "target": 0.05, "horizon": 100_000, "coef": 1.0e-3}
    learner = ppo_learner({"advantage": "reinforce", "optim": {"lr": 3.0e-3}, "max_staleness": 4, "kl": kl_options})
    old = sample(
        learner, score=lambda r: float(r[0] < 66), reference=policy_model(), count=4096, length=1, per_prompt=256
    )
    for step in range(4):
        drawn = sample(learner, score=lambda r: float((r < 66).mean()), reference=policy_model(), count=48)
        learner.update(step, drawn)
    return learner, old


def test_a_learner_knows_its_own_kl_from_the_samples_of_the_reference(stale: Any) -> None:
    learner, samples = stale
    reference, policy = policy_model(), learner._policy.model
    ahead = exact(
        samples,
        lambda p: float((distribution(policy, p).exp() * (distribution(policy, p) - distribution(reference, p))).sum()),
    )
    own = learner.logprobs_of([item.trajectory for item in samples])
    unweighted = float(np.mean([row.sum() - item.ref_logprobs.sum() for row, item in zip(own, samples, strict=True)]))
    assert unweighted < -0.05, "what the same tokens say without weights has the wrong sign"
    entropy = exact(
        samples, lambda prompt: float(-(distribution(policy, prompt).exp() * distribution(policy, prompt)).sum())
    )
    metrics = learner.update(4, samples)
    check_names(metrics)
    assert ahead > 0.1
    assert metrics["kl/reference"] == pytest.approx(ahead, rel=0.1)
    assert metrics["kl/behaviour"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["policy/entropy"] == pytest.approx(entropy, rel=1e-4)
    assert "mismatch/p99" not in metrics
    assert learner._kl.value > metrics["kl/coef"], "a policy beyond its target is pulled harder"


def test_where_responses_are_too_old_the_coefficient_follows_the_policies_that_drew_them() -> None:
    """A few updates later, then, but in the right direction."""
    kl_options = {"controller": "adaptive", "target": 0.05, "horizon": 1000, "coef": 1.0e-3}
    options = {"advantage": "reinforce", "optim": {"lr": 1.0e-2}, "max_staleness": 2, "updates": 30}
    learner = ppo_learner({**options, "kl": kl_options})
    reference = policy_model()
    waiting: list[list[ScoredTrajectory]] = []
    history = []
    for step in range(8):
        waiting.append(sample(learner, score=lambda r: float((r < 66).mean()), reference=reference, count=64))
        history.append(learner.update(step, waiting.pop(0) if step >= 2 else waiting[0]))
    untold = [step for step, metrics in enumerate(history[:-1]) if step >= 4 and "kl/reference" not in metrics]
    assert untold
    for step in untold:
        assert history[step]["kl/behaviour"] > 0.05
        assert history[step + 1]["kl/coef"] > history[step]["kl/coef"]
