"""What waits to be merged or stored: how little of it is held, and what is counted where something does not fit."""

import gc
import weakref

import pytest

from service.statistics.traffic import TrafficStatistics
from tests.service.statistics.made import SERIES, Clock, batch


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
