"""The folders of a model repository: NAME/VERSION/manifest.json. Looks only; loads nothing."""

import os
from dataclasses import dataclass
from pathlib import Path

from models.artifact import ArtifactError, is_plain_name


@dataclass(frozen=True)
class VersionFolder:
    """One artifact on disk.

    Attributes:
        path: the folder, links resolved.
        signature: changes whenever a file in it is added, removed or written.
    """

    name: str
    version: str
    path: Path
    signature: tuple[tuple[str, int, int], ...]


def by_age(version: str) -> tuple[bool, int, str]:
    """Sort key, the newest last: the highest all-digit version is the newest; others, such as 1-int8, come before them all."""
    digits = version.isdecimal()
    return digits, int(version) if digits else 0, version


def find_versions(repository: Path) -> dict[str, dict[str, VersionFolder] | None]:
    """All artifacts of a repository: name -> version -> folder, None for a model whose folder cannot be read.

    Folders whose name begins with a dot are not looked at. A version that cannot be read is among the others: loading it tells why.

    Raises:
        ArtifactError: the repository cannot be read.
    """
    try:
        root = repository.resolve(strict=True)
        models = sorted(root.iterdir())
    except (OSError, RuntimeError) as error:  # the latter is what a link to itself is
        raise ArtifactError(
            f"the model repository {repository} cannot be read ({error}); set NORMSCOPE_MODEL_REPOSITORY"
        ) from error
    found = {model.name: _versions(root, model) for model in models if _is_candidate(model)}
    return {name: versions for name, versions in found.items() if versions is None or versions}


def _versions(root: Path, model: Path) -> dict[str, VersionFolder] | None:
    try:
        entries = sorted(model.iterdir())
    except OSError:
        return None
    folders = {}
    for version in entries:
        if not _is_candidate(version):
            continue
        path = version.resolve()
        # a link may point to another place of the repository (as mounted volumes do), never out of it
        if path.is_relative_to(root):
            folders[version.name] = VersionFolder(model.name, version.name, path, _signature(path))
    return folders


def _is_candidate(path: Path) -> bool:
    return is_plain_name(path.name) and os.path.isdir(path)  # Path.is_dir raises where a folder may not be read


def _signature(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """What can be read of it: another one once more can be."""
    try:
        return tuple(_signature_of_file(file) for file in sorted(folder.iterdir()))
    except OSError:
        return ()


def _signature_of_file(file: Path) -> tuple[str, int, int]:
    try:
        status = file.stat()
    except OSError:  # a link to nowhere, or a file that has just been removed
        return file.name, 0, -1
    return file.name, status.st_mtime_ns, status.st_size
