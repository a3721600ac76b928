"""Adds what answers need of a classifier: a graph in, the same graph with the scores of its classes and their order out.

It is `models.postprocessing` as operators, equal but for rounding. Beside an event loop that is busy, numpy gives the interpreter
away with every array of more than 500 numbers, and gets it back long after the work on it is done; a run gives it away once.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.instrument.graph import ONNX, Graph, opset

SCORES = "normscope.scores"
"""float64 (..., classes): the softmax of the logits, or the probabilities as they are."""
RANKING = "normscope.ranking"
"""int64 (..., classes): the classes by their logits, the best first; of equals the one with the lower index."""

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_PROBABLE = ("Softmax", "Sigmoid")
_UNCHANGING = ("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
_LEAST_OPSET = 11  # from here on TopK says which of equals is first


def add_scores(model: onnx.ModelProto, logits: str, *, probabilities: bool = False) -> bool:
    """Adds the outputs `SCORES` and `RANKING` to a model, in place.

    Args:
        model: of any opset.
        logits: one of its outputs, with the classes along its last axis.
        probabilities: it holds these, and not logits.

    Returns:
        false where it stays as it is: its opset is older than 11, or the output is one number or no tensor of floats.
    """
    tensor = next((value.type.tensor_type for value in model.graph.output if value.name == logits), None)
    if opset(model) < _LEAST_OPSET or tensor is None or tensor.elem_type not in _FLOATS:
        return False
    if tensor.HasField("shape") and not tensor.shape.dim:
        return False
    wide, last, least = SCORES if probabilities else f"{SCORES}.logits", f"{RANKING}.last", f"{RANKING}.least"
    shape, count, broken, ordered, best = (f"{RANKING}.{name}" for name in ("shape", "count", "broken", "ordered", "best"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), last))
    model.graph.initializer.append(numpy_helper.from_array(np.array(-np.inf), least))
    model.graph.node.extend(
        [
            helper.make_node("Cast", [logits], [wide], to=TensorProto.DOUBLE),
            *([] if probabilities else [helper.make_node("Softmax", [wide], [SCORES], axis=-1)]),
            # what a graph declares of its outputs may be wrong
            helper.make_node("Shape", [logits], [shape]),
            helper.make_node("Gather", [shape, last], [count]),
            # by logits: the softmax gives equals scores that may differ in the last bit; and NaN compares with nothing
            helper.make_node("IsNaN", [wide], [broken]),
            helper.make_node("Where", [broken, least, wide], [ordered]),
            helper.make_node("TopK", [ordered, count], [best, RANKING], axis=-1),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info(SCORES, TensorProto.DOUBLE, None))
    model.graph.output.append(helper.make_tensor_value_info(RANKING, TensorProto.INT64, None))
    return True


def holds_probabilities(model: onnx.ModelProto, output: str) -> bool:
    """Whether an output of a model comes from a Softmax or Sigmoid, through nothing but changes of type and shape."""
    graph, tensor = Graph(model), output
    while (node := graph.producer(tensor)) is not None and node.op_type in _UNCHANGING:
        tensor = node.input[0]
    return node is not None and node.op_type in _PROBABLE and node.domain in ONNX
