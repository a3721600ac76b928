"""The contract between building and serving: a folder with a manifest, an ONNX file and whatever else the model needs.

    NAME/VERSION/manifest.json    this file's `Manifest`, with the SHA-256 of every other file
    NAME/VERSION/model.onnx
    NAME/VERSION/tokenizer.json   text models
    NAME/VERSION/README.md        the model card

It must not know torch or HTTP.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from models.checksum import sha256_of
from models.instrument.graph import Dimension
from models.instrument.probes import Probe, ProbeKind
from models.preprocessing import ImagePreprocessing, TextPreprocessing

MANIFEST = "manifest.json"
MODEL = "model.onnx"
CARD = "README.md"

_PLAIN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_MAX_NAME_LENGTH = 100
PlainName = Annotated[str, StringConstraints(pattern=_PLAIN_NAME, max_length=_MAX_NAME_LENGTH)]
"""A name that is one path component and can never leave its folder."""


def is_plain_name(name: str) -> bool:
    """Whether a folder of this name can hold a model or a version: no path, no hidden file, nothing to escape."""
    return len(name) <= _MAX_NAME_LENGTH and re.fullmatch(_PLAIN_NAME, name) is not None


class ArtifactError(ValueError):
    """An artifact that cannot be used; the message says exactly what is wrong and what to do."""


class _Contract(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(_Contract):
    """One input or output of the graph."""

    model_config = ConfigDict(json_schema_extra={"example": {"name": "image", "dtype": "float32", "shape": ["batch", 3]}})

    name: str
    dtype: Literal["float32", "int64"]
    shape: list[Dimension] = Field(description="a number, or the name of a dynamic dimension")


class ParameterSummary(_Contract):
    """gamma or beta of a normalization, over its channels (population standard deviation)."""

    model_config = ConfigDict(json_schema_extra={"example": {"mean": 1.0, "std": 0.1, "min": 0.7, "max": 1.3}})

    mean: float
    std: float
    min: float
    max: float


class Layer(_Contract):
    """One probe: a normalization or a residual add."""

    layer: str = Field(description="name of the node: the module path of the network")
    kind: ProbeKind
    shape: list[Dimension] | None = Field(description="of the tensors on its sides, the batch first")
    channel_axis: int = Field(description="axis of `shape` that `channels` lists")
    epsilon: float | None
    gamma: ParameterSummary | None
    beta: ParameterSummary | None
    tensors: dict[str, str] = Field(description="side -> tensor of the graph")
    mask: str | None = Field(default=None, description="input that is 1 at the (batch, position) to count, 0 at padding")

    @classmethod
    def of(cls, probe: Probe, mask: str | None = None) -> "Layer":
        return cls(
            layer=probe.layer,
            kind=probe.kind,
            shape=probe.shape,
            channel_axis=probe.channel_axis,
            epsilon=probe.epsilon,
            gamma=_summary(probe.gamma),
            beta=_summary(probe.beta),
            tensors=probe.tensors,
            mask=mask,
        )


def _summary(values: Any) -> ParameterSummary | None:
    if values is None:
        return None
    return ParameterSummary(mean=float(values.mean()), std=float(values.std()), min=float(values.min()), max=float(values.max()))


class Provenance(_Contract):
    """Where the weights come from."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"data": "Imagenette", "samples": 8469, "selection_samples": 1000, "seed": 0, "settings": {}}}
    )

    data: str = Field(description="the data set and where it is published")
    samples: int | None = Field(description="number of samples trained on")
    selection_samples: int | None = Field(description="number of training samples kept for choices, never trained on")
    seed: int | None
    settings: dict[str, Any] = Field(description="of the training loop")


class Manifest(_Contract):
    """Everything the service needs to know about a model."""

    format: Literal[1] = 1
    name: PlainName
    version: PlainName
    task: Literal["image-classification", "text-classification"]
    description: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    preprocessing: Annotated[ImagePreprocessing | TextPreprocessing, Field(discriminator="kind")]
    labels: list[str]
    layers: list[Layer]
    training: Provenance
    metrics: dict[str, float] = Field(description="measured on the exported model; accuracies in 0..1")
    libraries: dict[str, str] = Field(description="versions that made the artifact")
    files: dict[PlainName, str] = Field(description="file -> SHA-256")


@dataclass(frozen=True)
class Artifact:
    """A verified artifact folder."""

    folder: Path
    manifest: Manifest

    @property
    def model_path(self) -> Path:
        return self.folder / MODEL


def load_artifact(folder: Path) -> Artifact:
    """Reads and verifies an artifact folder.

    Raises:
        ArtifactError: no manifest, an invalid one, a missing file, or a file whose SHA-256 is not the manifest's.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); an artifact is a folder NAME/VERSION with a {MANIFEST}") from error
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ArtifactError(f"{path}: {where}: {first['msg']}; export the model again") from error
    if MODEL not in manifest.files:
        raise ArtifactError(f"{path}: files lists no {MODEL}; export the model again")
    if problem := _contradiction(manifest):
        raise ArtifactError(f"{path}: {problem}; export the model again")
    for name, expected in manifest.files.items():
        actual = _sha256(folder / name)
        if actual != expected:
            raise ArtifactError(
                f"{folder / name} has SHA-256 {actual}, the manifest says {expected}; restore the file or export again"
            )
    return Artifact(folder, manifest)


def _contradiction(manifest: Manifest) -> str | None:
    """What in a manifest does not fit together, if anything."""
    preprocessing = manifest.preprocessing
    takes_images = isinstance(preprocessing, ImagePreprocessing)
    if takes_images != (manifest.task == "image-classification"):
        return f"task {manifest.task} does not fit preprocessing of kind {preprocessing.kind}"
    if len(manifest.inputs) != (1 if takes_images else 2) or len(manifest.outputs) != 1:
        return f"{len(manifest.inputs)} inputs and {len(manifest.outputs)} outputs do not fit {manifest.task}"
    classes = manifest.outputs[0].shape[-1]
    if isinstance(classes, int) and classes != len(manifest.labels):
        return f"{len(manifest.labels)} labels do not fit an output of {classes} classes"
    if isinstance(preprocessing, TextPreprocessing) and preprocessing.tokenizer not in manifest.files:
        return f"files does not list the tokenizer {preprocessing.tokenizer}"
    return None


def write_manifest(folder: Path, manifest: Manifest, names: list[str]) -> Artifact:
    """Writes the manifest with the checksums of `names`, which lie in the folder already."""
    complete = manifest.model_copy(update={"files": {name: _sha256(folder / name) for name in names}})
    (folder / MANIFEST).write_text(complete.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return Artifact(folder, complete)


def _sha256(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error}); the manifest lists it, restore the file") from error
