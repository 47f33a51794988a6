"""Do two scans of a person lie on each other? Asked of their normalised mutual information, on a coarse grid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scanbridge.data.grid import Grid, model_grid, resample
from scanbridge.data.nifti import Volume

_STEP, _LONGEST = 3.0, 64  # mm and voxels: the grid is no finer, and its longest axis has no more
_REACH = 60.0  # mm that a shift is looked for, along each axis
_BINS = 32
_OUTSIDE = _BINS  # the code of a voxel that an image does not hold

Codes = NDArray[np.int32]
Shift = tuple[int, int, int]


@dataclass(frozen=True)
class Alignment:
    """How two images lie to each other.

    Parameters
    ----------
    overlap
        Share in [0, 1] of the smaller field of view that lies within the other.
    information
        Normalised mutual information 2 I(A; B) / (H(A) + H(B)) in [0, 1], as they lie.
    mirrored
        The same with the second image flipped left to right within its own box.
    shift
        (3,) mm to Right, Anterior and Superior by which the second is best moved; 0 where no shift is better.
    shifted
        The information after that shift.
    """

    overlap: float
    information: float = 0.0
    mirrored: float = 0.0
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shifted: float = 0.0

    @property
    def distance(self) -> float:
        """Length of the shift in mm."""
        return math.hypot(*self.shift)


def alignment(first: Volume, second: Volume) -> Alignment:
    """Say how the second image lies to the first, and whether a flip or a shift would explain it better."""
    extent = max(n * step for n, step in zip(first.grid.shape, first.grid.spacing, strict=True))
    step = max(_STEP, extent / _LONGEST)
    grid = model_grid(first.grid, spacing=(step, step, step), orientation="RAS")
    fixed = _coded(first.data, first.grid, grid)
    moving = _coded(second.data, second.grid, grid)
    shared = float(np.count_nonzero((fixed < _OUTSIDE) & (moving < _OUTSIDE))) * step**3
    overlap = min(1.0, shared / min(_volume(first.grid), _volume(second.grid)))
    if overlap < 0.01:
        return Alignment(overlap)
    sideways = int(np.argmax(np.abs(second.affine[0, :3]) / np.linalg.norm(second.affine[:3, :3], axis=0)))
    flipped = _coded(np.flip(second.data, sideways), second.grid, grid)
    shift, shifted = _best_shift(fixed, moving, round(_REACH / step))
    right, anterior, superior = (0.0 - grid.affine[:3, :3] @ shift).tolist()
    return Alignment(
        overlap=overlap,
        information=_information(fixed, moving),
        mirrored=_information(fixed, flipped),
        shift=(right, anterior, superior),
        shifted=shifted,
    )


def _volume(grid: Grid) -> float:
    """Volume of a field of view in mm^3."""
    return math.prod(grid.shape) * math.prod(grid.spacing)


def _coded(data: NDArray[np.float32], source: Grid, to: Grid) -> Codes:
    """Bring an image to a grid and its values to `_BINS` levels between their 1st and 99th percentile."""
    values, inside = resample(data, source, to)
    held = values[inside]
    low, high = np.percentile(held, (1, 99)) if held.size else (0.0, 1.0)
    levels = np.clip((values - low) / max(high - low, 1e-12) * _BINS, 0, _BINS - 1)
    return np.where(inside, levels, _OUTSIDE).astype(np.int32)


def _information(fixed: Codes, moving: Codes, shift: Shift = (0, 0, 0), least: int = 1) -> float:
    """Normalised mutual information of fixed(x) and moving(x + shift); 0 where fewer than `least` voxels meet."""
    here = tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(shift, fixed.shape, strict=True))
    there = tuple(slice(max(0, s), n - max(0, -s)) for s, n in zip(shift, fixed.shape, strict=True))
    pairs = fixed[here] * (_BINS + 1) + moving[there]
    counts = np.bincount(pairs.ravel(), minlength=(_BINS + 1) ** 2).reshape(_BINS + 1, _BINS + 1)[:_BINS, :_BINS]
    n = int(counts.sum())
    if n < max(least, 1):
        return 0.0
    joint = counts / n
    apart = _entropy(joint.sum(1)) + _entropy(joint.sum(0))
    return 2 * (apart - _entropy(joint)) / apart if apart > 0 else 0.0


def _entropy(share: NDArray[np.float64]) -> float:
    """Entropy in nats of a distribution of any shape."""
    held = share[share > 0]
    return float(-(held * np.log(held)).sum())


def _best_shift(fixed: Codes, moving: Codes, reach: int) -> tuple[Shift, float]:
    """Climb along one axis after the other to the shift (voxels) of largest information; half the overlap stays."""
    least = int(np.count_nonzero((fixed < _OUTSIDE) & (moving < _OUTSIDE))) // 2
    best: Shift = (0, 0, 0)
    height = _information(fixed, moving)
    for _ in range(3):
        before = best
        for axis, n in enumerate(fixed.shape):
            limit = min(reach, n // 2)
            for step in range(-limit, limit + 1):
                trial: Shift = (*best[:axis], step, *best[axis + 1 :])  # type: ignore[assignment]
                if trial != best and (found := _information(fixed, moving, trial, least)) > height:
                    best, height = trial, found
        if best == before:
            break
    return best, height
