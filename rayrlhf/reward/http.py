"""Rewards by a server."""

import itertools
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from rayrlhf.config import HttpReward
from rayrlhf.data.tokenizer import exchange_as_text, prompt_as_text
from rayrlhf.reward.real_number import finite_number, show
from rayrlhf.reward.terms import ScoreRequest, TermScore, missing

_TRANSIENT = (429, 500, 502, 503, 504)
_FIRST_PAUSE = 0.2
_PIECE = 65536


class HttpTerm:
    """Batches of responses to servers in turn; order kept, and no request waits without end.

    What a server does not answer in time, refuses, or answers with no number is a missing score.
    """

    def __init__(self, settings: HttpReward) -> None:
        self._settings = settings
        retry = Retry(
            total=settings.retries,
            read=False,  # a request that was sent may be at work still
            other=False,
            backoff_factor=_FIRST_PAUSE,
            status_forcelist=_TRANSIENT,
            allowed_methods=None,
            respect_retry_after_header=False,  # a server may not decide how long this run waits
            raise_on_status=False,
        )
        self._session = requests.Session()
        adapter = HTTPAdapter(max_retries=retry, pool_maxsize=settings.concurrency)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)

    def score(self, requests: Sequence[ScoreRequest]) -> list[TermScore]:
        """Every batch at once, at most `concurrency` of them in flight."""
        size = self._settings.batch
        batches = [requests[start : start + size] for start in range(0, len(requests), size)]
        servers = itertools.cycle(self._settings.urls)
        with ThreadPoolExecutor(self._settings.concurrency) as threads:
            answers = threads.map(self._one, batches, [next(servers) for _ in batches])
            return [score for answer in answers for score in answer]

    def _one(self, batch: Sequence[ScoreRequest], server: str) -> list[TermScore]:
        path, body = self._request(batch)
        url = server.rstrip("/") + path
        started = time.monotonic()
        try:
            with self._session.post(url, json=body, timeout=self._settings.timeout, stream=True) as answer:
                if not answer.ok:
                    return [missing(f"{url} answered with status {answer.status_code}")] * len(batch)
                values = self._values(json.loads(self._body(answer)))
        except (requests.RequestException, HTTPError, OSError, ValueError, KeyError, TypeError, IndexError) as error:
            seconds = time.monotonic() - started
            return [missing(f"{url} gave no scores ({type(error).__name__} after {seconds:.1f} s)")] * len(batch)
        if len(values) != len(batch):
            return [missing(f"{url} gave {len(values)} scores for {len(batch)} responses")] * len(batch)
        return [_as_score(value, url) for value in values]

    def _body(self, answer: requests.Response) -> bytes:
        """The whole answer; TimeoutError for one that is not there in time, also where it comes drop by drop."""
        deadline = time.monotonic() + self._settings.timeout - answer.elapsed.total_seconds()
        body = bytearray()
        while piece := answer.raw.read1(_PIECE, decode_content=True):
            body += piece
            if time.monotonic() > deadline:
                raise TimeoutError
        return bytes(body)

    def _request(self, batch: Sequence[ScoreRequest]) -> tuple[str, dict[str, Any]]:
        prompts = [prompt_as_text(request.prompt) for request in batch]
        texts = [exchange_as_text(request.prompt, request.response) for request in batch]
        if self._settings.api == "openrlhf":
            labels = [request.reference or "" for request in batch]
            return "/get_reward", {"query": texts, "prompts": prompts, "labels": labels}
        # Without this vLLM squashes a single score with a sigmoid; servers before 0.11.2 know it by its second name.
        raw = {"use_activation": False, "activation": False}
        return "/classify", {"model": self._settings.model, "input": texts, **raw}

    def _values(self, answer: dict[str, Any]) -> list[Any]:
        if self._settings.api == "openrlhf":
            return list(answer["rewards"])
        rows = sorted(answer["data"], key=lambda row: row["index"])
        return [row["probs"][0] for row in rows]


def _as_score(value: Any, url: str) -> TermScore:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    try:
        return TermScore(value=finite_number(value))
    except ValueError:
        return missing(f"{url} gave {show(value)} for a score")
