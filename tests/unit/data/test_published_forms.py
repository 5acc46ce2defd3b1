"""Rows as data sets publish them: what each is recognised as, and the record it becomes."""

import json
from pathlib import Path
from typing import Any

import pytest
from data_lab import config

from rayrlhf.config import DataConfig, SourceConfig
from rayrlhf.data.dataset import describe_preferences, load_demonstrations, load_preferences, load_prompts
from rayrlhf.data.schema import Preference, PromptText
from rayrlhf.errors import DataError


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


ASKED = [user("Tea?")]
BOTH = ("Yes", "No")

PAIRS: dict[str, tuple[dict[str, Any], str, PromptText]] = {
    "TRL, text": ({"prompt": "Tea?", "chosen": "Yes", "rejected": "No"}, "chosen and rejected beside a prompt", "Tea?"),
    "TRL, messages": (
        {"prompt": ASKED, "chosen": [said("Yes")], "rejected": [said("No")]},
        "chosen and rejected messages beside a prompt",
        ASKED,
    ),
    "TRL, implicit": (
        {"chosen": [*ASKED, said("Yes")], "rejected": [*ASKED, said("No")]},
        "chosen and rejected conversations",
        ASKED,
    ),
    "ultrafeedback_binarized": (
        {
            "prompt": "Tea?",
            "prompt_id": "a1",
            "chosen": [*ASKED, said("Yes")],
            "rejected": [*ASKED, said("No")],
            "messages": [*ASKED, said("Yes")],
            "score_chosen": 8.0,
            "score_rejected": 4.5,
        },
        "chosen and rejected conversations beside their prompt",
        ASKED,
    ),
    "the same with a system message inside": (
        {
            "prompt": "Tea?",
            "chosen": [system("Be brief."), *ASKED, said("Yes")],
            "rejected": [system("Be brief."), *ASKED, said("No")],
        },
        "chosen and rejected conversations beside their prompt",
        [system("Be brief."), *ASKED],
    ),
    "orca pairs": (
        {"system": "Be brief.", "question": "Tea?", "chosen": "Yes", "rejected": "No"},
        "chosen and rejected beside a prompt of messages",
        [system("Be brief."), *ASKED],
    ),
    "orca pairs, no system text": (
        {"system": "", "question": "Tea?", "chosen": "Yes", "rejected": "No"},
        "chosen and rejected beside a prompt of messages",
        ASKED,
    ),
    "Alpaca pairs": (
        {"instruction": "Answer.", "input": "Tea?", "chosen": "Yes", "rejected": "No"},
        "chosen and rejected beside a prompt of messages",
        [user("Answer.\n\nTea?")],
    ),
    "with history": (
        {"prompt": "Tea?", "history": [["Hi", "Hello"]], "chosen": "Yes", "rejected": "No"},
        "chosen and rejected beside a prompt of messages",
        [user("Hi"), said("Hello"), *ASKED],
    ),
    "ShareGPT pairs": (
        {
            "conversations": [{"from": "human", "value": "Tea?"}],
            "chosen": {"from": "gpt", "value": "Yes"},
            "rejected": {"from": "gpt", "value": "No"},
        },
        "chosen and rejected messages beside a prompt",
        ASKED,
    ),
    "HH": (
        {"chosen": "\n\nHuman: Tea?\n\nAssistant:Yes", "rejected": "\n\nHuman: Tea?\n\nAssistant:No"},
        "chosen and rejected dialogues (HH)",
        "\n\nHuman: Tea?\n\nAssistant:",
    ),
    "OpenRLHF, the prompt in front of both": (
        {
            "prompt": "Human: Would you like tea?\nAssistant: ",
            "chosen": "Human: Would you like tea?\nAssistant: Yes",
            "rejected": "Human: Would you like tea?\nAssistant: No",
        },
        "chosen and rejected beside a prompt that both begin with",
        "Human: Would you like tea?\nAssistant: ",
    ),
    "texts alone": ({"chosen": "Yes", "rejected": "No"}, "chosen and rejected texts without a prompt", ""),
    "rewardbench 1": (
        {
            "prompt": "Tea?",
            "chosen": "Yes",
            "rejected": "No",
            "subset": "alpacaeval-easy",
            "chosen_model": "a",
            "id": 3,
        },
        "chosen and rejected beside a prompt",
        "Tea?",
    ),
    "HelpSteer3": (
        {
            "context": ASKED,
            "response1": "No",
            "response2": "Yes",
            "overall_preference": 2,
            "domain": "general",
            "individual_preference": [{"score": 2, "reasoning": "It is kinder."}],
        },
        "two responses and a verdict (HelpSteer3)",
        ASKED,
    ),
    "HelpSteer2 preferences": (
        {"prompt": "Tea?", "response_1": "Yes", "response_2": "No", "preference_strength": -1, "split": "train"},
        "two responses and a verdict (HelpSteer2 preferences)",
        "Tea?",
    ),
    "WebGPT": (
        {
            "question": {"full_text": "Tea?", "id": "x"},
            "answer_0": "No",
            "answer_1": "Yes",
            "score_0": -1.0,
            "score_1": 1.0,
        },
        "two responses and a verdict (WebGPT comparisons)",
        ASKED,
    ),
    "AlpacaFarm": (
        {"instruction": "Tea?", "input": "", "output_1": "No", "output_2": "Yes", "preference": 2},
        "two responses and a verdict (AlpacaFarm)",
        ASKED,
    ),
    "SHP": (
        {"history": "Tea?", "human_ref_A": "Yes", "human_ref_B": "No", "labels": 1, "score_A": 9},
        "two responses and a verdict (SHP)",
        "Tea?",
    ),
    "PKU-SafeRLHF": (
        {"prompt": "Tea?", "response_0": "No", "response_1": "Yes", "better_response_id": 1},
        "two responses and a verdict (PKU-SafeRLHF)",
        "Tea?",
    ),
    "arena": (
        {"conversation_a": [*ASKED, said("No")], "conversation_b": [*ASKED, said("Yes")], "winner": "model_b"},
        "two responses and a verdict (arena)",
        ASKED,
    ),
    "NeMo": (
        {
            "context": ASKED,
            "completions": [{"rank": 0, "completion": [said("Yes")]}, {"rank": 1, "completion": [said("No")]}],
        },
        "completions with ranks (NeMo)",
        ASKED,
    ),
    "Nectar": (
        {"prompt": "Tea?", "answers": [{"answer": "No", "rank": 4, "model": "a"}, {"answer": "Yes", "rank": 1}]},
        "answers with ranks (Nectar)",
        "Tea?",
    ),
    "UltraFeedback": (
        {
            "instruction": "Tea?",
            "completions": [{"response": "No", "overall_score": 3.0}, {"response": "Yes", "overall_score": 8.5}],
        },
        "completions with overall_score (UltraFeedback)",
        ASKED,
    ),
    "ratings beside responses": (
        {"prompt": "Tea?", "responses": ["No", "Yes"], "ratings": [1, 5]},
        "responses with ratings",
        "Tea?",
    ),
    "rewardbench 2": (
        {"prompt": "Tea?", "chosen": ["Yes"], "rejected": ["No"], "num_correct": 1, "subset": "Ties"},
        "lists of chosen and rejected texts (rewardbench 2)",
        "Tea?",
    ),
    "content in parts": (
        {
            "chosen": [{"role": "user", "content": [{"type": "text", "text": "Tea?"}]}, said("Yes")],
            "rejected": [*ASKED, said("No")],
        },
        "chosen and rejected conversations",
        ASKED,
    ),
}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


def described(tmp_path: Path, rows: list[dict[str, Any]], **source: Any) -> tuple[list[Preference], str]:
    name = write(tmp_path / "p.jsonl", rows)
    settings = SourceConfig(path=name, format="preferences", **source)
    records, told = describe_preferences(settings, DataConfig(root=str(tmp_path)), seed=0)
    return records, " ".join(told)


@pytest.mark.parametrize("name", PAIRS)
def test_a_published_pair_is_recognised_and_read(tmp_path: Path, name: str) -> None:
    row, form, prompt = PAIRS[name]
    (found,), told = described(tmp_path, [row])
    best, worst = found.ranking[0][0], found.ranking[-1][0]
    assert (found.responses[best].text, found.responses[worst].text) == BOTH
    assert found.prompt == prompt
    assert f"p.jsonl: 1 rows, {form}. Columns used: " in told


def test_what_is_not_used_is_told(tmp_path: Path) -> None:
    _, told = described(tmp_path, [PAIRS["ultrafeedback_binarized"][0]])
    assert "Columns used: chosen, prompt, rejected; ignored: messages, prompt_id, score_chosen, score_rejected." in told


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"query": "Tea?"}, "the field prompt is missing; there is query: set prompt_key"),
        ({"post": "I like tea."}, "the field prompt is missing; there is post: set prompt_key"),
        ({"prompt": "Tea?", "input": "Green."}, r"text beside its pairs that would not be read: input\. If it belongs"),
        ({"prompt": "Tea?", "persona": "An innkeeper of the old days."}, "would not be read: persona"),
        ({"prompt": "Tea?", "whatever": "A passage of several words."}, r"set ignore=\[whatever\]"),
    ],
)
def test_text_beside_a_pair_that_nobody_knows_is_refused(tmp_path: Path, extra: dict[str, Any], named: str) -> None:
    rows = [{**extra, "chosen": f"Yes {i}", "rejected": f"No {i}"} for i in range(3)]
    with pytest.raises(DataError, match=named):
        described(tmp_path, rows)
    unknown = next(key for key in extra if key != "prompt")
    if "prompt" in extra:
        assert len(described(tmp_path, rows, ignore=[unknown])[0]) == 3
    else:
        assert described(tmp_path, rows, prompt_key=unknown)[0][0].prompt == extra[unknown]


def test_a_system_message_without_a_prompt_is_not_dropped(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the field prompt is missing; there is system: set prompt_key"):
        described(tmp_path, [{"system": "Be brief.", "chosen": "Yes", "rejected": "No"}])


def test_a_prompt_key_that_is_not_there_is_refused_and_names_what_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the field asked is missing; there is question: set prompt_key"):
        described(tmp_path, [{"question": "Tea?", "chosen": "Yes", "rejected": "No"}], prompt_key="asked")


def test_ratings_of_helpsteer_are_gathered_and_those_of_one_text_averaged(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Tea?", "response": "Yes", "helpfulness": 4, "correctness": 3, "verbosity": 1},
        {"prompt": "Tea?", "response": "Yes", "helpfulness": 1, "correctness": 3, "verbosity": 1},
        {"prompt": "Tea?", "response": "No", "helpfulness": 2, "correctness": 3, "verbosity": 1},
        {"prompt": "Tea?", "response": "Maybe", "helpfulness": 3, "correctness": 3, "verbosity": 1},
    ]
    (found,), told = described(tmp_path, rows)
    assert [(response.text, response.rating) for response in found.responses] == [
        ("Yes", 2.5),
        ("No", 2.0),
        ("Maybe", 3.0),
    ]
    assert found.ranks == (1, 2, 0)
    assert "a response with helpfulness, gathered by prompt" in told


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Tea?", "responses": ["same", "same", "other"], "ranking": [[1], [2], [0]]},
        {"prompt": "Tea?", "chosen": ["same"], "rejected": ["same", "other"]},
        {"prompt": "Tea?", "answers": [{"answer": "same", "rank": 1}, {"answer": "same", "rank": 2}]},
    ],
)
def test_a_text_is_never_preferred_to_itself(tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"p\.jsonl:1: the same text is ranked twice, better and worse than itself"):
        described(tmp_path, [row])


def test_a_text_that_stands_twice_among_equals_is_taken_once(tmp_path: Path) -> None:
    (found,), _ = described(tmp_path, [{"prompt": "Tea?", "chosen": ["Yes"], "rejected": ["No", "No", "Maybe"]}])
    assert [response.text for response in found.responses] == ["Yes", "No", "Maybe"]
    assert found.ranks == (0, 1, 1)


DEMONSTRATIONS: dict[str, tuple[dict[str, Any], PromptText]] = {
    "prompt and response": ({"prompt": "Tea?", "response": "Yes"}, "Tea?"),
    "TRL": ({"prompt": "Tea?", "completion": "Yes"}, "Tea?"),
    "TRL messages": ({"prompt": ASKED, "completion": [said("Yes")]}, ASKED),
    "ultrachat": ({"prompt": "Tea?", "prompt_id": "x", "messages": [*ASKED, said("Yes")]}, ASKED),
    "messages": ({"messages": [*ASKED, said("Yes")]}, ASKED),
    "ShareGPT": (
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "Tea?"},
                {"from": "gpt", "value": "Yes"},
            ]
        },
        [system("Be brief."), *ASKED],
    ),
    "ShareGPT with a system column": (
        {
            "system": "Be brief.",
            "conversations": [{"from": "human", "value": "Tea?"}, {"from": "gpt", "value": "Yes"}],
        },
        [system("Be brief."), *ASKED],
    ),
    "Alpaca": ({"instruction": "Answer.", "input": "Tea?", "output": "Yes"}, [user("Answer.\n\nTea?")]),
    "Alpaca without input": ({"instruction": "Tea?", "input": "", "output": "Yes"}, ASKED),
    "NeMo": ({"input": "Tea?", "output": "Yes"}, "Tea?"),
    "question and answer": ({"question": "Tea?", "answer": "Yes"}, ASKED),
}


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_a_published_demonstration_is_read(tmp_path: Path, name: str) -> None:
    row, prompt = DEMONSTRATIONS[name]
    path = write(tmp_path / "d.jsonl", [row])
    split = load_demonstrations(config(tmp_path, demonstrations={"path": path, "format": "demonstrations"}))
    (found,) = split.train + split.heldout
    assert (found.prompt, found.response) == (prompt, "Yes")


def test_prompts_may_be_conversations_under_any_name(tmp_path: Path) -> None:
    rows = [
        {"context_messages": [user("a")]},
        {"messages": [user("b")]},
        {"messages": [user("c"), said("good")]},
        {"prompt": [user("d")], "tools": json.dumps([{"type": "function", "function": {"name": "brew"}}])},
        {"question": "e", "system": "Be brief."},
    ]
    path = write(tmp_path / "p.jsonl", rows)
    split = load_prompts(config(tmp_path, prompts={"path": path, "format": "prompts"}))
    found = {row.prompt[-1]["content"]: row for row in split.train + split.heldout}
    assert sorted(found) == ["a", "b", "c", "d", "e"]
    assert found["c"].reference == "good"
    assert found["d"].prompt[0] == {
        "role": "tools",
        "content": '[{"type": "function", "function": {"name": "brew"}}]',
    }
    assert found["e"].prompt == [system("Be brief."), user("e")]


def test_a_column_of_passages_is_no_conversation(tmp_path: Path) -> None:
    row = {"context": ["A passage.", "Another."], "question": "Tea?", "answer": "Yes"}
    path = write(tmp_path / "d.jsonl", [row])
    split = load_demonstrations(config(tmp_path, demonstrations={"path": path, "format": "demonstrations"}))
    (found,) = split.train + split.heldout
    assert (found.prompt, found.response) == (ASKED, "Yes")
    assert "ignored: context." in split.told[0]


def test_tool_calls_are_kept_with_their_arguments_as_values(tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "brew", "arguments": '{"kind": "green"}'}}
    turns = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "name": "brew", "content": "ready"},
    ]
    row = {"prompt": turns, "chosen": [said("Yes")], "rejected": [said("No")], "tools": [{"name": "brew"}]}
    (found,), _ = described(tmp_path, [row])
    assert isinstance(found.prompt, list)
    assert [turn["role"] for turn in found.prompt] == ["tools", "user", "assistant", "tool"]
    assert found.prompt[2]["tool_calls"][0]["function"]["arguments"] == {"kind": "green"}
    assert found.prompt[3]["tool_call_id"] == "1"


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([*ASKED, {"role": "assistant", "content": None}], "its content is null"),
        ([{"role": "user", "content": [{"type": "image_url"}]}, said("x")], "a part of type image_url: only text"),
        ([*ASKED, {"role": "assistant", "content": "a", "tool_calls": [{"id": 1}]}], "without the name of a function"),
        ([*ASKED, {"role": "assistant", "content": "a", "reasoning_content": "b"}], "has reasoning_content, and"),
        ([*ASKED, {"role": "assistant", "content": "half \ud83d"}], r"holds half a character \(U\+D83D\)"),
    ],
)
def test_a_conversation_that_is_none_is_a_bad_row(tmp_path: Path, turns: list[Any], reason: str) -> None:
    with pytest.raises(DataError, match=rf"p\.jsonl:1: .*{reason}"):
        described(tmp_path, [{"chosen": turns, "rejected": [*ASKED, said("No")]}])


def test_values_as_data_frames_write_them(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Tea?", "completion": "Yes", "label": 1.0},
        {"prompt": "Tea?", "completion": "No", "label": 0.0},
        {
            "prompt": "Ale?",
            "chosen": "Yes",
            "rejected": "No",
            "margin": float("nan"),
            "probability": "",
            "weight": None,
        },
        {
            "prompt": "Rye?",
            "chosen": "Yes",
            "rejected": "No",
            "margin": "0.5",
            "label": float("nan"),
            "completion": None,
        },
    ]
    found = sorted(described(tmp_path, rows)[0], key=lambda record: record.origin)
    assert [record.responses[0].label for record in found[:2]] == [True, False]
    assert [(record.margin, record.probability, record.weight) for record in found[2:]] == [
        (0.0, 1.0, 1.0),
        (0.5, 1.0, 1.0),
    ]


def test_records_of_no_weight_are_left_out_and_told(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "chosen": "Yes", "rejected": "No", "weight": float(i > 0)} for i in range(5)]
    found, told = described(tmp_path, rows)
    assert len(found) == 4
    assert "1 records have a weight of 0 and are left out." in told


def test_slices_and_limits_cut_whole_prompts(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "response": text, "rating": r} for text, r in (("a", 1), ("b", 2)) for i in range(200)]
    limited, _ = described(tmp_path, rows, limit=40)
    assert len(limited) == 40
    assert all(record.is_pair for record in limited)
    halves = [described(tmp_path, rows, start=start, stop=stop)[0] for start, stop in ((0.0, 0.5), (0.5, 1.0))]
    prompts = [{record.prompt for record in half} for half in halves]
    assert all(record.is_pair for half in halves for record in half)
    assert not prompts[0] & prompts[1]
    assert len(prompts[0] | prompts[1]) == 200
    assert 70 < len(prompts[0]) < 130


def test_pairs_without_prompts_are_split_by_their_texts(tmp_path: Path) -> None:
    rows = [{"chosen": f"Yes {i}", "rejected": f"No {i}"} for i in range(100)]
    path = write(tmp_path / "p.jsonl", [*rows, *rows[:10]])
    split = load_preferences(config(tmp_path, preferences={"path": path, "format": "preferences"}))
    assert 2 <= len(split.heldout) <= 30
    assert not {row.chosen for row in split.train} & {row.chosen for row in split.heldout}
    assert "10 records occur more than once." in split.told


def test_prompts_that_differ_in_case_and_punctuation_alone_stay_together(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i}{end}", "response": "x"} for i in range(60) for end in ("?", " ?", "!")]
    rows += [{"prompt": f"QUESTION {i}", "response": "x"} for i in range(60)]
    path = write(tmp_path / "d.jsonl", rows)
    split = load_demonstrations(config(tmp_path, demonstrations={"path": path, "format": "demonstrations"}))
    sides = [
        {"".join(filter(str.isalnum, str(row.prompt).lower())) for row in rows} for rows in (split.train, split.heldout)
    ]
    assert sides[1]
    assert not sides[0] & sides[1]


def test_near_copies_across_the_split_are_told(tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(4000)]
    texts = [" ".join(words[40 * i : 40 * i + 40]) for i in range(100)]
    rows = [{"prompt": f"{text} {more}", "response": "x"} for text in texts for more in ("now", "then")]
    path = write(tmp_path / "d.jsonl", rows)
    split = load_demonstrations(config(tmp_path, demonstrations={"path": path, "format": "demonstrations"}))
    assert any("held-out prompts repeat training prompts nearly word for word" in told for told in split.told)
    path = write(tmp_path / "d.jsonl", rows[::2])
    split = load_demonstrations(config(tmp_path, demonstrations={"path": path, "format": "demonstrations"}))
    assert not any("nearly word for word" in told for told in split.told)


@pytest.mark.parametrize("seed", range(8))
def test_of_a_few_prompts_one_is_held_out(tmp_path: Path, seed: int) -> None:
    path = write(tmp_path / "d.jsonl", [{"prompt": f"q{i}", "response": "x"} for i in range(8)])
    source = {"path": path, "format": "demonstrations"}
    split = load_demonstrations(config(tmp_path, f"seed={seed}", demonstrations=source))
    assert 1 <= len(split.heldout) < 8
    assert len(split.heldout) + len(split.train) == 8
