"""The statistics over traffic, asked from a real server."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.settings import Settings
from tests.conftest import SmallRepository, running_server
from tests.networks import SENTENCES

URL = "/v1/models/text/statistics"


def settings_of(repository: SmallRepository, **changed: object) -> Settings:
    """Everything is sampled, and nothing of the environment counts."""
    return Settings.model_validate({"model_repository": repository.folder, "statistics_sample": 1, **changed})


@pytest.fixture(scope="module")
def busy(small_repository: SmallRepository) -> Iterator[httpx.Client]:
    """A client of a server that has answered one request for each of the sentences."""
    with running_server(settings_of(small_repository)) as client:
        for text in SENTENCES:
            client.post("/v1/models/text/predict", json={"inputs": text}).raise_for_status()
        yield client


def test_statistics_survive_a_restart(small_repository: SmallRepository, tmp_path: Path) -> None:
    """What was counted before the service stopped is there after it has started again, each request once."""
    settings = settings_of(small_repository, data_dir=tmp_path)
    answers = []
    for served in (1, 2):
        with running_server(settings) as client:
            client.post("/v1/models/text/predict", json={"inputs": SENTENCES[0]}).raise_for_status()
            answers.append(client.get(URL).json())
        assert (answers[-1]["requests"], answers[-1]["sampled"], answers[-1]["complete"]) == (served, served, True)
    first, second = (answer["layers"][0]["before"] for answer in answers)
    assert second["count"] == 2 * first["count"]
    assert second["mean"] == pytest.approx(first["mean"])
