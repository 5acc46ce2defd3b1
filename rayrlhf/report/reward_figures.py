"""The figures of a reward model's evaluation."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rayrlhf.report.drawing import (
    BLUE,
    GOLD,
    GREEN,
    GREY,
    RED,
    VIOLET,
    Curve,
    Drawn,
    Panel,
    draw_histograms,
    draw_panels,
    draw_scatter,
)

Row = dict[str, Any]


def evaluation_figures(found: Row) -> list[Drawn]:
    """Every figure that evaluation.json has the data for."""
    makers = (_reliability, _scores, _length, _confidence, _risk, _best_of_n)
    return [figure for make in makers if (figure := make(found)) is not None]


def curve_figures(points: Sequence[Row]) -> list[Drawn]:
    """Accuracy and likelihood against the number of training rows, spaced by doublings."""
    doublings = np.log2([point["rows"] for point in points])

    def panel(unit: str, *names: tuple[str, str, str]) -> Panel:
        return Panel(unit, [Curve(label, colour, doublings, _column(points, key)) for key, label, colour in names])

    accuracy = ("accuracy", "accuracy", BLUE)
    interval = (("accuracy_low", "95 % interval", GREY), ("accuracy_high", "", GREY))
    panels = [
        panel("pairs in order", accuracy, *interval, ("balanced_accuracy", "balanced by length", GOLD)),
        panel("nats", ("nll", "negative log-likelihood", VIOLET)),
    ]
    caption = "Where the curves still rise, more labels help; where they are flat, other labels or another model must."
    return [Drawn("Held-out preferences", caption, draw_panels(panels, xlabel="log2 of the training rows"))]


def _column(points: Sequence[Row], key: str) -> np.ndarray:
    return np.array([np.nan if point[key] is None else point[key] for point in points], dtype=float)


def _reliability(found: Row) -> Drawn | None:
    if "reliability" not in found:
        return None
    diagram = found["reliability"]
    curve = Curve("", BLUE, np.array(diagram["confidence"]), np.array(diagram["accuracy"]))
    return Drawn(
        "Calibration",
        f"Stated probability of a preference against how often it holds; bins of equal size, each pair turned round by a "
        f"coin. Expected calibration error {found['ece']:.3f}, best temperature {found['temperature']:.2f}.",
        draw_scatter([curve], xlabel="stated", ylabel="seen", diagonal=True),
    )


def _scores(found: Row) -> Drawn | None:
    if "histogram" not in found:
        return None
    kinds = (("better", GREEN), ("worse", RED), ("unranked", GREY))
    counts = found["histogram"]["counts"]
    layers = [(name, colour, np.array(counts[name], dtype=float)) for name, colour in kinds if name in counts]
    caption = "Scores of the better and of the worse responses of the held-out preferences."
    return Drawn("Scores", caption, draw_histograms(np.array(found["histogram"]["edges"]), layers, xlabel="score"))


def _length(found: Row) -> Drawn | None:
    points = np.array(found.get("score_and_length", []), dtype=float).reshape(-1, 2)
    if not len(points):
        return None
    told = f"Rank correlation {found['length_spearman']:.2f}."
    if found.get("balanced_accuracy") is not None and "longer_accuracy" in found:
        told += (
            f" Picking the longer is right on {found['longer_accuracy']:.1%}; where better is longer and where it is "
            f"shorter weigh the same, the model is right on {found['balanced_accuracy']:.1%}."
        )
    curve = Curve("", VIOLET, points[:, 1], points[:, 0], "noisy")
    return Drawn("Score against length", told, draw_scatter([curve], xlabel="response tokens", ylabel="score"))


def _confidence(found: Row) -> Drawn | None:
    quarters = found.get("by_confidence", [])
    if len(quarters) < 2:
        return None
    x, y = (np.array([quarter[name] for quarter in quarters]) for name in ("confidence", "accuracy"))
    caption = "Accuracy in quarters of the pairs, by the size of the score difference."
    panel = Panel("pairs in order", [Curve("", BLUE, x, y)], level=(0.5, "chance"))
    return Drawn("Accuracy by confidence", caption, draw_panels([panel], xlabel="|score difference|"))


def _risk(found: Row) -> Drawn | None:
    if "risk_coverage" not in found:
        return None
    coverage, risk = (np.array(found["risk_coverage"][name]) for name in ("coverage", "risk"))
    auroc = found["disagreement_auroc"]
    told = "" if auroc is None else f" Doubt ranks wrong pairs over right ones with an AUROC of {auroc:.2f}."
    caption = f"Error rate when only the pairs that {found['members']} members agree most about are answered.{told}"
    panel = Panel("error rate", [Curve("", GOLD, coverage, risk)], floor=0.0)
    return Drawn("Disagreement of the ensemble", caption, draw_panels([panel], xlabel="share answered"))


def _best_of_n(found: Row) -> Drawn | None:
    if "best_of_n" not in found:
        return None
    curve = found["best_of_n"]
    x = np.array(curve["n"], dtype=float)
    curves = [
        Curve("chosen by the reward model", BLUE, x, np.array(curve["rating"])),
        Curve("chosen by rating", GREY, x, np.array(curve["best_rating"])),
    ]
    caption = f"Mean rating of the response chosen from n, over {curve['prompts']} prompts."
    return Drawn("Best of n", caption, draw_panels([Panel("rating", curves)], xlabel="n"))
