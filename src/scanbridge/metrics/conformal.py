"""From a map of doubt to intervals that keep a promise: split conformal prediction with the patient as the unit.

An interval is estimate plus or minus ``factor * half``, `half` being the expected error of the voxel. Voxels of one
patient are not exchangeable with those of the next: n is the number of patients, and pooling their voxels breaks the
promise for a third of them (docs/howto/calibrate.md). Everything that has to do with one patient is in the patient's
*ladder*: entry j says how far the intervals must be stretched to hold a share (j + 1) / `RUNGS` of the voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression

from scanbridge.errors import UserError

RUNGS = 10_000
"""Steps of a ladder. Between two rungs a miss is rounded up, so that no promise suffers."""

_ROUNDING = 1e-9

Values = npt.NDArray[np.float64]
Image = npt.NDArray[np.float32]
Control = Literal["quantile", "risk"]


@dataclass(frozen=True)
class Monotone:
    """A map from doubt to expected |error|: straight between knots, in proportion beyond the last.

    Parameters
    ----------
    doubt, error
        Knots, rising; none for the identity.
    floor
        Smallest expected error, above 0: no voxel is without doubt.
    """

    doubt: tuple[float, ...]
    error: tuple[float, ...]
    floor: float

    def __call__(self, doubt: npt.NDArray[np.floating]) -> Image:
        """Give the expected |error|, in the unit of `error`; of the shape of `doubt`."""
        expected = np.asarray(doubt, dtype=np.float32)
        if self.doubt:
            beyond = np.maximum(expected / self.doubt[-1], 1) if self.doubt[-1] > 0 else 1.0
            expected = np.asarray(np.interp(expected, self.doubt, self.error) * beyond, dtype=np.float32)
        return np.maximum(expected, np.float32(self.floor))


def fit_monotone(
    doubts: Sequence[npt.NDArray[np.floating]],
    errors: Sequence[npt.NDArray[np.floating]],
    *,
    floor: float,
    n_knots: int = 64,
) -> Monotone:
    """Fit the rising map that is closest to the errors, every patient weighing the same.

    Parameters
    ----------
    doubts, errors
        One array a patient: the signal and the error of voxels of the foreground.
    floor
        As in `Monotone`.
    n_knots
        Groups of equally many voxels that are averaged before the fit; equal doubts stay together.

    Source: Barlow, Bartholomew, Bremner, Brunk, Statistical inference under order restrictions, 1972.
    """
    doubt, error = (np.concatenate(each).astype(np.float64) for each in (doubts, errors))
    weight = np.concatenate([np.full(each.size, 1 / each.size) for each in doubts])
    edges = np.unique(np.quantile(doubt, np.linspace(0, 1, n_knots + 1)[1:-1]))
    group = np.searchsorted(edges, doubt, side="left")
    total = np.bincount(group, weight)
    held = total > 0
    x, y = (np.bincount(group, weight * each)[held] / total[held] for each in (doubt, np.abs(error)))
    rising = isotonic_regression(y, weights=total[held]).x
    return Monotone(tuple(map(float, x)), tuple(map(float, rising)), floor)


def ladder(error: npt.NDArray[np.floating], half: npt.NDArray[np.floating] | float) -> Values:
    """Give how far a patient's intervals must be stretched, (RUNGS,), rising.

    Parameters
    ----------
    error
        Truth minus estimate of the voxels of the foreground, one at least.
    half
        Expected error of each, above 0.
    """
    ratio = np.sort(np.abs(error).astype(np.float64) / half)
    return np.asarray(ratio[-(-ratio.size * np.arange(1, RUNGS + 1) // RUNGS) - 1])


def worst(ladders: Sequence[Values]) -> Values:
    """Give one ladder for several visits of a patient: at every factor the visit that misses most."""
    return np.asarray(np.max(ladders, axis=0))


def miss_share(of: Values, factor: float) -> float:
    """Give the share of a patient's voxels that lie outside at a factor, rounded up to a rung."""
    return float(np.mean(of > factor))


@dataclass(frozen=True)
class Promise:
    """What is said of a new patient.

    Parameters
    ----------
    control
        ``"quantile"``: with probability `patients` the patient misses at most `miss`. ``"risk"``: patients miss at most
        `miss` on average.
    miss
        Share of the voxels in the foreground that may lie outside their interval, in (0, 1).
    patients
        Share of the patients for whom it holds, in (0, 1); of no meaning for ``"risk"``.

    Notes
    -----
    Both hold on average over calibrations, for patients exchangeable with those of the calibration; neither says
    anything of a single voxel, a region, or another scanner.

    Source: Vovk, Gammerman, Shafer, Algorithmic learning in a random world, 2005 (quantile, of the factors that the
    patients need); Angelopoulos, Bates, Fisch, Lei, Schuster, Conformal risk control, ICLR 2024, eq. 4 (risk).
    """

    control: Control = "quantile"
    miss: float = 0.1
    patients: float = 0.9

    @property
    def needed(self) -> int:
        """Patients without whom the factor would be infinite."""
        odds = self.patients / (1 - self.patients) if self.control == "quantile" else (1 - self.miss) / self.miss
        return max(1, math.ceil(odds - _ROUNDING))

    def enough(self, n: int) -> None:
        """Refuse fewer patients than are needed, with the promise that `n` patients could carry.

        Raises
        ------
        UserError
            If `n` is below `needed`.
        """
        if n >= self.needed:
            return
        share, option = (self.patients, "patients") if self.control == "quantile" else (self.miss, "miss")
        most = math.floor(100 * n / (n + 1)) / 100 if self.control == "quantile" else math.ceil(100 / (n + 1)) / 100
        less = f", or ask for less: --{option} {most:g}" if 0 < most < 1 else ""
        raise UserError(
            f"{n} calibration patients cannot carry --{option} {share:g}",
            f"{self.needed} at least",
            f"set more patients apart{less}",
        )

    def factor(self, ladders: Sequence[Values]) -> float:
        """Give the factor that keeps the promise for a patient beyond those given, one ladder a patient.

        Raises
        ------
        UserError
            If there are fewer patients than `needed`: an infinite interval is never given.
        """
        n = len(ladders)
        self.enough(n)
        if self.control == "quantile":
            return sorted(map(self.needs, ladders))[math.ceil((n + 1) * self.patients - _ROUNDING) - 1]
        return _at_risk(ladders, self.miss * (n + 1) - 1)

    def plain_factor(self, ladders: Sequence[Values]) -> float:
        """Give the factor that would have served the patients given, without the margin that a new one needs."""
        n = len(ladders)
        if self.control == "quantile":
            return sorted(map(self.needs, ladders))[math.ceil(n * self.patients - _ROUNDING) - 1]
        return _at_risk(ladders, self.miss * n)

    def needs(self, of: Values) -> float:
        """Give the smallest factor at which one patient, of this ladder, misses at most `miss`."""
        return _at_risk([of], self.miss)

    def sentence(self, n: int) -> str:
        """Say what is promised after a calibration on `n` patients.

        >>> Promise("risk", 0.05).sentence(40)
        'for new patients from the same population, on average at most 5 % of the voxels in the foreground lie outside \
their interval (40 patients)'
        """
        held = f"at most {100 * self.miss:g} % of the voxels in the foreground lie outside their interval"
        if self.control == "risk":
            return f"for new patients from the same population, on average {held} ({n} patients)"
        likely = f"with probability at least {100 * self.patients:g} %"
        return f"for a new patient from the same population, {likely}, {held} ({n} patients)"


def _at_risk(ladders: Sequence[Values], budget: float) -> float:
    """Smallest factor at which the misses of all patients add up to at most `budget`."""
    held = len(ladders) * RUNGS - math.floor(budget * RUNGS + _ROUNDING)
    return float(np.partition(np.concatenate(ladders), held - 1)[held - 1])
