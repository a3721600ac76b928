"""The inside of one model, for those who look at single inputs: photos or texts in, every stage of chosen layers out.

Apart from the batchers: one thread, each input by itself, so that padding never exists.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.artifact import Artifact, Layer
from models.statistics.stages import describe_stages
from service.engine.batching import run_error
from service.engine.inputs import InputReader, Item, TensorInput
from service.engine.opened import OpenedRun, OpenedSession
from service.engine.session import Feed
from service.engine.workroom import Task, Workroom
from service.settings import Settings

Stages = dict[str, dict[str, dict[str, Any]]]
"""Layer -> side -> what is told of it."""


class Interior:
    """Looks into a model; its graph is opened by the first request that wants to."""

    def __init__(self, artifact: Artifact, reader: InputReader, settings: Settings) -> None:
        self._artifact, self._reader, self._settings = artifact, reader, settings
        manifest = artifact.manifest
        self._workroom = Workroom(f"{manifest.name}-{manifest.version}", settings.max_experiments)
        self._opened: OpenedSession | None = None

    async def stages(self, items: Sequence[Item], layers: Sequence[Layer], timeout_s: float) -> list[Stages]:
        """Of each input the histograms, quantiles and normalized values of these layers.

        Raises:
            InvalidInputError: an input cannot be used.
            ModelRunError: the model fails on an input.
            NotOfferedError: the graph cannot be opened.
            OverloadedError: `max_experiments` are in hand.
            DeadlineExceededError: the time is over.
        """

        def work(task: Task) -> list[Stages]:
            session = self._session()
            stages = []
            for row in self._rows(task, items):
                feed = self._reader.feed([row])
                run = self._run(session, feed, layers)
                stages.append(_stages(task, session, run, feed, layers))
            return stages

        return await self._workroom.do(work, timeout_s)

    def _session(self) -> OpenedSession:
        if self._opened is None:
            self._opened = OpenedSession(self._artifact, self._settings.provider)
        return self._opened

    def _rows(self, task: Task, items: Sequence[Item]) -> list[TensorInput]:
        rows = []
        for item in items:
            task.go_on()
            if isinstance(item, bytes):
                rows.append(self._reader.image(item))
            elif isinstance(item, str):
                (row,) = self._reader.texts([item])
                if isinstance(row, Exception):
                    raise row
                rows.append(row)
            else:
                rows.append(item)
        return rows

    def _run(
        self,
        session: OpenedSession,
        feed: Feed,
        layers: Sequence[Layer],
        values: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> OpenedRun:
        try:
            return session.run(feed, [layer.layer for layer in layers], values)
        except Exception as error:  # whatever a graph does with an input that it was not made for
            raise run_error(error) from error

    def close(self) -> None:
        """Waits for what is in hand."""
        self._workroom.close()


def _stages(task: Task, session: OpenedSession, run: OpenedRun, feed: Feed, layers: Sequence[Layer]) -> Stages:
    described: Stages = {}
    for layer in layers:
        task.go_on()
        mask = feed[layer.mask].astype(bool) if layer.mask else None
        described[layer.layer] = describe_stages(layer, run.tensors[layer.layer], session.places[layer.layer].formula, mask)
    return described
