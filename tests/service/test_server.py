"""The process `python -m service`: starts, answers, stops with status 0, and says what is wrong."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from pydantic_settings import CliApp

from service.settings import Settings
from tests.conftest import SmallRepository

ROOT = Path(__file__).parent.parent.parent


@contextmanager
def process(*arguments: str, module: str = "service", **environment: str) -> Iterator[subprocess.Popen[str]]:
    """`python -m service` with these options and settings; killed at the end if it still runs."""
    started = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def read_until(started: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    """Reads the log up to a line that matches."""
    assert started.stdout is not None
    log = []
    for line in started.stdout:
        log.append(line)
        if found := re.search(pattern, line):
            return found
    raise AssertionError(f"no line matched {pattern!r}:\n{''.join(log)}")


def ready_url(started: subprocess.Popen[str]) -> str:
    """The URL of the process once its models are ready."""
    url = read_until(started, r"running on (http://[\d.]+:\d+)")[1]
    while httpx.get(f"{url}/readyz").status_code != 200:
        pass
    return url


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_with_status_0(small_repository: SmallRepository, number: signal.Signals) -> None:
    """The process serves on a free port and exits with 0 at the signal."""
    with process("--port", "0", NORMSCOPE_MODEL_REPOSITORY=str(small_repository.folder)) as started:
        url = read_until(started, r"running on (http://[\d.]+:\d+)")[1]
        assert httpx.get(f"{url}/livez").status_code == 200
        started.send_signal(number)
        assert started.wait(30) == 0


def poll(url: str, status: int) -> httpx.Response:
    """Asks on a new connection each time until the status is this."""
    while True:
        answer = predict(url)
        if answer.status_code == status:
            return answer


def predict(url: str) -> httpx.Response:
    """A small prediction on a connection of its own."""
    return httpx.post(f"{url}/v1/models/text/predict", json={"inputs": "hello"}, timeout=30)


@contextmanager
def unfinished_request(url: str) -> Iterator[socket.socket]:
    """The connection of a prediction whose body still lacks its last byte, `}`."""
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port), timeout=60) as connection:
        head = b"POST /v1/models/text/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 19\r\n\r\n"
        connection.sendall(head + b'{"inputs": "hello"')
        assert httpx.get(f"{url}/livez").status_code == 200  # the bytes above have been read: connections are read in turn
        yield connection


def received(connection: socket.socket) -> bytes:
    """All that comes until the end of the connection."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_draining_service_serves_every_new_connection(small_repository: SmallRepository) -> None:
    """After SIGTERM the service is not ready any more; yet every connection that is opened, by several clients at once, is served
    and told to be closed."""
    with process("--port", "0", "--drain-delay-s", "1000", NORMSCOPE_MODEL_REPOSITORY=str(small_repository.folder)) as started:
        url = ready_url(started)
        assert predict(url).headers.get("connection") != "close"
        with httpx.Client(base_url=url) as kept:
            assert kept.get("/readyz").status_code == 200
            started.send_signal(signal.SIGTERM)
            read_until(started, "stopping: not ready any more")
            refused = kept.get("/readyz")
            assert (refused.status_code, refused.json()["status"]) == (503, "stopping")
            assert refused.headers["connection"] == "close"
        with ThreadPoolExecutor(4) as clients:
            answers = list(clients.map(predict, [url] * 100))
        assert {(answer.status_code, answer.headers["connection"]) for answer in answers} == {(200, "close")}
        assert started.poll() is None


def test_no_request_fails_before_the_end_of_the_drain(small_repository: SmallRepository) -> None:
    """A client that opens a new connection for each request, from before SIGTERM until the process has ended with 0, is answered
    200 every time in the `drain_delay_s` after the signal; once a request is refused, none is served any more."""
    delay_s = 3.0
    with process(
        "--port", "0", "--drain-delay-s", str(delay_s), NORMSCOPE_MODEL_REPOSITORY=str(small_repository.folder)
    ) as started:
        url = ready_url(started)
        outcomes, until_the_end = [], 0
        end = time.monotonic() + delay_s  # the service begins to count later
        started.send_signal(signal.SIGTERM)
        while started.poll() is None:
            try:
                outcomes.append(predict(url).status_code)
            except httpx.TransportError:
                outcomes.append(0)
            if time.monotonic() < end:
                until_the_end = len(outcomes)
        assert until_the_end >= 5
        assert set(outcomes[:until_the_end]) == {200}
        assert outcomes == sorted(outcomes, key=lambda status: status != 200)
        assert set(outcomes) <= {200, 503, 0}
        assert started.returncode == 0


@pytest.mark.parametrize("delay_s", ["0", "0.5"])
def test_runs_in_hand_finish(small_repository: SmallRepository, delay_s: str) -> None:
    """Requests that run or wait for a run when SIGTERM comes are answered 200, also after new ones are refused."""
    options = ("--port", "0", "--threads", "1", "--max-batch-size", "1", "--drain-delay-s", delay_s)
    with (
        process(*options, module="tests.held", NORMSCOPE_MODEL_REPOSITORY=str(small_repository.folder)) as started,
        ThreadPoolExecutor(3) as clients,
    ):
        url = ready_url(started)
        in_hand = [clients.submit(predict, url) for _ in range(3)]
        read_until(started, "run of 1")
        while 'normscope_queue_depth{model="text",version="1"} 2.0' not in httpx.get(f"{url}/metrics").text:
            pass
        started.send_signal(signal.SIGTERM)
        read_until(started, "new requests are refused, 3 accepted ones are worked on")
        assert predict(url).status_code == 503
        assert not any(each.done() for each in in_hand)
        assert started.stdin is not None
        started.stdin.write("\n" * 3)
        started.stdin.flush()
        assert [each.result().status_code for each in in_hand] == [200] * 3
        assert started.wait(30) == 0


def test_accepted_requests_finish_while_new_ones_are_refused(small_repository: SmallRepository) -> None:
    """A request whose body is still on its way when SIGTERM comes is answered; meanwhile new ones get 503 with Retry-After, health
    still answers, and the process ends with 0 afterwards."""
    with process("--port", "0", NORMSCOPE_MODEL_REPOSITORY=str(small_repository.folder)) as started:
        url = ready_url(started)
        with unfinished_request(url) as accepted:
            started.send_signal(signal.SIGTERM)
            refused = poll(url, 503)
            assert refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["code"] == "not_ready"
            assert httpx.get(f"{url}/livez").status_code == 200
            accepted.sendall(b"}")
            answer = received(accepted)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer
        assert started.wait(30) == 0


def test_a_request_that_takes_too_long_is_told_so(small_repository: SmallRepository) -> None:
    """A request that does not finish within `shutdown_grace_s` is answered 503, not cut; the process still ends with 0."""
    repository = str(small_repository.folder)
    with process("--port", "0", "--shutdown-grace-s", "1", NORMSCOPE_MODEL_REPOSITORY=repository) as started:
        with unfinished_request(ready_url(started)) as accepted:
            started.send_signal(signal.SIGTERM)
            answer = received(accepted)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"not_ready" in answer
        assert started.wait(30) == 0


@pytest.mark.parametrize("delay", ["0", "1000"])
def test_a_second_signal_ends_the_process_at_once(small_repository: SmallRepository, delay: str) -> None:
    """While the service drains, or waits for a request that never ends, a second signal ends it, with the status of a signal."""
    repository = str(small_repository.folder)
    with (
        process("--port", "0", "--drain-delay-s", delay, NORMSCOPE_MODEL_REPOSITORY=repository) as started,
        unfinished_request(ready_url(started)),
    ):
        started.send_signal(signal.SIGTERM)
        read_until(started, "stopping: not ready any more" if delay == "1000" else "1 accepted")
        started.send_signal(signal.SIGTERM)
        assert started.wait(30) == 128 + signal.SIGTERM


def test_a_second_signal_does_not_wait_for_a_run(small_repository: SmallRepository) -> None:
    """While a model runs, a second signal ends the process, and the connection of the request."""
    repository = str(small_repository.folder)
    with (
        process("--port", "0", module="tests.held", NORMSCOPE_MODEL_REPOSITORY=repository) as started,
        ThreadPoolExecutor(1) as clients,
    ):
        in_hand = clients.submit(predict, ready_url(started))
        read_until(started, "run of 1")
        started.send_signal(signal.SIGTERM)
        read_until(started, "1 accepted")
        started.send_signal(signal.SIGTERM)
        assert started.wait(30) == 128 + signal.SIGTERM
        assert isinstance(in_hand.exception(), httpx.TransportError)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"NORMSCOPE_PORT": "many"}, "port"),
        ({"NORMSCOPE_MAX_INPUTS": "0"}, "max_inputs"),
        ({"NORMSCOPE_MODEL_REPOSITORY": "/nowhere"}, "/nowhere"),
        ({"NORMSCOPE_DATABASE_URL": "secret"}, "NORMSCOPE_DATABASE_URL is no URL; write postgresql://"),
        ({"NORMSCOPE_DATABASE_URL": "postgresql://me:secret@host:port/name"}, "NORMSCOPE_DATABASE_URL is no URL"),
        (
            {"NORMSCOPE_DATABASE_URL": "mysql://me:secret@host/name"},
            "NORMSCOPE_DATABASE_URL begins with 'mysql'; write postgresql://",
        ),
    ],
)
def test_wrong_settings_are_named(environment: dict[str, str], expected: str) -> None:
    """A setting that cannot be used ends the process with status 1 and a message that names it, without a traceback."""
    with process(**environment) as started:
        output, _ = started.communicate(timeout=60)
        assert started.returncode == 1
        assert expected in output
        assert "Traceback" not in output
        assert "secret" not in output


def test_a_missing_driver_is_named(tmp_path: Path) -> None:
    """Without the extra, a URL of PostgreSQL ends the process with status 1 and a message that names setting and remedy."""
    (tmp_path / "psycopg.py").write_text("raise ModuleNotFoundError('No module named psycopg', name='psycopg')")
    with process(NORMSCOPE_DATABASE_URL="postgresql://me:secret@host/name", PYTHONPATH=str(tmp_path)) as started:
        output, _ = started.communicate(timeout=60)
        assert started.returncode == 1
        assert "NORMSCOPE_DATABASE_URL" in output
        assert "pip install 'normscope[postgres]'" in output
        assert "Traceback" not in output
        assert "secret" not in output


@pytest.mark.parametrize(("options", "expected"), [([], False), (["--watch"], True), (["--no-watch"], False)])
def test_switches_take_no_value(options: list[str], expected: bool) -> None:
    """What is true or false is switched on by its name, and off by `no-` before it."""
    assert CliApp.run(Settings, cli_args=options).watch == expected


def test_help_lists_every_setting() -> None:
    """--help names every setting with its description."""
    with process("--help") as started:
        output, _ = started.communicate(timeout=60)
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in output
        assert field.description
        assert field.description.split()[0] in output
