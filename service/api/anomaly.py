"""With `anomaly=true`: how far the layers of an input lie from the reference of the model, and which layers contribute most."""

from collections.abc import Sequence
from typing import Any

from models.statistics.anomaly import AnomalyScorer
from service.engine.model import ServedModel
from service.engine.outcomes import Outcome
from service.errors import NoReferenceError

_MOST_LAYERS = 5


def scorer_of(served: ServedModel) -> AnomalyScorer:
    """What scores inputs of a model; the first call takes a moment, and is not for the event loop.

    Raises:
        NoReferenceError: it has no reference, or one of before there were scores.
    """
    if served.scorer is None:
        held = "no reference" if served.reference is None else "a reference without scores"
        raise NoReferenceError(
            f"anomaly: {served.manifest.name} has {held}",
            value=served.manifest.name,
            limit="scores need a reference made by this version",
            remedy="make one with `python -m models reference` and load the model again, or ask without anomaly",
        )
    return served.scorer


def describe_anomalies(scorer: AnomalyScorer, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Score, p-value and the layers with the largest contributions of every outcome, all of which hold statistics."""
    found = scorer.score_samples([outcome.statistics for outcome in outcomes if outcome.statistics is not None])
    names = [layer.layer for layer in scorer.features.layout.layers]
    described = []
    for score, p_value, contributions in zip(found.score.tolist(), found.p_value.tolist(), found.contributions, strict=True):
        largest = [i for i in (-contributions).argsort(kind="stable")[:_MOST_LAYERS].tolist() if contributions[i] > 0]
        layers = [{"layer": names[i], "contribution": float(contributions[i])} for i in largest]  # JSON of infinity is null
        described.append({"score": score, "p_value": p_value, "layers": layers})
    return described
