"""Posts alerts to a webhook, signed and retried, in a thread of its own: JSON objects in, requests out. Knows nothing of drift.

The signature is an HMAC-SHA256 (RFC 2104) with the shared secret over the time stamp, a full stop and the body: who has seen one
request can neither change it nor post it again later.
"""

import hashlib
import hmac
import http.client
import logging
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from typing import IO, Any
from urllib.parse import urlsplit

import orjson

_ATTEMPTS = 8
_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 60.0
_TIMEOUT_S = 10
_MAX_WAITING = 100
_TRY_AGAIN = (408, 425, 429)  # beside all from 500 on
_log = logging.getLogger("normscope")


@dataclass(frozen=True)
class Alert:
    """What is posted; `name` is the same however often and by however many replicas it is."""

    name: str
    body: dict[str, Any]


class Webhook:
    """One receiver. Alerts arrive in order; one that fails for good is given up, logged and counted."""

    def __init__(
        self, url: str, secret: str | None, *, first_retry_s: float = _FIRST_RETRY_S, clock: Callable[[], float] = time.time
    ) -> None:
        """`url` is http or https; without a secret nothing is signed."""
        self._url, self._secret, self._retry_s, self._clock = url, secret, first_retry_s, clock
        self._host = urlsplit(url).hostname  # the rest may be secret
        self._waiting: queue.Queue[Alert | None] = queue.Queue()
        self._opener = urllib.request.build_opener(_NoRedirects)
        self.counts = {"delivered": 0, "failed": 0, "dropped": 0}
        """Alerts by what became of them; dropped are those that too many others waited before, or the end of the service."""
        self._counting = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="post-alerts", daemon=True)

    def start(self) -> None:
        """Begins to post."""
        self._thread.start()

    def close(self) -> None:
        """Ends after the attempt that is going on; what still waits is dropped."""
        self._stop.set()
        self._waiting.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def post(self, alert: Alert) -> None:
        """Takes an alert; returns at once."""
        if self._waiting.qsize() >= _MAX_WAITING:
            _log.error("an alert is dropped: %d wait for %s already", _MAX_WAITING, self._host)
            self._count("dropped")
        else:
            self._waiting.put(alert)

    def _work(self) -> None:
        while (alert := self._waiting.get()) is not None:
            if self._stop.is_set():
                self._count("dropped")
                continue
            try:
                self._count(self._deliver(alert))
            except Exception:  # the next is to be posted all the same
                _log.exception("an alert cannot be posted")
                self._count("failed")

    def _count(self, result: str) -> None:
        with self._counting:
            self.counts[result] += 1

    def _deliver(self, alert: Alert) -> str:
        body, delay_s = orjson.dumps(alert.body), self._retry_s
        for attempt in range(1, _ATTEMPTS + 1):
            problem, again = self._attempt(alert.name, body)
            if problem is None:
                return "delivered"
            if not again or attempt == _ATTEMPTS:
                _log.error("an alert to %s is given up after %d attempts: %s", self._host, attempt, problem)
                return "failed"
            _log.warning("an alert to %s is posted again in %g s: %s", self._host, delay_s, problem)
            if self._stop.wait(delay_s):
                return "dropped"
            delay_s = min(2 * delay_s, _LAST_RETRY_S)
        raise AssertionError("the last attempt returns")

    def _attempt(self, name: str, body: bytes) -> tuple[str | None, bool]:
        """What went wrong, and whether another attempt may help."""
        stamp = str(int(self._clock()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "normscope",
            "X-NormScope-Delivery": name,
            "X-NormScope-Timestamp": stamp,
        }
        if self._secret is not None:
            headers["X-NormScope-Signature"] = sign(self._secret, stamp, body)
        request = urllib.request.Request(self._url, body, headers, method="POST")
        try:
            with self._opener.open(request, timeout=_TIMEOUT_S):
                return None, False
        except urllib.error.HTTPError as error:
            error.close()
            return f"status {error.code}", error.code >= 500 or error.code in _TRY_AGAIN
        except (OSError, http.client.HTTPException) as error:  # a URLError is an OSError
            return str(getattr(error, "reason", None) or type(error).__name__), True


def sign(secret: str, stamp: str, body: bytes) -> str:
    """The header `X-NormScope-Signature` of a body that is posted at this time stamp, seconds since 1970."""
    return "sha256=" + hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: following it would turn the POST into a GET, and hand the alert to somebody else."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None
