"""The figures of group estimators and verifiers: right answers over the updates, and what the groups have to teach"""

from rayrlhf.report.data import RunRecord
from rayrlhf.report.drawing import BLUE, GREEN, GREY, VIOLET, Curve, Drawn, Panel, draw_panels


def right_answers(record: RunRecord) -> Drawn | None:
    """The pass rate in training and on held-out prompts, with the interval of the latter; None without a verifier."""
    curves = []
    held_out = record.columns("ppo", "step", "eval/pass_rate", "eval/pass_rate_low", "eval/pass_rate_high")
    if len(held_out):
        step, rate, low, high = held_out.T
        curves.append(Curve("held-out, 95 % interval", GREEN, step, rate, "marks", band=(low, high)))
    training = record.columns("ppo", "step", "reward/pass_rate")
    if len(training):
        curves.append(Curve("training", BLUE, training[:, 0], training[:, 1], "noisy"))
    best_of_group = record.columns("ppo", "step", "reward/pass_at_k")
    if len(best_of_group):
        curves.append(
            Curve("training, any answer to a prompt", GREY, best_of_group[:, 0], best_of_group[:, 1], "noisy")
        )
    if not curves:
        return None
    return Drawn(
        "Right answers",
        f"Share of answers that the {record.words.judge} calls right; update 0 is {record.words.starting_policy}.",
        draw_panels([Panel("share right", curves, floor=0.0)], xlabel="update", tall=True),
    )


def groups(record: RunRecord) -> Drawn | None:
    """What the responses to one prompt differ by: without a difference a group estimator learns nothing from them."""
    panels = []
    for name, ylabel, colour in (
        ("reward/groups_equal", "all equal", VIOLET),
        ("reward/group_std", "deviation", BLUE),
    ):
        points = record.columns("ppo", "step", name)
        if len(points):
            panels.append(Panel(ylabel, [Curve("training", colour, points[:, 0], points[:, 1], "noisy")], floor=0.0))
    if not panels:
        return None
    return Drawn(
        "Groups",
        "Share of prompts whose responses all scored alike, which teach a group estimator nothing, and the standard "
        "deviation of the scores within a prompt.",
        draw_panels(panels, xlabel="update"),
    )
