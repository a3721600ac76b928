"""Mahalanobis distance: features of samples of known classes in, how far a sample lies from the nearest class out.

    MD_k(z) = (z - mu_k)' S^-1 (z - mu_k)      S: covariance within the classes, shared by them
    MD_0(z) = (z - mu_0)' S_0^-1 (z - mu_0)    mu_0, S_0: of all samples, their classes unheeded
    d(z)    = min over k of MD_k(z) - MD_0(z) / 2

which is the mean of the Mahalanobis distance, min MD_k, and the relative one, min MD_k - MD_0. The relative one tells better what
is near the classes and is none of them, but is blind where all samples vary as much as those of a class; the other sees that.

Source: Lee et al. 2018, "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks"
(arXiv:1807.03888), equation 2; Ren et al. 2021, "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection"
(arXiv:2106.09022), equation 3. Covariances are shrunk as by Ledoit & Wolf 2004, "A well-conditioned estimator for large-dimensional
covariance matrices", with a fixed weight.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from models.statistics.moments import Floats

_RELATIVE = 0.5  # the share of the relative distance
_SHRINKAGE = 0.01
_LEAST_DEVIATION = 1e-3  # ten times the tolerance of the statistics: what varies less is rounding
_LEAST_VARIANCE = 1e-6  # of standardized features that do not vary at all


@dataclass(frozen=True)
class MahalanobisDistance:
    """Fitted to n samples with F features, z = (feature - location) / scale.

    Attributes:
        location, scale: (F,).
        within, overall: symmetric S^-1/2 and S_0^-1/2, (F, F).
        classes: mu_k S^-1/2, (classes, F); mu_0 is 0.
    """

    location: Floats
    scale: Floats
    within: Floats
    overall: Floats
    classes: Floats

    @classmethod
    def fit(cls, features: Floats, labels: NDArray[np.integer[Any]]) -> Self:
        """
        Args:
            features: float64 (n, F); NaN where a feature is not defined, which then takes no part.
            labels: classes of the samples, (n,).
        """
        known = np.isfinite(features)
        count = np.maximum(known.sum(0), 1)
        location = np.where(known, features, 0).sum(0) / count
        deviation = np.where(known, features - location, 0)
        scale = np.maximum(np.sqrt(np.square(deviation).sum(0) / count), _LEAST_DEVIATION)
        z = deviation / scale
        classes, members = np.unique(labels, return_inverse=True)
        means = np.stack([z[members == k].mean(0) for k in range(len(classes))])
        within = _inverse_root(z - means[members])
        return cls(location, scale, within, _inverse_root(z), means @ within)

    def contributions(self, features: Floats) -> Floats:
        """What every feature adds to d, float64 (N, F): the sum of a row is the distance of that sample.

        By the symmetric root each term of a distance belongs to one feature, also where features are correlated; a term may be
        negative, where the sample is closer to the nearest class than to the mean of all.

        Source: Garthwaite & Koch 2016, "Evaluating the contributions of individual variables to a quadratic form", section 2.

        Args:
            features: float64 (N, F); NaN counts as the mean.
        """
        z = np.where(np.isfinite(features), (features - self.location) / self.scale, 0)
        whitened = z @ self.within
        distances = (self.classes**2).sum(1) - 2 * whitened @ self.classes.T  # up to what the classes share
        nearest = self.classes[distances.argmin(1)]
        return np.asarray(np.square(whitened - nearest) - _RELATIVE * np.square(z @ self.overall))


def _inverse_root(deviations: Floats) -> Floats:
    """S^-1/2 of the shrunk covariance S of deviations (n, F)."""
    covariance = deviations.T @ deviations / len(deviations)
    mean = max(float(np.trace(covariance)) / len(covariance), _LEAST_VARIANCE)
    variances, axes = np.linalg.eigh((1 - _SHRINKAGE) * covariance + _SHRINKAGE * mean * np.eye(len(covariance)))
    return np.asarray(axes / np.sqrt(variances) @ axes.T)
