"""Measures of a response beside its reference that need no model: those of sacrebleu and rouge-score, sentence by sentence."""

from collections.abc import Callable, Sequence
from typing import Any

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF, TER

Metric = Callable[[list[str], list[str]], list[float]]
"""Values of responses beside their references, larger for what is more alike."""


def text_metric(name: str) -> Metric:
    """The metric of that name, in [0, 1]: bleu, chrf, chrf++, ter (1 less the rate of edits), rouge1, rouge2 or rougeL."""
    if name in ("chrf", "chrf++"):
        return _sentence_scores(CHRF(word_order=2 if name == "chrf++" else 0))
    if name == "bleu":
        # Sentence BLEU needs its counts smoothed and its order cut to the hypothesis (Chen and Cherry 2014).
        return _sentence_scores(BLEU(effective_order=True, smooth_method="exp"))
    if name == "ter":
        edits = _sentence_scores(TER())
        return lambda responses, references: [max(0.0, 1.0 - rate) for rate in edits(responses, references)]
    scorer = RougeScorer([name], use_stemmer=False)

    def rouge(responses: list[str], references: list[str]) -> list[float]:
        return [float(scorer.score(r, h)[name].fmeasure) for h, r in zip(responses, references, strict=True)]

    return rouge


def measured(names: Sequence[str], responses: Sequence[str], references: Sequence[str]) -> list[dict[str, float]]:
    """The value of every metric for each response."""
    stripped = [text.strip() for text in responses], [text.strip() for text in references]
    columns = {name: text_metric(name)(*stripped) for name in names}
    return [{name: values[i] for name, values in columns.items()} for i in range(len(responses))]


def _sentence_scores(metric: Any) -> Metric:
    def scores(responses: list[str], references: list[str]) -> list[float]:
        return [metric.sentence_score(h, [r]).score / 100.0 for h, r in zip(responses, references, strict=True)]

    return scores
