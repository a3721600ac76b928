"""GET /v1/models/{model}/drift of a real server, its metrics and its alert; and how the monitor goes through models."""

import asyncio
import json
import logging
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import httpx
import numpy as np
import pytest

from models.statistics.drift import LEAST_REQUESTS
from service.drift import Change, DriftMonitor
from service.engine.repository import Repository
from service.settings import Settings
from service.statistics.drift import DriftWatch
from service.statistics.store import StatisticsStore
from tests.conftest import SmallRepository, running_server
from tests.networks import SENTENCES
from tests.references import quantities, write_reference
from tests.service.receiver import Receiver, receiving
from tests.service.statistics.made import Clock

_SAMPLES = 300
_ALERTED = ("model", "version", "state", "since", "score", "window", "undefined", "first_layer", "layers")


@pytest.fixture(scope="module")
def repository(small_repository: SmallRepository, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`vision/1` without a reference, and `text/1` with one that no text is like: all its values are negative."""
    folder = tmp_path_factory.mktemp("referenced")
    shutil.copytree(small_repository.folder, folder, dirs_exist_ok=True)
    text = folder / "text" / "1"
    write_reference(text, -100 - np.random.default_rng(0).random((_SAMPLES, quantities(text))))
    return folder


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """Of alerts; its first answer is that it is down."""
    with receiving(503) as opened:
        yield opened


@pytest.fixture(scope="module")
def drifted(repository: Path, receiver: Receiver) -> Iterator[tuple[httpx.Client, dict[str, object]]]:
    """A server whose model `text` has just been found to drift, and the alert that told so."""
    settings = Settings.model_validate(
        {
            "model_repository": repository,
            "statistics_sample": 1,
            "statistics_window_s": 1,
            "drift_false_alarms_per_month": 2,
            "metrics_layers": "embedding_norm",
            "alert_webhook": receiver.url,
        }
    )
    with running_server(settings) as client:
        for _ in range(2):
            answer = client.post("/v1/models/text/predict", json={"inputs": (SENTENCES * 30)[:LEAST_REQUESTS]})
            assert answer.status_code == 200, answer.text
        receiver.next()
        headers, body = receiver.next()
        alert = json.loads(body)
        assert headers["X-NormScope-Delivery"] == alert["id"]
        yield client, alert


def test_drift_is_answered_as_it_is_told(drifted: tuple[httpx.Client, dict[str, object]]) -> None:
    """State, since, window and layers are those of the alert; thresholds are those of the setting."""
    client, alert = drifted
    answer = client.get("/v1/models/text/drift").json()
    assert {name: answer[name] for name in _ALERTED} == {name: alert[name] for name in _ALERTED}
    assert (answer["state"], alert["previous"]) == ("drift", None)
    assert answer["window"]["sampled"] >= answer["least_requests"] == LEAST_REQUESTS
    assert (answer["reference_samples"], answer["false_alarms_per_month"]) == (_SAMPLES, 2)
    assert answer["levels"]["drift"] == pytest.approx(2 / (30 * 86_400))
    assert answer["first_layer"]["layer"] == "embedding_norm"
    assert {each["change"] for each in answer["layers"]} == {"higher"}
    assert 0 < len(answer["layers"]) <= 10
    assert answer["history"][-1] == answer["window"]


def test_history_is_limited(drifted: tuple[httpx.Client, dict[str, object]]) -> None:
    """To the newest windows; 0 leaves it out."""
    client, _ = drifted
    whole = client.get("/v1/models/text/drift", params={"limit": 1000}).json()["history"]
    assert client.get("/v1/models/text/drift", params={"limit": 1}).json()["history"] == whole[-1:]
    assert client.get("/v1/models/text/drift", params={"limit": 0}).json()["history"] == []
    assert client.get("/v1/models/text/drift", params={"limit": 1001}).status_code == 422


def test_a_model_without_reference_says_how_to_make_one(drifted: tuple[httpx.Client, dict[str, object]]) -> None:
    """As a comparison with it does."""
    answer = drifted[0].get("/v1/models/vision/drift")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "no_reference")
    assert "models reference" in answer.json()["error"]["remedy"]
    assert drifted[0].get("/v1/models/nobody/drift").status_code == 404


def test_metrics_tell_of_drift_and_alerts(drifted: tuple[httpx.Client, dict[str, object]]) -> None:
    """One state of four is 1; the score and the delivered alert are there; a model without reference has no series."""
    client, alert = drifted
    lines = client.get("/metrics").text.splitlines()
    states = [line for line in lines if line.startswith("normscope_drift_state{")]
    assert sorted(float(line.split()[-1]) for line in states) == [0, 0, 0, 1]
    assert 'normscope_drift_state{model="text",state="drift",version="1"} 1.0' in states
    (score,) = [line for line in lines if line.startswith("normscope_drift_score{")]
    assert float(score.split()[-1]) == pytest.approx(alert["score"])
    assert 'normscope_alerts_total{result="delivered"} 1.0' in lines


def test_metrics_tell_of_drift_by_layer(drifted: tuple[httpx.Client, dict[str, object]]) -> None:
    """Of the chosen layers alone; far out, as here, it is the largest score that there is."""
    lines = drifted[0].get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith("normscope_layer_drift_score{")]
    assert found == ['normscope_layer_drift_score{layer="embedding_norm",model="text",version="1"} ' + str(drifted[1]["score"])]


def test_events_tell_the_state_of_their_window(drifted: tuple[httpx.Client, dict[str, object]]) -> None:
    """That of the window which the alert was about, and null for a model without reference."""
    client, alert = drifted
    before = str(int(datetime.fromisoformat(str(alert["since"])).timestamp()) - 1)
    found = []
    for model, headers in (("text", {"Last-Event-ID": before}), ("vision", {})):
        with client.stream("GET", f"/v1/models/{model}/events", headers=headers) as stream:
            data = next(line for line in stream.iter_lines() if line.startswith("data: "))
        found.append(json.loads(data.removeprefix("data: "))["drift"])
    assert found == ["drift", None]


class Monitored:
    """A monitor over real models, by a clock that the test moves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        settings = Settings(model_repository=folder, statistics_sample=1)
        self.clock = Clock()
        self.store = StatisticsStore(settings, self.clock)
        self.repository = Repository(settings, self.store.traffic_of)
        self.repository.load_all()
        assert self.store.writer.store()
        self.store.writer.attempted.set()
        self.told: list[Change] = []
        self.monitor = DriftMonitor(self.repository, self.store, settings, self.told.append, self.clock)

    def minute(self, n: int) -> None:
        """Serves n texts in a window, and looks once it is complete."""
        served = self.repository.get("text")
        if n:
            asyncio.run(served.predict([SENTENCES[0]] * n, statistics=False))
        self.clock.now += 62
        self.monitor.look()
        self.clock.now -= 2

    def close(self) -> None:
        """Ends all threads."""
        self.repository.close()
        self.store.database.close()


@pytest.fixture
def monitored(repository: Path, tmp_path: Path) -> Iterator[Monitored]:
    """Over a copy of the repository."""
    shutil.copytree(repository, tmp_path, dirs_exist_ok=True)
    opened = Monitored(tmp_path)
    yield opened
    opened.close()


def test_a_window_is_looked_at_once_it_is_complete(monitored: Monitored) -> None:
    """Not in the second after its end, in which requests may still be counted."""
    served = monitored.repository.get("text")
    asyncio.run(served.predict([SENTENCES[0]] * LEAST_REQUESTS, statistics=False))
    for seconds, expected in ((60, "unknown"), (0.9, "unknown"), (0.2, "drift")):
        monitored.clock.now += seconds
        monitored.monitor.look()
        assert monitored.monitor.status(served).state == expected
    assert [(change.previous, change.status.state) for change in monitored.told] == [(None, "drift")]


def test_a_model_that_was_loaded_again_is_watched_on(monitored: Monitored) -> None:
    """With the same weights and reference its state is found again in what was counted; with another reference it begins anew."""
    monitored.minute(LEAST_REQUESTS)
    first = monitored.monitor.statuses["text", "1"]
    monitored.repository.unload("text")
    monitored.monitor.look()
    assert ("text", "1") not in monitored.monitor.statuses
    monitored.repository.load("text")
    monitored.minute(0)
    assert monitored.monitor.statuses["text", "1"].since == first.since
    text = monitored.folder / "text" / "1"
    write_reference(text, -np.random.default_rng(1).random((_SAMPLES, quantities(text))))
    monitored.repository.load("text")
    monitored.minute(0)
    states: list[str] = [monitored.monitor.statuses["text", "1"].state]
    monitored.minute(LEAST_REQUESTS)
    states.append(monitored.monitor.statuses["text", "1"].state)
    assert states == ["unknown", "drift"]


def test_a_model_that_cannot_be_watched_harms_no_other(
    monitored: Monitored, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong is logged, once, and tried again."""

    def fail(*_: object) -> bool:
        raise RuntimeError("broken for the test")

    with monkeypatch.context() as patched:
        patched.setattr(DriftWatch, "look", fail)
        monitored.minute(LEAST_REQUESTS)
        monitored.minute(0)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage() for record in errors] == ["text/1 cannot be watched for drift: broken for the test"]
    monitored.minute(0)
    assert monitored.monitor.statuses["text", "1"].state == "drift"
