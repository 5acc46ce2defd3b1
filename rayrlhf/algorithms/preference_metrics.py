"""How well scores order responses, how far their differences can be believed, and what else they follow.

Pairs are columns of numpy arrays: `difference` is the score of the better response less that of the worse one, so that
positive is right; `cluster` numbers the prompt a pair belongs to.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from rayrlhf.algorithms.pass_rate import wilson_interval

_BINS = 15
_RESAMPLES = 1000

Column = Float[np.ndarray, " pairs"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


def right(difference: Column) -> Column:
    """1 where a pair is ordered as labelled, 0.5 where the scores are equal, else 0."""
    return (difference > 0) + 0.5 * (difference == 0)


def accuracy(difference: Column, cluster: Int[np.ndarray, " pairs"], *, seed: int = 0) -> Interval:
    """Share of pairs in order, ties half, with a bootstrap interval over prompts: pairs of one prompt are not independent.

    Where all prompts are alike, and resampling says nothing, it is Wilson's for the number of prompts.
    """
    _, codes = np.unique(cluster, return_inverse=True)
    hits, counts = np.bincount(codes, weights=right(difference)), np.bincount(codes)
    drawn = np.random.default_rng(seed).integers(len(counts), size=(_RESAMPLES, len(counts)))
    shares = hits[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(shares, [0.025, 0.975])
    value = float(hits.sum() / counts.sum())
    if low == high:
        low, high = wilson_interval(value, len(counts))
    return Interval(value=value, low=float(low), high=float(high))


def strict_accuracy(difference: Column) -> float:
    """Share of pairs in order, equal scores counted as wrong, as rewardbench counts them."""
    return float((difference > 0).mean())


def best_accuracy(scores: Float[np.ndarray, " k"], best: Bool[np.ndarray, " k"]) -> float:
    """Share of the highest-scored responses that are among the best, as rewardbench 2 counts best-of-k."""
    return float(best[scores == scores.max()].mean())


def balanced_accuracy(difference: Column, longer_by: Column) -> float:
    """Mean of the accuracy where the better response is longer and where it is shorter: 0.5 for any rule of length.

    NaN where the pairs are all of one kind.
    """
    parts = [right(difference[where]) for where in (longer_by > 0, longer_by < 0)]
    return float(np.mean([part.mean() if len(part) else math.nan for part in parts]))


def longer_accuracy(longer_by: Column) -> float:
    """Accuracy of "pick the longer", equal lengths half."""
    return float(right(longer_by).mean())


def length_slope(
    scores: Float[np.ndarray, " n"], lengths: Int[np.ndarray, " n"], prompt: Int[np.ndarray, " n"]
) -> float:
    """Score a unit of ln(1 + length), by least squares within prompts; 0 where no prompt has responses of two lengths."""
    own = np.stack([np.log1p(lengths), scores])
    counts = np.bincount(prompt)
    centred = own - np.stack([np.bincount(prompt, weights=row)[prompt] for row in own]) / counts[prompt]
    variance = float((centred[0] ** 2).sum())
    return float((centred[0] * centred[1]).sum()) / variance if variance > 1e-12 else 0.0


def nll(difference: Column, probability: Column, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood, in nats, of labels that are right with `probability`, under sigmoid(d / T)."""
    scaled = difference / temperature
    return float((probability * np.logaddexp(0.0, -scaled) + (1.0 - probability) * np.logaddexp(0.0, scaled)).mean())


def brier(difference: Column, probability: Column, temperature: float = 1.0) -> float:
    """Mean squared difference between sigmoid(d / T) and the label."""
    return float(np.square(sigmoid(difference / temperature) - probability).mean())


def fit_temperature(difference: Column, probability: Column) -> float:
    """The T that minimises `nll`: it is convex in 1/T, whose derivative is bisected. At least 1e-3, at most 1e3."""

    def slope(inverse: float) -> float:
        return float((difference * (sigmoid(difference * inverse) - probability)).mean())

    low, high = 1e-3, 1e3
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 1.0 / math.sqrt(low * high)


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Stated against seen, in bins of equal mass."""

    confidence: Float[np.ndarray, " bins"]
    accuracy: Float[np.ndarray, " bins"]
    count: Int[np.ndarray, " bins"]

    @property
    def ece(self) -> float:
        """Expected calibration error (Naeini et al. 2015)."""
        return float((self.count * np.abs(self.accuracy - self.confidence)).sum() / self.count.sum())


def reliability(
    difference: Column, probability: Column, temperature: float = 1.0, *, bins: int = _BINS, seed: int = 0
) -> Reliability:
    """The diagram over all of [0, 1]: each pair is turned round by a coin, so that half of the labels are positive."""
    side = np.random.default_rng(seed).integers(2, size=len(difference)) * 2 - 1
    stated = sigmoid(side * difference / temperature)
    label = np.where(side > 0, probability, 1.0 - probability)
    parts = np.array_split(np.argsort(stated, kind="stable"), min(bins, len(stated)))
    return Reliability(
        confidence=np.array([stated[part].mean() for part in parts]),
        accuracy=np.array([label[part].mean() for part in parts]),
        count=np.array([len(part) for part in parts]),
    )


def auroc(signal: Column, positive: Bool[np.ndarray, " pairs"]) -> float:
    """Probability that the signal of a positive exceeds that of a negative, ties half; NaN where one kind is absent."""
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return math.nan
    return float((ranks(signal)[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def risk_coverage(signal: Column, wrong: Column) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and error rate when only the pairs of least `signal` are answered (El-Yaniv and Wiener 2010)."""
    order = np.argsort(signal, kind="stable")
    answered = np.arange(1, len(order) + 1)
    return answered / len(order), np.cumsum(wrong[order]) / answered


def ranks(values: Column) -> Column:
    """Ranks from 1, equal values sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2.0)[inverse]


def spearman(first: Column, second: Column) -> float:
    """Rank correlation; NaN where one side is constant."""
    a, b = ranks(first), ranks(second)
    if a.std() == 0 or b.std() == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def best_of_n(scores: Float[np.ndarray, " samples"], quality: Float[np.ndarray, " samples"], n: int) -> float:
    """Expected quality of the best-scored of n of the N samples, over all choices of n (Nakano et al. 2021).

    sum over i = n..N of C(i - 1, n - 1) / C(N, n) times the quality of the i-th in order of score; equal scores share.
    """
    count = len(scores)
    if not 1 <= n <= count:
        raise ValueError(f"best of {n} needs at least {n} samples, not {count}")
    chances = np.array([math.comb(i - 1, n - 1) / math.comb(count, n) for i in range(1, count + 1)])
    order = np.argsort(scores, kind="stable")
    _, group = np.unique(scores[order], return_inverse=True)
    shared = (np.bincount(group, weights=chances) / np.bincount(group))[group]
    return float((shared * quality[order]).sum())


def best_of_n_kl(n: int) -> float:
    """KL(best of n || policy) in nats: log n - (n - 1)/n (Stiennon et al. 2020)."""
    return math.log(n) - (n - 1) / n


def sigmoid(values: Column) -> Column:
    """The logistic function, without overflow."""
    return np.exp(-np.logaddexp(0.0, -values))
