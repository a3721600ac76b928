"""Imported models are served at once: any inputs and outputs over /v2 and gRPC, photos and texts where preprocessing is given."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from models.graph_import import ImportOptions, import_graph
from service.settings import Settings
from tests import graphs
from tests.conftest import running_server
from tests.graphs import WIDTH, save
from tests.networks import SENTENCES, small_tokenizer
from tests.oracle import assert_side
from tests.service.api.oip.wire import array


def encoder() -> onnx.ModelProto:
    """Two outputs, one of the length of the input: token ids -> `hidden` (batch, length, 8) and `pooled` (batch, 8)."""
    model = graphs.masked("attention_mask")
    for node in model.graph.node:
        node.input[:] = ["input_ids" if name == "ids" else name for name in node.input]
    model.graph.input[0].name = "input_ids"
    model.graph.output.append(onnx.helper.make_tensor_value_info("kept", onnx.TensorProto.FLOAT, ["batch", "length", WIDTH]))
    return model


def colours() -> onnx.ModelProto:
    """A classifier of photos by the mean of each channel, after an instance of every layer: float16 (1, 3, 32, 32) -> (1, 3)."""
    nodes = [
        onnx.helper.make_node("Cast", ["photo"], ["x"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("BatchNormalization", ["x", "one", "zero", "zero", "one"], ["n"], name="norm"),
        onnx.helper.make_node("GlobalAveragePool", ["n"], ["p"]),
        onnx.helper.make_node("Flatten", ["p"], ["logits"]),
    ]
    constants = {"one": np.ones(3, np.float32), "zero": np.zeros(3, np.float32)}
    shape = [1, 3, 32, 32]
    outputs: dict[str, tuple[int, graphs.Shape | None]] = {"logits": (onnx.TensorProto.FLOAT, [1, 3])}
    return graphs.graph_of(nodes, {"photo": (onnx.TensorProto.FLOAT16, shape)}, outputs, constants)


def probable() -> onnx.ModelProto:
    """The same, but its output are probabilities."""
    model = colours()
    model.graph.node.append(onnx.helper.make_node("Softmax", ["logits"], ["probabilities"]))
    model.graph.output[0].name = "probabilities"
    return model


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ONNX files, and what is known of them."""
    folder = tmp_path_factory.mktemp("sources")
    models = {"block": graphs.block(), "single": graphs.block(1), "detector": graphs.detector(), "types": graphs.types()}
    models |= {"masked": graphs.masked(), "encoder": encoder(), "colours": colours(), "probable": probable()}
    for name, model in models.items():
        save(model, folder / f"{name}.onnx")
    (folder / "labels").write_text("red\ngreen\nblue\n")
    (folder / "image.json").write_text('{"kind": "image", "resize": 32, "crop": 32}')
    (folder / "text.json").write_text('{"kind": "text", "max_length": 16}')
    small_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def server(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server over the imported models; every batch counts in the traffic statistics or not, as by default."""
    repository = tmp_path_factory.mktemp("imported")
    options = {
        "masked": ImportOptions(mask="keep"),
        "encoder": ImportOptions(preprocessing=sources / "text.json"),
        "colours": ImportOptions(labels=sources / "labels", preprocessing=sources / "image.json"),
        "probable": ImportOptions(labels=sources / "labels", preprocessing=sources / "image.json"),
    }
    for path in sources.glob("*.onnx"):
        import_graph(path, repository / path.stem / "1", options.get(path.stem, ImportOptions()))
    with running_server(Settings(model_repository=repository)) as opened:
        opened.get("/readyz").raise_for_status()
        yield opened


@pytest.fixture
def triton(server: httpx.Client) -> Iterator[InferenceServerClient]:
    """Triton's client of the same server."""
    with InferenceServerClient(f"{server.base_url.host}:{server.base_url.port}") as opened:
        yield opened


def infer(
    triton: InferenceServerClient, model: str, feed: dict[str, NDArray[Any]], *outputs: str, binary: bool = True, **parameters: Any
) -> Any:
    """The answer to these tensors, with statistics where the parameters ask for them."""
    inputs = []
    for name, value in feed.items():
        given = InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype))
        given.set_data_from_numpy(value, binary_data=binary)
        inputs.append(given)
    wanted = [InferRequestedOutput(name, binary_data=binary) for name in outputs]
    return triton.infer(model, inputs, outputs=wanted or None, parameters=parameters or None)


def run(path: Path, feed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """What ONNX Runtime says of the file as it was given."""
    return list(onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feed))


def normal(*shape: int) -> NDArray[np.float32]:
    """Seeded numbers."""
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def photo(colour: str) -> bytes:
    """A PNG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 50), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_batch_of_any_length(triton: InferenceServerClient, sources: Path) -> None:
    """Outputs are those of ONNX Runtime, and the statistics those of the activations, for each row by itself."""
    for length in (1, 5):
        x = normal(3, length, WIDTH)
        answer = infer(triton, "block", {"x": x}, layer_statistics="summary")
        (expected,) = run(sources / "block.onnx", {"x": x})
        np.testing.assert_allclose(answer.as_numpy("y"), expected, atol=1e-5)
        np.testing.assert_allclose(answer.as_numpy("statistics.identity.mean")[:, 0], x.mean((1, 2)), atol=1e-5)
        np.testing.assert_allclose(answer.as_numpy("statistics.after.std")[:, 0], expected.std((1, 2)), rtol=1e-4)
        assert (answer.as_numpy("statistics.after.count") == length * WIDTH).all()


def test_every_datatype_goes_in_and_comes_out(triton: InferenceServerClient, server: httpx.Client) -> None:
    """Each as it came, as binary data; the metadata names the datatypes of the protocol."""
    feed: dict[str, NDArray[Any]] = {}
    metadata = triton.get_model_metadata("types")
    numbers = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64, "BOOL": np.bool_}
    for tensor in metadata["inputs"]:
        kind = tensor["datatype"]
        if kind == "BYTES":
            feed[tensor["name"]] = np.array([["a", "ä"], ["", "b"]], object)
        else:
            dtype = numbers.get(kind) or np.dtype(kind.lower())
            feed[tensor["name"]] = np.array([[0, 1], [1, 0]]).astype(dtype)
    assert len({tensor["datatype"] for tensor in metadata["inputs"]}) == 13
    answer = infer(triton, "types", feed)
    for name, value in feed.items():
        got = answer.as_numpy(name.replace("of_", "same_"))
        if value.dtype == object:
            got = np.vectorize(bytes.decode, otypes=[object])(got)
        assert got.dtype == value.dtype
        np.testing.assert_array_equal(got, value)


def test_a_model_of_one_runs_alone(triton: InferenceServerClient, sources: Path) -> None:
    """A fixed batch of 1 is declared so, takes exactly that, and shows its layers."""
    assert triton.get_model_config("single")["max_batch_size"] == 0
    x = normal(1, 4, WIDTH)
    answer = infer(triton, "single", {"x": x}, layer_statistics="channels")
    np.testing.assert_allclose(answer.as_numpy("y"), run(sources / "single.onnx", {"x": x})[0], atol=1e-5)
    np.testing.assert_allclose(answer.as_numpy("statistics.add.identity.mean")[0], x.mean((0, 1)), atol=1e-5)
    with pytest.raises(InferenceServerException, match=r"has the shape \[2, 4, 8\]"):
        infer(triton, "single", {"x": normal(2, 4, WIDTH)})


def test_a_detector(triton: InferenceServerClient, sources: Path) -> None:
    """A scalar input, and outputs of as many rows as it has found, each asked for alone or together."""
    boxes, threshold = normal(1, 6, 4), np.array(1.2, np.float32)
    detections, index = run(sources / "detector.onnx", {"boxes": boxes, "threshold": threshold})
    assert 0 < len(index) < 6
    answer = infer(triton, "detector", {"boxes": boxes, "threshold": threshold}, layer_statistics="summary")
    np.testing.assert_allclose(answer.as_numpy("detections"), detections, atol=1e-5)
    np.testing.assert_array_equal(answer.as_numpy("index"), index)
    assert answer.as_numpy("statistics.before.count").tolist() == [[24]]
    alone = infer(triton, "detector", {"boxes": boxes, "threshold": threshold}, "index", binary=False)
    np.testing.assert_array_equal(alone.as_numpy("index"), index)
    assert alone.as_numpy("detections") is None
    with pytest.raises(InferenceServerException, match="has no classes"):
        triton.infer("detector", _boxes(boxes, threshold), outputs=[InferRequestedOutput("detections", class_count=2)])


def _boxes(boxes: NDArray[Any], threshold: NDArray[Any]) -> list[InferInput]:
    inputs = [InferInput("boxes", list(boxes.shape), "FP32"), InferInput("threshold", [], "FP32")]
    for given, value in zip(inputs, (boxes, threshold), strict=True):
        given.set_data_from_numpy(value)
    return inputs


def test_padding_is_masked_by_an_input_of_any_name(triton: InferenceServerClient, sources: Path) -> None:
    """The mask that the import was told of keeps padding out of the statistics."""
    ids, keep = np.arange(10).reshape(2, 5), np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    answer = infer(triton, "masked", {"ids": ids, "keep": keep}, layer_statistics="summary")
    assert answer.as_numpy("statistics.before.count").tolist() == [[40], [16]]
    table = onnx.numpy_helper.to_array(onnx.load(sources / "masked.onnx").graph.initializer[0])
    np.testing.assert_allclose(answer.as_numpy("statistics.before.mean")[1], table[ids[1, :2]].mean(), atol=1e-6)


def test_tensors_only(server: httpx.Client) -> None:
    """A model that was imported without preprocessing answers predict with the way that it does take."""
    answer = server.post("/v1/models/block/predict", json={"inputs": "hello"})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert "takes tensors" in error["message"]
    assert "/v2/models/block/infer" in error["remedy"]
    raw = server.post("/v2/models/block/infer", content=b"bytes", headers={"Inference-Header-Content-Length": "0"})
    assert raw.status_code == 400
    assert "5 bytes, FP32 of shape" in raw.json()["error"]


def test_a_model_without_layers(server: httpx.Client) -> None:
    """It answers over /v2; statistics under /v1 are refused with the way to the reason, which its card holds."""
    assert server.get("/v1/models/types/layers").json()["layers"] == []
    error = server.get("/v1/models/types/statistics").json()["error"]
    assert (error["code"], "tells in its notes why" in error["remedy"]) == ("unknown_layer", True)
    assert "no normalization is in the graph" in server.get("/v1/models/types").json()["notes"][0]


def test_the_card_of_an_imported_model(server: httpx.Client) -> None:
    """It tells what was found out at import."""
    card = server.get("/v1/models/detector").json()
    assert (card["task"], card["batched"], card["preprocessing"], card["labels"]) == ("inference", False, None, [])
    assert server.get("/v1/models").json()["models"][0]["task"]


def test_photos_of_an_imported_classifier(server: httpx.Client) -> None:
    """Photos over /v1 and /v2, run one by one because the batch is fixed; float16 inputs, statistics of every photo."""
    data = [photo("red"), photo("blue")]
    files = [("image", (f"{i}.png", each, "image/png")) for i, each in enumerate(data)]
    answer = server.post("/v1/models/colours/predict", params={"statistics": "summary"}, files=files).json()
    assert [prediction["labels"][0]["label"] for prediction in answer["predictions"]] == ["red", "blue"]
    assert [layer["layer"] for layer in answer["predictions"][0]["layers"]] == ["norm"]
    one = server.post("/v2/models/colours/infer", content=data[1], headers={"Inference-Header-Content-Length": "0"})
    assert array(one, "logits").argmax() == 2


def test_texts_of_an_imported_encoder(server: httpx.Client, triton: InferenceServerClient, sources: Path) -> None:
    """No labels, but layers over /v1; over /v2 both outputs, of texts of one length, or one output of texts of any."""
    answer = server.post("/v1/models/encoder/predict", params={"statistics": "summary"}, json={"inputs": SENTENCES[:2]}).json()
    assert [prediction["labels"] for prediction in answer["predictions"]] == [[], []]
    tokenizer = small_tokenizer()
    ids = [np.array(tokenizer.encode(text).ids) for text in SENTENCES[:2]]
    assert len(ids[0]) != len(ids[1])
    table = onnx.numpy_helper.to_array(onnx.load(sources / "encoder.onnx").graph.initializer[0])
    for prediction, tokens in zip(answer["predictions"], ids, strict=True):
        assert_side(prediction["layers"][0]["before"], table[tokens], "norm.before")
    given = InferInput("text", [2], "BYTES")
    given.set_data_from_numpy(np.array(SENTENCES[:2], object))
    pooled = triton.infer("encoder", [given], outputs=[InferRequestedOutput("pooled")]).as_numpy("pooled")
    for row, tokens in zip(pooled, ids, strict=True):
        feed = {"input_ids": tokens[None], "attention_mask": np.ones_like(tokens)[None]}
        np.testing.assert_allclose(row, run(sources / "encoder.onnx", feed)[0][0], atol=1e-5)
    with pytest.raises(InferenceServerException, match=r"output kept has another shape for each.*one by one"):
        triton.infer("encoder", [given])


def test_scores_of_a_classifier_of_probabilities(server: httpx.Client) -> None:
    """Those of the graph itself, which says so in its card; the same model of logits has the same scores."""
    content = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 90, 30)).save(content, "PNG")
    found = {}
    for model in ("colours", "probable"):
        answer = server.post(
            f"/v1/models/{model}/predict", content=content.getvalue(), headers={"Content-Type": "image/png"}
        ).json()
        found[model] = {each["label"]: each["score"] for each in answer["predictions"][0]["labels"]}
        assert server.get(f"/v1/models/{model}").json()["probabilities"] == (model == "probable")
    assert sum(found["probable"].values()) == pytest.approx(1, abs=1e-6)
    assert found["probable"] == pytest.approx(found["colours"], abs=1e-6)
