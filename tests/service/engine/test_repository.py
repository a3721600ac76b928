"""The life of models: versions, loading, replacing and unloading under traffic, broken artifacts, folders that change."""

import asyncio
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest

import service.engine.repository
from models.artifact import Artifact, ArtifactError, Manifest, load_artifact, write_manifest
from service.engine.model import ServedModel, TrafficOf
from service.engine.repository import Repository
from service.engine.versions import find_versions
from service.errors import LoadError, NotReadyError, UnknownModelError
from service.settings import Settings
from tests.conftest import SmallRepository, running_server

_TIMEOUT_S = 60


def add_version(small: SmallRepository, root: Path, version: str, name: str = "text") -> Path:
    """Copies the small text model into root/name/version."""
    artifact = load_artifact(small.folder / "text" / "1")
    folder = root / name / version
    shutil.copytree(artifact.folder, folder)
    write_manifest(folder, artifact.manifest.model_copy(update={"name": name, "version": version}), list(artifact.manifest.files))
    return folder


def break_artifact(folder: Path) -> None:
    """A graph that is not what the manifest says."""
    (folder / "model.onnx").write_bytes(b"not a graph")


@contextmanager
def opened(root: Path, **settings: object) -> Iterator[Repository]:
    """A repository with everything loaded."""
    repository = Repository(Settings.model_validate({"model_repository": root, **settings}))
    repository.load_all()
    try:
        yield repository
    finally:
        repository.close()


def states(repository: Repository) -> dict[str, str]:
    """The index, as name/version -> state."""
    return {f"{entry.name}/{entry.version}": entry.state for entry in repository.index()}


def test_the_highest_number_answers_and_others_when_named(small_repository: SmallRepository, tmp_path: Path) -> None:
    """10 is newer than 9, and 11-int8 is never the newest; every version answers to its name."""
    for version in ("9", "10", "11-int8"):
        add_version(small_repository, tmp_path, version)
    (tmp_path / ".hidden" / "1").mkdir(parents=True)
    with opened(tmp_path) as repository:
        assert repository.get("text").manifest.version == "10"
        assert {repository.get("text", each).manifest.version for each in ("9", "10", "11-int8")} == {"9", "10", "11-int8"}
        assert repository.names == ["text"]
        assert repository.ready
        with pytest.raises(UnknownModelError, match="text/12"):
            repository.get("text", "12")


def test_a_version_that_is_no_number_never_stands_in_for_one(small_repository: SmallRepository, tmp_path: Path) -> None:
    """While the only number cannot be loaded, 1-int8 answers to its own name alone; the model's name tells what is wrong."""
    break_artifact(add_version(small_repository, tmp_path, "1"))
    add_version(small_repository, tmp_path, "1-int8")
    with opened(tmp_path) as repository:
        assert repository.get("text", "1-int8").manifest.version == "1-int8"
        with pytest.raises(NotReadyError, match="text/1 cannot be loaded"):
            repository.get("text")
        assert repository.manifests == []


def test_a_model_of_which_no_version_is_a_number_answers_all_the_same(small_repository: SmallRepository, tmp_path: Path) -> None:
    """Where only 1-int8 is there, it is the newest."""
    add_version(small_repository, tmp_path, "1-int8")
    with opened(tmp_path) as repository:
        assert repository.get("text").manifest.version == "1-int8"


def test_nothing_is_ready_before_it_is_warm(small_repository: SmallRepository, tmp_path: Path) -> None:
    """Before `load_all`, models are listed as LOADING and requests are told to wait."""
    add_version(small_repository, tmp_path, "1")
    repository = Repository(Settings(model_repository=tmp_path))
    assert states(repository) == {"text/1": "LOADING"}
    assert not repository.ready
    with pytest.raises(NotReadyError, match="still being loaded"):
        repository.get("text")


def test_a_broken_version_leaves_the_older_one_serving(small_repository: SmallRepository, tmp_path: Path) -> None:
    """At the start and when it is added later: the index says what is wrong, loading it is an error that says it too."""
    add_version(small_repository, tmp_path, "1")
    break_artifact(add_version(small_repository, tmp_path, "2"))
    with opened(tmp_path) as repository:
        assert repository.get("text").manifest.version == "1"
        assert repository.ready
        assert states(repository) == {"text/1": "READY", "text/2": "UNAVAILABLE"}
        with pytest.raises(NotReadyError, match="SHA-256"):
            repository.get("text", "2")
        with pytest.raises(LoadError, match="SHA-256"):
            repository.load("text")
        assert "SHA-256" in {entry.version: entry.reason for entry in repository.index()}["2"]


def test_a_broken_replacement_leaves_the_loaded_one_serving(small_repository: SmallRepository, tmp_path: Path) -> None:
    """The files of a version that serves are overwritten by broken ones: it serves on, until it is mended and loaded."""
    folder = add_version(small_repository, tmp_path, "1")
    with opened(tmp_path) as repository:
        before = repository.get("text")
        good = (folder / "model.onnx").read_bytes()
        break_artifact(folder)
        for _ in range(2):  # not only the first time
            with pytest.raises(LoadError, match="SHA-256"):
                repository.load("text")
            assert repository.get("text") is before
        (folder / "model.onnx").write_bytes(good)
        repository.load("text")
        assert repository.get("text") is not before
        assert [entry.reason for entry in repository.index()] == [""]


def test_loading_what_has_not_changed_keeps_it(small_repository: SmallRepository, tmp_path: Path) -> None:
    """The same sessions, counters and statistics go on."""
    add_version(small_repository, tmp_path, "1")
    with opened(tmp_path) as repository:
        before = repository.get("text")
        repository.load("text")
        assert repository.get("text") is before


def test_versions_come_and_go_with_their_folders(small_repository: SmallRepository, tmp_path: Path) -> None:
    """Loading a model again takes new versions in and retires those whose folder is gone; unknown names are an error."""
    add_version(small_repository, tmp_path, "1")
    with opened(tmp_path) as repository:
        add_version(small_repository, tmp_path, "2")
        add_version(small_repository, tmp_path, "1", name="other")
        repository.load("text")
        assert repository.get("text").manifest.version == "2"
        repository.load("other")
        shutil.rmtree(tmp_path / "text" / "1")
        repository.load("text")
        assert states(repository) == {"other/1": "READY", "text/2": "READY"}
        for name in ("nothing", "../text", "/etc"):
            with pytest.raises(UnknownModelError):
                repository.load(name)
            with pytest.raises(UnknownModelError):
                repository.unload(name)


def test_an_unloaded_model_is_unknown_until_it_is_loaded(small_repository: SmallRepository, tmp_path: Path) -> None:
    """Unloading takes all versions away without making the service unready; loading brings them back."""
    add_version(small_repository, tmp_path, "1")
    with opened(tmp_path) as repository:
        repository.unload("text")
        assert states(repository) == {"text/1": "UNAVAILABLE"}
        assert repository.ready
        with pytest.raises(UnknownModelError, match="unloaded"):
            repository.get("text")
        repository.load("text")
        assert repository.get("text").manifest.version == "1"


def test_no_request_fails_while_a_model_is_replaced(small_repository: SmallRepository, tmp_path: Path) -> None:
    """Requests go on while the files change and the model is loaded again, several times: each is answered by a whole model."""
    folder = add_version(small_repository, tmp_path, "1")
    with opened(tmp_path) as repository:
        failures: list[BaseException] = []
        answered: list[int] = []
        stop = threading.Event()

        async def client() -> None:
            while not stop.is_set():
                with repository.reserve("text") as served:
                    outcomes, _ = await served.predict(["hello there", "my friend"], statistics=False)
                answered.append(len(outcomes))

        async def clients() -> None:
            await asyncio.gather(*(client() for _ in range(4)))

        def traffic() -> None:
            try:
                asyncio.run(clients())
            except BaseException as error:  # the assertion below shows it
                failures.append(error)

        thread = threading.Thread(target=traffic)
        thread.start()
        try:
            seen = {repository.get("text")}
            for _ in range(3):
                os.utime(folder / "model.onnx", ns=(0, len(seen)))
                reached = len(answered) + 8
                repository.load("text")
                seen.add(repository.get("text"))
                while len(answered) < reached and not failures:
                    stop.wait(0.001)
        finally:
            stop.set()
            thread.join(_TIMEOUT_S)
        assert not failures
        assert len(seen) == 4
        assert set(answered) == {2}


def test_unloading_waits_for_the_requests_in_hand(small_repository: SmallRepository, tmp_path: Path) -> None:
    """Who holds a place is answered by the model, though it was unloaded in between; only then it is closed."""
    add_version(small_repository, tmp_path, "1")
    with opened(tmp_path) as repository:
        with repository.reserve("text") as served:
            unloading = threading.Thread(target=repository.unload, args=("text",))
            unloading.start()
            while repository.ready_names:
                unloading.join(0.001)
            outcomes, _ = asyncio.run(served.predict(["hello"], statistics=True))
            assert len(outcomes) == 1
            assert unloading.is_alive()
        unloading.join(_TIMEOUT_S)
        assert not unloading.is_alive()


def test_watching_follows_the_folders(small_repository: SmallRepository, tmp_path: Path) -> None:
    """New versions are loaded, broken ones reported, removed ones retired, without any call."""
    root = tmp_path / "repository"
    add_version(small_repository, root, "1")
    with opened(root, watch=True, watch_interval_s=0.01) as repository:
        watching = threading.Thread(target=repository.watch)
        watching.start()

        def until(expected: dict[str, str]) -> None:
            while states(repository) != expected:
                watching.join(0.01)

        add_version(small_repository, root, "2")
        until({"text/1": "READY", "text/2": "READY"})
        break_artifact(add_version(small_repository, tmp_path / "elsewhere", "3"))
        shutil.move(tmp_path / "elsewhere" / "text" / "3", root / "text" / "3")
        until({"text/1": "READY", "text/2": "READY", "text/3": "UNAVAILABLE"})
        shutil.rmtree(root / "text")
        until({})
        add_version(small_repository, root, "4")
        until({"text/4": "READY"})
        repository.close()
        watching.join(_TIMEOUT_S)
        assert not watching.is_alive()


def test_an_empty_repository_is_an_error_unless_it_is_watched(tmp_path: Path) -> None:
    """Without models there is nothing to serve; who watches waits for the first."""
    with pytest.raises(ArtifactError, match="NAME/VERSION"):
        Repository(Settings(model_repository=tmp_path))
    assert Repository(Settings(model_repository=tmp_path, watch=True)).names == []


def test_nothing_outside_the_repository_is_served(small_repository: SmallRepository, tmp_path: Path) -> None:
    """A link that leaves the repository is not followed; one that stays inside is, as mounted volumes use them."""
    outside = add_version(small_repository, tmp_path / "outside", "1")
    root = tmp_path / "repository"
    add_version(small_repository, root / "..data", "2")
    (root / "text").mkdir(parents=True)
    (root / "text" / "1").symlink_to(outside)
    (root / "text" / "2").symlink_to(root / "..data" / "text" / "2")
    with opened(root) as repository:
        assert states(repository) == {"text/2": "READY"}


def test_external_data_outside_the_artifact_is_refused(small_repository: SmallRepository, tmp_path: Path) -> None:
    """A graph whose weights point to a file elsewhere is not loaded, and nothing of that file is shown."""

    folder = add_version(small_repository, tmp_path, "1")
    secret = tmp_path / "secret"
    secret.write_bytes(b"s3cret" * 10_000)
    model = onnx.load(folder / "model.onnx")
    tensor = max(model.graph.initializer, key=lambda each: each.ByteSize())
    onnx.external_data_helper.set_external_data(tensor, location="../../secret")
    tensor.ClearField("raw_data")
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
    write_manifest(folder, manifest, list(manifest.files))
    with opened(tmp_path) as repository:
        (entry,) = repository.index()
        assert entry.state == "UNAVAILABLE"
        assert "none of the files of the manifest" in entry.reason
        assert "s3cret" not in entry.reason


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "tokenizer.json"])
def test_files_that_are_links_stay_in_the_repository(small_repository: SmallRepository, tmp_path: Path, name: str) -> None:
    """A file of an artifact that is a link out of the repository is refused; links inside, as of mounted volumes, are followed."""
    root = tmp_path / "repository"
    for version in ("1", "2"):
        folder = add_version(small_repository, root, version)
        target = (tmp_path / "outside" if version == "1" else folder / "..2026") / name
        target.parent.mkdir()
        (folder / name).rename(target)
        if version == "1":
            (folder / name).symlink_to(target)
        else:
            (folder / "..data").symlink_to("..2026")
            (folder / name).symlink_to(Path("..data") / name)
    with opened(root) as repository:
        assert states(repository) == {"text/1": "UNAVAILABLE", "text/2": "READY"}
        assert f"text/1/{name} is a link that leaves the repository" in repository.index()[0].reason


def _no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _wrong_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _sealed(folder: Path, name: str, content: bytes) -> None:
    """Writes a file, and its checksum into the manifest."""
    (folder / name).write_bytes(content)
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
    write_manifest(folder, manifest, list(manifest.files))


def _broken_tokenizer(folder: Path) -> None:
    _sealed(folder, "tokenizer.json", b"{}")


def _no_graph(folder: Path) -> None:
    _sealed(folder, "model.onnx", b"no graph")


def _graph_that_cannot_be_loaded(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    model.graph.node[0].op_type = "Nonsense"
    _sealed(folder, "model.onnx", model.SerializeToString())


@pytest.mark.parametrize(
    "damage",
    [_no_manifest, _wrong_manifest, _no_tokenizer, break_artifact, _broken_tokenizer, _no_graph, _graph_that_cannot_be_loaded],
)
def test_clients_learn_what_is_wrong_but_no_path(
    small_repository: SmallRepository, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    """The index and the errors name the version and the kind of fault, no folder of the server; the log has it all."""
    damage(add_version(small_repository, tmp_path, "1"))
    with opened(tmp_path) as repository:
        (entry,) = repository.index()
        assert (entry.name, entry.version, entry.state) == ("text", "1", "UNAVAILABLE")
        with pytest.raises(NotReadyError) as not_ready:
            repository.get("text")
        with pytest.raises(LoadError) as not_loaded:
            repository.load("text")
    for told in (entry.reason, *repository.failures, str(not_ready.value), str(not_loaded.value)):
        assert len(told) > 20
        assert not re.search(r"(?<![\w.])/\w", told)
    assert str(tmp_path) in caplog.text


def test_a_repository_that_has_gone_is_told_without_its_path(small_repository: SmallRepository, tmp_path: Path) -> None:
    """Loading says that it cannot be read; what is loaded goes on serving."""
    root = tmp_path / "repository"
    add_version(small_repository, root, "1")
    with opened(root) as repository:
        shutil.rmtree(root)
        with pytest.raises(LoadError, match="repository cannot be read") as caught:
            repository.load("text")
        assert str(tmp_path) not in str(caught.value)
        assert repository.get("text").manifest.version == "1"


def test_a_link_to_nowhere_concerns_its_version_alone(small_repository: SmallRepository, tmp_path: Path) -> None:
    """A version whose file is a dangling link is listed with its reason; the others are found, now and when it is mended."""
    add_version(small_repository, tmp_path, "1")
    broken = add_version(small_repository, tmp_path, "2")
    tokenizer = (broken / "tokenizer.json").read_bytes()
    (broken / "tokenizer.json").unlink()
    (broken / "tokenizer.json").symlink_to(tmp_path / "nowhere")
    (broken / "notes.txt").symlink_to("notes.txt")
    with opened(tmp_path) as repository:
        assert states(repository) == {"text/1": "READY", "text/2": "UNAVAILABLE"}
        assert "text/2/tokenizer.json cannot be read (No such file or directory)" in repository.index()[1].reason
        (broken / "tokenizer.json").unlink()
        (broken / "tokenizer.json").write_bytes(tokenizer)
        repository.load("text")
        assert states(repository) == {"text/1": "READY", "text/2": "READY"}


def test_a_folder_that_cannot_be_read_concerns_itself_alone(
    small_repository: SmallRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version in it is listed with its reason; a model in it goes on serving; all others are found."""
    add_version(small_repository, tmp_path, "1")
    closed = [add_version(small_repository, tmp_path, "2"), add_version(small_repository, tmp_path, "1", name="other").parent]
    add_version(small_repository, tmp_path, "1", name="third")
    listing = Path.iterdir

    def refusing(folder: Path) -> Iterator[Path]:
        if folder in closed:
            raise PermissionError(13, "Permission denied", str(folder))
        return listing(folder)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", refusing)
        found = find_versions(tmp_path)
        assert found["other"] is None
        text = found["text"]
        assert text is not None
        assert text["2"].signature == ()
        repository = Repository(Settings(model_repository=tmp_path))
        assert repository.names == ["text", "third"]
        with pytest.raises(LoadError, match="the folder of other cannot be read"):
            repository.load("other")
    repository.load("other")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", refusing)
        with pytest.raises(LoadError, match="the folder of other cannot be read"):
            repository.load("other")
        assert repository.get("other").manifest.version == "1"
    repository.close()


def test_what_comes_later_leaves_the_service_ready(
    small_repository: SmallRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a new version and a new model are loaded, and after they have failed, all answers about readiness stay 200."""
    add_version(small_repository, tmp_path, "1")
    began, go_on = threading.Semaphore(0), threading.Semaphore(0)

    class HeldModel(ServedModel):
        def __init__(self, artifact: Artifact, settings: Settings, threads: int, traffic_of: TrafficOf) -> None:
            began.release()
            go_on.acquire()
            super().__init__(artifact, settings, threads, traffic_of)

    with running_server(Settings(model_repository=tmp_path)) as client, ThreadPoolExecutor() as threads:
        monkeypatch.setattr(service.engine.repository, "ServedModel", HeldModel)

        def statuses() -> set[int]:
            return {client.get(path).status_code for path in ("/readyz", "/v2/health/ready", "/v2/models/text/ready")}

        for name, version in (("text", "2"), ("other", "1")):
            folder = add_version(small_repository, tmp_path, version, name=name)
            loading = threads.submit(client.post, f"/v2/repository/models/{name}/load")
            began.acquire()
            assert statuses() == {200}
            assert client.get(f"/v2/models/{name}/versions/{version}/ready").status_code == 503
            go_on.release()
            assert loading.result().status_code == 200
            _no_tokenizer(folder)
            assert client.post(f"/v2/repository/models/{name}/load").status_code == 400
            assert statuses() == {200}
        break_artifact(add_version(small_repository, tmp_path, "1", name="third"))
        assert client.post("/v2/repository/models/third/load").status_code == 400
        assert client.get("/v2/models/third/ready").status_code == 503
        assert statuses() == {200}


def test_a_model_that_was_never_ready_keeps_the_service_unready(small_repository: SmallRepository, tmp_path: Path) -> None:
    """Until it is mended and loaded, or unloaded: the index and /readyz say why."""
    add_version(small_repository, tmp_path, "1")
    broken = add_version(small_repository, tmp_path, "1", name="other")
    good = (broken / "model.onnx").read_bytes()
    break_artifact(broken)
    with running_server(Settings(model_repository=tmp_path)) as client:
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (503, "failed")
        assert "other/1" in answer.json()["reason"]
        assert str(tmp_path) not in answer.text
        assert client.post("/v1/models/text/predict", json={"inputs": "hello"}).status_code == 200
        (broken / "model.onnx").write_bytes(good)
        assert client.post("/v2/repository/models/other/load").status_code == 200
        assert client.get("/readyz").status_code == 200
    break_artifact(broken)
    with running_server(Settings(model_repository=tmp_path)) as client:
        assert client.get("/readyz").status_code == 503
        assert client.post("/v2/repository/models/other/unload").status_code == 200
        assert client.get("/readyz").status_code == 200
