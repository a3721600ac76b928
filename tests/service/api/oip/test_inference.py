"""POST /v2/models/{model}/infer against a real server: every way in and out agrees with every other and with /v1."""

import base64
import gzip
import json
import zlib
from typing import Any

import httpx
import numpy as np
import pytest

from models.postprocessing import softmax
from models.preprocessing import ImagePreprocessing, decode_image
from tests.networks import IMAGE_LABELS, SENTENCES, TEXT_LABELS
from tests.service.api.oip.wire import TEXT, VISION, array, elements, pixels, request, text, tokens, with_binary
from tests.service.api.test_predict import image


def _scores(client: httpx.Client, model: str, labels: list[str], **post: Any) -> list[list[float]]:
    """What /v1 says, in the order of the labels."""
    predictions = client.post(f"/v1/models/{model}/predict", **post).json()["predictions"]
    by_label = [{entry["label"]: entry["score"] for entry in prediction["labels"]} for prediction in predictions]
    return [[scores[label] for label in labels] for scores in by_label]


def test_text_as_strings(client: httpx.Client) -> None:
    """Strings in JSON, and bytes as binary data, give the logits of the scores under /v1."""
    expected = _scores(client, "text", TEXT_LABELS, json={"inputs": SENTENCES})
    answer = client.post(TEXT, json=request(text(*SENTENCES), id="a request"))
    content = answer.json()
    assert (content["model_name"], content["model_version"], content["id"]) == ("text", "1", "a request")
    assert [(output["name"], output["datatype"], output["shape"]) for output in content["outputs"]] == [("logits", "FP32", [4, 3])]
    np.testing.assert_allclose(softmax(array(answer, "logits")), expected, atol=1e-5)
    body, headers = with_binary("text", "BYTES", [4], elements(*(sentence.encode() for sentence in SENTENCES)))
    np.testing.assert_allclose(softmax(array(client.post(TEXT, content=body, headers=headers), "logits")), expected, atol=1e-5)


def test_image_encoded(client: httpx.Client) -> None:
    """An image file as binary data, in JSON as base64, and as the only content of the body: the scores of /v1."""
    photo = image("JPEG")
    (expected,) = _scores(client, "vision", IMAGE_LABELS, content=photo, headers={"Content-Type": "image/jpeg"})
    body, headers = with_binary("encoded_image", "BYTES", [1], elements(photo))
    encoded = {"name": "encoded_image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(photo).decode()]}
    for answer in (
        client.post(VISION, content=body, headers=headers),
        client.post(VISION, json=request(encoded)),
        client.post(VISION, content=photo, headers={"Inference-Header-Content-Length": "0"}),
    ):
        np.testing.assert_allclose(softmax(array(answer, "logits"))[0], expected, atol=1e-5)


def test_image_as_tensor(client: httpx.Client) -> None:
    """The raw tensor in JSON, flat or nested, and as binary data gives what the image gives from which it was made."""
    photo = image()
    body, headers = with_binary("encoded_image", "BYTES", [1], elements(photo))
    expected = array(client.post(VISION, content=body, headers=headers), "logits")
    tensor = ImagePreprocessing(resize=64, crop=64).apply(decode_image(photo))[None]
    body, headers = with_binary("image", "FP32", [1, 3, 64, 64], tensor.tobytes())
    nested = {**pixels(tensor), "data": tensor.tolist()}
    for answer in (
        client.post(VISION, content=body, headers=headers),
        client.post(VISION, json=request(pixels(tensor))),
        client.post(VISION, json=request(nested)),
    ):
        np.testing.assert_allclose(array(answer, "logits"), expected, atol=1e-5)


def test_text_as_tokens(client: httpx.Client) -> None:
    """Token ids with a mask: padding changes nothing, and binary and JSON inputs may be mixed."""
    short = array(client.post(TEXT, json=request(*tokens([[5, 6, 7]]))), "logits")
    ids = np.array([[5, 6, 7, 0, 0]], np.int64)
    mask = {"name": "attention_mask", "datatype": "INT64", "shape": [1, 5], "data": [1, 1, 1, 0, 0]}
    entry = {"name": "input_ids", "datatype": "INT64", "shape": [1, 5], "parameters": {"binary_data_size": ids.nbytes}}
    content = json.dumps(request(mask, entry)).encode()
    headers = {"Inference-Header-Content-Length": str(len(content))}
    padded = array(client.post(TEXT, content=content + ids.tobytes(), headers=headers), "logits")
    np.testing.assert_allclose(padded, short, atol=1e-5)


def test_raw_request_of_a_text(client: httpx.Client) -> None:
    """A body without JSON is one text; its answer has binary data after the JSON."""
    answer = client.post(TEXT, content=SENTENCES[0].encode(), headers={"Inference-Header-Content-Length": "0"})
    assert answer.headers["content-type"] == "application/octet-stream"
    assert len(answer.content) == int(answer.headers["inference-header-content-length"]) + 3 * 4
    np.testing.assert_allclose(
        array(answer, "logits"), array(client.post(TEXT, json=request(text(SENTENCES[0]))), "logits"), atol=1e-5
    )


def test_binary_outputs(client: httpx.Client) -> None:
    """`binary_data_output` of the request holds for outputs that say nothing; `binary_data` of an output goes before it."""
    logits = array(client.post(TEXT, json=request(text("hello"))), "logits")
    output = {"name": "logits"}
    for fields, binary in (
        ({"parameters": {"binary_data_output": True}}, True),
        ({"parameters": {"binary_data_output": True}, "outputs": [output]}, True),
        ({"parameters": {"binary_data_output": True}, "outputs": [{**output, "parameters": {"binary_data": False}}]}, False),
        ({"outputs": [{**output, "parameters": {"binary_data": True}}]}, True),
        ({"outputs": [output]}, False),
        ({"outputs": []}, False),
    ):
        answer = client.post(TEXT, json=request(text("hello"), **fields))
        assert ("inference-header-content-length" in answer.headers) == binary
        assert answer.headers["content-type"] == ("application/octet-stream" if binary else "application/json")
        np.testing.assert_allclose(array(answer, "logits"), logits, atol=1e-5)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compression_both_ways(client: httpx.Client, encoding: str) -> None:
    """Requests may come compressed; large answers go as the client prefers, small ones as they are; lengths are of plain JSON."""
    compress = gzip.compress if encoding == "gzip" else zlib.compress
    body, headers = with_binary("text", "BYTES", [1], elements(b"hello"), parameters={"layer_statistics": "summary"})
    plain = client.post(TEXT, content=body, headers={**headers, "Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    answer = client.post(
        TEXT, content=compress(body), headers={**headers, "Content-Encoding": encoding, "Accept-Encoding": encoding}
    )
    assert answer.headers["content-encoding"] == encoding
    assert int(answer.headers["content-length"]) < len(plain.content)
    assert [output["name"] for output in answer.json()["outputs"]] == [output["name"] for output in plain.json()["outputs"]]
    small = client.post(TEXT, json=request(text("hello")), headers={"Accept-Encoding": encoding})
    assert "content-encoding" not in small.headers


def test_classification(client: httpx.Client) -> None:
    """The parameter `classification` gives the best classes as strings, in JSON and as binary data."""
    logits = array(client.post(TEXT, json=request(text(*SENTENCES))), "logits")
    best = [f"{logits[i].max():f}:{logits[i].argmax()}:{TEXT_LABELS[logits[i].argmax()]}" for i in range(4)]
    for count in (1, 2, 50):
        outputs = [{"name": "logits", "parameters": {"classification": count}}]
        (output,) = client.post(TEXT, json=request(text(*SENTENCES), outputs=outputs)).json()["outputs"]
        width = min(count, 3)
        assert (output["datatype"], output["shape"]) == ("BYTES", [4, width])
        found = [entry.partition(":")[2] for entry in output["data"][::width]]
        assert found == [entry.partition(":")[2] for entry in best]


def test_content_types_do_not_matter(client: httpx.Client) -> None:
    """None, or any: real clients send what they like."""
    body = json.dumps(request(text("hello"))).encode()
    for headers in ({}, {"Content-Type": "application/octet-stream"}, {"Content-Type": "text/html"}):
        assert client.post(TEXT, content=body, headers=headers).status_code == 200


def test_named_version(client: httpx.Client) -> None:
    """A version may be named; one that is not there is unknown."""
    assert client.post("/v2/models/text/versions/1/infer", json=request(text("hello"))).json()["model_version"] == "1"
    assert client.post("/v2/models/text/versions/2/infer", json=request(text("hello"))).status_code == 404


def test_cut_texts_are_told(client: httpx.Client) -> None:
    """The answer says how many texts were longer than the model reads, and nothing if none was."""
    answer = client.post(TEXT, json=request(text(" ".join(SENTENCES * 9), "hello"))).json()
    assert answer["parameters"] == {"truncated_texts": 1}
    assert "parameters" not in client.post(TEXT, json=request(text("hello"))).json()


def test_parameters_of_other_servers_pass(client: httpx.Client) -> None:
    """Unknown parameters, null, those that mean nothing here, and a request without a sequence are let through."""
    parameters = {"content_type": "str", "custom": 1.5, "headers": None, "priority": 3, "sequence_id": 0, "sequence_start": False}
    entry = {**text("hello"), "parameters": {"content_type": "str", "headers": None}}
    fields = {"parameters": parameters, "id": None, "outputs": None, "model_name": "text"}
    assert client.post(TEXT, json=request(entry, **fields)).status_code == 200
