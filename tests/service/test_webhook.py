"""Alerts reach a real HTTP server: signed, in order, again where that helps, and never told of in full."""

import hashlib
import hmac
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.settings import Settings, explain
from service.webhook import Alert, Webhook
from tests.service.receiver import receiving

_SECRET = "key of the test"
_NOW = 1_800_000_000.5


@contextmanager
def _started(url: str, secret: str | None = _SECRET, clock: Callable[[], float] = lambda: _NOW) -> Iterator[Webhook]:
    webhook = Webhook(url, secret, first_retry_s=0, clock=clock)
    webhook.start()
    try:
        yield webhook
    finally:
        webhook.close()


def _ended(webhook: Webhook) -> dict[str, int]:
    """The counts after everything that was posted until now has been tried."""
    webhook._waiting.put(None)
    webhook._thread.join()
    return webhook.counts


def test_what_fails_first_arrives_once_and_is_signed() -> None:
    """Two answers of a server that is down, then it takes it; a receiver that computes the signature finds it right."""
    with receiving(503, 429) as receiver, _started(receiver.url) as webhook:
        webhook.post(Alert("a", {"state": "drift"}))
        webhook.post(Alert("b", {"state": "ok"}))
        arrived = [receiver.next() for _ in range(4)]
        assert _ended(webhook) == {"delivered": 2, "failed": 0, "dropped": 0}
        assert receiver.arrived.empty()
    assert [headers["X-NormScope-Delivery"] for headers, _ in arrived] == ["a", "a", "a", "b"]
    headers, body = arrived[2]
    assert json.loads(body) == {"state": "drift"}
    assert headers["Content-Type"] == "application/json"
    assert headers["X-NormScope-Timestamp"] == str(int(_NOW))
    expected = hmac.new(_SECRET.encode(), f"{int(_NOW)}.".encode() + body, hashlib.sha256).hexdigest()
    assert headers["X-NormScope-Signature"] == f"sha256={expected}"


def test_the_documented_check_of_a_signature_works() -> None:
    """The function of the document takes what is posted now, and neither another body, another secret nor what is old."""
    document = (Path(__file__).parents[2] / "service" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(def is_genuine.*?)```", document, re.DOTALL)
    names: dict[str, Any] = {"hmac": hmac, "hashlib": hashlib, "time": time}
    exec(code, names)
    check = names["is_genuine"]
    for offset_s, genuine in ((0, True), (-301, False)):
        stamp = time.time() + offset_s
        with receiving() as receiver, _started(receiver.url, clock=partial(float, stamp)) as webhook:
            webhook.post(Alert("a", {"state": "drift"}))
            headers, body = receiver.next()
        assert check(headers, body, _SECRET.encode()) is genuine
        assert not check(headers, body + b" ", _SECRET.encode())
        assert not check(headers, body, b"another")


def test_without_a_secret_nothing_is_signed() -> None:
    """There is no header that looks like a signature."""
    with receiving() as receiver, _started(receiver.url, None) as webhook:
        webhook.post(Alert("a", {}))
        headers, _ = receiver.next()
    assert "X-NormScope-Signature" not in headers


@pytest.mark.parametrize(("status", "attempts"), [(404, 1), (302, 1), (500, 8)])
def test_what_cannot_be_delivered_is_given_up(status: int, attempts: int, caplog: pytest.LogCaptureFixture) -> None:
    """At once where another attempt cannot help, a redirect too, else after the last; logged without the URL; the next goes on."""
    with receiving(*[status] * attempts) as receiver, _started(receiver.url) as webhook:
        webhook.post(Alert("a", {}))
        webhook.post(Alert("b", {}))
        names = [receiver.next()[0]["X-NormScope-Delivery"] for _ in range(attempts + 1)]
        assert _ended(webhook) == {"delivered": 1, "failed": 1, "dropped": 0}
    assert names == [*["a"] * attempts, "b"]
    assert f"given up after {attempts} attempts: status {status}" in caplog.text
    assert "127.0.0.1" in caplog.text
    assert "secret-token" not in caplog.text


def test_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    """A refused connection is tried again and given up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with _started(f"http://127.0.0.1:{port}/secret-token") as webhook:
        webhook.post(Alert("a", {}))
        assert _ended(webhook) == {"delivered": 0, "failed": 1, "dropped": 0}
    assert "given up after 8 attempts" in caplog.text
    assert "secret-token" not in caplog.text


def test_what_waits_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """Of alerts that nobody takes 100 wait; what comes then is dropped and counted, as is what waits at the end."""
    webhook = Webhook("http://127.0.0.1:9/secret-token", None)
    for _ in range(103):
        webhook.post(Alert("a", {}))
    assert webhook.counts == {"delivered": 0, "failed": 0, "dropped": 3}
    webhook._stop.set()
    webhook.start()
    webhook.close()
    assert webhook.counts == {"delivered": 0, "failed": 0, "dropped": 103}
    assert "secret-token" not in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "",
        "secret.example",
        "ftp://host/x",
        "http:///path",
        "https://user:pass@host/",
        "http://host:x/",
        "http://host/a b",
        "http://[::",
    ],
)
def test_a_setting_that_is_no_url_is_refused_without_showing_it(url: str) -> None:
    """The message says what to write, and not what was written."""
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"alert_webhook": url, "port": -7})
    port, told = explain(caught.value).splitlines()
    assert "alert_webhook" in told
    assert "write https://HOST/PATH" in told
    assert not url or url not in told
    assert "-7" in port
