"""Every metric this project logs: its name, its reducer over processes and micro-batches, its unit and meaning.

A name that is not here is refused by the sinks, so this table is the whole vocabulary. `sum` and `max` say how values
from several processes combine; `mean` values are averages over the global batch already, `last` values are facts.
"""

from dataclasses import dataclass
from typing import Literal

Reducer = Literal["mean", "sum", "max", "min", "last"]


@dataclass(frozen=True)
class Metric:
    """One declared metric."""

    reducer: Reducer
    unit: str
    meaning: str


METRICS: dict[str, Metric] = {
    # what is being optimised
    "reward/score": Metric("mean", "score", "Raw reward-model score of the responses trained on."),
    "reward/score_std": Metric("mean", "score", "Standard deviation of the raw score over the batch."),
    "reward/spread": Metric("mean", "score", "Standard deviation over the members of a reward-model ensemble."),
    "reward/gold": Metric("mean", "gold", "Known true reward of the same responses; for reporting alone."),
    "reward/total": Metric("mean", "reward", "Shaped reward of a response: normalised score, penalties and KL."),
    "reward/loss": Metric("mean", "nats", "Loss of the reward model on its preferences."),
    "reward/accuracy": Metric("mean", "share", "Training pairs the reward model orders as labelled."),
    "reward/margin": Metric("mean", "score", "Score of the chosen minus score of the rejected response."),
    # the policy
    "policy/nll": Metric("mean", "nats/token", "Supervised next-token loss."),
    "policy/loss": Metric("mean", "", "Clipped policy objective."),
    "policy/entropy": Metric("mean", "nats/token", "Entropy of the policy at the sampled positions."),
    "policy/approx_kl": Metric(
        "mean", "nats/token", "k3 estimate of KL(old policy || new policy) over the update's passes."
    ),
    "policy/clip_fraction": Metric("mean", "share", "Tokens whose probability ratio was clipped."),
    "policy/ratio_max_error": Metric(
        "max", "", "Largest |ratio - 1| in the first minibatch of an update; zero but for rounding."
    ),
    "policy/advantage_mean": Metric("mean", "", "Mean advantage before whitening."),
    "policy/advantage_std": Metric("mean", "", "Standard deviation of the advantages before whitening."),
    "policy/epochs": Metric("last", "passes", "Passes over the batch before the KL limit stopped them."),
    # the critic
    "critic/loss": Metric("mean", "", "Clipped squared error of the values."),
    "critic/explained_variance": Metric("mean", "share", "1 - Var(return - value) / Var(return)."),
    "critic/clip_fraction": Metric("mean", "share", "Tokens whose value was clipped."),
    "critic/value_mean": Metric("mean", "reward", "Mean value before the update."),
    # distance to the reference, and nothing else
    "kl/reference": Metric("mean", "nats/response", "Summed k1 estimate of KL(policy || reference) per response."),
    "kl/reference_token": Metric("mean", "nats/token", "The same per token."),
    "kl/coef": Metric("last", "", "Coefficient of the KL term."),
    # engine against learner
    "mismatch/p50": Metric(
        "mean",
        "nats",
        "Median |engine - learner| log-prob of the sampled tokens; the same weights when staleness is 0.",
    ),
    "mismatch/p95": Metric("mean", "nats", "95th percentile of the same."),
    "mismatch/p99": Metric("mean", "nats", "99th percentile of the same."),
    "mismatch/max": Metric("max", "nats", "Largest of the same."),
    "mismatch/outside": Metric("mean", "share", "Tokens whose probability ratio lies outside [0.9, 1.1]."),
    "mismatch/importance_weight": Metric(
        "mean", "", "Mean truncated importance weight; 1 when no correction is applied."
    ),
    # the parity gate: held-out responses under the learner's own version, whatever the staleness of training
    "parity/p50": Metric(
        "last",
        "nats",
        "Median |engine - learner| log-prob of held-out responses drawn under the version the learner has: rounding.",
    ),
    "parity/p95": Metric("last", "nats", "95th percentile of the same."),
    "parity/p99": Metric("last", "nats", "99th percentile of the same."),
    "parity/max": Metric("last", "nats", "Largest of the same."),
    "parity/outside": Metric("last", "share", "Tokens of the same whose probability ratio lies outside [0.9, 1.1]."),
    # responses
    "rollout/length": Metric("mean", "tokens", "Mean response length."),
    "rollout/length_max": Metric("max", "tokens", "Longest response."),
    "rollout/truncated": Metric("mean", "share", "Responses cut at max_new_tokens."),
    "rollout/repeated": Metric(
        "mean", "share", "Responses whose text occurred earlier in the same batch for another prompt."
    ),
    "rollout/staleness": Metric("max", "versions", "Largest learner version minus trajectory version in the batch."),
    "rollout/version": Metric("last", "version", "Newest policy version in the batch."),
    # optimizer
    "optim/lr": Metric("last", "", "Learning rate of the policy (or of the only model)."),
    "optim/critic_lr": Metric("last", "", "Learning rate of the critic."),
    "optim/grad_norm": Metric("mean", "", "Gradient norm before clipping."),
    "optim/critic_grad_norm": Metric("mean", "", "The critic's gradient norm before clipping."),
    "optim/skipped": Metric("sum", "steps", "Optimizer steps skipped for a non-finite gradient."),
    "optim/epoch": Metric("last", "epochs", "Passes over the data so far."),
    # weights from learner to engines
    "sync/seconds": Metric("last", "s", "Publish to last acknowledgement."),
    "sync/bytes": Metric("last", "bytes", "Bytes of the published version."),
    "sync/version": Metric("last", "version", "Version every engine has acknowledged."),
    # each sample once
    "ledger/issued": Metric("last", "samples", "Samples leased since the start of the run."),
    "ledger/scored": Metric("last", "samples", "Samples scored."),
    "ledger/trained": Metric("last", "samples", "Samples trained."),
    "ledger/in_flight": Metric("last", "samples", "Samples leased and not yet trained."),
    "ledger/lost": Metric("last", "samples", "Samples issued and never trained nor in flight; zero."),
    "ledger/duplicated": Metric("last", "samples", "Second copies the buffer refused."),
    "ledger/dropped": Metric("last", "samples", "Samples given up for a named reason."),
    "ledger/reissued": Metric("last", "samples", "Leases that went back to the queue after a worker died."),
    # time and speed
    "time/step": Metric("last", "s", "Wall-clock of the step."),
    "time/rollout": Metric("last", "s", "Generation."),
    "time/scoring": Metric("last", "s", "Reward model and reference."),
    "time/learner": Metric("last", "s", "Old log-probs, values and optimizer updates."),
    "time/sync": Metric("last", "s", "Weight publication and application."),
    "time/checkpoint": Metric("last", "s", "Writing a checkpoint."),
    "time/learner_waiting": Metric("last", "share", "Share of the step in which the learner had nothing to do."),
    "perf/tokens_per_second": Metric("last", "tokens/s", "Tokens trained per second of wall-clock."),
    "perf/rollout_tokens_per_second": Metric("last", "tokens/s", "Response tokens generated per second of generation."),
    "perf/memory_bytes": Metric(
        "last", "bytes", "Memory of all local processes of the run, shared pages counted once."
    ),
    "perf/restarts_rollout": Metric("last", "workers", "Rollout workers replaced."),
    "perf/restarts_scoring": Metric("last", "workers", "Scoring workers replaced."),
    # held-out
    "eval/nll": Metric("mean", "nats/token", "Held-out supervised loss."),
    "eval/loss": Metric("mean", "nats", "Held-out loss of the reward model."),
    "eval/accuracy": Metric("mean", "share", "Held-out pairs ordered as labelled."),
    "eval/score": Metric("mean", "score", "Reward-model score on held-out prompts."),
    "eval/spread": Metric("mean", "score", "Spread of the reward-model ensemble on held-out prompts."),
    "eval/judge": Metric("mean", "score", "The guard's reward model, which is never rewarded, on held-out prompts."),
    "guard/distance": Metric("last", "sqrt(nats)", "sqrt(KL) of the held-out responses from the reference."),
    "guard/judge": Metric("mean", "judge", "What the guard watches: gold, or its own reward model."),
    "guard/below_peak": Metric("last", "standard errors", "How far the judge lies below its best evaluation."),
    "guard/alpha": Metric("last", "", "alpha of the judge's gain R(d) = d (alpha - beta log d), fitted so far."),
    "guard/beta": Metric("last", "", "beta of the same."),
    "guard/trips": Metric("last", "times", "Times the guard has acted."),
    "eval/gold": Metric("mean", "gold", "Gold reward on held-out prompts."),
    "eval/kl": Metric("mean", "nats/response", "KL to the reference on held-out prompts."),
    "eval/length": Metric("mean", "tokens", "Response length on held-out prompts."),
    "eval/truncated": Metric("mean", "share", "Responses cut at max_new_tokens on held-out prompts."),
    "eval/distinct_2": Metric("mean", "share", "Distinct word pairs over all word pairs of the held-out responses."),
    "eval/repeated": Metric("mean", "share", "Held-out responses whose text occurred for another prompt."),
}


def check_names(values: dict[str, float]) -> None:
    """Raise KeyError for a metric nobody declared."""
    unknown = sorted(set(values) - METRICS.keys())
    if unknown:
        raise KeyError(f"metrics {', '.join(unknown)} are not declared in telemetry/metrics.py")
