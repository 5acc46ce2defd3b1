"""The pages of an evaluated reward model and of audited preference data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rayrlhf.report.drawing import VIOLET, Drawn, draw_histograms
from rayrlhf.report.page import figures, number, table, tile, tiles, write_page
from rayrlhf.report.reward_figures import curve_figures, evaluation_figures

Row = dict[str, Any]
_LESS_LENGTH = ["share", "accuracy", "balanced accuracy"]


def write_evaluation_page(path: Path, found: Row, *, model: str, data: str) -> Path:
    """evaluation.json as a page."""
    return write_page(
        path,
        title=f"Reward model {Path(model).name}",
        subtitle=f"judged by {data}: {found['pairs']:,} pairs of {found['prompts']:,} prompts",
        parts=[
            tiles(_evaluation_tiles(found)),
            figures("What the scores say", evaluation_figures(found)),
            _groups("By length of the better response", found.get("by_length", {})),
            table("Length's part taken out of the scores", _LESS_LENGTH, less_length_rows(found)),
            _groups("By subset", found.get("by_subset", {})),
        ],
        footer="rayrlhf evaluation, written from evaluation.json.",
    )


def write_audit_page(path: Path, found: Row, *, data: str) -> Path:
    """An audit as a page."""
    drawn = []
    if "longer_by" in found:
        histogram = found["longer_by"]
        layer = [("", VIOLET, np.array(histogram["counts"], dtype=float))]
        svg = draw_histograms(np.array(histogram["edges"]), layer, xlabel=f"{found['unit']}, better less worse")
        caption = f"The better response is longer in {found['longer_wins']:.1%} of the pairs."
        drawn.append(Drawn("Length of the better response against the worse", caption, svg))
    suspects = found.get("suspects") or {"named": []}
    named = [
        [s["origin"], number(s["probability"], "{:.2f}"), s["prompt"], s["chosen"], s["rejected"]]
        for s in suspects["named"]
    ]
    return write_page(
        path,
        title="Preference data",
        subtitle=data,
        parts=[
            table("What is in it", ["", "", ""], audit_rows(found)),
            figures("Lengths", drawn),
            table("Labels to look at", ["row", "probability of the label", "prompt", "chosen", "rejected"], named),
        ],
        footer="rayrlhf reward audit. Labels to look at: a linear model of word pairs, fitted on other prompts, disagrees.",
    )


def write_curve_page(path: Path, points: Sequence[Row], *, run: str) -> Path:
    """A learning curve as a page."""
    return write_page(
        path,
        title=f"Learning curve of {run}",
        subtitle=f"reward models of growing shares of the same preferences, judged by {points[0]['pairs']:,} held-out pairs",
        parts=[
            figures("What more labels bring", curve_figures(points)),
            table(
                "In numbers",
                ["training rows", "accuracy", "balanced accuracy", "negative log-likelihood"],
                curve_rows(points),
            ),
        ],
        footer="rayrlhf reward curve, written from learning_curve.json.",
    )


def curve_rows(points: Sequence[Row]) -> list[list[str]]:
    """Each share of a learning curve, for a terminal."""
    return [
        [
            f"{point['rows']:,}",
            f"{number(point['accuracy'])} ({number(point['accuracy_low'])} to {number(point['accuracy_high'])})",
            number(point["balanced_accuracy"]),
            number(point["nll"]),
        ]
        for point in points
    ]


def less_length_rows(found: Row) -> list[list[str]]:
    """Each share of a length correction, with what is then in order."""
    return [
        [f"{one['share']:.0%}", f"{one['accuracy']:.1%}", number(one["balanced_accuracy"], "{:.1%}")]
        for one in found.get("less_length", [])
    ]


def evaluation_rows(found: Row) -> list[list[str]]:
    """The main figures, each with what it means, for a terminal."""
    rows = [["pairs", f"{found['pairs']:,}", f"of {found['prompts']:,} prompts, {found['left_out']:,} rows left out"]]
    if "accuracy" in found:
        interval = f"95 % interval {number(found['accuracy_low'])} to {number(found['accuracy_high'])}"
        if found.get("at_chance"):
            rows.append(["AT CHANCE", "", "the interval of the accuracy holds a coin's 0.5: this model judges nothing"])
        rows += [
            ["accuracy", number(found["accuracy"]), f"{interval}; ties wrong {number(found['strict_accuracy'])}"],
            ["pick the longer", number(found["longer_accuracy"]), "what a rule of length alone gets right"],
            [
                "balanced accuracy",
                number(found["balanced_accuracy"]),
                "better longer and better shorter weigh the same",
            ],
            [
                "calibration error",
                number(found["ece"]),
                f"at temperature {number(found['temperature'], '{:.2f}')}: "
                f"{number(found.get('calibrated', {}).get('ece'))} on the other half of the prompts",
            ],
            ["negative log-likelihood", number(found["nll"]), "nats; 0.693 is a coin"],
            ["Brier score", number(found["brier"]), "0.25 is a coin"],
        ]
    if "label_auroc" in found:
        rows.append(
            ["labels", number(found["label_auroc"]), "AUROC: a good response scores above a bad one; 0.5 is a coin"]
        )
    if "rating_spearman" in found:
        rows.append(["ratings", number(found["rating_spearman"]), "rank correlation of score and rating"])
    rows += [
        ["score", f"{number(found['score_mean'])} ± {number(found['score_std'])}", "over all responses"],
        ["spread in a prompt", number(found["within_prompt_std"]), "standard deviation of its responses' scores"],
        ["score and length", number(found["length_spearman"]), "rank correlation"],
    ]
    rows += [
        [f"{share} of length out", accuracy, f"balanced {balanced}"]
        for share, accuracy, balanced in less_length_rows(found)[1:]
    ]
    if "best_of_k_accuracy" in found:
        rows.append(["best of k", number(found["best_of_k_accuracy"]), "a best response scores highest; ties share"])
    if "disagreement_auroc" in found:
        rows.append(["disagreement", number(found["disagreement_auroc"]), "AUROC of the members' doubt for errors"])
    return rows


def audit_rows(found: Row) -> list[list[str]]:
    """The findings of an audit, each with what to make of it."""
    unit = found["unit"]
    rows = [
        ["rows", f"{found['rows']:,}", f"of {found['prompts']:,} prompts"],
        ["responses a row", ", ".join(f"{k}: {n:,}" for k, n in found["responses"].items()), ""],
        ["strict pairs, ties", f"{found['strict_pairs']:,}, {found['ties']:,}", ""],
        ["soft labels, ratings, labels", f"{found['soft_labels']:,}, {found['rated']:,}, {found['labelled']:,}", ""],
        ["duplicates", f"{found['duplicates']:,}", "rows that occur again"],
        ["identical responses", f"{found['identical_responses']:,}", "rows that compare a text with itself"],
        ["contradictions", f"{found['contradictions']:,}", "pairs that are also there the other way round"],
    ]
    if "shared_prompts" in found:
        told = f"of {found['heldout_prompts']:,} held-out prompts are trained on"
        rows.append(["shared prompts", f"{found['shared_prompts']:,}", told])
    if found.get("unreadable"):
        rows.append(["unreadable", f"{found['unreadable']:,}", f"such as {found['unreadable_named'][0]}"])
    if "length_quantiles" in found:
        quantiles = ", ".join(f"{value:,.0f}" for value in found["length_quantiles"])
        rows.append(["length", quantiles, f"{unit}, prompt and response: median, 90 %, 99 %, longest"])
    if "longer_wins" in found:
        rows += [
            ["the longer wins", f"{found['longer_wins']:.1%}", f"equal lengths {found['equal_length']:.1%}"],
            ["pick the longer", f"{found['pick_the_longer']:.1%}", "the accuracy to beat"],
        ]
    if "over_long" in found:
        rows.append(
            ["too long", f"{found['over_long']:.1%}", f"rows with a response over {found['max_length']} {unit}"]
        )
    if "template" in found:
        told = "responses with more than one BOS; without an end token"
        rows.append(
            ["template", f"{found['template']['more_than_one_bos']}; {found['template']['no_end_token']}", told]
        )
        rows.append(
            [
                "ends written out",
                f"{found['template']['ended']:,}",
                "rows whose text ends with the end token: it is read once",
            ]
        )
        told = "rows with a text that holds control strings of the tokenizer"
        rows.append(["control strings", f"{found['template']['control_strings']:,}", told])
    if found.get("suspects"):
        suspects = found["suspects"]
        told = f"{suspects['share']:.1%} of the pairs; the model that disagrees orders {suspects['accuracy']:.1%} right"
        rows.append(["labels to look at", f"{suspects['count']:,}", told])
    if found["subsets"]:
        rows.append(["subsets", ", ".join(f"{name} {count:,}" for name, count in found["subsets"].items()), ""])
    return rows


def _evaluation_tiles(found: Row) -> list[str]:
    if "accuracy" not in found:
        return []
    interval = f"{found['accuracy_low']:.1%} to {found['accuracy_high']:.1%}"
    made = [
        tile("Accuracy", f"{found['accuracy']:.1%}", f"at chance: {interval}" if found.get("at_chance") else interval),
        tile("Pick the longer", f"{found['longer_accuracy']:.1%}", "a rule of length alone"),
        tile("Balanced accuracy", number(found["balanced_accuracy"], "{:.1%}"), "longer and shorter weigh the same"),
        tile("Calibration error", f"{found['ece']:.3f}", f"best temperature {found['temperature']:.2f}"),
        tile("Score against length", f"{found['length_spearman']:.2f}", "rank correlation"),
    ]
    if "disagreement_auroc" in found:
        told = f"{found['members']} members, AUROC for errors"
        made.append(tile("Disagreement", number(found["disagreement_auroc"], "{:.2f}"), told))
    return made


def _groups(title: str, groups: Row) -> str:
    rows = [
        [name.replace("_", " "), f"{group['pairs']:,}", f"{group['accuracy']:.1%}"] for name, group in groups.items()
    ]
    return table(title, ["", "pairs", "in order"], rows) if len(rows) > 1 else ""
