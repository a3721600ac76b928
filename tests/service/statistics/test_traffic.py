"""What waits to be merged or stored: how little of it is held, and what is counted where something does not fit."""

import gc
import itertools
import weakref

import pytest
from pydantic import ValidationError

from models.artifact import load_artifact
from models.statistics.layers import SideLayout
from service.engine.repository import Repository
from service.metrics import Metrics
from service.settings import Settings
from service.statistics.store import StatisticsStore
from service.statistics.traffic import Dropped, TrafficStatistics
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


def test_windows_shorter_than_the_interval_of_storing_are_all_kept() -> None:
    """With windows of one second that are stored every five minutes, every one is there to be stored."""
    clock = Clock()
    traffic = TrafficStatistics(SERIES, 1, clock)
    for second in range(300):
        clock.now += 1
        serve(traffic, 1, seed=second)
    assert [part.sampled for part in traffic.changed()] == [1] * 300
    assert traffic.dropped == Dropped()


def test_storing_may_not_wait_longer_than_windows_are_kept() -> None:
    """Windows are kept an hour before they are merged into hours; an interval that comes near is refused with its limit."""
    assert Settings(statistics_flush_s=1800).statistics_flush_s == 1800
    with pytest.raises(ValidationError, match=r"statistics_flush_s\n.*less than or equal to 1800"):
        Settings(statistics_flush_s=1801)


def test_a_window_is_made_into_bytes_once() -> None:
    """However often storing fails, what has not changed is not made again; what has is."""
    clock = Clock()
    traffic = TrafficStatistics(SERIES, 60, clock)
    serve(traffic, 1, seed=0)
    clock.now += 60
    serve(traffic, 1, seed=1)
    first, second = traffic.changed()
    (channels,) = traffic.changed_channels()
    serve(traffic, 1, seed=2)
    again = traffic.changed()
    assert again[0] is first
    assert (again[1].part, again[1].requests) == (second.part, 2)
    assert again[1].sketches != second.sketches
    traffic.count(1)
    assert traffic.changed()[1].requests == 3
    assert traffic.changed_channels()[0] is channels


def test_requests_and_samples_of_a_batch_fall_into_one_window() -> None:
    """A batch at the end of a window is counted and sampled in the same one, whenever the clock is read."""
    ticking = itertools.count(1_800_000_000 - 30, 60)  # another window at every look
    traffic = TrafficStatistics(SERIES, 60, lambda: next(ticking))
    traffic.add(batch(3, seed=0))
    traffic.count(2)
    traffic.add(batch(1, seed=1))
    assert [(part.requests, part.sampled) for part in traffic.changed()] == [(3, 3), (2, 0), (1, 1)]


def test_weights_that_share_a_version_share_its_metrics(small_repository: SmallRepository) -> None:
    """After a model was replaced under its version, what waits and what was dropped of both is one line of the metrics."""
    settings = Settings(model_repository=small_repository.folder)
    store = StatisticsStore(settings, Clock())
    manifest = load_artifact(small_repository.folder / "text" / "1").manifest
    for layout in (LAYOUT, SideLayout(LAYOUT.layers[:1])):
        store.traffic_of(manifest, layout).count(2)
    for traffic in store.traffic():
        traffic.absorb()
        traffic.drop_before(1_900_000_000)
        traffic.count(1)
        traffic.absorb()
    text, _ = Metrics(Repository(settings), store).expose()
    lines = [line for line in text.decode().splitlines() if line.startswith("normscope_statistics_") and "_created" not in line]
    assert len({line.rpartition(" ")[0] for line in lines}) == len(lines) == 7
    assert 'normscope_statistics_waiting_windows{model="text",version="1"} 2.0' in lines
    assert 'normscope_statistics_dropped_requests_total{model="text",version="1"} 4.0' in lines
    assert 'normscope_statistics_dropped_channel_samples_total{model="text",version="1"} 0.0' in lines
    store.close()
