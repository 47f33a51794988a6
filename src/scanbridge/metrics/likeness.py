"""Is a scan like those that a run was trained on? Plain numbers of it, and how far they lie from the others'.

A scan is described by the numbers of `FEATURES`. The *distance* is the largest deviation of any of them from the mean
of the training scans, in spreads. With few people their own spread says little, so it is shrunk towards what is known
without them: a typical spread between people, widened by how much the parts of one person differ. The *limit* is the
distance that a share `level` of new scans of the same kind passes (`fit_reference`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

Image = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float64]
Measured = Mapping[str, float]

QUANTILES = (5, 25, 50, 75, 95)
LEVEL = 0.05
PRIOR_PEOPLE = 10.0
"""How many people the typical spread is worth."""
WITHIN = 0.5
"""Share of the variance between the parts of a person that is added to that between people."""
FEWEST_VOXELS = 64
"""Of a part of a person that is measured by itself."""
_SMALL = 1e-3  # of the scale, about the rounding of float16
_NORMAL_MAD = 0.6745  # median absolute value of a standard normal
_KERNEL = 6.0**1.5  # norm of [1, -2, 1] along all three axes: sd of its answer to white noise of sd 1


class Feature(NamedTuple):
    """What a number is called before a user, and its typical spread between people of one cohort."""

    words: str
    spread: float


LOCAL: dict[str, Feature] = {
    **{f"quantile_{q:02d}": Feature("intensity", 0.05) for q in QUANTILES},
    "noise": Feature("noise level", 0.12),
    "gradient": Feature("edges", 0.06),
    "edge_brightness": Feature("contrast", 0.06),
    "polarity": Feature("contrast", 0.12),
    **{f"roughness_{axis}_{lag}": Feature("smoothness", 0.12) for axis in range(3) for lag in (1, 2)},
}
"""What can be said of a part of a scan as well."""
WHOLE: dict[str, Feature] = {
    **{f"extent_{axis}": Feature("size", 0.2) for axis in range(3)},
    "fill": Feature("shape", 0.2),
    "radius": Feature("shape", 0.02),
}
"""What can be said of a whole scan alone."""
FEATURES = LOCAL | WHOLE


def describe(source: Image, foreground: Mask, spacing: Sequence[float]) -> dict[str, float]:
    """Describe a scan by the numbers of `FEATURES`.

    Parameters
    ----------
    source
        (D, H, W) on the model grid, in [-1, 1].
    foreground
        (D, H, W); nothing outside it counts, and something must be inside.
    spacing
        mm, in array order.

    Returns
    -------
    dict
        Intensities are shares of the scale. Quantiles; the logarithm of the noise's sd (from the median answer to
        [1, -2, 1] along all three axes, after Immerkaer, Comput. Vis. Image Underst. 64, 300, 1996) and of the mean
        gradient over the sd; the brightness at edges, in sds from the mean; the skewness of second differences, above 0
        for bright detail; the logarithm of 1 minus the autocorrelation at 1 and 2 voxels, of the extents in mm, of the
        share of their box that is filled, and of the intensity-weighted over the plain rms radius.
    """
    values, inside = _in_box(source, foreground)
    return _of_part(values, inside) | _of_whole(values, inside, spacing)


def describe_parts(source: Image, foreground: Mask) -> list[dict[str, float]]:
    """Describe the eighths of a scan, cut in the middle of its foreground along each axis, by `LOCAL`."""
    values, inside = _in_box(source, foreground)
    halves = []
    for axis in range(3):
        below = np.cumsum(inside.sum(axis=_others(axis)))
        cut = int(np.searchsorted(below, below[-1] / 2)) + 1
        halves.append((slice(0, cut), slice(cut, inside.shape[axis])))
    boxes = [box for box in itertools.product(*halves) if np.count_nonzero(inside[box]) >= FEWEST_VOXELS]
    return [_of_part(values[box], inside[box]) for box in boxes]


def _in_box(source: Image, foreground: Mask) -> tuple[npt.NDArray[np.float32], Mask]:
    """Cut out the bounding box of the foreground: intensities in [0, 1], 0 outside the foreground, and the mask."""
    spans = (np.flatnonzero(foreground.any(axis=_others(axis))) for axis in range(3))
    box = tuple(slice(int(span[0]), int(span[-1]) + 1) for span in spans)
    inside = np.asarray(foreground[box])
    return np.asarray((np.asarray(source[box], np.float32) + 1) / 2 * inside, np.float32), inside


def _others(axis: int) -> tuple[int, int]:
    first, second = (other for other in range(3) if other != axis)
    return first, second


def _steps(n: int, axis: int, lag: int, length: int) -> list[tuple[slice, ...]]:
    """Give the slices of `n` voxels in a row along an axis, `lag` apart, for every place where they fit."""
    places = max(0, length - lag * (n - 1))
    spans = [slice(lag * i, lag * i + places) for i in range(n)]
    return [tuple(span if other == axis else slice(None) for other in range(3)) for span in spans]


def _of_part(values: npt.NDArray[np.float32], inside: Mask) -> dict[str, float]:
    """Describe intensities and texture."""
    seen = values[inside]
    mean, sd = float(np.mean(seen, dtype=np.float64)), float(np.std(seen, dtype=np.float64)) + _SMALL
    found = {f"quantile_{q:02d}": float(v) for q, v in zip(QUANTILES, np.percentile(seen, QUANTILES), strict=True)}
    found["noise"] = math.log(math.hypot(_noise(values, inside), _SMALL))
    slope, at_edges, skewness = [], [], []
    for axis, length in enumerate(values.shape):
        for lag in (1, 2):
            here, there = _steps(2, axis, lag, length)
            step = (values[there] - values[here])[inside[here] & inside[there]]
            squares = float(np.mean(step * step, dtype=np.float64)) if step.size else sd * sd
            found[f"roughness_{axis}_{lag}"] = math.log(squares / (2 * sd * sd) + _SMALL)
        here, there = _steps(2, axis, 1, length)
        both = inside[here] & inside[there]
        step, level = np.abs(values[there] - values[here])[both], (values[there] + values[here])[both] / 2
        total = float(np.sum(step, dtype=np.float64))
        slope.append(total / max(1, step.size))
        at_edges.append(float(np.sum(step * (level - mean), dtype=np.float64)) / (total + _SMALL) / sd)
        skewness.append(_skewness(values, inside, axis))
    found["gradient"] = math.log(float(np.mean(slope)) / sd + _SMALL)
    found["edge_brightness"], found["polarity"] = float(np.mean(at_edges)), -float(np.mean(skewness))
    return {name: found[name] for name in LOCAL}


def _skewness(values: npt.NDArray[np.float32], inside: Mask, axis: int) -> float:
    """Give the skewness of the second differences along an axis, about 0."""
    a, b, c = _steps(3, axis, 1, values.shape[axis])
    bend = (values[a] - 2 * values[b] + values[c])[inside[a] & inside[b] & inside[c]]
    if not bend.size:
        return 0.0
    variance = float(np.mean(bend * bend, dtype=np.float64)) + _SMALL**2
    return float(np.mean(bend**3, dtype=np.float64) / variance**1.5)


def _noise(values: npt.NDArray[np.float32], inside: Mask) -> float:
    """Give the sd of the white noise, in the unit of `values`; what is linear along any axis does not count."""
    for axis in range(3):
        a, b, c = _steps(3, axis, 1, values.shape[axis])
        values, inside = np.asarray(values[a] - 2 * values[b] + values[c]), inside[a] & inside[b] & inside[c]
    left = np.abs(values[inside])
    return float(np.median(left) / _NORMAL_MAD / _KERNEL) if left.size else 0.0


def _of_whole(values: npt.NDArray[np.float32], inside: Mask, spacing: Sequence[float]) -> dict[str, float]:
    """Describe size and shape."""
    found = {f"extent_{axis}": math.log(inside.shape[axis] * spacing[axis]) for axis in range(3)}
    found["fill"] = math.log(float(inside.mean()))
    weighted, plain = (_moment(weight, spacing) for weight in (values, inside))
    found["radius"] = 0.5 * math.log((weighted + _SMALL) / (plain + _SMALL))
    return found


def _moment(weight: npt.NDArray[np.float32] | Mask, spacing: Sequence[float]) -> float:
    """Give the mean squared distance from the centre of gravity, mm^2."""
    total = 0.0
    for axis, step in enumerate(spacing):
        profile = weight.sum(axis=_others(axis), dtype=np.float64)
        place = step * np.arange(profile.size)
        share = profile / max(float(profile.sum()), _SMALL)
        total += float(share @ place**2 - (share @ place) ** 2)
    return total


@dataclass(frozen=True)
class Reference:
    """What scans of the training look like, and how far from them a scan may be.

    Parameters
    ----------
    centre, spread
        By feature: the mean over people, and the spread of a new scan about it.
    words
        By feature: what it is called before a user.
    n
        People.
    level
        Share of new scans of the same kind that may pass the limit.
    limit
        Distance beyond which a scan is unlike the others.
    largest
        The largest distance of a training scan from the other people; None for one person.
    """

    centre: dict[str, float]
    spread: dict[str, float]
    words: dict[str, str]
    n: int
    level: float
    limit: float
    largest: float | None

    def deviations(self, measured: Measured) -> dict[str, float]:
        """Give how far each feature of a scan lies from the training, in spreads, without sign."""
        return {name: abs(measured[name] - self.centre[name]) / self.spread[name] for name in self.centre}

    def distance(self, measured: Measured) -> float:
        """Give the largest deviation of a scan."""
        return max(self.deviations(measured).values())

    def drivers(self, measured: Measured, most: int = 3) -> list[str]:
        """Name the kinds of features that lie beyond the limit, the furthest first."""
        ranked = sorted(self.deviations(measured).items(), key=lambda item: -item[1])
        return list(dict.fromkeys(self.words[name] for name, value in ranked if value > self.limit))[:most]


def fit_reference(
    people: Sequence[Sequence[Measured]],
    parts: Sequence[Sequence[Measured]],
    *,
    level: float = LEVEL,
    features: Mapping[str, Feature] = FEATURES,
) -> Reference:
    """Learn what training scans look like.

    Parameters
    ----------
    people
        By person, the description of every scan.
    parts
        By person, the descriptions of parts of the scans; features that no part has keep their typical spread.
    level
        Share of false alarms that is asked for, in (0, 1).
    features
        Names, words and typical spreads. A method with a score of its own (how well it restores the source, say) adds a
        name here and the number to every description.

    Notes
    -----
    The spread of a feature is that of a new value under a normal law whose variance has a scaled inverse chi-squared
    prior: ``spread^2 = (k p^2 + S) / (k + n - 1) (1 + 1 / n)``, S the sum of squares about the mean, k = `PRIOR_PEOPLE`
    and p^2 the squared typical spread plus `WITHIN` times the mean variance between the parts of a person.

    The limit is the ceil((n + 1)(1 - level))-th smallest distance of a training person from the others (leave-one-out,
    as in conformal prediction) where n is large enough to have one: 19 people for 5 %. With fewer it is the quantile of
    Student's t with k + n - 1 degrees of freedom at level / 2 over the number of features, or their own largest
    distance where that is more.

    Source: Gelman et al., Bayesian data analysis, 3rd ed., 3.3; Vovk, Gammerman, Shafer, Algorithmic learning in a
    random world, 2005; Barber, Candes, Ramdas, Tibshirani, Predictive inference with the jackknife+, 2021.
    """
    names = list(features)
    scans = [np.array([[scan[name] for name in names] for scan in visits]) for visits in people]
    means = np.array([visits.mean(axis=0) for visits in scans])
    typical = np.array([[features[name].spread ** 2] * len(scans) for name in names]).T
    for person, pieces in enumerate(parts):
        if len(pieces) > 1:
            for column, name in enumerate(names):
                if name in pieces[0]:
                    typical[person, column] += WITHIN * float(np.var([piece[name] for piece in pieces], ddof=1))
    own = _distances(scans, means, typical)
    centre, spread = _centre_and_spread(means, typical)
    return Reference(
        centre=dict(zip(names, map(float, centre), strict=True)),
        spread=dict(zip(names, map(float, spread), strict=True)),
        words={name: features[name].words for name in names},
        n=len(scans),
        level=level,
        limit=_limit(own, len(scans), len(names), level),
        largest=max(own) if own else None,
    )


def _centre_and_spread(means: Values, typical: Values) -> tuple[Values, Values]:
    n = len(means)
    centre = means.mean(axis=0)
    squares = PRIOR_PEOPLE * typical.mean(axis=0) + ((means - centre) ** 2).sum(axis=0)
    return centre, np.sqrt(squares / (PRIOR_PEOPLE + n - 1) * (1 + 1 / n))


def _distances(scans: Sequence[Values], means: Values, typical: Values) -> list[float]:
    """Give the distance of every person's furthest scan from all other people; none for one person."""
    found = []
    for person, visits in enumerate(scans if len(scans) > 1 else ()):
        centre, spread = _centre_and_spread(np.delete(means, person, axis=0), np.delete(typical, person, axis=0))
        found.append(float(np.max(np.abs(visits - centre) / spread)))
    return found


def _limit(own: Sequence[float], n: int, n_features: int, level: float) -> float:
    rank = math.ceil((n + 1) * (1 - level) - 1e-9)
    if rank <= len(own):
        return sorted(own)[rank - 1]
    by_law = float(student(PRIOR_PEOPLE + n - 1).ppf(1 - level / 2 / n_features))
    return max([by_law, *own])
