"""Makes the reference of an artifact: the part of the training data that was kept for selection in, `reference.npz` out. No torch.

That part was never trained on, so that the layers see it as they will see traffic of its kind; the evaluation data stay unseen.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from models.artifact import CARD, REFERENCE, Artifact, write_manifest
from models.card import model_card
from models.data.batch import Batch
from models.evaluation import selection_batches
from models.instrument.graph_file import read_graph
from models.observation import ObservedSession
from models.staging import replaced
from models.statistics.anomaly import Evidence
from models.statistics.channel_features import ChannelFeatures
from models.statistics.layer_features import LayerFeatures
from models.statistics.layers import BatchStatistics, SideLayout
from models.statistics.moments import Moments
from models.statistics.reference import Reference
from models.statistics.request_values import request_values

LEAST_SAMPLES = 1000
_BATCH_SIZE = 16  # every activation of a run is in memory at once


def add_reference(artifact: Artifact, archive: Path | None = None, least: int = LEAST_SAMPLES) -> Artifact:
    """Runs the model on its selection data and writes the reference into the folder of the artifact, which is replaced at the end.

    Args:
        artifact: of a classifier with layers.
        archive: of its data set; the official one is downloaded without it.
        least: samples that a reference needs; with fewer its own error would hide what is looked for.

    Raises:
        ValueError: the model has no layers, the data are not the model's, or they are too few.
        StagingError: the folder cannot be written.
    """
    layout = SideLayout(tuple(artifact.manifest.layers))
    if not layout.layers:
        raise ValueError(f"{artifact.manifest.name} has no layers; there is nothing to compare traffic with")
    folder = artifact.folder.resolve()
    with replaced(folder) as working:
        reference = measure(artifact, layout, selection_batches(artifact, _BATCH_SIZE, archive))
        if len(reference) < least:
            raise ValueError(f"the selection data have {len(reference)} samples, a reference needs {least}; give the whole archive")
        reference.save(working)
        manifest = artifact.manifest.model_copy(update={"reference_samples": len(reference)})
        (working / CARD).write_text(model_card(manifest), encoding="utf-8")
        made = write_manifest(working, manifest, sorted({*manifest.files, CARD, REFERENCE}))
    return Artifact(folder, made.manifest)


def measure(artifact: Artifact, layout: SideLayout, batches: Iterable[Batch]) -> Reference:
    """The reference of a model for these batches of inputs and labels.

    Raises:
        ValueError: there are none, or fewer than two samples are finite.
    """
    session = ObservedSession(artifact, read_graph(artifact.model_path), layout)
    looked_at = ChannelFeatures.of(layout)
    values, labels, read, moments = [], [], [], None
    with ThreadPoolExecutor() as workers:
        for inputs, of_batch in batches:
            _, observed = session.observe(session.feed(inputs), workers)
            values.append(request_values(observed).astype(np.float32))
            labels.append(of_batch)
            if looked_at.has_room(sum(map(len, labels))):
                read.append(looked_at.read(observed))
            channels = _channels(observed)
            moments = channels if moments is None else moments.merge(channels)
    if moments is None:
        raise ValueError(f"{artifact.manifest.name} has no selection data")
    rows = np.concatenate(values)
    if len(read) < len(values):
        looked_at, read = ChannelFeatures(layout), [np.zeros((len(rows), 0))]
    evidence = Evidence.gather(LayerFeatures(layout), looked_at, rows, np.concatenate(read), np.concatenate(labels))
    return Reference(rows, moments.mean, moments.var, evidence)


def _channels(observed: BatchStatistics) -> Moments:
    """Of all reductions one after the other, over the samples of a batch: fields (sum of C,)."""
    reduction_of = observed.layout.reduction_of
    rows = [reduction_of.index(i) for i in range(len(observed.layout.reductions))]
    pooled = [observed.channels(row).pool(axis=0) for row in rows]
    return Moments(*(np.concatenate([getattr(each, name) for each in pooled]) for name in Moments.__dataclass_fields__))
