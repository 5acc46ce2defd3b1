"""Whether a packaged reward model gives every tool the scores it was packaged with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TextClassificationPipeline,
)

from rayrlhf.config.data import Reading
from rayrlhf.data.exchange import encode_judged
from rayrlhf.data.tokenizer import ids_as_text
from rayrlhf.errors import ModelError, in_one_line
from rayrlhf.models.classes import unread_by_stock_tools
from rayrlhf.models.load import check_model_dir, check_reward_model, load_reward_model
from rayrlhf.models.members import model_directories
from rayrlhf.reward.model import RewardModel
from rayrlhf.reward.stats import Probe, RewardStats, load_stats, template_digest

Backend = Callable[[str, Sequence[Probe]], Sequence[float]]
"""Scores of the probes, in order, of the model in a directory."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check and what it found."""

    check: str
    passed: bool
    told: str
    deviation: float | None = None
    """Largest |score - packaged score| of a backend."""


def verify(directory: str, backends: dict[str, Backend], *, tolerance: float) -> list[Finding]:
    """The checks of a reward model, and of each member below it, whose findings begin with its place."""
    own, *members = model_directories(directory)
    found = _verify(own, backends, tolerance)
    for member in members:
        place = Path(member).relative_to(directory)
        found += [replace(f, check=f"{place}: {f.check}") for f in _verify(member, backends, tolerance)]
    return found


def _verify(directory: str, backends: dict[str, Backend], tolerance: float) -> list[Finding]:
    """Every check of the files, then the probes through every backend; a check that stops the rest ends the list."""
    try:
        check_model_dir(directory, role="reward model")
        check_reward_model(directory)
        load_reward_model(directory)
        stats = load_stats(directory)
    except ModelError as error:
        return [Finding(check="files", passed=False, told=str(error))]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    findings = [
        Finding(check="files", passed=True, told="configuration, weights with a trained head, pad token, statistics"),
        _problem_type(directory),
        _template(tokenizer, stats),
        _tokens(tokenizer, stats),
    ]
    unread = unread_by_stock_tools(AutoConfig.from_pretrained(directory), "sequence")
    if unread is not None:
        findings.append(Finding(check="stock transformers", passed=True, told=unread))
        backends = {name: run for name, run in backends.items() if run not in _STOCK}
    return findings + [_replay(name, run, directory, stats, tolerance) for name, run in backends.items()]


def stock_backends(*, micro_batch_tokens: int = 8192) -> dict[str, Backend]:
    """The tools that need no engine: transformers, its pipeline, and what the scoring pool runs."""

    def scorer(directory: str, probes: Sequence[Probe]) -> Sequence[float]:
        model = RewardModel(directory, device="cpu", dtype="float32", micro_batch_tokens=micro_batch_tokens)
        scores: list[float] = model.score_plain([np.array(probe.ids, dtype=np.int32) for probe in probes]).tolist()
        return scores

    return {
        "transformers, one by one": _transformers_alone,
        "transformers, padded": _transformers_padded,
        "text-classification pipeline": _pipeline,
        "scoring pool": scorer,
    }


def _problem_type(directory: str) -> Finding:
    found = getattr(AutoConfig.from_pretrained(directory), "problem_type", None)
    return Finding(
        check="raw scores",
        passed=found == "regression",
        told="problem_type is regression"
        if found == "regression"
        else f'problem_type is {found!r}: pipelines and vLLM put a sigmoid on the score; set it to "regression"',
    )


def _template(tokenizer: PreTrainedTokenizerBase, stats: RewardStats) -> Finding:
    """A conversation must be read as the template writes it, to its last token, and begin at most once."""
    digest = template_digest(tokenizer)
    if digest != stats.template:
        told = f"the template and special tokens are not those of packaging ({digest}, then {stats.template})"
        return Finding(check="template", passed=False, told=told)
    fault = template_fault(tokenizer, stats.reading)
    if fault is not None:
        return Finding(check="template", passed=False, told=fault)
    without = tokenizer.chat_template is None
    told = "plain text, no chat template" if without else "conversations are read as the template writes them"
    return Finding(check="template", passed=True, told=told)


def template_fault(tokenizer: PreTrainedTokenizerBase, reading: Reading) -> str | None:
    """Why stock tools would read a conversation otherwise than training does; None where they do not."""
    if tokenizer.chat_template is None:
        return None
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]
    try:
        (own,) = encode_judged(tokenizer, turns[:1], ["Good day"], reading=reading)
        stock = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    except Exception as error:  # noqa: BLE001 - a template is other people's code
        return f"the chat template does not write a plain exchange: {in_one_line(error)}"
    if own.tolist() != list(stock):
        parted = next((i for i, pair in enumerate(zip(own.tolist(), stock, strict=False)) if pair[0] != pair[1]), -1)
        return f"a conversation is read otherwise than the template writes it, from {ids_as_text(tokenizer, stock[parted:])!r} on"
    if tokenizer.bos_token_id is not None and stock.count(tokenizer.bos_token_id) > 1:
        return f"a conversation begins with {tokenizer.bos_token!r} twice"
    return None


def _tokens(tokenizer: PreTrainedTokenizerBase, stats: RewardStats) -> Finding:
    """The probes' text must become the tokens that were scored, each of them in the vocabulary."""
    vocabulary = len(tokenizer)
    for probe in stats.probes:
        if max(probe.ids) >= vocabulary:
            told = f"token {max(probe.ids)} of a probe is missing: the tokenizer has {vocabulary} tokens"
            return Finding(check="tokens", passed=False, told=told)
        found = tokenizer(probe.text, add_special_tokens=False).input_ids
        if list(found) != list(probe.ids):
            told = f"the probe {probe.text[:60]!r} is tokenized otherwise than when the model was packaged"
            return Finding(check="tokens", passed=False, told=told)
    return Finding(check="tokens", passed=True, told=f"{len(stats.probes)} probes become the tokens they were")


def _replay(name: str, run: Backend, directory: str, stats: RewardStats, tolerance: float) -> Finding:
    wanted = np.array([probe.score for probe in stats.probes])
    found = np.array(list(run(directory, stats.probes)), dtype=float)
    deviation = float(np.abs(found - wanted).max())
    passed = bool(deviation <= tolerance)
    told = f"{len(wanted)} probes, scores {wanted.min():.3f} to {wanted.max():.3f}"
    if not passed:
        squashed = np.abs(found - 1.0 / (1.0 + np.exp(-wanted))).max() <= tolerance
        told += ": a sigmoid is applied" if squashed else f": tolerance {tolerance:g} is exceeded"
    return Finding(check=name, passed=passed, told=told, deviation=deviation)


@torch.inference_mode()
def _transformers_alone(directory: str, probes: Sequence[Probe]) -> Sequence[float]:
    model: Any = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    return [float(model(torch.tensor([probe.ids])).logits[0, 0]) for probe in probes]


@torch.inference_mode()
def _transformers_padded(directory: str, probes: Sequence[Probe]) -> Sequence[float]:
    model: Any = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    scores: list[float] = []
    for start in range(0, len(probes), 8):
        encoded = tokenizer.pad({"input_ids": [p.ids for p in probes[start : start + 8]]}, return_tensors="pt")
        scores += model(**encoded).logits[:, 0].tolist()
    return scores


def _pipeline(directory: str, probes: Sequence[Probe]) -> Sequence[float]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model: Any = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    classify = TextClassificationPipeline(model=model, tokenizer=tokenizer, device="cpu")
    # The probes' texts hold their special tokens already.
    return [float(classify(probe.text, add_special_tokens=False)[0]["score"]) for probe in probes]


_STOCK = (_transformers_alone, _transformers_padded, _pipeline)
