"""Network and weights in, artifact folder out: export, parity with torch, probes, metrics, card and manifest."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import onnx
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from models.artifact import CARD, MODEL, Artifact, Layer, Manifest, Provenance, TensorSpec, write_manifest
from models.card import model_card
from models.evaluation import evaluate
from models.export import ExportError, Signature, export_onnx, largest_difference, library_versions, round_to_half
from models.instrument.probes import Probe, find_probes
from models.preprocessing import ImagePreprocessing, TextPreprocessing
from models.recipes import Recipe
from models.staging import renewed

_MASK = "attention_mask"
_WEIGHTS = "weights.pt"
_DTYPES: dict[int, Literal["float32", "int64"]] = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT64: "int64"}


def write_model(
    folder: Path,
    network: nn.Module,
    *,
    examples: Sequence[tuple[Tensor, ...]],
    signature: Signature,
    half: bool,
    manifest: Manifest,
    tokenizer: Tokenizer | None = None,
) -> Artifact:
    """Exports the network into `folder`, which is created; layers, inputs, outputs and files of the manifest are filled in.

    Args:
        folder: NAME/VERSION.
        network: with its trained weights; rounded in place where `half`.
        examples: inputs of several shapes; exported with the first (at least 2 along every dynamic axis), compared with all.
        signature: names of inputs, output and dynamic axes.
        half: store large weights as float16.
        manifest: what is known beforehand.
        tokenizer: of a text model.

    Raises:
        ExportError: norms are missing or the logits differ from torch's.
    """
    if half:
        round_to_half(network)
    proto = export_onnx(network, examples[0], signature, half=half)
    largest_difference(network, proto.SerializeToString(), examples)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, folder / MODEL)
    complete = manifest.model_copy(
        update={
            "inputs": [_spec(value) for value in proto.graph.input],
            "outputs": [_spec(value) for value in proto.graph.output],
            "layers": layers_of(proto, manifest.preprocessing),
            "libraries": library_versions(),
        }
    )
    names = [MODEL]
    if tokenizer is not None:
        assert isinstance(manifest.preprocessing, TextPreprocessing)  # only text models have one
        tokenizer.save(str(folder / manifest.preprocessing.tokenizer))
        names.append(manifest.preprocessing.tokenizer)
    return write_manifest(folder, complete, names)


def layers_of(model: onnx.ModelProto, preprocessing: ImagePreprocessing | TextPreprocessing | None) -> list[Layer]:
    """The probes of a model as the manifest lists them; images have the extent that the preprocessing gives them."""
    extents = {"height": preprocessing.crop, "width": preprocessing.crop} if isinstance(preprocessing, ImagePreprocessing) else {}
    mask = next((_spec(value) for value in model.graph.input if value.name == _MASK), None)
    return [Layer.of(probe, _mask_of(probe, mask)) for probe in find_probes(model, extents)]


def _mask_of(probe: Probe, mask: TensorSpec | None) -> str | None:
    """The mask covers a probe whose first axes are the mask's, (batch, length) of (batch, length, width); never silently none."""
    if mask is None or (probe.shape is not None and len(probe.shape) <= len(mask.shape)):
        return None
    if probe.shape is None or probe.shape[: len(mask.shape)] != mask.shape:
        raise ExportError(f"{probe.layer} has the shape {probe.shape}, which {mask.name} {mask.shape} does not cover")
    return mask.name


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    dimensions = value.type.tensor_type.shape.dim
    shape: list[int | str | None] = [d.dim_param or d.dim_value for d in dimensions]
    return TensorSpec(name=value.name, dtype=_DTYPES[value.type.tensor_type.elem_type], shape=shape)


def package_recipe(recipe: Recipe, run: Path, archive: Path | None, folder: Path) -> Artifact:
    """Makes the artifact of a finished training run and measures it on the evaluation data; one that exists is replaced, or stays.

    Raises:
        FileNotFoundError: the run has no final weights.
        ExportError: see `write_model`.
        StagingError: the folder cannot be written.
    """
    weights = run / _WEIGHTS
    if not weights.exists():
        raise FileNotFoundError(f"{weights} does not exist; finish `python -m models train {recipe.name} --run {run}` first")
    with renewed(folder) as working:
        manifest = _write_recipe(recipe, run, archive, working, folder).manifest
    return Artifact(folder, manifest)


def _write_recipe(recipe: Recipe, run: Path, archive: Path | None, working: Path, folder: Path) -> Artifact:
    saved = run / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(saved)) if saved.exists() else None
    material = recipe.material(archive, tokenizer)
    network = recipe.network(len(material.labels), tokenizer.get_vocab_size() if tokenizer else 0)
    network.load_state_dict(torch.load(run / _WEIGHTS, map_location="cpu", weights_only=True))
    selection = sum(len(labels) for _, labels in material.data.selection_batches(256, 32))
    draft = Manifest(
        name=folder.parent.name,
        version=folder.name,
        task=recipe.task,
        description=recipe.description,
        inputs=[],
        outputs=[],
        preprocessing=recipe.preprocessing,
        labels=material.labels,
        layers=[],
        training=Provenance(
            data=recipe.source,
            samples=len(material.data),
            selection_samples=selection,
            seed=recipe.training.seed,
            settings=asdict(recipe.training),
        ),
        metrics={},
        libraries={},
        files={},
    )
    artifact = write_model(
        working,
        network,
        examples=[recipe.example(batch, extent) for batch, extent in recipe.parity_shapes],
        signature=recipe.signature,
        half=recipe.half,
        manifest=draft,
        tokenizer=tokenizer,
    )
    measured = artifact.manifest.model_copy(update={"metrics": evaluate(artifact, archive)})
    return finish(working, measured)


def finish(folder: Path, manifest: Manifest) -> Artifact:
    """Writes the model card beside the files of the manifest, and the manifest with all checksums."""
    (folder / CARD).write_text(model_card(manifest), encoding="utf-8")
    return write_manifest(folder, manifest, sorted({*manifest.files, CARD}))
