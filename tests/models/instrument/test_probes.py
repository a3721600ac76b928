"""One tiny graph for each rule of the passes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.instrument.graph import Graph
from models.instrument.graph_file import remarks
from models.instrument.naming import module_path
from models.instrument.norms import find_norms
from models.instrument.probes import find_probes
from models.instrument.residual_adds import find_residual_adds
from models.instrument.taps import UnknownTensorError, add_taps


def graph_of(
    nodes: list[onnx.NodeProto], weights: Mapping[str, tuple[int, ...]], shape: tuple[int | str, ...] = ("batch", 4, 8, 8)
) -> onnx.ModelProto:
    """A model from x to y with random weights of the given shapes."""
    rng = np.random.default_rng(0)
    initializers = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), name) for name, s in weights.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def node(operator: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    """A node whose inputs are separated by spaces; two spaces leave one out."""
    return helper.make_node(operator, inputs.split(" "), [output], name=f"{operator}.{output}", **attributes)


def adds_of(nodes: list[onnx.NodeProto], weights: Mapping[str, tuple[int, ...]]) -> list[tuple[str, str]]:
    """(identity, residual) of every residual add."""
    return [(add.identity, add.residual) for add in find_residual_adds(Graph(graph_of(nodes, weights)))]


@pytest.mark.parametrize(
    ("operator", "kind", "extra", "attributes"),
    [
        ("BatchNormalization", "batch_norm", " g b m v", {}),
        ("LayerNormalization", "layer_norm", " w8 w8", {"axis": -1}),
        ("GroupNormalization", "group_norm", " g b", {"num_groups": 2}),
        ("InstanceNormalization", "instance_norm", " g b", {}),
        ("RMSNormalization", "rms_norm", " w8", {"axis": -1}),
    ],
)
def test_every_normalization_operator_is_found(operator: str, kind: str, extra: str, attributes: dict[str, object]) -> None:
    """Rules 1 and 2 of norms: kind, sides, parameters, epsilon and channel axis of each operator."""
    weights = dict.fromkeys("gbmv", (4,)) | {"w8": (8,)}
    model = graph_of([node(operator, "x" + extra, "y", epsilon=0.25, **attributes)], weights)
    (probe,) = find_probes(model)
    last = kind in ("layer_norm", "rms_norm")
    assert (probe.kind, probe.tensors) == (kind, {"before": "x", "after": "y"})
    assert probe.channel_axis == (3 if last else 1)
    assert probe.epsilon == 0.25
    assert probe.shape == ["batch", 4, 8, 8]
    assert probe.gamma is not None
    expected = Graph(model).constant("w8" if last else "g")
    assert expected is not None
    assert probe.gamma.tolist() == expected.tolist()
    assert (probe.beta is None) == (kind == "rms_norm")


def test_folded_batch_norm_is_not_guessed() -> None:
    """Rule 3 of norms: a convolution with a bias has no norm."""
    assert find_norms(Graph(graph_of([node("Conv", "x w b", "y")], {"w": (4, 4, 1, 1), "b": (4,)}))) == []


@pytest.mark.parametrize("attributes", [{}, {"training_mode": 1}])
def test_batch_norm_in_training_is_no_probe(attributes: dict[str, object]) -> None:
    """Rule 4 of norms: with training_mode, or with further outputs as before opset 14, it normalizes by the batch; that is said."""
    batch_norm = node("BatchNormalization", "x g b m v", "n", **attributes)
    if not attributes:
        batch_norm.output.extend(["mean", "var"])
    model = graph_of([batch_norm, node("LayerNormalization", "n w8 w8", "y", axis=-1)], dict.fromkeys("gbmv", (4,)) | {"w8": (8,)})
    assert [probe.kind for probe in find_probes(model)] == ["layer_norm"]
    (said,) = remarks(model, norms=1)
    assert "1 BatchNormalization take mean and variance of the batch" in said
    assert remarks(model, norms=0) == [said]


_CONV: dict[str, tuple[int, ...]] = {"w": (4, 4, 1, 1), "w2": (4, 4, 1, 1), "w3": (4, 4, 1, 1)}


@pytest.mark.parametrize("order", ["x f", "f x"])
def test_identity_shortcut(order: str) -> None:
    """Rule 1 of adds: x + F(x), whichever side is written first."""
    nodes = [node("Conv", "x w", "f"), node("Add", order, "y")]
    assert adds_of(nodes, _CONV) == [("x", "f")]


def test_identity_through_operators_that_pass_values_on() -> None:
    """Rule 1 of adds: a Pad, Slice or Transpose on the shortcut leaves it an identity."""
    nodes = [
        node("Transpose", "x", "t", perm=[0, 1, 3, 2]),
        node("Identity", "t", "i"),
        node("Conv", "x w", "f"),
        node("Add", "f i", "y"),
    ]
    assert adds_of(nodes, _CONV) == [("i", "f")]


def test_projection_shortcut() -> None:
    """Rule 2 of adds: one convolution with its norm on the shortcut, more on the branch."""
    nodes = [
        node("Conv", "x w", "a"),
        node("Relu", "a", "r"),
        node("Conv", "r w2", "f"),
        node("Conv", "x w3", "p"),
        node("BatchNormalization", "p g b m v", "n"),
        node("Add", "f n", "y"),
    ]
    assert adds_of(nodes, _CONV | dict.fromkeys("gbmv", (4,))) == [("n", "f")]


def test_a_projection_whose_norm_is_written_out() -> None:
    """Rule 2 of adds: the frozen norm of a detector is a product and a sum with constants, and belongs to the projection."""
    nodes = [
        node("Conv", "x w", "a"),
        node("Relu", "a", "r"),
        node("CastLike", "scale r", "of_its_type"),  # as torch writes it; nothing reads values there
        node("Conv", "r w2", "f"),
        node("Conv", "x w3", "p"),
        node("Mul", "p of_its_type", "m"),
        node("Add", "m shift", "n"),
        node("Add", "f n", "y"),
    ]
    assert adds_of(nodes, _CONV | dict.fromkeys(("scale", "shift"), (1, 4, 1, 1))) == [("n", "f")]


def test_a_sum_of_two_is_an_add() -> None:
    """Caffe2 writes Sum; one of three tensors joins no two paths."""
    nodes = [node("Conv", "x w", "f"), node("Sum", "x f", "s"), node("Conv", "s w2", "g"), node("Sum", "s g x", "y")]
    assert adds_of(nodes, _CONV) == [("x", "f")]


def test_position_embeddings_of_every_layer_are_no_identity() -> None:
    """Rule 9 of adds: in the second layer the features depend on the embedding, which the first has added; only x + F(x) counts."""
    nodes = [
        node("Conv", "x w", "s0"),
        node("CumSum", "x axis", "places"),
        node("Add", "s0 places", "q0"),
        node("Conv", "q0 w2", "f0"),
        node("Add", "s0 f0", "s1"),
        node("Add", "s1 places", "q1"),
        node("Conv", "q1 w3", "f1"),
        node("Shape", "f1", "extents"),  # tells no values
        node("Add", "s1 f1", "y"),
    ]
    assert adds_of(nodes, _CONV | {"axis": ()}) == [("s0", "f0"), ("s1", "f1")]


def test_projections_of_features_and_of_their_positions_are_no_residual() -> None:
    """Rule 9 of adds: the features of the second layer go on, so that what is made of them is no F of the positions."""
    nodes = [
        node("Conv", "x w", "s0"),
        node("CumSum", "x axis", "places"),
        node("Add", "s0 places", "q0"),
        node("Conv", "q0 w2", "f0"),
        node("Add", "s0 f0", "s1"),
        node("Conv", "s1 w3", "content"),
        node("Conv", "places w4", "position"),
        node("Add", "content position", "q1"),
        node("Conv", "q1 w", "f1"),
        node("Add", "s1 f1", "y"),
    ]
    assert adds_of(nodes, _CONV | {"axis": (), "w4": (4, 4, 1, 1)}) == [("s0", "f0"), ("s1", "f1")]


def test_identity_wins_over_projection() -> None:
    """Rule 5 of adds: a branch of a single convolution is F, not a projection of x."""
    nodes = [node("Conv", "x w", "f"), node("Add", "f x", "y")]
    assert adds_of(nodes, _CONV) == [("x", "f")]


@pytest.mark.parametrize("order", ["p n", "n p"])
def test_the_shorter_of_two_projections_is_the_shortcut(order: str) -> None:
    """Rule 5 of adds: of two sides that are one convolution of x, that without a norm is the shortcut, in either order."""
    nodes = [
        node("Conv", "x w", "p"),
        node("Conv", "x w2", "c"),
        node("BatchNormalization", "c g b m v", "n"),
        node("Add", order, "y"),
    ]
    assert adds_of(nodes, _CONV | dict.fromkeys("gbmv", (4,))) == [("p", "n")]


def test_chained_blocks() -> None:
    """Two blocks in a row are two adds, the first one's sum being the second one's identity."""
    nodes = [
        node("Conv", "x w", "f1"),
        node("Add", "f1 x", "s1"),
        node("Relu", "s1", "r"),
        node("Conv", "r w2", "f2"),
        node("Add", "f2 r", "y"),
    ]
    assert adds_of(nodes, _CONV) == [("x", "f1"), ("r", "f2")]


_NOT_RESIDUAL: dict[str, tuple[list[onnx.NodeProto], Mapping[str, tuple[int, ...]]]] = {
    "bias": ([node("Conv", "x w", "f"), node("Add", "f b", "y")], _CONV | {"b": (1, 4, 1, 1)}),
    "bias cast from float16": (
        [node("Cast", "b", "c", to=TensorProto.FLOAT), node("Conv", "x w", "f"), node("Add", "f c", "y")],
        _CONV | {"b": (1, 4, 1, 1)},
    ),
    "bias in another shape": (
        [node("Reshape", "b4 shape", "r"), node("Conv", "x w", "f"), node("Add", "f r", "y")],
        _CONV | {"b4": (4,), "shape": (4,)},
    ),
    "tanh form of GELU": (
        [
            node("Conv", "x w", "u"),
            node("Mul", "u u", "u2"),
            node("Mul", "u2 u", "u3"),
            node("Mul", "u3 k", "k3"),
            node("Add", "u k3", "y"),
        ],
        _CONV | {"k": (1,)},
    ),
    "rotary embedding": (
        [
            node("MatMul", "x w8", "q"),
            node("Mul", "q cos", "a"),
            node("Neg", "q", "rotated"),
            node("Mul", "rotated sin", "b"),
            node("Add", "a b", "y"),
        ],
        {"w8": (8, 8), "cos": (8,), "sin": (8,)},
    ),
    "attention and MLP in parallel": (
        [
            node("MatMul", "x w8", "q"),
            node("Softmax", "q", "p"),
            node("MatMul", "p w8", "attention"),
            node("MatMul", "x v8", "h"),
            node("Relu", "h", "r"),
            node("MatMul", "r v8", "mlp"),
            node("Add", "attention mlp", "y"),
        ],
        {"w8": (8, 8), "v8": (8, 8)},
    ),
    "lateral sum of a feature pyramid": (
        [
            node("Conv", "x w", "lateral"),
            node("MaxPool", "x", "low", kernel_shape=[2, 2], strides=[2, 2]),
            node("Conv", "low w2", "top"),
            node("Resize", "top  scales", "up", mode="nearest"),
            node("Add", "lateral up", "y"),
        ],
        _CONV | {"scales": (4,)},
    ),
    "embeddings of tokens and of their positions": (
        [
            node("Gather", "table x", "tokens"),
            node("CumSum", "x axis", "positions"),
            node("Gather", "places positions", "places_of"),
            node("Add", "tokens places_of", "y"),
        ],
        {"table": (50, 8), "places": (16, 8), "axis": ()},
    ),
    "mask of the extents": (
        [
            node("MatMul", "x w8", "scores"),
            node("Shape", "x", "extents"),
            node("ConstantOfShape", "extents", "mask"),
            node("Add", "scores mask", "y"),
        ],
        {"w8": (8, 8)},
    ),
}


@pytest.mark.parametrize("name", _NOT_RESIDUAL)
def test_other_adds_are_not_residual(name: str) -> None:
    """Rules 3, 4 and 6 of adds: sums that join no branch with its own identity are left alone."""
    nodes, weights = _NOT_RESIDUAL[name]
    assert adds_of(nodes, weights) == []


def test_deep_chains_need_no_recursion() -> None:
    """A branch of three thousand operators is followed to its fork."""
    nodes = [node("Conv", "x w", "t0")]
    nodes += [node("Relu", f"t{i}", f"t{i + 1}") for i in range(3000)]
    nodes.append(node("Add", "x t3000", "y"))
    assert adds_of(nodes, _CONV) == [("x", "t3000")]


def test_probes_come_in_the_order_of_execution() -> None:
    """Norms and adds are listed as they run; an add takes the channel axis of the nearest norm."""
    nodes = [
        node("Conv", "x w", "c"),
        node("BatchNormalization", "c g b m v", "n"),
        node("Add", "n x", "s"),
        node("LayerNormalization", "s w8 w8", "y", axis=-1),
    ]
    model = graph_of(nodes, _CONV | dict.fromkeys("gbmv", (4,)) | {"w8": (8,)})
    assert [(p.kind, p.channel_axis) for p in find_probes(model)] == [("batch_norm", 1), ("residual_add", 1), ("layer_norm", 3)]


def test_taps_change_nothing_but_the_outputs() -> None:
    """The tapped model has the same nodes and one more output for each tensor, once."""
    model = graph_of([node("Conv", "x w", "f"), node("Add", "f x", "y")], _CONV)
    tapped = add_taps(model, ["f", "x", "f", "y"])
    assert [value.name for value in tapped.graph.output] == ["y", "f", "x"]
    assert tapped.graph.node == model.graph.node
    assert len(model.graph.output) == 1


def test_an_unknown_tap_is_named() -> None:
    """A tensor that the graph does not make is an error that names it."""
    with pytest.raises(UnknownTensorError, match="'nowhere'"):
        add_taps(graph_of([node("Conv", "x w", "y")], _CONV), ["nowhere"])


def test_a_mask_added_to_scores_is_no_identity() -> None:
    """Rule 7 of adds: an earlier layer has added the same mask, so that it reaches the scores through that layer."""
    nodes = [
        node("Where", "condition x zero", "mask"),
        node("MatMul", "x w8", "scores"),
        node("Add", "scores mask", "masked"),
        node("Softmax", "masked", "attention"),
        node("MatMul", "attention w8", "scores2"),
        node("Add", "scores2 mask", "masked2"),
        node("Reshape", "masked2 shape", "r"),
        node("Softmax", "r", "y"),
    ]
    assert adds_of(nodes, {"w8": (8, 8), "condition": (8,), "zero": (1,), "shape": (4,)}) == []


def test_a_relative_bias_before_a_mask_is_no_identity() -> None:
    """Rule 7 of adds: the scores get a bias that all layers share, then a mask, then they go into the Softmax."""
    nodes = [
        node("Where", "condition x zero", "mask"),
        node("Relu", "x", "bias"),
        node("MatMul", "x w8", "scores"),
        node("Add", "scores bias", "biased"),
        node("Add", "biased mask", "masked"),
        node("Softmax", "masked", "y"),
    ]
    assert adds_of(nodes, {"w8": (8, 8), "condition": (8,), "zero": (1,)}) == []


def test_an_element_of_a_sequence_is_named_once() -> None:
    """TorchScript's exporter names a sequence and its element, which has the name of the sequence in it."""
    nodes = [onnx.helper.make_node("Relu", ["x"], ["y"], name=f"/encoder/layer/layer.{i}/norm/Relu") for i in (0, 0)]
    assert module_path(nodes) == "encoder.layer.0.norm"


def test_layers_are_named_by_module_and_told_apart() -> None:
    """A path in the names of nodes becomes the path of the module; the second of the same name is numbered."""
    nodes = [node("Conv", "x w", "f"), node("Add", "x f", "s"), node("Conv", "s w2", "h"), node("Add", "s h", "y")]
    for each in nodes:
        each.name = f"/layers.0/{each.op_type}_{each.output[0]}"
    assert [probe.layer for probe in find_probes(graph_of(nodes, _CONV))] == ["layers.0.add", "layers.0.add.2"]
