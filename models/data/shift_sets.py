"""Archives of inputs that a model was not trained for: a tar file in, its sets by their names out.

FOLDER/SET/PHOTO    photos in any format that the service decodes
FOLDER/SET.txt      texts, one a line, UTF-8
"""

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from models.data.archive import ArchivedFile, read_files

_REMEDY = "expected a tar file with FOLDER/SET/PHOTO or FOLDER/SET.txt (one text a line)"


def read_photo_sets(path: Path) -> dict[str, list[ArchivedFile]]:
    """The encoded photos of each set, in the order of their names.

    Raises:
        ValueError: not a whole tar file, or one without photos.
    """
    sets: dict[str, list[ArchivedFile]] = {}
    for file in _files(path, lambda name: len(name.parts) == 3):
        sets.setdefault(file.path.parts[1], []).append(file)
    if not sets:
        raise ValueError(f"{path} holds no photos; {_REMEDY}")
    return sets


def read_text_sets(path: Path) -> dict[str, list[str]]:
    """The texts of each set in order, without empty lines.

    Raises:
        ValueError: not a whole tar file, one without texts, a set without texts, or texts that are not UTF-8.
    """
    sets: dict[str, list[str]] = {}
    for file in _files(path, lambda name: len(name.parts) == 2 and name.suffix == ".txt"):
        try:
            lines = file.decode("utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{file.path} in {path} is not UTF-8 ({error}); {_REMEDY}") from error
        sets[file.path.stem] = [line for line in lines if line.strip()]
        if not sets[file.path.stem]:
            raise ValueError(f"the set {file.path} in {path} holds no texts; {_REMEDY}")
    if not sets:
        raise ValueError(f"{path} holds no texts; {_REMEDY}")
    return sets


def _files(archive: Path, wanted: Callable[[PurePosixPath], bool]) -> list[ArchivedFile]:
    """In the order of their paths; of those of one path the last, as unpacking would leave it."""
    found = {file.path: file for file in read_files(archive, wanted, _REMEDY)}
    return [found[path] for path in sorted(found, key=str)]
