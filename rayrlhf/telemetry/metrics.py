"""Every metric this project logs: its name, its reducer over processes and micro-batches, its unit and meaning.

A name that is not here is refused by the sinks, so this table is the whole vocabulary. `sum` and `max` say how values
from several processes combine; `mean` values are averages over the global batch already, `last` values are facts.

Of whom a figure speaks: a mean over the responses of a batch estimates the expectation under the policy versions that
drew them, which with `ppo.max_staleness` > 0 are older than the learner's. Figures that speak of the learner's own policy
say so, and how they come to it from samples of older ones; they are absent from a step that cannot tell.
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


WATCHED = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "chrf++": "chrF++",
    "ter": "1 - TER",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
}
"""What ppo.watch may name, as people call it."""


def watch_metric(name: str) -> str:
    """The metric of a watched measure."""
    return f"eval/watch_{name.replace('+', 'p')}"


METRICS: dict[str, Metric] = {
    # what is being optimised
    "reward/score": Metric("mean", "score", "Raw score of the batch's responses: of the versions that drew them."),
    "reward/score_std": Metric("mean", "score", "Standard deviation of the raw score over the batch."),
    "reward/groups_equal": Metric(
        "mean",
        "share",
        "Prompts whose trained responses all have the same raw score, of those with several: a group baseline learns "
        "nothing from them.",
    ),
    "reward/group_std": Metric(
        "mean",
        "score",
        "Sample standard deviation of the raw score among the responses to one prompt, mean over the prompts with "
        "several trained ones.",
    ),
    "reward/pass_rate": Metric(
        "mean",
        "share",
        "Chance that a response of the versions that drew the batch passes: share of scores 1. It and the figures below "
        "are there only where every score is 0 or 1.",
    ),
    "reward/pass_rate_low": Metric("mean", "share", "Lower end of its 95 % interval (Wilson, prompts as clusters)."),
    "reward/pass_rate_high": Metric("mean", "share", "Upper end of the same."),
    "reward/pass_n": Metric("sum", "responses", "Responses it is the share of."),
    "reward/pass_at_k": Metric(
        "mean",
        "share",
        "Chance that at least one of k = ppo.samples_per_prompt responses to a prompt passes, of the versions that drew "
        "the batch (Chen et al. 2021, equation 1).",
    ),
    "reward/pass_at_k_low": Metric("mean", "share", "Lower end of its 95 % interval (Wilson, over prompts)."),
    "reward/pass_at_k_high": Metric("mean", "share", "Upper end of the same."),
    "reward/pass_at_k_n": Metric("sum", "prompts", "Prompts with k scored responses, which it is the mean over."),
    "reward/spread": Metric("mean", "score", "Standard deviation over the members of a reward-model ensemble."),
    "reward/position_bias": Metric(
        "mean",
        "probability",
        "With a judge: probability that the response shown first is better, less a half, mean over the comparisons of the "
        "batch's responses, both orders of each.",
    ),
    "reward/position_flips": Metric("mean", "share", "Comparisons of the same whose winner changes with the order."),
    "reward/comparisons_unread": Metric("mean", "share", "Comparisons of the same without a result in both orders."),
    "reward/gold": Metric("mean", "gold", "Known true reward of the same responses; for reporting alone."),
    "reward/total": Metric(
        "mean",
        "reward",
        "Reward a response is trained on: normalised score, penalties and, where it is in the reward, the KL.",
    ),
    "reward/loss": Metric("mean", "nats", "Loss of the reward model on its preferences."),
    "reward/accuracy": Metric("mean", "share", "Training pairs the reward model orders as labelled."),
    "reward/margin": Metric("mean", "score", "Score of the chosen minus score of the rejected response."),
    # the policy
    "policy/nll": Metric("mean", "nats/token", "Supervised next-token loss."),
    "policy/loss": Metric("mean", "", "Clipped policy objective over the batch's tokens, weighted as it is trained."),
    "policy/certainty": Metric(
        "mean",
        "share",
        "What ppo.uncertainty_weight leaves of the advantages: 1 / (1 + weight x spread^2), over the responses trained.",
    ),
    "policy/entropy": Metric(
        "mean",
        "nats/token",
        "Entropy of the learner's policy before the update, exact at each position; mean over the positions that the "
        "versions that drew the batch came to.",
    ),
    "policy/approx_kl": Metric(
        "mean",
        "nats/token",
        "KL(old || new) of the policy before the update and over its passes: k3 estimate over old's tokens, those of older "
        "versions weighted by old / drawn, at the positions of the batch. Old is the denominator of the ratio.",
    ),
    "policy/clip_fraction": Metric("mean", "share", "Tokens of the batch whose probability ratio was clipped."),
    "policy/ratio_max_error": Metric(
        "max",
        "",
        "Largest |ratio - 1| in the first minibatch of an update; zero but for rounding where old_logprobs=recompute.",
    ),
    "policy/advantage_mean": Metric("mean", "", "Mean advantage over the batch's trained tokens, before whitening."),
    "policy/advantage_std": Metric("mean", "", "Standard deviation of the advantages before whitening."),
    "policy/epochs": Metric("last", "passes", "Passes over the batch before the KL limit stopped them."),
    # the critic
    "critic/loss": Metric("mean", "", "Clipped squared error of the values."),
    "critic/explained_variance": Metric(
        "mean",
        "share",
        "1 - Var(return - value) / Var(return) over the batch's tokens; the returns are of the versions that drew it.",
    ),
    "critic/clip_fraction": Metric("mean", "share", "Tokens whose value was clipped."),
    "critic/value_mean": Metric("mean", "reward", "Mean value over the batch's tokens before the update."),
    # distance to the reference, and nothing else
    "kl/reference": Metric(
        "mean",
        "nats/response",
        "KL(policy || reference) of whole responses, the policy being the learner's before the update: k1 estimate, tokens "
        "of older versions brought to it by per-decision importance weights; absent where these leave too few effective "
        "responses.",
    ),
    "kl/reference_token": Metric("mean", "nats/token", "The same over the mean response length; absent with it."),
    "kl/behaviour": Metric(
        "mean",
        "nats/response",
        "KL(behaviour policy || reference) of whole responses: k1 estimate for the versions that drew the batch, by the "
        "engine's log-probs. Equal to kl/reference, but for rounding, where staleness is 0.",
    ),
    "kl/coef": Metric("last", "", "Coefficient of the KL term."),
    # engine against learner
    "mismatch/p50": Metric(
        "mean",
        "nats",
        "Median |engine - learner| log-prob over the batch's tokens of the learner's own version, so of the same tokens "
        "and weights; it and the four below are absent where the batch holds none.",
    ),
    "mismatch/p95": Metric("mean", "nats", "95th percentile of the same."),
    "mismatch/p99": Metric("mean", "nats", "99th percentile of the same."),
    "mismatch/max": Metric("max", "nats", "Largest of the same."),
    "mismatch/outside": Metric("mean", "share", "Tokens whose probability ratio lies outside [0.9, 1.1]."),
    "mismatch/importance_weight": Metric(
        "mean",
        "",
        "min(old / drawn, cap), and 0 where a band masks it, mean over the batch's trained tokens: at most 1 in "
        "expectation, and below it by what is cut off and masked; 1 where no correction is applied.",
    ),
    "mismatch/masked_tokens": Metric(
        "mean",
        "share",
        "Trained tokens that ppo.importance_band keeps out of the policy's objective, whether their response is masked or "
        "not; there only where the key is set and something is trained.",
    ),
    "mismatch/masked_responses": Metric(
        "mean",
        "share",
        "Trained responses that ppo.sequence_band keeps out of the policy's objective; there only where the key is set and "
        "something is trained.",
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
    "rollout/staleness": Metric(
        "max",
        "versions",
        "Largest learner version minus trajectory version in the batch: its bound is of all responses, trained or not.",
    ),
    "rollout/version": Metric("last", "version", "Newest policy version in the batch."),
    "rollout/spans": Metric(
        "mean",
        "spans",
        "Stretches of a response that one version each drew, mean over the batch: 1 where none changed.",
    ),
    "rollout/spans_max": Metric("max", "spans", "Most of the same in one response."),
    # of the trained tokens: the learner's version, before the update, minus the one that drew the token
    "staleness/mean": Metric(
        "mean",
        "versions",
        "Mean over the batch's trained tokens; it and those below are absent where nothing is trained.",
    ),
    "staleness/max": Metric(
        "max",
        "versions",
        "Largest of the same: rollout/staleness, but where ppo.truncation=mask leaves out the oldest.",
    ),
    "staleness/share_0": Metric("mean", "share", "Trained tokens that the learner's own version drew."),
    "staleness/share_1": Metric("mean", "share", "Trained tokens that the version before it drew."),
    "staleness/share_2": Metric("mean", "share", "Trained tokens that are two versions old."),
    "staleness/share_3": Metric("mean", "share", "Trained tokens that are three versions old."),
    "staleness/share_4_or_more": Metric("mean", "share", "Trained tokens that are older; the five shares add up to 1."),
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
    "time/step": Metric("last", "s", "Wall-clock of the step; in PPO since the row before."),
    "time/rollout": Metric("last", "s", "Generation."),
    "time/scoring": Metric("last", "s", "Rewards and reference."),
    "time/learner": Metric("last", "s", "Old log-probs, values and optimizer updates."),
    "time/buffered": Metric("last", "s", "From a group's score to the update that takes it, mean over the batch."),
    "time/sync": Metric("last", "s", "Weight publication and application."),
    "time/checkpoint": Metric("last", "s", "Writing the checkpoint of the row before."),
    "time/learner_waiting": Metric("last", "share", "Share of the step in which the learner had nothing to do."),
    "perf/tokens_per_second": Metric("last", "tokens/s", "Tokens trained per second of wall-clock."),
    "perf/rollout_tokens_per_second": Metric("last", "tokens/s", "Response tokens generated per second of generation."),
    "perf/memory_bytes": Metric(
        "last", "bytes", "Memory of all local processes of the run, shared pages counted once."
    ),
    "perf/object_store_bytes": Metric("last", "bytes", "Objects in the stores of all nodes, whoever put them there."),
    "perf/spilled_bytes": Metric(
        "last", "bytes", "Objects written to disk since the stage began, because a store was full."
    ),
    "perf/workers_rollout": Metric("last", "workers", "Rollout workers that take work at the end of the step."),
    "perf/workers_scoring": Metric("last", "workers", "Scoring workers that take work at the end of the step."),
    "perf/restarts_rollout": Metric("last", "workers", "Rollout workers replaced."),
    "perf/restarts_scoring": Metric("last", "workers", "Scoring workers replaced."),
    "perf/restarts_learner": Metric("last", "learners", "Learners replaced: all ranks at once count as one."),
    # held-out
    "eval/nll": Metric("mean", "nats/token", "Held-out supervised loss."),
    "eval/loss": Metric("mean", "nats", "Held-out loss of the reward model."),
    "eval/accuracy": Metric("mean", "share", "Held-out pairs ordered as labelled."),
    "eval/score": Metric("mean", "score", "Raw score on held-out prompts, answered by the version of that step."),
    "eval/pass_rate": Metric(
        "mean",
        "share",
        "Chance that a response to a held-out prompt passes: share of scores 1; there only where every score is 0 or 1.",
    ),
    "eval/pass_rate_low": Metric("mean", "share", "Lower end of its 95 % interval (Wilson, prompts as clusters)."),
    "eval/pass_rate_high": Metric("mean", "share", "Upper end of the same."),
    "eval/pass_n": Metric("sum", "responses", "Responses it is the share of."),
    "eval/spread": Metric("mean", "score", "Spread of the reward-model ensemble on held-out prompts."),
    "eval/judge": Metric("mean", "score", "The guard's reward model, which is never rewarded, on held-out prompts."),
    "guard/distance": Metric("last", "sqrt(nats)", "sqrt(KL) of the held-out responses from the reference."),
    "guard/judge": Metric("mean", "judge", "What the guard watches: gold, or its own reward model."),
    "guard/below_peak": Metric("last", "standard errors", "How far the judge lies below its best evaluation."),
    "guard/alpha": Metric("last", "", "alpha of the judge's gain R(d) = d (alpha - beta log d), fitted so far."),
    "guard/beta": Metric("last", "", "beta of the same."),
    "guard/trips": Metric("last", "times", "Times the guard has acted."),
    "eval/gold": Metric("mean", "gold", "Gold reward on held-out prompts."),
    "eval/kl": Metric(
        "mean",
        "nats/response",
        "KL(policy || reference) of whole responses to held-out prompts: k1 estimate for the version of that step.",
    ),
    "eval/length": Metric("mean", "tokens", "Response length on held-out prompts."),
    "eval/truncated": Metric("mean", "share", "Responses cut at max_new_tokens on held-out prompts."),
    "eval/distinct_2": Metric("mean", "share", "Distinct word pairs over all word pairs of the held-out responses."),
    "eval/repeated": Metric("mean", "share", "Held-out responses whose text occurred for another prompt."),
    **{
        watch_metric(name): Metric(
            "mean", "", f"Sentence {told} of the held-out responses, which is watched (ppo.watch)."
        )
        for name, told in WATCHED.items()
    },
}


def check_names(values: dict[str, float]) -> None:
    """Raise KeyError for a metric nobody declared."""
    unknown = sorted(set(values) - METRICS.keys())
    if unknown:
        raise KeyError(f"metrics {', '.join(unknown)} are not declared in telemetry/metrics.py")
