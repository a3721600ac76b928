"""The documents are true and whole: examples are answered as shown; settings, routes, options and names are those of the code."""

import io
import json
import re
import shlex
import subprocess
import sys
import tomllib
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from models.__main__ import build_parser
from service.api.answers import _code
from service.errors import STATUSES
from service.settings import Settings
from tests.conftest import SHIPPED, running_server
from tests.service.test_server import process, read_until

ROOT = Path(__file__).parent.parent
_HOST = "http://127.0.0.1:8000"
_PATHS = ("README.md", "service/README.md", "models/README.md", "docker/README.md", "tests/benchmarks/README.md")
DOCUMENTS = {path: (ROOT / path).read_text() for path in _PATHS}
TEXT = "\n".join(DOCUMENTS.values())
SERVICE, MODELS = DOCUMENTS["service/README.md"], DOCUMENTS["models/README.md"]
EXAMPLES = re.findall(r"<!-- example: (.+?) -->\n```\n(.*?)```", TEXT, re.DOTALL)
_MORE = "..."  # what an answer leaves out: further items of a list, or keys of an object
_SHORT_WINDOW_S = 1


@pytest.fixture(scope="module")
def shipped() -> Iterator[httpx.Client]:
    """A server of the shipped models; all traffic counts, in short windows, and the metrics show a layer."""
    settings = Settings(
        model_repository=SHIPPED,
        statistics_sample=1,
        statistics_window_s=_SHORT_WINDOW_S,
        metrics_layers="layer1.0.add,*.attention_norm.add",
    )
    with running_server(settings) as client:
        yield client


def sections(document: str) -> Mapping[str, str]:
    """Heading -> what stands below it, up to the next heading."""
    parts = re.split(r"^#+ (.+)$", document, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(text: str, columns: str) -> list[list[str]]:
    """The cells of all tables with these columns, row by row."""
    tables = re.findall(rf"^\| {re.escape(columns)} \|\n\|[ |-]+\|\n((?:\|.*\|\n)*)", text, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for table in tables for line in table.splitlines()]


def code_in(text: str) -> list[str]:
    """All that stands in backticks."""
    return re.findall(r"`([^`\n]+)`", text)


# --- examples ---


def _ask(client: httpx.Client, command: str, photo: bytes) -> httpx.Response | str:
    """What a `curl` command would get: the answer, or of a stream its first event."""
    words = iter(shlex.split(command.replace("\\\n", " "))[1:])
    method, url, headers, files = "", "", {}, []
    content: bytes | str | None = None
    for word in words:
        match word:
            case "-H":
                name, _, value = next(words).partition(": ")
                headers[name] = value
            case "-d":
                content = next(words)
            case "--data-binary":
                assert next(words).startswith("@")
                content = photo
            case "-F":
                name, _, value = next(words).partition("=")
                assert value.startswith("@")
                files.append((name, (value[1:], photo)))
            case "-X":
                method = next(words)
            case "-o":
                next(words)
            case "-s" | "-N":
                pass
            case _:
                assert word.startswith(_HOST), word
                url = word.removeprefix(_HOST)
    if url.partition("?")[0].endswith("/events"):
        with client.stream("GET", url, headers=headers) as stream:
            assert stream.status_code == 200
            lines = stream.iter_lines()
            return next(line for line in lines if line.startswith("data: "))
    sends = content is not None or bool(files)
    return client.request(method or ("POST" if sends else "GET"), url, content=content, headers=headers, files=files or None)


@pytest.mark.parametrize(("mark", "commands"), EXAMPLES, ids=[mark for mark, _ in EXAMPLES])
def test_examples_are_answered_as_shown(shipped: httpx.Client, mark: str, commands: str) -> None:
    """Every `curl` of an example is answered, the first as it stands below: in numbers, or where they depend on time in shape."""
    name, _, status = mark.partition(", ")
    buffer = io.BytesIO()
    Image.new("RGB", (60, 50), "teal").save(buffer, "JPEG")
    answers = [
        _ask(shipped, f"curl {command}", buffer.getvalue()) for command in re.split(r"^curl ", commands, flags=re.MULTILINE)[1:]
    ]
    assert answers
    for answer in answers:
        if isinstance(answer, httpx.Response):
            assert answer.status_code == int(status or 200), answer.text
    for kind in ("answer", "shape"):
        shown = re.search(rf"<!-- {kind}: {re.escape(name)} -->\n```json\n(.*?)```", TEXT, re.DOTALL)
        if shown:
            assert isinstance(answers[0], httpx.Response)
            assert_alike(json.loads(shown[1]), answers[0].json(), name, values=kind == "answer")


_CLASS = re.compile(r"(-?\d+\.\d+):(\d+:.+)")  # of the classification extension: value:index:label


def assert_alike(shown: Any, actual: Any, where: str, *, values: bool) -> None:
    """Same structure, and with `values` the same texts, and numbers within 0.1 % or 1e-4; timings are there and not negative."""
    if isinstance(shown, dict):
        assert isinstance(actual, dict), where
        known = [key for key in shown if key != _MORE]
        assert known == [key for key in actual if key in known] if _MORE in shown else known == list(actual), where
        for key in known:
            assert_alike(shown[key], actual[key], f"{where}.{key}", values=values)
    elif isinstance(shown, list):
        assert isinstance(actual, list), where
        known = [item for item in shown if item != _MORE]
        if values:
            assert len(known) <= len(actual) if _MORE in shown else len(known) == len(actual), where
        for i, (one, other) in enumerate(zip(known, actual, strict=False)):
            assert_alike(one, other, f"{where}[{i}]", values=values)
    elif isinstance(shown, float) and ".timing." in where:
        assert isinstance(actual, float), where
        assert actual >= 0, where
    elif isinstance(shown, float) and values:
        assert actual == pytest.approx(shown, rel=1e-3, abs=1e-4), where
    elif isinstance(shown, (int, float)) and not values:
        assert actual is None or isinstance(actual, (int, float)), where
    elif values and isinstance(shown, str) and isinstance(actual, str) and (score := _CLASS.fullmatch(shown)):
        assert float(actual.partition(":")[0]) == pytest.approx(float(score[1]), rel=1e-3), where
        assert actual.partition(":")[2] == score[2], where
    elif values:
        assert shown == actual, where
    else:
        assert actual is None or isinstance(actual, type(shown)), where


def test_every_answer_belongs_to_an_example() -> None:
    """No answer is shown that is not compared."""
    names = [mark.partition(", ")[0] for mark, _ in EXAMPLES]
    assert len(names) == len(set(names))
    assert set(re.findall(r"<!-- (?:answer|shape): (.+?) -->", TEXT)) <= set(names)
    assert TEXT.count("curl -s") == sum(commands.count("curl -s") for _, commands in EXAMPLES)


def test_python_examples_run() -> None:
    """The examples with Triton's clients hold what they assert, over HTTP and gRPC; each in a process of its own."""
    pytest.importorskip("tritonclient.grpc", reason="the extra grpc is not installed")
    found = dict(re.findall(r"<!-- python: (\w+) -->\n```python\n(.*?)```", SERVICE, re.DOTALL))
    assert set(found) == {"http", "grpc"}
    with process("--port", "0", "--grpc-port", "0", NORMSCOPE_MODEL_REPOSITORY=str(SHIPPED)) as started:
        url = read_until(started, r"running on http://([\d.]+:\d+)")[1]
        address = read_until(started, r"gRPC running on ([\d.]+:\d+)")[1]
        while httpx.get(f"http://{url}/readyz").status_code != 200:
            pass
        for port, target in ((8000, url), (8001, address)):
            code = found["http" if port == 8000 else "grpc"]
            assert f'"127.0.0.1:{port}"' in code
            code = code.replace(f"127.0.0.1:{port}", target)
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr


# --- routes, parameters, errors, metrics ---


def test_routes_are_documented_and_exist(shipped: httpx.Client) -> None:
    """Every route of the OpenAPI document stands in the document of the service; every route that any document names is served."""
    paths = shipped.get("/openapi.json").json()["paths"]
    served = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    named = {name for each in code_in(SERVICE) for name in _expanded(each)}
    assert served <= named, served - named
    routes = {name for each in code_in(TEXT) for name in _expanded(each) if re.match(r"(GET|POST) /\S*$", name)}
    assert {route for route in routes if not route.endswith("...")} <= served
    for page in code_in(next(names for names, _ in rows(SERVICE, "request | answer") if names.startswith("`/`"))):
        assert shipped.get(page).status_code == 200, page


def _expanded(text: str) -> list[str]:
    """A route with an optional part in brackets, without and with it."""
    return [re.sub(r"\[.*\]", "", text), text.replace("[", "").replace("]", "")] if text.startswith(("GET /", "POST /")) else []


def test_parameters_are_those_of_the_routes(shipped: httpx.Client) -> None:
    """The section of a route lists exactly its parameters, with their defaults where OpenAPI has them."""
    told = sections(SERVICE)
    for path, methods in shipped.get("/openapi.json").json()["paths"].items():
        for method, operation in methods.items():
            if not path.startswith("/v1"):
                continue
            parameters = {each["name"]: each["schema"] for each in operation.get("parameters", []) if each["in"] != "path"}
            table = {
                name.strip("`"): default
                for name, default, _ in rows(told[f"`{method.upper()} {path}`"], "parameter | default | meaning")
            }
            assert table.keys() == parameters.keys(), path
            for name, schema in parameters.items():
                if schema.get("default"):
                    assert table[name] == str(schema["default"]), (path, name)


def test_errors_are_those_of_the_code() -> None:
    """The table of errors has the status and the code of each, in order, and no others."""
    kinds: Mapping[Any, int] = STATUSES  # all of them are made from the same arguments
    expected = [(str(status), f"`{_code(kind('', value=None, limit=None, remedy=''))}`") for kind, status in kinds.items()]
    assert [(status, code) for status, code, _ in rows(SERVICE, "status | code | when")] == expected


def test_metrics_are_those_of_the_service(shipped: httpx.Client) -> None:
    """The table of metrics has every series that /metrics has of ours, with its labels, and no others."""
    shipped.post("/v1/models/encoder/predict", json={"inputs": "hi"}).raise_for_status()
    exposed = shipped.get("/metrics").text
    found = {name.removesuffix("_created") for name in re.findall(r"^# TYPE (normscope_\w+)", exposed, re.MULTILINE)}
    found = {name for name in found if f"{name}_total" not in found}
    documented = {name for names, _, _ in rows(SERVICE, "metric | labels | meaning") for name in code_in(names)}
    assert found == documented
    for names, labels, _ in rows(SERVICE, "metric | labels | meaning"):
        for name in code_in(names):
            series = re.search(rf"^{name}(?:_bucket)?\{{(.*?)\}} ", exposed, re.MULTILINE)
            if series:
                of_series = set(re.findall(r'(\w+)="', series[1])) - {"le"}
                assert of_series == set(filter(None, labels.split(", "))), name


# --- settings, commands, names ---


def _shown(value: object) -> str:
    if value is None or value in ((), ""):
        return "unset"
    if isinstance(value, Path):
        return str(value.relative_to(ROOT))
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def test_settings_are_those_of_the_code() -> None:
    """Every setting has its row, in order, with its default, that in the image if it differs, and its description."""
    image = dict(re.findall(r"(NORMSCOPE_\w+)=(\S+)", (ROOT / "docker" / "Dockerfile").read_text()))
    expected = []
    for name, field in Settings.model_fields.items():
        variable, default = f"NORMSCOPE_{name.upper()}", _shown(field.default)
        other = image.get(variable, default)
        expected.append([f"`{variable}`", default if other == default else f"{default} (image: {other})", field.description])
    assert [
        [variable, default.replace("`", ""), meaning]
        for variable, default, meaning in rows(SERVICE, "variable | default | meaning")
    ] == expected


def test_settings_that_are_named_exist() -> None:
    """No document names a setting that is not there."""
    tests_own = {"NORMSCOPE_CLINC150", "NORMSCOPE_IMAGENETTE"}
    named = set(re.findall(r"NORMSCOPE_[A-Z0-9_]+", TEXT))
    assert named <= {f"NORMSCOPE_{name.upper()}" for name in Settings.model_fields} | tests_own


def test_the_image_is_as_documented() -> None:
    """The document of the container lists the settings that the image changes, and the build arguments with their defaults."""
    dockerfile, told = (ROOT / "docker" / "Dockerfile").read_text(), DOCUMENTS["docker/README.md"]
    documented = {variable.strip("`"): value.strip("`") for variable, value, _ in rows(told, "variable | in the image | why")}
    assert documented == dict(re.findall(r"(NORMSCOPE_\w+)=(\S+)", dockerfile))
    arguments = {
        name: default.strip("`")
        for names, default, _ in rows(told, "build argument | default | meaning")
        for name in code_in(names)
    }
    assert arguments == dict(re.findall(r"^ARG (\w+)=(\S+)", dockerfile, re.MULTILINE))


def test_extras_are_documented() -> None:
    """The table of extras has those of the project and no others."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {name.strip("`") for name, _ in rows(DOCUMENTS["docker/README.md"], "extra | what it adds")} == set(extras)


def _commands() -> dict[str, ArgumentParser]:
    (commands,) = [action for action in build_parser()._actions if isinstance(action, _SubParsersAction)]
    return dict(commands.choices)


@pytest.mark.parametrize("name", _commands())
def test_options_of_commands_are_documented(name: str) -> None:
    """The section of a command of `python -m models` has exactly its options, with what `--help` says of them."""
    options = {
        option: action.help
        for action in _commands()[name]._actions
        for option in action.option_strings
        if option not in ("-h", "--help")
    }
    documented = {option.strip("`"): meaning for option, meaning in rows(sections(MODELS)[name], "option | meaning")}
    assert documented.keys() == options.keys()
    for option, meaning in options.items():
        assert str(meaning) in documented[option] or option == "--extent", option


def test_commands_of_models_parse() -> None:
    """Every line of a document that calls `python -m models` has valid options, and each command is called in one."""
    lines = re.findall(r"^ *python -m models ([^#\n]*)", TEXT, re.MULTILINE)
    assert {build_parser().parse_args(shlex.split(line)).command for line in lines} == set(_commands())


def test_make_targets_are_documented_and_exist() -> None:
    """Every target of the Makefile is named in a document, and every `make` command of a document is a target."""
    targets = set(re.findall(r"^([a-z0-9-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", TEXT, re.MULTILINE)) == targets


def test_benchmarks_are_documented_and_exist() -> None:
    """Every benchmark that can be run is in their document, and every one named there can be run."""
    folder = ROOT / "tests" / "benchmarks"
    can_run = {path.stem for path in folder.glob("*.py") if "__main__" in path.read_text()} | {
        path.parent.name for path in folder.glob("*/__main__.py")
    }
    named = set(re.findall(r"python -m tests\.benchmarks\.(\w+)", DOCUMENTS["tests/benchmarks/README.md"]))
    assert named == can_run


@pytest.mark.parametrize("path", _PATHS)
def test_links_lead_somewhere(path: str) -> None:
    """Every link within the project has a file at its end, and a heading where it names one."""
    for link in re.findall(r"\]\(([^)]+)\)", DOCUMENTS[path]):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / path).parent / name if name else ROOT / path
        assert target.exists(), link
        if anchor:
            assert anchor in {_anchor(heading) for heading in sections(target.read_text())}, link


def _anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
