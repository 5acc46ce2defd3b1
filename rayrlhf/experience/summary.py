"""What scored trajectories say when read: rows for people, figures for an evaluation."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from rayrlhf.algorithms.pass_rate import is_binary, pass_rate
from rayrlhf.types import ScoredTrajectory


def sample_rows(
    stage: str, step: int, scored: Sequence[ScoredTrajectory], watched: Sequence[dict[str, float]] = ()
) -> list[dict[str, Any]]:
    """One row of samples.jsonl for each trajectory, with what is `watched` of each where there is any."""
    rows = [
        {
            "stage": stage,
            "step": step,
            "sample_id": str(item.trajectory.sample_id),
            "prompt": item.prompt_text,
            "response": item.response_text,
            "reference": item.reference,
            "score": item.score,
            "terms": item.terms or None,
            "spread": item.spread,
            "gold": item.gold,
            "kl": response_kl(item),
            "finish": item.trajectory.finish,
            "policy_version": item.trajectory.min_version,
            "reward_version": item.reward_version,
        }
        for item in scored
    ]
    return [row | {"watched": own} for row, own in zip(rows, watched, strict=True)] if watched else rows


def response_kl(item: ScoredTrajectory) -> float:
    """Summed k1 estimate of KL(policy || reference) of one response, in nats (Schulman 2020)."""
    difference = item.trajectory.rollout_logprobs.astype(np.float64) - item.ref_logprobs.astype(np.float64)
    return float(difference.sum())


def evaluation_metrics(scored: Sequence[ScoredTrajectory]) -> dict[str, float]:
    """The eval/* metrics of held-out responses."""
    metrics = {
        "eval/score": float(np.mean([item.score for item in scored])),
        "eval/kl": float(np.mean([response_kl(item) for item in scored])),
        "eval/length": float(np.mean([len(item.trajectory.response_ids) for item in scored])),
        "eval/truncated": float(np.mean([item.trajectory.finish == "length" for item in scored])),
        "eval/distinct_2": distinct_n([item.response_text for item in scored], 2),
        "eval/repeated": repeated_share([(item.prompt_text, item.response_text) for item in scored]),
    }
    spreads = [item.spread for item in scored if item.spread is not None]
    if spreads:
        metrics["eval/spread"] = float(np.mean(spreads))
    judged = [item.judge for item in scored if item.judge is not None]
    if judged:
        metrics["eval/judge"] = float(np.mean(judged))
    golds = [item.gold for item in scored if item.gold is not None]
    if golds:
        metrics["eval/gold"] = float(np.mean(golds))
    return metrics | _pass_metrics(scored)


def _pass_metrics(scored: Sequence[ScoredTrajectory]) -> dict[str, float]:
    """The pass rate with its interval; nothing where a score is neither 0 nor 1."""
    if not is_binary([item.verdict for item in scored]):
        return {}
    by_prompt: dict[tuple[int, int], list[float]] = defaultdict(list)
    for item in scored:
        by_prompt[item.trajectory.sample_id.step, item.trajectory.sample_id.prompt_id].append(item.verdict)
    rate = pass_rate(list(by_prompt.values()))
    return {
        "eval/pass_rate": rate.value,
        "eval/pass_rate_low": rate.low,
        "eval/pass_rate_high": rate.high,
        "eval/pass_n": float(rate.count),
    }


def judged_values(scored: Sequence[ScoredTrajectory]) -> list[float]:
    """What the guard watches, in the order of the sample ids: its own reward model's scores, else gold; or nothing."""
    ordered = sorted(scored, key=lambda item: item.trajectory.sample_id)
    values = [item.gold if item.judge is None else item.judge for item in ordered]
    return [value for value in values if value is not None] if None not in values else []


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct word n-grams over all word n-grams (Li et al. 2016); 0 where there are none."""
    grams = [tuple(words[i : i + n]) for words in (text.split() for text in texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repeated_share(pairs: Sequence[tuple[str, str]]) -> float:
    """Share of responses whose text was given to an earlier, different prompt too."""
    first_prompt: dict[str, str] = {}
    repeated = sum(first_prompt.setdefault(response, prompt) != prompt for prompt, response in pairs)
    return repeated / len(pairs) if pairs else 0.0
