"""The figures of a report, by section: what they show, in words, and the drawing."""

import numpy as np

from rayrlhf.report.data import RunRecord
from rayrlhf.report.drawing import (
    BLUE,
    GOLD,
    GREEN,
    GREY,
    RED,
    SHADES,
    VIOLET,
    Curve,
    Drawn,
    Panel,
    draw_panels,
    draw_stack,
)
from rayrlhf.report.pass_figures import groups, right_answers
from rayrlhf.report.verdict import start_spread
from rayrlhf.report.worker_figures import workers
from rayrlhf.telemetry.metrics import WATCHED, watch_metric

_BARS = 80
_KL_AXIS = "KL to the reference, nats per response (square-root scale)"

_PHASES = (
    ("time/rollout", "rollout", BLUE),
    ("time/scoring", "scoring", GOLD),
    ("time/learner", "learner", GREEN),
    ("time/sync", "weight sync", VIOLET),
    ("time/checkpoint", "checkpoint", RED),
)


def objective_figures(record: RunRecord) -> list[Drawn]:
    """Score and gold: against the distance from the reference, and over the updates; right answers and groups."""
    figures = (right_answers(record), _against_kl(record), _over_updates(record), groups(record), _guarded(record))
    return [figure for figure in figures if figure is not None]


def supervised_figures(record: RunRecord) -> list[Drawn]:
    """Supervised fine-tuning and the reward model."""
    drawn = []
    loss = _panel(record, "sft", "nats per token", ("policy/nll", "training", BLUE), held_out="eval/nll")
    if loss is not None:
        drawn.append(Drawn("Supervised fine-tuning", "Next-token loss.", draw_panels([loss], xlabel="step")))
    panels = [
        _panel(record, "reward", "pairs in order", ("reward/accuracy", "training", BLUE), held_out="eval/accuracy"),
        _panel(record, "reward", "loss, nats", ("reward/loss", "training", BLUE), held_out="eval/loss"),
    ]
    present = [panel for panel in panels if panel is not None]
    if present:
        caption = "Share of preferences ordered as labelled, and the loss."
        drawn.append(Drawn("Reward model", caption, draw_panels(present, xlabel="step")))
    return drawn


def update_figures(record: RunRecord) -> list[Drawn]:
    """What the updates did to the responses, the policy and the critic."""
    figures = (
        (
            "Response length",
            "Mean length in tokens, and the share cut at the length limit.",
            [
                _panel(record, "ppo", "tokens", ("rollout/length", "training", BLUE), held_out="eval/length"),
                _panel(
                    record,
                    "ppo",
                    "share cut",
                    ("rollout/truncated", "training", BLUE),
                    held_out="eval/truncated",
                    floor=0.0,
                ),
            ],
        ),
        (
            "Variety",
            "Held-out answers: distinct word pairs, and answers repeated for another prompt.",
            [
                _panel(record, "ppo", "distinct pairs", ("eval/distinct_2", "held-out", GREEN), floor=0.0),
                _panel(record, "ppo", "share repeated", ("eval/repeated", "held-out", RED), floor=0.0),
            ],
        ),
        (
            "Watched measures",
            "Held-out answers beside their references, by measures that are not rewarded (ppo.watch).",
            [_panel(record, "ppo", told, (watch_metric(name), "held-out", VIOLET)) for name, told in WATCHED.items()],
        ),
        (
            "Judge",
            "Probability that the response shown first is better less a half, share of comparisons whose winner changes with "
            "the order, and share without a result.",
            [
                _panel(record, "ppo", "bias", ("reward/position_bias", "training", GOLD), level=(0.0, "none")),
                _panel(record, "ppo", "flipped", ("reward/position_flips", "training", GOLD), floor=0.0),
                _panel(record, "ppo", "unread", ("reward/comparisons_unread", "training", GREY), floor=0.0),
            ],
        ),
        (
            "Size of the updates",
            "Entropy of the policy, KL from the old to the new policy in one update, share of clipped tokens.",
            [
                _panel(record, "ppo", "entropy", ("policy/entropy", "training", BLUE)),
                _panel(record, "ppo", "approx. KL", ("policy/approx_kl", "training", BLUE)),
                _panel(record, "ppo", "clipped", ("policy/clip_fraction", "training", BLUE), floor=0.0),
            ],
        ),
        (
            "Critic",
            "Share of the variance of the returns that the critic explains, its loss, share of clipped values.",
            [
                _panel(record, "ppo", "explained", ("critic/explained_variance", "training", VIOLET)),
                _panel(record, "ppo", "loss", ("critic/loss", "training", VIOLET)),
                _panel(record, "ppo", "clipped", ("critic/clip_fraction", "training", VIOLET), floor=0.0),
            ],
        ),
    )
    return _drawn(figures)


def system_figures(record: RunRecord) -> list[Drawn]:
    """Engine against learner, time, speed and memory, workers."""
    drawn = []
    mismatch = _mismatch(record)
    if mismatch is not None:
        drawn.append(mismatch)
    phases = _phases(record)
    if phases is not None:
        drawn.append(phases)
    memory = record.columns("ppo", "step", "perf/memory_bytes")
    speed = (
        "Speed and memory",
        "Tokens trained per second of wall-clock, and the memory of all local processes.",
        [
            _panel(record, "ppo", "tokens/s", ("perf/tokens_per_second", "training", BLUE), floor=0.0),
            Panel("GiB", [Curve("memory", GREY, memory[:, 0], memory[:, 1] / 2**30)], floor=0.0)
            if len(memory)
            else None,
        ],
    )
    over_time = workers(record)
    return drawn + _drawn((speed,)) + ([] if over_time is None else [over_time])


def _drawn(figures: tuple[tuple[str, str, list[Panel | None]], ...]) -> list[Drawn]:
    found = []
    for title, caption, panels in figures:
        present = [panel for panel in panels if panel is not None]
        if present:
            found.append(Drawn(title, caption, draw_panels(present, xlabel="update", tall=len(present) > 2)))
    return found


def _panel(
    record: RunRecord,
    stage: str,
    ylabel: str,
    trained: tuple[str, str, str],
    *,
    held_out: str | None = None,
    floor: float | None = None,
    level: tuple[float, str] | None = None,
) -> Panel | None:
    """A metric (name, label, colour) over steps, with its held-out twin; None where both are absent."""
    name, label, colour = trained
    curves = []
    if record.has(stage, name):
        points = record.columns(stage, "step", name)
        curves.append(
            Curve(label, colour, points[:, 0], points[:, 1], "marks" if name.startswith("eval/") else "noisy")
        )
    if held_out is not None and record.has(stage, held_out):
        points = record.columns(stage, "step", held_out)
        curves.append(Curve("held-out", colour, points[:, 0], points[:, 1], "marks"))
    return Panel(ylabel, curves, floor=floor, level=level) if curves else None


def _against_kl(record: RunRecord) -> Drawn | None:
    words = record.words
    score, gold = start_spread(record, "score"), start_spread(record, "gold")
    if score is not None and gold is not None and not record.gold_is_score:
        curves = [*_by_kl(record, "score", BLUE, score), *_by_kl(record, "gold", GOLD, gold)]
        return Drawn(
            "Score and gold against the distance from the reference",
            f"Gain over {words.starting_policy}, in standard deviations of its held-out answers, so that the two can be "
            "compared. Dots: training batches, with their trend; large dots: held-out prompts. Gold that turns down "
            "while the score rises is over-optimisation.",
            draw_panels([Panel("gain, standard deviations", curves)], xlabel=_KL_AXIS, tall=True, root_scale=True),
        )
    score_label = "share right" if record.right_or_wrong else "score"
    panels = [
        Panel(label, curves)
        for label, what, colour in ((score_label, "score", BLUE), ("gold", "gold", GOLD))
        if not (what == "gold" and record.gold_is_score) and (curves := _by_kl(record, what, colour, (0.0, 1.0)))
    ]
    if not panels:
        return None
    judged = "Right answers" if record.right_or_wrong else "Score"
    return Drawn(
        f"{judged} against the distance from the reference"
        if len(panels) == 1
        else "Score and gold against the distance from the reference",
        "Dots: training batches, with their trend; large dots: held-out prompts.",
        draw_panels(panels, xlabel=_KL_AXIS, tall=True, root_scale=True),
    )


def _guarded(record: RunRecord) -> Drawn | None:
    """The judge's gain at each evaluation with the curve fitted through it, over the proxy's."""
    judged = record.columns("ppo", "guard/distance", "guard/judge", "eval/score")
    alpha, beta = (record.last("ppo", f"guard/{name}") for name in ("alpha", "beta"))
    if len(judged) < 3 or alpha is None or beta is None:
        return None
    distance, judge, proxy = judged[:, 0], judged[:, 1] - judged[0, 1], judged[:, 2] - judged[0, 2]
    fine = np.linspace(0.0, float(distance.max()), 100)[1:]
    fitted = fine * (alpha - beta * np.log(fine))
    peak = f", greatest at √KL = {np.exp(alpha / beta - 1.0):.1f}" if beta > 0 and alpha / beta < 5 else ""
    return Drawn(
        "The guard's judge" if record.gold_is_score else "The guard's judge, which is never rewarded",
        f"Gains over {record.words.starting_policy} on the held-out prompts, and R(d) = d (α − β log d) through the "
        f"judge's, d = √KL: "
        f"α = {alpha:.3f}, β = {beta:.3f}{peak}.",
        draw_panels(
            [
                Panel("score", [Curve("", BLUE, distance, proxy, "marks")]),
                Panel("judge", [Curve("held-out", GOLD, distance, judge, "marks"), Curve("fit", GOLD, fine, fitted)]),
            ],
            xlabel="√KL to the reference, √nats per response",
            tall=True,
        ),
    )


def _by_kl(record: RunRecord, what: str, colour: str, spread: tuple[float, float]) -> list[Curve]:
    label = f"score: {record.words.judge}" if what == "score" else "gold: true reward"
    mean, deviation = spread
    curves = []
    # The batch's scores are those of the policies that drew it, and so is this distance.
    training = record.columns("ppo", "kl/behaviour", f"reward/{what}")
    if len(training):
        x, y = np.maximum(training[:, 0], 0.0), (training[:, 1] - mean) / deviation
        curves.append(Curve(label, colour, x, y, "noisy"))
    held_out = record.columns("ppo", "eval/kl", f"eval/{what}")
    if len(held_out):
        x, y = np.maximum(held_out[:, 0], 0.0), (held_out[:, 1] - mean) / deviation
        curves.append(Curve("" if curves else label, colour, x, y, "marks"))
    return curves


def _over_updates(record: RunRecord) -> Drawn | None:
    best = record.summary.get("stages", {}).get("ppo", {}).get("gold_best")
    panels = [
        None
        if record.right_or_wrong  # which have a figure of their own
        else _panel(record, "ppo", "score", ("reward/score", "training", BLUE), held_out="eval/score"),
        _panel(
            record,
            "ppo",
            "gold",
            ("reward/gold", "training", GOLD),
            held_out="eval/gold",
            level=None if best is None else (best, "best attainable"),
        )
        if not record.gold_is_score
        else None,
        _panel(record, "ppo", "KL, nats", ("kl/behaviour", "training", VIOLET), held_out="eval/kl"),
    ]
    present = [panel for panel in panels if panel is not None]
    if not present:
        return None
    return Drawn(
        "Over the updates",
        ("" if record.right_or_wrong else f"Score by {record.words.the_judge}, gold where the task has it. ")
        + "KL to the reference per response. "
        f"Update 0 is {record.words.starting_policy}; held-out prompts are answered with the same sampling every time."
        + ("" if record.exported_step is None else f" The exported policy is that of update {record.exported_step}."),
        draw_panels(present, xlabel="update", tall=True),
    )


def _mismatch(record: RunRecord) -> Drawn | None:
    curves = []
    for name, colour in zip(("p50", "p95", "p99", "max"), SHADES, strict=True):
        points = record.columns("ppo", "step", f"mismatch/{name}")
        points = points[points[:, 1] > 0.0]
        if len(points):
            curves.append(Curve(name, colour, points[:, 0], points[:, 1]))
    if not curves:
        return None
    caption = "|engine - learner| log-prob of the sampled tokens under the same weights, quantiles; nats, log scale."
    return Drawn("Engine against learner", caption, draw_panels([Panel("nats", curves, log=True)], xlabel="update"))


def _phases(record: RunRecord) -> Drawn | None:
    rows = [row for row in record.stages.get("ppo", []) if row.get("time/step") is not None]
    if not rows:
        return None
    table = np.array(
        [[row["step"], row["time/step"], *(row.get(name) or 0.0 for name, _, _ in _PHASES)] for row in rows]
    )
    if len(table) > _BARS:
        table = np.array([group.mean(axis=0) for group in np.array_split(table, _BARS)])
    layers = [(label, colour, table[:, 2 + i]) for i, (_, label, colour) in enumerate(_PHASES) if table[:, 2 + i].any()]
    rest = np.maximum(table[:, 1] - table[:, 2:].sum(axis=1), 0.0)
    if rest.any():
        layers.append(("evaluation, other", GREY, rest))
    caption = "Seconds of each update by phase; phases of an asynchronous run overlap."
    return Drawn("Where the time goes", caption, draw_stack(table[:, 0], layers, xlabel="update", ylabel="seconds"))
