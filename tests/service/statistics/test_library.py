"""The build of the compiled operator, in a folder of its own."""

import ctypes
import shutil
from pathlib import Path

import pytest

from service.statistics import library


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the source, and the library beside it."""
    for header in library._SOURCE.parent.glob("*.h"):
        shutil.copy(header, tmp_path)
    source = shutil.copy(library._SOURCE, tmp_path)
    monkeypatch.setattr(library, "_SOURCE", source)
    monkeypatch.setattr(library, "_LIBRARY", tmp_path / "observe.so")
    return tmp_path


@pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="no C compiler")
def test_it_is_built_beside_its_source(folder: Path) -> None:
    """The library can be loaded, and nothing else is left."""
    assert library.build() == "observe.so is built"
    assert ctypes.CDLL(str(folder / "observe.so")).RegisterCustomOps
    assert {path.name for path in folder.glob("observe.*")} == {"observe.c", "observe.so"}


def test_without_a_compiler_nothing_breaks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, and no library is there."""
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CC", raising=False)
    assert "no C compiler" in library.build()
    assert not (folder / "observe.so").exists()


def test_a_compiler_that_fails_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it says; numpy goes on."""
    monkeypatch.setenv("CC", "false")
    assert "failed: numpy" in library.build()
    assert [path.name for path in folder.glob("observe.*")] == ["observe.c"]


def test_a_library_of_another_machine_is_left_alone(
    folder: Path, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    """One that cannot be loaded is a warning, and numpy reduces."""
    (folder / "observe.so").write_bytes(b"not a library")
    library.library.cache_clear()
    request.addfinalizer(library.library.cache_clear)
    assert library.library() is None
    assert "numpy reduces instead" in caplog.text
