import numpy as np
import pytest

from scanbridge.metrics.slices import slice_shape, slice_style

EVERYWHERE = np.ones((4, 3, 2), bool)


def test_style_is_the_spread_of_the_slices_means():
    error = np.zeros((4, 3, 2))
    error[:] = np.array([1.0, -1.0, 1.0, -1.0])[:, None, None]
    assert slice_style(error, EVERYWHERE, 0) == 1.0
    assert slice_style(error, EVERYWHERE, 1) == 0.0
    assert slice_style(error, EVERYWHERE, 2) == 0.0


def test_style_weighs_slices_and_not_voxels():
    error = np.zeros((4, 3, 2))
    error[0] = 2.0
    region = EVERYWHERE.copy()
    region[0, 1:] = False
    assert slice_style(error, region, 0) == pytest.approx(np.std([2, 0, 0, 0]))


def test_shape_is_the_errors_change_over_the_truths_own():
    ramp = np.arange(4.0)[:, None, None] * np.ones((4, 3, 2))
    stripes = 0.25 * (np.arange(4) % 2)[:, None, None] * np.ones((4, 3, 2))
    assert slice_shape(stripes, ramp, EVERYWHERE, 0) == 0.25
    assert slice_shape(ramp, ramp, EVERYWHERE, 0) == 1.0
    assert slice_shape(stripes, ramp, EVERYWHERE, 1) is None  # the truth does not change along that axis


def test_pairs_across_the_regions_edge_do_not_count():
    truth = np.arange(4.0)[:, None, None] * np.ones((4, 3, 2))
    error = np.zeros((4, 3, 2))
    error[3] = 100.0
    region = EVERYWHERE.copy()
    region[3] = False
    assert slice_shape(error, truth, region, 0) == 0.0
    assert slice_style(error, region, 0) == 0.0


def test_one_slice_has_neither():
    region = np.zeros((4, 3, 2), bool)
    region[1] = True
    image = np.random.default_rng(0).normal(size=(4, 3, 2))
    assert slice_style(image, region, 0) is None
    assert slice_shape(image, image, region, 0) is None
