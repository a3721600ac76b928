"""How often windows of traffic are called `drift`: values of single requests in, rates over windows made of them out.

A window is drawn without replacement, some of its requests from the shifted inputs and the others from the evaluation data; windows
of one kind draw anew from the same inputs and so share some.
"""

from dataclasses import dataclass

import numpy as np

from models.statistics.drift import LEAST_REQUESTS, Levels, ReferenceRanks, WindowScores, WindowTest
from models.statistics.layers import SideLayout
from models.statistics.moments import Floats
from models.statistics.reference import Reference
from models.statistics.request_values import value_places

REQUESTS = (10, 100, 1000)
"""In a window. Nothing is said of fewer than 30, so that three windows of 10 are added up first, as the service adds up its own."""

SHIFTED = (0.05, 0.1, 0.5, 1.0)
"""Fractions of the requests."""

_TRIALS = 200
_MOVED_REQUESTS = 100
_FALSE_ALARM_TRIALS = 1000
_FALSE_ALARMS_PER_MONTH = 1.0
_SEED = 0


@dataclass(frozen=True)
class Detection:
    """Windows of one kind.

    Attributes:
        requests: in each window.
        shifted: fraction of them that is shifted.
        trials: windows that were drawn.
        drift: fraction of these that is called `drift`.
    """

    requests: int
    shifted: float
    trials: int
    drift: float


class WindowTrials:
    """Draws windows of evaluation data and shifted inputs and tests them against a reference."""

    def __init__(self, reference: Reference, layout: SideLayout, clean: Floats) -> None:
        """
        Args:
            reference: of the model.
            layout: of its layers.
            clean: values (n, V) of the evaluation data.
        """
        self._ranks = ReferenceRanks.of(reference.values, len(layout.rows))
        index = {layer.layer: i for i, layer in enumerate(layout.layers)}
        self._layer_of = np.array([index[layer.layer] for layer, _, _ in value_places(layout)], int)
        self._layers = len(index)
        self._clean = self._ranks.score(clean)
        self._levels = Levels.of(_FALSE_ALARMS_PER_MONTH)
        self.false_alarms_per_month = _FALSE_ALARMS_PER_MONTH

    def false_alarms(self) -> tuple[Detection, ...]:
        """Of windows of evaluation data alone, as large as there are enough data for."""
        return self._detections(self._clean[:0], (0.0,), _FALSE_ALARM_TRIALS)

    def detections(self, shifted: Floats) -> tuple[Detection, ...]:
        """Of windows with shifted inputs, whose values are (m, V), as large as there are enough of both for."""
        return self._detections(self._ranks.score(shifted), SHIFTED, _TRIALS)

    def moved(self, shifted: Floats) -> tuple[float, ...]:
        """Of each third of the network, the first in the order of execution first, the fraction of layers that stand out.

        They stand out in one window of shifted inputs, 100 at most, where one of their values does at the level of `drift`.
        """
        chosen = np.random.default_rng(_SEED).permutation(len(shifted))[:_MOVED_REQUESTS]
        window = WindowScores.of_scores(self._ranks, self._ranks.score(shifted[chosen]))
        stands_out = WindowTest.of(window, self._ranks).p_values <= self._levels.drift
        layers = np.isin(np.arange(self._layers), self._layer_of[stands_out])
        return tuple(float(third.mean()) if len(third) else 0.0 for third in np.array_split(layers, 3))

    def _detections(self, shifted: Floats, fractions: tuple[float, ...], trials: int) -> tuple[Detection, ...]:
        rng = np.random.default_rng(_SEED)
        found = []
        for requests in REQUESTS:
            whole = max(1, -(-LEAST_REQUESTS // requests)) * requests
            for fraction in fractions:
                strange = round(whole * fraction)
                if strange <= len(shifted) and whole - strange <= len(self._clean):
                    alarms = [self._is_drift(shifted, strange, whole, rng) for _ in range(trials)]
                    found.append(Detection(requests, fraction, trials, float(np.mean(alarms))))
        return tuple(found)

    def _is_drift(self, shifted: Floats, strange: int, whole: int, rng: np.random.Generator) -> bool:
        some = shifted[rng.choice(len(shifted), strange, replace=False)] if strange else shifted[:0]
        others = self._clean[rng.choice(len(self._clean), whole - strange, replace=False)]
        window = WindowScores.of_scores(self._ranks, np.concatenate([some, others]))
        return WindowTest.of(window, self._ranks).state(self._levels) == "drift"
