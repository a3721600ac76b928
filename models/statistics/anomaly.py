"""How strange a sample is to a model: the statistics of its layers in, a score, a p-value and the share of every layer out.

Three kinds of evidence, all by layer and against the n samples of the reference:

    values      distance to the nearest class (`mahalanobis.py`) of dimensionless features: of each side mean / rms and log std, of
                each add log residual_ratio and cosine; rms = sqrt(mean^2 + std^2), so that the number of elements plays no part
    directions  distance to a near sample (`neighbours.py`) by what channels are on average
    levels      distance to the nearest class, as of values, of the same features of every channel of one normalization

Which channels the last two look at `channel_features.py` says; not every model has both, and a reference only where it has room.

Each distance is standardized: minus its mean and divided by its standard deviation over the samples of the reference, each of them
measured by a fit without it (20 folds). The score is the mean of the kinds, that of directions being the mean of its rows: near
0 for a sample like those of the reference, larger for a stranger one. It is the sum of the contributions of the layers.

    p = (1 + number of reference scores >= score) / (n + 1)

is the conformal p-value: a sample exchangeable with those of the reference has p <= a with probability a at most. That is exact
where one fit scores both alike; here the reference is scored by fits to 19 of 20 parts, the sample by one to all.

A sample with values that are not finite has score infinity: its layers that are not finite contribute infinity, the others 0.

Source: Vovk, Gammerman & Shafer 2005, "Algorithmic Learning in a Random World", chapter 2; Vovk 2015, "Cross-conformal predictors"
(arXiv:1208.0806); Bates et al. 2023, "Testing for Outliers with Conformal p-values" (arXiv:2104.08279), section 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from models.statistics.channel_distances import ChannelDistances
from models.statistics.channel_features import ChannelFeatures
from models.statistics.layer_features import LayerFeatures
from models.statistics.layers import BatchStatistics, SampleStatistics, SideLayout
from models.statistics.mahalanobis import MahalanobisDistance
from models.statistics.moments import Floats
from models.statistics.request_values import request_values

_FOLDS = 20
_SEED = 0


@dataclass(frozen=True)
class Evidence:
    """What scores need of a reference of n samples beside its values. L layers, R rows with K features of channels in all.

    Attributes:
        labels: int32 (n,), classes of the samples.
        held_out: float32 (n, L + R), the Mahalanobis distance of each sample by layer, then its distance in each row, by
            fits without the sample; NaN for samples that are not finite.
        center: float64, see `neighbours.py`; as long as there are directions.
        directions: float16 (n, channels), likewise; only of the samples that are finite.
        levels: float16 (n, features), likewise. With the directions K features; 0 where the reference keeps none.
    """

    labels: NDArray[np.int32]
    held_out: NDArray[np.float32]
    center: Floats
    directions: NDArray[np.float16]
    levels: NDArray[np.float16]

    @classmethod
    def gather(
        cls,
        features: LayerFeatures,
        channels: ChannelFeatures,
        values: NDArray[np.floating],
        read: Floats,
        labels: NDArray[np.integer[Any]],
    ) -> Self:
        """Fits and measures the samples of a reference.

        Args:
            features: of the model.
            channels: that are looked at; none where the reference has no room for them.
            values: of the samples, (n, V) as `request_values` lists them.
            read: features of their channels, (n, K) as `channels.read` lists them.
            labels: of their classes, (n,).

        Raises:
            ValueError: fewer than two samples are finite.
        """
        finite = np.flatnonzero(features.finite(values))
        if len(finite) < 2:
            raise ValueError(f"{len(finite)} samples have finite statistics in all layers, a reference needs two")
        known, classes, seen = features.of(values[finite]), labels[finite], read[finite]
        held_out = np.full((len(values), len(features.layout.layers) + len(channels.rows)), np.nan, np.float32)
        folds = np.random.default_rng(_SEED).permutation(len(finite)) % _FOLDS
        for fold in np.unique(folds):
            left = folds == fold
            distance = MahalanobisDistance.fit(known[~left], classes[~left]).contributions(known[left])
            near = ChannelDistances.fit(channels, seen[~left], classes[~left])
            held_out[finite[left]] = np.concatenate([features.by_layer(distance), near.of(seen[left])], axis=1)
        fitted = ChannelDistances.fit(channels, seen, classes).neighbours
        levels = seen[:, sum(channels.extents) :]
        return cls(
            labels.astype(np.int32), held_out, fitted.center, fitted.directions.astype(np.float16), levels.astype(np.float16)
        )


@dataclass(frozen=True)
class Anomalies:
    """Of N samples.

    Attributes:
        score: float64 (N,); infinity where values are not finite.
        p_value: float64 (N,), 1 / (n + 1) .. 1.
        contributions: float64 (N, L), of the layers; they sum to the score and may be negative.
    """

    score: Floats
    p_value: Floats
    contributions: Floats


class AnomalyScorer:
    """Scores samples against one reference. Safe to use on several threads at once.

    Attributes:
        features: what of a sample is looked at.
        channels: of which channels.
        reference_scores: float64 (n,), sorted; infinity for samples of the reference that are not finite.
    """

    def __init__(self, layout: SideLayout, values: NDArray[np.floating], evidence: Evidence) -> None:
        """Fits to the samples of a reference: its values (n, V) and evidence."""
        self.features = LayerFeatures(layout)
        self.channels = ChannelFeatures.of(layout) if evidence.directions.shape[1] else ChannelFeatures(layout)
        self._layers = len(layout.layers)
        finite = self.features.finite(values)
        labels = evidence.labels[finite]
        self._distance = MahalanobisDistance.fit(self.features.of(values[finite]), labels)
        self._near = ChannelDistances.kept(self.channels, evidence.center, evidence.directions, evidence.levels, labels)
        held_out = evidence.held_out[finite].astype(np.float64)
        self._mean = held_out.mean(0)
        deviations = np.concatenate([held_out[:, : self._layers].sum(1, keepdims=True).std(0), held_out[:, self._layers :].std(0)])
        self._deviations = np.where(deviations > 0, deviations, 1)
        self.reference_scores = np.full(len(values), np.inf)
        self.reference_scores[: len(held_out)] = np.sort(self._contributions(held_out).sum(1))

    @property
    def needs_channels(self) -> bool:
        """Whether scores need statistics by channel."""
        return self.channels.width > 0

    def score(self, values: NDArray[np.floating], read: Floats | None = None) -> Anomalies:
        """The scores of N samples.

        Args:
            values: (N, V), as `request_values` lists them.
            read: (N, K), as `channels.read` lists them; needed only where `needs_channels`.

        Raises:
            ValueError: the features of channels are needed and not given.
        """
        if not self.needs_channels:
            read = np.zeros((len(values), 0))
        elif read is None:
            raise ValueError("the reference holds features of channels: scores need those of the samples")
        finite = self.features.finite(values)
        contributions = np.where(self.features.broken(values), np.inf, 0.0)
        distance = self.features.by_layer(self._distance.contributions(self.features.of(values[finite])))
        contributions[finite] = self._contributions(np.concatenate([distance, self._near.of(read[finite])], axis=1))
        score = contributions.sum(1)
        return Anomalies(score, conformal_p_values(score, self.reference_scores), contributions)

    def score_batch(self, observed: BatchStatistics) -> Anomalies:
        """The scores of all samples of a batch, whose run was asked for channels where `needs_channels`."""
        return self.score(request_values(observed), self.channels.read(observed) if self.needs_channels else None)

    def score_samples(self, samples: Sequence[SampleStatistics]) -> Anomalies:
        """The scores of samples of several batches, whose runs were asked for channels where `needs_channels`."""
        batches = {id(sample.batch): sample.batch for sample in samples}
        values = {key: request_values(batch) for key, batch in batches.items()}
        read = {key: self.channels.read(batch) for key, batch in batches.items()} if self.needs_channels else None
        return self.score(
            np.stack([values[id(sample.batch)][sample.index] for sample in samples]),
            None if read is None else np.stack([read[id(sample.batch)][sample.index] for sample in samples]),
        )

    def _contributions(self, distances: Floats) -> Floats:
        """Of the layers to the score, (N, L); of distances (N, L + R) as `Evidence.held_out` lists them."""
        deviations = distances - self._mean
        kinds = [deviations[:, : self._layers] / self._deviations[0]]
        rows = deviations[:, self._layers :] / self._deviations[1:]
        directed = self.channels.directed
        if directed:
            kinds.append(self.features.rows_by_layer(rows[:, : len(directed)], directed) / len(directed))
        if self.channels.leveled is not None:
            kinds.append(self.features.rows_by_layer(rows[:, len(directed) :], [self.channels.leveled]))
        return np.asarray(sum(kinds) / len(kinds))


def conformal_p_values(scores: Floats, reference: Floats) -> Floats:
    """(1 + number of reference scores >= score) / (n + 1): scores (N,), reference sorted (n,)."""
    above = len(reference) - np.searchsorted(reference, scores, "left")
    return np.asarray((1 + above) / (len(reference) + 1), np.float64)
