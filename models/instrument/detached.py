"""Takes the large weights out of a graph: what is left is small enough to be rewritten and serialized in a moment, at any size.

The weights go back to ONNX Runtime as initializers of the session: `SessionOptions.add_external_initializers` copies them,
`add_initializer` lets several sessions read them in place.
"""

import math

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

_LARGE = 1 << 16  # elements, as `read_graph`: parameters of normalizations stay
_DETACHED = (TensorProto.FLOAT, TensorProto.FLOAT16)


def detach_weights(model: onnx.ModelProto, most_kept: int = _LARGE) -> dict[str, NDArray[np.floating]]:
    """Takes the values of all floating initializers of more than so many elements out of a model, in place: name -> value."""
    weights = {}
    for tensor in model.graph.initializer:
        if tensor.data_type not in _DETACHED or math.prod(tensor.dims) <= most_kept:
            continue
        weights[tensor.name] = numpy_helper.to_array(tensor)
        for content in ("raw_data", "float_data", "int32_data"):
            tensor.ClearField(content)
        tensor.data_location = TensorProto.EXTERNAL
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value="detached")
    return weights
