"""The contract between building and serving: a folder with a manifest, an ONNX file and whatever else the model needs.

    NAME/VERSION/manifest.json    this file's `Manifest`, with the SHA-256 of every other file
    NAME/VERSION/model.onnx
    NAME/VERSION/tokenizer.json   text models
    NAME/VERSION/*                weights that the model keeps in files of their own
    NAME/VERSION/reference.npz    what its layers looked like for data like those of training (`models/statistics/reference.py`)
    NAME/VERSION/README.md        the model card

It must not know torch or HTTP.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import onnx
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from models.checksum import sha256_of
from models.external_tensors import external_locations
from models.instrument.graph import Dimension
from models.instrument.probes import Probe, ProbeKind
from models.preprocessing import ImagePreprocessing, TextPreprocessing

MANIFEST = "manifest.json"
MODEL = "model.onnx"
CARD = "README.md"
REFERENCE = "reference.npz"

_PLAIN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_MAX_NAME_LENGTH = 100
PlainName = Annotated[str, StringConstraints(pattern=_PLAIN_NAME, max_length=_MAX_NAME_LENGTH)]
"""A name that is one path component and can never leave its folder."""

DataType = Literal[
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "string"
]  # fmt: skip
"""What a tensor that comes in or goes out may hold: the datatypes of the Open Inference Protocol, by numpy's names."""

_DEFAULT_MASK = "attention_mask"
_TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


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
    dtype: DataType
    shape: list[Dimension] = Field(description="a number, or the name of a dynamic dimension, or null where it is not known")


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
    mask_axis: int = Field(default=1, description="axis of `shape` that the positions of the mask lie along")

    @property
    def channels(self) -> int | None:
        """Extent of the channel axis; None where it is not known."""
        extent = self.shape[self.channel_axis] if self.shape else None
        return extent if isinstance(extent, int) else None

    @classmethod
    def of(cls, probe: Probe, mask: str | None = None, mask_axis: int = 1) -> "Layer":
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
            mask_axis=mask_axis,
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
    task: PlainName = Field(description="what the model does, for people: nothing depends on it")
    description: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    batched: bool = Field(
        default=True, description="axis 0 of every input and output is the batch; otherwise each request is run by itself, as it is"
    )
    mask: str | None = Field(
        default=None,
        description="input that is 1 at real tokens, 0 at padding; where it is not given, attention_mask if there is one",
    )
    extents: dict[str, int] = Field(default={}, description="dynamic dimension -> an extent that the model was run with")
    preprocessing: Annotated[ImagePreprocessing | TextPreprocessing, Field(discriminator="kind")] | None = Field(
        default=None, description="of photos or texts; without it the model takes tensors only"
    )
    labels: list[str] = Field(default=[], description="of the classes, if an output holds their scores")
    probabilities: bool = Field(
        default=False, description="whether the output of the labels holds probabilities, which are the scores, and not logits"
    )
    layers: list[Layer]
    notes: list[str] = Field(default=[], description="what cannot be seen inside the model, and why")
    training: Provenance
    reference_samples: int = Field(
        default=0, description="number of samples, never trained on, whose statistics the reference holds; 0 without one"
    )
    metrics: dict[str, float] = Field(description="measured on the exported model; accuracies in 0..1")
    libraries: dict[str, str] = Field(description="versions that made the artifact")
    files: dict[PlainName, str] = Field(description="file -> SHA-256")

    @property
    def mask_input(self) -> str | None:
        """The input that tells padding from tokens."""
        present = any(spec.name == _DEFAULT_MASK for spec in self.inputs)
        return self.mask or (_DEFAULT_MASK if present else None)

    @property
    def hides_padding(self) -> bool:
        """Whether rows of different length can share a run: in every layer the padding can be told, or there is none."""
        seen = all(layer.mask or _is_fixed(layer) for layer in self.layers)
        return self.batched and self.mask_input is not None and seen

    @property
    def scores_output(self) -> int | None:
        """Index of the output whose last axis are the labels: the first of that extent, else the first; None without labels."""
        if not self.labels:
            return None
        fitting = (i for i, spec in enumerate(self.outputs) if len(spec.shape) == 2 and spec.shape[-1] == len(self.labels))
        return next(fitting, 0)


def _is_fixed(layer: Layer) -> bool:
    """Whether its tensors have the same extents for every input."""
    return layer.shape is not None and all(isinstance(extent, int) for extent in layer.shape[1:])


@dataclass(frozen=True)
class Artifact:
    """A verified artifact folder."""

    folder: Path
    manifest: Manifest

    @property
    def model_path(self) -> Path:
        return self.folder / MODEL


def load_artifact(folder: Path, within: Path | None = None) -> Artifact:
    """Reads and verifies an artifact folder. Messages name its files as NAME/VERSION/FILE: clients of a service may see them.

    Args:
        folder: of the artifact.
        within: a folder that no file may leave by a link; None for files that lie anywhere.

    Raises:
        ArtifactError: no manifest, an invalid one, a missing file or one outside of `within`, a file whose SHA-256 is not the
            manifest's, or weights in a file that the manifest does not list.
    """
    path = _shown(folder, MANIFEST)
    _check_place(folder, MANIFEST, within)
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"{path} cannot be read ({_fault(error)}); an artifact is a folder NAME/VERSION with a {MANIFEST}"
        ) from error
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
        _check_place(folder, name, within)
        actual = _sha256(folder, name)
        if actual != expected:
            raise ArtifactError(
                f"{_shown(folder, name)} has SHA-256 {actual}, the manifest says {expected}; restore the file or export again"
            )
    _check_weights(folder, manifest)
    return Artifact(folder, manifest)


def _shown(folder: Path, name: str) -> str:
    return f"{folder.parent.name}/{folder.name}/{name}"


def _fault(error: Exception) -> str:
    """What is wrong with a file, without its path."""
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__


def _check_place(folder: Path, name: str, within: Path | None) -> None:
    try:
        outside = within is not None and not (folder / name).resolve().is_relative_to(within.resolve())
    except (OSError, RuntimeError):  # a link to itself, which reading it reports
        return
    if outside:
        raise ArtifactError(f"{_shown(folder, name)} is a link that leaves the repository; put the file itself there")


def _check_weights(folder: Path, manifest: Manifest) -> None:
    """Weights outside of the graph's file must be among the verified files."""
    try:
        model = onnx.load(folder / MODEL, load_external_data=False)
    except Exception as error:  # protobuf's exceptions share no base with OSError
        raise ArtifactError(f"{_shown(folder, MODEL)} cannot be read as ONNX; export the model again") from error
    for location in sorted({entry.value for entry in external_locations(model)} - set(manifest.files)):
        raise ArtifactError(
            f"{_shown(folder, MODEL)} keeps weights in {Path(location).name}, which is none of the files of the manifest; "
            "import the model again"
        )


def _contradiction(manifest: Manifest) -> str | None:
    """What in a manifest does not fit together, if anything."""
    if not manifest.inputs or not manifest.outputs:
        return f"a model with {len(manifest.inputs)} inputs and {len(manifest.outputs)} outputs cannot be served"
    names = [spec.name for spec in manifest.inputs]
    if manifest.mask is not None and manifest.mask not in names:
        return f"the mask {manifest.mask} is none of the inputs {', '.join(names)}"
    if (scores := manifest.scores_output) is not None:
        shape = manifest.outputs[scores].shape
        classes = shape[-1] if shape else 1
        if isinstance(classes, int) and classes != len(manifest.labels):
            return f"{len(manifest.labels)} labels do not fit an output of {classes} classes"
    if isinstance(manifest.preprocessing, ImagePreprocessing):
        return _image_contradiction(manifest.inputs, manifest.preprocessing)
    return _text_contradiction(manifest, manifest.preprocessing) if manifest.preprocessing else None


def _image_contradiction(inputs: Sequence[TensorSpec], preprocessing: ImagePreprocessing) -> str | None:
    """Why these inputs cannot be made of a photo, if they cannot."""
    crop, shape = preprocessing.crop, inputs[0].shape
    fits = len(shape) == 4 and all(
        not isinstance(extent, int) or extent == wanted for extent, wanted in zip(shape[1:], (3, crop, crop), strict=True)
    )
    if len(inputs) == 1 and fits and inputs[0].dtype in ("float32", "float16"):
        return None
    given = ", ".join(f"{spec.name} {spec.dtype} {spec.shape}" for spec in inputs)
    return f"preprocessing of kind image makes one float32 or float16 input (batch, 3, {crop}, {crop}), the model takes {given}"


def _text_contradiction(manifest: Manifest, preprocessing: TextPreprocessing) -> str | None:
    """Why the inputs cannot be made of a text, if they cannot."""
    if preprocessing.tokenizer not in manifest.files:
        return f"files does not list the tokenizer {preprocessing.tokenizer}"
    names = [spec.name for spec in manifest.inputs]
    if _TOKEN_INPUTS[0] in names and set(names) <= {*_TOKEN_INPUTS, manifest.mask}:
        return None
    made = ", ".join(_TOKEN_INPUTS)
    return f"preprocessing of kind text makes inputs named {made}, the model takes {', '.join(names)}"


def write_manifest(folder: Path, manifest: Manifest, names: list[str]) -> Artifact:
    """Writes the manifest with the checksums of `names`, which lie in the folder already."""
    complete = manifest.model_copy(update={"files": {name: _sha256(folder, name) for name in names}})
    (folder / MANIFEST).write_text(complete.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return Artifact(folder, complete)


def _sha256(folder: Path, name: str) -> str:
    try:
        return sha256_of(folder / name)
    except OSError as error:
        raise ArtifactError(
            f"{_shown(folder, name)} cannot be read ({_fault(error)}); the manifest lists it, restore the file"
        ) from error
