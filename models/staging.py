"""A folder that appears whole or not at all: written under a hidden name beside the place where it is to be."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class StagingError(ValueError):
    """The folder cannot be written; the message says where one can be."""


_ANOTHER_OUTPUT = "name a model repository that you may write by --output"


@contextmanager
def staged(folder: Path, remedy: str = _ANOTHER_OUTPUT) -> Iterator[Path]:
    """A new folder to write into, which becomes `folder` at the end; if that fails, nothing is left, nor any folder made above it.

    Raises:
        StagingError: the place cannot be written, with the remedy; so it is known before any work is done.
    """
    working = folder.with_name(f".{folder.name}.partial")  # whoever watches the repository looks at no such name
    shutil.rmtree(working, ignore_errors=True)
    made: list[Path] = []
    try:
        try:
            made = [parent for parent in folder.parents if not parent.exists()]
            working.mkdir(parents=True)
        except OSError as error:
            raise StagingError(f"{folder} cannot be written ({error.strerror}); {remedy}") from error
        yield working
        working.rename(folder)
    finally:
        shutil.rmtree(working, ignore_errors=True)
        for parent in made:
            with suppress(OSError):  # it is not empty
                parent.rmdir()


@contextmanager
def renewed(folder: Path, remedy: str = _ANOTHER_OUTPUT) -> Iterator[Path]:
    """As `staged`, but `folder` may exist: it is replaced at the end, and stays as it was if that fails or is interrupted.

    Raises:
        StagingError: the place cannot be written, with the remedy.
    """
    former = folder.with_name(f".{folder.name}.former")
    if former.exists() and not folder.exists():  # the process before was killed between the two
        former.rename(folder)
    shutil.rmtree(former, ignore_errors=True)
    try:
        with staged(folder, remedy) as working:
            yield working
            if folder.exists():
                folder.rename(former)
    finally:
        if former.exists() and not folder.exists():
            former.rename(folder)
        shutil.rmtree(former, ignore_errors=True)


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A copy of a folder to change, which takes its place at the end; if that fails or is interrupted, the folder stays as it was.

    Raises:
        StagingError: the place cannot be written.
    """
    with renewed(folder, remedy="copy it to a place that you may write") as working:
        shutil.copytree(folder, working, dirs_exist_ok=True)
        yield working


def require_temporary_files() -> None:
    """Makes sure that temporary files can be written.

    Raises:
        StagingError: nowhere, as in a container with a read-only root.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise StagingError(
            "no folder for temporary files can be written; name one by TMPDIR (in a container: docker run --tmpfs /tmp)"
        ) from error
