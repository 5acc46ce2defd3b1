"""Judging a reward model by preferences it was not trained on."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rayrlhf.algorithms import preference_metrics as metrics
from rayrlhf.data.bad_rows import BadRows
from rayrlhf.data.encoding import usable_rows
from rayrlhf.data.schema import Preference
from rayrlhf.errors import DataError
from rayrlhf.files import write_json
from rayrlhf.reward.model import RewardModel
from rayrlhf.reward.stats import RewardStats

EVALUATION_FILE = "evaluation.json"
_QUARTERS = 4
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_POINTS = 400
"""Responses kept for the plot of score against length."""


@dataclass(frozen=True, kw_only=True)
class ScoredPreferences:
    """Preferences with the raw scores of their responses."""

    rows: list[Preference]
    sequences: list[np.ndarray]
    """Of all responses of all rows, one after the other, as the plain model reads them."""
    scores: list[np.ndarray]
    """[K, members] of each row."""
    lengths: list[np.ndarray]
    """[K] response tokens of each row by the plain model's tokenizer, those included that it did not read."""
    left_out: int
    """Rows with a response longer than one of the members reads."""

    @property
    def prompt_of_each(self) -> np.ndarray:
        """The number of its prompt for each response of all rows, one after the other."""
        numbers: dict[str, int] = {}
        rows = [numbers.setdefault(row.key, len(numbers)) for row in self.rows]
        return np.repeat(rows, [len(own) for own in self.lengths])

    def less_length(self, stats: RewardStats, share: float) -> "ScoredPreferences":
        """The same with a share of what length explains taken out of the scores."""
        pairs = zip(self.scores, self.lengths, strict=True)
        return replace(self, scores=[stats.less_length(scores, lengths, share) for scores, lengths in pairs])


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Every strict pair of the rows, as columns; differences are better less worse."""

    difference: np.ndarray
    """Of the mean score over members."""
    spread: np.ndarray
    """Standard deviation over members of the difference."""
    longer_by: np.ndarray
    probability: np.ndarray
    cluster: np.ndarray
    subset: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Judged:
    """An evaluation: its material and its figures."""

    scored: ScoredPreferences
    pairs: Pairs
    figures: dict[str, Any]
    """What evaluation.json holds."""


def score_preferences(
    model: RewardModel, rows: Sequence[Preference], *, max_length: int, cut: bool = False, max_bad_rows: float = 0.01
) -> ScoredPreferences:
    """Score every response; rows with one that is too long are left out and counted, or read as far as `max_length`.

    Rows that a member's tokenizer or template refuses are bad rows, of which this share is allowed: all members are judged
    by the same rows.
    """
    bad = BadRows(what="the preferences", allowed=max_bad_rows, total=len(rows))
    usable = usable_rows(rows, lambda row: [model.encode(row.prompt, r.text) for r in row.responses], bad)
    bad.tell()
    fitting = [
        (row, whole) for row, whole in usable if cut or max(len(s) for read in whole for s in read) <= max_length
    ]
    if not fitting:
        raise DataError(f"None of the {len(rows)} preferences fits into {max_length} tokens.")
    flat = [tuple(sequence[:max_length] for sequence in read) for _, whole in fitting for read in whole]
    # A text may be a side of many pairs; it is scored once.
    once = {tuple(sequence.tobytes() for sequence in read): read for read in flat}
    place = {key: number for number, key in enumerate(once)}
    scores = model.score(list(once.values()))[[place[tuple(s.tobytes() for s in read)] for read in flat]]
    cuts = np.cumsum([len(whole) for _, whole in fitting])[:-1]
    return ScoredPreferences(
        rows=[row for row, _ in fitting],
        sequences=[read[0] for read in flat],
        scores=np.split(scores, cuts),
        lengths=[
            np.array([len(read[0]) for read in whole]) - model.prompt_length(row.prompt) for row, whole in fitting
        ],
        left_out=len(rows) - len(fitting),
    )


def judge(scored: ScoredPreferences, stats: RewardStats | None = None) -> Judged:
    """Every figure of an evaluation that the preferences allow; those of the length correction take the model's `stats`."""
    pairs = pairs_of(scored)
    figures: dict[str, Any] = {
        "rows": len(scored.rows),
        "left_out": scored.left_out,
        "prompts": len({row.key for row in scored.rows}),
        "pairs": len(pairs.difference),
        "members": int(scored.scores[0].shape[1]),
        **_scores(scored),
    }
    if len(pairs.difference):
        figures |= _ordering(pairs) | _calibration(pairs)
        if stats is not None:
            figures |= _less_length(scored, stats)
        if figures["members"] > 1:
            figures |= _disagreement(pairs)
    figures |= _without_pairs(scored)
    figures |= _best_of_k(scored) | _best_of_n(scored)
    return Judged(scored=scored, pairs=pairs, figures=figures)


def save_judged(judged: Judged, directory: Path) -> dict[str, Any]:
    """Write evaluation.json; its figures."""
    write_json(directory / EVALUATION_FILE, judged.figures)
    return judged.figures


def pairs_of(scored: ScoredPreferences) -> Pairs:
    """The strict pairs of all rankings; a ranking of K responses gives up to K (K - 1) / 2."""
    columns: dict[str, list[Any]] = {name: [] for name in Pairs.__dataclass_fields__}
    clusters: dict[str, int] = {}
    for row, scores, lengths in zip(scored.rows, scored.scores, scored.lengths, strict=True):
        cluster = clusters.setdefault(row.key, len(clusters))
        for better, worse in row.strict_pairs():
            difference = scores[better] - scores[worse]
            columns["difference"].append(float(difference.mean()))
            columns["spread"].append(float(difference.std()))
            columns["longer_by"].append(float(lengths[better] - lengths[worse]))
            columns["probability"].append(row.probability)
            columns["cluster"].append(cluster)
            columns["subset"].append(row.subset)
    return Pairs(**{name: np.array(values) for name, values in columns.items()})


def _ordering(pairs: Pairs) -> dict[str, Any]:
    difference, longer_by = pairs.difference, pairs.longer_by
    interval = metrics.accuracy(difference, pairs.cluster)
    return {
        "accuracy": interval.value,
        "accuracy_low": interval.low,
        "accuracy_high": interval.high,
        "at_chance": interval.low <= 0.5,
        "strict_accuracy": metrics.strict_accuracy(difference),
        "balanced_accuracy": metrics.balanced_accuracy(difference, longer_by),
        "longer_accuracy": metrics.longer_accuracy(longer_by),
        "longer_share": float((longer_by > 0).mean()),
        "by_length": _by_length(pairs),
        "by_subset": {
            str(name) or "all": _group(difference[pairs.subset == name]) for name in sorted(set(pairs.subset.tolist()))
        },
        "by_confidence": [
            _group(difference[part]) | {"confidence": float(np.abs(difference[part]).mean())}
            for part in np.array_split(np.argsort(np.abs(difference), kind="stable"), _QUARTERS)
            if len(part)
        ],
    }


def _less_length(scored: ScoredPreferences, stats: RewardStats) -> dict[str, Any]:
    """What the order of pairs would be with more and more of length's part taken out of the scores."""
    found = []
    for share in _SHARES:
        pairs = pairs_of(scored.less_length(stats, share))
        found.append(
            {
                "share": share,
                "accuracy": float(metrics.right(pairs.difference).mean()),
                "balanced_accuracy": metrics.balanced_accuracy(pairs.difference, pairs.longer_by),
            }
        )
    return {"less_length": found}


def _by_length(pairs: Pairs) -> dict[str, Any]:
    kinds = {"better_longer": pairs.longer_by > 0, "equal": pairs.longer_by == 0, "better_shorter": pairs.longer_by < 0}
    return {name: _group(pairs.difference[where]) for name, where in kinds.items() if where.any()}


def _group(difference: np.ndarray) -> dict[str, Any]:
    return {"pairs": len(difference), "accuracy": float(metrics.right(difference).mean())}


def _calibration(pairs: Pairs) -> dict[str, Any]:
    """As the scores are, and with a temperature fitted on the even prompts and judged on the odd ones."""
    difference, probability = pairs.difference, pairs.probability
    even = pairs.cluster % 2 == 0
    fitted = metrics.fit_temperature(difference[even], probability[even]) if even.any() else 1.0
    found: dict[str, Any] = {
        "nll": metrics.nll(difference, probability),
        "brier": metrics.brier(difference, probability),
        "ece": metrics.reliability(difference, probability).ece,
        "temperature": metrics.fit_temperature(difference, probability),
        "reliability": _diagram(metrics.reliability(difference, probability)),
    }
    if even.any() and not even.all():
        odd = ~even
        found["calibrated"] = {
            "temperature": fitted,
            "nll": metrics.nll(difference[odd], probability[odd], fitted),
            "ece": metrics.reliability(difference[odd], probability[odd], fitted).ece,
        }
    return found


def _diagram(diagram: metrics.Reliability) -> dict[str, Any]:
    return {name: np.asarray(values).tolist() for name, values in asdict(diagram).items()}


def _scores(scored: ScoredPreferences) -> dict[str, Any]:
    means = [scores.mean(1) for scores in scored.scores]
    every, lengths = np.concatenate(means), np.concatenate(scored.lengths)
    shown = np.random.default_rng(0).permutation(len(every))[:_POINTS]
    several = [own.std() for own in means if len(own) > 1]
    return {
        "score_mean": float(every.mean()),
        "score_std": float(every.std()),
        "within_prompt_std": float(np.mean(several)) if several else None,
        "length_spearman": metrics.spearman(every, lengths.astype(float)),
        "histogram": _histograms(scored, means),
        "score_and_length": [[float(every[i]), int(lengths[i])] for i in shown],
    }


def _histograms(scored: ScoredPreferences, means: Sequence[np.ndarray]) -> dict[str, Any]:
    """Scores of the best, of the worst and of unranked responses, in common bins."""
    kinds: dict[str, list[float]] = {"better": [], "worse": [], "unranked": []}
    for row, own in zip(scored.rows, means, strict=True):
        top, bottom = min(row.ranks), max(row.ranks)
        for rank, score in zip(row.ranks, own.tolist(), strict=True):
            kind = "unranked" if top == bottom else "better" if rank == top else "worse"
            kinds[kind].append(score)
    edges = np.histogram_bin_edges(np.concatenate(means), bins=30)
    counts = {name: np.histogram(values, edges)[0].tolist() for name, values in kinds.items() if values}
    return {"edges": edges.tolist(), "counts": counts}


def _disagreement(pairs: Pairs) -> dict[str, Any]:
    """Whether the members disagree where the ensemble is wrong."""
    doubt = pairs.spread / np.maximum(np.abs(pairs.difference), 1e-6)
    wrong = 1.0 - metrics.right(pairs.difference)
    coverage, risk = metrics.risk_coverage(doubt, wrong)
    shown = np.unique(np.linspace(0, len(coverage) - 1, 50).round().astype(int))
    return {
        "disagreement_auroc": metrics.auroc(doubt, wrong > 0.5),
        "spread_auroc": metrics.auroc(pairs.spread, wrong > 0.5),
        "risk_coverage": {"coverage": coverage[shown].tolist(), "risk": risk[shown].tolist()},
    }


def _without_pairs(scored: ScoredPreferences) -> dict[str, Any]:
    """What labels say of the scores (area under the ROC curve), and what ratings do (rank correlation), where there are any."""
    means = np.concatenate([scores.mean(1) for scores in scored.scores])
    responses = [response for row in scored.rows for response in row.responses]
    labelled = np.array([response.label is not None for response in responses])
    rated = np.array([response.rating is not None for response in responses])
    found = {}
    if labelled.any():
        positive = np.array([bool(response.label) for response in responses])[labelled]
        found["label_auroc"] = metrics.auroc(means[labelled], positive)
    if rated.any():
        ratings = np.array([response.rating for response in responses if response.rating is not None], dtype=float)
        found["rating_spearman"] = metrics.spearman(means[rated], ratings)
    return found


def _best_of_k(scored: ScoredPreferences) -> dict[str, Any]:
    """Of rows with one best group against several others: how often a best one scores highest, over all and by subset."""
    shares: dict[str, list[float]] = {}
    for row, scores in zip(scored.rows, scored.scores, strict=True):
        if len(row.responses) > 2 and len(row.ranking) > 1:
            best = np.array([rank == 0 for rank in row.ranks])
            shares.setdefault(row.subset, []).append(metrics.best_accuracy(scores.mean(1), best))
    if not shares:
        return {}
    return {
        "best_of_k_accuracy": float(np.mean([share for own in shares.values() for share in own])),
        "best_of_k_by_subset": {name or "all": float(np.mean(own)) for name, own in sorted(shares.items())},
    }


def _best_of_n(scored: ScoredPreferences) -> dict[str, Any]:
    """Rating of the best-scored of n, over the rows that have one rating a response and as many of them as most rows."""
    rated = [
        (scores.mean(1), np.array([response.rating for response in row.responses], dtype=float))
        for row, scores in zip(scored.rows, scored.scores, strict=True)
        if len(row.responses) > 1 and all(response.rating is not None for response in row.responses)
    ]
    if not rated:
        return {}
    sizes = [len(scores) for scores, _ in rated]
    usual = max(set(sizes), key=sizes.count)
    usable = [(scores, ratings) for scores, ratings in rated if len(scores) >= usual]
    ns = sorted({*(2**k for k in range(int(math.log2(usual)) + 1)), usual})
    mean = [float(np.mean([metrics.best_of_n(scores, ratings, n) for scores, ratings in usable])) for n in ns]
    best = [float(np.mean([metrics.best_of_n(ratings, ratings, n) for _, ratings in usable])) for n in ns]
    kl = [metrics.best_of_n_kl(n) for n in ns]
    return {"best_of_n": {"n": ns, "kl": kl, "rating": mean, "best_rating": best, "prompts": len(usable)}}
