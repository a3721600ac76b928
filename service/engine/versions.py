"""The folders of a model repository: NAME/VERSION/manifest.json. Looks only; loads nothing."""

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


def newest_first(version: str) -> tuple[bool, int, str]:
    """Sort key: the highest all-digit version is the newest; others, such as 1-int8, come before them all."""
    digits = version.isdecimal()
    return digits, int(version) if digits else 0, version


def find_versions(repository: Path) -> dict[str, dict[str, VersionFolder]]:
    """All artifacts of a repository: name -> version -> folder. Folders whose name begins with a dot are not looked at.

    Raises:
        ArtifactError: the repository cannot be read.
    """
    try:
        root = repository.resolve(strict=True)
        found = {model.name: _versions(root, model) for model in sorted(root.iterdir()) if _is_candidate(model)}
    except OSError as error:
        raise ArtifactError(
            f"the model repository {repository} cannot be read ({error}); set NORMSCOPE_MODEL_REPOSITORY"
        ) from error
    return {name: versions for name, versions in found.items() if versions}


def _versions(root: Path, model: Path) -> dict[str, VersionFolder]:
    folders = {}
    for version in sorted(model.iterdir()):
        path = version.resolve()
        # a link may point to another place of the repository (as mounted volumes do), never out of it
        if _is_candidate(version) and path.is_relative_to(root):
            folders[version.name] = VersionFolder(model.name, version.name, path, _signature(path))
    return folders


def _is_candidate(path: Path) -> bool:
    return is_plain_name(path.name) and path.is_dir()


def _signature(folder: Path) -> tuple[tuple[str, int, int], ...]:
    entries = []
    for file in sorted(folder.iterdir()):
        status = file.stat()
        entries.append((file.name, status.st_mtime_ns, status.st_size))
    return tuple(entries)
