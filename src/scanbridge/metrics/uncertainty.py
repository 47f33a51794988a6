"""Does the uncertainty point at the errors? Rankings only: what an interval promises is the business of calibration.

Everything is within one subject and over the voxels of a region; a subject gives one number, and the mean over subjects
is taken like that of any other metric. Two maps that know nothing of the model stand beside the model's own: a constant
and the gradient of the source. A model's map that does not beat the gradient points at edges, not at errors.

Ties are resolved in the mean over all their orders, so that a constant map scores what chance scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from scanbridge.metrics.slices import Image, Mask

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RiskCoverage:
    """Mean error of the most certain voxels, against their share.

    Attributes
    ----------
    coverage, risk
        Points of the curve: share of the voxels kept, in (0, 1], and their mean error, in the unit of the error.
    area
        AURC: the mean risk over all coverages, in that unit; low is good.
    excess
        E-AURC: `area` minus that of the ideal order, the error's own; 0 is perfect.
    """

    coverage: Values
    risk: Values
    area: float
    excess: float


@dataclass(frozen=True)
class Ranking:
    """How well one map orders the errors of one subject; `spearman` is None for a constant map or error."""

    name: str
    spearman: float | None
    curve: RiskCoverage


def spearman(error: Image, uncertainty: Image, region: Mask) -> float | None:
    """Give the rank correlation of |error| and uncertainty over a region's voxels.

    Parameters
    ----------
    error
        Prediction minus truth (or its magnitude), (I, J, K).
    uncertainty
        (I, J, K); high = unsure. Any unit: only its order matters.
    region
        Voxels that count, (I, J, K).

    Returns
    -------
    float or None
        In [-1, 1]; None where either is constant, since a constant has no order.
    """
    losses, doubts = np.abs(error[region]), uncertainty[region]
    if losses.size < 2 or np.ptp(losses) == 0 or np.ptp(doubts) == 0:
        return None
    return float(stats.spearmanr(losses, doubts).statistic)


def risk_coverage(error: Image, uncertainty: Image, region: Mask, *, n_points: int = 100) -> RiskCoverage:
    """Give the risk-coverage curve of one subject and its area.

    Parameters
    ----------
    error, uncertainty, region
        As in `spearman`; the region must not be empty.
    n_points
        Points kept of the curve, some of them twice in a region of fewer voxels. The area uses every voxel.

    Source: Geifman, Uziel, El-Yaniv, Bias-reduced uncertainty estimation, ICLR 2019 (AURC, E-AURC).
    """
    losses = np.abs(error[region].astype(np.float64))
    if not losses.size:
        raise ValueError("the region is empty")
    risk, ideal = _risks(_ordered(losses, uncertainty[region])), _risks(np.sort(losses))
    kept = np.ceil(np.linspace(0.0, 1.0, n_points + 1)[1:] * losses.size).astype(np.intp) - 1
    area, excess = float(risk.mean()), float(risk.mean() - ideal.mean())
    return RiskCoverage((kept + 1) / losses.size, risk[kept], area, max(excess, 0.0))


def rankings(
    error: Image, uncertainty: Image, source: Image, region: Mask, *, spacing: tuple[float, float, float]
) -> list[Ranking]:
    """Judge the model's map beside the two trivial ones: named "model", "gradient" and "constant".

    Parameters
    ----------
    error, uncertainty, source, region
        (I, J, K) on one grid; the region must not be empty.
    spacing
        Voxel size in mm in array order, for the gradient.
    """
    maps = {
        "model": uncertainty,
        "gradient": gradient_magnitude(source, spacing),
        "constant": np.zeros(error.shape, np.float32),
    }
    return [Ranking(name, spearman(error, m, region), risk_coverage(error, m, region)) for name, m in maps.items()]


def gradient_magnitude(image: Image, spacing: tuple[float, float, float]) -> Image:
    """Give |gradient| per mm, (I, J, K); an axis of one voxel has none."""
    axes = [axis for axis in range(3) if image.shape[axis] > 1]
    parts = [np.gradient(image.astype(np.float32), spacing[axis], axis=axis) for axis in axes]
    squares = sum((np.square(part) for part in parts), start=np.zeros(image.shape, np.float32))
    return np.asarray(np.sqrt(squares))


def by_quartile(quantity: npt.NDArray[np.generic], uncertainty: Image, region: Mask) -> tuple[float, ...]:
    """Give the mean of a quantity in each quarter of the voxels, the most certain first.

    Of |error| it shows whether the map ranks; of misses (truth outside an interval, see `missed`) whether intervals are
    as good where the model is unsure as where it is sure.

    Parameters
    ----------
    quantity
        (I, J, K), numbers or booleans.
    uncertainty
        (I, J, K); for intervals their width.
    region
        Voxels that count, (I, J, K), four at least.
    """
    ordered = _ordered(quantity[region].astype(np.float64), uncertainty[region])
    if ordered.size < 4:
        raise ValueError("four voxels at least make quartiles")
    return tuple(float(quarter.mean()) for quarter in np.array_split(ordered, 4))


def missed(target: Image, low: Image, high: Image) -> Mask:
    """Say which voxels of the truth lie outside [low, high]."""
    return np.asarray((target < low) | (target > high))


def _ordered(values: Values, uncertainty: Image) -> Values:
    """Values from the most certain to the least, those of equal uncertainty replaced by their mean."""
    _, group, counts = np.unique(uncertainty, return_inverse=True, return_counts=True)
    means = np.bincount(group, weights=values) / counts
    return np.repeat(means, counts)


def _risks(ordered: Values) -> Values:
    return np.asarray(np.cumsum(ordered) / np.arange(1, ordered.size + 1))
