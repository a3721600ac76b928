"""POST /v1/models/{model}/whatif against a real server: what torch computes with the same change, and every wrong change."""

import base64
import copy
import threading
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.artifact import load_artifact
from models.preprocessing import TextPreprocessing, decode_image, encode_text, pad_tokens
from service.settings import Settings
from tests.conftest import SmallRepository, running_server
from tests.networks import SENTENCES, recorded_sides
from tests.oracle import assert_layers, assert_pair, assert_side
from tests.service.test_statistics_against_torch import photo

_PHOTO = photo(11)
_BASE64 = base64.b64encode(_PHOTO).decode()


def what_if(client: httpx.Client, model: str, inputs: Any, *changes: dict[str, Any], query: str = "") -> httpx.Response:
    """Asks for changes."""
    return client.post(f"/v1/models/{model}/whatif{query}", json={"inputs": inputs, "changes": list(changes)})


def _prediction(client: httpx.Client, model: str, *changes: dict[str, Any]) -> dict[str, Any]:
    answer = what_if(client, model, _BASE64 if model == "vision" else SENTENCES[1], *changes)
    assert answer.status_code == 200, answer.text
    (prediction,) = answer.json()["predictions"]
    assert set(prediction) == {"truncated", "original", "changed"}
    result: dict[str, Any] = prediction
    return result


def _inputs(repository: SmallRepository, model: str) -> tuple[Tensor, ...]:
    artifact = load_artifact(repository.folder / model / "1")
    preprocessing = artifact.manifest.preprocessing
    if isinstance(preprocessing, TextPreprocessing):
        tokenizer = preprocessing.load_tokenizer(artifact.folder)
        return tuple(torch.from_numpy(array) for array in pad_tokens([encode_text(tokenizer, SENTENCES[1], 24)[0]]))
    assert preprocessing is not None
    return (torch.from_numpy(preprocessing.apply(decode_image(_PHOTO)))[None],)


def _network(repository: SmallRepository, model: str) -> nn.Module:
    return copy.deepcopy(repository.resnet if model == "vision" else repository.encoder)


def _scores(labels: list[dict[str, Any]]) -> list[float]:
    return [label["score"] for label in labels]


def _assert_predicts(side: dict[str, Any], network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """The scores of a side are those of a network."""
    with torch.no_grad():
        scores = network(*inputs).softmax(-1)[0]
    assert _scores(side["labels"]) == pytest.approx(scores.sort(descending=True).values.tolist(), abs=1e-4)


@pytest.mark.parametrize(("model", "layer"), [("vision", "layer2.0.bn2"), ("text", "blocks.0.attention_norm")])
def test_gamma_and_beta_are_those_of_a_changed_network(
    client: httpx.Client, small_repository: SmallRepository, model: str, layer: str
) -> None:
    """Scores and statistics of every layer with other gamma and beta are torch's with these weights; the original is as it was."""
    change = {"layer": layer, "gamma_scale": 1.5, "gamma_shift": -0.2, "beta_scale": -1, "beta_shift": 0.3}
    prediction = _prediction(client, model, change)
    network, inputs = _network(small_repository, model), _inputs(small_repository, model)
    with torch.no_grad(), recorded_sides(network) as recorded:
        network(*inputs)
    assert_layers(prediction["original"]["layers"], recorded)
    _assert_predicts(prediction["original"], network, inputs)
    with torch.no_grad():
        network.get_parameter(f"{layer}.weight").mul_(1.5).sub_(0.2)
        network.get_parameter(f"{layer}.bias").neg_().add_(0.3)
    with torch.no_grad(), recorded_sides(network) as recorded:
        network(*inputs)
    assert_layers(prediction["changed"]["layers"], recorded)
    _assert_predicts(prediction["changed"], network, inputs)


def _without_residual_of_resnet(network: nn.Module) -> None:
    norm = network.get_submodule("layer1.1.bn3")
    for parameter in norm.parameters():
        nn.init.zeros_(parameter)


def _without_identity_of_resnet(network: nn.Module) -> None:
    network.get_submodule("layer1.1").residual = False  # type: ignore[assignment]  # a plain attribute of the block


def _without_residual_of_encoder(network: nn.Module) -> None:
    for parameter in network.get_submodule("blocks.1.feed_forward.outer").parameters():
        nn.init.zeros_(parameter)


@pytest.mark.parametrize(
    ("model", "change", "in_torch"),
    [
        ("vision", {"layer": "layer1.1.add", "residual_scale": 0}, _without_residual_of_resnet),
        ("vision", {"layer": "layer1.1.add", "identity_scale": 0}, _without_identity_of_resnet),
        ("text", {"layer": "blocks.1.feed_forward_norm.add", "residual_scale": 0}, _without_residual_of_encoder),
    ],
)
def test_a_removed_branch_is_removed(
    client: httpx.Client,
    small_repository: SmallRepository,
    model: str,
    change: dict[str, Any],
    in_torch: Callable[[nn.Module], None],
) -> None:
    """Without one branch of one block, scores are torch's without it, and that branch is all zeros."""
    prediction = _prediction(client, model, change)
    network = _network(small_repository, model)
    in_torch(network)
    _assert_predicts(prediction["changed"], network, _inputs(small_repository, model))
    add = next(layer for layer in prediction["changed"]["layers"] if layer["layer"] == change["layer"])
    removed, kept = ("residual", "identity") if "residual_scale" in change else ("identity", "residual")
    assert (add[removed]["l2"], add[removed]["zeros"]) == (0, 1)
    assert add["sum"] == pytest.approx(add[kept])
    assert add["cosine"] is None


class _Group(nn.Module):
    """Group normalization of tokens, over all of a text and the channels of a group."""

    def __init__(self, norm: nn.LayerNorm, groups: int) -> None:
        super().__init__()
        self.norm, self.groups = norm, groups

    def forward(self, x: Tensor) -> Tensor:
        normalized = nn.functional.group_norm(x.transpose(1, 2), self.groups, eps=self.norm.eps).transpose(1, 2)
        return normalized * self.norm.weight + self.norm.bias


def _as_group_norm(groups: int) -> Callable[[nn.Module], nn.Module]:
    def made(norm: nn.Module) -> nn.Module:
        if isinstance(norm, nn.LayerNorm):
            return _Group(norm, groups)
        assert isinstance(norm, nn.BatchNorm2d)
        group = nn.GroupNorm(groups, norm.num_features, norm.eps)
        group.weight, group.bias = norm.weight, norm.bias
        return group

    return made


class _Affine(nn.Module):
    """gamma and beta alone."""

    def __init__(self, norm: nn.Module, axes: int) -> None:
        super().__init__()
        self.gamma, self.beta = (
            parameter.detach().reshape(-1, *[1] * axes)  # type: ignore[operator]  # Tensor | Module to mypy
            for parameter in (norm.weight, norm.bias)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma + self.beta


@pytest.mark.parametrize(
    ("model", "layer", "change", "made"),
    [
        ("vision", "layer1.0.bn1", {"normalization": "group", "groups": 4}, _as_group_norm(4)),
        ("vision", "layer3.0.bn2", {"normalization": "layer"}, _as_group_norm(1)),
        ("vision", "bn1", {"normalization": "none"}, lambda norm: _Affine(norm, 2)),
        ("text", "embedding_norm", {"normalization": "group", "groups": 4}, _as_group_norm(4)),
        ("text", "embedding_norm", {"normalization": "none"}, lambda norm: _Affine(norm, 0)),
    ],
)
def test_another_normalization_is_that_of_a_network_with_it(
    client: httpx.Client,
    small_repository: SmallRepository,
    model: str,
    layer: str,
    change: dict[str, Any],
    made: Callable[[nn.Module], nn.Module],
) -> None:
    """Scores are those of torch with that module in the place, and both sides of the layer are its input and output."""
    prediction = _prediction(client, model, {"layer": layer, **change})
    network, inputs = _network(small_repository, model), _inputs(small_repository, model)
    replaced = made(network.get_submodule(layer))
    sides: dict[str, Tensor] = {}
    replaced.register_forward_hook(lambda _, x, y: sides.update(before=x[0].clone(), after=y.clone()))
    network.set_submodule(layer, replaced)
    _assert_predicts(prediction["changed"], network, inputs)
    told = next(each for each in prediction["changed"]["layers"] if each["layer"] == layer)
    for side, tensor in sides.items():
        assert_side(told[side], tensor.numpy(), f"{layer}.{side}")


@pytest.mark.parametrize(
    ("model", "change"),
    [
        ("vision", {"layer": "*", "gamma_scale": 1, "gamma_shift": 0}),
        ("vision", {"layer": "*", "beta_scale": 1.0}),
        ("vision", {"layer": "*", "normalization": "batch"}),
        ("text", {"layer": "*", "normalization": "layer"}),
        ("text", {"layer": "*.add", "residual_scale": 1, "identity_scale": 1}),
    ],
)
def test_a_change_without_effect_changes_nothing(client: httpx.Client, model: str, change: dict[str, Any]) -> None:
    """Factors of 1, shifts of 0 and the formula that a layer has: both sides are equal to the last bit."""
    prediction = _prediction(client, model, change)
    assert prediction["changed"] == prediction["original"]


def test_later_changes_add_to_earlier_ones(client: httpx.Client) -> None:
    """Twice half is the whole; the last normalization of a layer counts."""
    changes: list[dict[str, Any]] = [
        {"layer": "bn1", "gamma_scale": 0.5},
        {"layer": "bn*", "gamma_scale": 2},
        {"layer": "*.add", "residual_scale": 2},
        {"layer": "layer?.?.add", "residual_scale": 0.5},
        {"layer": "bn1", "normalization": "none"},
        {"layer": "bn1", "normalization": "batch"},
    ]
    twice = _prediction(client, "vision", *changes)
    assert twice["changed"] == twice["original"]


def test_the_answer_agrees_with_predict(client: httpx.Client) -> None:
    """The original is what /predict says, input by input, for the chosen layers; the changed layers are named."""
    texts = [" ".join(SENTENCES), SENTENCES[1], "hello " * 40]
    answer = what_if(
        client,
        "text",
        texts,
        {"layer": "*", "gamma_scale": 0},
        {"layer": "blocks.0.*", "residual_scale": 0},
        query="?layers=blocks.1.*&top_k=2",
    ).json()
    norms = ["blocks.0.attention_norm", "blocks.0.feed_forward_norm", "blocks.1.attention_norm", "blocks.1.feed_forward_norm"]
    assert answer["changed_layers"] == [["embedding_norm", *norms], [f"{norm}.add" for norm in norms[:2]]]
    predicted = client.post("/v1/models/text/predict?statistics=summary&layers=blocks.1.*&top_k=2", json={"inputs": texts}).json()
    for one, other in zip(answer["predictions"], predicted["predictions"], strict=True):
        assert one["truncated"] == other["truncated"]
        assert [label["label"] for label in one["original"]["labels"]] == [label["label"] for label in other["labels"]]
        assert _scores(one["original"]["labels"]) == pytest.approx(_scores(other["labels"]), abs=1e-4)
        assert [layer["layer"] for layer in one["changed"]["layers"]] == [layer["layer"] for layer in other["layers"]]
        for told, expected in zip(one["original"]["layers"], other["layers"], strict=True):
            for side in {"before", "after", "identity", "residual", "sum"} & set(expected):
                assert told[side] == pytest.approx(expected[side], rel=1e-3, abs=1e-4)


_BN1 = {"layer": "bn1"}
_WRONG: dict[str, tuple[int, str, Any, Any]] = {
    # name: status, code, changes, part of value or limit
    "no layer of the name": (404, "unknown_layer", [{"layer": "zzz", "gamma_scale": 1}], "zzz"),
    "one unknown layer among known": (404, "unknown_layer", [{"layer": "bn1,zzz", "gamma_scale": 1}], "zzz"),
    "gamma of an add": (422, "invalid_request", [{"layer": "*.add", "gamma_scale": 2}], "*.add"),
    "branch of a norm": (422, "invalid_request", [_BN1 | {"residual_scale": 2}], "bn1"),
    "normalization of an add": (422, "invalid_request", [{"layer": "*.add", "normalization": "none"}], "*.add"),
    "groups that do not divide": (422, "invalid_request", [_BN1 | {"normalization": "group", "groups": 3}], 3),
    "default groups that do not divide": (422, "invalid_request", [_BN1 | {"normalization": "group"}], 32),
    "no groups": (422, "invalid_request", [_BN1 | {"normalization": "group", "groups": 0}], 0),
    "groups of another formula": (422, "invalid_request", [_BN1 | {"normalization": "layer", "groups": 2}], 2),
    "unknown normalization": (422, "invalid_request", [_BN1 | {"normalization": "instance"}], "instance"),
    "nothing to change": (422, "invalid_request", [_BN1], "bn1"),
    "no layer": (422, "invalid_request", [{"gamma_scale": 2}], "gamma_scale"),
    "no changes": (422, "invalid_request", [], "[]"),
    "too many changes": (422, "invalid_request", [_BN1 | {"gamma_scale": 2}] * 101, "100"),
    "huge": (422, "invalid_request", [_BN1 | {"gamma_scale": 1e300}], 1e300),
    "text for a number": (422, "invalid_request", [_BN1 | {"gamma_scale": "2"}], "2"),
    "null for a number": (422, "invalid_request", [_BN1 | {"gamma_scale": None}], "valid number"),
    "gamma and branch at once": (422, "invalid_request", [_BN1 | {"gamma_scale": 2, "residual_scale": 0}], 2),
    "unknown field": (422, "invalid_request", [_BN1 | {"delta_scale": 2}], 2),
    "not a list": (422, "invalid_request", {"layer": "bn1", "gamma_scale": 2}, "bn1"),
    "not an object": (422, "invalid_request", ["bn1"], "bn1"),
    "null": (422, "invalid_request", None, "list"),
}


@pytest.mark.parametrize("name", _WRONG)
def test_a_wrong_change_gets_a_clear_error(client: httpx.Client, name: str) -> None:
    """Every wrong change has its status, and an error with the value, the limit and the remedy."""
    status, code, changes, part = _WRONG[name]
    answer = client.post("/v1/models/vision/whatif", json={"inputs": _BASE64, "changes": changes})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code), error
    assert str(part) in f"{error['value']} {error['limit']}"
    assert error["remedy"]


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b'{"inputs": "a", "changes": [{"layer": "*", "gamma_scale": NaN}]}', "application/json", 422),
        (b'{"inputs": "a", "changes": [{"layer": "*", "gamma_scale": 1e999}]}', "application/json", 422),
        (b'{"inputs": "a"}', "application/json", 422),
        (b'{"changes": [{"layer": "*", "gamma_scale": 2}]}', "application/json", 422),
        (b'{"inputs": " ", "changes": [{"layer": "*", "gamma_scale": 2}]}', "application/json", 422),
        (b'{"inputs": [], "changes": [{"layer": "*", "gamma_scale": 2}]}', "application/json", 422),
        (b'{"inputs": "a", "changes": [' + b"[" * 900 + b"]" * 900 + b"]}", "application/json", 422),
        (b'{"inputs": "a", "changes": [{"layer": "*", "gamma_scale": 2}], "extra": 1}', "application/json", 422),
        (b"[]", "application/json", 422),
        (b"{", "application/json", 422),
        (b"hello", "text/plain", 415),
        (b"", "", 415),
    ],
)
def test_a_wrong_body_gets_a_clear_error(client: httpx.Client, content: bytes, kind: str, status: int) -> None:
    """NaN, infinity, missing and unknown fields, empty inputs and other types: never a 500."""
    answer = client.post("/v1/models/text/whatif", content=content, headers={"Content-Type": kind} if kind else {})
    assert answer.status_code == status
    assert answer.json()["error"]["remedy"]


def test_batch_without_a_reference(client: httpx.Client) -> None:
    """A LayerNorm has no running statistics: without a reference that is a conflict whose remedy says how to make one."""
    answer = what_if(client, "text", "hello", {"layer": "embedding_norm", "normalization": "batch"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["value"]) == (409, "no_reference", "embedding_norm")
    assert "models reference" in error["remedy"]


def test_huge_factors_give_null_not_nan(client: httpx.Client) -> None:
    """Activations that overflow are counted as such, and their statistics and scores are null."""
    huge = [{"layer": "*", "gamma_scale": 1e6}] * 10
    prediction = _prediction(client, "vision", *huge)
    assert prediction["changed"]["layers"][0]["after"]["nonfinite"] > 0
    assert prediction["changed"]["layers"][0]["after"]["mean"] is None
    assert all(label["score"] is None for label in prediction["changed"]["labels"])


def test_more_at_once_than_the_limit_are_refused(small_repository: SmallRepository) -> None:
    """With one place, requests beside each other are answered or refused with 429 and Retry-After; /predict goes on."""
    limited = Settings(model_repository=small_repository.folder, max_experiments=1)
    with running_server(limited) as client:
        answers: list[httpx.Response] = []

        def ask() -> None:
            answers.append(what_if(client, "vision", [_BASE64] * 32, {"layer": "bn1", "gamma_scale": 2}))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        assert client.post("/v1/models/vision/predict", content=_PHOTO, headers={"Content-Type": "image/png"}).status_code == 200
        for thread in threads:
            thread.join()
        assert {answer.status_code for answer in answers} == {200, 429}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.headers["Retry-After"]
        assert refused.json()["error"]["limit"] == 1


def test_sessions_of_other_formulas_are_bounded(client: httpx.Client) -> None:
    """More formulas than sessions are kept, asked for again in turn, go on giving the same answers."""
    changes = [{"layer": "layer1.0.bn1", "normalization": "group", "groups": groups} for groups in (1, 2, 4, 8)]
    first = [_prediction(client, "vision", change)["changed"] for change in changes]
    again = [_prediction(client, "vision", change)["changed"] for change in changes]
    assert first == again
    assert len({np.round(_scores(side["labels"]), 7).tobytes() for side in first}) == len(changes)


def test_a_pair_of_scaled_branches_is_told_as_it_is_added(client: httpx.Client, small_repository: SmallRepository) -> None:
    """After scaling, identity, residual, their sum and their relation are those of the scaled branches."""
    change = {"layer": "layer1.0.add", "residual_scale": -2, "identity_scale": 0.5}
    prediction = _prediction(client, "vision", change)
    network, inputs = _network(small_repository, "vision"), _inputs(small_repository, "vision")
    with torch.no_grad(), recorded_sides(network) as recorded:
        network(*inputs)
    sides = {side: tensor.numpy() for side, tensor in recorded["layer1.0.add"].items()}
    identity, residual = 0.5 * sides["identity"], -2 * sides["residual"]
    add = next(layer for layer in prediction["changed"]["layers"] if layer["layer"] == "layer1.0.add")
    for side, tensor in {"identity": identity, "residual": residual, "sum": identity + residual}.items():
        assert_side(add[side], tensor, side)
    assert_pair(add, identity, residual, "layer1.0.add")
