"""The examples of the README are true: the commands exist, the request is answered as shown."""

import io
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from models.__main__ import build_parser
from service.settings import Settings
from tests.conftest import SHIPPED, running_server

ROOT = Path(__file__).parent.parent
_HOST = "http://127.0.0.1:8000"
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def shipped() -> Iterator[httpx.Client]:
    """A server of the shipped models."""
    with running_server(Settings(model_repository=SHIPPED)) as client:
        yield client


def block(mark: str) -> str:
    """The code block that follows a mark."""
    found = re.search(rf"<!-- {mark} -->\n```\w*\n(.*?)```", README, re.DOTALL)
    assert found, mark
    return found[1]


def test_the_encoder_answers_as_shown(shipped: httpx.Client) -> None:
    """The first example of the README gives the very answer that stands below it, but for the last digits and the timing."""
    words = shlex.split(block("request: encoder").replace("\\\n", " "))
    body, url = words[words.index("-d") + 1], words[-1]
    answer = shipped.post(url.removeprefix(_HOST), content=body, headers={"Content-Type": "application/json"})
    assert_alike(json.loads(block("answer: encoder")), answer.json(), "answer")


def test_photos_are_answered_as_shown(shipped: httpx.Client) -> None:
    """Both ways to send a photo in the README work: one body with its chosen layer, several parts with one prediction each."""
    buffer = io.BytesIO()
    Image.new("RGB", (60, 50), "teal").save(buffer, "JPEG")
    single, several = [shlex.split(line) for line in block("request: resnet50").replace("\\\n", " ").splitlines()]
    header = dict([single[single.index("-H") + 1].split(": ")])
    one = shipped.post(single[-1].removeprefix(_HOST), content=buffer.getvalue(), headers=header).json()["predictions"]
    assert [[layer["layer"] for layer in prediction["layers"]] for prediction in one] == [["layer4.2.bn3"]]
    parts = [part.partition("=")[0] for part in several if "=@" in part]
    files = [(name, ("photo.jpg", buffer.getvalue())) for name in parts]
    assert len(shipped.post(several[-1].removeprefix(_HOST), files=files).json()["predictions"]) == 2


def assert_alike(shown: object, actual: object, where: str) -> None:
    """Same structure and texts, numbers within 0.1 % or 1e-4; timings are there and not negative."""
    if isinstance(shown, dict):
        assert isinstance(actual, dict), where
        assert list(shown) == list(actual), where
        for key in shown:
            assert_alike(shown[key], actual[key], f"{where}.{key}")
    elif isinstance(shown, list):
        assert isinstance(actual, list), where
        assert len(shown) == len(actual), where
        for i, (one, other) in enumerate(zip(shown, actual, strict=True)):
            assert_alike(one, other, f"{where}[{i}]")
    elif isinstance(shown, float):
        assert isinstance(actual, float), where
        if ".timing." in where:
            assert actual >= 0, where
        else:
            assert actual == pytest.approx(shown, rel=1e-3, abs=1e-4), where
    else:
        assert shown == actual, where


def test_commands_of_models_parse() -> None:
    """Every `python -m models` line of the README is a command with valid options."""
    lines = re.findall(r"^python -m models ([^#\n]*)", README, re.MULTILINE)
    assert len(lines) >= 6
    for line in lines:
        build_parser().parse_args(shlex.split(line))


def test_routes_exist(shipped: httpx.Client) -> None:
    """Every route in the table of the README is served."""
    document = shipped.get("/openapi.json").json()["paths"]
    for method, path in re.findall(r"^\| `(GET|POST) (/v1[^`]*)`", README, re.MULTILINE):
        assert method.lower() in document[path], path


def test_make_targets_exist() -> None:
    """Every `make` command of the README is a target."""
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"^make (\w+)", README, re.MULTILINE)) | set(re.findall(r"`make (\w+)`", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
