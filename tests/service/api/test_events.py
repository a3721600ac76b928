"""The stream of windows for live pages, read from a real server, and the metrics of chosen layers."""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import httpx
import pytest

from service.settings import Settings
from tests.conftest import SmallRepository, running_server
from tests.networks import SENTENCES

URL = "/v1/models/text/events"


@pytest.fixture(scope="module")
def live(small_repository: SmallRepository) -> Iterator[httpx.Client]:
    """A client of a server with windows of one second that shows two layers in its metrics."""
    settings = Settings.model_validate(
        {
            "model_repository": small_repository.folder,
            "statistics_sample": 1,
            "statistics_window_s": 1,
            "metrics_layers": "embedding_norm, *.add*",
        }
    )
    with running_server(settings) as client:
        yield client


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """Each as its fields, with `data` read."""
    fields: dict[str, Any] = {}
    for line in response.iter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = json.loads(value) if name == "data" else value
        else:
            if "data" in fields:
                yield fields
            fields = {}


def test_every_window_is_one_event(live: httpx.Client) -> None:
    """With or without traffic, windows follow each other without a gap; what was served is in one of them."""
    served = False
    with live.stream("GET", URL, params={"layers": "embedding_norm", "side": "before"}) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        found = []
        for event in _events(response):
            found.append(event)
            if event["data"]["requests"]:
                break
            if not served:
                live.post("/v1/models/text/predict", json={"inputs": SENTENCES[0]}).raise_for_status()
                served = True
    ids = [int(event["id"]) for event in found]
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    assert {event["event"] for event in found} == {"window"}
    last = found[-1]["data"]
    assert (last["requests"], last["sampled"], last["complete"]) == (1, 1, True)
    (layer,) = last["layers"]
    assert set(layer) == {"layer", "kind", "before"}
    assert layer["before"]["count"] > 0


def test_a_client_that_comes_back_gets_what_it_missed(live: httpx.Client) -> None:
    """With the id of the last event it had, the next one is the one after it."""
    with live.stream("GET", URL) as response:
        first = next(_events(response))
    with live.stream("GET", URL, headers={"Last-Event-ID": first["id"]}) as response:
        following = list(islice(_events(response), 2))
    assert [int(event["id"]) for event in following] == [int(first["id"]) + 1, int(first["id"]) + 2]


@pytest.mark.parametrize(
    ("params", "headers", "status"),
    [
        ({"layers": "nothing"}, {}, 404),
        ({"side": "up"}, {}, 422),
        ({}, {"Last-Event-ID": "x"}, 422),
        ({}, {"Last-Event-ID": "-1"}, 422),
        ({}, {"Last-Event-ID": "0"}, 200),
        ({}, {"Last-Event-ID": "99999999999999999999999"}, 422),
    ],
)
def test_a_stream_that_cannot_be_is_refused(
    live: httpx.Client, params: dict[str, str], headers: dict[str, str], status: int
) -> None:
    """Before the stream begins, with the status of what is wrong; an id that is long past starts with the recent windows."""
    with live.stream("GET", URL, params=params, headers=headers) as response:
        assert response.status_code == status


def test_streams_end_with_the_service(small_repository: SmallRepository) -> None:
    """A service that stops ends its streams; it does not wait for clients that read on."""
    with running_server(Settings(model_repository=small_repository.folder)) as client:
        response = client.send(client.build_request("GET", URL), stream=True)
        lines = response.iter_lines()
        assert next(lines) == "retry: 2000"
    response.close()


def test_metrics_show_chosen_layers(live: httpx.Client) -> None:
    """Of the chosen layers alone, mean and standard deviation of each side and the residual ratio, over the last window, and when
    that began.
    """
    live.post("/v1/models/text/predict", json={"inputs": SENTENCES[0]}).raise_for_status()
    with live.stream("GET", URL) as response:
        window = next(event for event in _events(response) if event["data"]["requests"])
    lines = live.get("/metrics").text.splitlines()
    (start,) = (line for line in lines if line.startswith("normscope_layer_window_start_seconds"))
    assert float(start.split()[1]) == int(window["id"])
    shown = [line for line in lines if line.startswith("normscope_layer_") and line != start]
    layers = live.get("/v1/models/text/layers").json()["layers"]
    chosen = [layer for layer in layers if layer["layer"] == "embedding_norm" or ".add" in layer["layer"]]
    adds = sum(layer["kind"] == "residual_add" for layer in chosen)
    assert len(shown) == 2 * (2 * (len(chosen) - adds) + 3 * adds) + adds > 0
    assert all('model="text"' in line for line in shown)
    assert any(line.startswith('normscope_layer_mean{layer="embedding_norm",model="text",side="before"') for line in shown)


def test_metrics_stay_bounded(small_repository: SmallRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many layers a pattern matches, no more than the bound are shown of each model."""
    monkeypatch.setattr("service.metrics._MAX_LAYERS", 2)
    settings = Settings.model_validate(
        {"model_repository": small_repository.folder, "statistics_sample": 1, "statistics_window_s": 1, "metrics_layers": "*"}
    )
    with running_server(settings) as client:
        client.post("/v1/models/text/predict", json={"inputs": SENTENCES[0]}).raise_for_status()
        with client.stream("GET", URL) as response:
            next(_events(response))
        text = client.get("/metrics").text
    assert len({line.split('layer="')[1].split('"')[0] for line in text.splitlines() if line.startswith("normscope_layer_m")}) == 2
