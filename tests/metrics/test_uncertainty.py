import numpy as np
import pytest

from scanbridge.metrics.uncertainty import (
    by_quartile,
    gradient_magnitude,
    missed,
    rankings,
    risk_coverage,
    spearman,
)

SHAPE = (6, 7, 8)


@pytest.fixture
def error():
    return np.random.default_rng(0).normal(size=SHAPE)


@pytest.fixture
def region():
    return np.random.default_rng(1).uniform(size=SHAPE) > 0.4


def test_the_errors_own_size_is_the_perfect_map(error, region):
    curve = risk_coverage(error, np.abs(error), region)
    assert curve.excess == 0
    assert (np.diff(curve.risk) >= 0).all()
    assert spearman(error, 3 * np.abs(error) + 1, region) == pytest.approx(1)
    assert spearman(error, -np.abs(error), region) == pytest.approx(-1)


def test_a_constant_map_scores_the_mean_error_whatever_the_order_of_voxels(error, region):
    curve = risk_coverage(error, np.zeros(SHAPE), region)
    mean = np.abs(error[region]).mean()
    np.testing.assert_allclose(curve.risk, mean)
    assert curve.area == pytest.approx(mean)
    assert curve.excess > 0
    assert spearman(error, np.zeros(SHAPE), region) is None


def test_every_map_ends_at_the_mean_error_and_lies_between_best_and_worst(error, region):
    unsure = np.random.default_rng(2).uniform(size=SHAPE)
    best, some, worst = (risk_coverage(error, m, region) for m in (np.abs(error), unsure, -np.abs(error)))
    assert best.area < some.area < worst.area
    assert some.coverage[-1] == 1
    for curve in (best, some, worst):
        assert curve.risk[-1] == pytest.approx(np.abs(error[region]).mean())


def test_the_area_by_hand():
    error = np.array([1.0, 3.0, 2.0]).reshape(1, 1, 3)
    everywhere = np.ones((1, 1, 3), bool)
    curve = risk_coverage(error, np.array([1.0, 2.0, 3.0]).reshape(1, 1, 3), everywhere)
    assert curve.area == pytest.approx((1 + 2 + 2) / 3)
    assert curve.excess == pytest.approx((1 + 2 + 2) / 3 - (1 + 1.5 + 2) / 3)
    tied = risk_coverage(error, np.array([1.0, 2.0, 2.0]).reshape(1, 1, 3), everywhere)
    assert tied.area == pytest.approx((1 + (1 + 2.5) / 2 + 2) / 3)


def test_only_the_order_of_the_map_matters(error, region):
    unsure = np.random.default_rng(2).uniform(0.1, 1, size=SHAPE)
    before, after = risk_coverage(error, unsure, region), risk_coverage(error, np.exp(unsure), region)
    assert before.area == after.area
    assert spearman(error, unsure, region) == pytest.approx(spearman(error, unsure**3, region))


def test_the_trivial_maps_stand_beside_the_models(error, region):
    source = np.random.default_rng(3).uniform(size=SHAPE)
    found = {r.name: r for r in rankings(error, np.abs(error), source, region, spacing=(1, 1, 2))}
    assert list(found) == ["model", "gradient", "constant"]
    assert found["model"].curve.area < found["gradient"].curve.area
    assert found["constant"].spearman is None


def test_the_gradient_is_per_millimetre_and_knows_thin_volumes():
    ramp = np.arange(5.0)[:, None, None] * np.ones((5, 4, 1))
    np.testing.assert_allclose(gradient_magnitude(ramp, (2.0, 1.0, 1.0)), 0.5)


def test_quartiles_go_from_sure_to_unsure():
    values = np.arange(8.0).reshape(2, 2, 2)
    everywhere = np.ones((2, 2, 2), bool)
    assert by_quartile(values, values, everywhere) == (0.5, 2.5, 4.5, 6.5)
    assert by_quartile(values, np.zeros((2, 2, 2)), everywhere) == (3.5, 3.5, 3.5, 3.5)
    outside = missed(values, np.ones((2, 2, 2)), np.full((2, 2, 2), 5.0))
    assert by_quartile(outside, values, everywhere) == (0.5, 0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="four"):
        by_quartile(values, values, np.zeros((2, 2, 2), bool))


def test_an_empty_region_has_no_curve(error):
    with pytest.raises(ValueError, match="empty"):
        risk_coverage(error, error, np.zeros(SHAPE, bool))
    assert spearman(error, error, np.zeros(SHAPE, bool)) is None
