"""ONNX Runtime behind one small door: a prepared graph in, its outputs and what is watched out. Knows no HTTP and no statistics."""

from collections.abc import Mapping
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from models.instrument.observers import COLUMNS, FIELDS, LISTED, LISTED_FIELDS, RELATIONS, SUMMARY, ChannelList
from models.instrument.scores import RANKING, SCORES
from service.engine.arena import share_arena
from service.engine.graph import PreparedGraph

_SLOW_S = 0.005  # from here on the threads of a run gain more than handing work to them costs
_QUICK_S = 0.001
_NONE = {COLUMNS: np.zeros(0, np.int64), LISTED: np.zeros((0, LISTED_FIELDS, 0), np.float32)}
Feed = Mapping[str, NDArray[Any]]


class RunResult(NamedTuple):
    """What one run hands out.

    Attributes:
        outputs: of the model, in the order of its manifest.
        scored: the scores of the classes and their order, see `scores.py`; None where the graph does not make them.
        tensors: the tapped ones (N, ...) by name.
        summary: float64 (N, ...), the numbers of the observers; None without any.
        channels: the same by channel; None where they were not asked for.
    """

    outputs: tuple[NDArray[Any], ...]
    scored: tuple[NDArray[np.float64], NDArray[np.int64]] | None
    tensors: dict[str, NDArray[np.floating]]
    summary: NDArray[np.float64] | None
    channels: ChannelList | None


class Session:
    """One loaded graph. `run` may be called from several threads at once."""

    def __init__(self, graph: PreparedGraph, threads: int) -> None:
        """Loads a graph for runs on so many threads.

        Raises:
            ArtifactError: ONNX Runtime cannot load the graph, or the provider is not installed or does not start.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # models take turns on the same cores: a pool that spins while idle would take them from the other
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        share_arena(options)
        # a pattern takes all activations of a run as one piece: photos run 5 % faster, but two runs at once hardly share what lies
        # free; for both shipped models 25 MB if plain graphs have one, 100 if runs of watched ones beside each other do, too
        options.enable_mem_pattern = threads > 1 or not graph.observers
        self._session, self._shared = graph.load(options), graph.shared
        self._taps, self._scored = graph.taps, graph.scored
        self._count = len(graph.outputs)
        scored = (SCORES, RANKING) if graph.scored else ()
        self._outputs = [*graph.outputs, *scored, *(graph.widened.get(tap, tap) for tap in graph.taps)]
        self._rows = np.array([len(observer.rows) for observer in graph.observers], int)
        self._columns: NDArray[np.int64] | None = None

    def run(self, feed: Feed, *, channels: bool = False) -> RunResult:
        """Runs the graph once on arrays (N, ...); `channels` also hands out what the observers see of each channel."""
        if not len(self._rows):
            return self._result(None, self._session.run(self._outputs, dict(feed)), None)
        if not channels:
            return self._run(feed, None)
        if self._columns is not None:
            try:
                return self._run(feed, self._columns)
            except InvalidArgument:  # the extents of the channels are others than before, or the feed is none
                pass
        summary = self._run(feed, None).summary
        assert summary is not None  # there are observers
        counts = summary[0, np.cumsum(FIELDS * self._rows + RELATIONS) - 1].astype(np.int64)
        self._columns = columns = np.concatenate([[0], np.cumsum(self._rows * counts)])
        return self._run(feed, columns)

    def _run(self, feed: Feed, columns: NDArray[np.int64] | None) -> RunResult:
        listed, given = None, _NONE
        if columns is not None:
            samples = len(next(iter(feed.values())))
            listed = ChannelList(columns, np.empty((samples, LISTED_FIELDS, columns[-1]), np.float32))
            given = {COLUMNS: columns, LISTED: listed.values}
        summary, *outputs = self._session.run([SUMMARY, *self._outputs], {**feed, **given})
        return self._result(summary, outputs, listed)

    def _result(self, summary: NDArray[np.float64] | None, given: list[NDArray[Any]], listed: ChannelList | None) -> RunResult:
        outputs, made = tuple(given[: self._count]), given[self._count :]
        scored = (made[0], made[1]) if self._scored else None
        made = made[2 * self._scored :]
        return RunResult(outputs, scored, dict(zip(self._taps, made, strict=True)), summary, listed)


class Sessions:
    """One graph, loaded for many runs at once on one thread each, and a second time for one run on all threads.

    On the same cores, runs beside each other finish more inputs in a second than one run on many threads: here 1.1 times as many
    photos and 1.6 times as many texts. A single run is slower so, unless it takes less time than handing its parts to threads does;
    so the second session exists only where a run takes long enough.

    Attributes:
        runs_at_once: how many runs beside each other are best.
        quick: whether the event loop can wait for a run.
    """

    def __init__(self, graph: PreparedGraph, threads: int, example: Feed) -> None:
        """Loads the sessions and runs each, so that the first request is as fast as the others.

        Raises:
            ArtifactError: the graph cannot be loaded.
        """
        self.runs_at_once = threads if graph.provider == "cpu" else 1
        self._narrow = self._wide = Session(graph, 1)
        self._narrow.run(example)
        seconds = min(_seconds(self._narrow, example) for _ in range(3))
        self.quick = seconds < _QUICK_S
        if self.runs_at_once > 1 and seconds > _SLOW_S:
            self._wide = Session(graph, threads)
            self._wide.run(example)

    def run(self, feed: Feed, *, alone: bool, channels: bool = False) -> RunResult:
        """Runs the graph once on arrays (N, ...), on all threads if nothing else runs. From several threads at once."""
        return (self._wide if alone else self._narrow).run(feed, channels=channels)


def _seconds(session: Session, feed: Feed) -> float:
    start = perf_counter()
    session.run(feed)
    return perf_counter() - start
