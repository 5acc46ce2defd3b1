"""How far the reward model is from home, as a figure, a table and in words: from refresh.json."""

import numpy as np

from rayrlhf.report.data import Row
from rayrlhf.report.drawing import BLUE, GREEN, GREY, Curve, Drawn, Panel, draw_panels
from rayrlhf.report.page import number
from rayrlhf.report.verdict import Verdict

_SIDES = (("before", "before the refresh", BLUE, -0.1), ("after", "refreshed", GREEN, 0.1))
"""With their place beside each other, as a share of a bin."""
_POINTS = 9
"""Of a level line: as many are drawn without marks."""


def refresh_figures(found: Row) -> list[Drawn]:
    """Accuracy on the policy's own held-out pairs by update, beside that on the preferences it comes from."""
    curves = []
    for when, label, colour, place in _SIDES:
        judged = [
            (own, one) for own, one in zip(found["bins"], found[when]["by_update"], strict=True) if one is not None
        ]
        first, last = (np.array([own[key] for own, _ in judged], dtype=float) for key in ("first", "last"))
        value, low, high = (np.array([one[key] for _, one in judged]) for key in ("accuracy", "low", "high"))
        x = (first + last) / 2.0 + place * (last - first + 1.0)
        curves.append(Curve(f"{label}, 95 % interval", colour, x, value, "marks", (low, high)))
    home = found["before"]["home"]
    if home is not None:
        x = np.linspace(found["bins"][0]["first"], found["bins"][-1]["last"], _POINTS)
        curves.append(Curve("at home", GREY, x, np.full(_POINTS, home["accuracy"])))
    panel = Panel("pairs in order", curves, level=(0.5, "chance"))
    caption = (
        f"Accuracy on {found['heldout_pairs']:,} pairs of the policy's own responses, to prompts whose pairs were not "
        f"trained on, by update; labelled by {found['label']}. At home is what it was on its own held-out preferences "
        f"before the refresh."
    )
    return [Drawn("Accuracy on the policy's own pairs", caption, draw_panels([panel], xlabel="update", tall=True))]


def accuracy_rows(found: Row) -> list[list[str]]:
    """A line for each bin of updates, for all of them, and for the preferences it comes from: pairs, before, after."""
    before, after = found["before"], found["after"]
    names = [own["name"] for own in found["bins"]]
    lines = list(zip(names, before["by_update"], after["by_update"], strict=True))
    lines += [("all updates", before["on_policy"], after["on_policy"])]
    lines += [("its own held-out preferences", before["home"], after["home"])]
    return [[name, f"{old['pairs']:,}", _shown(old), _shown(new)] for name, old, new in lines if old is not None]


def refresh_finding(found: Row) -> Verdict:
    """Whether the reward model is far from home where the policy ended, and what the refresh did; claimed beyond the
    intervals alone."""
    judged = zip(found["bins"], found["before"]["by_update"], strict=True)
    name, away = [(own["name"], one) for own, one in judged if one is not None][-1]
    home, after = found["before"]["home"], found["after"]
    told = f"Of the policy's own pairs of {name} it ordered {_shown(away)} as {found['label']} does"
    apart = None if home is None else _apart(home, away)
    if home is not None:
        told += f", and {_shown(home)} of its own held-out preferences as these are labelled"
    helped = _apart(found["before"]["on_policy"], after["on_policy"])
    told += f". The refresh took all held-out pairs of the policy from {_change(found, 'on_policy')}: "
    told += {1: "it helped", -1: "it harmed", 0: "the intervals overlap, no change is shown"}[helped]
    if home is not None and after["home"] is not None:
        kept = _apart(home, after["home"])
        told += f". Its own held-out preferences went from {_change(found, 'home')}: "
        told += {1: "none was forgotten", -1: "some was forgotten", 0: "the intervals overlap, no change is shown"}[
            kept
        ]
    headline, tone = {
        None: ("There is no home to compare with", "neutral"),
        -1: ("The reward model is far from home", "bad"),
        0: ("No distance from home is shown", "neutral"),
        1: ("The reward model orders the policy's pairs better than its own", "good"),
    }[apart]
    return Verdict(tone, headline, f"{told}.")  # type: ignore[arg-type]


def _apart(first: Row, second: Row) -> int:
    """1 where the second is above the first, -1 where it is below, 0 where their intervals overlap."""
    return int(second["low"] > first["high"]) - int(second["high"] < first["low"])


def _change(found: Row, key: str) -> str:
    return (
        f"{number(found['before'][key]['accuracy'], '{:.1%}')} to {number(found['after'][key]['accuracy'], '{:.1%}')}"
    )


def _shown(one: Row | None) -> str:
    return "–" if one is None else f"{one['accuracy']:.1%} ({one['low']:.1%} to {one['high']:.1%})"
