"""Packaging: the scale of a trained reward model, probes of it, and what the held-out preferences say of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rayrlhf.algorithms.preference_metrics import fit_temperature, length_slope
from rayrlhf.config import RunConfig
from rayrlhf.data.prepared import open_preferences
from rayrlhf.data.tokenizer import ids_as_text
from rayrlhf.errors import ModelError
from rayrlhf.reward.judge import ScoredPreferences, judge, pairs_of, save_judged, score_preferences
from rayrlhf.reward.model import RewardModel
from rayrlhf.reward.stats import Probe, RewardStats, Scale, template_digest

_PROBES = 32


def package(config: RunConfig, directory: str, *, device: str) -> dict[str, Any]:
    """Write reward_stats.json and the evaluation into a trained model's directory; the figures of the evaluation."""
    model = RewardModel(
        directory,
        device=device,
        dtype=config.scoring.dtype,
        micro_batch_tokens=config.scoring.micro_batch_tokens,
        reading=config.data.reading,
    )
    heldout = open_preferences(config).heldout
    max_length = config.reward_max_length
    cut = config.reward.overlong == "cut"
    # How many of the whole may be bad was settled when training began.
    scored = score_preferences(model, heldout, max_length=max_length, cut=cut, max_bad_rows=1.0)
    stats = save_stats(model, scored, max_length=max_length, cut=cut)
    return save_judged(judge(scored, stats), Path(directory))


def save_stats(model: RewardModel, scored: ScoredPreferences, *, max_length: int, cut: bool = False) -> RewardStats:
    """Write the sidecar of a reward model, which is returned, and of each member below it as a reward model of its own."""
    stats = stats_of(model, scored, max_length=max_length)
    stats.save(Path(model.directory))
    for member in map(model.alone, range(1, model.models)):
        # Its own tokens are the length of a response, and its probes, where no other member is asked.
        own = score_preferences(member, scored.rows, max_length=max_length, cut=cut)
        stats_of(member, own, max_length=max_length).save(Path(member.directory))
    return stats


def stats_of(model: RewardModel, scored: ScoredPreferences, *, max_length: int) -> RewardStats:
    """The sidecar, from the scores of the held-out preferences."""
    raw = np.concatenate(scored.scores)
    pairs = pairs_of(scored)
    return RewardStats(
        scale=_scale(raw.mean(1), scored),
        members=[_scale(raw[:, column], scored) for column in range(raw.shape[1])],
        temperature=fit_temperature(pairs.difference, pairs.probability) if len(pairs.difference) else 1.0,
        max_length=max_length,
        template=template_digest(model.tokenizer),
        probes=_probes(model, scored.sequences, max_length=max_length),
        reading=model.reading,
    )


def _probes(model: RewardModel, sequences: Sequence[np.ndarray], *, max_length: int) -> list[Probe]:
    """Texts of all lengths, with the score that stock tools must give them.

    A probe's tokens are those its whole text has: where a prompt and a response meet, they may be others than these two
    were scored as, one by one.
    """
    by_length = np.argsort([len(sequence) for sequence in sequences], kind="stable")
    chosen = [
        sequences[i] for i in by_length[np.unique(np.linspace(0, len(by_length) - 1, _PROBES).round().astype(int))]
    ]
    texts = [ids_as_text(model.tokenizer, sequence) for sequence in chosen]
    read = [np.array(model.tokenizer(text, add_special_tokens=False).input_ids, dtype=np.int32) for text in texts]
    kept = [
        (ids, text)
        for ids, text, sequence in zip(read, texts, chosen, strict=True)
        if 0 < len(ids) <= max_length and ids[-1] == sequence[-1]
    ]
    if not kept:
        raise ModelError(
            f"The tokenizer of {model.directory} reads none of the held-out texts to the end it has encoded."
        )
    scores = model.score_plain([ids for ids, _ in kept])
    return [
        Probe(ids=ids.tolist(), text=text, score=score)
        for (ids, text), score in zip(kept, scores.tolist(), strict=True)
    ]


def _scale(scores: np.ndarray, scored: ScoredPreferences) -> Scale:
    slope = length_slope(scores, np.concatenate(scored.lengths), scored.prompt_of_each)
    return Scale(mean=float(scores.mean()), std=float(scores.std()), length_slope=slope)
