"""A photo model with 8-bit weights and activations: an artifact and photos to calibrate on in, version `1-int8` of it out.

ONNX Runtime's static quantization: QuantizeLinear and DequantizeLinear around every operator, a scale of its own for each channel
of the weights, and for each activation one that the photos of the training split determine. Needs no torch.

Rules:
    1. BatchNorm is folded into the convolution before it first, as 8-bit convolutions have no place for it. The sides of such a
       normalization are no tensors of the graph any more: those layers are left out, and the manifest says so.
    2. Residual adds stay. Their sides are the dequantized tensors that are added, and their sum before it is quantized.
    3. Weights keep to 7 of the 8 bits: processors without VNNI add two products in 16 bits, which those of 8 bits overflow.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from models.artifact import CARD, MODEL, Artifact, ArtifactError, Layer, Manifest, write_manifest
from models.card import model_card
from models.data import imagenette
from models.evaluation import evaluate
from models.instrument.probes import find_probes
from models.preprocessing import ImagePreprocessing
from models.staging import require_temporary_files, staged

SUFFIX = "-int8"
_SEED = 0
_BATCH_SIZE = 32
_NAMED = 3


class QuantizationError(ValueError):
    """The artifact cannot be quantized, or loses too much by it."""


@dataclass(frozen=True)
class QuantizationOptions:
    """How the scales are found, and what is good enough.

    Attributes:
        photos: of the training split to calibrate on.
        max_loss: of accuracy on the evaluation data, 0..1.
    """

    photos: int = 512
    max_loss: float = 0.005


def quantize(artifact: Artifact, folder: Path, archive: Path | None, options: QuantizationOptions) -> Artifact:
    """Makes and measures the quantized version of an artifact.

    Args:
        artifact: of a photo model.
        folder: NAME/VERSION of the new one, which must not exist.
        archive: of the data set; the official one is downloaded without it.
        options: of the quantization.

    Raises:
        QuantizationError: no photo model of Imagenette, or the accuracy falls by more than is allowed.
        StagingError: the folder, or temporary files, cannot be written.
    """
    preprocessing = artifact.manifest.preprocessing
    if not isinstance(preprocessing, ImagePreprocessing):
        raise QuantizationError(f"{artifact.manifest.name} takes no photos; only photo models can be calibrated")
    if (dtype := artifact.manifest.inputs[0].dtype) != "float32":
        raise QuantizationError(
            f"{artifact.manifest.name} computes with {dtype}; quantize the model of float32 that it was made from"
        )
    if artifact.manifest.labels != list(imagenette.CLASSES.values()):
        raise QuantizationError(
            f"{artifact.manifest.name} does not have the labels of Imagenette; only such models can be calibrated"
        )
    if folder.exists():
        raise QuantizationError(f"{folder} exists already; remove it, or name another place by --output")
    require_temporary_files()  # ONNX Runtime writes some
    with staged(folder) as working:
        _quantize_graph(artifact, working / MODEL, _calibration_batches(artifact, preprocessing, archive, options.photos))
        made = write_manifest(working, _manifest(artifact, working / MODEL, folder.name, options), [MODEL])
        measured = made.manifest.model_copy(update={"metrics": evaluate(made, archive)})
        before, after = evaluate(artifact, archive)["accuracy"], measured.metrics["accuracy"]
        if before - after > options.max_loss:
            raise QuantizationError(
                f"the accuracy falls from {before:.4f} to {after:.4f}, by more than {options.max_loss}; "
                "calibrate on more photos by --photos, or allow more by --max-loss"
            )
        (working / CARD).write_text(model_card(measured), encoding="utf-8")
        write_manifest(working, measured, [MODEL, CARD])
    return Artifact(folder, measured)


def _calibration_batches(
    artifact: Artifact, preprocessing: ImagePreprocessing, archive: Path | None, count: int
) -> Iterator[NDArray[np.float32]]:
    """Photos of the training split, by a fixed seed, as the service prepares them."""
    files = imagenette.read_split("train", archive)
    chosen = np.random.default_rng(_SEED).permutation(len(files))[:count]
    batch_size = _BATCH_SIZE if artifact.manifest.batched else 1
    for (images,), _ in imagenette.served_batches([files[i] for i in chosen], preprocessing, batch_size):
        yield images


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, name: str, batches: Iterator[NDArray[np.float32]]) -> None:
        self._name, self._batches = name, batches

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


def _quantize_graph(artifact: Artifact, target: Path, batches: Iterator[NDArray[np.float32]]) -> None:
    folded = target.with_name("folded.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # rule 1
    options.optimized_model_filepath = str(folded)
    try:
        onnxruntime.InferenceSession(str(artifact.model_path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base
        raise ArtifactError(f"{artifact.model_path} cannot be loaded: {error}") from error
    with _silenced():
        quantize_static(
            str(folded),
            str(target),
            _Reader(artifact.manifest.inputs[0].name, batches),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,  # rule 3
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
    folded.unlink()


@contextmanager
def _silenced() -> Iterator[None]:
    """ONNX Runtime advises to fold BatchNorm first, which is done."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)


def _manifest(artifact: Artifact, path: Path, version: str, options: QuantizationOptions) -> Manifest:
    manifest = artifact.manifest
    preprocessing = manifest.preprocessing
    assert isinstance(preprocessing, ImagePreprocessing)  # checked before
    extents = dict.fromkeys(("height", "width"), preprocessing.crop)
    shapes = {layer.layer: layer for layer in manifest.layers}
    layers = [
        layer.model_copy(update={"shape": known.shape, "channel_axis": known.channel_axis})
        for layer in (Layer.of(probe) for probe in find_probes(onnx.load(path), extents))
        if (known := shapes.get(layer.layer)) is not None
    ]
    found = {layer.layer for layer in layers}
    missing = [layer for layer in manifest.layers if layer.layer not in found]
    return manifest.model_copy(
        update={
            "version": version,
            "description": f"{manifest.description}; 8-bit weights and activations",
            "layers": layers,
            "notes": [*manifest.notes, *_notes(missing)],
            "metrics": {},
            "reference_samples": 0,  # its own layers look different
            "libraries": manifest.libraries | {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
            "training": manifest.training.model_copy(
                update={"settings": manifest.training.settings | {"int8": {"calibration_photos": options.photos, "seed": _SEED}}}
            ),
        }
    )


def _notes(missing: list[Layer]) -> list[str]:
    kinds = sorted({layer.kind for layer in missing})
    notes = []
    for kind in kinds:
        names = [layer.layer for layer in missing if layer.kind == kind]
        named = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        why = (
            "each is folded into the convolution before it, because 8-bit convolutions have no place for it"
            if kind == "batch_norm"
            else "quantization has left no such tensors in the graph"
        )
        notes.append(f"{len(names)} {kind} cannot be seen: {why} ({named})")
    return notes
