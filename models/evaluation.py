"""Measures of an exported model on evaluation data: an artifact and an archive in, named numbers out. Needs no torch.

What is measured is what is served: ONNX Runtime on the artifact's graph, fed by the artifact's preprocessing.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from models.artifact import Artifact, Manifest
from models.data import clinc150, imagenette
from models.data.batch import Batch
from models.postprocessing import softmax
from models.preprocessing import ImagePreprocessing, TextPreprocessing

_BATCH_SIZE = 64
_SEED = 0
_CALIBRATION_BINS = 15
_LEAST = np.finfo(np.float32).tiny  # probability that has a logarithm


def accuracy(logits: NDArray[np.float32], labels: NDArray[np.int64], k: int = 1) -> float:
    """Fraction of samples whose label is among the k largest logits; logits (n, classes), labels (n,)."""
    best = np.argpartition(-logits, min(k, logits.shape[1] - 1), axis=1)[:, :k] if k > 1 else logits.argmax(1)[:, None]
    return float((best == labels[:, None]).any(1).mean())


def expected_calibration_error(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Mean distance of confidence and accuracy over 15 bins of equal width, weighted by their samples.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv:1706.04599), equation 3.
    """
    scores = softmax(logits)
    confidence, correct = scores.max(1), scores.argmax(1) == labels
    bins = np.minimum((confidence * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    error = 0.0
    for b in np.unique(bins):
        chosen = bins == b
        error += chosen.mean() * abs(correct[chosen].mean() - confidence[chosen].mean())
    return float(error)


def auroc(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    """Probability that a positive scores above a negative, ties counted half: the area under the ROC curve.

    Source: Hanley & McNeil 1982, "The Meaning and Use of the Area under a ROC Curve".
    """
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left")
    not_above = np.searchsorted(ordered, positive, "right")
    return float((below + not_above).mean() / 2 / len(negative))


def fpr_at_95_tpr(shifted: NDArray[np.float64], clean: NDArray[np.float64]) -> float:
    """Fraction of the shifted that is taken for clean at the lowest threshold at or below which 95 % of the clean score.

    Source: Liang et al. 2018, "Enhancing The Reliability of Out-of-distribution Image Detection in Neural Networks"
    (arXiv:1706.02690), section 4.3: clean is positive.
    """
    threshold = np.sort(clean)[-(-95 * len(clean) // 100) - 1]
    return float((shifted <= threshold).mean())


def run_logits(artifact: Artifact, batches: Iterator[Batch]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits (n, classes) and labels (n,) of all batches; of probabilities their logarithms."""
    session = onnxruntime.InferenceSession(str(artifact.model_path), providers=["CPUExecutionProvider"])
    names = [spec.name for spec in artifact.manifest.inputs]
    scores = artifact.manifest.scores_output or 0
    logits, labels = [], []
    for inputs, target in batches:
        found = session.run(None, dict(zip(names, inputs, strict=True)))[scores].astype(np.float32, copy=False)
        # whose softmax they are
        logits.append(np.log(np.maximum(found, _LEAST)) if artifact.manifest.probabilities else found)
        labels.append(target)
    return np.concatenate(logits), np.concatenate(labels)


def evaluation_batches(
    artifact: Artifact, archive: Path | None = None, count: int | None = None, batch_size: int = _BATCH_SIZE
) -> Iterator[Batch]:
    """The evaluation split of the data set that the model was trained on, or `count` samples of it by a fixed seed, in order.

    Raises:
        DownloadError: the official archive cannot be fetched.
        ValueError: the archive is not in the official layout, or its classes are not the model's.
    """
    return _batches(artifact, "val", "test", batch_size, archive, count)


def selection_batches(artifact: Artifact, batch_size: int, archive: Path | None = None) -> Iterator[Batch]:
    """The part of the training data that was kept for selection, never trained on; raises as `evaluation_batches`."""
    return _batches(artifact, "selection", "val", batch_size, archive)


def training_batches(artifact: Artifact, archive: Path | None = None, count: int | None = None) -> Iterator[Batch]:
    """What the model was trained on, as it is served; raises as `evaluation_batches`, and `count` is as there."""
    return _batches(artifact, "train", "train", _BATCH_SIZE, archive, count)


def _batches(
    artifact: Artifact,
    photos: imagenette.Split,
    texts: clinc150.Split,
    batch_size: int,
    archive: Path | None,
    count: int | None = None,
) -> Iterator[Batch]:
    name, labels, preprocessing = artifact.manifest.name, artifact.manifest.labels, artifact.manifest.preprocessing
    if preprocessing is None:
        raise ValueError(f"{name} takes tensors only; only models of photos and texts can be evaluated")
    if isinstance(preprocessing, ImagePreprocessing):
        if labels != list(imagenette.CLASSES.values()):
            raise ValueError(f"{name} does not have the labels of Imagenette; only such models can be evaluated")
        files = imagenette.read_split(photos, archive)
        chosen = [files[i] for i in _some(len(files), count)]
        dtype = artifact.manifest.inputs[0].dtype
        batches = imagenette.served_batches(chosen, preprocessing, batch_size if artifact.manifest.batched else 1)
        return (((images.astype(dtype, copy=False),), classes) for (images,), classes in batches)
    queries = _tokenize(artifact, preprocessing, texts, archive)
    if (queries.labels < 0).any():
        raise ValueError(f"{name} does not have the labels of CLINC150; only such models can be evaluated")
    indices = _some(len(queries), count)
    kept = clinc150.TokenizedQueries([queries.rows[i] for i in indices], queries.labels[indices])
    return text_batches(artifact.manifest, kept, batch_size)


def text_batches(manifest: Manifest, queries: clinc150.TokenizedQueries, batch_size: int) -> Iterator[Batch]:
    """All queries in order, as the service feeds them: every input by its name and type, in the order of the manifest.

    One query at a time where padding would be seen: without a batch axis, without a mask, or in a layer that knows no mask.
    """
    for (ids, mask), labels in clinc150.evaluation_batches(queries, batch_size if manifest.hides_padding else 1):
        made = {
            "input_ids": ids,
            "token_type_ids": np.zeros_like(ids),
            "position_ids": np.arange(ids.shape[1]) * mask,
            manifest.mask_input: mask,
        }
        yield tuple(made[spec.name].astype(spec.dtype, copy=False) for spec in manifest.inputs), labels


def _some(n: int, count: int | None) -> list[int]:
    return sorted(np.random.default_rng(_SEED).permutation(n)[:count].tolist())


def _tokenize(
    artifact: Artifact, preprocessing: TextPreprocessing, split: clinc150.Split, archive: Path | None
) -> clinc150.TokenizedQueries:
    tokenizer = preprocessing.load_tokenizer(artifact.folder)
    queries = clinc150.load_queries(split, archive)
    return clinc150.tokenize(queries, tokenizer, artifact.manifest.labels, preprocessing.max_length)


def evaluate(artifact: Artifact, archive: Path | None = None) -> dict[str, float]:
    """The metrics of the model card; raises as `evaluation_batches`."""
    logits, labels = run_logits(artifact, evaluation_batches(artifact, archive))
    metrics = {
        "accuracy": accuracy(logits, labels),
        "top5_accuracy": accuracy(logits, labels, k=5),
        "expected_calibration_error": expected_calibration_error(logits, labels),
    }
    if not isinstance(artifact.manifest.preprocessing, TextPreprocessing):
        return {**metrics, "samples": len(labels)}
    strange = _tokenize(artifact, artifact.manifest.preprocessing, "oos_test", archive)
    out_of_scope, _ = run_logits(artifact, text_batches(artifact.manifest, strange, _BATCH_SIZE))
    return {
        **metrics,
        "out_of_scope_auroc": auroc(softmax(logits).max(1), softmax(out_of_scope).max(1)),
        "samples": len(labels),
        "out_of_scope_samples": len(out_of_scope),
    }
