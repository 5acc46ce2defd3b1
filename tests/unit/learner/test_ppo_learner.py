import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_lab import (
    ALONE,
    hand_made,
    largest_difference,
    parameters,
    policy_model,
    ppo_learner,
    run_config,
    sample,
    tokenizer,
)
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, BertConfig, BertModel

from rayrlhf.errors import CheckpointError, LedgerError, NonFiniteError
from rayrlhf.learner.build import build_ppo
from rayrlhf.learner.ppo import PPOLearner
from rayrlhf.models.export import export_model
from rayrlhf.models.load import make_reward_model
from rayrlhf.telemetry.metrics import check_names
from rayrlhf.weights.codec import unpack

KINDS = pytest.mark.parametrize("kind", ["gae", "rloo", "grpo", "reinforce"])
STEADY = {"lr": 1.0e-3, "eps": 1.0e-4, "schedule": "constant"}
"""Adam divides by the gradient's size: with a tiny eps the rounding of zero gradients (key biases) is whole steps."""
REWARDED = range(2, 66)


def rewarded_share(response: np.ndarray) -> float:
    return float(np.isin(response, REWARDED).mean())


def state_of(learner: PPOLearner) -> dict[str, torch.Tensor]:
    state = {f"policy.{name}": value for name, value in parameters(learner._policy.model).items()}
    if learner._critic is not None:
        state |= {f"critic.{name}": value for name, value in parameters(learner._critic.model).items()}
    return state


def updated(samples: list[Any], *, seed: int = 0, **ppo: Any) -> PPOLearner:
    learner = ppo_learner({"optim": STEADY, "critic_optim": STEADY, **ppo})
    learner.update(0, samples)
    return learner


# -- invariance -----------------------------------------------------------------------------------------------------


def test_gradient_equals_autograd_over_one_unpadded_sequence_at_a_time() -> None:
    """One reinforce step in float64, written out: -sum(ratio * A) / tokens, ratio 1, A = score - mean."""
    samples = hand_made(6, seed=4)
    model = policy_model().double()
    tokens = sum(len(s.trajectory.response_ids) for s in samples)
    mean = np.mean([s.score for s in samples])
    for item in samples:
        full = np.concatenate([item.trajectory.prompt_ids, item.trajectory.response_ids]).astype(np.int64)
        ids = torch.from_numpy(full).unsqueeze(0)
        logprobs = (model(ids).logits[0, :-1] / 0.7).log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
        response = logprobs[len(item.trajectory.prompt_ids) - 1 :]
        ratio = (response - response.detach()).exp()
        (-(item.score - mean) * ratio.sum() / tokens).backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None))
    learner = ppo_learner(
        {
            "advantage": "reinforce",
            "normalize_reward": False,
            "whiten_advantages": False,
            "epochs": 1,
            "minibatches": 1,
            "kl": {"coef": 0.0},
        },
        sampling={"max_new_tokens": 8, "temperature": 0.7},
    )
    assert learner.update(0, samples)["optim/grad_norm"] == pytest.approx(norm, rel=1e-4)


# -- the first pass -------------------------------------------------------------------------------------------------


@KINDS
def test_ratio_is_one_in_the_first_minibatch(kind: str) -> None:
    metrics = ppo_learner({"advantage": kind, "micro_batch_tokens": 48}).update(0, hand_made(16, seed=2))
    assert metrics["policy/ratio_max_error"] < 1e-5
    assert metrics["policy/approx_kl"] > 1e-4, "later minibatches do move away"


def test_engine_logprobs_as_denominator_show_the_gap() -> None:
    metrics = ppo_learner({"old_logprobs": "rollout"}).update(0, hand_made(16, seed=2))
    assert metrics["policy/ratio_max_error"] > 0.1


def test_logprobs_are_those_of_the_model_at_the_sampling_temperature() -> None:
    learner = ppo_learner(sampling={"max_new_tokens": 8, "temperature": 0.5})
    trajectories = [item.trajectory for item in hand_made(9, seed=5)]
    found = learner.logprobs_of(trajectories)
    model = policy_model().double()
    for trajectory, row in zip(trajectories, found, strict=True):
        full = torch.from_numpy(np.concatenate([trajectory.prompt_ids, trajectory.response_ids]).astype(np.int64))
        with torch.no_grad():
            logprobs = (model(full[None]).logits[0, :-1] / 0.5).log_softmax(-1).gather(-1, full[1:, None]).squeeze(-1)
        assert row.shape == trajectory.response_ids.shape
        assert np.allclose(row, logprobs[len(trajectory.prompt_ids) - 1 :].numpy(), atol=1e-5)


def test_mismatch_of_exact_logprobs_is_rounding() -> None:
    learner = ppo_learner()
    samples = sample(learner, score=rewarded_share, reference=policy_model())
    metrics = learner.update(0, samples)
    assert metrics["mismatch/max"] < 1e-5
    assert metrics["mismatch/outside"] == 0.0
    assert abs(metrics["kl/reference"]) < 1e-4


# -- it learns ------------------------------------------------------------------------------------------------------


@KINDS
def test_rewarded_tokens_become_likely(kind: str) -> None:
    learner = ppo_learner(
        {"advantage": kind, "optim": {"lr": 1.0e-2}, "critic_optim": {"lr": 1.0e-2}, "kl": {"coef": 0.02}}
    )
    reference = policy_model()
    history = []
    for step in range(12):
        metrics = learner.update(step, sample(learner, score=rewarded_share, reference=reference, count=48))
        check_names(metrics)
        history.append(metrics)
    assert history[0]["reward/score"] < 0.35
    assert history[-1]["reward/score"] > 0.65
    assert history[-1]["kl/reference"] > history[0]["kl/reference"] + 1.0


@pytest.fixture(scope="module")
def drifted() -> Any:
    """A policy that has been rewarded away from where it started, about 13 nats a response."""
    learner = ppo_learner({"advantage": "reinforce", "optim": {"lr": 1.0e-2}, "kl": {"coef": 0.0}})
    for step in range(8):
        learner.update(step, sample(learner, score=rewarded_share, reference=policy_model(), count=48))
    return learner._policy.model


def distances(policy: Any, kl: dict[str, Any]) -> list[float]:
    """KL to the start over eight updates in which every response scores 0."""
    plain = {"advantage": "reinforce", "normalize_reward": False, "whiten_advantages": False, "epochs": 1}
    learner = ppo_learner({**plain, "kl": kl, "optim": {"lr": 1.0e-2}}, policy=copy.deepcopy(policy))
    reference = policy_model()
    return [
        learner.update(step, sample(learner, score=lambda _: 0.0, reference=reference, count=96))["kl/reference"]
        for step in range(8)
    ]


@pytest.mark.parametrize(("placement", "estimator"), [("reward", "k1"), ("loss", "k2"), ("loss", "k3")])
def test_kl_term_pulls_back_to_the_reference(drifted: Any, placement: str, estimator: str) -> None:
    found = distances(drifted, {"placement": placement, "estimator": estimator, "coef": 0.5})
    assert found[0] > 10
    assert found[-1] < 0.5 * found[0]


def test_without_a_kl_term_nothing_pulls(drifted: Any) -> None:
    found = distances(drifted, {"coef": 0.0})
    assert found[-1] > 0.9 * found[0]


def test_entropy_bonus_raises_entropy() -> None:
    def entropy_after(coef: float) -> float:
        learner = ppo_learner({"advantage": "reinforce", "entropy_coef": coef, "kl": {"coef": 0.0}})
        for step in range(5):
            metrics = learner.update(step, hand_made(16, seed=1, version=step))
        return metrics["policy/entropy"]

    assert entropy_after(1.0) > entropy_after(0.0) + 0.01


def test_critic_learns_the_return() -> None:
    learner = ppo_learner({"critic_optim": {"lr": 3.0e-3}, "kl": {"coef": 0.0}, "value_clip": None, "updates": 30})
    samples = hand_made(16, seed=1)
    variances = [learner.update(step, samples)["critic/explained_variance"] for step in range(15)]
    assert variances[0] < 0.3
    assert variances[-1] > 0.8


def test_the_critic_stays_bounded_where_every_response_is_cut() -> None:
    """Score 1 for each, never given: nothing is earned, v = gamma * v. With it v = 1 + gamma * v, which is 10."""
    options = {"truncation": "bootstrap", "normalize_reward": False, "kl": {"coef": 0.0}, "value_clip": None}
    options |= {"epochs": 1, "minibatches": 1, "updates": 40, "critic_optim": {"lr": 3.0e-3}, "gamma": 0.9}
    learner = ppo_learner(options)
    samples = [replace(item, score=1.0) for item in hand_made(16, seed=1, truncated=range(16))]
    values = [learner.update(step, samples)["critic/value_mean"] for step in range(40)]
    assert max(map(abs, values)) < 1.0
    assert max(map(abs, values[-5:])) < 0.2


def test_scores_that_are_not_trained_on_do_not_reach_the_running_moments() -> None:
    samples = hand_made(16, seed=1, truncated=[0, 5])
    for truncation, left_out in (("score", []), ("mask", [0, 5]), ("bootstrap", [0, 5])):
        learner = ppo_learner({"truncation": truncation})
        learner.update(0, samples)
        scores = np.array([item.score for i, item in enumerate(samples) if i not in left_out])
        assert learner._moments.count == len(scores)
        assert learner._moments.mean == pytest.approx(scores.mean(), rel=1e-5)


def test_nothing_is_clipped_before_anything_has_moved() -> None:
    metrics = ppo_learner({"epochs": 1, "minibatches": 1, "micro_batch_tokens": 48}).update(0, hand_made(16, seed=1))
    assert metrics["critic/clip_fraction"] == 0.0
    assert metrics["policy/clip_fraction"] == 0.0
    assert metrics["policy/approx_kl"] == pytest.approx(0.0, abs=1e-9)


# -- named cases ----------------------------------------------------------------------------------------------------


@KINDS
def test_masked_truncated_rows_leave_no_trace(kind: str) -> None:
    """The same parameters as an update on the other rows alone, several minibatches and normalisation included."""
    truncated = [1, 6, 11]
    samples = hand_made(16, seed=3, truncated=truncated, per_prompt=4)
    others = [item for i, item in enumerate(samples) if i not in truncated]
    options: dict[str, Any] = {"advantage": kind, "truncation": "mask"}
    masked, without = updated(samples, **options), updated(others, **options)
    assert largest_difference(state_of(masked), state_of(without)) < 1e-6
    assert masked._moments == without._moments
    assert masked.tokens == without.tokens
    scored = updated(samples, advantage=kind, truncation="score")
    assert largest_difference(state_of(masked), state_of(scored)) > 1e-5


def test_a_batch_with_nothing_to_train_changes_nothing() -> None:
    learner = ppo_learner({"truncation": "mask"})
    before = state_of(learner)
    metrics = learner.update(0, hand_made(16, seed=3, truncated=range(16)))
    check_names(metrics)
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["rollout/truncated"] == 1.0
    assert largest_difference(before, state_of(learner)) == 0.0
    assert learner.version == 1


def test_critic_warmup_leaves_the_policy_untouched() -> None:
    learner = ppo_learner({"critic_warmup_updates": 2})
    before = state_of(learner)
    for step in range(2):
        metrics = learner.update(step, hand_made(16, seed=step, version=step))
        check_names(metrics)
        assert "policy/loss" not in metrics
    after = state_of(learner)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"critic"}
    learner.update(2, hand_made(16, seed=2, version=2))
    assert any(not torch.equal(after[n], p) for n, p in state_of(learner).items() if n.startswith("policy"))


def test_a_critic_free_learner_has_nothing_to_warm_up() -> None:
    metrics = ppo_learner({"advantage": "rloo", "critic_warmup_updates": 2}).update(0, hand_made(16, seed=1))
    assert metrics["policy/loss"] != 0.0


def test_mixed_precision_keeps_fp32_masters() -> None:
    exact, mixed = ppo_learner(), ppo_learner(learner={"dtype": "bfloat16"})
    trajectories = [item.trajectory for item in hand_made(16, seed=1)]
    gaps = [
        np.abs(a - b).max()
        for a, b in zip(exact.logprobs_of(trajectories), mixed.logprobs_of(trajectories), strict=True)
    ]
    assert 1e-4 < max(gaps) < 0.2
    before = state_of(mixed)
    assert mixed.update(0, hand_made(16, seed=1))["optim/skipped"] == 0.0
    after = state_of(mixed)
    assert {value.dtype for value in after.values()} == {torch.float32}
    assert 0 < largest_difference(before, after) < 0.1


def test_policy_schedule_ends_with_the_updates_whatever_the_warmup() -> None:
    optim = {"lr": 1.0, "schedule": "linear"}
    learner = ppo_learner({"critic_warmup_updates": 1, "updates": 3, "optim": optim, "epochs": 1, "minibatches": 2})
    learner.update(0, hand_made(16, seed=0))
    rates = [learner.update(step, hand_made(16, seed=step, version=step))["optim/lr"] for step in (1, 2)]
    assert rates == pytest.approx([0.75, 0.25])  # 4 policy steps: 1, 3/4, 1/2, 1/4


def test_passes_stop_once_the_policy_has_moved_too_far() -> None:
    free = ppo_learner({"epochs": 4, "optim": {"lr": 1.0e-2}})
    held = ppo_learner({"epochs": 4, "optim": {"lr": 1.0e-2}, "target_kl": 0.01})
    samples = hand_made(16, seed=1)
    assert free.update(0, samples)["policy/epochs"] == 4.0
    metrics = held.update(0, samples)
    assert metrics["policy/epochs"] == 1.0
    assert held._policy.steps < free._policy.steps == 8


def test_adaptive_coefficient_follows_the_kl() -> None:
    kl = {"controller": "adaptive", "target": 6.0, "horizon": 100, "coef": 0.1}
    learner = ppo_learner({"kl": kl})
    metrics = learner.update(0, hand_made(16, seed=1))
    assert metrics["kl/coef"] == 0.1
    error = min(max(metrics["kl/reference"] / 6.0 - 1.0, -0.2), 0.2)
    metrics = learner.update(1, hand_made(16, seed=2, version=1))
    assert metrics["kl/coef"] == pytest.approx(0.1 * (1.0 + error * 16 / 100))
    assert metrics["kl/coef"] != 0.1


def test_running_moments_see_each_batch_before_it_is_normalised() -> None:
    learner = ppo_learner()
    first, second = hand_made(16, seed=1), hand_made(16, seed=2, version=1)
    learner.update(0, first)
    learner.update(1, second)
    scores = np.array([item.score for item in first + second])
    assert learner._moments.count == 32
    assert learner._moments.mean == pytest.approx(scores.mean(), rel=1e-5)
    assert learner._moments.std == pytest.approx(scores.std(), rel=1e-5)


def test_wide_bands_train_as_none_and_narrow_ones_say_what_they_mask() -> None:
    samples = hand_made(16, seed=1)
    plain = ppo_learner({"max_staleness": 1})
    before = plain.update(0, samples)
    wide = ppo_learner({"max_staleness": 1, "importance_band": [1e-6, 1e6], "sequence_band": [1e-6, 1e6]})
    metrics = wide.update(0, samples)
    check_names(metrics)
    masked = {"mismatch/masked_tokens": 0.0, "mismatch/masked_responses": 0.0}
    assert metrics == before | masked
    assert largest_difference(state_of(plain), state_of(wide)) == 0.0
    narrow = ppo_learner({"max_staleness": 1, "importance_band": [0.7, 1.4], "sequence_band": [0.9, 1.1]})
    metrics = narrow.update(0, samples)
    assert all(0.0 < metrics[name] < 1.0 for name in masked)
    assert metrics["mismatch/importance_weight"] < before["mismatch/importance_weight"]


def test_asynchronous_updates_are_corrected_and_say_so() -> None:
    learner = ppo_learner({"max_staleness": 1})
    metrics = learner.update(0, hand_made(16, seed=1))
    assert metrics["mismatch/importance_weight"] != 1.0
    plain = ppo_learner()
    assert plain.update(0, hand_made(16, seed=1))["mismatch/importance_weight"] == 1.0
    assert largest_difference(state_of(learner), state_of(plain)) > 1e-5


# -- refusals -------------------------------------------------------------------------------------------------------


def test_each_step_is_trained_once_and_in_order() -> None:
    learner = ppo_learner()
    samples = hand_made(16, seed=1)
    learner.update(0, samples)
    for step in (0, 2):
        with pytest.raises(LedgerError, match=f"Update {step} cannot follow version 1"):
            learner.update(step, samples)
    assert learner.version == 1


def test_nonfinite_gradients_are_skipped_then_fatal() -> None:
    learner = ppo_learner({"epochs": 1, "minibatches": 2}, learner={"max_nonfinite_steps": 3})
    before = state_of(learner)
    handle = learner._policy.model.lm_head.weight.register_hook(lambda gradient: gradient * math.nan)
    metrics = learner.update(0, hand_made(16, seed=1))
    assert metrics["optim/skipped"] == 2.0
    assert all(math.isfinite(value) for value in metrics.values())
    after = state_of(learner)
    assert {n.split(".")[0] for n in before if not torch.equal(before[n], after[n])} == {"critic"}
    with pytest.raises(NonFiniteError, match="3 optimizer steps in a row"):
        learner.update(1, hand_made(16, seed=2, version=1))
    handle.remove()


# -- state ----------------------------------------------------------------------------------------------------------


@KINDS
def test_resumed_run_equals_straight_run(kind: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "advantage": kind,
        "updates": 6,
        "optim": {"lr": 1.0e-3, "schedule": "cosine", "warmup_steps": 3},
        "kl": {"controller": "adaptive", "horizon": 100},
    }
    straight, broken, resumed = (ppo_learner(options) for _ in range(3))
    batches = [hand_made(16, seed=step, version=step) for step in range(6)]
    expected = [straight.update(step, batches[step]) for step in range(6)]
    for step in range(3):
        broken.update(step, batches[step])
    broken.save(str(tmp_path))
    resumed.load(str(tmp_path))
    assert resumed.version == 3
    found = [resumed.update(step, batches[step]) for step in range(3, 6)]
    assert found == expected[3:]
    assert resumed.tokens == straight.tokens
    assert largest_difference(state_of(straight), state_of(resumed)) == 0.0


@pytest.mark.parametrize(
    ("saved", "loaded", "coefs"),
    [
        ({"coef": 0.05}, {"coef": 5.0}, (0.05, 5.0, 10.0)),
        ({"coef": 0.05, "controller": "adaptive"}, {"coef": 0.5, "controller": "adaptive"}, (0.049, 0.49, 0.98)),
        ({"coef": 0.05, "controller": "adaptive"}, {"coef": 0.5}, (0.049, 0.5, 1.0)),
    ],
)
def test_a_resumed_learner_pulls_as_it_is_configured(
    saved: dict[str, Any], loaded: dict[str, Any], coefs: tuple[float, float, float], tmp_path: Path
) -> None:
    """What the controller and the guard did are factors of the configured coefficient, which the checkpoint has not."""
    adapting = {"target": 1.0e3, "horizon": 160}  # far below the target: 1 - 0.2 * 16 / 160 = 0.98 an update
    first = ppo_learner({"kl": adapting | saved})
    first.update(0, hand_made(16, seed=0))
    first.save(str(tmp_path))
    resumed = ppo_learner({"kl": adapting | loaded})
    resumed.load(str(tmp_path))
    before, expected, raised = coefs
    assert first._kl.value == pytest.approx(before)
    assert resumed.update(1, hand_made(16, seed=1, version=1))["kl/coef"] == pytest.approx(expected)
    guarded = ppo_learner({"kl": adapting | loaded})
    guarded.load(str(tmp_path))
    guarded.scale_kl(2.0)
    guarded.save(str(tmp_path / "guarded"))
    again = ppo_learner({"kl": adapting | loaded})
    again.load(str(tmp_path / "guarded"))
    assert again._kl.value == pytest.approx(raised)


@pytest.mark.parametrize("changed", [{"clip_low": 0.01, "clip_high": 0.01}, {"optim": {"lr": 7.0e-3}}, {"lam": 0.1}])
def test_a_resumed_learner_updates_as_it_is_configured(changed: dict[str, Any], tmp_path: Path) -> None:
    """Loaded under other settings it does what a learner that had them all along would do from the same state."""
    first = ppo_learner()
    first.update(0, hand_made(16, seed=0))
    first.save(str(tmp_path))
    same, other = ppo_learner(), ppo_learner(changed)
    for learner in (same, other):
        learner.load(str(tmp_path))
    batch = hand_made(16, seed=1, version=1)
    same.update(1, batch)
    metrics = other.update(1, batch)
    assert largest_difference(state_of(same), state_of(other)) > 0
    if "optim" in changed:
        assert metrics["optim/lr"] == 7.0e-3


def test_checkpoint_of_other_models_is_refused(tmp_path: Path) -> None:
    ppo_learner().save(str(tmp_path))
    with pytest.raises(CheckpointError, match="other models"):
        ppo_learner({"advantage": "rloo"}).load(str(tmp_path))
    with pytest.raises(CheckpointError, match="other models"):
        ppo_learner(policy=policy_model(num_hidden_layers=1)).load(str(tmp_path))


# -- what leaves ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_published_version_is_the_policy(tied: bool) -> None:
    learner = ppo_learner(
        policy=policy_model(tie_word_embeddings=tied), learner={"bucket_mib": 0.05}, rollout={"dtype": "float32"}
    )
    learner.update(0, hand_made(16, seed=1))
    published = learner.publish()
    assert published is not None
    manifest, buckets = published
    assert manifest.version == learner.version == 1
    assert len(buckets) == learner.bucket_count > 1
    found = dict(unpack(manifest, buckets))
    expected = dict(learner._policy.model.named_parameters())
    assert ("lm_head.weight" in found) is not tied
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_published_version_has_the_engine_precision() -> None:
    learner = ppo_learner(rollout={"dtype": "bfloat16"})
    published = learner.publish()
    assert published is not None
    for name, value in unpack(*published):
        assert torch.equal(value, learner._policy.model.get_parameter(name).bfloat16())


def test_export_loads_in_stock_transformers(tmp_path: Path) -> None:
    learner = ppo_learner()
    learner.update(0, hand_made(16, seed=1))
    learner.export(str(tmp_path / "policy"), str(tmp_path / "critic"))
    batch = torch.arange(2, 12).unsqueeze(0)
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "policy").eval()
    critic = AutoModelForTokenClassification.from_pretrained(tmp_path / "critic").eval()
    with torch.no_grad():
        assert learner._critic is not None
        for loaded, trained in ((policy, learner._policy), (critic, learner._critic)):
            assert torch.allclose(loaded(batch).logits, trained.model(batch).logits, atol=1e-6)


def test_critic_free_learner_exports_a_policy_alone(tmp_path: Path) -> None:
    learner = ppo_learner({"advantage": "rloo"})
    learner.export(str(tmp_path / "policy"), str(tmp_path / "critic"))
    assert (tmp_path / "policy" / "config.json").exists()
    assert not (tmp_path / "critic").exists()


def test_factory_starts_the_critic_from_the_reward_model(tmp_path: Path) -> None:
    export_model(policy_model(), tokenizer(), tmp_path / "sft")
    reward = make_reward_model(str(tmp_path / "sft"), tokenizer(), seed=5)
    export_model(reward, tokenizer(), tmp_path / "reward_model")
    dirs = {"policy_dir": str(tmp_path / "sft"), "reward_model_dir": str(tmp_path / "reward_model")}
    learner = build_ppo(run_config(), ranks=ALONE, **dirs)
    assert learner._critic is not None
    assert torch.equal(learner._critic.model.score.weight, reward.score.weight)
    assert largest_difference(parameters(learner._policy.model), parameters(policy_model())) == 0.0
    learner.update(0, hand_made(16, seed=1))
    assert build_ppo(run_config({"advantage": "rloo"}), ranks=ALONE, **dirs)._critic is None


def test_the_critic_starts_from_the_first_member_that_reads_the_policys_tokens_forward(tmp_path: Path) -> None:
    """Not from an encoder over the same vocabulary: its value of a token would know the tokens that come after it."""
    export_model(policy_model(), tokenizer(), tmp_path / "sft")
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    export_model(BertModel(BertConfig(vocab_size=len(tokenizer()), **shape)), tokenizer(), tmp_path / "bert")
    encoder = make_reward_model(str(tmp_path / "bert"), tokenizer(), seed=4)
    export_model(encoder, tokenizer(), tmp_path / "reward_model")
    dirs = {"policy_dir": str(tmp_path / "sft"), "reward_model_dir": str(tmp_path / "reward_model")}
    alone = build_ppo(run_config(), ranks=ALONE, **dirs)._critic
    assert alone is not None
    assert not alone.model.score.weight.any()
    reward = make_reward_model(str(tmp_path / "sft"), tokenizer(), seed=5)
    export_model(reward, tokenizer(), tmp_path / "reward_model" / "members" / "01")
    beside = build_ppo(run_config(), ranks=ALONE, **dirs)._critic
    assert beside is not None
    assert torch.equal(beside.model.score.weight, reward.score.weight)


def test_a_reward_model_without_an_embedding_for_every_id_of_the_policy_does_not_start_the_critic(
    tmp_path: Path,
) -> None:
    export_model(policy_model(), tokenizer(), tmp_path / "small")
    reward = make_reward_model(str(tmp_path / "small"), tokenizer(), seed=5)
    export_model(reward, tokenizer(), tmp_path / "reward_model")
    padded = policy_model()
    padded.resize_token_embeddings(len(tokenizer()) + 60)
    export_model(padded, tokenizer(), tmp_path / "sft")
    dirs = {"policy_dir": str(tmp_path / "sft"), "reward_model_dir": str(tmp_path / "reward_model")}
    critic = build_ppo(run_config(), ranks=ALONE, **dirs)._critic
    assert critic is not None
    assert critic.model.get_input_embeddings().weight.shape[0] == len(tokenizer()) + 60
    assert not critic.model.score.weight.any()
