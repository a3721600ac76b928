"""The model repository: a folder of artifacts in, served models out. Knows no HTTP."""

import logging
import threading
from pathlib import Path

from models.artifact import Artifact, ArtifactError, Manifest, load_artifact
from service.engine.model import ServedModel
from service.engine.threads import available_cpus
from service.errors import NotReadyError, UnknownModelError
from service.settings import Settings

_log = logging.getLogger("normscope")


def newest_versions(folder: Path) -> list[Path]:
    """The folder NAME/VERSION of the highest all-digit version of every model.

    Raises:
        ArtifactError: the repository cannot be read or holds no model.
    """
    if not folder.is_dir():
        raise ArtifactError(f"the model repository {folder} is not a folder; set NORMSCOPE_MODEL_REPOSITORY")
    chosen = []
    for model in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        versions = [path for path in model.iterdir() if path.is_dir() and path.name.isdecimal()]
        if versions:
            chosen.append(max(versions, key=lambda path: int(path.name)))
    if not chosen:
        raise ArtifactError(f"the model repository {folder} has no NAME/VERSION folder; export a model into it")
    return chosen


def load_repository(settings: Settings) -> list[Artifact]:
    """Reads and verifies the newest artifact of every model; nothing is run yet.

    Raises:
        ArtifactError: an artifact is broken, or its folders do not carry its name and version.
    """
    artifacts = []
    for folder in newest_versions(settings.model_repository):
        artifact = load_artifact(folder)
        expected, actual = (folder.parent.name, folder.name), (artifact.manifest.name, artifact.manifest.version)
        if expected != actual:
            raise ArtifactError(f"{folder} holds {'/'.join(actual)}; name the folders after it")
        artifacts.append(artifact)
    return artifacts


class Repository:
    """The models that are served, by name."""

    def __init__(self, settings: Settings) -> None:
        """Verifies the artifacts; `load` makes them ready.

        Raises:
            ArtifactError: see `load_repository`.
        """
        self._settings = settings
        self._artifacts = load_repository(settings)
        self._models: dict[str, ServedModel] = {}
        self.failures: dict[str, str] = {}
        self.settled = threading.Event()
        """Set once `load` has ended, well or not."""

    @property
    def manifests(self) -> list[Manifest]:
        return [artifact.manifest for artifact in self._artifacts]

    @property
    def names(self) -> list[str]:
        return [manifest.name for manifest in self.manifests]

    @property
    def ready_names(self) -> list[str]:
        """The models that can answer now."""
        return list(self._models)

    @property
    def ready(self) -> bool:
        """True once every model is loaded and has run."""
        return len(self._models) == len(self._artifacts)

    def load(self) -> None:
        """Loads and warms up every model; `failures` says why one cannot be."""
        try:
            self._load()
        finally:
            self.settled.set()

    def _load(self) -> None:
        threads = self._settings.threads or available_cpus()
        for artifact in self._artifacts:
            manifest = artifact.manifest
            try:
                self._models[manifest.name] = ServedModel(artifact, self._settings, threads)
            except Exception as error:  # whatever a foreign graph does at its first run
                self.failures[manifest.name] = f"{manifest.name}/{manifest.version} cannot be loaded: {error}"
                _log.exception("%s/%s cannot be loaded", manifest.name, manifest.version)
                continue
            _log.info("%s/%s is ready: %d layers, %d threads", manifest.name, manifest.version, len(manifest.layers), threads)

    def get(self, name: str) -> ServedModel:
        """The model of this name.

        Raises:
            UnknownModelError: the repository has none.
            NotReadyError: it is not loaded yet, or cannot be.
        """
        if name not in self.names:
            raise UnknownModelError(
                f"no model is named {name!r}", value=name, limit=self.names, remedy="GET /v1/models lists the models"
            )
        if name in self.failures:
            raise NotReadyError(self.failures[name], value=name, remedy="mend the artifact and start the service again")
        if name not in self._models:
            raise NotReadyError(f"{name} is still being loaded", value=name, remedy="wait until /readyz answers 200")
        return self._models[name]

    def close(self) -> None:
        """Waits for running work and ends the threads of all models."""
        for model in self._models.values():
            model.close()
