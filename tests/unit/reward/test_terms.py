"""Metrics against the libraries they come from, functions, and servers that fail in every way."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
from reward_lab import INIT, tokenizer
from rouge_score.rouge_scorer import RougeScorer

from rayrlhf.config import HttpReward, MetricReward
from rayrlhf.errors import ConfigError, DataError, ModelError
from rayrlhf.models.export import export_model
from rayrlhf.models.load import make_policy
from rayrlhf.reward.function import FunctionTerm
from rayrlhf.reward.http import HttpTerm
from rayrlhf.reward.metrics import MetricTerm
from rayrlhf.reward.terms import ScoreRequest
from rayrlhf.reward.text_metrics import measured

REFERENCE = "There is one room under the roof."
RESPONSES = [REFERENCE, "There is a room under the roof.", "No room.", ""]


def asked(responses: list[str], *, reference: str | None = REFERENCE) -> list[ScoreRequest]:
    return [
        ScoreRequest(
            name=f"s{i}",
            prompt="Guest: A room?\nHost:",
            response=response,
            token_ids=np.zeros(1, dtype=np.int32),
            finished=True,
            reference=reference,
        )
        for i, response in enumerate(responses)
    ]


def values(term: Any, responses: list[str] = RESPONSES) -> list[float | None]:
    return [score.value for score in term.score(asked(responses))]


def test_metrics_are_those_of_their_libraries() -> None:
    assert values(MetricTerm("chrf")) == [sacrebleu.sentence_chrf(r, [REFERENCE]).score / 100 for r in RESPONSES]
    assert values(MetricTerm("bleu")) == [
        sacrebleu.sentence_bleu(r, [REFERENCE], use_effective_order=True).score / 100 for r in RESPONSES
    ]
    pluses = [sacrebleu.sentence_chrf(r, [REFERENCE], word_order=2).score / 100 for r in RESPONSES]
    assert values(MetricTerm("chrf++")) == pluses
    edits = [sacrebleu.sentence_ter(r, [REFERENCE]).score / 100 for r in RESPONSES]
    assert values(MetricTerm("ter")) == [max(0.0, 1.0 - rate) for rate in edits]
    rouge = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for name in ("rouge1", "rouge2", "rougeL"):
        assert values(MetricTerm(name)) == [rouge.score(REFERENCE, r)[name].fmeasure for r in RESPONSES]
    for name in ("chrf", "chrf++", "ter", "bleu", "rouge1", "rouge2", "rougeL"):
        found = values(MetricTerm(name))
        assert found[0] == pytest.approx(1.0)
        assert found[0] > found[1] > found[3] == 0.0


def test_several_measures_of_one_response() -> None:
    found = measured(["bleu", "ter"], [f" {RESPONSES[1]}\n"], [REFERENCE])
    assert found == [{name: values(MetricTerm(name))[1] for name in ("bleu", "ter")}]


def test_embedding_similarity_is_one_for_the_same_text_and_padding_changes_nothing(tmp_path: Path) -> None:
    export_model(make_policy(INIT, tokenizer(), seed=1), tokenizer(), tmp_path / "encoder")
    term = MetricTerm("embedding", encoder=str(tmp_path / "encoder"))
    together, alone = values(term), [values(term, [r])[0] for r in RESPONSES]
    assert together[0] == pytest.approx(1.0, abs=1e-5)
    assert together == pytest.approx(alone, abs=1e-5)
    assert all(value < 0.999 for value in together[1:] if value is not None)
    with pytest.raises(ModelError, match=r"The encoder .*absent cannot be loaded"):
        MetricTerm("embedding", encoder=str(tmp_path / "absent"))


def test_a_metric_without_a_reference_names_the_data() -> None:
    with pytest.raises(DataError, match=r"s0 has no reference .*data\.prompts\.reference_key"):
        MetricTerm("chrf").score(asked(["x"], reference=None))
    with pytest.raises(ValueError, match="encoder belongs to name=embedding"):
        MetricReward(kind="metric", name="embedding")


def test_functions_give_numbers_or_a_reason() -> None:
    (length,) = FunctionTerm("builtins:len.__call__".replace(".__call__", "")).score(asked(["abc"]))
    assert length.value is None
    assert "raised TypeError" in length.reason
    with pytest.raises(ConfigError, match="cannot be imported by the scoring workers"):
        FunctionTerm("no.such.module:f")


def test_what_a_function_answers_is_a_score_only_if_it_is_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_rewards.py").write_text(
        "def count(prompt, response, reference):\n"
        "    return {'none': None, 'nan': float('nan'), 'text': 'x'}.get(response, len(response))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    scores = FunctionTerm("own_rewards:count").score(asked(["four", "none", "nan", "text"]))
    assert [score.value for score in scores] == [4.0, None, None, None]
    assert scores[1].reason == "own_rewards:count gave no score, for sample s1 (prompt 'Guest: A room?\\nHost:')"
    assert "not a finite number" in scores[2].reason


class Server:
    """A real HTTP server on loopback; `plan` decides what the n-th request is answered with."""

    def __init__(self) -> None:
        self.plan: dict[int, Any] = {}
        self.seen: list[dict[str, Any]] = []
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.seen)
                    outer.seen.append(body | {"path": self.path})
                what = outer.plan.get(number, outer.plan.get(-1))
                if what in ("hang", "slow"):
                    threading.Event().wait(3.0 if what == "hang" else 0.5)
                status, answer = (what, {}) if isinstance(what, int) else (200, outer.answer(body, what))
                self.send_response(status)
                self.end_headers()
                for byte in json.dumps(answer).encode() if what == "drip" else []:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    threading.Event().wait(0.2)
                self.wfile.write(json.dumps(answer).encode())

            def log_message(self, *_: Any) -> None:
                return

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # A client that gave up waiting is what some tests want; its traceback would stand in the output of others.
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @staticmethod
    def answer(body: dict[str, Any], what: Any) -> dict[str, Any]:
        texts = body.get("query", body.get("input"))
        scores = [float(len(text)) for text in texts]
        if what == "short":
            scores = scores[:-1]
        if what == "null":
            scores = [None, *scores[1:]]
        if what == "huge":
            scores = [10**400, *scores[1:]]
        if "query" in body:
            return {"rewards": scores}
        return {"data": [{"index": i, "probs": [s]} for i, s in reversed(list(enumerate(scores)))]}


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.http.shutdown()


def client(server: Server, **settings: Any) -> HttpTerm:
    defaults: dict[str, Any] = {"kind": "http", "urls": [server.url], "api": "openrlhf", "batch": 2, "retries": 2}
    return HttpTerm(HttpReward(**(defaults | settings)))


@pytest.mark.parametrize("api", ["openrlhf", "vllm"])
def test_scores_of_a_server_come_in_order_and_raw(server: Server, api: str) -> None:
    responses = [" x" * n for n in range(7)]
    wanted = [float(len("Guest: A room?\nHost:" + response)) for response in responses]
    assert values(client(server, api=api, model="rm"), responses) == wanted
    assert len(server.seen) == 4
    assert {body["path"] for body in server.seen} == {"/get_reward" if api == "openrlhf" else "/classify"}
    if api == "vllm":
        assert all(body["use_activation"] is False for body in server.seen)


def test_a_passing_fault_is_retried(server: Server) -> None:
    server.plan = {0: 503, 1: 429}
    assert None not in values(client(server, concurrency=1), ["a", "b", "c", "d"])
    assert len(server.seen) == 4


def test_a_lasting_fault_is_a_missing_score_with_its_cause(server: Server) -> None:
    server.plan = {-1: 500}
    scores = client(server).score(asked(["a", "b", "c"]))
    assert [score.value for score in scores] == [None] * 3
    assert "/get_reward answered with status 500" in scores[0].reason
    assert len(server.seen) == 2 * 3


def test_a_silent_server_costs_its_deadline_and_no_more(server: Server) -> None:
    server.plan = {-1: "hang"}
    scores = client(server, timeout=0.6, retries=0).score(asked(["a"]))
    assert scores[0].value is None
    assert "gave no scores" in scores[0].reason


def test_a_server_has_its_whole_time_for_one_try_and_is_not_asked_twice_for_one_work(server: Server) -> None:
    server.plan = {-1: "slow"}
    assert None not in values(client(server, timeout=2.0, retries=4), ["a"])
    assert len(server.seen) == 1
    server.plan = {-1: "hang"}
    (score,) = client(server, timeout=0.5, retries=4).score(asked(["a"]))
    assert "gave no scores (" in score.reason
    assert len(server.seen) == 2


def test_an_answer_that_drips_is_bounded_by_the_time_of_a_try(server: Server) -> None:
    server.plan = {-1: "drip"}
    begun = time.monotonic()
    (score,) = client(server, timeout=1.0).score(asked(["a"]))
    assert "gave no scores (TimeoutError" in score.reason
    assert time.monotonic() - begun < 3.0


@pytest.mark.parametrize(
    ("what", "reason"),
    [("short", "gave 1 scores for 2 responses"), ("null", "gave None for a score"), ("huge", "gave 1000")],
)
def test_an_answer_that_does_not_fit_is_missing(server: Server, what: str, reason: str) -> None:
    server.plan = {-1: what}
    scores = client(server).score(asked(["a", "b"]))
    assert scores[0].value is None
    assert reason in scores[0].reason
    assert (scores[1].value is None) == (what == "short")
    assert what != "huge" or scores[0].reason.endswith("... for a score")


def test_nobody_at_the_address_is_missing() -> None:
    term = HttpTerm(HttpReward(kind="http", urls=["http://127.0.0.1:1"], api="openrlhf", retries=0, timeout=2.0))
    (score,) = term.score(asked(["a"]))
    assert "gave no scores (ConnectionError" in score.reason
