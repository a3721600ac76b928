"""The process `python -m service`: starts, answers, stops with status 0, and says what is wrong."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from service.settings import Settings
from tests.conftest import SmallRepository

ROOT = Path(__file__).parent.parent.parent


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """`python -m service` with these options and settings; killed at the end if it still runs."""
    started = subprocess.Popen(
        [sys.executable, "-m", "service", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_with_status_0(small_repository: SmallRepository, number: signal.Signals) -> None:
    """The process serves on a free port and exits with 0 at the signal."""
    with process("--port", "0", NORMSCOPE_MODEL_REPOSITORY=str(small_repository.folder)) as started:
        url = read_until(started, r"running on (http://[\d.]+:\d+)")[1]
        assert httpx.get(f"{url}/livez").status_code == 200
        started.send_signal(number)
        assert started.wait(30) == 0


def test_accepted_requests_are_answered_after_the_signal(small_repository: SmallRepository) -> None:
    """A request whose body is still on its way when SIGTERM comes is answered; only then the process ends, with 0."""
    with process("--port", "0", NORMSCOPE_MODEL_REPOSITORY=str(small_repository.folder)) as started:
        url = read_until(started, r"running on (http://[\d.]+:\d+)")[1]
        read_until(started, r"vision/1 is ready")

        def body() -> Iterator[bytes]:
            yield b'{"inputs": '
            started.send_signal(signal.SIGTERM)
            read_until(started, "Shutting down")
            yield b'"hello"}'

        answer = httpx.post(
            f"{url}/v1/models/text/predict", content=body(), headers={"Content-Type": "application/json"}, timeout=30
        )
        assert answer.status_code == 200
        assert started.wait(30) == 0


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"NORMSCOPE_PORT": "many"}, "port"),
        ({"NORMSCOPE_MAX_INPUTS": "0"}, "max_inputs"),
        ({"NORMSCOPE_MODEL_REPOSITORY": "/nowhere"}, "/nowhere"),
    ],
)
def test_wrong_settings_are_named(environment: dict[str, str], expected: str) -> None:
    """A setting that cannot be used ends the process with status 1 and a message that names it, without a traceback."""
    with process(**environment) as started:
        output, _ = started.communicate(timeout=60)
        assert started.returncode == 1
        assert expected in output
        assert "Traceback" not in output


def test_help_lists_every_setting() -> None:
    """--help names every setting with its description."""
    with process("--help") as started:
        output, _ = started.communicate(timeout=60)
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in output
        assert field.description
        assert field.description.split()[0] in output
