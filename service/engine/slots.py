"""The versions of one model: where each lies, what serves it, and what went wrong. Loads nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from models.artifact import Manifest
from service.engine.model import ServedModel
from service.engine.versions import VersionFolder, by_age
from service.errors import NotReadyError, ServiceError, UnknownModelError

VersionState = Literal["LOADING", "READY", "UNAVAILABLE"]


@dataclass(frozen=True)
class ModelVersion:
    """One version as the index of the repository shows it; `reason` says why it is not ready."""

    name: str
    version: str
    state: VersionState
    reason: str = ""


@dataclass
class Slot:
    """One version: where it lies, what serves it, and what went wrong when it was last loaded."""

    folder: VersionFolder
    served: ServedModel | None = None
    reason: str = ""
    wanted: bool = True

    @property
    def state(self) -> VersionState:
        if self.served is not None:
            return "READY"
        return "LOADING" if self.wanted and not self.reason else "UNAVAILABLE"

    def error(self, ready: Sequence[str]) -> ServiceError:
        """Why it does not serve, and what to do; `ready` are the models that do."""
        name = self.folder.name
        if self.state == "LOADING":
            return NotReadyError(
                f"{name} is still being loaded", value=name, remedy=f"wait until /v2/models/{name}/ready answers 200"
            )
        if not self.wanted:
            return UnknownModelError(f"{name} is not served: {self.reason}", value=name, limit=ready, remedy="load it again")
        return NotReadyError(
            f"{name}/{self.folder.version} cannot be loaded: {self.reason}",
            value=name,
            remedy="mend the artifact and load it again",
        )


class Slots(dict[str, Slot]):
    """By version. They may come and go on another thread while this one reads."""

    @classmethod
    def of(cls, folders: Mapping[str, VersionFolder]) -> Self:
        """Versions that are to be loaded."""
        return cls({version: Slot(folder) for version, folder in folders.items()})

    @property
    def folders(self) -> dict[str, VersionFolder]:
        return {version: slot.folder for version, slot in self.items()}

    @property
    def ready(self) -> bool:
        """Whether any version serves."""
        return any(slot.served is not None for slot in self.copy().values())

    @property
    def manifest(self) -> Manifest | None:
        """Of the version that answers to the name of the model, if one does."""
        slot = self.find(None)
        served = None if slot is None else slot.served
        return None if served is None else served.manifest

    def index(self) -> list[ModelVersion]:
        """All with their states."""
        return [ModelVersion(slot.folder.name, version, slot.state, slot.reason) for version, slot in sorted(self.items())]

    def find(self, version: str | None) -> Slot | None:
        """That of a version; of none, the one that answers to the name of the model, or whose state tells why none does."""
        if version is not None:
            return self.get(version)
        slots = list(self.values())
        return slots[0] if len(slots) == 1 else _newest(slots)  # most models have one, and this is on the path of every request


def _newest(slots: list[Slot]) -> Slot | None:
    """The newest of all digits that is ready; without any of digits, the newest of all that is; if none is, the newest."""
    numbered = [slot for slot in slots if slot.folder.version.isdecimal()] or slots
    ready = [slot for slot in numbered if slot.served is not None]
    return max(ready or numbered, key=lambda slot: by_age(slot.folder.version), default=None)
