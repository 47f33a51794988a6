"""Laws of the foreground: it is where the patient is, whatever lies around."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from scanbridge.data.foreground import foreground

SHAPE = (30, 26, 28)
LEVELS = {"ct": (40, -1000), "pet": (2, 0), "mr": (300, 0), "other": (-300, 0)}  # in the body and around it


def ball(radius: float, centre: tuple[float, ...] = (15, 13, 14)) -> np.ndarray:
    at = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    return ((at - centre) ** 2).sum(-1) <= radius**2


def body(kind: str, *, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A ball with a hollow in it and a table beside it; the noise of an MR scanner that was not stripped."""
    inside, background = LEVELS[kind]
    rng = np.random.default_rng(0)
    truth = ball(10)
    data = np.where(truth & ~ball(4), inside * rng.uniform(0.6, 1.4, SHAPE), background)
    data[:, 1, 2:5] = inside
    if noise:
        data = data + noise * abs(inside) * np.abs(rng.normal(size=SHAPE))
    return data.astype(np.float32), truth


CASES = [("ct", 0), ("pet", 0), ("mr", 0), ("mr", 0.05), ("other", 0), ("other", -0.05)]
WITHOUT_NOISE = [kind for kind, noise in CASES if not noise]


def within_a_voxel(mask: np.ndarray, truth: np.ndarray) -> bool:
    """Noise is smoothed by one voxel: so far may the rim move."""
    around = np.ones((3, 3, 3))
    inner, outer = ndimage.binary_erosion(truth, around), ndimage.binary_dilation(truth, around)
    return bool((inner <= mask).all() and (mask <= outer).all())


@pytest.mark.parametrize("kind", WITHOUT_NOISE)
def test_it_is_the_largest_piece_with_its_holes_filled(kind):
    data, truth = body(kind)
    assert np.array_equal(foreground(data, kind), truth)


@pytest.mark.parametrize("noise", [0.01, 0.02, 0.05, 0.1, 0.2])
def test_air_with_noise_is_no_patient(noise):
    for kind, sign in (("mr", 1), ("other", -1)):
        data, truth = body(kind, noise=sign * noise)
        assert within_a_voxel(foreground(data, kind), truth)


def test_dim_tissue_beside_bright_tissue_is_patient_too():
    """As in an MR with fat suppressed: most of a breast is a tenth as bright as the gland in it."""
    rng = np.random.default_rng(0)
    truth, gland = ball(10), ball(4)
    data = np.where(gland, 300, np.where(truth, 60, 0)) + 10 * np.abs(rng.normal(size=SHAPE))
    assert within_a_voxel(foreground(data.astype(np.float32), "mr"), truth)


@settings(max_examples=40, deadline=None)
@given(case=st.sampled_from(CASES), widths=st.tuples(*[st.tuples(st.integers(0, 9), st.integers(0, 9))] * 3))
def test_padding_with_background_leaves_the_same_voxels(case, widths):
    kind, noise = case
    data, _ = body(kind, noise=noise)
    padded = np.pad(data, widths, constant_values=-1000 if kind == "ct" else 0)
    assert np.array_equal(foreground(padded, kind), np.pad(foreground(data, kind), widths))


@pytest.mark.parametrize(("kind", "noise"), CASES)
def test_the_order_of_axes_changes_nothing(kind, noise):
    data, _ = body(kind, noise=noise)
    mask = foreground(data, kind)
    for axes in itertools.permutations(range(3)):
        assert np.array_equal(
            foreground(data.transpose(axes)[::-1, :, ::-1], kind), mask.transpose(axes)[::-1, :, ::-1]
        )


@pytest.mark.parametrize("gain", [2.0**-10, 2.0**13])
def test_the_gain_of_a_scanner_changes_nothing(gain):
    for noise in (0, 0.05):
        data, _ = body("mr", noise=noise)
        assert np.array_equal(foreground(data * np.float32(gain), "mr"), foreground(data, "mr"))


def test_a_few_very_bright_voxels_change_nothing():
    data, truth = body("mr", noise=0.05)
    data[15, 13, 14:16] = 1e6
    assert within_a_voxel(foreground(data, "mr"), truth)


def test_filling_agrees_with_growing_the_outside():
    rng = np.random.default_rng(0)
    for _ in range(20):
        data = ndimage.gaussian_filter(rng.normal(size=(20, 21, 22)), 1.2).astype(np.float32)
        pieces, _ = ndimage.label(data > 0.1)
        largest = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
        assert np.array_equal(foreground(data, "pet"), ndimage.binary_fill_holes(largest))


@pytest.mark.parametrize(("kind", "value"), [("ct", -1000), ("pet", 0), ("mr", 0), ("mr", 5), ("other", -5)])
def test_nothing_stands_out_of_a_constant_image(kind, value):
    assert not foreground(np.full((6, 7, 8), value, dtype=np.float32), kind).any()


def test_two_voxels_are_no_patient():
    assert not foreground(np.array([[[3.0, 5.0]]], dtype=np.float32), "mr").any()
