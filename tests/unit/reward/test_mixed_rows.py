"""Runs that mix tasks: rows name their terms, groups are told apart, from the files to the scores."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reward_lab import INIT, packaged, tokenizer

from rayrlhf.config import RunConfig
from rayrlhf.data.dataset import load_prompts
from rayrlhf.data.exchange import encode_exchange
from rayrlhf.experience.summary import evaluation_metrics, sample_rows
from rayrlhf.learner.ppo_batch import pass_figures
from rayrlhf.models.export import export_model
from rayrlhf.models.load import make_policy
from rayrlhf.reward.build import build_scorer
from rayrlhf.reward.scorer import TrajectoryScorer
from rayrlhf.types import SampleId, ScoredTrajectory, Trajectory, VersionSpan

MODULE = """
import json, pathlib

def _note(name, *what):
    with open(pathlib.Path(__file__).with_name(name), "a") as file:
        print(json.dumps(what), file=file)

def right(prompt, response, reference):
    assert prompt.startswith("sum") or prompt.startswith("both") or prompt.startswith("all"), prompt
    return float("bread" in response)

async def longest(prompt, responses, reference):
    _note("groups", prompt, responses)
    if responses[0] == " no one":
        return None
    return [float(len(response) == max(map(len, responses))) for response in responses]
"""
ROWS: list[dict[str, Any]] = [
    {"prompt": "sum the inn", "rewards": "right", "reference": "x"},
    {"prompt": "tell the fire", "rewards": ["longest"]},
    {"prompt": "both the ale", "rewards": ["longest", "right"]},
    {"prompt": "all the room"},
    {"prompt": "style the cloak", "rewards": "style"},
]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    (tmp_path / "mixed_rewards.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    export_model(make_policy(INIT, tokenizer(), seed=0), tokenizer(), tmp_path / "policy")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    terms = [
        {"kind": "function", "target": "mixed_rewards:right", "name": "right", "weight": 2.0},
        {"kind": "function", "target": "mixed_rewards:longest", "name": "longest", "per": "group", "timeout_s": 20.0},
        {"kind": "model", "path": str(packaged(tmp_path / "judge")), "name": "style", "weight": 0.5},
    ]
    return RunConfig.model_validate(
        {
            "stages": ["ppo"],
            "model": {"path": str(tmp_path / "policy"), "max_length": 128},
            "data": {
                "root": str(tmp_path),
                "cache": str(tmp_path / "cache"),
                "prompts": {"path": "prompts.jsonl", "format": "prompts"},
                "heldout_fraction": 1e-9,
            },
            "ppo": {"rewards": terms},
            "scoring": {"dtype": "float32"},
        }
    )


def no_engine(path: str, *, max_length: int, kv_cache_gib: float) -> Any:
    raise AssertionError("no judge is among the terms")


class Lab:
    """A scorer, and samples of the rows by the first word of their prompts."""

    def __init__(self, config: RunConfig) -> None:
        self.scorer: TrajectoryScorer = build_scorer(
            config, reward_model_dir=None, reference_dir=str(config.model.path), device="cpu", engine=no_engine
        )
        self.ids = {str(row.prompt).split()[0]: number for number, row in enumerate(load_prompts(config).train)}
        self.prompts = {str(row["prompt"]).split()[0]: row["prompt"] for row in ROWS}
        self.calls = Path(config.data.root) / "groups"

    def sample(self, word: str, response: str, *, k: int = 0, step: int = 0) -> Trajectory:
        prompt, (ids,) = encode_exchange(tokenizer(), self.prompts[word], [response])
        return Trajectory(
            sample_id=SampleId("ppo", step, self.ids[word], k),
            prompt_ids=prompt,
            response_ids=ids,
            rollout_logprobs=np.full(len(ids), -1.0, dtype=np.float32),
            finish="eos",
            version_spans=(VersionSpan(version=0, start=0, end=len(ids)),),
        )

    def group(self, word: str, *responses: str, step: int = 0, start: int = 0) -> list[Trajectory]:
        return [self.sample(word, text, k=k, step=step) for k, text in enumerate(responses, start)]

    def groups_asked(self) -> list[list[Any]]:
        asked = [json.loads(line) for line in self.calls.read_text().splitlines()]
        self.calls.unlink()
        return asked


@pytest.fixture
def lab(config: RunConfig) -> Lab:
    return Lab(config)


def scored(answers: list[Any]) -> list[ScoredTrajectory]:
    assert all(isinstance(answer, ScoredTrajectory) for answer in answers), answers
    return answers


def test_only_a_row_s_own_terms_score_it_and_count(lab: Lab) -> None:
    groups = [lab.group(word, " bread", " no room tonight") for word in ("sum", "tell", "both", "all", "style")]
    answers = [scored(group) for group in lab.scorer.score_groups(groups)]
    terms = [[set(item.terms) for item in group] for group in answers]
    assert terms == [
        [{"right"}] * 2,
        [{"longest"}] * 2,
        [{"right", "longest"}] * 2,
        [{"right", "longest", "style"}] * 2,
        [{"style"}] * 2,
    ]
    assert [item.score for item in answers[0]] == [2.0, 0.0]
    assert [item.score for item in answers[1]] == [0.0, 1.0]
    assert [item.score for item in answers[2]] == [2.0, 1.0]
    style = [item.terms["style"] for item in answers[4]]
    assert [item.score for item in answers[4]] == pytest.approx([0.5 * value for value in style])
    assert answers[3][0].score == pytest.approx(2.0 + 0.5 * answers[3][0].terms["style"])
    assert [item.verdict for item in answers[0]] == [1.0, 0.0]  # as its one term gave it, before the weight
    assert [item.verdict for item in answers[2]] == [2.0, 1.0]
    assert [row["terms"] for row in sample_rows("ppo", 1, answers[0])] == [{"right": 1.0}, {"right": 0.0}]


def test_pass_rates_are_of_batches_where_every_score_is_right_or_wrong(lab: Lab) -> None:
    verified = scored(lab.scorer.score_each(lab.group("sum", " bread", " no") + lab.group("tell", " ale", " no room")))
    assert pass_figures(verified, k=2)["reward/pass_rate"] == 0.5
    assert evaluation_metrics(verified)["eval/pass_rate"] == 0.5
    graded = verified + scored(lab.scorer.score_each(lab.group("style", " ale", " the cloak")))
    assert pass_figures(graded, k=2) == {}
    assert "eval/pass_rate" not in evaluation_metrics(graded)


def test_groups_are_those_of_a_prompt_however_they_are_scored_together(lab: Lab) -> None:
    first = lab.group("tell", " ale", " no room")
    later = lab.group("tell", " the fire", " fire", step=1)
    other = lab.group("both", " bread", " ale")
    together = lab.scorer.score_groups([first, other, later])
    asked = lab.groups_asked()
    prompt, both = lab.prompts["tell"], lab.prompts["both"]
    assert sorted(asked) == sorted(
        [[prompt, [" ale", " no room"]], [both, [" bread", " ale"]], [prompt, [" the fire", " fire"]]]
    )
    alone = [lab.scorer.score_groups([group])[0] for group in (first, other, later)]
    assert [[item.score for item in scored(group)] for group in together] == [
        [item.score for item in scored(group)] for group in alone
    ]
    assert sorted(lab.groups_asked()) == sorted(asked)


def test_a_unit_of_several_prompts_with_one_response_each_is_so_many_groups_of_one(lab: Lab) -> None:
    chunk = [
        lab.sample("tell", " ale"),
        lab.sample("sum", " bread"),
        lab.sample("all", " no"),
        lab.sample("both", " inn"),
    ]
    (answers,) = lab.scorer.score_groups([chunk])
    assert [item.terms.get("longest") for item in scored(answers)] == [1.0, None, 1.0, 1.0]
    assert sorted(responses for _, responses in lab.groups_asked()) == [[" ale"], [" inn"], [" no"]]


def test_a_prompt_drawn_twice_in_a_step_is_two_groups_whether_they_come_together_or_not(lab: Lab) -> None:
    groups = [lab.group("tell", " ale", " no"), lab.group("tell", " no room tonight", " inn", start=2)]
    together = [[item.score for item in scored(group)] for group in lab.scorer.score_groups(groups)]
    assert together == [[1.0, 0.0], [1.0, 0.0]]
    apart = [[item.score for item in scored(lab.scorer.score_groups([group])[0])] for group in groups]
    assert apart == together


def test_a_term_that_no_row_of_a_batch_names_is_not_asked(lab: Lab) -> None:
    lab.scorer.score_each(lab.group("sum", " bread", " ale"))
    assert not lab.calls.exists()


def test_a_missing_score_is_missing_only_where_its_term_counts(lab: Lab) -> None:
    found = lab.scorer.score(lab.group("sum", " no one", " inn") + lab.group("tell", " no one", " ale"))
    assert [item.trajectory.sample_id.prompt_id for item in found.trajectories] == [lab.ids["sum"]] * 2
    assert [reason for _, reason in found.missing] == [
        f"mixed_rewards:longest gave None, not a list of 2 scores, for sample ppo-0-{lab.ids['tell']}-{k} "
        f"(prompt 'tell the fire')"
        for k in range(2)
    ]
