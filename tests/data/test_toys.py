"""Laws of the toys: structure, zeros outside, and the law that is said."""

import numpy as np
import pytest

from scanbridge.data import toys


def test_a_toy_has_structure_and_zeros_outside():
    source, target, head = toys.toy_pair(np.random.default_rng(0), (16, 24, 24))
    assert source.shape == target.shape == head.shape == (16, 24, 24)
    assert (source[~head] == 0).all()
    assert (target[~head] == 0).all()
    assert np.corrcoef(source[head], target[head])[0, 1] < -0.5
    assert 0.2 < head.mean() < 0.8


def test_nothing_beats_the_known_best():
    pair = toys.toy_known(np.random.default_rng(0), (40, 40, 40))
    inside = pair["source"] != 0
    best = (pair["target"] - pair["best"])[inside]
    assert best.std() == pytest.approx(toys.TOY_SD, rel=0.03)
    curve = np.polynomial.Polynomial.fit(pair["source"][inside], pair["target"][inside], 9)
    assert (pair["target"][inside] - curve(pair["source"][inside])).std() > 1.1 * toys.TOY_SD


@pytest.mark.parametrize(("texture", "uneven"), [(0.0, False), (0.0, True), (1.0, False), (1.0, True)])
def test_the_residual_of_a_known_pair_has_the_sd_and_the_texture_that_are_said(texture, uneven):
    pair = toys.toy_known(np.random.default_rng(1), (48, 48, 48), texture=texture, uneven=uneven)
    inside = pair["sd"] > 0
    np.testing.assert_array_equal(inside, pair["source"] != 0)
    unit = np.where(inside, pair["target"] - pair["best"], 0) / np.where(inside, pair["sd"], 1)
    assert unit[inside].std() == pytest.approx(1, rel=0.05)
    due = np.exp(-1 / (4 * texture**2)) if texture else 0.0  # of neighbours, after a Gaussian of that width
    for axis in range(3):
        one, other = (np.moveaxis(unit, axis, 0)[part] for part in (slice(1, None), slice(None, -1)))
        both = np.moveaxis(inside, axis, 0)[1:] & np.moveaxis(inside, axis, 0)[:-1]
        assert (one * other)[both].mean() == pytest.approx(due, abs=0.05)
    assert np.ptp(pair["sd"][inside]) > 0.02 if uneven else np.ptp(pair["sd"][inside]) == 0
