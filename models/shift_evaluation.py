"""How well shifted inputs are told from those of the evaluation data: an artifact and archives in, one row for each shift out.

Every input runs once, and all its scores are taken from that run. The layers' score (`models/statistics/anomaly.py`) knows the
reference of the artifact only; those it is compared with (`models/baselines.py`) the last features of training data. No torch.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.artifact import Artifact
from models.baselines import Mahalanobis, NearestNeighbour, energy, largest_probability
from models.baselines import last_features as find_last_features
from models.data.batch import Batch
from models.evaluation import auroc, evaluation_batches, fpr_at_95_tpr, training_batches
from models.instrument.graph_file import read_graph
from models.observation import ObservedSession
from models.preprocessing import ImagePreprocessing
from models.shifts import Shift, shifts_of
from models.statistics.anomaly import AnomalyScorer
from models.statistics.layers import SideLayout
from models.statistics.moments import Floats
from models.statistics.reference import Reference
from models.statistics.request_values import request_values
from models.window_trials import Detection, WindowTrials

LAYERS = "layers"
"""The name of the score that the layers give."""

DEFAULT_SAMPLES = 400
STRANGE_P = 0.01
"""A request with a p-value at or below it is called strange in the report."""

_EVALUATION_SHARE = 5  # so many times as many evaluation data as inputs of a shift
_FITTED_PER_LABEL = 300
_NEIGHBOURS_OF_PHOTOS = 50  # as in its paper for CIFAR-10, which has 10 classes too
_NEIGHBOURS_OF_TEXTS = 1  # of 1, 5, 10, 20, 50 the best for oos_val against val, the queries kept for choices
_BATCH_SIZE = 16  # every activation of a run is in memory at once


@dataclass(frozen=True)
class ShiftRow:
    """One shift.

    Attributes:
        name: of the shift.
        group: 1, on which choices were made, or 2.
        wrong_preprocessing: whether the inputs are right and their preprocessing is not.
        inputs: that were run.
        auroc: by score, that an input of the shift scores above one of the evaluation data.
        fpr95: by score, the fraction of the shift that passes where 95 % of the evaluation data do.
        strange: fraction of the shift with a p-value of at most `STRANGE_P`.
        windows: how often windows with inputs of the shift are called `drift`.
        moved: fraction of the layers that stand out in a window of the shift, by thirds of the network.
    """

    name: str
    group: int
    wrong_preprocessing: bool
    inputs: int
    auroc: dict[str, float]
    fpr95: dict[str, float]
    strange: float
    windows: tuple[Detection, ...]
    moved: tuple[float, ...]


@dataclass(frozen=True)
class ShiftReport:
    """All shifts of a model.

    Attributes:
        model: its name and version.
        evaluation_inputs: that the shifts were compared with.
        fitted_on: samples of the training data that Mahalanobis and nearest neighbours know.
        strange: fraction of the evaluation data with a p-value of at most `STRANGE_P`.
        false_alarms_per_month: that the level of `drift` stands for, in windows of a minute.
        false_alarms: how often windows of evaluation data alone are called `drift`.
        rows: of the shifts, group 1 first.
        notes: what was left out.
    """

    model: str
    evaluation_inputs: int
    fitted_on: int
    strange: float
    false_alarms_per_month: float
    false_alarms: tuple[Detection, ...]
    rows: tuple[ShiftRow, ...]
    notes: tuple[str, ...]


def evaluate_shifts(
    artifact: Artifact,
    archive: Path | None = None,
    sets: Path | None = None,
    samples: int = DEFAULT_SAMPLES,
    progress: Callable[[str], None] = lambda _: None,
) -> ShiftReport:
    """Runs the model on evaluation data and on every shift of it.

    Args:
        artifact: of a classifier with a reference.
        archive: of its data set; the official one is downloaded without it.
        sets: archive of foreign inputs; without it they are left out.
        samples: most inputs of each shift of group 2; a quarter for each of group 1, 5 times as many of the evaluation data.
        progress: told the name of what runs next.

    Raises:
        DownloadError: the official archive cannot be fetched.
        ValueError: no reference, the data are not the model's, or `samples` is below 1.
    """
    if samples < 1:
        raise ValueError(f"{samples} samples of each shift are asked for; ask for at least 1")
    shifts = shifts_of(artifact, archive, sets, samples, _BATCH_SIZE)
    observer = _Observer.load(artifact)
    batches = evaluation_batches(artifact, archive, samples * _EVALUATION_SHARE, _BATCH_SIZE)
    with ThreadPoolExecutor() as workers:
        progress("training data")
        scores, fitted_on = _scores(artifact, observer.features, archive, workers)
        progress("evaluation data")
        clean = observer.observe(batches, workers)
        trials = WindowTrials(observer.reference, observer.layout, clean.values)
        negatives = {name: score(clean) for name, score in scores.items()}
        rows = []
        for shift in shifts:
            progress(shift.name)
            rows.append(_row(shift, observer.observe(shift.batches(), workers), scores, negatives, trials))
    progress("windows of evaluation data")
    notes = [] if sets else ["the sets of foreign inputs are left out: no archive of them was given"]
    if observer.features is None:
        notes.append("Mahalanobis and kNN are left out: the scores are no linear function of any features")
    return ShiftReport(
        f"{artifact.manifest.name}/{artifact.manifest.version}",
        len(clean.p_value),
        fitted_on,
        float((clean.p_value <= STRANGE_P).mean()),
        trials.false_alarms_per_month,
        trials.false_alarms(),
        tuple(rows),
        tuple(notes),
    )


@dataclass(frozen=True)
class _Observed:
    """Of n inputs: logits (n, K), last features (n, D), D = 0 without, values (n, V), layers' score and p-value (n,)."""

    logits: NDArray[np.float32]
    features: NDArray[np.float32]
    values: Floats
    score: Floats
    p_value: Floats


_Score = Callable[[_Observed], Floats]


@dataclass(frozen=True)
class _Observer:
    """Runs inputs, and takes from each run all that scores are made of."""

    session: ObservedSession
    layout: SideLayout
    reference: Reference
    scorer: AnomalyScorer
    features: str | None

    @classmethod
    def load(cls, artifact: Artifact) -> "_Observer":
        layout = SideLayout(tuple(artifact.manifest.layers))
        reference = Reference.load(artifact, layout)
        if reference is None or reference.evidence is None:
            name = artifact.manifest.name
            raise ValueError(
                f"{name} has no reference that inputs can be scored by; make it with `python -m models reference {name}`"
            )
        model = read_graph(artifact.model_path)
        features = find_last_features(model, artifact.manifest.outputs[artifact.manifest.scores_output or 0].name)
        session = ObservedSession(artifact, model, layout, [features] if features else [])
        return cls(session, layout, reference, AnomalyScorer(layout, reference.values, reference.evidence), features)

    def observe(self, batches: Iterable[Batch], workers: Executor) -> _Observed:
        parts: list[tuple[NDArray[Any], ...]] = []
        for inputs, _ in batches:
            (logits, *features), observed = self.session.observe_all(self.session.feed(inputs), workers)
            anomalies = self.scorer.score_batch(observed)
            last = features[0] if features else np.zeros((len(logits), 0), np.float32)
            parts.append((logits, last, request_values(observed), anomalies.score, anomalies.p_value))
        return _Observed(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _last_features(
    artifact: Artifact, features: str, batches: Iterable[Batch], workers: Executor
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features (n, D) and labels (n,), from a session that sees no layers and so is quicker."""
    session = ObservedSession(artifact, read_graph(artifact.model_path), SideLayout(()), [features])
    found, labels = [], []
    for inputs, target in batches:
        (_, last), _ = session.observe_all(session.feed(inputs), workers)
        found.append(last)
        labels.append(target)
    return np.concatenate(found), np.concatenate(labels)


def _scores(artifact: Artifact, features: str | None, archive: Path | None, workers: Executor) -> tuple[dict[str, _Score], int]:
    """All scores by name, and on how many samples of the training data they were fitted."""
    scores: dict[str, _Score] = {
        LAYERS: lambda observed: observed.score,
        "softmax": lambda observed: largest_probability(observed.logits),
        "energy": lambda observed: energy(observed.logits),
    }
    if features is None:
        return scores, 0
    count = _FITTED_PER_LABEL * len(artifact.manifest.labels)
    known, labels = _last_features(artifact, features, training_batches(artifact, archive, count), workers)
    photos = isinstance(artifact.manifest.preprocessing, ImagePreprocessing)
    mahalanobis = Mahalanobis.fit(known, labels)
    nearest = NearestNeighbour.fit(known, _NEIGHBOURS_OF_PHOTOS if photos else _NEIGHBOURS_OF_TEXTS)
    scores["Mahalanobis"] = lambda observed: mahalanobis.score(observed.features)
    scores["kNN"] = lambda observed: nearest.score(observed.features)
    return scores, len(labels)


def _row(
    shift: Shift, observed: _Observed, scores: Mapping[str, _Score], negatives: Mapping[str, Floats], trials: WindowTrials
) -> ShiftRow:
    positives = {name: score(observed) for name, score in scores.items()}
    return ShiftRow(
        shift.name,
        shift.group,
        shift.wrong_preprocessing,
        len(observed.p_value),
        {name: auroc(positives[name], negatives[name]) for name in scores},
        {name: fpr_at_95_tpr(positives[name], negatives[name]) for name in scores},
        float((observed.p_value <= STRANGE_P).mean()),
        trials.detections(observed.values),
        trials.moved(observed.values),
    )
