"""The texts that rewards and people see of a response, by a real scorer, and what each trajectory is asked for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reward_lab import INIT
from tokenizers_lab import CHATML, byte_level, metaspace
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from rayrlhf.config import HttpReward
from rayrlhf.config.data import Reading
from rayrlhf.data.exchange import encode_prompt
from rayrlhf.data.schema import PromptRow, PromptText
from rayrlhf.experience.summary import sample_rows
from rayrlhf.models.export import export_model
from rayrlhf.models.load import make_policy, make_reward_model
from rayrlhf.reward.http import HttpTerm
from rayrlhf.reward.model import ModelTerm, RewardModel
from rayrlhf.reward.scorer import TrajectoryScorer, WeightedTerm
from rayrlhf.reward.stats import RewardStats, Scale
from rayrlhf.reward.terms import ScoreRequest, TermScore
from rayrlhf.types import SampleId, Trajectory, VersionSpan

PROMPT = "what is two plus two ?"


class Length:
    """A term that keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.requests: list[ScoreRequest] = []

    def score(self, requests: Sequence[ScoreRequest]) -> list[TermScore]:
        self.asked.append([request.name for request in requests])
        self.requests += requests
        return [TermScore(value=float(len(request.response))) for request in requests]


def drawn(
    tokenizer: PreTrainedTokenizerFast, prompt: PromptText, tokens: list[str], *, stage: str = "ppo", number: int = 0
) -> Trajectory:
    known = tokenizer.get_vocab()
    parts = [[known[t]] if t in known else tokenizer(t, add_special_tokens=False).input_ids for t in tokens]
    ids = np.concatenate(parts).astype(np.int32)
    return Trajectory(
        sample_id=SampleId(stage, 3, number, 0),
        prompt_ids=encode_prompt(tokenizer, prompt),
        response_ids=ids,
        rollout_logprobs=np.full(len(ids), -1.0, dtype=np.float32),
        finish="eos" if tokens[-1] == tokenizer.eos_token else "length",
        version_spans=(VersionSpan(version=3, start=0, end=len(ids)),),
    )


def scorer(
    root: Path, tokenizer: PreTrainedTokenizerFast, term: Any, rows: list[PromptRow], judge: Any = None
) -> TrajectoryScorer:
    if not (root / "policy").exists():
        export_model(make_policy(INIT, tokenizer, seed=0), tokenizer, root / "policy")
    return TrajectoryScorer(
        [WeightedTerm(name="length", term=term, weight=1.0)],
        tokenizer=tokenizer,
        reference_dir=str(root / "policy"),
        prompt_of=lambda sample_id: rows[sample_id.prompt_id],
        micro_batch_tokens=4096,
        temperature=1.0,
        device="cpu",
        dtype="float32",
        gold=None,
        judge=judge,
    )


@pytest.mark.parametrize("scheme", ["first", "always", "normalizer"])
def test_rewards_of_a_tokenizer_that_marks_spaces_see_text_that_goes_on_from_the_prompt(
    tmp_path: Path, scheme: Any
) -> None:
    tokenizer, term = metaspace(scheme), Length()
    one = drawn(tokenizer, PROMPT, ["▁it", "▁is", "▁four", "▁.", "</s>"])
    (scored,) = (
        scorer(tmp_path, tokenizer, term, [PromptRow(prompt=PROMPT, reference="four")]).score([one]).trajectories
    )
    assert (term.requests[0].prompt, term.requests[0].response) == (PROMPT, " it is four .")
    sent = HttpTerm(HttpReward(kind="http", urls=["http://127.0.0.1:1"], api="openrlhf"))._body(term.requests)
    assert sent["query"] == ["what is two plus two ? it is four ."]
    (row,) = sample_rows("ppo", 1, [scored])
    assert row["prompt"].replace("<s> ", "<s>") == "<s>what is two plus two ?"
    assert (row["response"], row["reference"]) == (" it is four .", "four")


def test_special_tokens_of_a_response_reach_rewards_and_samples(tmp_path: Path) -> None:
    tokenizer, term = byte_level(template=CHATML), Length()
    prompt = [{"role": "user", "content": PROMPT}]
    tokens = ["<think>", "it", "</think>", "<answer>", "four", "</answer>"]
    cut, ended = drawn(tokenizer, prompt, tokens), drawn(tokenizer, prompt, [*tokens, "<|endoftext|>"], number=1)
    rows = [PromptRow(prompt=prompt), PromptRow(prompt=prompt)]
    found = scorer(tmp_path, tokenizer, term, rows).score([cut, ended]).trajectories
    assert [request.response for request in term.requests] == ["<think>it</think><answer>four</answer>"] * 2
    written = sample_rows("ppo", 1, found)
    assert {row["response"] for row in written} == {"<think>it</think><answer>four</answer>"}
    assert {row["prompt"] for row in written} == {f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"}


def test_a_reward_model_with_another_tokenizer_reads_the_words_apart(tmp_path: Path) -> None:
    policy, own = metaspace("first"), byte_level()
    export_model(make_policy(INIT, own, seed=1), own, tmp_path / "base")
    export_model(make_reward_model(str(tmp_path / "base"), own, seed=2), own, tmp_path / "reward")
    model = RewardModel(str(tmp_path / "reward"), device="cpu", dtype="float32", micro_batch_tokens=4096)
    term = ModelTerm(model, combination="mean", penalty=0.0, policy_tokenizer=policy, standardize=False)
    one = drawn(policy, PROMPT, ["▁it", "▁is", "▁four", "▁.", "</s>"])
    (scored,) = scorer(tmp_path, policy, term, [PromptRow(prompt=PROMPT)]).score([one]).trajectories
    ids = [*own("what is two plus two ? it is four .").input_ids, own.eos_token_id]
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward", dtype=torch.float32)
    with torch.no_grad():
        assert scored.score == pytest.approx(float(stock(torch.tensor([ids])).logits[0, 0]), abs=1e-5)


@pytest.mark.parametrize("special", ["split", "encode"])
def test_a_reward_model_reads_control_strings_as_it_was_trained_to(tmp_path: Path, special: Any) -> None:
    own = byte_level()
    export_model(make_policy(INIT, own, seed=1), own, tmp_path / "base")
    export_model(make_reward_model(str(tmp_path / "base"), own, seed=2), own, tmp_path / "reward")
    assert (
        RewardModel(str(tmp_path / "reward"), device="cpu", dtype="float32", micro_batch_tokens=64).reading == Reading()
    )
    scale = Scale(mean=0.0, std=1.0, length_slope=0.0)
    RewardStats(
        scale=scale,
        members=[scale],
        temperature=1.0,
        max_length=64,
        template="",
        probes=[],
        reading=Reading(special_tokens_in_text=special),
    ).save(tmp_path / "reward")
    model = RewardModel(str(tmp_path / "reward"), device="cpu", dtype="float32", micro_batch_tokens=64)
    ids = model.encode("two", " four <answer>")[0].tolist()
    assert (own.convert_tokens_to_ids("<answer>") in ids) == (special == "encode")


def test_evaluations_are_judged_and_training_is_not_whatever_comes_together(tmp_path: Path) -> None:
    tokenizer, judge = byte_level(), Length()
    rows = [PromptRow(prompt=PROMPT) for _ in range(4)]
    texts = [["it"], ["it", "four"], ["four"], ["it", "it", "it"]]
    stages = ["ppo", "eval", "ppo", "eval"]
    given = [
        drawn(tokenizer, PROMPT, tokens, stage=stage, number=number)
        for number, (tokens, stage) in enumerate(zip(texts, stages, strict=True))
    ]
    made = scorer(tmp_path, tokenizer, Length(), rows, judge)
    together = made.score(given).trajectories
    assert [item.judge for item in together] == [None, 6.0, None, 6.0]
    assert judge.asked == [["eval-3-1-0", "eval-3-3-0"]]
    alone = [made.score([one]).trajectories[0] for one in given]
    backwards = made.score(given[::-1]).trajectories[::-1]
    for a, b, c in zip(together, alone, backwards, strict=True):
        assert (
            (a.score, a.judge, a.response_text)
            == (b.score, b.judge, b.response_text)
            == (c.score, c.judge, c.response_text)
        )
        np.testing.assert_allclose(a.ref_logprobs, b.ref_logprobs, atol=1e-5)


def test_two_samples_of_one_name_have_an_answer_each(tmp_path: Path) -> None:
    """Held-out prompts are answered under the same names at every evaluation."""
    tokenizer = byte_level()
    made = scorer(tmp_path, tokenizer, Length(), [PromptRow(prompt=PROMPT)], Length())
    first, second = (drawn(tokenizer, PROMPT, tokens, stage="eval") for tokens in (["it"], ["it", "four"]))
    answers = made.score_each([first, second])
    assert [answer.score for answer in answers] == [2.0, 6.0]  # type: ignore[union-attr]
    assert [answer.trajectory is t for answer, t in zip(answers, (first, second), strict=True)] == [True, True]  # type: ignore[union-attr]


def test_a_prompt_that_a_reward_models_template_refuses_has_no_score_and_says_why(tmp_path: Path) -> None:
    own = byte_level(template=CHATML)
    export_model(make_policy(INIT, own, seed=1), own, tmp_path / "base")
    own.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    )
    export_model(make_reward_model(str(tmp_path / "base"), own, seed=2), own, tmp_path / "reward")
    model = RewardModel(str(tmp_path / "reward"), device="cpu", dtype="float32", micro_batch_tokens=64)
    term = ModelTerm(model, combination="mean", penalty=0.0, policy_tokenizer=own, standardize=False)
    turns = [{"role": "system", "content": "two"}, {"role": "user", "content": "four"}]
    requests = [
        ScoreRequest(name=name, prompt=prompt, response="it", token_ids=np.zeros(1, dtype=np.int32), finished=True)
        for name, prompt in (("s0", turns[1:]), ("s1", turns), ("s2", turns[1:]))
    ]
    first, refused, second = term.score(requests)
    assert refused.value is None
    assert refused.reason.endswith(
        "cannot read sample s1: the chat template refuses it: no system role (data.roles=merge joins turns that it does not "
        "take)"
    )
    alone = float(model.score([model.encode(turns[1:], "it")])[0, 0])
    assert [first.value, second.value] == pytest.approx([alone, alone])
    assert [score.value for score in term.score(requests[1:2])] == [None]
