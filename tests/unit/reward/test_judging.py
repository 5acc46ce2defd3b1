"""Evaluation, audit and batch scoring on models and data made on the spot."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from reward_lab import WORDS, load, packaged, preferences, tokenizer

from rayrlhf.algorithms.preference_metrics import length_slope
from rayrlhf.data.schema import Preference, Response, pair
from rayrlhf.errors import DataError
from rayrlhf.report.reward_page import audit_rows, evaluation_rows, write_audit_page, write_evaluation_page
from rayrlhf.reward.audit import audit
from rayrlhf.reward.batch import Scoring, score_file
from rayrlhf.reward.judge import ScoredPreferences, judge, save_judged, score_preferences
from rayrlhf.reward.stats import Scale, load_stats


def by_hand(rows: list[Preference], scores: list[list[float]], lengths: list[list[int]]) -> ScoredPreferences:
    return ScoredPreferences(
        rows=rows,
        sequences=[],
        scores=[np.array(own, dtype=float)[:, None] for own in scores],
        lengths=[np.array(own) for own in lengths],
        left_out=0,
    )


def test_figures_of_an_evaluation_by_hand() -> None:
    rows = [pair("a", "x", "y", subset="s"), pair("a", "x", "z", subset="s"), pair("b", "x", "y", subset="t")]
    found = judge(by_hand(rows, [[1.0, 0.0], [0.0, 0.0], [-1.0, 1.0]], [[5, 2], [5, 2], [2, 5]])).figures
    assert found["pairs"] == 3
    assert found["prompts"] == 2
    assert found["accuracy"] == pytest.approx(0.5)
    assert found["strict_accuracy"] == pytest.approx(1 / 3)
    assert found["longer_accuracy"] == pytest.approx(2 / 3)
    assert found["balanced_accuracy"] == pytest.approx((0.75 + 0.0) / 2)
    assert found["by_subset"] == {"s": {"pairs": 2, "accuracy": 0.75}, "t": {"pairs": 1, "accuracy": 0.0}}
    assert found["nll"] == pytest.approx((math.log1p(math.exp(-1)) + math.log(2) + math.log1p(math.exp(2))) / 3)


def test_a_ranking_of_k_gives_its_pairs_and_ratings_a_curve() -> None:
    responses = tuple(Response(text=t, rating=r) for t, r in (("a", 0.0), ("b", 2.0), ("c", 1.0)))
    row = Preference(prompt="p", responses=responses, ranking=((1,), (2,), (0,)))
    found = judge(by_hand([row], [[0.0, 5.0, 1.0]], [[3, 3, 3]])).figures
    assert (found["pairs"], found["accuracy"]) == (3, 1.0)
    assert found["best_of_n"]["n"] == [1, 2, 3]
    assert found["best_of_n"]["rating"] == pytest.approx([1.0, 5 / 3, 2.0])


def test_best_of_k_shares_ties_as_rewardbench_2_does() -> None:
    responses = tuple(Response(text=t) for t in "abcd")
    rows = [Preference(prompt=str(i), responses=responses, ranking=((0,), (1, 2, 3)), subset="s") for i in range(3)]
    scores = [[2.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]]
    found = judge(by_hand(rows, scores, [[3, 3, 3, 3]] * 3)).figures
    assert found["best_of_k_accuracy"] == pytest.approx((1.0 + 0.5 + 0.0) / 3)
    assert found["best_of_k_by_subset"] == {"s": pytest.approx(0.5)}


def test_an_evaluation_is_a_page_and_rows_for_a_terminal(tmp_path: Path) -> None:
    model = load(packaged(tmp_path / "reward_model", heads=2))
    rows = preferences(40, seed=5)
    judged = judge(score_preferences(model, rows, max_length=64), load_stats(tmp_path / "reward_model"))
    figures = save_judged(judged, tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text())["accuracy"] == pytest.approx(figures["accuracy"])
    assert figures["members"] == 2
    page = write_evaluation_page(tmp_path / "e.html", figures, model="m", data="d").read_text()
    assert page.count("<svg") >= 5
    assert "http" not in page.split("<body>")[1]
    shown = {row[0] for row in evaluation_rows(figures)}
    assert shown >= {"accuracy", "pick the longer", "disagreement", "50% of length out"}
    assert "Length&#x27;s part taken out of the scores" in page


def test_responses_too_long_for_the_model_are_left_out_and_counted(tmp_path: Path) -> None:
    model = load(packaged(tmp_path / "reward_model"))
    long = pair("Guest:", " bread" * 70, " ale")
    found = judge(score_preferences(model, [*preferences(10), long], max_length=64)).figures
    assert (found["rows"], found["left_out"]) == (10, 1)
    with pytest.raises(DataError, match="None of the 1 preferences fits into 64 tokens"):
        score_preferences(model, [long], max_length=64)


def test_a_text_in_many_pairs_is_scored_once_and_stands_in_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(packaged(tmp_path / "reward_model"))
    rows = [pair("Guest:", " ale", f" bread {word}") for word in ("and", "fire", "and")]
    alone = [model.score([model.encode("Guest:", r.text) for r in row.responses]) for row in rows]
    asked: list[int] = []
    score = model.score
    monkeypatch.setattr(model, "score", lambda sequences: asked.append(len(sequences)) or score(sequences))
    found = score_preferences(model, rows, max_length=64).scores
    assert asked == [3]
    np.testing.assert_allclose(found, alone, atol=1e-5)


def test_a_length_correction_takes_out_what_length_explains_within_a_prompt(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lengths, worth = rng.integers(1, 60, size=(40, 3)), rng.normal(size=(40, 3))
    level = 10.0 * rng.normal(size=(40, 1))
    rows = [
        Preference(
            prompt=f"q{i}",
            responses=tuple(Response(text=str(k)) for k in range(3)),
            ranking=tuple((int(k),) for k in np.argsort(-own)),
        )
        for i, own in enumerate(worth)
    ]
    scores = level + worth + 1.5 * np.log1p(lengths)
    slope = length_slope(scores.ravel(), lengths.ravel(), np.repeat(np.arange(40), 3))
    centred = [np.concatenate([own - own.mean() for own in part]) for part in (np.log1p(lengths), scores)]
    assert slope == pytest.approx(np.linalg.lstsq(centred[0][:, None], centred[1], rcond=None)[0][0])
    assert length_slope(scores[:, 0], lengths[:, 0], np.arange(40)) == 0.0

    stats = replace(load_stats(packaged(tmp_path / "m")), members=[Scale(mean=0.0, std=1.0, length_slope=slope)])
    found = judge(by_hand(rows, scores.tolist(), lengths.tolist()), stats).figures["less_length"]
    assert [one["share"] for one in found] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert found[-1]["accuracy"] > 0.95 > found[0]["accuracy"]
    assert found[-1]["balanced_accuracy"] > found[0]["balanced_accuracy"] + 0.1


def test_a_response_read_in_part_counts_with_its_whole_length(tmp_path: Path) -> None:
    model = load(packaged(tmp_path / "reward_model"))
    rows = [pair("Guest:", " bread" * 90, " bread" * 70), pair("Guest:", " ale", " ale ale")]
    scored = score_preferences(model, rows, max_length=16, cut=True)
    assert [len(sequence) for sequence in scored.sequences[:2]] == [16, 16]
    prompt = len(model.encode("Guest:", "")[0]) - 1
    assert scored.lengths[0][0] == len(model.encode("Guest:", " bread" * 90)[0]) - prompt
    assert judge(scored).figures["longer_accuracy"] == 0.5


def test_an_audit_finds_what_was_planted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def text(good: bool, words: int) -> str:
        return " ".join([*rng.choice(WORDS, size=words), "please" if good else "never"])

    rows = [pair(f"q{i}", text(True, 4), text(False, 1), origin=f"r{i}") for i in range(200)]
    flipped = [pair(f"f{i}", text(False, 4), text(True, 1), origin=f"flip{i}") for i in range(5)]
    twice = [rows[0], rows[1]]
    against = [pair("q3", rows[3].rejected, rows[3].chosen, origin="against")]
    tie = Preference(prompt="t", responses=(Response(text="a"), Response(text="b")), ranking=((0, 1),))
    heldout = [pair(" Q7 ", "x", "y"), pair("new", "x", "y")]
    found = audit([*rows, *flipped, *twice, *against, tie], heldout, tokenizer=tokenizer(), max_length=8)
    assert (found["duplicates"], found["contradictions"], found["ties"]) == (2, 1, 1)
    assert (found["shared_prompts"], found["heldout_prompts"]) == (1, 2)
    assert found["contradictions_named"] in ([["r3", "against"]], [["against", "r3"]])
    named = {suspect["origin"] for suspect in found["suspects"]["named"]}
    planted = {f"flip{i}" for i in range(5)} | {"against"}
    assert len(named & planted) >= 4
    assert len(named - planted) <= 4
    assert found["longer_wins"] > 0.9
    assert found["over_long"] > 0.5
    assert found["template"] == {"more_than_one_bos": 0, "no_end_token": 0, "control_strings": 0, "ended": 0}
    ended = pair("q", f"ale{tokenizer().eos_token}", "bread")
    assert audit([ended], [], tokenizer=tokenizer(), max_length=8)["template"]["ended"] == 1
    page = write_audit_page(tmp_path / "a.html", found, data="planted").read_text()
    assert next(iter(named & planted)) in page
    assert {row[0] for row in audit_rows(found)} >= {"duplicates", "contradictions", "labels to look at"}


def test_scoring_a_file_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    model, source, target = load(packaged(tmp_path / "m")), tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    stats = load_stats(tmp_path / "m")
    rows = [{"id": i, "prompt": "Guest:", "response": f" bread {WORDS[i % 9]}"} for i in range(600)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert score_file(model, stats, source, target, progress=lambda *_: None) == 600
    whole = target.read_bytes()
    target.write_bytes(whole[: len(whole) // 2])
    assert 0 < score_file(model, stats, source, target, progress=lambda *_: None) < 600
    again = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["id"] for row in again] == list(range(600))
    np.testing.assert_allclose(
        [row["score"] for row in again], [json.loads(line)["score"] for line in whole.splitlines()], atol=1e-5
    )
    assert score_file(model, stats, source, target, progress=lambda *_: None) == 0


def test_scoring_refuses_what_it_cannot_score(tmp_path: Path) -> None:
    model, stats = load(packaged(tmp_path / "m")), load_stats(tmp_path / "m")
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "Guest:"}\n')
    with pytest.raises(
        DataError, match=r"1 of 1 rows of in\.jsonl cannot be scored: in\.jsonl:1: the field response is missing"
    ):
        score_file(model, stats, source, target, progress=lambda *_: None)
    source.write_text(json.dumps({"prompt": "Guest:", "response": " bread" * 100}) + "\n")
    with pytest.raises(DataError, match="nothing is cut"):
        score_file(model, stats, source, target, progress=lambda *_: None)
    assert not target.exists()
    source.write_text(json.dumps({"prompt": "Guest:", "response": " ale"}) + "\n")
    target.write_text('{"prompt": "another", "score": 1.0}\n')
    with pytest.raises(DataError, match=r"out\.jsonl was not written by this command"):
        score_file(model, stats, source, target, progress=lambda *_: None)
    target.unlink()
    score_file(model, stats, source, target, progress=lambda *_: None)
    source.write_text(json.dumps({"prompt": "Guest:", "response": " bread"}) + "\n")
    with pytest.raises(DataError, match=r"out\.jsonl:1 is not a scored row of the input"):
        score_file(model, stats, source, target, progress=lambda *_: None)


def test_rows_that_cannot_be_scored_are_skipped_if_asked_and_say_why(tmp_path: Path) -> None:
    model, stats = load(packaged(tmp_path / "m")), load_stats(tmp_path / "m")
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [
        '{"prompt": "Guest:", "response": " ale", "seen": NaN}',
        '{"prompt": "Guest:", "response": ""}',
        json.dumps({"prompt": "Guest:", "response": " bread" * 100}),
        '{"prompt": "Guest:", "response": " fire \\ud800"}',
        '{"prompt": "", "response": " ale"}',
    ]
    source.write_text("\n".join(rows) + "\n")
    how = Scoring(skip=True)
    assert score_file(model, stats, source, target, how, progress=lambda *_: None) == 5
    found = [json.loads(line, parse_constant=pytest.fail) for line in target.read_text().splitlines()]
    assert [row["score"] is None for row in found] == [False, True, True, True, False]
    assert [row.get("problem", "").partition(": ")[2][:7] for row in found[1:4]] == [
        "the fie",
        "it has ",
        "the fie",
    ]
    assert found[0]["seen"] is None
    # Gone on with although a value of the input was no number.
    target.write_text(target.read_text().partition("\n")[0] + "\n")
    assert score_file(model, stats, source, target, how, progress=lambda *_: None) == 4


def test_a_file_cannot_hold_the_scores_of_two_models(tmp_path: Path) -> None:
    one, two = (load(packaged(tmp_path / name, heads=heads)) for name, heads in (("a", 1), ("b", 2)))
    stats = load_stats(tmp_path / "a")
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"prompt": "Guest:", "response": " ale"}) + "\n")
    score_file(one, stats, source, target, progress=lambda *_: None)
    with pytest.raises(DataError, match=r"was scored otherwise \(model changed\)"):
        score_file(two, stats, source, target, progress=lambda *_: None)
    with pytest.raises(DataError, match=r"was scored otherwise \(combination, penalty changed\)"):
        score_file(one, stats, source, target, Scoring(combination="mean_std", penalty=2.0), progress=lambda *_: None)
    source.write_text(json.dumps({"prompt": "Guest:", "response": " ale", "score": 5}) + "\n")
    with pytest.raises(DataError, match="has a field score already: give the scores another with --field"):
        score_file(one, stats, source, tmp_path / "other.jsonl", progress=lambda *_: None)
    how = Scoring(field="judged")
    score_file(one, stats, source, tmp_path / "other.jsonl", how, progress=lambda *_: None)
    (row,) = [json.loads(line) for line in (tmp_path / "other.jsonl").read_text().splitlines()]
    assert row["score"] == 5
    assert isinstance(row["judged"], float)


def test_labels_and_single_ratings_are_judged_without_pairs() -> None:
    rows = [Preference(prompt=f"q{i}", responses=(Response(text="x", label=i % 2 == 0),)) for i in range(6)]
    found = judge(by_hand(rows, [[3.0], [1.0], [2.0], [2.5], [4.0], [0.0]], [[1]] * 6)).figures
    assert found["label_auroc"] == pytest.approx(8 / 9)
    assert "accuracy" not in found
    rated = [Preference(prompt=f"q{i}", responses=(Response(text="x", rating=float(i)),)) for i in range(4)]
    found = judge(by_hand(rated, [[0.0], [2.0], [1.0], [3.0]], [[1]] * 4)).figures
    assert found["rating_spearman"] == pytest.approx(0.8)
    assert [row[0] for row in evaluation_rows(found)][:2] == ["pairs", "ratings"]


@pytest.mark.parametrize(("right", "at_chance"), [(30, True), (55, False)])
def test_a_model_at_chance_is_marked(right: int, at_chance: bool) -> None:
    rows = [pair(f"q{i}", "good", "bad") for i in range(60)]
    scores = [[1.0, 0.0] if i < right else [0.0, 1.0] for i in range(60)]
    found = judge(by_hand(rows, scores, [[1, 1]] * 60)).figures
    assert found["at_chance"] == at_chance
    assert ("AT CHANCE" in [row[0] for row in evaluation_rows(found)]) == at_chance


def test_rows_that_a_tokenizer_refuses_are_bad_rows_of_an_evaluation_and_counted_by_an_audit(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = load(packaged(tmp_path / "m"))
    rows = [*preferences(30), pair("Guest:", " ale \ud83d", " bread", origin="p.jsonl:31")]
    with pytest.raises(DataError, match=r"1 of 31 rows of the preferences cannot be used: p\.jsonl:31: the tokenizer"):
        score_preferences(model, rows, max_length=64)
    scored = score_preferences(model, rows, max_length=64, max_bad_rows=0.05)
    assert (len(scored.rows), scored.left_out) == (30, 1)
    found = audit(rows, [], tokenizer=tokenizer(), max_length=64)
    assert found["unreadable"] == 1
    assert found["unreadable_named"][0].startswith("p.jsonl:31: the tokenizer refuses it")
    assert "unreadable" in [row[0] for row in audit_rows(found)]
    assert capfd.readouterr().err.count("p.jsonl:31") == 1
