"""Any ONNX model in, an artifact that can be served at once out. Needs no torch.

What the graph does not say of itself (which axis is the batch, what shape its activations have) is found out by running it.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, get_args

import onnx
import onnxruntime
from onnx import TensorProto
from pydantic import Field, TypeAdapter, ValidationError

from models.artifact import CARD, MODEL, Artifact, DataType, Layer, Manifest, Provenance, TensorSpec, load_artifact, write_manifest
from models.card import model_card
from models.external_data import copy_model
from models.instrument.graph import Dimension
from models.instrument.graph_file import inlined, read_graph, remarks
from models.instrument.probes import Probe, find_probes
from models.instrument.scores import holds_probabilities
from models.instrument.skip_norms import expose_sums
from models.preprocessing import ImagePreprocessing, TextPreprocessing
from models.staging import staged
from models.trial import Run, Trial, TrialSession, try_graph

_DTYPES: Mapping[int, str] = {
    TensorProto.BOOL: "bool", TensorProto.FLOAT16: "float16", TensorProto.FLOAT: "float32", TensorProto.DOUBLE: "float64",
    TensorProto.STRING: "string",
} | {getattr(TensorProto, name.upper()): name for name in get_args(DataType) if "int" in name}  # fmt: skip
_MASKS = ("attention_mask", "input_mask", "token_mask", "mask")  # 1 at tokens wherever they are found
_UNCLEAR_MASKS = ("padding_mask", "key_padding_mask", "pad_mask")  # 1 at padding in torch, at tokens in Keras
_NAMED = 5  # layers that a note names, of many
_Preprocessing = Annotated[ImagePreprocessing | TextPreprocessing, Field(discriminator="kind")]


class GraphImportError(ValueError):
    """The model, or what is said about it, cannot become an artifact."""


@dataclass(frozen=True)
class ImportOptions:
    """What people know of a model.

    Attributes:
        labels: file of the labels: one a line, or a JSON array.
        preprocessing: file of an `ImagePreprocessing` or `TextPreprocessing` as JSON; the tokenizer lies beside it.
        mask: input that is 1 at real tokens and 0 at padding; None guesses it by its name, "" says that there is none.
        extents: of dynamic dimensions that fit the graph.
    """

    labels: Path | None = None
    preprocessing: Path | None = None
    mask: str | None = None
    extents: Mapping[str, int] = field(default_factory=dict)


def import_graph(path: Path, folder: Path, options: ImportOptions) -> Artifact:
    """Makes the artifact of a model; nothing is left behind if that fails.

    Args:
        path: the ONNX file; its external data lies beside it.
        folder: NAME/VERSION, which must not exist.
        options: what is known of the model.

    Raises:
        GraphImportError, GraphFileError, TrialError, ArtifactError, StagingError: what is wrong, and what to do.
    """
    if folder.exists():
        raise GraphImportError(f"{folder} exists already; choose another --version, or remove it")
    with staged(folder) as working:
        _write(path, working, folder, options)
        load_artifact(working)
    return load_artifact(folder)


def _write(path: Path, working: Path, folder: Path, options: ImportOptions) -> None:
    files = copy_model(path, working)
    model = _read(working / MODEL)
    preprocessing = _read_preprocessing(options.preprocessing)
    if isinstance(preprocessing, TextPreprocessing):
        files.append(_copy_tokenizer(options.preprocessing, preprocessing, working))
    labels = _read_labels(options.labels)
    inputs, outputs = _specs(model, _real_inputs(model)), _specs(model, list(model.graph.output))
    mask, mask_notes = _choose_mask(options.mask, inputs)
    probes = find_probes(model)
    extents = dict(options.extents)
    if isinstance(preprocessing, ImagePreprocessing) and len(inputs[0].shape) == 4:
        extents |= {str(extent): preprocessing.crop for extent in inputs[0].shape[2:] if not isinstance(extent, int)}
    tensors = list(dict.fromkeys(tensor for probe in probes for tensor in probe.tensors.values()))
    trial = try_graph(TrialSession(model, working, inputs, tensors, mask), extents)
    layers, notes = _layers(probes, trial, mask)
    norms = sum(layer.kind != "residual_add" for layer in layers)
    manifest = Manifest(
        name=folder.parent.name,
        version=folder.name,
        task=_task(preprocessing, labels),
        description=_describe(path, model),
        inputs=trial.inputs,
        outputs=_describe_outputs(outputs, trial, labels),
        batched=trial.batched,
        mask=mask,
        extents=trial.runs[0].extents,
        preprocessing=preprocessing,
        labels=labels,
        layers=layers,
        notes=[*trial.notes, *mask_notes, *remarks(model, norms), *notes],
        training=Provenance(data="unknown", samples=None, selection_samples=None, seed=None, settings={"file": path.name}),
        metrics={},
        libraries={"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
        files={},
    )
    if (scores := manifest.scores_output) is not None:
        probabilities = holds_probabilities(model, manifest.outputs[scores].name)
        manifest = manifest.model_copy(update={"probabilities": probabilities})
    (working / CARD).write_text(model_card(manifest), encoding="utf-8")
    write_manifest(working, manifest, [*files, CARD])


def _read(path: Path) -> onnx.ModelProto:
    """The graph, which the file has too: without calls of functions, and with the sums that its operators hide."""
    given = onnx.load(path, load_external_data=False)
    model = inlined(given)
    if expose_sums(model) or model is not given:
        onnx.save(model, path)
    return read_graph(path)


def _real_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Without those that have a default: old exporters list the weights among the inputs."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _specs(model: onnx.ModelProto, values: Sequence[onnx.ValueInfoProto]) -> list[TensorSpec]:
    specs = []
    for value in values:
        kind = value.type.tensor_type.elem_type
        if kind not in _DTYPES:
            named = TensorProto.DataType.Name(kind) if kind else value.type.WhichOneof("value") or "of no type"
            raise GraphImportError(
                f"{value.name} is {named}, which the Open Inference Protocol does not have; "
                "export the model with tensors of the usual types, or add a Cast (for scikit-learn: without ZipMap)"
            )
        dimensions = value.type.tensor_type.shape.dim
        shape: list[Dimension] = [
            dimension.dim_value if dimension.dim_value > 0 else dimension.dim_param or f"{value.name}.{i}"
            for i, dimension in enumerate(dimensions)
        ]
        specs.append(TensorSpec.model_validate({"name": value.name, "dtype": _DTYPES[kind], "shape": shape}))
    return specs


def _describe_outputs(outputs: Sequence[TensorSpec], trial: Trial, labels: Sequence[str]) -> list[TensorSpec]:
    """Their ranks as the runs have shown them, their extents as far as the graph knows; that of the labels must be among them."""
    described = []
    has_scores = False
    for spec in outputs:
        seen = trial.runs[0].shapes[spec.name]
        known = spec.shape if len(spec.shape) == len(seen) else [f"{spec.name}.{i}" for i in range(len(seen))]
        shape: list[Dimension] = [None if str(extent).startswith(f"{spec.name}.") else extent for extent in known]
        if trial.batched:
            shape[0] = trial.inputs[0].shape[0]
        if labels and len(seen) == 2 and seen[1] == len(labels):
            shape[1], has_scores = len(labels), True
        described.append(spec.model_copy(update={"shape": shape}))
    if labels and not has_scores:
        seen_shapes = ", ".join(f"{spec.name} {list(trial.runs[0].shapes[spec.name])}" for spec in outputs)
        raise GraphImportError(f"{len(labels)} labels fit no output of (batch, labels); the outputs are {seen_shapes}")
    return described


def _layers(probes: Sequence[Probe], trial: Trial, mask: str | None) -> tuple[list[Layer], list[str]]:
    """The probes whose statistics can be told for each input, and notes about the others."""
    layers: list[Layer] = []
    left: list[str] = []
    for probe in probes:
        sides = [{run.shapes[tensor] for tensor in probe.tensors.values()} for run in trial.runs]
        if any(len(shapes) > 1 or not _has_rows(run, *shapes) for run, shapes in zip(trial.runs, sides, strict=True)):
            left.append(probe.layer)
            continue
        seen = [shape for (shape,) in sides]
        shape = _merge(probe.shape, seen, trial)
        channel_axis = probe.channel_axis % len(shape)
        axis = _mask_axis(mask, seen, channel_axis, trial)
        layers.append(Layer.of(replace(probe, shape=shape, channel_axis=channel_axis), mask if axis else None, axis or 1))
    notes = []
    if left:
        named = ", ".join(left[:_NAMED]) + (f" and {len(left) - _NAMED} more" if len(left) > _NAMED else "")
        notes.append(f"not watched, because axis 0 of their tensors is not the batch or their sides differ in shape: {named}")
    return layers, notes


def _has_rows(run: Run, *shapes: tuple[int, ...]) -> bool:
    return all(len(shape) > 1 and shape[0] == run.batch for shape in shapes)


def _merge(inferred: Sequence[Dimension] | None, seen: Sequence[tuple[int, ...]], trial: Trial) -> list[Dimension]:
    """Extents that were the same in all runs are numbers; others have the name that the graph gives them, if it does."""
    rank = len(seen[0])
    names: Sequence[Dimension] = inferred if inferred is not None and len(inferred) == rank else [None] * rank
    shape: list[Dimension] = [
        extents[0] if len(set(extents)) == 1 else (name if isinstance(name, str) else None)
        for name, extents in zip(names, zip(*seen, strict=True), strict=True)
    ]
    shape[0] = trial.inputs[0].shape[0] if trial.batched else 1
    return shape


def _mask_axis(mask: str | None, seen: Sequence[tuple[int, ...]], channel_axis: int, trial: Trial) -> int | None:
    """The first axis but that of the channels that was as long as the mask in every run; None where padding cannot be told."""
    if mask is None:
        return None
    length = next(spec.shape[1] for spec in trial.inputs if spec.name == mask)
    wanted = [length if isinstance(length, int) else run.extents[str(length)] for run in trial.runs]
    axes = (axis for axis in range(1, len(seen[0])) if axis != channel_axis)
    return next((axis for axis in axes if [shape[axis] for shape in seen] == wanted), None)


def _choose_mask(wanted: str | None, inputs: Sequence[TensorSpec]) -> tuple[str | None, list[str]]:
    """The mask, and what people should know about it where it was guessed, or could not be."""
    fitting = [spec.name for spec in inputs if len(spec.shape) == 2 and spec.dtype != "string"]
    if wanted:
        if wanted not in fitting:
            given = ", ".join(f"{spec.name} {spec.shape}" for spec in inputs)
            raise GraphImportError(f"the mask {wanted} is no input of (batch, length); the inputs are {given}")
        return wanted, []
    if wanted is not None:
        return None, []
    if found := next((name for name in _MASKS if name in fitting), None):
        note = f"{found} is taken for the mask, 1 at tokens and 0 at padding; name another by --mask INPUT, or none by --mask ''"
        return found, [] if found == _MASKS[0] else [note]
    return None, [
        f"{name} may be 1 at tokens or at padding: padding is counted; say that it is 1 at tokens by --mask {name}"
        for name in _UNCLEAR_MASKS
        if name in fitting
    ]


def _read_labels(path: Path | None) -> list[str]:
    if path is None:
        return []
    text = path.read_text(encoding="utf-8")
    labels = json.loads(text) if text.lstrip().startswith("[") else text.splitlines()
    if not labels or not all(isinstance(label, str) and label.strip() for label in labels):
        raise GraphImportError(f"{path} holds no labels; write one a line, or a JSON array of strings")
    return list(labels)


def _read_preprocessing(path: Path | None) -> ImagePreprocessing | TextPreprocessing | None:
    if path is None:
        return None
    adapter: TypeAdapter[ImagePreprocessing | TextPreprocessing] = TypeAdapter(_Preprocessing)
    try:
        return adapter.validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise GraphImportError(
            f'{path}: {where}: {first["msg"]}; write {{"kind": "image", "resize": 256, "crop": 224}} or '
            '{"kind": "text", "tokenizer": "tokenizer.json", "max_length": 128}'
        ) from error


def _copy_tokenizer(path: Path | None, preprocessing: TextPreprocessing, working: Path) -> str:
    assert path is not None  # where the preprocessing was read from
    source = path.parent / preprocessing.tokenizer
    if not source.is_file():
        raise GraphImportError(f"{source} is not there; put the tokenizer beside {path.name}")
    shutil.copyfile(source, working / preprocessing.tokenizer)
    preprocessing.load_tokenizer(working)
    return preprocessing.tokenizer


def _task(preprocessing: ImagePreprocessing | TextPreprocessing | None, labels: Sequence[str]) -> str:
    kind = f"{preprocessing.kind}-" if preprocessing else ""
    return f"{kind}classification" if labels else f"{kind}inference"


def _describe(path: Path, model: onnx.ModelProto) -> str:
    producer = f"{model.producer_name} {model.producer_version}".strip()
    return f"Imported from {path.name}" + (f", written by {producer}" if producer else "")
