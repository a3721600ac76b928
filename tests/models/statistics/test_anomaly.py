"""Anomaly scores: distances are those of their formulas, contributions sum to the score, p-values are uniform for like data."""

import numpy as np
import pytest
from numpy.typing import NDArray

from models.statistics import anomaly
from models.statistics.anomaly import AnomalyScorer, Evidence, conformal_p_values
from models.statistics.channel_distances import ChannelDistances
from models.statistics.channel_features import ChannelFeatures
from models.statistics.layer_features import LayerFeatures
from models.statistics.layers import SideLayout
from models.statistics.mahalanobis import MahalanobisDistance
from models.statistics.moments import Floats
from models.statistics.neighbours import Neighbours
from models.statistics.request_values import value_count
from tests.layers import image_layer

_CHANNELS = 4


LAYOUT = SideLayout(
    (
        image_layer("first", "batch_norm", _CHANNELS),
        image_layer("add", "residual_add", _CHANNELS),
        image_layer("last", "batch_norm", _CHANNELS),
    )
)
ROWS, ADDS = len(LAYOUT.rows), len(LAYOUT.adds)
FEATURES = LayerFeatures(LAYOUT)
NONE = ChannelFeatures(LAYOUT)
MEANS = ChannelFeatures.of(LAYOUT)
PARTS = ChannelFeatures(LAYOUT, (LAYOUT.row_of["add", "sum"],), LAYOUT.row_of["first", "before"], rectified=True)
WAYS = [NONE, MEANS, PARTS]


def samples(
    random: np.random.Generator, n: int, shift: float = 0, channels: ChannelFeatures = MEANS
) -> tuple[NDArray[np.float32], Floats, NDArray[np.int64]]:
    """Values (n, V), features of channels (n, K) and labels of three classes; `shift` moves them all."""
    labels = random.integers(0, 3, n)
    centers = np.random.default_rng(7).standard_normal((3, value_count(ROWS, ADDS)))
    values = centers[labels] + random.standard_normal((n, value_count(ROWS, ADDS))) + shift
    values[:, ROWS : 3 * ROWS] = np.exp(0.3 * values[:, ROWS : 3 * ROWS])  # std and l2
    values[:, 3 * ROWS : 3 * ROWS + ADDS] = np.exp(values[:, 3 * ROWS : 3 * ROWS + ADDS])
    return values.astype(np.float32), random.standard_normal((n, channels.width)) + shift, labels


def scorer_of(n: int, channels: ChannelFeatures, seed: int = 0) -> AnomalyScorer:
    """Fitted to n samples."""
    values, read, labels = samples(np.random.default_rng(seed), n, channels=channels)
    return AnomalyScorer(LAYOUT, values, Evidence.gather(FEATURES, channels, values, read, labels))


@pytest.fixture(params=WAYS, ids=["no channels", "means", "parts"])
def channels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ChannelFeatures:
    """What is looked at of the channels: each way in turn, as if it were that of the model."""
    looked_at: ChannelFeatures = request.param
    monkeypatch.setattr(ChannelFeatures, "of", lambda layout: looked_at)
    return looked_at


def test_the_mahalanobis_distance_is_that_of_its_formula() -> None:
    """Distance to the nearest class less half of that to all samples, covariances shrunk by 1 % towards their mean variance."""
    random = np.random.default_rng(1)
    labels = np.arange(60) % 3
    x = random.standard_normal((60, 5)) @ random.standard_normal((5, 5)) + labels[:, None]
    z = (x - x.mean(0)) / x.std(0)

    def inverse(deviations: Floats) -> Floats:
        covariance = deviations.T @ deviations / len(deviations)
        return np.asarray(np.linalg.inv(0.99 * covariance + 0.01 * np.trace(covariance) / 5 * np.eye(5)))

    means = np.stack([z[labels == k].mean(0) for k in range(3)])
    within, overall = inverse(z - means[labels]), inverse(z)
    asked = random.standard_normal((7, 5)) * 3
    y = (asked - x.mean(0)) / x.std(0)
    expected = [min((a - m) @ within @ (a - m) for m in means) - a @ overall @ a / 2 for a in y]
    found = MahalanobisDistance.fit(x, labels).contributions(asked)
    np.testing.assert_allclose(found.sum(1), expected, rtol=1e-9)


def test_a_feature_that_is_not_defined_takes_no_part() -> None:
    """NaN counts as the mean: in a sample that is scored, in some samples of the reference, or in all of them."""
    random = np.random.default_rng(2)
    x, labels = random.standard_normal((40, 3)), np.arange(40) % 2
    x[:, 2] = np.nan
    fitted, without = MahalanobisDistance.fit(x, labels), MahalanobisDistance.fit(np.where(np.isnan(x), 0, x), labels)
    asked = np.array([[1.0, np.nan, 5.0], [np.nan, np.nan, np.nan]])
    np.testing.assert_allclose(
        fitted.contributions(asked)[:, :1], without.contributions(np.where(np.isnan(asked), fitted.location, asked))[:, :1]
    )
    assert np.isfinite(fitted.contributions(asked)).all()
    partly = np.where(np.arange(40)[:, None] < 5, np.nan, random.standard_normal((40, 3)))
    np.testing.assert_allclose(MahalanobisDistance.fit(partly, labels).location, partly[5:].mean(0))


@pytest.mark.parametrize(("k", "centred"), [(1, True), (3, False), (20, False)])
def test_the_distance_of_a_direction_is_that_to_a_near_sample(*, k: int, centred: bool) -> None:
    """One less the k-th largest cosine seen from the center, row by row, the last with fewer; without direction at distance 1."""
    random = np.random.default_rng(3)
    known, asked = random.standard_normal((9, 5)) + 2, random.standard_normal((4, 5))
    center = known.mean(0) if centred else np.zeros(5)
    asked[3] = center
    found = Neighbours.fit(known, (2, 3), k, centred=centred).distances(asked)
    for i, row in enumerate([slice(0, 2), slice(2, 5)]):
        a, b = (each[:, row] - center[row] for each in (asked, known))
        cosines = [[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in b] for x in a[:3]]
        np.testing.assert_allclose(found[:3, i], 1 - np.sort(cosines, axis=1)[:, -min(k, 9)], atol=1e-6)
    np.testing.assert_allclose(found[3], 1, atol=1e-6)


def test_features_are_without_dimension() -> None:
    """Scaling an activation moves only its log std; the number of its elements, which l2 tells, moves nothing."""
    values, _, _ = samples(np.random.default_rng(4), 3)
    scaled = values.copy()
    scaled[:, : 2 * ROWS] *= 2
    scaled[:, 2 * ROWS : 3 * ROWS] *= 9
    expected = FEATURES.of(values)
    expected[:, ROWS : 2 * ROWS] += np.log(2)
    np.testing.assert_allclose(FEATURES.of(scaled), expected, rtol=1e-6)


def test_the_score_is_that_of_its_definition(channels: ChannelFeatures) -> None:
    """Each distance standardized by those of the reference, measured without the sample; the mean of the kinds there are."""
    values, read, labels = samples(np.random.default_rng(0), 80, channels=channels)
    evidence = Evidence.gather(FEATURES, channels, values, read, labels)
    scorer = AnomalyScorer(LAYOUT, values, evidence)
    asked, asked_read, _ = samples(np.random.default_rng(5), 6, channels=channels)
    held_out = evidence.held_out.astype(np.float64)
    distance = MahalanobisDistance.fit(FEATURES.of(values), labels).contributions(FEATURES.of(asked)).sum(1)
    reference = held_out[:, :3].sum(1)
    kinds = [(distance - reference.mean()) / reference.std()]
    end, rows = sum(channels.extents), len(channels.directed)
    if rows:
        near = Neighbours.fit(read[:, :end], channels.extents, channels.nearest, centred=not channels.rectified)
        own = held_out[:, 3 : 3 + rows]
        kinds.append(((near.distances(asked_read[:, :end]) - own.mean(0)) / own.std(0)).mean(1))
    if channels.leveled is not None:
        distance = MahalanobisDistance.fit(read[:, end:], labels).contributions(asked_read[:, end:]).sum(1)
        kinds.append((distance - held_out[:, -1].mean()) / held_out[:, -1].std())
    found = scorer.score(asked, asked_read)
    np.testing.assert_allclose(found.score, np.mean(kinds, axis=0), atol=5e-3)  # features of channels are kept as float16
    np.testing.assert_allclose(found.contributions.sum(1), found.score, atol=1e-9)
    assert found.p_value.tolist() == [(1 + (scorer.reference_scores >= score).sum()) / 81 for score in found.score]


def test_every_sample_of_the_reference_is_measured_by_a_fit_without_it(
    monkeypatch: pytest.MonkeyPatch, channels: ChannelFeatures
) -> None:
    """With as many folds as samples each distance is that of the fit to all others."""
    monkeypatch.setattr(anomaly, "_FOLDS", 12)
    values, read, labels = samples(np.random.default_rng(6), 12, channels=channels)
    held_out = Evidence.gather(FEATURES, channels, values, read, labels).held_out
    for i in range(12):
        others = np.arange(12) != i
        distance = MahalanobisDistance.fit(FEATURES.of(values[others]), labels[others]).contributions(FEATURES.of(values[~others]))
        near = ChannelDistances.fit(channels, read[others], labels[others]).of(read[~others])
        np.testing.assert_allclose(
            held_out[i], np.concatenate([FEATURES.by_layer(distance), near], axis=1)[0], rtol=1e-4, atol=1e-5
        )


def test_a_layer_that_moves_contributes_most() -> None:
    """What is strange is named: the layer whose standard deviation is far from those of the reference."""
    scorer = scorer_of(200, MEANS)
    values, means, _ = samples(np.random.default_rng(8), 20)
    row = LAYOUT.row_of["last", "before"]
    values[:, ROWS + row] *= 50
    found = scorer.score(values, means)
    assert (found.contributions.argmax(1) == 2).all()
    assert (found.p_value == 1 / 201).all()


def test_a_sample_that_is_not_finite_is_the_strangest() -> None:
    """Score infinity, from the layers that are not finite; others of the batch are not touched by it."""
    scorer = scorer_of(100, MEANS)
    values, means, _ = samples(np.random.default_rng(9), 3)
    clean = scorer.score(values, means)
    values[1, LAYOUT.row_of["add", "sum"]] = np.nan
    means[1] = np.nan
    found = scorer.score(values, means)
    assert found.score[1] == np.inf
    assert found.contributions[1].tolist() == [0, np.inf, 0]
    assert found.p_value[1] == 1 / 101
    np.testing.assert_allclose(found.score[[0, 2]], clean.score[[0, 2]])


def test_samples_of_the_reference_that_are_not_finite_count_as_the_strangest() -> None:
    """They are not fitted to, and every score is at most theirs: they raise the p-value, as exchangeability asks."""
    values, means, labels = samples(np.random.default_rng(0), 50)
    values[:5, 0] = np.nan
    scorer = AnomalyScorer(LAYOUT, values, Evidence.gather(FEATURES, MEANS, values, means, labels))
    assert np.isinf(scorer.reference_scores).sum() == 5
    values[:, ROWS:] *= 1e3
    assert scorer.score(values[10:11], means[10:11] + 1e3).p_value[0] >= 6 / 51
    with pytest.raises(ValueError, match="1 samples have finite statistics"):
        Evidence.gather(FEATURES, MEANS, values[4:6], means[4:6], labels[4:6])


def test_channels_are_asked_for_where_they_are_needed() -> None:
    """A score without a part of its evidence would be another score."""
    scorer = scorer_of(30, MEANS)
    with pytest.raises(ValueError, match="features of channels"):
        scorer.score(samples(np.random.default_rng(0), 1)[0])
    assert not scorer_of(30, NONE).needs_channels


def test_conformal_p_values_are_exact() -> None:
    """Of n + 1 exchangeable scores each has one of the p-values 1 / (n + 1), 2 / (n + 1) .. 1; ties have the larger."""
    scores = np.random.default_rng(0).permutation(20).astype(np.float64)
    found = [conformal_p_values(scores[i : i + 1], np.sort(np.delete(scores, i)))[0] for i in range(20)]
    assert sorted(found) == [(1 + i) / 20 for i in range(20)]
    assert conformal_p_values(np.array([1.0, 1.5, 2.5]), np.array([1.0, 1.0, 2.0])).tolist() == [1, 0.5, 0.25]


def test_p_values_of_more_of_the_same_data_are_uniform(channels: ChannelFeatures) -> None:
    """P(p <= a) is at most a over samples and references alike, within four standard errors."""
    p_values = []
    for seed in range(60):
        scorer = scorer_of(99, channels, seed)
        values, read, _ = samples(np.random.default_rng(1000 + seed), 10, channels=channels)
        p_values += scorer.score(values, read).p_value.tolist()
    for a in (0.01, 0.05, 0.1, 0.2, 0.5):
        # samples that share a reference are correlated: its quantile at a has the error of its own n samples
        error = np.sqrt(a * (1 - a) * (1 / len(p_values) + 1 / (60 * 99)))
        assert (np.array(p_values) <= a).mean() <= a + 4 * error
