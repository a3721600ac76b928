"""The OpenAPI document against the running server: valid and invalid requests made from it, and all checks on every answer.

The document says `string` where a name of a model, a photo or a tensor is meant. Each operation is therefore tested on one model,
with the parameters and the body narrowed to what exists there; what is promised of the answers stays as the server documents it.
"""

import base64
import copy
import io
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import strategies as st
from PIL import Image
from schemathesis.engine import events, from_schema

from service.settings import Settings
from tests.conftest import SmallRepository, running_server
from tests.references import copy_with_references

_EXAMPLES = 20
_MAX_INPUTS = 4
_PREDICT = "POST /v1/models/{model}/predict"
_WHAT_IF = "POST /v1/models/{model}/whatif"
_INFER = "POST /v2/models/{model}/infer"
_INFER_VERSION = "POST /v2/models/{model}/versions/{version}/infer"
_LOAD = "POST /v2/repository/models/{model}/load"
_UNLOAD = "POST /v2/repository/models/{model}/unload"

_STATISTICS = "GET /v1/models/{model}/statistics"
_COMPARE = "GET /v1/models/{model}/statistics/compare"
_ENDLESS = "GET /v1/models/{model}/events"  # no client that waits for the end of an answer gets this one; see test_events

_ALSO: dict[str, list[int]] = {
    # operation: statuses beside 2xx that a request which the document allows may get
    _PREDICT: [422],  # a text without a visible character
    _WHAT_IF: [422],  # likewise
    _INFER: [400],  # likewise
    _INFER_VERSION: [400],  # likewise
    _STATISTICS: [422],  # a side that no chosen layer has
    _COMPARE: [422],  # likewise
}
_OPERATIONS = [
    (_PREDICT, "text"),
    (_PREDICT, "vision"),
    (_WHAT_IF, "text"),
    (_WHAT_IF, "vision"),
    ("GET /v1/models", ""),
    ("GET /v1/models/{model}", "text"),
    ("GET /v1/models/{model}/layers", "vision"),
    (_STATISTICS, "text"),
    (_COMPARE, "vision"),
    (_INFER, "text"),
    (_INFER, "vision"),
    (_INFER_VERSION, "text"),
    (_INFER_VERSION, "vision"),
    ("GET /v2/health/live", ""),
    ("GET /v2/health/ready", ""),
    ("GET /v2/models/{model}/ready", "text"),
    ("GET /v2/models/{model}/versions/{version}/ready", "vision"),
    ("GET /v2/models/stats", ""),
    ("GET /v2/models/{model}/stats", "vision"),
    ("GET /v2/models/{model}/versions/{version}/stats", "text"),
    ("POST /v2/repository/index", ""),
    (_LOAD, "text"),
    (_UNLOAD, "text"),
    ("GET /v2", ""),
    ("GET /v2/models/{model}", "vision"),
    ("GET /v2/models/{model}/versions/{version}", "text"),
    ("GET /v2/models/{model}/config", "text"),
    ("GET /v2/models/{model}/versions/{version}/config", "vision"),
    ("GET /livez", ""),
    ("GET /readyz", ""),
    ("GET /metrics", ""),
]


@st.composite
def _photos(draw: st.DrawFn) -> bytes:
    """A small PNG or JPEG of one colour."""
    size = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    colour = draw(st.tuples(*[st.integers(0, 255)] * 3))
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, draw(st.sampled_from(["PNG", "JPEG"])))
    return buffer.getvalue()


_WORDS = st.text(st.characters(categories=["L", "N"]), min_size=1)  # without one visible character a text is refused
schemathesis.openapi.format("sentence", st.lists(_WORDS, min_size=1).map(" ".join))
schemathesis.openapi.format("photo", _photos())
schemathesis.openapi.format("base64-photo", _photos().map(lambda data: base64.b64encode(data).decode()))
schemathesis.openapi.media_type("image/png", _photos(), aliases=["image/jpeg"])

_TEXT = {"type": "string", "format": "sentence"}
_PHOTO = {"type": "string", "format": "base64-photo"}


def _tensor(name: str, datatype: str, shape: list[int], data: dict[str, Any]) -> dict[str, Any]:
    """The schema of one tensor with these values."""
    fixed = {"name": {"enum": [name]}, "datatype": {"enum": [datatype]}, "shape": {"enum": [shape]}}
    return {"type": "object", "required": [*fixed, "data"], "properties": {**fixed, "data": data}}


def _elements(name: str, item: dict[str, Any], count: int) -> dict[str, Any]:
    """The schema of inputs that are one BYTES tensor."""
    data = {"type": "array", "minItems": count, "maxItems": count, "items": item}
    return {"type": "array", "minItems": 1, "maxItems": 1, "items": _tensor(name, "BYTES", [count], data)}


def _arrays(**arrays: Any) -> dict[str, Any]:
    """The schema of inputs that are exactly these raw tensors."""
    entries = [
        {
            "name": name,
            "datatype": "FP32" if array.dtype == np.float32 else "INT64",
            "shape": list(array.shape),
            "data": array.ravel().tolist(),
        }
        for name, array in arrays.items()
    ]
    return {"enum": [entries]}


_RANDOM = np.random.default_rng(0)


def _inputs_schema(model: str) -> dict[str, Any]:
    """The schema of the field `inputs`: one text or photo, or several."""
    item = {"text": _TEXT, "vision": _PHOTO}[model]
    return {"anyOf": [item, {"type": "array", "minItems": 1, "maxItems": _MAX_INPUTS, "items": item}]}


_JSON_INPUTS = {
    model: {
        "type": "object",
        "required": ["inputs"],
        "additionalProperties": False,
        "properties": {"inputs": _inputs_schema(model)},
    }
    for model in ("text", "vision")
}
_INPUTS: dict[str, list[dict[str, Any]]] = {
    "text": [
        *(_elements("text", _TEXT, count) for count in (1, 3)),
        *(
            _arrays(input_ids=_RANDOM.integers(3, 60, shape), attention_mask=np.ones(shape, np.int64))
            for shape in [(1, 1), (2, 7), (3, 24)]
        ),
    ],
    "vision": [
        *(_elements("encoded_image", _PHOTO, count) for count in (1, 3)),
        *(_arrays(image=_RANDOM.normal(size=shape).astype(np.float32)) for shape in [(1, 3, 8, 8), (2, 3, 5, 9)]),
    ],
}


def _narrow_parameter(parameter: dict[str, Any], model: str, layers: list[str]) -> None:
    """To what exists in the repository."""
    schemas: dict[str, dict[str, Any]] = {
        "model": {"type": "string", "enum": [model]},
        "version": {"type": "string", "enum": ["1"]},
        "since": {"type": "string", "enum": ["-1d", "2026-05-04", "2026-05-04T10:00:00+02:00"]},
        "until": {"type": "string", "enum": ["now", "-1s", "-90s"]},
        "step": {"type": "string", "enum": ["1m", "1h", "7d"]},
        "quantiles": {"type": "string", "enum": ["", "0", "1", "0.5", "0,0.05,1"]},
        "a": {"type": "string", "enum": ["-1h..now", "2026-05-04..-2h"]},
        "b": {"type": "string", "enum": ["-7d..-1d", "-90s..-30s"]},
        "layers": {"type": "string", "enum": ["*", layers[0], f"{layers[1]},{layers[-1]}", f"{layers[2][:-1]}?"]},
    }
    parameter["schema"] = schemas.get(parameter["name"], parameter["schema"])
    parameter.pop("example", None)


def _narrow_changes(changes: dict[str, Any], model: str) -> None:
    """To layers of the model that have what is changed, and to formulas that need no reference."""
    norms, adds = {"vision": (["bn1", "layer1.*"], ["*.add"]), "text": (["*_norm"], ["blocks.0.*"])}[model]
    for change in changes["items"]["oneOf"]:
        properties = change["properties"]
        properties["layer"] = {"enum": adds if "residual_scale" in properties else norms}
        if "groups" in properties:
            properties["groups"] = {"enum": [1, 2, 4]}
            change["required"] = ["layer", "normalization", "groups"]
        elif "normalization" in properties and model == "text":
            properties["normalization"]["enum"] = ["layer", "none"]


def _narrow_body(label: str, content: dict[str, Any], model: str) -> None:
    """To photos, texts and tensors of the model."""
    if label == _WHAT_IF:
        schema = content["application/json"]["schema"]
        schema["properties"]["inputs"] = _inputs_schema(model)
        _narrow_changes(schema["properties"]["changes"], model)
        del schema["example"]
    if label == _PREDICT:
        content["application/json"] = {"schema": _JSON_INPUTS[model]}
        if model == "text":
            del content["image/*"], content["multipart/form-data"]
        else:
            images = content["multipart/form-data"]["schema"]["properties"]["image"]
            images["items"] = {"type": "string", "format": "photo"}
    if label in (_INFER, _INFER_VERSION):
        schema = content["application/json"]["schema"]["properties"]
        schema["inputs"] = {"anyOf": _INPUTS[model]}
        del schema["parameters"]["properties"]["timeout"]  # as timeout_ms
        schema["parameters"]["additionalProperties"] = False  # so that it is not drawn as an unknown one
        schema["outputs"]["maxItems"] = 1
        schema["outputs"]["items"]["properties"]["name"] = {"enum": ["logits"]}
        if model == "vision":
            del content["application/json"]["examples"]


def _narrowed(document: dict[str, Any], label: str, model: str, layers: list[str]) -> dict[str, Any]:
    narrowed = copy.deepcopy(document)
    method, path = label.split(" ")
    operation = narrowed["paths"][path][method.lower()]
    # a time limit that the schema allows may be too short for any answer
    operation["parameters"] = [each for each in operation.get("parameters", []) if each["name"] != "timeout_ms"]
    for parameter in operation["parameters"]:
        _narrow_parameter(parameter, model, layers)
    if "requestBody" in operation:
        _narrow_body(label, operation["requestBody"]["content"], model)
    return narrowed


@pytest.fixture(scope="module")
def steady(small_repository: SmallRepository, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server whose models stay and have references."""
    folder = copy_with_references(small_repository.folder, tmp_path_factory.mktemp("referenced"))
    with running_server(Settings(model_repository=folder, max_inputs=_MAX_INPUTS)) as client:
        yield client


@pytest.fixture(scope="module")
def changing(small_repository: SmallRepository) -> Iterator[httpx.Client]:
    """A server for the operations that load and unload."""
    with running_server(Settings(model_repository=small_repository.folder)) as client:
        yield client


def _run(client: httpx.Client, label: str, model: str) -> list[events.EngineEvent]:
    """Makes requests for one operation: the examples of the document, every boundary of its schemas, and random ones."""
    document = client.get("/openapi.json").json()
    layers = [layer["layer"] for layer in client.get(f"/v1/models/{model}/layers").json()["layers"]] if model else []
    config = schemathesis.Config.from_dict(
        {
            "base-url": str(client.base_url),
            "generation": {"max-examples": _EXAMPLES, "deterministic": True, "no-shrink": True, "database": "none"},
            "checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", *map(str, _ALSO.get(label, []))]}},
        }
    )
    schema = schemathesis.openapi.from_dict(_narrowed(document, label, model, layers), config=config)
    return list(from_schema(schema.include(name=label)).execute())


def test_the_operations_are_those_of_the_document(steady: httpx.Client) -> None:
    """Nothing that is documented is left out below."""
    paths = steady.get("/openapi.json").json()["paths"]
    documented = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert documented == {label for label, _ in _OPERATIONS} | {_ENDLESS}


@pytest.mark.parametrize(("label", "model"), _OPERATIONS)
def test_operation(request: pytest.FixtureRequest, label: str, model: str) -> None:
    """What is valid is answered, what is not is refused, all as documented; at least half of the valid requests get 2xx."""
    client: httpx.Client = request.getfixturevalue("changing" if label in (_LOAD, _UNLOAD) else "steady")
    positive, failures = [], []
    for event in _run(client, label, model):
        assert not isinstance(event, (events.NonFatalError, events.FatalError)), event
        if not isinstance(event, events.ScenarioFinished):
            continue
        for case_id, node in event.recorder.cases.items():
            answer = event.recorder.interactions[case_id].response
            assert answer is not None
            assert node.value.meta is not None
            if node.value.meta.generation.mode.is_positive:
                positive.append(answer.status_code)
            failures += [
                f"{check.failure_info.failure.title}: {check.failure_info.failure.message}\n{check.failure_info.code_sample}"
                for check in event.recorder.checks.get(case_id, [])
                if check.failure_info is not None
            ]
    assert not failures, "\n\n".join(failures)
    assert positive
    assert 2 * sum(200 <= status < 300 for status in positive) >= len(positive), positive
