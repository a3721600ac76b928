"""Memory, measured in processes of its own: it comes back after unloading, and many shapes do not let it grow."""

import asyncio
import itertools
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from models.graph_import import ImportOptions, import_graph
from service.engine.inputs import TensorInput
from service.engine.repository import Repository
from service.settings import Settings
from tests.graphs import graph_of, save, weights
from tests.memory import held_mb, in_fresh_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")

_ROUNDS = 6
_WIDE = 2048
_WEIGHTS_MB = _WIDE * _WIDE * 4 / 1e6
_NARROW = 512
_SHAPES = list(itertools.product((1, 3, 5, 8), range(1, 200, 22)))  # batch, length
_ACTIVATIONS = 4  # x, its product, the sum, y
_ALL_SHAPES_MB = sum(batch * length for batch, length in _SHAPES) * _NARROW * 4 * _ACTIVATIONS / 1e6


def _import(folder: Path, width: int) -> None:
    """`folder/m/1`: y = LayerNorm(x + x W), float32 (batch, length, width) -> the same."""
    shape: list[int | str] = ["batch", "length", width]
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["f"]),
        onnx.helper.make_node("Add", ["f", "x"], ["s"], name="add"),
        onnx.helper.make_node("LayerNormalization", ["s", "gamma"], ["y"], name="norm"),
    ]
    constants = {"w": weights(width, width), "gamma": np.ones(width, np.float32)}
    model = graph_of(nodes, {"x": (1, shape)}, {"y": (1, shape)}, constants)
    import_graph(save(model, folder / "m.onnx"), folder / "m" / "1", ImportOptions())


def _predict(repository: Repository, batch: int, length: int, width: int) -> None:
    """One request with statistics and one without."""
    rows = [TensorInput((np.ones((length, width), np.float32),)) for _ in range(batch)]
    with repository.reserve("m") as served:
        for statistics in (False, True):
            asyncio.run(served.predict(rows, statistics=statistics))


def _of_rounds(folder: Path) -> list[tuple[float, float]]:
    """MB after loading and running, and MB after unloading, of each round."""
    repository = Repository(Settings(model_repository=folder))
    held = []
    for _ in range(_ROUNDS):
        repository.load("m")
        _predict(repository, 2, 5, _WIDE)
        loaded_mb = held_mb()
        repository.unload("m")
        held.append((loaded_mb, held_mb()))
    repository.close()
    return held


def test_memory_comes_back_after_unloading(tmp_path: Path) -> None:
    """Each unloading gives back what the model held, at least its weights in each of two sessions; from the second time to the
    sixth not even half of the weights stay behind."""
    _import(tmp_path, _WIDE)
    held = in_fresh_process(_of_rounds, tmp_path)
    assert len(held) == _ROUNDS
    assert all(loaded_mb - unloaded_mb > 2 * _WEIGHTS_MB for loaded_mb, unloaded_mb in held), held
    assert held[-1][1] - held[1][1] < _WEIGHTS_MB / 2, held


def _after_all_shapes(folder: Path, passes: int) -> list[float]:
    """MB after each pass over all shapes."""
    repository = Repository(Settings(model_repository=folder, threads=1))
    repository.load("m")
    held = []
    order = np.random.default_rng(0)
    for _ in range(passes):
        for batch, length in order.permutation(_SHAPES):
            _predict(repository, int(batch), int(length), _NARROW)
        held.append(held_mb())
    repository.close()
    return held


def test_many_shapes_do_not_let_memory_grow(tmp_path: Path) -> None:
    """Batches and lengths in another order each time: what the first passes took serves the others. Memory that belonged to a shape
    would show, and memory that is not reused would grow by the activations of all shapes with each pass."""
    _import(tmp_path, _NARROW)
    held = in_fresh_process(_after_all_shapes, tmp_path, 6)
    assert held[-1] - held[1] < _ALL_SHAPES_MB / 2, held
