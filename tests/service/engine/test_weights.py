"""Weights that several graphs of a model have are in memory once."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from models.artifact import Artifact, load_artifact
from models.graph_import import ImportOptions, import_graph
from models.statistics.layers import SideLayout
from service.engine.graph import PreparedGraph, prepare
from service.engine.session import Session
from service.engine.weights import Weights
from service.statistics.library import library
from tests.conftest import SHIPPED
from tests.graphs import graph_of, weights

_CHANNELS = 64


def test_equal_weights_are_one() -> None:
    """Of one graph or of several; others of the same bytes but another shape or type are not."""
    held = Weights()
    ones = np.ones((4, 6), np.float32)
    first = held.hold({"a": ones, "b": ones.copy(), "c": ones.reshape(6, 4)})
    second = held.hold({"d": ones.T.copy().T, "e": np.ones((4, 6), np.float16), "f": -ones})
    assert first["a"] is first["b"] is second["d"]
    assert len({id(value) for value in (first | second).values()}) == 4
    np.testing.assert_array_equal(second["f"].numpy(), -ones)


def test_weights_begin_with_a_cache_line() -> None:
    """Wherever they lay before; what was given is emptied, since each copy counts while a model is loaded."""
    given = {f"w{i}": np.frombuffer(bytes(4 * i + 404), np.float32, 100, 4 * i) for i in range(16)}
    held = Weights().hold(given)
    assert [value.data_ptr() % 64 for value in held.values()] == [0] * 16
    assert not given


def convolutions(folder: Path, gamma: float) -> Artifact:
    """Two of them, each with a batch normalization; `gamma` is that of one channel of the second."""
    nodes, constants = [], {}
    for i, entering in enumerate(["x", "r0"]):
        names = [f"{name}{i}" for name in ("gamma", "beta", "mean", "var")]
        nodes += [
            helper.make_node("Conv", [entering, f"w{i}"], [f"c{i}"], pads=[1] * 4),
            helper.make_node("BatchNormalization", [f"c{i}", *names], [f"n{i}"], name=f"norm{i}"),
            helper.make_node("Relu", [f"n{i}"], [f"r{i}"]),
        ]
        constants[f"w{i}"] = weights(_CHANNELS, _CHANNELS, 3, 3, seed=i)
        constants |= {name: weights(_CHANNELS, seed=i) for name in names[1:3]}
        constants |= {name: np.ones(_CHANNELS, np.float32) for name in (names[0], names[3])}
    constants["gamma1"][5] = gamma
    shape: list[int | str] = ["batch", _CHANNELS, 6, 6]
    model = graph_of(nodes, {"x": (TensorProto.FLOAT, shape)}, {"r1": (TensorProto.FLOAT, shape)}, constants)
    onnx.save(model, folder / "convolutions.onnx")
    return import_graph(folder / "convolutions.onnx", folder / "convolutions" / "1", ImportOptions())


def both_graphs(artifact: Artifact) -> tuple[PreparedGraph, PreparedGraph]:
    """The plain one and the watched, with their weights held together."""
    layout, held = SideLayout(tuple(artifact.manifest.layers)), Weights()
    watched = prepare(artifact, "cpu", layout.reductions, layout.pairs, held=held)
    return prepare(artifact, held=held), watched


def shared_bytes(*graphs: PreparedGraph) -> int:
    """Of all weights that graphs share among their sessions."""
    values = {id(value): value for graph in graphs for value in graph.shared.values()}
    return sum(value.numpy().nbytes for value in values.values())


@pytest.mark.skipif(library() is None, reason="observe.c is not compiled: no C compiler was found")
@pytest.mark.parametrize(("gamma", "own"), [(0.5, 0), (-1e-6, 0), (0.0, 1)])
def test_a_watched_graph_has_the_weights_of_the_plain_one(gamma: float, own: int, tmp_path: Path) -> None:
    """Those of its convolutions are the same in memory, but for one before a normalization with a channel of gamma 0, of which the
    plain graph has nothing left; both graphs compute the same."""
    plain, watched = both_graphs(convolutions(tmp_path, gamma))
    one = 4 * _CHANNELS**2 * 9
    assert shared_bytes(plain) == shared_bytes(watched) == 2 * one
    assert shared_bytes(plain, watched) == (2 + own) * one
    feed = {"x": weights(3, _CHANNELS, 6, 6, seed=3)}
    results = [Session(graph, 1).run(feed).outputs[0] for graph in (plain, watched)]
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(library() is None, reason="observe.c is not compiled: no C compiler was found")
@pytest.mark.parametrize("name", ["resnet50", "encoder"])
def test_shipped_weights_are_in_memory_once(name: str) -> None:
    """The plain and the watched graph together hold 1 % more than one of them, so that watching costs no second copy."""
    plain, watched = both_graphs(load_artifact(SHIPPED / name / "1"))
    assert shared_bytes(plain) > 4e6
    assert shared_bytes(plain, watched) <= 1.01 * shared_bytes(plain)
