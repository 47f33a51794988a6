import json

import numpy as np
import pytest

from scanbridge.errors import UserError
from scanbridge.metrics.floors import SOURCE_BINS, Floors, fit_floors


def subject(seed, shape=(8, 9, 10)):
    rng = np.random.default_rng(seed)
    source = rng.uniform(size=shape).astype(np.float32)
    foreground = rng.uniform(size=shape) > 0.3
    return source, (1 - source).astype(np.float32) ** 2, foreground


def test_intensity_is_the_mean_square_best_function_of_the_bin():
    source, target, foreground = subject(0)
    target = np.clip(target + np.random.default_rng(1).normal(0, 0.1, target.shape), 0, 1).astype(np.float32)
    predicted = fit_floors([(source, target, foreground)]).intensity(source, foreground)
    bins = (source * SOURCE_BINS).astype(int)
    for value in np.unique(bins[foreground])[:20]:
        here = foreground & (bins == value)
        np.testing.assert_allclose(predicted[here], target[here].mean(dtype=np.float64), rtol=1e-6)


def test_intensity_learns_a_map_that_runs_backwards_and_the_histogram_does_not():
    train, (source, target, foreground) = [subject(i) for i in range(4)], subject(9)
    floors = fit_floors(train)

    def mae(p):
        return np.abs(p - target)[foreground].mean()

    assert mae(floors.intensity(source, foreground)) < 0.01
    assert mae(floors.histogram(source, foreground)) > 0.3


def test_histogram_is_monotone_and_gives_the_pooled_histogram():
    floors = fit_floors([subject(i) for i in range(4)])
    pooled = np.concatenate([t[f] for _, t, f in (subject(i) for i in range(4))])
    source, _, foreground = subject(9)
    predicted = floors.histogram(source, foreground)[foreground]
    order = np.argsort(source[foreground])
    assert (np.diff(predicted[order]) >= 0).all()
    steps = np.linspace(0.02, 0.98, 25)
    np.testing.assert_allclose(np.quantile(predicted, steps), np.quantile(pooled, steps), atol=0.01)


def test_histogram_maps_equal_values_to_equal_values():
    floors = fit_floors([subject(0)])
    source = np.array([0.2, 0.2, 0.7, 0.7, 0.7, 0.9], np.float32).reshape(1, 2, 3)
    mapped = floors.histogram(source, np.ones((1, 2, 3), bool)).ravel()
    assert mapped[0] == mapped[1] < mapped[2] == mapped[3] == mapped[4] < mapped[5]


@pytest.mark.parametrize("name", ["histogram", "intensity"])
def test_background_stays_zero_and_changes_nothing(name):
    floors = fit_floors([subject(0)])
    source, _, foreground = subject(1)
    predicted = getattr(floors, name)(source, foreground)
    assert predicted.dtype == np.float32
    assert (predicted[~foreground] == 0).all()
    elsewhere = np.where(foreground, source, 0.99).astype(np.float32)
    np.testing.assert_array_equal(getattr(floors, name)(elsewhere, foreground), predicted)
    assert (getattr(floors, name)(source, np.zeros_like(foreground)) == 0).all()


def test_subjects_are_pooled_voxel_by_voxel_in_any_order():
    pairs = [subject(i) for i in range(3)]
    whole = tuple(np.concatenate([pair[k] for pair in pairs]) for k in range(3))
    at_once, one_by_one, reverse = fit_floors([whole]), fit_floors(pairs), fit_floors(pairs[::-1])
    for floors in (one_by_one, reverse):
        np.testing.assert_allclose(floors.expected, at_once.expected, rtol=1e-12)
        assert floors.quantiles == at_once.quantiles


def test_bins_without_training_voxels_are_interpolated():
    source = np.array([0.0, 1.0], np.float32).reshape(1, 1, 2)
    target = np.array([0.8, 0.2], np.float32).reshape(1, 1, 2)
    expected = fit_floors([(source, target, np.ones((1, 1, 2), bool))]).expected
    np.testing.assert_allclose(expected, np.linspace(0.8, 0.2, SOURCE_BINS), rtol=1e-6)


def test_floors_survive_json():
    floors = fit_floors([subject(0)])
    assert Floors.from_json(json.loads(json.dumps(floors.to_json()))) == floors


@pytest.mark.parametrize("stored", [{}, {"quantiles": [0, 1], "expected": [0, float("nan")]}, {"quantiles": 3}])
def test_a_damaged_file_is_a_users_error(stored):
    with pytest.raises(UserError, match="floors"):
        Floors.from_json(stored)


def test_an_empty_cohort_is_a_users_error():
    source, target, foreground = subject(0)
    with pytest.raises(UserError, match="no foreground"):
        fit_floors([(source, target, np.zeros_like(foreground))])
    with pytest.raises(UserError, match="no foreground"):
        fit_floors([])
