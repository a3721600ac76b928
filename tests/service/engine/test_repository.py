"""The life of models: versions, loading, replacing and unloading under traffic, broken artifacts, folders that change."""

import asyncio
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest

from models.artifact import ArtifactError, Manifest, load_artifact, write_manifest
from service.engine.repository import Repository
from service.errors import LoadError, NotReadyError, UnknownModelError
from service.settings import Settings
from tests.conftest import SmallRepository

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
        assert "points outside the directory" in entry.reason
        assert "s3cret" not in json.dumps(entry.reason)
