"""The inside of one model, for those who look at single inputs: photos or texts in, stages of layers or what a change does out.

Apart from the batchers: one thread, each input by itself, so that padding never exists.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.artifact import Artifact, Layer
from models.statistics.layers import BatchReducer, RunOutputs, SideLayout
from models.statistics.stages import describe_stages
from service.engine.batching import run_error
from service.engine.changes import Change, ChannelMoments, Key, formulas_key, renormalization, set_values
from service.engine.inputs import InputReader, Item, TensorInput
from service.engine.opened import OpenedRun, OpenedSession
from service.engine.outcomes import Outcome, outcomes_of
from service.engine.session import Feed
from service.engine.workroom import Task, Workroom
from service.settings import Settings

Stages = dict[str, dict[str, dict[str, Any]]]
"""Layer -> side -> what is told of it."""
_MOST_VARIANTS = 2  # opened graphs with other formulas that are kept, each with a copy of the weights


@dataclass(frozen=True)
class DescribedOutcome:
    """Of one run, which the activations do not outlive: many inputs would hold gigabytes.

    Attributes:
        outcome: without statistics.
        layers: the statistics of the chosen layers as the API shows them.
    """

    outcome: Outcome
    layers: list[dict[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """One input, run as the model is and with the changes."""

    original: DescribedOutcome
    changed: DescribedOutcome


class Interior:
    """Looks into a model; its graph is opened by the first request that wants to.

    Args:
        artifact: the model.
        reader: of its inputs.
        settings: of the service.
        moments: of what enters each layer, by its name, from the reference of the artifact; empty without one.
    """

    def __init__(
        self, artifact: Artifact, reader: InputReader, settings: Settings, moments: Mapping[str, ChannelMoments] | None = None
    ) -> None:
        self._artifact, self._reader, self._settings = artifact, reader, settings
        self._moments = moments or {}
        manifest = artifact.manifest
        self._workroom = Workroom(f"{manifest.name}-{manifest.version}", settings.max_experiments)
        # of the thread of the workroom alone
        self._opened: OpenedSession | None = None
        self._variants: OrderedDict[Key, OpenedSession] = OrderedDict()

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
                stages.append(_stages(task, session, run, layers))
            return stages

        return await self._workroom.do(work, timeout_s)

    async def what_if(
        self, items: Sequence[Item], changes: Sequence[Change], layers: Sequence[Layer], timeout_s: float
    ) -> list[Comparison]:
        """Runs each input twice, with the changes and without, and takes the statistics of these layers both times.

        Raises:
            NoReferenceError: a change needs the reference of the artifact, which has none.
            InvalidRequestError: a change cannot be made at a layer.
            As for `stages`.
        """

        def work(task: Task) -> list[Comparison]:
            original = self._session()
            task.go_on()
            changed = self._variant(formulas_key(changes, original.places))
            values = set_values(changes, original.places)
            comparisons = []
            for row in self._rows(task, items):
                before = self._outcome(original, row, layers, {})
                task.go_on()
                after = self._outcome(changed, row, layers, values)
                task.go_on()
                comparisons.append(Comparison(before, after))
            return comparisons

        return await self._workroom.do(work, timeout_s)

    def _session(self) -> OpenedSession:
        if self._opened is None:
            self._opened = OpenedSession(self._artifact, self._settings.provider)
        return self._opened

    def _variant(self, key: Key) -> OpenedSession:
        """The opened graph with other formulas; those that were used last are kept."""
        original = self._session()
        if not key:
            return original
        if key not in self._variants:
            wanted = {
                name: renormalization(
                    original.layers[name], original.places[name].formula, normalization, groups, self._moments.get(name)
                )
                for name, normalization, groups in key
            }
            while len(self._variants) >= _MOST_VARIANTS:
                self._variants.popitem(last=False)
            self._variants[key] = OpenedSession(self._artifact, self._settings.provider, wanted)
        self._variants.move_to_end(key)
        return self._variants[key]

    def _outcome(
        self, session: OpenedSession, row: TensorInput, layers: Sequence[Layer], values: Mapping[str, NDArray[np.float32]]
    ) -> DescribedOutcome:
        feed = self._reader.feed([row])
        run = self._run(session, feed, layers, values)
        layout = SideLayout(tuple(session.layers[layer.layer] for layer in layers))
        statistics = BatchReducer(layout).reduce(RunOutputs(run.tensors), feed).sample(0)
        (outcome,) = outcomes_of(self._artifact.manifest, run.outputs, [row], [None])
        return DescribedOutcome(outcome, statistics.describe(layout.layers, channels=False))

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


def _stages(task: Task, session: OpenedSession, run: OpenedRun, layers: Sequence[Layer]) -> Stages:
    described: Stages = {}
    for layer in layers:
        task.go_on()
        tensors = {side: run.tensors[tensor] for side, tensor in session.layers[layer.layer].tensors.items()}
        described[layer.layer] = describe_stages(layer, tensors, session.places[layer.layer].formula)
    return described
