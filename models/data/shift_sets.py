"""Archives of inputs that a model was not trained for: a tar file in, its sets by their names out.

FOLDER/SET/PHOTO    photos in any format that the service decodes
FOLDER/SET.txt      texts, one a line, UTF-8
"""

import tarfile
from pathlib import Path, PurePosixPath

_REMEDY = "expected a tar file with FOLDER/SET/PHOTO or FOLDER/SET.txt (one text a line)"


def read_photo_sets(path: Path) -> dict[str, list[bytes]]:
    """The encoded photos of each set, in the order of their names.

    Raises:
        ValueError: not a whole tar file, or one without photos.
    """
    sets: dict[str, list[bytes]] = {}
    for name, data in _members(path):
        if len(name.parts) == 3:
            sets.setdefault(name.parts[1], []).append(data)
    if not sets:
        raise ValueError(f"{path} holds no photos; {_REMEDY}")
    return sets


def read_text_sets(path: Path) -> dict[str, list[str]]:
    """The texts of each set in order, without empty lines.

    Raises:
        ValueError: not a whole tar file, one without texts, or texts that are not UTF-8.
    """
    sets: dict[str, list[str]] = {}
    for name, data in _members(path):
        if len(name.parts) == 2 and name.suffix == ".txt":
            try:
                lines = data.decode("utf-8").splitlines()
            except UnicodeDecodeError as error:
                raise ValueError(f"{name} in {path} is not UTF-8 ({error}); {_REMEDY}") from error
            sets[name.stem] = [line for line in lines if line.strip()]
    if not any(sets.values()):
        raise ValueError(f"{path} holds no texts; {_REMEDY}")
    return sets


def _members(path: Path) -> list[tuple[PurePosixPath, bytes]]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                if stream is not None:  # a folder has none
                    found[member.name.removeprefix("./")] = stream.read()
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path} is not a whole archive ({error}); {_REMEDY}") from error
    return [(PurePosixPath(name), found[name]) for name in sorted(found)]
