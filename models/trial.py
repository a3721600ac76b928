"""Runs a graph that nobody has described on made-up inputs: what its tensors look like, and whether its inputs are batches.

Rules:
    1. Where axis 0 of every input is dynamic, it may be the batch: it is tried with 2, then 3.
    2. Other dynamic dimensions get one extent of a list, the first that the graph can run with; then another, to see what follows.
    3. Axis 0 is the batch if it is also axis 0 of every output, and a row gives alone what it gives among others. Weights that are
       quantized while the graph runs, by the range of the whole batch, fail that.
    4. Otherwise inputs are run one by one: axis 0 of the inputs is set to 1, where the graph does not run so by the name of the
       dimension, or else is left to the request.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from models.artifact import TensorSpec
from models.instrument.taps import add_taps, widen

_EXTENTS = (8, 16, 32, 64, 128, 224, 256, 512, 640, 1)
_FURTHER = 4  # added to an extent for the second run
_TOLERANCE = 0.01  # of the root mean square of an output; float16 stays below, quantization by the batch does not
_ONE_BY_ONE = (
    "axis 0 of the inputs is no batch that can be split into rows that do not depend on each other: requests run one by one"
)
_BATCH = r"(?i)n|b|.*batch.*"


@dataclass(frozen=True)
class Run:
    """One run that went well.

    Attributes:
        batch: axis 0 of the inputs; 1 where there is no batch.
        extents: of the other dynamic dimensions, by name.
        shapes: output or tapped tensor -> its shape.
    """

    batch: int
    extents: dict[str, int]
    shapes: Mapping[str, tuple[int, ...]]


class TrialError(ValueError):
    """The graph cannot be run: what ONNX Runtime says, and what to do."""


@dataclass(frozen=True)
class Trial:
    """What the runs have shown.

    Attributes:
        batched: axis 0 of every input and output is the batch.
        inputs: of the graph, as requests are to give them.
        runs: with different extents, where the graph can run with different ones.
        notes: what was found out, for people.
    """

    batched: bool
    inputs: list[TensorSpec]
    runs: tuple[Run, ...]
    notes: tuple[str, ...] = ()


class TrialSession:
    """A graph with taps, ready for runs on made-up inputs."""

    def __init__(
        self, model: onnx.ModelProto, weights: Path, inputs: Sequence[TensorSpec], tensors: Sequence[str], ones: str | None
    ):
        """Loads the graph.

        Args:
            model: may be without the weights that lie in the folder `weights`.
            weights: the folder of the model.
            inputs: of the graph.
            tensors: to tap.
            ones: an input that is filled with ones: the mask.

        Raises:
            TrialError: ONNX Runtime cannot load it.
        """
        self.inputs, self._ones = inputs, ones
        self.names = [value.name for value in model.graph.output]
        widened = widen(model, tensors)
        self._names = {name: name for name in self.names} | {name: widened.get(name, name) for name in tensors}
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
        try:
            tapped = add_taps(model, list(self._names.values())).SerializeToString()
            self._session = onnxruntime.InferenceSession(tapped, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's and protobuf's exceptions share no base
            raise TrialError(f"ONNX Runtime {onnxruntime.__version__} cannot load the graph: {error}") from error

    def feed(self, extents: Mapping[str, int], batch: int | None) -> dict[str, NDArray[Any]]:
        """Inputs with these extents, and axis 0 of this extent unless it is None: numbers, flags and token ids of 0 and 1."""
        random = np.random.default_rng(0)
        made = {}
        for spec in self.inputs:
            named = spec.shape if batch is None else [batch, *spec.shape[1:]]
            shape = [extent if isinstance(extent, int) else extents[str(extent)] for extent in named]
            made[spec.name] = _values(spec, shape, random, ones=spec.name == self._ones)
        return made

    def run(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All outputs and tapped tensors; raises whatever ONNX Runtime raises."""
        return dict(zip(self._names, self._session.run(list(self._names.values()), dict(feed)), strict=True))

    def outputs(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs of the graph alone."""
        return list(self._session.run(self.names, dict(feed)))


def _values(spec: TensorSpec, shape: Sequence[int], random: np.random.Generator, *, ones: bool) -> NDArray[Any]:
    if spec.dtype == "string":
        return np.full(shape, "", object)
    if ones:
        return np.ones(shape, spec.dtype)
    if np.dtype(spec.dtype).kind == "f":
        return random.standard_normal(shape).astype(spec.dtype)
    return random.integers(0, 2, shape).astype(spec.dtype)


def try_graph(session: TrialSession, given: Mapping[str, int]) -> Trial:
    """Finds out by a few runs what no graph says of itself.

    Args:
        session: of the graph.
        given: extents of dynamic dimensions that are known to fit.

    Raises:
        TrialError: the graph runs with none of the extents that were tried.
    """
    inputs = list(session.inputs)
    may_batch = all(spec.shape and not isinstance(spec.shape[0], int) for spec in inputs)
    first = {str(spec.shape[0]) for spec in inputs} if may_batch else set()
    names = {str(extent) for spec in inputs for extent in spec.shape if not isinstance(extent, int)} - first
    if may_batch and (run := _search(session, names, given, 2)):
        runs = (run, _further(session, run, given, 3))
        if _rows_are_independent(session, runs):
            return Trial(True, _with_batch(inputs, _batch_name(inputs)), runs)
    if may_batch and all(re.fullmatch(_BATCH, name) for name in first) and (run := _search(session, names, given, 1)):
        return Trial(False, _with_batch(inputs, 1), (run, _further(session, run, given, 1)), (_ONE_BY_ONE,))
    run = _search(session, names | first, given, None)
    if run is None:
        raise _failure(session, names | first, given)
    return Trial(False, inputs, (run, _further(session, run, given, None)), (_ONE_BY_ONE,))


def _search(session: TrialSession, names: set[str], given: Mapping[str, int], batch: int | None) -> Run | None:
    """Rule 2: the first extents that work."""
    for extent in _EXTENTS:
        extents = dict.fromkeys(sorted(names), extent) | {name: given[name] for name in names if name in given}
        if run := _run(session, extents, batch):
            return run
        if not names - given.keys():
            break
    return None


def _further(session: TrialSession, run: Run, given: Mapping[str, int], batch: int | None) -> Run:
    """A run with other extents; with the same where the graph can run with no others."""
    others = {name: extent if name in given else extent + _FURTHER for name, extent in run.extents.items()}
    return _run(session, others, batch) or _run(session, run.extents, batch) or run


def _run(session: TrialSession, extents: dict[str, int], batch: int | None) -> Run | None:
    feed = session.feed(extents, batch)
    try:
        values = session.run(feed)
    except Exception:  # of ONNX Runtime, for inputs that a graph cannot take
        return None
    return Run(1 if batch is None else batch, extents, {name: np.shape(value) for name, value in values.items()})


def _rows_are_independent(session: TrialSession, runs: Sequence[Run]) -> bool:
    """Rule 3."""
    feed = session.feed(runs[0].extents, runs[0].batch)
    together = session.outputs(feed)
    if any(run.shapes[name][:1] != (run.batch,) for run in runs for name in session.names):
        return False
    try:
        alone = session.outputs({name: value[1:] for name, value in feed.items()})
    except Exception:  # a graph that is made for more rows than one
        return False
    return all(_alike(one[0], row[1]) for one, row in zip(alone, together, strict=True))


def _alike(one: NDArray[Any], other: NDArray[Any]) -> bool:
    if one.shape != other.shape or one.dtype.kind != "f":
        return one.shape == other.shape
    one, other = one.astype(np.float64), other.astype(np.float64)
    finite = np.isfinite(one) & np.isfinite(other)
    if not finite.any():
        return True
    scale = float(np.sqrt((other[finite] ** 2).mean()))
    return bool(np.abs(one[finite] - other[finite]).max() <= _TOLERANCE * scale)


def _batch_name(inputs: Sequence[TensorSpec]) -> str:
    names = {str(spec.shape[0]) for spec in inputs}
    return names.pop() if len(names) == 1 and "." not in str(inputs[0].shape[0]) else "batch"


def _with_batch(inputs: Sequence[TensorSpec], batch: int | str) -> list[TensorSpec]:
    return [spec.model_copy(update={"shape": [batch, *spec.shape[1:]]}) for spec in inputs]


def _failure(session: TrialSession, names: set[str], given: Mapping[str, int]) -> TrialError:
    extents = dict.fromkeys(sorted(names), _EXTENTS[0]) | dict(given)
    feed = session.feed(extents, None)
    try:
        session.run(feed)
    except Exception as error:  # whatever the graph does
        tried = ", ".join(f"{name}={extent}" for name, extent in extents.items() if name in names) or "its fixed shapes"
        problem = str(error).strip().partition("\n")[0]
        return TrialError(f"the graph does not run with {tried}: {problem}; give extents that fit by --extent NAME=NUMBER")
    raise AssertionError("a graph that failed before runs now")
