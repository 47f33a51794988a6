"""Laws of draws: what a perfect sampler scores, and that memory does not grow with the number of draws."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from scanbridge.metrics.draws import SURROUND, Moments, contrast, grain, rim_of, spread_ratio
from scanbridge.metrics.image import psnr

SHAPE = (24, 24, 24)
ALL = np.ones(SHAPE, bool)


def gaussian(
    seed: int, n: int, *, spread: float = 1.0, shape: tuple[int, ...] = SHAPE
) -> tuple[np.ndarray, np.ndarray]:
    """Give a truth and n draws of the same law N(mean, 0.1^2) a voxel: an oracle where `spread` is 1."""
    rng = np.random.default_rng(seed)
    mean = rng.uniform(0.3, 0.7, shape)
    truth, *draws = (mean + 0.1 * scale * rng.normal(size=shape) for scale in (1.0, *[spread] * n))
    return truth.astype(np.float32), np.asarray(draws, np.float32)


def moments_of(draws: np.ndarray) -> Moments:
    moments = Moments()
    for draw in draws:
        moments.add(draw)
    return moments


@pytest.mark.parametrize(("n", "due"), [(2, 1.25), (8, 2.50), (128, 2.98)])
def test_the_mean_of_k_perfect_draws_wins_three_db_as_k_grows(n, due):
    truth, draws = gaussian(0, n)
    one, mean = (psnr(each, truth, ALL, data_range=1.0) for each in (draws[0], moments_of(draws).mean))
    assert due == pytest.approx(10 * math.log10(2 / (1 + 1 / n)), abs=0.01)
    assert mean - one == pytest.approx(due, abs=0.15)


@pytest.mark.parametrize("n", [2, 3, 16])
@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
def test_spread_over_error_is_one_for_an_oracle_and_tells_draws_that_are_too_alike(n, spread):
    truth, draws = gaussian(1, n, spread=spread)
    moments = moments_of(draws)
    found = spread_ratio(moments.mean - truth, moments.spread, ALL, n)
    # error of the mean: the truth's own variance 1 and that of K draws; spread^2 (1 + 1/K) over 1 + spread^2 / K
    assert found == pytest.approx(math.sqrt(spread**2 * (1 + 1 / n) / (1 + spread**2 / n)), rel=0.03)
    if spread == 1:
        assert found == pytest.approx(1, rel=0.03)


def test_a_ratio_is_of_its_region_alone_and_has_no_unit():
    truth, draws = gaussian(2, 4)
    moments = moments_of(draws)
    error, spread = moments.mean - truth, moments.spread
    half = ALL.copy()
    half[12:] = False
    wrong = np.where(half, error, 100.0).astype(np.float32)
    assert spread_ratio(wrong, spread, half, 4) == spread_ratio(error, spread, half, 4)
    assert spread_ratio(error * 2000, spread * 2000, ALL, 4) == pytest.approx(
        spread_ratio(error, spread, ALL, 4), rel=1e-6
    )
    assert spread_ratio(error, spread, ~ALL, 4) is None
    assert spread_ratio(error * 0, spread, ALL, 4) is None


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_moments_that_stream_are_those_of_the_whole_stack(offset):
    draws = gaussian(3, 7)[1] + np.float32(offset)
    moments = moments_of(draws)
    whole = draws.astype(np.float64)
    assert moments.n == 7
    np.testing.assert_allclose(moments.mean, whole.mean(0), rtol=1e-6)
    np.testing.assert_allclose(moments.spread, whole.std(0, ddof=1), rtol=1e-5)


def test_moments_need_no_more_memory_for_more_draws():
    def peak(n: int) -> int:
        rng = np.random.default_rng(0)
        tracemalloc.start()
        moments = Moments()
        for _ in range(n):
            moments.add(rng.normal(size=(32, 32, 32)).astype(np.float32))
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held

    peak(1)
    assert peak(24) < 1.05 * peak(3)


def test_one_volume_has_no_spread():
    with pytest.raises(ValueError, match="no spread"):
        _ = moments_of(gaussian(4, 1)[1]).spread


def lesion() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[8:12, 8:12, 8:12] = True
    return mask


def test_contrast_is_inside_minus_rim_and_knows_nothing_further_away():
    mask = lesion()
    image = np.full(SHAPE, 7.0, np.float32)
    rim = rim_of(mask, ALL)
    assert not (rim & mask).any()
    assert rim[8, 8, 12:15].all()
    assert not rim[8, 8, 15]  # the rim is three voxels wide
    image[mask], image[rim] = 5.0, 2.0
    measured = contrast(mask, ALL)
    assert measured(image) == 3.0
    image[~mask & ~rim] = 1e6
    assert measured(image) == 3.0
    assert measured(image + 4) == measured(image)
    assert measured(2 * image) == 2 * measured(image)


def test_contrast_is_linear_so_the_mean_of_draws_has_the_mean_contrast():
    draws, measured = gaussian(5, 6)[1], contrast(lesion(), ALL)
    assert measured(moments_of(draws).mean) == pytest.approx(np.mean([measured(draw) for draw in draws]), abs=1e-6)


def test_a_rim_stays_within_the_body_and_out_of_other_lesions():
    mask, body = lesion(), ALL.copy()
    mask[8:12, 8:12, 14:18] = True
    body[:8] = False
    rim = rim_of(mask, body)
    assert not (rim & ~body).any()
    assert not (rim & mask).any()
    assert contrast(~ALL, ALL)(gaussian(6, 1)[0]) is None
    assert contrast(mask, mask)(gaussian(6, 1)[0]) is None


def head(side: int = 48) -> np.ndarray:
    """Give a ball in the middle of a volume, with room around it."""
    at = np.indices((side, side, side)) - (side - 1) / 2
    return np.asarray((at**2).sum(axis=0) < (side / 5) ** 2)


def test_grain_is_the_noise_around_the_body_as_a_share_of_the_detail_inside():
    body, rng = head(), np.random.default_rng(6)
    truth = np.where(body, 0.1 * rng.normal(size=body.shape), 0.0)
    measured = grain(body, truth)
    assert measured(truth) < 1e-3
    noise = rng.normal(size=body.shape)
    for share in (0.1, 0.5):
        assert measured(truth + 0.1 * share * noise) == pytest.approx(share, rel=0.05)
    smooth = np.broadcast_to(np.linspace(0, 1, len(body)), body.shape)
    assert measured(truth + smooth) < 0.01  # brightness is not grain
    assert grain(body, 7 * truth)(7 * noise) == pytest.approx(measured(noise))


@pytest.mark.parametrize(("away", "counts"), [(1, False), (SURROUND[0] + 2, True), (SURROUND[1] + 4, False)])
def test_grain_is_measured_where_the_edge_of_the_body_has_faded_and_not_far_away(away, counts):
    body = head()
    grown = body if away == 1 else body | rim_of(body, ~body, width=away - 1)
    shell = rim_of(grown, ~grown, width=1)
    measured = grain(body, np.random.default_rng(7).normal(size=body.shape))
    assert (measured(shell.astype(np.float32)) > 0.01) == counts


def test_without_a_surround_or_detail_there_is_no_grain():
    assert grain(ALL, gaussian(8, 1)[0])(gaussian(8, 1)[0]) is None
    assert grain(head(), np.ones((48, 48, 48)))(np.ones((48, 48, 48))) is None
