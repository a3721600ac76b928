"""Storing by a real server: killed at any moment, without a place to write, with a database that does not answer."""

import signal
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from service.settings import Settings
from tests.conftest import SmallRepository, running_server
from tests.networks import SENTENCES
from tests.service.test_server import process, ready_url

_FLUSH_S = 0.2
_SLACK_S = 1.0  # for storing itself, on a busy machine
_PREDICT = "/v1/models/text/predict"
_STATISTICS = "/v1/models/text/statistics?since=-1h"


def _environment(repository: SmallRepository, folder: Path) -> dict[str, str]:
    return {
        "NORMSCOPE_MODEL_REPOSITORY": str(repository.folder),
        "NORMSCOPE_DATA_DIR": str(folder),
        "NORMSCOPE_STATISTICS_FLUSH_S": str(_FLUSH_S),
        "NORMSCOPE_STATISTICS_WINDOW_S": "1",
        "NORMSCOPE_STATISTICS_SAMPLE": "1",
        "NORMSCOPE_PORT": "0",
    }


def _ask(client: httpx.Client, seed: int = 0) -> None:
    client.post(_PREDICT, json={"inputs": SENTENCES[seed % len(SENTENCES)]}).raise_for_status()


def _stored(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT coalesce(sum(requests), 0) FROM windows").fetchone()[0])


def test_a_killed_server_loses_one_flush_interval_at_most(small_repository: SmallRepository, tmp_path: Path) -> None:
    """Killed with SIGKILL at any moment, twice: the file is sound, and holds every request that was answered earlier than one
    interval before, and the time that storing itself takes; nothing twice.
    """
    path = tmp_path / "statistics.sqlite"
    stored_before = 0
    for _ in range(2):
        answered: list[float] = []
        with process(**_environment(small_repository, tmp_path)) as started, httpx.Client(base_url=ready_url(started)) as client:
            # long enough that most of it must be there
            while not answered or time.monotonic() < answered[0] + 2 * (_FLUSH_S + _SLACK_S):
                _ask(client, len(answered))
                answered.append(time.monotonic())
            killed = time.monotonic()
            started.send_signal(signal.SIGKILL)
            started.wait()
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        total = _stored(path)
        must = sum(moment < killed - _FLUSH_S - _SLACK_S for moment in answered)
        assert must > 0
        assert stored_before + must <= total <= stored_before + len(answered)
        with process(**_environment(small_repository, tmp_path)) as again, httpx.Client(base_url=ready_url(again)) as client:
            answer = client.get(_STATISTICS).json()
            assert (answer["requests"], answer["complete"]) == (total, True)
            again.terminate()
            again.wait()
        stored_before = total


def test_storing_leaves_nothing_behind(small_repository: SmallRepository, tmp_path: Path) -> None:
    """Of two stores that follow each other the second began after the first had ended, so it holds all that was answered before
    that, while the service goes on answering.
    """
    path = tmp_path / "statistics.sqlite"
    with process(**_environment(small_repository, tmp_path)) as started, httpx.Client(base_url=ready_url(started)) as client:
        asked = 0

        def next_store(known: int) -> int:
            """The requests in the file once their number has changed; others are asked meanwhile."""
            nonlocal asked
            for _ in range(10_000):
                _ask(client, asked)
                asked += 1
                if path.exists() and _exists(path) and (stored := _stored(path)) != known:
                    return stored
            raise AssertionError(f"of {asked} requests {known} are stored, and no more come")

        stored = 0
        for _ in range(5):
            answered = asked
            first = next_store(stored)
            stored = next_store(first)
            assert answered <= stored <= asked


def test_without_a_place_to_write_statistics_stay_in_memory(
    small_repository: SmallRepository, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A data folder that cannot be made is a warning at the start that names the setting; all the rest works."""
    (tmp_path / "file").touch()
    settings = Settings(model_repository=small_repository.folder, statistics_sample=1, data_dir=tmp_path / "file" / "data")
    with running_server(settings) as client:
        _ask(client)
        answer = client.get(_STATISTICS).json()
        assert (answer["requests"], answer["complete"]) == (1, True)
    assert "statistics stay in memory" in caplog.text
    assert "NORMSCOPE_DATA_DIR" in caplog.text


def test_a_database_that_hangs_delays_no_prediction(
    small_repository: SmallRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a store waits for a lock that another program holds, predictions are answered; the metric shows that storing has
    stopped, then that it goes on, and everything is there.
    """
    monkeypatch.setattr("service.statistics.database._WAIT_S", 0.3)
    settings = Settings(model_repository=small_repository.folder, statistics_sample=1, statistics_flush_s=0.05, data_dir=tmp_path)
    with running_server(settings) as client:
        _ask(client)

        def storing() -> bool:
            return "normscope_statistics_storing 1.0" in client.get("/metrics").text

        def wait_until(expected: bool) -> None:
            deadline = threading.Event()
            timer = threading.Timer(30, deadline.set)
            timer.start()
            while storing() is not expected:
                assert not deadline.is_set()
            timer.cancel()

        while not (tmp_path / "statistics.sqlite").exists() or not _exists(tmp_path / "statistics.sqlite"):
            pass
        with closing(sqlite3.connect(tmp_path / "statistics.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            _ask(client)
            wait_until(False)
            for seed in range(20):
                _ask(client, seed)
            assert client.get(_STATISTICS).json()["requests"] == 22
            other.execute("COMMIT")
        wait_until(True)
        text = client.get("/metrics").text
        assert 'normscope_statistics_dropped_samples_total{model="text",reason="storage",version="1"} 0.0' in text
        assert client.get(_STATISTICS).json()["requests"] == 22
    assert _stored(tmp_path / "statistics.sqlite") == 22


def _exists(path: Path) -> bool:
    """Whether the tables were made."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'windows'").fetchone() is not None
