"""Packaging: the scale of a trained reward model, probes of it, and what the held-out preferences say of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rayrlhf.algorithms.preference_metrics import fit_temperature, length_slope
from rayrlhf.config import RunConfig
from rayrlhf.data.dataset import load_preferences
from rayrlhf.errors import ModelError
from rayrlhf.reward.judge import ScoredPreferences, judge, pairs_of, save_judged, score_preferences
from rayrlhf.reward.model import RewardModel
from rayrlhf.reward.stats import Probe, RewardStats, Scale, template_digest

_PROBES = 32


def package(config: RunConfig, directory: str, *, device: str) -> dict[str, Any]:
    """Write reward_stats.json and the evaluation into a trained model's directory; the figures of the evaluation."""
    model = RewardModel(
        directory, device=device, dtype=config.scoring.dtype, micro_batch_tokens=config.scoring.micro_batch_tokens
    )
    heldout = load_preferences(config).heldout
    max_length = config.reward_max_length
    cut = config.reward.overlong == "cut"
    scored = score_preferences(model, heldout, max_length=max_length, cut=cut)
    stats = stats_of(model, scored, max_length=max_length)
    stats.save(Path(directory))
    return save_judged(judge(scored, stats), Path(directory))


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
        probes=_probes(model, scored.sequences, raw),
    )


def _probes(model: RewardModel, sequences: Sequence[np.ndarray], raw: np.ndarray) -> list[Probe]:
    """Sequences spread over all lengths, with the score that stock tools must give them."""
    by_length = np.argsort([len(sequence) for sequence in sequences], kind="stable")
    chosen = by_length[np.unique(np.linspace(0, len(by_length) - 1, _PROBES).round().astype(int))]
    plain = model.plain(raw)
    texts = [model.tokenizer.decode(sequences[i], skip_special_tokens=False) for i in chosen]
    found = [
        Probe(ids=sequences[i].tolist(), text=text, score=float(plain[i]))
        for i, text in zip(chosen, texts, strict=True)
        # A text that its own tokenizer reads otherwise can be scored as tokens, but is no probe of tools that read text.
        if list(model.tokenizer(text, add_special_tokens=False).input_ids) == sequences[i].tolist()
    ]
    if not found:
        raise ModelError(f"The tokenizer of {model.directory} gives back none of the held-out texts it has encoded.")
    return found


def _scale(scores: np.ndarray, scored: ScoredPreferences) -> Scale:
    slope = length_slope(scores, np.concatenate(scored.lengths), scored.prompt_of_each)
    return Scale(mean=float(scores.mean()), std=float(scores.std()), length_slope=slope)
