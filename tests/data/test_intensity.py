"""Laws of scales: exact inside the window, clipped and counted outside."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanbridge.data.cohort import ImageSpec
from scanbridge.data.intensity import Scale, amplified, gain_to, median_of, scale_of
from scanbridge.errors import UserError


@given(low=st.floats(-2000, 2000), width=st.floats(0.1, 5000), share=st.lists(st.floats(0, 1), min_size=1))
def test_decode_undoes_encode_inside_the_window(low, width, share):
    scale = Scale(low, low + width, "HU")
    values = (low + width * np.array(share)).astype(np.float32)
    values = values.clip(np.float32(low), np.float32(low + width))
    assert np.allclose(scale.decode(scale.encode(values)), values, rtol=1e-6, atol=1e-6 * width + 1e-6 * abs(low))


@given(st.floats(-1e6, 1e6))
def test_encoded_values_stay_in_the_unit_box_and_keep_their_order(value):
    scale = Scale(-1000, 1000, "HU")
    encoded = scale.encode(np.array([-1000, value, 1000]))
    assert encoded.dtype == np.float32
    assert encoded[0] == -1
    assert encoded[2] == 1
    assert encoded[1] == pytest.approx(np.clip(value / 1000, -1, 1), abs=1e-6)


def test_the_clipped_share_counts_what_decode_cannot_bring_back():
    scale = Scale(0, 10, "1")
    values = np.array([-1.0, 0, 5, 10, 11, 12])
    lost = np.abs(scale.decode(scale.encode(values)) - values) > 1e-5
    assert scale.clipped_share(values) == lost.mean() == 0.5
    assert scale.clipped_share(np.array([])) == 0
    assert scale.range == 10


def test_fixed_scales_ignore_the_image_and_percentiles_ignore_the_background():
    data = np.random.default_rng(0).normal(100, 10, (20, 20, 20))
    body = np.zeros(data.shape, dtype=bool)
    body[5:15] = True
    assert scale_of(ImageSpec("ct"), data, body) == Scale(-1000, 1000, "HU")
    assert scale_of(ImageSpec("ct", window=(-200.0, 300.0)), data, body) == Scale(-200, 300, "HU")
    assert scale_of(ImageSpec("pet"), data, body) == Scale(0, 15, "SUV")
    assert scale_of(ImageSpec("pet", ceiling=8.0), data, body) == Scale(0, 8, "SUV")
    for kind in ("mr", "other"):
        own = scale_of(ImageSpec(kind), data, body)
        other_background = np.where(body, data, -5000)
        assert scale_of(ImageSpec(kind), other_background, body) == own
        assert own.clipped_share(data[body]) == pytest.approx(0.01, abs=0.001)
        assert own.unit == "1"


def test_a_scale_follows_a_change_of_gain_and_offset():
    data = np.random.default_rng(0).gamma(2, 50, (15, 15, 15))
    body = data > 20
    one, other = (scale_of(ImageSpec("mr"), values, body) for values in (data, 3 * data + 7))
    assert np.allclose(one.encode(data), other.encode(3 * data + 7), atol=1e-6)


@pytest.mark.parametrize("kind", ["mr", "ct", "pet", "other"])
def test_an_empty_foreground_is_refused(kind):
    data = np.ones((3, 3, 3))
    with pytest.raises(UserError, match="empty"):
        scale_of(ImageSpec(kind), data, data > 2)


def test_a_constant_image_is_refused_where_percentiles_are_taken():
    data = np.full((3, 3, 3), 7.0)
    with pytest.raises(UserError, match=r"constant in its foreground \(7\)"):
        scale_of(ImageSpec("mr"), data, data > 2)


def test_a_gain_brings_the_median_where_it_is_wanted_and_leaves_what_is_there():
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 0.2, (8, 9, 10)).astype(np.float32)
    body = image > -0.9
    assert gain_to(median_of(image, body), image, body) == 1.0
    assert np.array_equal(amplified(image, 1.0), image)
    moved = amplified(image, gain_to(0.45, image, body))
    assert median_of(moved, body) == pytest.approx(0.45, abs=1e-6)
    assert (moved == -1).sum() == (image == -1).sum()
    assert np.abs(moved).max() <= 1


def test_a_gain_stays_within_a_factor_of_two():
    body = np.ones((2, 2, 2), bool)
    dark, black = np.full(body.shape, -0.99, np.float32), np.full(body.shape, -1.0, np.float32)
    assert gain_to(0.7, dark, body) == 2.0
    assert gain_to(0.7, black, body) == 1.0
    assert gain_to(0.001, -dark, body) == 0.5
