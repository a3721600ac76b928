"""Sessions share the memory of their activations, from several threads at once and without touching each other's numbers."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.engine.graph import PreparedGraph
from service.engine.session import Session

_WIDTH = 64
_MEGABYTES_OF_A_RUN = 64


def squares() -> PreparedGraph:
    """logits = sum over each row of relu(x @ w), with large activations on the way."""
    weight = np.random.default_rng(0).standard_normal((_WIDTH, 16384)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Sin", ["r"], ["s"]),
        helper.make_node("ReduceSum", ["s", "axes"], ["logits"], keepdims=0),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", _WIDTH])
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch"])
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array([1]), "axes")]
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return PreparedGraph(model.SerializeToString(), ("logits",), "cpu")


def test_runs_at_once_do_not_disturb_each_other() -> None:
    """Four sessions in four threads give what each gives alone."""
    sessions = [Session(squares(), 1) for _ in range(4)]
    feeds = [np.random.default_rng(i).standard_normal((1 + 5 * i, _WIDTH)).astype(np.float32) for i in range(4)]
    alone = [session.run({"x": x}).outputs[0] for session, x in zip(sessions, feeds, strict=True)]

    def run(i: int) -> NDArray[np.float32]:
        return sessions[i % 4].run({"x": feeds[i % 4]}).outputs[0]

    with ThreadPoolExecutor(4) as threads:
        for i, logits in enumerate(threads.map(run, range(80))):
            np.testing.assert_array_equal(logits, alone[i % 4])


def test_sessions_do_not_keep_activations_of_their_own() -> None:
    """In a fresh process eight sessions that have run hold little more than one."""
    code = f"""
import numpy as np
from tests.service.engine.test_arena import squares, Session, _WIDTH
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6
x = np.ones(({_MEGABYTES_OF_A_RUN} * 1024 * 1024 // 4 // 16384, _WIDTH), np.float32)
sessions = [Session(squares(), 1)]
sessions[0].run({{"x": x}})
before = resident()
for _ in range(7):
    sessions.append(Session(squares(), 1))
    sessions[-1].run({{"x": x}})
print(resident() - before)
"""
    grown = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    weights = 7 * _WIDTH * 16384 * 4 / 1e6
    assert grown < weights + 3 * _MEGABYTES_OF_A_RUN  # with arenas of their own: 7 times at least
