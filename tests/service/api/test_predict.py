"""POST /v1/models/{model}/predict against a real server: every way in, the shape of the answer, and every wrong input."""

import base64
import gzip
import io
import json
import tempfile
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.settings import Settings
from tests.conftest import SmallRepository, running_server
from tests.networks import IMAGE_LABELS, SENTENCES, TEXT_LABELS

_SIDE = {"count", "mean", "var", "std", "min", "max", "l2", "zeros", "nonfinite"}


def image(kind: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    """One encoded picture of a gradient."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    pixels = np.stack([x * 5 % 256, y * 7 % 256, (x + y) * 3 % 256], -1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def post_image(client: httpx.Client, data: bytes, query: str = "", kind: str = "image/png") -> httpx.Response:
    """Sends one encoded image as the body."""
    return client.post(f"/v1/models/vision/predict{query}", content=data, headers={"Content-Type": kind})


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_every_image_format_by_content(client: httpx.Client, kind: str) -> None:
    """The format is told by content, whatever the subtype of the header says."""
    answer = post_image(client, image(kind), kind="image/anything")
    assert answer.status_code == 200
    scores = [entry["score"] for entry in answer.json()["predictions"][0]["labels"]]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1)


def test_all_ways_to_send_an_image_agree(client: httpx.Client) -> None:
    """A body, a multipart part, base64 and a data URL of the same photo give the same scores, to rounding.

    A lone request may run with all threads and another with one: sums in another order differ in their last bits.
    """
    data = image()
    encoded = base64.b64encode(data).decode()
    url = "/v1/models/vision/predict"
    answers = [
        post_image(client, data),
        client.post(url, files={"image": ("a.png", data)}),
        client.post(url, json={"inputs": encoded}),
        client.post(url, json={"inputs": [f"data:image/png;base64,{encoded}"]}),
    ]
    labels = [answer.json()["predictions"][0]["labels"] for answer in answers]
    for other in labels[1:]:
        assert [entry["label"] for entry in other] == [entry["label"] for entry in labels[0]]
        assert [entry["score"] for entry in other] == pytest.approx([entry["score"] for entry in labels[0]], abs=1e-5)


def test_several_inputs_are_answered_in_their_order(client: httpx.Client) -> None:
    """More inputs than one batch holds: one prediction each, as if each had been sent alone."""
    texts = [f"{sentence} {'again ' * i}" for i, sentence in enumerate(SENTENCES * 3)]
    together = client.post("/v1/models/text/predict", json={"inputs": texts}).json()["predictions"]
    assert len(together) == len(texts)
    for text, prediction in zip(texts, together, strict=True):
        alone = client.post("/v1/models/text/predict", json={"inputs": text}).json()["predictions"][0]
        for one, other in zip(alone["labels"], prediction["labels"], strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)


def test_shape_of_the_answer(client: httpx.Client) -> None:
    """The answer has the documented fields and no others; a norm has two sides, an add three and their relation."""
    answer = client.post("/v1/models/text/predict?statistics=summary&top_k=2", json={"inputs": SENTENCES[0]}).json()
    assert set(answer) == {"model", "version", "predictions", "timing"}
    assert (answer["model"], answer["version"]) == ("text", "1")
    assert set(answer["timing"]) == {"preprocess_ms", "queue_ms", "inference_ms"}
    (prediction,) = answer["predictions"]
    assert set(prediction) == {"labels", "truncated", "layers"}
    assert len(prediction["labels"]) == 2
    for layer in prediction["layers"]:
        if layer["kind"] == "residual_add":
            assert set(layer) == {"layer", "kind", "identity", "residual", "sum", "residual_ratio", "cosine"}
        else:
            assert set(layer) == {"layer", "kind", "before", "after"}
        for side in set(layer) & {"before", "after", "identity", "residual", "sum"}:
            assert set(layer[side]) == _SIDE


def test_no_statistics_unless_asked(client: httpx.Client) -> None:
    """Without `statistics` a prediction has no layers."""
    assert "layers" not in post_image(client, image()).json()["predictions"][0]


def test_layers_are_chosen_by_glob(client: httpx.Client) -> None:
    """`layers` takes a glob, or several with commas, and keeps the order of execution."""
    query = "?statistics=summary&layers=layer4.*,bn1"
    layers = [layer["layer"] for layer in post_image(client, image(), query).json()["predictions"][0]["layers"]]
    assert layers[0] == "bn1"
    assert len(layers) > 1
    assert all(name.startswith("layer4.") for name in layers[1:])


def test_top_k_beyond_the_labels_gives_all(client: httpx.Client) -> None:
    """At most as many labels come back as the model has."""
    labels = post_image(client, image(), "?top_k=50").json()["predictions"][0]["labels"]
    assert {entry["label"] for entry in labels} == set(IMAGE_LABELS)


def test_long_text_is_cut_and_the_answer_says_so(client: httpx.Client) -> None:
    """A text beyond the model's length is truncated, which the answer states; a short one is not."""
    answer = client.post("/v1/models/text/predict", json={"inputs": [" ".join(SENTENCES * 5), "hello"]}).json()
    assert [prediction["truncated"] for prediction in answer["predictions"]] == [True, False]
    assert {entry["label"] for entry in answer["predictions"][1]["labels"]} == set(TEXT_LABELS)


def _bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    return buffer.getvalue()


_JSON = "application/json"
_URL = "/v1/models/{}/predict{}"
_WRONG: dict[str, tuple[int, str, str, str, str, bytes]] = {
    # name: status, code, model, query, content type, body
    "unknown model": (404, "unknown_model", "nope", "", _JSON, b"{}"),
    "unknown layer": (404, "unknown_layer", "text", "?layers=zzz", _JSON, b'{"inputs": "a"}'),
    "image for a text model": (415, "unsupported_media_type", "text", "", "image/png", image()),
    "text for an image model": (415, "unsupported_media_type", "vision", "", "text/plain", b"hello"),
    "no content type": (415, "unsupported_media_type", "text", "", "", b'{"inputs": "a"}'),
    "not an image": (422, "unsupported_format", "vision", "", "image/png", b"hello"),
    "empty image": (422, "unsupported_format", "vision", "", "image/png", b""),
    "truncated image": (422, "invalid_input", "vision", "", "image/jpeg", image("JPEG")[:-100]),
    "decompression bomb": (422, "invalid_input", "vision", "", "image/png", _bomb()),
    "not JSON": (422, "invalid_request", "text", "", _JSON, b"{"),
    "not UTF-8": (422, "invalid_request", "text", "", _JSON, b'{"inputs": "\xff"}'),
    "JSON without inputs": (422, "invalid_request", "text", "", _JSON, b"[]"),
    "unknown field": (422, "invalid_request", "text", "", _JSON, b'{"inputs": "a", "extra": 1}'),
    "empty batch": (422, "invalid_request", "text", "", _JSON, b'{"inputs": []}'),
    "blank text": (422, "invalid_input", "text", "", _JSON, b'{"inputs": ["hello", " \\n"]}'),
    "empty text": (422, "invalid_input", "text", "", _JSON, b'{"inputs": ""}'),
    "number instead of text": (422, "invalid_request", "text", "", _JSON, b'{"inputs": [3]}'),
    "null instead of text": (422, "invalid_request", "text", "", _JSON, b'{"inputs": null}'),
    "deeply nested input": (422, "invalid_request", "text", "", _JSON, b'{"inputs": [' + b"[" * 900 + b"]" * 900 + b"]}"),
    "text of invisible characters": (422, "invalid_input", "text", "", _JSON, '{"inputs": "\u200b"}'.encode()),
    "one unknown layer among known": (404, "unknown_layer", "text", "?layers=embedding_norm,zzz", _JSON, b'{"inputs": "a"}'),
    "not base64": (422, "invalid_request", "vision", "", _JSON, b'{"inputs": "***"}'),
    "base64 of no image": (422, "unsupported_format", "vision", "", _JSON, b'{"inputs": "aGVsbG8="}'),
    "too many inputs": (422, "invalid_request", "text", "", _JSON, json.dumps({"inputs": ["a"] * 33}).encode()),
    "multipart without boundary": (422, "invalid_request", "vision", "", "multipart/form-data", b"x"),
    "top_k of zero": (422, "invalid_request", "text", "?top_k=0", _JSON, b'{"inputs": "a"}'),
    "top_k not a number": (422, "invalid_request", "text", "?top_k=many", _JSON, b'{"inputs": "a"}'),
    "unknown level": (422, "invalid_request", "text", "?statistics=all", _JSON, b'{"inputs": "a"}'),
}


@pytest.mark.parametrize("name", _WRONG)
def test_wrong_input_gets_a_clear_error(client: httpx.Client, name: str) -> None:
    """Every wrong input has its status and one JSON shape with the message, the value, the limit and the remedy."""
    status, code, model, query, kind, body = _WRONG[name]
    headers = {"Content-Type": kind} if kind else {}
    answer = client.post(_URL.format(model, query), content=body, headers=headers)
    error = _error(answer)
    assert (answer.status_code, error["code"]) == (status, code)
    assert error["message"]
    assert error["remedy"]


def _error(answer: httpx.Response) -> dict[str, Any]:
    content = answer.json()
    assert set(content) == {"error"}
    assert set(content["error"]) == {"code", "message", "value", "limit", "remedy"}
    error: dict[str, Any] = content["error"]
    return error


def test_wrong_parts_of_a_form(client: httpx.Client) -> None:
    """A part of another name, or a field instead of a file, is named in the error."""
    url = "/v1/models/vision/predict"
    assert "other" in _error(client.post(url, files={"other": ("a.png", image())}))["message"]
    field = client.post(url, files={"image": (None, "text")})
    assert (field.status_code, _error(field)["limit"]) == (422, "a file")


def test_large_parts_stay_in_memory(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of five megabytes never touches a disk, which may be read-only."""

    def roll_over(file: object) -> None:
        raise OSError("Read-only file system")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", roll_over)
    data = image("BMP", size=(1500, 1200))
    assert len(data) > 5_000_000
    answer = client.post("/v1/models/vision/predict", files={"image": ("large.bmp", data)})
    assert answer.status_code == 200


def test_unknown_route_and_method(client: httpx.Client) -> None:
    """Errors of the router have the same shape."""
    assert _error(client.get("/nowhere"))["code"] == "not_found"
    answer = client.get("/v1/models/vision/predict")
    assert (answer.status_code, _error(answer)["code"]) == (405, "method_not_allowed")


def test_limits_are_settings(small_repository: SmallRepository) -> None:
    """Body, image, inputs and values have limits that can be set; exceeding each names the value and the limit."""
    limited = Settings(
        model_repository=small_repository.folder, max_body_bytes=2000, max_image_pixels=100, max_inputs=2, max_statistics_values=50
    )
    with running_server(limited) as client:
        large = client.post("/v1/models/text/predict", json={"inputs": "a" * 3000})
        assert (large.status_code, _error(large)["limit"]) == (413, 2000)
        streamed = client.post(
            "/v1/models/text/predict", content=(b"x" * 500 for _ in range(10)), headers={"Content-Type": "application/json"}
        )
        assert (streamed.status_code, _error(streamed)["limit"]) == (413, 2000)
        pixels = post_image(client, image(size=(20, 20)))
        assert (pixels.status_code, _error(pixels)["value"], _error(pixels)["limit"]) == (422, 400, 100)
        many = client.post("/v1/models/text/predict", json={"inputs": ["a"] * 3})
        assert (many.status_code, _error(many)["value"], _error(many)["limit"]) == (422, 3, 2)
        values = client.post("/v1/models/text/predict?statistics=summary", json={"inputs": "a"})
        assert (values.status_code, _error(values)["code"]) == (422, "too_many_values")
        assert "layers=" in _error(values)["remedy"]
        fewer = client.post("/v1/models/text/predict?statistics=summary&layers=embedding_norm", json={"inputs": "a"})
        assert fewer.status_code == 200


def test_a_failing_input_harms_no_other_request(client: httpx.Client) -> None:
    """After any number of bad requests the server answers good ones."""
    for _ in range(5):
        assert post_image(client, b"broken").status_code == 422
    assert post_image(client, image()).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models/text/predict", "/v1/models/text/whatif"])
def test_a_compressed_body_is_not_read(client: httpx.Client, path: str) -> None:
    """415 that names the encoding, instead of a fault in JSON that nobody wrote; `identity` is none."""
    body = {"inputs": "hello", "changes": [{"layer": "*.add", "residual_scale": 0.5}]}
    content = json.dumps(body if path.endswith("whatif") else {"inputs": "hello"}).encode()
    for encoding, status in (("gzip", 415), ("identity", 200)):
        headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
        answer = client.post(path, content=gzip.compress(content) if encoding == "gzip" else content, headers=headers)
        assert answer.status_code == status
    assert client.post(path, content=b"", headers={**headers, "Content-Encoding": "br"}).json()["error"]["value"] == "br"
