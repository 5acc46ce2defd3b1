"""A judge behind a real HTTP server on loopback, which reads the question it is asked."""

import json
import math
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from rayrlhf.config import JudgeReward
from rayrlhf.reward.chat_server import ChatServers
from rayrlhf.reward.comparator import Comparator
from rayrlhf.reward.judge_term import JudgeTerm
from rayrlhf.reward.terms import ScoreRequest

PRINCIPLES = "The longer response is better."
OWN_ANSWER = "four"


def parts(question: str) -> dict[str, str]:
    """The fenced texts of a question, by their titles."""
    fence = re.search(r"between lines of (#+)\.", question)
    assert fence is not None
    mark = re.escape(fence[1])
    return dict(re.findall(rf"^(Conversation|Response A|Response B):\n{mark}\n(.*?)\n{mark}$", question, re.S | re.M))


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


class JudgeServer:
    """Prefers the longer response by its lead in characters, and what stands first by `bias`, both in log-odds.

    `plan` says what the n-th request is answered with (-1: any other): a status, `hang`, or a key of `_strange`.
    """

    def __init__(self, *, bias: float = 0.0) -> None:
        self.bias = bias
        self.plan: dict[int, Any] = {}
        self.broken_on = ""
        """Questions that hold this text are answered with status 400."""
        self.seen: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.seen)
                    outer.seen.append(body | {"path": self.path})
                    outer.keys.append(self.headers["Authorization"])
                what = outer.plan.get(number, outer.plan.get(-1))
                if outer.broken_on and outer.broken_on in body["messages"][0]["content"]:
                    what = 400
                if what == "hang":
                    threading.Event().wait(2.0)
                self.send_response(what if isinstance(what, int) else 200)
                self.end_headers()
                self.wfile.write(json.dumps({} if isinstance(what, int) else outer.answer(body, what)).encode())

            def log_message(self, *_: Any) -> None:
                return

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, body: dict[str, Any], what: Any) -> dict[str, Any]:
        found = parts(body["messages"][0]["content"])
        if "Response A" not in found:
            return _written(f"<think>[[A]]?</think>\n{OWN_ANSWER}" if what is None else None)
        ahead = len(found["Response A"]) - len(found["Response B"]) + self.bias
        if "logprobs" not in body:
            verdict = "C" if ahead == 0 else "A" if ahead > 0 else "B"
            return _written(f"It says [[{'B' if verdict == 'A' else 'A'}]] of itself, but: [[{verdict}]]")
        tokens = [("A", math.log(0.9 * sigmoid(ahead) * 0.75)), (" A", math.log(0.9 * sigmoid(ahead) * 0.25))]
        tokens += [("B", math.log(0.9 * sigmoid(-ahead))), ("The", math.log(0.1))]
        content: Any = [{"token": "A", "top_logprobs": [{"token": t, "logprob": p} for t, p in tokens]}]
        if what == "neither":
            content[0]["top_logprobs"] = content[0]["top_logprobs"][-1:]
        logprobs = {"none": None, "garbage": {"content": [{}]}}.get(what, {"content": content})
        return {"choices": [{"message": {"content": "A"}, "logprobs": logprobs}]}


def _written(text: str | None) -> dict[str, Any]:
    return {"choices": [{"message": {"content": text}}]}


def settings(server: JudgeServer, **more: Any) -> JudgeReward:
    given = {
        "kind": "judge",
        "principles": PRINCIPLES,
        "urls": [server.url],
        "model": "m",
        "retries": 2,
        "timeout": 5.0,
    }
    return JudgeReward.model_validate(given | more)


def comparator(server: JudgeServer, **more: Any) -> Comparator:
    term = settings(server, **more)
    return Comparator(ChatServers(term), principles=term.principles, verdict=term.verdict, max_tokens=term.max_tokens)


def judge(server: JudgeServer, **more: Any) -> JudgeTerm:
    term = settings(server, **more)
    return JudgeTerm(comparator(server, **more), name=term.called, comparisons=term.comparisons, seed=0)


def group(responses: list[str], *, number: int = 0, reference: str | None = None) -> list[ScoreRequest]:
    return [
        ScoreRequest(
            name=f"ppo-0-{number}-{k}",
            prompt=f"Guest {number}:",
            response=response,
            token_ids=np.zeros(1, dtype=np.int32),
            finished=True,
            reference=reference,
            group=number,
            unit=number,
        )
        for k, response in enumerate(responses)
    ]
