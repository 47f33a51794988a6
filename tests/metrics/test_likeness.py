"""Laws of the input warning: what does not matter changes nothing, what does raises it, and it is rarely false."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import binom

from scanbridge.metrics.likeness import FEATURES, LOCAL, Feature, describe, describe_parts, fit_reference
from small import brain

SPACING = (2.0, 2.0, 2.0)


def scan(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a source in [-1, 1] and its foreground, (24, 32, 32)."""
    flair = np.moveaxis(brain(seed)["flair"], 2, 0)
    head = flair > 0
    low, high = np.percentile(flair[head], [0.5, 99.5])
    return np.clip(2 * (flair - low) / (high - low) - 1, -1, 1).astype(np.float32), head


def noisy(source: np.ndarray, share: float) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(source.shape, dtype=np.float32)
    return np.clip(source + 2 * share * noise, -1, 1)


@pytest.fixture(scope="module")
def reference():
    """Six people."""
    scans = [scan(seed) for seed in range(1, 7)]
    return fit_reference([[describe(*each, SPACING)] for each in scans], [describe_parts(*each) for each in scans])


def test_a_scan_of_the_training_is_within_the_limit(reference):
    assert all(reference.distance(describe(*scan(seed), SPACING)) < reference.limit for seed in range(1, 7))
    assert reference.largest <= reference.limit


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mirrored_scan_is_as_far(axis):
    source, head = scan(3)
    turned = describe(np.flip(source, axis), np.flip(head, axis), SPACING)
    assert turned == pytest.approx(describe(source, head, SPACING), rel=1e-4, abs=1e-4)


def test_neither_padding_nor_what_lies_outside_the_foreground_counts():
    source, head = scan(3)
    room = [(3, 1), (0, 4), (2, 2)]
    padded = np.pad(source, room, constant_values=0.7)
    assert describe(padded, np.pad(head, room), SPACING) == describe(source, head, SPACING)


def test_the_noise_level_is_that_of_the_noise():
    smooth = gaussian_filter(np.random.default_rng(1).standard_normal((40, 40, 40)), 6)
    body = np.ones(smooth.shape, np.bool_)
    found = describe(
        0.3 * smooth / smooth.std() + 2 * 0.04 * np.random.default_rng(2).standard_normal(smooth.shape), body, SPACING
    )
    assert np.exp(found["noise"]) == pytest.approx(0.04, rel=0.05)


def test_roughness_is_one_minus_the_autocorrelation():
    rng, rho = np.random.default_rng(0), 0.8
    line = [rng.standard_normal((60, 60))]
    for _ in range(99):
        line.append(rho * line[-1] + np.sqrt(1 - rho**2) * rng.standard_normal((60, 60)))
    found = describe(0.2 * np.stack(line), np.ones((100, 60, 60), np.bool_), SPACING)
    roughness = {name: np.exp(value) for name, value in found.items() if name.startswith("roughness")}
    expected = {"roughness_0_1": 1 - rho, "roughness_0_2": 1 - rho**2} | {
        f"roughness_{axis}_{lag}": 1.0 for axis in (1, 2) for lag in (1, 2)
    }
    assert roughness == pytest.approx(expected, rel=0.03, abs=2e-3)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda source: noisy(source, 0.1), "noise level"),
        (lambda source: 2 * ((source + 1) / 2) ** 0.3 - 1, "contrast"),
        (lambda source: gaussian_filter(source, 1.5), "noise level"),
    ],
)
def test_a_planted_shift_is_found_and_named(reference, change, word):
    source, head = scan(9)
    assert reference.distance(describe(source, head, SPACING)) < reference.limit
    shifted = describe(change(source), head, SPACING)
    assert reference.distance(shifted) > reference.limit
    assert word in reference.drivers(shifted, most=len(FEATURES))


def test_more_noise_is_further_away(reference):
    source, head = scan(9)
    far = [reference.distance(describe(noisy(source, share), head, SPACING)) for share in (0.05, 0.1, 0.2)]
    assert far == sorted(far)
    assert far[-1] > reference.limit


@pytest.mark.parametrize("shape", [(1, 9, 9), (2, 2, 2), (1, 1, 1), (5, 1, 3)])
def test_a_scan_of_any_size_has_numbers(shape):
    for source in (np.full(shape, -1.0), np.linspace(-1, 1, np.prod(shape)).reshape(shape)):
        found = describe(source, np.ones(shape, np.bool_), SPACING)
        assert found.keys() == FEATURES.keys()
        assert np.isfinite(list(found.values())).all()


NAMES = [f"f{i}" for i in range(12)]
KNOWN = {name: Feature("f", 1.0) for name in NAMES}


def people(rng: np.random.Generator, n: int, *, heavy: bool = False) -> list[list[dict[str, float]]]:
    """Draw exchangeable people by features alone: correlated, of unequal spread, with heavy tails where asked."""
    values = rng.standard_t(3, (n, 12)) if heavy else rng.standard_normal((n, 12))
    values = (values + values[:, :1]) * np.geomspace(0.3, 1, 12)
    return [[dict(zip(NAMES, map(float, row), strict=True))] for row in values]


def false_alarms(n: int, *, heavy: bool, repeats: int = 400) -> int:
    rng = np.random.default_rng(n)
    alarms = 0
    for _ in range(repeats):
        *others, (new,) = people(rng, n + 1, heavy=heavy)
        reference = fit_reference(others, [[] for _ in others], features=KNOWN)
        alarms += reference.distance(new) > reference.limit
    return alarms


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("n", [19, 39])
def test_of_exchangeable_people_one_in_twenty_alarms_whatever_their_law(n, heavy):
    alarms = false_alarms(n, heavy=heavy)
    assert binom.ppf(0.001, 400, 0.05) <= alarms <= binom.ppf(0.999, 400, 0.05)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_people_alarm_no_more_often_where_people_differ_as_is_typical(n):
    assert false_alarms(n, heavy=False) <= binom.ppf(0.999, 400, 0.05)


def test_the_limit_widens_with_fewer_people():
    limits = [fit_reference(people(np.random.default_rng(0), n), [[]] * n, features=KNOWN).limit for n in (1, 2, 5, 15)]
    assert limits == sorted(limits, reverse=True)


def test_the_spread_is_shrunk_towards_the_typical_one_and_widened_by_parts():
    two, many = ([[{"a": float(v)}] for v in np.resize([-0.1, 0.1], n)] for n in (2, 2000))
    typical = {"a": Feature("a", 1.0)}
    close, far = (fit_reference(each, [[]] * len(each), features=typical).spread["a"] for each in (two, many))
    assert close > 0.9
    assert far == pytest.approx(0.1, rel=0.25)
    parts = [[{"a": -2.0}, {"a": 2.0}]] * 2
    assert fit_reference(two, parts, features=typical).spread["a"] > 2 * close


def test_visits_of_one_person_are_no_evidence_of_the_spread_between_people():
    once = [[{"a": 0.0}], [{"a": 1.0}]]
    often = [visits * 10 for visits in once]
    typical = {"a": Feature("a", 1.0)}
    assert fit_reference(often, [[]] * 2, features=typical) == fit_reference(once, [[]] * 2, features=typical)


def test_a_method_may_add_a_score_of_its_own(reference):
    scores = FEATURES | {"reconstruction": Feature("reconstruction", 0.2)}
    scans = [scan(seed) for seed in (1, 2)]
    described = [[describe(*each, SPACING) | {"reconstruction": -3.0}] for each in scans]
    made = fit_reference(described, [describe_parts(*each) for each in scans], features=scores)
    wrong = described[0][0] | {"reconstruction": 0.0}
    assert made.distance(wrong) > made.limit
    assert made.drivers(wrong) == ["reconstruction"]


def test_parts_say_what_can_be_said_of_parts():
    parts = describe_parts(*scan(1))
    assert len(parts) == 8
    assert all(part.keys() == LOCAL.keys() for part in parts)
