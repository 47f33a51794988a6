"""Consistency from slice to slice, which a model that sees a few slices at a time may lack.

An error that changes from slice to slice shows as stripes in the two planes across the slices. Two numbers part what
kind it is: the *style* of a slice is its mean error (a slice too bright as a whole), its *shape* is everything that
differs between one slice's error and its neighbour's. Both are 0 for a perfect prediction and for one that is wrong by
the same amount everywhere; they are read beside the error itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]


def slice_style(error: Image, region: Mask, axis: int) -> float | None:
    """Give the standard deviation over slices of the slices' mean error.

    Parameters
    ----------
    error
        Prediction minus truth, (I, J, K), in the unit of the image.
    region
        Voxels that count, (I, J, K). Slices without any are left out.
    axis
        The array axis along which the slices are stacked.

    Returns
    -------
    float or None
        In the unit of the image; None where the region has fewer than two slices.
    """
    across = _others(axis)
    counts = np.count_nonzero(region, axis=across)
    if np.count_nonzero(counts) < 2:
        return None
    sums = np.where(region, error, 0.0).sum(axis=across, dtype=np.float64)
    held = counts > 0
    return float(np.std(sums[held] / counts[held]))


def slice_shape(error: Image, target: Image, region: Mask, axis: int) -> float | None:
    """Give the mean |difference of neighbouring slices of the error|, over the truth's own.

    0 is perfect and 1 means that the error changes from slice to slice as much as the anatomy does.

    Parameters
    ----------
    error, target
        Prediction minus truth, and the truth, (I, J, K), in the same unit.
    region
        Voxels that count, (I, J, K). A pair of neighbours counts where both lie in the region.
    axis
        The array axis along which the slices are stacked.

    Returns
    -------
    float or None
        Without unit; None where no neighbours lie in the region or the truth does not change along the axis.
    """
    upper, lower = _neighbours(region, axis)
    both = upper & lower
    truth = _mean_step(target, both, axis)
    return _mean_step(error, both, axis) / truth if truth else None


def _mean_step(image: Image, both: Mask, axis: int) -> float:
    """Mean |image[k + 1] - image[k]| along `axis` where both voxels count; 0 where none does."""
    upper, lower = _neighbours(image, axis)
    steps = np.abs(upper[both].astype(np.float64) - lower[both])
    return float(steps.mean()) if steps.size else 0.0


def _neighbours(array: npt.NDArray[Any], axis: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    moved = np.moveaxis(array, axis, 0)
    return moved[1:], moved[:-1]


def _others(axis: int) -> tuple[int, ...]:
    return tuple(i for i in range(3) if i != axis)
