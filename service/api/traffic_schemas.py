"""The JSON of the statistics over traffic as pydantic models; what the pages under /docs show."""

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from models.instrument.probes import ProbeKind

Number = float | None
Numbers = list[float | None]
Of = TypeVar("Of")

_RANGE: dict[str, Any] = {"mean": 38.4, "std": 0.6, "min": 37.0, "max": 39.8}
_SIDE: dict[str, Any] = {
    "count": 2048,
    "mean": 0.02,
    "var": 1.44,
    "std": 1.2,
    "min": -4.1,
    "max": 5.3,
    "zeros": 0.0,
    "nonfinite": 0,
    "nonfinite_samples": 0,
    "request_mean": {"mean": 0.02, "std": 0.001, "min": 0.019, "max": 0.021},
    "request_std": {"mean": 1.2, "std": 0.01, "min": 1.19, "max": 1.21},
    "l2": _RANGE,
}
_LAYER: dict[str, Any] = {"layer": "embedding_norm", "kind": "layer_norm", "before": _SIDE}
_SERIES: dict[str, Any] = {
    "step_s": 60,
    "start": ["2026-05-04T10:00:00Z"],
    "end": ["2026-05-04T10:01:00Z"],
    "requests": [2],
    "sampled": [2],
    "layers": [],
}
_ANSWER: dict[str, Any] = {
    "model": "encoder",
    "version": "1",
    "since": "2026-05-04T09:01:00Z",
    "until": "2026-05-04T10:01:00Z",
    "complete": True,
    "requests": 2,
    "sampled": 2,
    "quantiles": [],
    "layers": [_LAYER],
    "series": _SERIES,
}
_CHANNELS: dict[str, Any] = {
    "count": [16, 16],
    "mean": [0.02, -0.4],
    "var": [1.44, 0.81],
    "std": [1.2, 0.9],
    "min": [-4.1, -2.2],
    "max": [5.3, 1.9],
    "zeros": [0.0, 0.0],
    "nonfinite": [0, 0],
    "reference": {"mean": [0.01, -0.5], "var": [1.4, 0.9]},
    "training": None,
}
_CHANNELS_LAYER: dict[str, Any] = {"layer": "embedding_norm", "kind": "layer_norm", "before": _CHANNELS}
_CHANNELS_KEYS = ("model", "version", "since", "until", "complete", "sampled")
_PERIOD: dict[str, Any] = {key: _ANSWER[key] for key in ("since", "until", "complete", "requests", "sampled")}
_DIFFERENCE: dict[str, Any] = {
    "layer": "embedding_norm",
    "side": "before",
    "statistic": "l2",
    "requests_a": 120,
    "requests_b": 4000,
    "mean_a": 40.1,
    "mean_b": 38.4,
    "effect": 2.7,
    "effect_low": 2.5,
    "effect_high": 2.9,
    "variance_ratio": 1.2,
    "divergence": 7.8,
    "stability": 3.1,
    "wasserstein": 1.7,
}


def _like(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"example": example})


class ValueSummary(BaseModel, Generic[Of]):
    """Of the values of the single inputs, each with one vote; null before the first."""

    model_config = _like(_RANGE)

    mean: Of
    std: Of = Field(description="population standard deviation of the values")
    min: Of
    max: Of
    quantiles: Any = Field(default=None, description="at the ranks that were asked for; for a series a list of such lists")


class TrafficSide(BaseModel, Generic[Of]):
    """One side over a stretch of time. All but l2 is over the elements of all inputs: pooled by count, min and max extremes."""

    model_config = _like(_SIDE)

    count: Of = Field(description="elements; padding does not count")
    mean: Of
    var: Of
    std: Of
    min: Of
    max: Of
    zeros: Of = Field(description="fraction of exact zeros, 0..1")
    nonfinite: Of = Field(description="NaN and infinities; an input with any is left out of the rest")
    nonfinite_samples: Of = Field(description="inputs with any")
    request_mean: ValueSummary[Of] = Field(description="of the means of the single inputs")
    request_std: ValueSummary[Of] = Field(description="of the standard deviations of the single inputs")
    l2: ValueSummary[Of]


class TrafficLayer(BaseModel, Generic[Of]):
    """One layer over a stretch of time."""

    model_config = _like(_LAYER)

    layer: str
    kind: ProbeKind
    before: TrafficSide[Of] | None = None
    after: TrafficSide[Of] | None = None
    identity: TrafficSide[Of] | None = None
    residual: TrafficSide[Of] | None = None
    sum: TrafficSide[Of] | None = None
    residual_ratio: ValueSummary[Of] | None = None
    cosine: ValueSummary[Of] | None = None


class TrafficSeries(BaseModel):
    """The same by step; a list in place of each number, one item for each step that has windows."""

    model_config = _like(_SERIES)

    step_s: int
    start: list[str] = Field(description="ISO 8601, UTC")
    end: list[str] = Field(description="later than a step where old windows were merged into longer ones")
    requests: list[int]
    sampled: list[int]
    layers: list[TrafficLayer[Numbers]]


class TrafficAnswer(BaseModel):
    """Statistics over all sampled traffic between two moments."""

    model_config = _like(_ANSWER)

    model: str
    version: str
    since: str = Field(description="ISO 8601, UTC; widened to whole windows, and to hours and days where old windows were merged")
    until: str = Field(description="likewise")
    complete: bool = Field(
        description="false while the database cannot be read: only what this process has not stored yet is here; "
        "or where a stored window is broken"
    )
    requests: int = Field(description="inputs served; a call with three photos counts three")
    sampled: int = Field(description="of these, inputs whose statistics were taken")
    quantiles: list[float] = Field(description="ranks of all lists named quantiles")
    layers: list[TrafficLayer[Number]] = Field(description="totals")
    series: TrafficSeries | None = Field(description="null unless a step was asked for")


class ChannelsExpected(BaseModel):
    """What traffic is to be seen beside: lists by channel."""

    model_config = _like(_CHANNELS["reference"])

    mean: list[float]
    var: list[float]


class ChannelsSide(BaseModel):
    """One side over a stretch of time: of each statistic a list by channel, empty where nothing was sampled."""

    model_config = _like(_CHANNELS)

    count: list[int] = Field(description="elements; padding does not count")
    mean: Numbers
    var: Numbers
    std: Numbers
    min: Numbers
    max: Numbers
    zeros: Numbers = Field(description="fraction of exact zeros, 0..1")
    nonfinite: list[int] = Field(description="NaN and infinities; an input with any in a channel is left out of the rest of it")
    reference: ChannelsExpected | None = Field(description="over the samples of the reference; null without one")
    training: ChannelsExpected | None = Field(description="running mean and variance before a batch normalization; else null")


class ChannelsLayer(BaseModel):
    """The channels of one layer over a stretch of time."""

    model_config = _like(_CHANNELS_LAYER)

    layer: str
    kind: ProbeKind
    before: ChannelsSide | None = None
    after: ChannelsSide | None = None
    identity: ChannelsSide | None = None
    residual: ChannelsSide | None = None
    sum: ChannelsSide | None = None


class ChannelsAnswer(BaseModel):
    """Statistics of the channels of chosen layers between two moments."""

    model_config = _like({**{key: _ANSWER[key] for key in _CHANNELS_KEYS}, "layers": [_CHANNELS_LAYER]})

    model: str
    version: str
    since: str = Field(description="ISO 8601, UTC; widened to whole hours, and to days where old hours were merged")
    until: str = Field(description="likewise")
    complete: bool = Field(description="as in the statistics")
    sampled: int = Field(description="inputs whose channels were taken: those of one run in ten seconds")
    layers: list[ChannelsLayer]


class ComparedPeriod(BaseModel):
    """One of two stretches of time that are compared."""

    model_config = _like(_PERIOD)

    since: str = Field(description="widened as in the statistics, as is `until`")
    until: str
    complete: bool = Field(description="as in the statistics")
    requests: int
    sampled: int


class ComparedReference(BaseModel):
    """The reference of the model as one side of a comparison."""

    model_config = _like({"reference": True, "samples": 1000})

    reference: Literal[True]
    samples: int = Field(description="number of samples in it")


class Difference(BaseModel):
    """One statistic of single inputs in a and in b; null where there are too few."""

    model_config = _like(_DIFFERENCE)

    layer: str
    side: str | None = Field(description="null for residual_ratio and cosine")
    statistic: Literal["request_mean", "request_std", "l2", "residual_ratio", "cosine"]
    requests_a: int
    requests_b: int
    mean_a: Number
    mean_b: Number
    effect: Number = Field(description="standardized mean difference: (mean_a - mean_b) / pooled standard deviation")
    effect_low: Number = Field(description="its 95 % interval")
    effect_high: Number
    variance_ratio: Number = Field(description="variance in a / variance in b")
    divergence: Number = Field(description="KL(a||b) + KL(b||a) of the Gaussians, nats")
    stability: Number = Field(description="population stability index over the deciles of b")
    wasserstein: Number = Field(description="mean distance between equal quantiles, in the unit of the statistic")


class ComparisonAnswer(BaseModel):
    """What differs between two stretches of time, the largest effect first."""

    model_config = _like({"model": "encoder", "version": "1", "a": _PERIOD, "b": _PERIOD, "differences": [_DIFFERENCE]})

    model: str
    version: str
    a: ComparedPeriod
    b: ComparedPeriod | ComparedReference
    differences: list[Difference]
