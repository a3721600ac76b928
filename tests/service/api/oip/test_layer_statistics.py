"""Layer statistics as output tensors: the same numbers as under /v1, under the names and rows that the configuration tells."""

import json
from typing import Any

import httpx
import numpy as np
import pytest

from tests.networks import SENTENCES
from tests.service.api.oip.wire import TEXT, VISION, array, elements, request, text, with_binary
from tests.service.api.test_predict import image

_SIDE = ["count", "mean", "var", "std", "min", "max", "l2", "zeros", "nonfinite"]


def _listed(client: httpx.Client, model: str) -> dict[str, Any]:
    parameters = client.get(f"/v2/models/{model}/config").json()["parameters"]
    return {name: json.loads(parameter["string_value"]) for name, parameter in parameters.items()}


def _layers(client: httpx.Client, level: str) -> list[list[dict[str, Any]]]:
    answer = client.post(f"/v1/models/text/predict?statistics={level}", json={"inputs": SENTENCES})
    return [prediction["layers"] for prediction in answer.json()["predictions"]]


def test_the_configuration_lists_names_and_rows(client: httpx.Client) -> None:
    """Levels, names and, for each side, the layers that have it in the order of /v1/models/{model}/layers."""
    listed = _listed(client, "text")
    assert listed["layer_statistics"] == ["none", "summary", "channels"]
    layers = client.get("/v1/models/text/layers").json()["layers"]
    norms = [layer["layer"] for layer in layers if layer["kind"] != "residual_add"]
    adds = [layer["layer"] for layer in layers if layer["kind"] == "residual_add"]
    rows = {side: listed[f"layer_statistics.rows.{side}"] for side in ("before", "after", "identity", "residual", "sum", "add")}
    assert rows == {"before": norms, "after": norms, "identity": adds, "residual": adds, "sum": adds, "add": adds}
    names = [f"statistics.{side}.{name}" for side in rows if side != "add" for name in _SIDE]
    assert set(listed["layer_statistics.summary"]) == {*names, "statistics.add.residual_ratio", "statistics.add.cosine"}
    assert f"statistics.{norms[0]}.after.mean" in listed["layer_statistics.channels"]


@pytest.mark.parametrize("binary", [True, False])
def test_summary(client: httpx.Client, binary: bool) -> None:
    """All names of the level, [N, rows], each number that of /v1, as JSON and as binary data."""
    listed = _listed(client, "text")
    parameters = {"layer_statistics": "summary", "binary_data_output": binary}
    answer = client.post(TEXT, json=request(text(*SENTENCES), parameters=parameters))
    length = int(answer.headers.get("inference-header-content-length", len(answer.content)))
    names = [output["name"] for output in json.loads(answer.content[:length])["outputs"]]
    assert names == ["logits", *listed["layer_statistics.summary"]]
    expected = _layers(client, "summary")
    for name in names[1:]:
        _, side, statistic = name.split(".")
        rows = listed[f"layer_statistics.rows.{side}"]
        by_layer = [{layer["layer"]: layer if side == "add" else layer.get(side, {}) for layer in layers} for layers in expected]
        values = np.array([[by_name[row][statistic] for row in rows] for by_name in by_layer])
        np.testing.assert_allclose(array(answer, name), values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_channels(client: httpx.Client) -> None:
    """The level adds to the summary [N, C] for every layer and side, as under /v1."""
    listed = _listed(client, "text")
    parameters = {"layer_statistics": "channels", "binary_data_output": True}
    answer = client.post(TEXT, json=request(text(*SENTENCES), parameters=parameters))
    expected = _layers(client, "channels")
    for name in listed["layer_statistics.channels"]:
        layer, side, statistic = name.removeprefix("statistics.").rsplit(".", 2)
        values = [next(each for each in layers if each["layer"] == layer)[side]["channels"][statistic] for layers in expected]
        np.testing.assert_allclose(array(answer, name), np.array(values), rtol=1e-4, atol=1e-5, err_msg=name)
    assert array(answer, "statistics.after.mean").shape == (4, len(listed["layer_statistics.rows.after"]))


def test_naming_an_output_asks_for_it(client: httpx.Client) -> None:
    """A statistic in `outputs` comes alone; those that a level adds come after what is listed, and nothing comes twice."""
    outputs = [{"name": "statistics.after.mean"}, {"name": "statistics.embedding_norm.after.max"}]
    named = client.post(TEXT, json=request(text("hello"), outputs=outputs)).json()["outputs"]
    assert [output["name"] for output in named] == [output["name"] for output in outputs]
    assert named[1]["shape"] == [1, 16]
    both = client.post(TEXT, json=request(text("hello"), outputs=outputs, parameters={"layer_statistics": "summary"}))
    names = [output["name"] for output in both.json()["outputs"]]
    assert names[:2] == [output["name"] for output in outputs]
    assert sorted(names[1:] + names[:1]) == sorted({*_listed(client, "text")["layer_statistics.summary"], names[1]})


def test_none_unless_asked(client: httpx.Client) -> None:
    """Not in the outputs of the metadata, not in an answer to a request that says nothing, or `none`."""
    assert [output["name"] for output in client.get("/v2/models/text").json()["outputs"]] == ["logits"]
    for parameters in ({}, {"layer_statistics": "none"}):
        answer = client.post(TEXT, json=request(text("hello"), parameters=parameters))
        assert [output["name"] for output in answer.json()["outputs"]] == ["logits"]


def test_added_statistics_go_as_the_listed_outputs(client: httpx.Client) -> None:
    """Binary if every listed output is, unless the request says otherwise."""
    listed = {"name": "logits", "parameters": {"binary_data": True}}
    for parameters, binary in (({}, True), ({"binary_data_output": False}, False)):
        fields = {"outputs": [listed], "parameters": {"layer_statistics": "summary", **parameters}}
        answer = client.post(TEXT, json=request(text("hello"), **fields))
        length = int(answer.headers["inference-header-content-length"])
        added = json.loads(answer.content[:length])["outputs"][1:]
        assert all(("data" in output) != binary for output in added)


def test_undefined_statistics_are_nan(client: httpx.Client) -> None:
    """Where /v1 says null, the tensor holds NaN; count and nonfinite are always defined."""
    values = np.full((1, 3, 32, 32), np.inf, np.float32)
    fields = {"parameters": {"layer_statistics": "channels", "binary_data_output": True}}
    body, headers = with_binary("image", "FP32", [1, 3, 32, 32], values.tobytes(), **fields)
    answer = client.post(VISION, content=body, headers=headers)
    for prefix in ("statistics.before", "statistics.bn1.before"):
        assert array(answer, f"{prefix}.nonfinite")[0, 0] > 0
        for statistic in ("mean", "var", "std", "min", "max", "l2", "zeros"):
            assert np.isnan(array(answer, f"{prefix}.{statistic}")[0, 0])
    assert array(answer, "statistics.before.count")[0, 0] > 0


def test_statistics_of_images(client: httpx.Client) -> None:
    """Encoded images give them as well: rows for normalizations and for adds."""
    body, headers = with_binary(
        "encoded_image", "BYTES", [2], elements(image(), image("JPEG")), parameters={"layer_statistics": "summary"}
    )
    answer = client.post(VISION, content=body, headers=headers)
    assert array(answer, "statistics.before.mean").shape == (2, 20)
    assert array(answer, "statistics.add.cosine").shape == (2, 5)
