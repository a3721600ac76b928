"""The models that are served, by name and version: loaded, replaced and unloaded while requests go on. Knows no HTTP."""

import logging
import threading

from models.artifact import ArtifactError, Manifest, load_artifact
from service.engine.memory import give_back_memory
from service.engine.model import ServedModel, TrafficOf, collected_in_memory
from service.engine.slots import ModelVersion, Slot, Slots
from service.engine.threads import available_cpus
from service.engine.versions import VersionFolder, find_versions
from service.errors import LoadError, UnknownModelError
from service.settings import Settings

_log = logging.getLogger("normscope")


class Repository:
    """All versions of all models. What is loaded next to a version that serves takes its place only once it is warm."""

    def __init__(self, settings: Settings, traffic_of: TrafficOf = collected_in_memory) -> None:
        """Looks at the folders; `load_all` makes them ready.

        Raises:
            ArtifactError: the repository cannot be read or holds no model.
        """
        self._settings, self._traffic_of = settings, traffic_of
        self._threads = settings.threads or available_cpus()
        folders = {name: versions or {} for name, versions in find_versions(settings.model_repository).items()}
        for name in (name for name, versions in folders.items() if not versions):
            _log.error("the folder of %s cannot be read", name)
        if not any(folders.values()) and not settings.watch:
            raise ArtifactError(
                f"the model repository {settings.model_repository} has no NAME/VERSION folder; export a model into it, "
                "or set NORMSCOPE_WATCH to wait for one"
            )
        self._slots = {name: Slots.of(versions) for name, versions in folders.items() if versions}
        self._awaited = set(self._slots)
        self._lock = threading.Lock()  # of the slots; held for moments only
        self._changing = threading.Lock()  # one load or unload at a time
        self._stopped = threading.Event()
        self.settled = threading.Event()
        """Set once `load_all` has ended, well or not."""

    def load_all(self) -> None:
        """Loads and warms up every version that was found at the start; the index says why one cannot be."""
        try:
            for name, folders in self._known_folders().items():
                with self._changing:
                    self._load(name, folders)
        finally:
            self.settled.set()

    def load(self, name: str) -> None:
        """Loads the versions of a model that are new or have changed, and retires those whose folder is gone. Blocks.

        Raises:
            UnknownModelError: the repository has no folder of this name.
            LoadError: a version cannot be loaded; the one that it was to replace goes on serving.
        """
        with self._changing:
            found = self._find()
            if name not in found:
                raise _unknown(name, sorted(found))
            folders = found[name]
            if folders is None:
                raise LoadError(f"the folder of {name} cannot be read", value=name, remedy="let the service read it")
            if failures := self._load(name, folders):
                raise LoadError(
                    f"{name} cannot be loaded: {'; '.join(failures)}", value=name, remedy="mend the artifact and load it again"
                )

    def unload(self, name: str) -> None:
        """Stops serving all versions of a model once the requests in hand are answered. Blocks.

        Raises:
            UnknownModelError: no model of this name is known.
        """
        with self._changing:
            if name not in self._slots:
                raise _unknown(name, self.names)
            self._stop_serving(name, "unloaded")
            _log.info("%s is unloaded", name)

    def _stop_serving(self, name: str, reason: str) -> None:
        with self._lock:
            slots = self._slots[name].values()
            retired = [slot.served for slot in slots if slot.served is not None]
            for slot in slots:
                slot.served, slot.wanted, slot.reason = None, False, reason
            self._awaited.discard(name)
        self._retire(retired)

    def _find(self) -> dict[str, dict[str, VersionFolder] | None]:
        try:
            return find_versions(self._settings.model_repository)
        except ArtifactError as error:
            _log.error("%s", error)
            raise LoadError("the model repository cannot be read", remedy="mount it again; the log says more") from error

    def _load(self, name: str, folders: dict[str, VersionFolder]) -> list[str]:
        failures = []
        for version, folder in folders.items():
            if self._stopped.is_set():
                break
            with self._lock:
                slot = self._slots.setdefault(name, Slots()).setdefault(version, Slot(folder))
                if slot.served is not None and slot.folder.signature == folder.signature:
                    continue
                slot.wanted, slot.reason = True, ""
            try:
                served = self._open(folder)
            except Exception as error:  # whatever a foreign graph does at its first run
                reason = _published(error)
                failures.append(f"{name}/{version}: {reason}")
                _log.error(
                    "%s cannot be loaded: %s (%s)",
                    folder.path,
                    error,
                    error.__cause__ or "no other cause",
                    exc_info=reason != str(error),
                )
                with self._lock:
                    slot.reason = reason
                continue
            with self._lock:
                replaced = [slot.served] if slot.served is not None else []
                slot.served, slot.folder = served, folder
                self._awaited.discard(name)
            self._retire(replaced)
            _log.info("%s/%s is ready: %d layers, %d threads", name, version, len(served.manifest.layers), self._threads)
        with self._lock:
            slots = self._slots.get(name, Slots())
            gone = [slots.pop(version) for version in list(slots) if version not in folders]
            if not slots:
                self._slots.pop(name, None)
                self._awaited.discard(name)
        retired = [slot.served for slot in gone if slot.served is not None]
        gone.clear()
        self._retire(retired)
        return failures

    def _open(self, folder: VersionFolder) -> ServedModel:
        artifact = load_artifact(folder.path, within=self._settings.model_repository)
        expected, actual = (folder.name, folder.version), (artifact.manifest.name, artifact.manifest.version)
        if expected != actual:
            raise ArtifactError(f"{folder.name}/{folder.version} holds {'/'.join(actual)}; name the folders after it")
        served = ServedModel(artifact, self._settings, self._threads, self._traffic_of)
        give_back_memory()  # loading makes copies of the weights
        return served

    def _retire(self, models: list[ServedModel]) -> None:
        """Waits for the requests in hand, then gives the memory back to the system: `models` is the last to hold them."""
        if not models:
            return
        while models:
            models.pop().close()
        give_back_memory()

    def watch(self) -> None:
        """Until `close`, looks at the folders every `watch_interval_s` and follows what has changed. Blocks."""
        seen = {name: _signatures(versions) for name, versions in self._known_folders().items()}
        while not self._stopped.wait(self._settings.watch_interval_s):
            try:
                found = self._find()
            except LoadError:  # it is logged, and may come back
                continue
            now = {name: _signatures(versions) for name, versions in found.items()}
            for name in sorted(seen.keys() | now.keys()):
                if seen.get(name) != now.get(name):
                    self._follow(name, found.get(name, {}))
            seen = now

    def _follow(self, name: str, folders: dict[str, VersionFolder] | None) -> None:
        if folders is None:
            _log.error("the folder of %s cannot be read; what is loaded goes on serving", name)
            return
        with self._changing:
            self._load(name, folders)

    def _known_folders(self) -> dict[str, dict[str, VersionFolder]]:
        with self._lock:
            return {name: slots.folders for name, slots in self._slots.items()}

    @property
    def names(self) -> list[str]:
        """The models of the repository, ready or not."""
        return list(self._slots)

    @property
    def manifests(self) -> list[Manifest]:
        """Of the version that answers to the name of its model, for every model that has one."""
        return [manifest for slots in self._slots.copy().values() if (manifest := slots.manifest) is not None]

    @property
    def ready_names(self) -> list[str]:
        """The models that can answer now."""
        return [name for name, slots in self._slots.copy().items() if slots.ready]

    @property
    def failures(self) -> list[str]:
        """Why the service is not ready: name and reason of the models of the start of which no version could be loaded."""
        return [f"{each.name}/{each.version}: {each.reason}" for each in self.index() if each.name in self._awaited and each.reason]

    @property
    def ready(self) -> bool:
        """True once of every model that was there at the start a version has been loaded and has run, or was unloaded.

        What happens to models later does not count: the others go on serving, and a router is to go on sending requests.
        """
        return self.settled.is_set() and not self._awaited

    def index(self) -> list[ModelVersion]:
        """All versions with their states."""
        with self._lock:
            return [entry for slots in self._slots.values() for entry in slots.index()]

    def listing(self) -> list[ModelVersion]:
        """`index`, and with it the versions whose folders have come since and wait to be loaded. Reads the folders."""
        known = self.index()
        try:
            found = self._find()
        except LoadError:  # it is logged
            return known
        names = {(entry.name, entry.version) for entry in known}
        folders = [folder for versions in found.values() for folder in (versions or {}).values()]
        new = [each for each in folders if (each.name, each.version) not in names]
        return [*known, *(ModelVersion(each.name, each.version, "UNAVAILABLE", "not loaded yet") for each in new)]

    def get(self, name: str, version: str | None = None) -> ServedModel:
        """The model that serves this version, or the newest of all digits that is ready; without any of digits, the newest of all.

        Raises:
            UnknownModelError: the repository has no such model or version, or it was unloaded.
            NotReadyError: it is not loaded yet, or cannot be.
        """
        slots = self._slots.get(name)
        if slots is None:
            raise _unknown(name, self.names)
        if (slot := slots.find(version)) is None:
            raise _unknown(name if version is None else f"{name}/{version}", [f"{name}/{each}" for each in list(slots)])
        if (served := slot.served) is None:
            raise slot.error(self.ready_names)
        return served

    def find(self, name: str, version: str) -> ServedModel | None:
        """The model that serves this version, if there is one."""
        slot = self._slots.get(name, Slots()).get(version)
        return None if slot is None else slot.served

    def reserve(self, name: str, version: str | None = None) -> "Place":
        """A place in the queue of a model, see `get`, for a `with`; it serves at least until the place is given back.

        Raises:
            OverloadedError: its queue is full.
        """
        while not (served := self.get(name, version)).acquire():
            pass  # it was replaced a moment ago: the slot has its successor already
        return Place(served)

    def close(self) -> None:
        """Waits for running work and ends the threads of all models."""
        self._stopped.set()
        with self._changing:
            for name in self.names:
                self._stop_serving(name, "the service is stopping")


class Place:
    """A place in the queue of a model, until the end of the `with` around the work on one request."""

    def __init__(self, served: ServedModel) -> None:
        """`served` has been acquired."""
        self._served = served

    def __enter__(self) -> ServedModel:
        return self._served

    def __exit__(self, *_: object) -> None:
        self._served.release()


def _signatures(versions: dict[str, VersionFolder] | None) -> dict[str, object] | None:
    return None if versions is None else {version: folder.signature for version, folder in versions.items()}


def _published(error: Exception) -> str:
    """What clients may know of a model that cannot be loaded; the words of a runtime tell of files and of its inside."""
    if isinstance(error, ArtifactError):
        return str(error)
    return f"a fault while it was loaded and run for the first time ({type(error).__name__}); the log of the service says more"


def _unknown(name: str, known: list[str]) -> UnknownModelError:
    return UnknownModelError(f"no model is named {name!r}", value=name, limit=known, remedy="GET /v1/models lists the models")
