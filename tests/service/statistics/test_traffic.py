"""What waits to be merged or stored: how little of it is held, and what is counted where something does not fit."""

import gc
import weakref

import pytest

from models.artifact import load_artifact
from service.engine.repository import Repository
from service.settings import Settings
from service.statistics.store import StatisticsStore
from service.statistics.traffic import TrafficStatistics
from tests.conftest import SmallRepository
from tests.service.statistics.made import LAYOUT, SERIES, Clock, batch, serve


@pytest.mark.parametrize("channels", [False, True])
def test_only_a_batch_that_lists_its_channels_keeps_them(channels: bool) -> None:
    """What holds the moments of every channel goes with the run, unless they are to count for their hour."""
    traffic = TrafficStatistics(SERIES, 60, Clock())
    added = batch(2, seed=0)
    held = weakref.ref(added.channels.__self__)  # type: ignore[attr-defined]  # a bound method
    traffic.add(added, channels=channels)
    del added
    gc.collect()
    assert (held() is not None) is channels
    traffic.absorb()
    gc.collect()
    assert held() is None
    assert [part.sampled for part in traffic.pending_channels(0, 4e9)] == ([2] if channels else [])


def test_what_was_unloaded_and_stored_is_forgotten(small_repository: SmallRepository) -> None:
    """The statistics of a model that is closed leave the memory once all is stored; one that is served keeps its place, and
    of its last window the moments alone.
    """
    manifest = load_artifact(small_repository.folder / "text" / "1").manifest
    clock = Clock()
    store = StatisticsStore(Settings(), clock)
    traffic = store.traffic_of(manifest, LAYOUT)
    assert store.traffic_of(manifest, LAYOUT) is traffic  # the same weights, loaded again before the first are closed
    serve(traffic, 2, seed=0)
    traffic.release()
    assert store.writer.store()
    clock.now += 7200
    assert store.writer.store()
    assert store.traffic() == [traffic]
    assert (last := traffic.last_window()) is not None
    assert last[1].values.count[0] == 2
    serve(traffic, 1, seed=1)
    traffic.release()
    assert store.traffic() == [traffic]
    clock.now += 7200
    assert store.writer.store()
    assert store.traffic() == []
    store.close()


def test_a_closed_model_releases_its_statistics(small_repository: SmallRepository) -> None:
    """Unloaded, a model that served nothing leaves nothing behind."""
    settings = Settings(model_repository=small_repository.folder)
    store = StatisticsStore(settings)
    repository = Repository(settings, store.traffic_of)
    repository.load_all()
    assert sorted(traffic.series.model for traffic in store.traffic()) == ["text", "vision"]
    repository.unload("text")
    assert [traffic.series.model for traffic in store.traffic()] == ["vision"]
    repository.close()
    assert store.traffic() == []
    store.close()
