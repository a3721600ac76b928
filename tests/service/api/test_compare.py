"""Two stretches of time beside each other, asked from a real server."""

import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from service.settings import Settings
from tests.conftest import SmallRepository, running_server
from tests.networks import SENTENCES

URL = "/v1/models/text/statistics/compare"


@pytest.fixture(scope="module")
def busy(small_repository: SmallRepository) -> Iterator[httpx.Client]:
    """A client of a server with windows of one second; in one window some texts, and in a later one others."""
    settings = Settings.model_validate(
        {"model_repository": small_repository.folder, "statistics_sample": 1, "statistics_window_s": 1}
    )
    with running_server(settings) as client:
        yield client


def _served(client: httpx.Client, texts: list[str]) -> tuple[str, list[dict[str, float]]]:
    """Serves texts within windows of their own; gives these windows and, of each text, the first layer before its norm."""
    layers = []
    start = _seconds()
    while (now := _seconds()) == start:  # the window that holds others may end first
        pass
    for text in texts:
        answer = client.post("/v1/models/text/predict?statistics=summary", json={"inputs": text}).json()
        layers.append(answer["predictions"][0]["layers"][0]["before"])
    end = _seconds() + 1
    while _seconds() < end:
        pass
    return f"{np.datetime64(now, 's')}..{np.datetime64(end, 's')}", layers


def _seconds() -> int:
    """By the clock that the server reads too."""
    return int(time.time())


def test_windows_are_compared_request_by_request(busy: httpx.Client) -> None:
    """The effect is that of the single answers, sorted by its size, with as many requests as each window had."""
    first, of_first = _served(busy, [SENTENCES[0], SENTENCES[1]] * 3)
    second, of_second = _served(busy, [SENTENCES[2], SENTENCES[3]] * 2)
    answer = busy.get(URL, params={"a": second, "b": first}).json()
    assert (answer["a"]["requests"], answer["b"]["requests"]) == (4, 6)
    a, b = (np.array([layer["l2"] for layer in layers]) for layers in (of_second, of_first))
    found = next(
        each
        for each in answer["differences"]
        if (each["layer"], each["side"], each["statistic"]) == ("embedding_norm", "before", "l2")
    )
    pooled = np.sqrt((a.var() * 4 + b.var() * 6) / 8)
    assert found["effect"] == pytest.approx((a.mean() - b.mean()) / pooled, rel=1e-3)
    assert found["effect_low"] < found["effect"] < found["effect_high"]
    assert found["variance_ratio"] == pytest.approx(a.var(ddof=1) / b.var(ddof=1), rel=1e-3)
    assert (found["requests_a"], found["requests_b"]) == (4, 6)
    sizes = [abs(each["effect"]) for each in answer["differences"] if each["effect"] is not None]
    assert sizes == sorted(sizes, reverse=True)
    layers = busy.get("/v1/models/text/layers").json()["layers"]
    adds = sum(layer["kind"] == "residual_add" for layer in layers)
    assert len(answer["differences"]) == 3 * (2 * (len(layers) - adds) + 3 * adds) + 2 * adds


def test_an_empty_window_has_no_effect(busy: httpx.Client) -> None:
    """Where one side has no requests every measure is null, and the answer says how many each had."""
    answer = busy.get(URL, params={"a": "-1h..now", "b": "-3d..-2d", "layers": "embedding_norm", "side": "after"}).json()
    assert answer["b"]["requests"] == 0
    assert [each["statistic"] for each in answer["differences"]] == ["request_mean", "request_std", "l2"]
    assert all(each["effect"] is None and each["stability"] is None for each in answer["differences"])


@pytest.mark.parametrize(
    ("params", "status", "says"),
    [
        ({"a": "-1h..now", "b": "reference"}, 409, "has no reference"),
        ({"a": "-1h", "b": "-2h..-1h"}, 422, "a: '-1h' is no stretch of time"),
        ({"a": "-1h..now", "b": "-1h..-2h"}, 422, "b: -1h is not before -2h"),
        ({"a": "-1h..now", "b": "nonsense"}, 422, "write -2h..-1h, or reference"),
        ({"a": "..", "b": "-2h..-1h"}, 422, "a: '' is no time"),
        ({"a": "-1h..now"}, 422, "b"),
        ({"a": "-1h..now", "b": "-2h..-1h", "layers": "nothing"}, 404, "matches 'nothing'"),
    ],
)
def test_what_cannot_be_compared_is_refused(busy: httpx.Client, params: dict[str, str], status: int, says: str) -> None:
    """A 4xx names the parameter and the way out."""
    answer = busy.get(URL, params=params)
    assert answer.status_code == status, answer.text
    assert says in answer.text
