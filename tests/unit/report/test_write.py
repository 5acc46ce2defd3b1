import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from report_lab import PROMPTS, SILENT, write_facts, write_ppo, write_supervised

from rayrlhf.report.data import read_run
from rayrlhf.report.drawing import Curve, Panel, draw_panels, running_mean
from rayrlhf.report.write import write_report
from rayrlhf.telemetry.sinks import MetricsWriter

VOID = {"meta", "br", "hr", "img", "input", "link"}
ATTACK = "<script>alert('x')</script><img src=http://example.org/x.png> $title & co"


class Page(HTMLParser):
    """A page that is well-formed: every element closed, in order."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.loads, self.titles, self.text, self.ids = [], [], [], [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))
        self.words = " ".join(" ".join(self.text).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [
            value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset", "data", "action")
        ]
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if "style" in self.open:
            assert "@import" not in data
            assert "url(" not in data
            return
        self.text.append(data)
        if self.open and self.open[-1] in ("h2", "h3"):
            self.titles.append(data)


def page_of(run_dir):
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    page = Page(path)
    assert all(load.startswith("#") for load in page.loads), page.loads
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    return page


def full_run(run_dir, response="Welcome."):
    write_supervised(run_dir)
    write_ppo(run_dir, [(0, -0.5, 0.40, 0.0), (10, 0.6, 0.6, 2.0), (20, 1.5, 0.70, 4.2)], response=response)
    write_facts(run_dir)
    (run_dir / "config.yaml").write_text("name: inn\nnote: '<b>bold</b>'\n")


def test_a_full_run_shows_everything(tmp_path):
    full_run(tmp_path)
    page = page_of(tmp_path)
    for title in (
        "Score and gold against the distance from the reference",
        "Over the updates",
        "Before and after, side by side",
        "Supervised fine-tuning",
        "Reward model",
        "Variety",
        "Engine against learner",
        "Where the time goes",
        "Every sample once: the ledger",
    ):
        assert title in page.titles
    for fact in (
        "inn & <co>",
        "−0.50 → 1.50",
        "0.40 → 0.70",
        "60% of the gap to the best, 0.90",
        "4.20",
        "85.7%",
        "1.234",
    ):
        assert fact in page.words
    for fact in (
        "2,560",
        "0 lost, 0 duplicated",
        "5m05s",
        "5.0 GiB",
        "seed 7",
        "Gold followed the score.",
        "name: inn",
    ):
        assert fact in page.words
    assert "Critic" not in page.titles  # its only metric was never a number
    assert page.source.count("<svg") == page.source.count("</svg>") == page.tags.count("figure") >= 8


def test_texts_are_shown_and_never_run(tmp_path):
    full_run(tmp_path, response=ATTACK)
    page = page_of(tmp_path)
    assert page.words.count(ATTACK) == 2 * PROMPTS
    assert "note: '<b>bold</b>'" in page.words


def test_pairs_are_answers_to_the_same_prompt_before_and_after(tmp_path):
    writer = MetricsWriter(tmp_path, SILENT)
    for step, order in ((0, (0, 1, 2)), (10, (1, 0, 2)), (20, (2, 1, 0))):
        rows = [{"stage": "eval", "step": step, "sample_id": f"eval-0-{i}-0", "prompt": f"prompt {i}"} for i in order]
        writer.samples([row | {"response": f"answer {row['prompt'][-1]} at {step}", "score": 0.0} for row in rows])
        writer.log("ppo", step, {"eval/score": 0.0})
    writer.close()
    words = page_of(tmp_path).words
    for i in range(3):
        assert re.search(rf"prompt {i} answer {i} at 0 score 0.00 answer {i} at 20 score 0.00", words)
    assert "at 10" not in words


@pytest.mark.parametrize("stages", [("sft",), ("reward",)])
def test_one_supervised_stage_alone(tmp_path, stages):
    write_supervised(tmp_path, stages)
    page = page_of(tmp_path)
    assert page.tags.count("figure") == 1
    assert "Score" not in page.words
    assert "Before and after, side by side" not in page.titles


def test_ppo_without_gold_summary_or_samples(tmp_path):
    write_ppo(tmp_path, [(0, -0.5, None, 0.0), (5, 1.0, None, 2.0)], samples=False)
    page = page_of(tmp_path)
    assert "Score against the distance from the reference" in page.titles
    assert "−0.50 → 1.00" in page.words
    assert "Gold, SFT" not in page.words


def test_a_judges_leaning_to_one_place_is_drawn_where_there_is_one(tmp_path):
    write_ppo(tmp_path, [(0, 0.0, None, 0.0), (2, 0.5, None, 1.0)])
    assert "Judge" not in page_of(tmp_path).titles
    writer = MetricsWriter(tmp_path, SILENT, last_steps={"ppo": 2})
    for step in (3, 4):
        figures = {"position_bias": 0.1 * step, "position_flips": 0.2, "comparisons_unread": 0.0}
        writer.log("ppo", step, {f"reward/{name}": value for name, value in figures.items()})
    writer.close()
    page = page_of(tmp_path)
    assert "Judge" in page.titles
    assert "share of comparisons whose winner changes with the order" in page.words


def test_gold_without_samples_is_drawn_in_its_own_units(tmp_path):
    write_ppo(tmp_path, [(0, -0.5, 0.4, 0.0), (5, 1.0, 0.6, 2.0)], samples=False)
    page = page_of(tmp_path)
    assert "Score and gold against the distance from the reference" in page.titles
    assert "standard deviations" not in page.words


def test_an_empty_folder_and_a_run_being_written(tmp_path):
    assert "nothing logged yet" in page_of(tmp_path).words
    write_supervised(tmp_path, ("sft",), steps=3)
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write('{"stage": "sft", "step": 4, "note": "größ'.encode()[:-1])
    assert "SFT, 3 steps" in page_of(tmp_path).words


def test_a_broken_off_run_says_why_until_it_goes_on(tmp_path):
    write_supervised(tmp_path, ("sft",), steps=3)
    newest = read_run(tmp_path).stages["sft"][-1]["time"]
    failure = {"time": newest + 1, "error": "WorkerError", "message": "Rollout worker 1 <died>."}
    (tmp_path / "failure.json").write_text(json.dumps(failure))
    assert "This run broke off. WorkerError: Rollout worker 1 <died>." in page_of(tmp_path).words
    (tmp_path / "failure.json").write_text(json.dumps(failure | {"time": newest - 1}))
    assert "broke off" not in page_of(tmp_path).words


def test_a_long_run_makes_a_small_page(tmp_path):
    rows = [
        {
            "stage": "ppo",
            "step": s,
            "time": 1.0,
            "reward/score": s / 1e4,
            "rollout/length_max": float(s),
            "kl/reference": 1.0,
        }
        for s in range(20_000)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = read_run(tmp_path).columns("ppo", "step", "reward/score", "rollout/length_max")
    assert table.shape == (300, 3)
    assert np.allclose(table[:, 1], table[:, 0] / 1e4)
    assert table[-1, 2] == 19_999  # a maximum stays one
    assert len(page_of(tmp_path).source) < 500_000


def test_running_mean_of_a_line_is_the_line():
    x = np.arange(40.0)
    assert np.allclose(running_mean(3 * x + 2), 3 * running_mean(x) + 2)
    assert running_mean(x)[20] == 20.0
    assert np.allclose(running_mean(np.full(9, 5.0)), 5.0)


def test_figures_follow_the_style_sheet_and_draw_the_data():
    curve = Curve("loss", "#2a6fdb", np.array([0.0, 1.0, 4.0]), np.array([1.0, 2.0, 3.0]))
    plain = draw_panels([Panel("nats", [curve])], xlabel="step")
    assert plain == draw_panels([Panel("nats", [curve])], xlabel="step")  # same data, same page
    assert "#2a6fdb" not in plain
    assert "var(--blue)" in plain
    assert "http" not in plain

    def drawn_x(svg):
        path = re.search(r'<path d="([^"]*)"[^>]*stroke: var\(--blue\)', svg).group(1)
        return [float(x) for x in re.findall(r"[ML] ([\d.]+)", path)]

    start, middle, end = drawn_x(plain)
    assert (middle - start) / (end - start) == pytest.approx(1 / 4, abs=1e-3)
    start, middle, end = drawn_x(draw_panels([Panel("nats", [curve])], xlabel="step", root_scale=True))
    assert (middle - start) / (end - start) == pytest.approx(1 / 2, abs=1e-3)
