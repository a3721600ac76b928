import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from PIL import Image

from models.artifact import Artifact, DataType, Layer, TensorSpec, write_manifest
from models.data import clinc150, imagenette
from models.evaluation import accuracy, auroc, evaluate, expected_calibration_error, fpr_at_95_tpr, run_logits, text_batches
from models.postprocessing import softmax
from models.preprocessing import ImagePreprocessing, TextPreprocessing, decode_image, encode_text
from tests import graphs
from tests.networks import draft_manifest

_FLOAT, _INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
_PREPROCESSING = ImagePreprocessing(resize=16, crop=16)
_INTENTS = ["balance", "greeting", "weather"]
_QUERIES = {
    "train": [["what is my balance", "balance"], ["hello there friend", "greeting"], ["will it rain today", "weather"]],
    "test": [["my balance today", "balance"], ["hello hello", "greeting"], ["is it rain", "weather"], ["what there", "weather"]],
    "oos_test": [["sing a song", "oos"], ["what is it", "oos"]],
}


def _random(n: int = 300, classes: int = 7) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    return rng.normal(0, 2, (n, classes)).astype(np.float32), rng.integers(0, classes, n)


def _of_confidence(confidences: list[float]) -> NDArray[np.float32]:
    """Logits (n, 2) whose class 0 has these probabilities."""
    p = np.array(confidences)
    return np.stack([np.log(p / (1 - p)), np.zeros_like(p)], 1).astype(np.float32)


def test_accuracy_by_hand() -> None:
    """Two of four right; three of four within the best two; all within the best three."""
    logits = np.array([[3, 2, 1], [1, 3, 2], [2, 1, 3], [3, 2, 1]], dtype=np.float32)
    labels = np.array([0, 1, 0, 2])
    assert accuracy(logits, labels) == 0.5
    assert accuracy(logits, labels, k=2) == 0.75
    assert accuracy(logits, labels, k=3) == 1.0
    assert accuracy(logits, labels, k=5) == 1.0  # more than there are classes


@pytest.mark.parametrize("k", [1, 2, 5, 6, 7])
def test_accuracy_counts_labels_among_the_k_largest(k: int) -> None:
    """As sorting every row says."""
    logits, labels = _random()
    expected = np.mean([label in sorted(range(7), key=lambda c: -row[c])[:k] for row, label in zip(logits, labels, strict=True)])
    assert accuracy(logits, labels, k) == pytest.approx(expected)


def test_probabilities_are_the_softmax() -> None:
    """torch's softmax in float64, within 1e-12; logits in the thousands do not overflow."""
    logits, _ = _random()
    expected = torch.from_numpy(logits).double().softmax(-1).numpy()
    np.testing.assert_allclose(softmax(logits), expected, atol=1e-12)
    np.testing.assert_allclose(softmax(np.array([[5000, -5000, 5000]], np.float32)), [[0.5, 0, 0.5]])


def test_calibration_error_by_hand() -> None:
    """Three at 0.9, two right, and two at 0.62, one right: 3/5 |2/3 - 0.9| + 2/5 |1/2 - 0.62| = 0.188."""
    logits = _of_confidence([0.9, 0.9, 0.9, 0.62, 0.62])
    assert expected_calibration_error(logits, np.array([0, 0, 1, 0, 1])) == pytest.approx(0.188, abs=1e-6)


def test_calibration_error_at_its_ends() -> None:
    """Sure and right is 0, sure and wrong is 1, guessing between two and right half the time is 0."""
    sure = np.array([[100, 0], [0, 100]], dtype=np.float32)
    assert expected_calibration_error(sure, np.array([0, 1])) == pytest.approx(0)
    assert expected_calibration_error(sure, np.array([1, 0])) == pytest.approx(1)
    assert expected_calibration_error(np.zeros((4, 2), np.float32), np.array([0, 0, 1, 1])) == pytest.approx(0)


def test_calibration_error_is_the_published_formula() -> None:
    """Sum over 15 bins of |B| / n |acc(B) - conf(B)|, computed bin by bin from torch's softmax."""
    logits, labels = _random()
    confidence, predicted = torch.from_numpy(logits).double().softmax(-1).max(-1)
    right = predicted.numpy() == labels
    expected = 0.0
    for b in range(15):
        inside = ((confidence > b / 15) & (confidence <= (b + 1) / 15)).numpy()
        if inside.any():
            expected += inside.sum() / len(labels) * abs(right[inside].mean() - confidence.numpy()[inside].mean())
    assert expected_calibration_error(logits, labels) == pytest.approx(expected)


def test_auroc_by_hand() -> None:
    """Of six pairs four are in order and one is a tie: 4.5 / 6."""
    assert auroc(np.array([0.9, 0.5, 0.4]), np.array([0.1, 0.5])) == pytest.approx(4.5 / 6)


def test_auroc_at_its_ends() -> None:
    """1 where all positives score higher, 0 where all score lower, 0.5 where all are equal."""
    low, high = np.array([0.1, 0.2]), np.array([0.7, 0.8, 0.9])
    assert (auroc(high, low), auroc(low, high), auroc(high[:1], high[:1])) == (1.0, 0.0, 0.5)


def test_auroc_is_the_fraction_of_ordered_pairs() -> None:
    """Every pair counted, ties half, with many ties."""
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(2, 9, 80) / 10, rng.integers(0, 7, 50) / 10
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert auroc(positive, negative) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("clean", [20, 37, 100])
def test_what_passes_where_95_percent_of_the_clean_do(clean: int) -> None:
    """As the lowest threshold says at or below which 95 % of the clean lie, found by trying all, with ties."""
    rng = np.random.default_rng(clean)
    negative, positive = rng.integers(0, 30, clean) / 10, rng.integers(10, 50, 60) / 10
    threshold = min(t for t in negative if (negative <= t).sum() * 100 >= 95 * clean)
    assert fpr_at_95_tpr(positive, negative) == pytest.approx((positive <= threshold).mean())
    assert fpr_at_95_tpr(negative + 100, negative) == 0
    assert fpr_at_95_tpr(negative - 100, negative) == 1


def _save(folder: Path, nodes: list[onnx.NodeProto], inputs: dict[str, int], weights: dict[str, NDArray[np.float32]]) -> None:
    shapes: dict[int, list[str | int]] = {_FLOAT: ["batch", 3, "height", "width"], _INT64: ["batch", "length"]}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, dtype, shapes[dtype]) for name, dtype in inputs.items()],
        [helper.make_tensor_value_info("logits", _FLOAT, ["batch", "classes"])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    folder.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / "model.onnx")


@pytest.fixture
def color_model(tmp_path: Path) -> tuple[Artifact, NDArray[np.float32]]:
    """Logits are a linear function of an image's mean color; also returns its weights (3, 10)."""
    folder = tmp_path / "colors" / "1"
    weight = np.random.default_rng(0).normal(size=(3, 10)).astype(np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["color"]),
        helper.make_node("MatMul", ["color", "weight"], ["logits"]),
    ]
    _save(folder, nodes, {"image": _FLOAT}, {"weight": weight})
    manifest = draft_manifest(folder, labels=list(imagenette.CLASSES.values()), preprocessing=_PREPROCESSING)
    spec = TensorSpec(name="image", dtype="float32", shape=["batch", 3, "height", "width"])
    return write_manifest(folder, manifest.model_copy(update={"inputs": [spec]}), ["model.onnx"]), weight


@pytest.fixture
def word_model(tmp_path: Path) -> tuple[Artifact, NDArray[np.float32]]:
    """Logits are the sum of one vector for each real token; also returns the vectors (vocabulary, 3)."""
    folder = tmp_path / "words" / "1"
    tokenizer = clinc150.train_tokenizer([text for text, _ in _QUERIES["train"]], 100)
    vectors = np.random.default_rng(1).normal(size=(tokenizer.get_vocab_size(), 3)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["vectors", "input_ids"], ["tokens"]),
        helper.make_node("Cast", ["attention_mask"], ["real"], to=_FLOAT),
        helper.make_node("Unsqueeze", ["real", "last"], ["column"]),
        helper.make_node("Mul", ["tokens", "column"], ["seen"]),
        helper.make_node("ReduceSum", ["seen", "middle"], ["logits"], keepdims=0),
    ]
    axes = {"last": np.array([2]), "middle": np.array([1])}
    _save(folder, nodes, {"input_ids": _INT64, "attention_mask": _INT64}, {"vectors": vectors, **axes})
    tokenizer.save(str(folder / "tokenizer.json"))
    manifest = draft_manifest(folder, labels=_INTENTS, preprocessing=TextPreprocessing(max_length=16))
    specs = [TensorSpec(name=name, dtype="int64", shape=["batch", "length"]) for name in ("input_ids", "attention_mask")]
    return write_manifest(folder, manifest.model_copy(update={"inputs": specs}), ["model.onnx", "tokenizer.json"]), vectors


def test_logits_of_all_batches_come_in_order(color_model: tuple[Artifact, NDArray[np.float32]]) -> None:
    """ONNX Runtime over batches of unequal size: one row for each sample, as numpy computes it within 1e-5."""
    artifact, weight = color_model
    images = np.random.default_rng(2).normal(size=(5, 3, 8, 8)).astype(np.float32)
    batches = [((images[:3],), np.array([0, 1, 2])), ((images[3:],), np.array([3, 4]))]
    logits, labels = run_logits(artifact, iter(batches))
    np.testing.assert_allclose(logits, images.mean((2, 3)) @ weight, atol=1e-5)
    assert labels.tolist() == [0, 1, 2, 3, 4]


def test_of_probabilities_the_logarithms_are_the_logits(color_model: tuple[Artifact, NDArray[np.float32]]) -> None:
    """So that all metrics are those of the model itself; 0 has a finite one."""
    artifact, weight = color_model
    images = np.abs(np.random.default_rng(2).normal(size=(5, 3, 8, 8))).astype(np.float32)
    told = replace(artifact, manifest=artifact.manifest.model_copy(update={"probabilities": True}))
    logits, _ = run_logits(told, iter([((images,), np.arange(5))]))
    outputs = images.mean((2, 3)) @ weight
    np.testing.assert_allclose(logits, np.log(np.maximum(outputs, np.finfo(np.float32).tiny)), rtol=1e-4, atol=1e-5)


def test_images_are_evaluated_on_the_official_val_split(color_model: tuple[Artifact, NDArray[np.float32]], tmp_path: Path) -> None:
    """Photos of the archive through the artifact's preprocessing: the metrics are those of logits computed by numpy."""
    artifact, weight = color_model
    files, rng = [], np.random.default_rng(3)
    with tarfile.open(tmp_path / "imagenette.tar", "w") as tar:
        for label, wnid in enumerate(imagenette.CLASSES):
            for i in range(2):
                file = io.BytesIO()
                Image.new("RGB", (20, 18), tuple(rng.integers(0, 256, 3).tolist())).save(file, "JPEG")
                files.append((file.getvalue(), label))
                member = tarfile.TarInfo(f"imagenette2-320/val/{wnid}/{i}.JPEG")
                member.size = len(file.getvalue())
                tar.addfile(member, io.BytesIO(file.getvalue()))
    colors = np.stack([_PREPROCESSING.apply(decode_image(data)).mean((1, 2)) for data, _ in files])
    logits, labels = colors @ weight, np.array([label for _, label in files])
    metrics = evaluate(artifact, tmp_path / "imagenette.tar")
    assert metrics["samples"] == 20
    assert metrics["accuracy"] == pytest.approx((logits.argmax(1) == labels).mean())
    assert metrics["top5_accuracy"] == pytest.approx((np.argsort(-logits)[:, :5] == labels[:, None]).any(1).mean())
    assert metrics["expected_calibration_error"] == pytest.approx(expected_calibration_error(logits, labels), abs=1e-4)


def test_texts_are_evaluated_in_and_out_of_scope(word_model: tuple[Artifact, NDArray[np.float32]], tmp_path: Path) -> None:
    """The test queries give the accuracies, the out-of-scope ones are told apart by their confidence."""
    artifact, vectors = word_model
    archive = tmp_path / "data_full.json"
    archive.write_text(json.dumps(_QUERIES))
    tokenizer = TextPreprocessing(max_length=16).load_tokenizer(artifact.folder)

    def logits(split: str) -> NDArray[np.float32]:
        return np.stack([vectors[encode_text(tokenizer, text, 16)[0]].sum(0) for text, _ in _QUERIES[split]])

    labels = np.array([_INTENTS.index(intent) for _, intent in _QUERIES["test"]])
    known, unknown = (torch.from_numpy(logits(split)).softmax(-1).amax(-1).numpy() for split in ("test", "oos_test"))
    metrics = evaluate(artifact, archive)
    assert (metrics["samples"], metrics["out_of_scope_samples"]) == (4, 2)
    assert metrics["accuracy"] == pytest.approx((logits("test").argmax(1) == labels).mean())
    assert metrics["top5_accuracy"] == 1.0  # there are only three classes
    assert metrics["out_of_scope_auroc"] == pytest.approx(np.mean([p > n for p in known for n in unknown]))


@pytest.mark.parametrize(
    ("inputs", "batch"),
    [
        ({"attention_mask": "int64", "input_ids": "int64"}, "batch"),
        ({"input_ids": "int32", "attention_mask": "int32", "token_type_ids": "int32", "position_ids": "int32"}, "batch"),
        ({"position_ids": "int64", "attention_mask": "float32", "input_ids": "int32"}, "batch"),
        ({"input_ids": "int64"}, "batch"),
        ({"input_ids": "int64", "attention_mask": "int64"}, 1),
    ],
)
def test_texts_are_fed_by_name_and_type(inputs: dict[str, DataType], batch: str | int, tmp_path: Path) -> None:
    """Inputs of any order and type, further ones, no mask, a batch of one: logits are those of each query by itself, by numpy."""
    rows = [np.array([5, 3, 8]), np.array([4]), np.array([7, 7, 2, 6, 1])]
    vectors = np.random.default_rng(4).normal(size=(10, 3)).astype(np.float32)
    nodes = [helper.make_node("Cast", [name], [f"{name}.f"], to=_FLOAT) for name in inputs if name != "input_ids"]
    nodes.append(helper.make_node("Gather", ["vectors", "input_ids"], ["tokens"]))
    seen = "tokens"
    terms = {"token_type_ids": "Add", "position_ids": "Add", "attention_mask": "Mul"}  # the mask is the last
    for name, operator in ((name, operator) for name, operator in terms.items() if name in inputs):
        nodes.append(helper.make_node("Unsqueeze", [f"{name}.f", "last"], [f"{name}.c"]))
        nodes.append(helper.make_node(operator, [seen, f"{name}.c"], [f"{name}.seen"]))
        seen = f"{name}.seen"
    nodes.append(helper.make_node("ReduceSum", [seen, "middle"], ["logits"], keepdims=0))
    model = graphs.graph_of(
        nodes,
        {name: (helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), [batch, "length"]) for name, dtype in inputs.items()},
        {"logits": (_FLOAT, [batch, 3])},
        {"vectors": vectors, "last": np.array([2]), "middle": np.array([1])},
    )
    graphs.save(model, tmp_path / "model.onnx")
    draft = draft_manifest(tmp_path, labels=_INTENTS, preprocessing=TextPreprocessing(max_length=16))
    specs = [TensorSpec(name=name, dtype=dtype, shape=[batch, "length"]) for name, dtype in inputs.items()]
    manifest = draft.model_copy(update={"inputs": specs, "batched": batch == "batch"})
    queries = clinc150.TokenizedQueries(rows, np.arange(3))
    logits, labels = run_logits(Artifact(tmp_path, manifest), text_batches(manifest, queries, 2))
    positions = [np.arange(len(row)).sum() if "position_ids" in inputs else 0 for row in rows]
    expected = [vectors[row].sum(0) + position for row, position in zip(rows, positions, strict=True)]
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert labels.tolist() == [0, 1, 2]


def test_a_layer_without_a_mask_sees_no_padding(tmp_path: Path) -> None:
    """Queries run one at a time where a layer counts every position, as many as a batch takes where it tells padding."""
    layer = Layer(
        layer="norm",
        kind="layer_norm",
        shape=["batch", "length", 4],
        channel_axis=2,
        epsilon=None,
        gamma=None,
        beta=None,
        tensors={},
    )
    specs = [TensorSpec(name=name, dtype="int64", shape=["batch", "length"]) for name in ("input_ids", "attention_mask")]
    draft = draft_manifest(tmp_path, labels=_INTENTS, preprocessing=TextPreprocessing(max_length=16))
    queries = clinc150.TokenizedQueries([np.array([5, 3, 8]), np.array([4])], np.arange(2))
    for mask, expected in ((None, [(1, 3), (1, 1)]), ("attention_mask", [(2, 3)])):
        layers = [layer.model_copy(update={"mask": mask})]
        batches = text_batches(draft.model_copy(update={"inputs": specs, "layers": layers}), queries, 8)
        assert [ids.shape for (ids, _), _ in batches] == expected


def test_a_model_with_other_labels_is_not_evaluated(
    color_model: tuple[Artifact, NDArray[np.float32]], word_model: tuple[Artifact, NDArray[np.float32]], tmp_path: Path
) -> None:
    """Numbers for other classes would mean nothing: the error names the model and the data set."""
    image, text = color_model[0], word_model[0]
    archive = tmp_path / "data_full.json"
    archive.write_text(json.dumps(_QUERIES))
    strange_image = Artifact(image.folder, image.manifest.model_copy(update={"labels": ["cat"] * 10}))
    with pytest.raises(ValueError, match="colors does not have the labels of Imagenette"):
        evaluate(strange_image, archive)
    strange_text = Artifact(text.folder, text.manifest.model_copy(update={"labels": ["balance", "greeting", "cat"]}))
    with pytest.raises(ValueError, match="words does not have the labels of CLINC150"):
        evaluate(strange_text, archive)
