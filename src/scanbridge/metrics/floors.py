"""What can be reached without a network: two maps of one intensity to another, fitted on the training subjects.

A model that does not beat these has learned nothing of anatomy. Both work in model space, where source and target lie
in [0, 1], on the foreground alone; the background is 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scanbridge.errors import UserError
from scanbridge.metrics.slices import Image, Mask

SOURCE_BINS = 128
_QUANTILES = 1025
_TARGET_BINS = 1 << 14  # finer than a float16 cache of [-1, 1] near its ends: the pooled quantiles lose nothing

Curve = tuple[float, ...]


@dataclass(frozen=True)
class Floors:
    """Both floors of one training split.

    Attributes
    ----------
    quantiles
        Quantiles of the pooled foreground values of the training targets, at equal steps of probability from 0 to 1.
    expected
        E[target | source] in equal bins of the source over [0, 1]; a bin that no training voxel falls into holds the
        interpolation between its neighbours.
    """

    quantiles: Curve
    expected: Curve

    def histogram(self, source: Image, foreground: Mask) -> npt.NDArray[np.float32]:
        """Give `floor:histogram`: the source with the pooled histogram of the training targets.

        Parameters
        ----------
        source
            (D, H, W) in [0, 1].
        foreground
            (D, H, W); the rest is 0 in the result.
        """
        values, inverse, counts = np.unique(source[foreground], return_inverse=True, return_counts=True)
        if not values.size:
            return np.zeros(source.shape, np.float32)
        rank = (np.cumsum(counts) - 0.5 * counts) / counts.sum()  # ties share the middle of their ranks
        mapped = np.interp(rank, np.linspace(0.0, 1.0, len(self.quantiles)), self.quantiles)
        return _filled(mapped[inverse], foreground)

    def intensity(self, source: Image, foreground: Mask) -> npt.NDArray[np.float32]:
        """Give `floor:intensity`: E[target | source value], the best that intensity alone can do in the mean square.

        Parameters
        ----------
        source
            (D, H, W) in [0, 1].
        foreground
            (D, H, W); the rest is 0 in the result.
        """
        return _filled(np.asarray(self.expected)[_bin(source[foreground], len(self.expected))], foreground)

    def to_json(self) -> dict[str, list[float]]:
        """Give the floors as plain lists."""
        return {name: list(curve) for name, curve in asdict(self).items()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Floors:
        """Read what `to_json` gave.

        Raises
        ------
        UserError
            Where a curve is missing, not numeric, not finite or too short.
        """
        try:
            curves = {name: tuple(float(v) for v in stored[name]) for name in ("quantiles", "expected")}
        except (KeyError, TypeError, ValueError) as error:
            raise _unreadable() from error
        if any(len(curve) < 2 or not np.isfinite(curve).all() for curve in curves.values()):
            raise _unreadable()
        return cls(**curves)


def fit_floors(pairs: Iterable[tuple[Image, Image, Mask]]) -> Floors:
    """Fit both floors on the training subjects, one at a time.

    Parameters
    ----------
    pairs
        For each subject the source and the target in [0, 1] and the voxels that count (foreground and inside the
        target's field of view), (D, H, W) each. Every voxel weighs the same.

    Raises
    ------
    UserError
        Where no voxel counts at all.
    """
    histogram = np.zeros(_TARGET_BINS, np.int64)
    counts, sums = np.zeros(SOURCE_BINS, np.int64), np.zeros(SOURCE_BINS)
    for source, target, foreground in pairs:
        s, t = _bin(source[foreground], SOURCE_BINS), target[foreground].astype(np.float64)
        histogram += np.bincount(_bin(t, _TARGET_BINS), minlength=_TARGET_BINS)
        counts += np.bincount(s, minlength=SOURCE_BINS)
        sums += np.bincount(s, weights=t, minlength=SOURCE_BINS)
    if not counts.any():
        raise UserError(
            "no foreground voxel in the training subjects",
            "at least one pair of source and target with a foreground",
            "look at the cohort with `scanbridge check`",
        )
    return Floors(_quantiles(histogram), _expected(sums, counts))


def _quantiles(histogram: npt.NDArray[np.int64]) -> Curve:
    edges = np.linspace(0.0, 1.0, histogram.size + 1)
    cumulative = np.concatenate([[0.0], np.cumsum(histogram) / histogram.sum()])
    # An empty bin makes the distribution flat: of its equal values only the first and the last matter.
    steps = np.linspace(0.0, 1.0, _QUANTILES)
    return tuple(np.interp(steps, cumulative, edges).tolist())


def _expected(sums: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]) -> Curve:
    held = np.flatnonzero(counts)
    return tuple(np.interp(np.arange(counts.size), held, sums[held] / counts[held]).tolist())


def _bin(values: Image, n_bins: int) -> npt.NDArray[np.intp]:
    return np.clip((values.astype(np.float64) * n_bins).astype(np.intp), 0, n_bins - 1)


def _filled(values: Image, foreground: Mask) -> npt.NDArray[np.float32]:
    volume = np.zeros(foreground.shape, np.float32)
    volume[foreground] = values
    return volume


def _unreadable() -> UserError:
    return UserError(
        "the stored floors cannot be read",
        "lists of finite numbers `quantiles` and `expected`",
        "evaluate again with the training cohort at hand, so that the floors are fitted anew",
    )
