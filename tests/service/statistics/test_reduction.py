"""The build of the compiled reductions, in a folder of its own."""

import ctypes
import shutil
from pathlib import Path

import pytest

from service.statistics import reduction


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the source, and the library beside it."""
    source = shutil.copy(reduction._SOURCE, tmp_path)
    monkeypatch.setattr(reduction, "_SOURCE", source)
    monkeypatch.setattr(reduction, "_LIBRARY", tmp_path / "reduce.so")
    return tmp_path


@pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="no C compiler")
def test_it_is_built_beside_its_source(folder: Path) -> None:
    """The library can be loaded, and nothing else is left."""
    assert reduction.build() == "reduce.so is built"
    assert ctypes.CDLL(str(folder / "reduce.so")).reduce_rows
    assert sorted(path.name for path in folder.iterdir()) == ["reduce.c", "reduce.so"]


def test_without_a_compiler_nothing_breaks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, and no library is there."""
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CC", raising=False)
    assert "no C compiler" in reduction.build()
    assert not (folder / "reduce.so").exists()


def test_a_compiler_that_fails_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it says; numpy goes on."""
    monkeypatch.setenv("CC", "false")
    assert "failed: numpy" in reduction.build()
    assert [path.name for path in folder.iterdir()] == ["reduce.c"]


def test_a_library_of_another_machine_is_left_alone(
    folder: Path, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    """One that cannot be loaded is a warning, and numpy reduces."""
    (folder / "reduce.so").write_bytes(b"not a library")
    reduction._library.cache_clear()
    request.addfinalizer(reduction._library.cache_clear)
    assert reduction._library() is None
    assert "numpy reduces instead" in caplog.text
