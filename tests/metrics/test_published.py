import math

import numpy as np
import pytest
from scipy.signal import fftconvolve

from scanbridge.metrics.published import _halved, _weighted_ssim, ct2mri, resdm, synthrad2025


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    target = rng.uniform(size=(9, 8, 7))
    return np.clip(target + rng.normal(0, 0.05, target.shape), 0, 1), target


def test_ct2mri_divides_by_the_predictions_own_range():
    target = np.zeros((7, 7, 7))
    prediction = target.copy()
    prediction[0] = 0.5
    rmse = math.sqrt(0.25 / 7)
    found = ct2mri(prediction, target)
    assert found["nrmse"] == pytest.approx(rmse / 0.5)
    assert found["psnr"] == pytest.approx(-20 * math.log10(rmse))


def test_ct2mri_counts_the_background(pair):
    padded = (np.pad(image, 8) for image in pair)
    assert ct2mri(*padded)["psnr"] > ct2mri(*pair)["psnr"] + 3


def test_ssim_of_flat_volumes_by_hand():
    a, b = 0.5, 0.7
    for measure, c1 in ((ct2mri, 0.01**2), (resdm, 0.02**2)):
        found = measure(np.full((7, 7, 7), a), np.full((7, 7, 7), b))
        assert found["ssim"] == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1))


def test_resdm_gains_six_decibels_from_one_negative_voxel(pair):
    prediction, target = pair
    prediction[0, 0, 0] = target[0, 0, 0] = 0.0
    before = resdm(prediction, target)["psnr"]
    target[0, 0, 0] = -1e-9
    assert resdm(prediction, target)["psnr"] - before == pytest.approx(20 * math.log10(2), abs=1e-4)


def test_resdm_is_kinder_than_ct2mri_by_its_range(pair):
    assert resdm(*pair)["ssim"] > ct2mri(*pair)["ssim"]


def test_synthrad_of_an_offset_by_hand():
    target = np.full((20, 21, 22), 100.0)
    mask = np.zeros(target.shape, bool)
    mask[2:-2, 2:-2, 2:-2] = True
    found = synthrad2025(np.where(mask, target + 129.5, -5000), target, mask)
    assert found["mae"] == pytest.approx(129.5)
    assert found["psnr"] == pytest.approx(30.0, abs=0.005)


def test_synthrad_clips_for_psnr_and_not_for_mae():
    target = np.full((20, 20, 20), 3071.0)
    everywhere = np.ones(target.shape, bool)
    found = synthrad2025(target + 1000, target, everywhere)
    assert found["mae"] == pytest.approx(1000)
    assert found["psnr"] == math.inf
    assert found["ms_ssim"] == pytest.approx(1)


@pytest.mark.parametrize("weight", [1.0, 0.2856])
def test_a_level_of_flat_volumes_by_hand(weight):
    """Nothing but luminance is lost, to the power of the level's weight."""
    a, b, c1 = 1524.0, 2024.0, (0.01 * 4095) ** 2
    flat = np.ones((9, 9, 9))
    expected = ((2 * a * b + c1) / (a * a + b * b + c1)) ** weight
    np.testing.assert_allclose(_weighted_ssim(a * flat, b * flat, weight, 4095.0), expected, rtol=1e-7)


def test_ms_ssim_falls_with_noise_and_is_one_for_the_truth():
    rng = np.random.default_rng(0)
    target = rng.normal(0, 300, (24, 30, 26))
    mask = np.zeros(target.shape, bool)
    mask[4:-4, 4:-4, 4:-4] = True
    scores = [synthrad2025(target + rng.normal(0, sd, target.shape), target, mask)["ms_ssim"] for sd in (0, 50, 200)]
    assert scores[0] == pytest.approx(1)
    assert scores[0] > scores[1] > scores[2] > 0


def test_halving_is_the_box_filter_of_the_released_code():
    image = np.random.default_rng(0).uniform(size=(9, 10, 11))
    np.testing.assert_allclose(
        _halved(image), fftconvolve(image, np.ones((2, 2, 2)) / 8, mode="same")[::2, ::2, ::2], atol=1e-12
    )


def test_a_mask_that_vanishes_when_halved_has_no_ms_ssim():
    target = np.zeros((97, 97, 97))
    mask = np.zeros(target.shape, bool)
    mask[49, 49, 49] = True  # odd: gone at the second level
    assert synthrad2025(target, target, mask)["ms_ssim"] is None
    with pytest.raises(ValueError, match="empty"):
        synthrad2025(target, target, np.zeros_like(mask))
