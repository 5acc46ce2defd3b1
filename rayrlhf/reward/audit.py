"""What is in preference data, before a reward model learns it."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from transformers import PreTrainedTokenizerBase

from rayrlhf.algorithms.preference_metrics import longer_accuracy
from rayrlhf.data.bad_rows import BadRows
from rayrlhf.data.encoding import encode_preference, usable_rows
from rayrlhf.data.exchange import control_strings_in
from rayrlhf.data.schema import Preference
from rayrlhf.data.splitting import normal_form
from rayrlhf.types import PreferenceExample

_FOLDS = 5
_SUSPECTS = 20
_DOUBT = 0.8
"""A label is suspect when models of the other rows hold its opposite for at least this probable."""


def audit(
    rows: Sequence[Preference],
    heldout: Sequence[Preference],
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    max_length: int | None,
) -> dict[str, Any]:
    """Every figure as JSON holds it. Lengths are tokens, or characters where no tokenizer is given."""
    found: dict[str, Any] = {"unit": "characters" if tokenizer is None else "tokens"}
    found |= _counts(rows) | _repetitions(rows) | _shared(rows, heldout)
    encoded = None
    if tokenizer is not None:
        bad = BadRows(what="the preferences", allowed=1.0, total=len(rows))
        encoded = usable_rows(rows, lambda row: encode_preference(row, tokenizer), bad)
        found |= {"unreadable": len(bad.reasons), "unreadable_named": bad.reasons[:_SUSPECTS]}
        found["template"] = _template(encoded, tokenizer)
    found |= _lengths(rows, encoded, max_length)
    pairs = [row for row in rows if row.is_pair]
    found["suspects"] = _suspects(pairs) if len(_groups(pairs)) >= _FOLDS else None
    return found


def _counts(rows: Sequence[Preference]) -> dict[str, Any]:
    sizes = Counter(len(row.responses) for row in rows)
    return {
        "rows": len(rows),
        "prompts": len(_groups(rows)),
        "responses": {str(k): count for k, count in sorted(sizes.items())},
        "strict_pairs": sum(row.is_pair for row in rows),
        "ties": sum(any(len(group) > 1 for group in row.ranking) for row in rows),
        "soft_labels": sum(row.probability < 1.0 for row in rows),
        "rated": sum(any(r.rating is not None for r in row.responses) for row in rows),
        "labelled": sum(any(r.label is not None for r in row.responses) for row in rows),
        "subsets": dict(Counter(row.subset for row in rows if row.subset).most_common()),
    }


def _repetitions(rows: Sequence[Preference]) -> dict[str, Any]:
    """Rows that occur again, and pairs that contradict each other: a over b here, b over a there."""
    same = Counter((_prompt(row), tuple(r.text for r in row.responses), row.ranking) for row in rows)
    orders: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row.is_pair:
            orders.setdefault((_prompt(row), row.chosen, row.rejected), []).append(row.origin)
    contradictions = [
        [origins[0], orders[prompt, worse, better][0]]
        for (prompt, better, worse), origins in orders.items()
        if better < worse and (prompt, worse, better) in orders
    ]
    return {
        "duplicates": sum(count - 1 for count in same.values()),
        "identical_responses": sum(len({r.text.strip() for r in row.responses}) < len(row.responses) for row in rows),
        "contradictions": len(contradictions),
        "contradictions_named": contradictions[:_SUSPECTS],
    }


def _shared(rows: Sequence[Preference], heldout: Sequence[Preference]) -> dict[str, Any]:
    """Held-out prompts that are trained on, but for case and spaces: scores on them are no test."""
    if not heldout:
        return {}
    trained = {normal_form(row.key) for row in rows}
    shared = {prompt for row in heldout if (prompt := normal_form(row.key)) in trained}
    return {"heldout_rows": len(heldout), "heldout_prompts": len(_groups(heldout)), "shared_prompts": len(shared)}


def _lengths(
    rows: Sequence[Preference], encoded: Sequence[tuple[Preference, PreferenceExample]] | None, max_length: int | None
) -> dict[str, Any]:
    """In characters, or in tokens of what is encoded."""
    if encoded is None:
        own = [[len(response.text) for response in row.responses] for row in rows]
        whole = [[len(_prompt(row)) + length for length in lengths] for row, lengths in zip(rows, own, strict=True)]
    else:
        rows = [row for row, _ in encoded]
        whole = [[len(sequence) for sequence in example.sequences] for _, example in encoded]
        own = [
            [length - example.prompt_length for length in all_]
            for (_, example), all_ in zip(encoded, whole, strict=True)
        ]
    if not rows:
        return {}
    pairs = [(row, lengths) for row, lengths in zip(rows, own, strict=True) if row.is_pair]
    longer_by = np.array([lengths[r.ranking[0][0]] - lengths[r.ranking[1][0]] for r, lengths in pairs], dtype=float)
    found: dict[str, Any] = {"length_quantiles": np.quantile(np.concatenate(whole), [0.5, 0.9, 0.99, 1.0]).tolist()}
    if len(longer_by):
        edges = np.histogram_bin_edges(np.clip(longer_by, *np.quantile(longer_by, [0.01, 0.99])), bins=31)
        found |= {
            "longer_wins": float((longer_by > 0).mean()),
            "equal_length": float((longer_by == 0).mean()),
            "pick_the_longer": longer_accuracy(longer_by),
            "longer_by": {"edges": edges.tolist(), "counts": np.histogram(longer_by, edges)[0].tolist()},
        }
    if max_length is not None:
        found["max_length"] = max_length
        found["over_long"] = float(np.mean([max(lengths) > max_length for lengths in whole]))
    return found


def _template(
    encoded: Sequence[tuple[Preference, PreferenceExample]], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """How every response begins and ends once it is tokens."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    doubled = unfinished = control = ended = 0
    for row, example in encoded:
        ended += any(response.text.rstrip().endswith(str(tokenizer.eos_token)) for response in row.responses)
        control += bool(control_strings_in(tokenizer, row.prompt, [response.text for response in row.responses]))
        for sequence in example.sequences:
            doubled += bos is not None and int((sequence == bos).sum()) > 1
            unfinished += isinstance(row.prompt, str) and int(sequence[-1]) != eos
    return {"more_than_one_bos": doubled, "no_end_token": unfinished, "control_strings": control, "ended": ended}


def _suspects(pairs: Sequence[Preference]) -> dict[str, Any]:
    """Labels that models of the other prompts disagree with: a linear model of word n-grams, cross-fitted by prompt."""
    groups = _groups(pairs)
    index = np.array([groups[row.key] for row in pairs])
    words = HashingVectorizer(n_features=2**18, ngram_range=(1, 2), alternate_sign=False, norm="l2")
    difference = words.transform([r.chosen for r in pairs]) - words.transform([r.rejected for r in pairs])
    side = np.random.default_rng(0).integers(2, size=len(pairs)) * 2 - 1
    features = difference.multiply(side[:, None]).tocsr()
    believed = np.empty(len(pairs))
    for fit, judge in GroupKFold(min(_FOLDS, len(groups))).split(features, groups=index):
        model = LogisticRegression(C=10.0, fit_intercept=False, max_iter=200).fit(features[fit], side[fit])
        believed[judge] = model.predict_proba(features[judge])[np.arange(len(judge)), (side[judge] > 0).astype(int)]
    doubtful = np.flatnonzero(believed <= 1.0 - _DOUBT)
    worst = doubtful[np.argsort(believed[doubtful], kind="stable")][:_SUSPECTS]
    return {
        "accuracy": float((believed > 0.5).mean()),
        "count": len(doubtful),
        "share": len(doubtful) / len(pairs),
        "named": [
            {
                "origin": pairs[i].origin,
                "probability": float(believed[i]),
                "prompt": _prompt(pairs[i])[-200:],
                "chosen": pairs[i].chosen[:200],
                "rejected": pairs[i].rejected[:200],
            }
            for i in worst
        ],
    }


def _groups(rows: Sequence[Preference]) -> dict[str, int]:
    groups: dict[str, int] = {}
    for row in rows:
        groups.setdefault(row.key, len(groups))
    return groups


def _prompt(row: Preference) -> str:
    return row.prompt if isinstance(row.prompt, str) else json.dumps(row.prompt, sort_keys=True)
