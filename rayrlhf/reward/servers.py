"""Requests to HTTP servers: in turn, together, each within its time."""

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from rayrlhf.config import HttpReward, JudgeReward
from rayrlhf.types import Unanswered

_TRANSIENT = (429, 500, 502, 503, 504)
_FIRST_PAUSE = 0.2
_PIECE = 65536

_ROUNDS_OF_SILENCE = 4
"""As often as each request in flight may go without any answer, before the rest of a batch is not asked for."""
_MISREAD = (ValueError, KeyError, TypeError, IndexError, AttributeError)
_UNREACHED = (requests.RequestException, HTTPError, OSError)

T = TypeVar("T")


class Servers:
    """Like servers; what one does not answer in time, refuses, or answers with something else has no answer."""

    def __init__(self, settings: HttpReward | JudgeReward, *, headers: Mapping[str, str] | None = None) -> None:
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
        self._silent = 0
        """Requests in a row that went without an answer."""
        self._session = requests.Session()
        self._session.headers.update(headers or {})
        adapter = HTTPAdapter(max_retries=retry, pool_maxsize=settings.concurrency)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)

    def ask(
        self, path: str, bodies: Sequence[Any], read: Callable[[Any, str], T], *, what: str
    ) -> list[T | Unanswered]:
        """Every body at once, at most `concurrency` of them in flight, in order.

        `read` makes of an answer's JSON, and its URL, what is wanted, which `what` names; it may raise what misread JSON
        raises.
        """
        servers = itertools.cycle(self._settings.urls)
        self._silent = 0

        def one(body: Any, server: str) -> T | Unanswered:
            url = server.rstrip("/") + path
            if self._silent >= _ROUNDS_OF_SILENCE * self._settings.concurrency:
                return Unanswered(
                    f"{url} was not asked, since {self._silent} requests in a row had gone without an answer"
                )
            return self._one(url, body, read, what)

        with ThreadPoolExecutor(self._settings.concurrency) as threads:
            return list(threads.map(one, bodies, [next(servers) for _ in bodies]))

    def _one(self, url: str, body: Any, read: Callable[[Any, str], T], what: str) -> T | Unanswered:
        started = time.monotonic()
        try:
            with self._session.post(url, json=body, timeout=self._settings.timeout, stream=True) as answer:
                self._silent = 0
                if not answer.ok:
                    return Unanswered(f"{url} answered with status {answer.status_code}")
                return read(json.loads(self._body(answer)), url)
        except _MISREAD as error:
            return _failed(url, what, error, started)
        except _UNREACHED as error:
            self._silent += 1
            return _failed(url, what, error, started)

    def _body(self, answer: requests.Response) -> bytes:
        """The whole answer; TimeoutError for one that is not there in time, also where it comes drop by drop."""
        deadline = time.monotonic() + self._settings.timeout - answer.elapsed.total_seconds()
        body = bytearray()
        while piece := answer.raw.read1(_PIECE, decode_content=True):
            body += piece
            if time.monotonic() > deadline:
                raise TimeoutError
        return bytes(body)


def _failed(url: str, what: str, error: Exception, started: float) -> Unanswered:
    return Unanswered(f"{url} gave no {what} ({type(error).__name__} after {time.monotonic() - started:.1f} s)")
