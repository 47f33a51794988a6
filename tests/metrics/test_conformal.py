"""Laws of the promise, on simulated patients whose errors are known: what is promised holds, what breaks it shows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanbridge.errors import UserError
from scanbridge.metrics.conformal import RUNGS, Monotone, Promise, fit_monotone, ladder, miss_share, worst

VOXELS = 500
MISS, PATIENTS = 0.1, 0.9


def errors(rng: np.random.Generator, n: int, noise: float = 1.0) -> np.ndarray:
    """Draw the errors of n patients, (n, VOXELS): some patients are harder than others."""
    return noise * np.exp(0.4 * rng.normal(size=(n, 1))) * rng.normal(size=(n, VOXELS))


def missed(error: np.ndarray, factor: float) -> np.ndarray:
    return (np.abs(error) > factor).mean(axis=-1)


def repeated(n: int, times: int, factor, noise: float = 1.0) -> np.ndarray:
    """Give the share that a new patient misses, each time after a calibration on n others."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(times):
        calibration, new = errors(rng, n), errors(rng, 1, noise)[0]
        found.append(missed(new, factor(calibration)))
    return np.array(found)


def ours(calibration: np.ndarray, control: str = "quantile") -> float:
    return Promise(control, MISS, PATIENTS).factor([ladder(error, 1.0) for error in calibration])


def pooled(calibration: np.ndarray) -> float:
    """What not to do: take voxels for patients."""
    return float(np.quantile(np.abs(calibration), 1 - MISS))


@pytest.mark.parametrize(("n", "mean", "failing"), [(10, 0.029, 0.08), (20, 0.029, 0.09)])
def test_our_promise_holds_for_nine_patients_of_ten(n, mean, failing):
    found = repeated(n, 400, ours)
    assert found.mean() == pytest.approx(mean, abs=0.01)
    assert (found > MISS).mean() == pytest.approx(failing, abs=0.045)


@pytest.mark.parametrize(("n", "failing"), [(10, 0.40), (50, 0.35)])
def test_pooling_voxels_fails_a_third_of_the_patients(n, failing):
    found = repeated(n, 400, pooled)
    assert found.mean() == pytest.approx(0.1, abs=0.02)
    assert (found > MISS).mean() == pytest.approx(failing, abs=0.08)


@pytest.mark.parametrize(("n", "mean"), [(10, 0.015), (20, 0.055), (50, 0.077)])
def test_risk_control_keeps_the_mean_and_nothing_else(n, mean):
    found = repeated(n, 200, lambda calibration: ours(calibration, "risk"))
    assert found.mean() == pytest.approx(mean, abs=0.015)
    assert found.mean() <= MISS


@pytest.mark.parametrize(("n", "patients"), [(9, 0.9), (4, 0.8), (19, 0.8)])
def test_the_guarantee_is_exact_over_500_calibrations(n, patients):
    promise = Promise("quantile", MISS, patients)
    found = repeated(n, 500, lambda cal: promise.factor([ladder(error, 1.0) for error in cal]))
    kept, exact = (found <= MISS).mean(), math.ceil((n + 1) * patients - 1e-9) / (n + 1)
    assert abs(kept - exact) < 3 * math.sqrt(exact * (1 - exact) / 500)


def test_choosing_the_signal_on_the_calibration_patients_breaks_the_promise():
    """Each of 20 signals guesses a width a patient; the one that fits nine patients best fits no tenth."""
    rng = np.random.default_rng(0)
    promise = Promise("quantile", MISS, PATIENTS)
    kept = {"planted": 0, "honest": 0}
    for _ in range(200):
        people = errors(rng, 19)
        widths = np.exp(0.6 * rng.normal(size=(20, 19)))  # signals x people
        needs = np.array([promise.needs(ladder(error, 1.0)) for error in people]) / widths
        val, calibration, new = slice(0, 9), slice(9, 18), 18
        for way, judges in {"planted": calibration, "honest": val}.items():
            # of nine patients the factor is the largest that one of them needs
            best = int(np.argmin(needs[:, judges].max(axis=1) * widths[:, judges].mean(axis=1)))
            factor = needs[best, calibration].max()
            kept[way] += missed(people[new], factor * widths[best, new]) <= MISS
    assert abs(kept["honest"] / 200 - 0.9) < 3 * math.sqrt(0.9 * 0.1 / 200)
    assert kept["planted"] / 200 < 0.8


def test_a_shift_shows_up_as_lost_coverage():
    found = repeated(10, 300, ours, noise=2.0)
    assert (found > MISS).mean() > 0.4


@pytest.mark.parametrize(
    ("promise", "needed", "less"),
    [
        (Promise("quantile", 0.1, 0.9), 9, "--patients 0.75"),
        (Promise("quantile", 0.1, 0.8), 4, "--patients 0.75"),
        (Promise("quantile", 0.1, 0.95), 19, "--patients 0.75"),
        (Promise("risk", 0.1), 9, "--miss 0.25"),
        (Promise("risk", 0.05), 19, "--miss 0.25"),
    ],
)
def test_too_few_patients_are_refused_with_what_they_could_carry(promise, needed, less):
    assert promise.needed == needed
    some = [np.linspace(0, 1, RUNGS) for _ in range(needed)]
    assert math.isfinite(promise.factor(some))
    with pytest.raises(UserError, match=f"{needed} at least"):
        promise.factor(some[:-1])
    with pytest.raises(UserError, match=less):
        promise.enough(3)
    name, share = less.removeprefix("--").split()
    assert Promise(promise.control, **{name: float(share)}).needed <= 3


@given(st.integers(1, 40), st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.sampled_from(["quantile", "risk"]))
def test_a_factor_is_finite_or_refused(n, miss, patients, control):
    promise = Promise(control, miss, patients)
    ladders = [np.full(RUNGS, float(i)) for i in range(n)]
    try:
        factor = promise.factor(ladders)
    except UserError:
        assert n < promise.needed
        return
    assert math.isfinite(factor)
    assert factor >= promise.plain_factor(ladders)
    assert math.isfinite(sum(map(promise.needs, ladders)))


@given(st.integers(1, 60), st.floats(0.001, 0.999), st.integers(0, 1000))
def test_a_patient_misses_no_more_than_asked_at_what_it_needs(n, miss, seed):
    rng = np.random.default_rng(seed)
    error, half = rng.normal(size=n), rng.uniform(0.1, 1, size=n)
    own = ladder(error, half)
    factor = Promise(miss=miss).needs(own)
    outside = np.abs(error) / half > factor
    assert outside.mean() <= miss_share(own, factor) <= miss + 1e-9
    assert outside.mean() >= miss_share(own, factor) - 1 / RUNGS - 1e-9


def test_of_two_visits_the_worse_counts_at_every_factor():
    rng = np.random.default_rng(0)
    visits = [ladder(rng.normal(size=700), 1.0), ladder(rng.standard_cauchy(size=300), 1.5)]
    both = worst(visits)
    for factor in (0.1, 0.7, 1.2, 3.0):
        assert miss_share(both, factor) == max(miss_share(visit, factor) for visit in visits)


def test_the_map_rises_through_the_errors_and_weighs_patients_alike():
    rng = np.random.default_rng(0)
    doubt = rng.uniform(0, 2, size=20_000)
    fitted = fit_monotone([doubt], [rng.normal(size=doubt.size) * (0.5 + doubt)], floor=1e-6)
    at = np.linspace(0.1, 1.9, 10)
    np.testing.assert_allclose(fitted(at), math.sqrt(2 / math.pi) * (0.5 + at), rtol=0.12)
    assert (np.diff(fitted.error) >= 0).all()
    large, small = np.full(9000, 1.0), np.full(100, 1.0)
    assert fit_monotone([large, small], [large * 1.0, small * 3.0], floor=1e-6)(np.ones(1)) == pytest.approx(2.0)


@pytest.mark.parametrize("doubts", [np.zeros(50), np.ones(50), np.repeat([0.0, 1.0], 25), np.arange(3.0)])
def test_a_map_of_equal_doubts_is_finite_and_never_0(doubts):
    fitted = fit_monotone([doubts], [np.zeros(doubts.size)], floor=0.01)
    found = fitted(np.array([0.0, 0.5, 1.0, 50.0]))
    assert np.isfinite(found).all()
    assert (found >= np.float32(0.01)).all()


def test_beyond_what_was_seen_the_map_goes_on_in_proportion():
    fitted = Monotone((1.0, 2.0), (1.0, 5.0), floor=0.1)
    np.testing.assert_allclose(fitted(np.array([0.0, 1.5, 2.0, 4.0])), [1, 3, 5, 10])


def test_without_knots_the_map_is_the_doubt_itself_above_the_floor():
    np.testing.assert_allclose(Monotone((), (), floor=0.1)(np.array([0.0, 0.05, 0.3])), [0.1, 0.1, 0.3])


def test_the_unit_of_a_signal_is_of_no_matter():
    rng = np.random.default_rng(0)
    doubt = rng.uniform(size=5000)
    error = rng.normal(size=5000) * doubt
    one = fit_monotone([doubt], [error], floor=1e-9)(doubt)
    other = fit_monotone([1000 * doubt], [error], floor=1e-9)(1000 * doubt)
    np.testing.assert_allclose(one, other, rtol=1e-4)


def test_the_sentence_says_what_is_promised():
    said = Promise("quantile", 0.1, 0.9).sentence(13)
    assert said == (
        "for a new patient from the same population, with probability at least 90 %, at most 10 % of the voxels in the "
        "foreground lie outside their interval (13 patients)"
    )
