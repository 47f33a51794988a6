"""Voxel grids in space, and the one way by which a volume goes from one grid to another."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from scanbridge.errors import UserError

_DIRECTIONS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
# A file stores its affine in float32, so equal grids differ by up to some 1e-5 voxels once an axis is reversed.
_TOLERANCE = 1e-3  # voxels


@dataclass(frozen=True, eq=False)
class Grid:
    """A box of voxels in patient space.

    Parameters
    ----------
    shape
        Number of voxels along each array axis.
    affine
        (4, 4) float64: from voxel index to mm, RAS+ (x runs to the patient's Right, y to Anterior, z to Superior).

    Notes
    -----
    Two grids are equal when shape and affine are equal to the last bit.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64) + 0.0  # + 0.0 turns -0.0 into 0.0: both hash alike
        if len(self.shape) != 3 or min(self.shape) < 1 or affine.shape != (4, 4):
            msg = f"a grid has three axes of at least one voxel and a 4 x 4 affine, not {self.shape}, {affine.shape}"
            raise ValueError(msg)
        affine.setflags(write=False)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "affine", affine)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.shape == other.shape and bool(np.all(self.affine == other.affine))

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels in mm, in array order."""
        first, second, third = (float(step) for step in np.linalg.norm(self.affine[:3, :3], axis=0))
        return first, second, third

    @property
    def orientation(self) -> str:
        """Where each array axis points, as a code such as ``"LAS"``; an oblique axis takes the closest letter."""
        axes, signs = _closest_axes(_unit_columns(self.affine))
        letters = {direction: letter for letter, direction in _DIRECTIONS.items()}
        return "".join(letters[axis, sign] for axis, sign in zip(axes, signs, strict=True))


def model_grid(of: Grid, *, spacing: tuple[float, float, float], orientation: str) -> Grid:
    """Give the grid of `spacing` that follows the axes of another, in the order and direction of `orientation`.

    The new grid shares its centre with the old and covers all of it: where the field of view is a whole number of new
    voxels their outer edges fall together, otherwise the new one stands out by less than half a voxel on either side,
    so that the centre of every new voxel lies within the old field of view.

    Parameters
    ----------
    of
        The grid to follow; its axes may be oblique.
    spacing
        Voxel size in mm, in the ARRAY order of the new grid.
    orientation
        Three letters in array order saying where each axis points, such as ``"SPL"``.

    Raises
    ------
    UserError
        When the orientation does not name three different axes or a spacing is not positive.
    """
    axes, signs = _closest_axes(_unit_columns(of.affine).T @ _directions(orientation))
    if len(spacing) != 3 or not all(math.isfinite(step) and step > 0 for step in spacing):
        raise UserError(f"grid.spacing = {list(spacing)}", "three voxel sizes in mm above 0", "for example [2, 2, 2]")
    extent = [of.shape[axis] * of.spacing[axis] for axis in axes]
    count = [max(1, math.ceil(mm / step - _TOLERANCE)) for mm, step in zip(extent, spacing, strict=True)]
    affine = np.eye(4)
    affine[:3, :3] = _unit_columns(of.affine)[:, axes] * signs * np.asarray(spacing, dtype=np.float64)
    affine[:3, 3] = _centre(of.affine, of.shape) - affine[:3, :3] @ ((np.asarray(count) - 1) / 2)
    return Grid((count[0], count[1], count[2]), affine)


def resample(
    data: NDArray[Any], source: Grid, to: Grid, *, order: Literal[0, 1, 3] = 1, fill: float = 0.0
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Give a volume on another grid, through both affines in one step, and where it was known there.

    Values are interpolated linearly after a Gaussian along each source axis of variance ``max(0, (f^2 - 4) / 12)``
    voxels^2, f being the output step in source voxels. Averaging over the f voxels within one output voxel has variance
    (f^2 - 1) / 12, of which interpolation halfway between two voxels brings 1/4: at f = 2 on shared edges it IS the
    average, and beyond the Gaussian adds the rest. The cubic spline brings no variance of its own, so that there the
    Gaussian has all of it, (f^2 - 1) / 12.

    Parameters
    ----------
    data
        (I, J, K) on `source`.
    source, to
        The grid that the data lie on, and the one wanted. Where they differ by the order and direction of axes alone,
        to a thousandth of a voxel, the values are copies to the last bit.
    order
        1 for images, 0 (nearest neighbour, no filter) for masks; 3 (interpolating cubic spline, held to the range of
        the data) for what is smooth and goes to a finer grid, where linear interpolation would blur it once more.
    fill
        Value outside the source's field of view.

    Returns
    -------
    values
        Float32 on `to`.
    inside
        True where the centre of the voxel lies within the outer voxel EDGES of `source`; between the last centres and
        the edges the value is that of the closest voxel.
    """
    if data.shape != source.shape:
        msg = f"data of shape {data.shape} do not lie on a grid of shape {source.shape}"
        raise ValueError(msg)
    # The source is first turned to the axes of the output: then how a file orders its axes changes no bit of it.
    values, affine = _turned(np.asarray(data, dtype=np.float32), source.affine, to.affine)
    matrix, offset = _index_map(affine, to)
    positions = [_positions(row, start, to.shape) for row, start in zip(matrix, offset, strict=True)]
    inside = np.ones(to.shape, dtype=np.bool_)
    for position, n in zip(positions, values.shape, strict=True):
        inside &= (position >= -0.5 - _TOLERANCE) & (position <= n - 0.5 + _TOLERANCE)
    low, high = values.min(), values.max()
    if order:
        values = _averaged(values, np.linalg.norm(matrix, axis=1), own=3 if order == 1 else 0)
    if np.all(matrix == np.diag(np.diagonal(matrix))):
        for axis, position in enumerate(positions):
            values = _along(values, axis, position.ravel(), order)
    else:
        values = ndimage.affine_transform(values, matrix, offset, to.shape, order=order, mode="nearest")
    if order == 3:
        values = values.clip(low, high)  # a spline rings at edges: an uncertainty would fall below 0
    return np.where(inside, values, np.float32(fill)), inside


def _directions(orientation: str) -> NDArray[np.float64]:
    """Give unit vectors (3, 3), one column for each letter of an orientation code."""
    known = [_DIRECTIONS.get(letter) for letter in orientation]
    axes = {direction[0] for direction in known if direction}
    if len(known) != 3 or len(axes) != 3:
        raise UserError(
            f"grid.orientation = '{orientation}'",
            "three letters, one of each pair R/L, A/P, S/I, saying where each array axis points",
            "for example 'SPL': slices run to Superior, rows to Posterior, columns to the patient's Left",
        )
    vectors = np.zeros((3, 3))
    for column, (axis, sign) in enumerate(direction for direction in known if direction):
        vectors[axis, column] = sign
    return vectors


def _unit_columns(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Direction of each array axis in patient space, (3, 3), one column an axis."""
    linear = affine[:3, :3]
    columns: NDArray[np.float64] = linear / np.linalg.norm(linear, axis=0)
    return columns


def _closest_axes(cosines: NDArray[np.float64]) -> tuple[list[int], NDArray[np.float64]]:
    """Give for each column its closest row, each row once, and whether it runs along (1) or against (-1) it."""
    rows = max(itertools.permutations(range(3)), key=lambda p: sum(abs(cosines[p[j], j]) for j in range(3)))
    return list(rows), np.where(cosines[rows, range(3)] < 0, -1.0, 1.0)


def _centre(affine: NDArray[np.float64], shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Give the middle of the field of view in mm."""
    centre: NDArray[np.float64] = affine[:3, :3] @ ((np.asarray(shape) - 1) / 2) + affine[:3, 3]
    return centre


def _turned(
    data: NDArray[np.float32], affine: NDArray[np.float64], to: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Permute and flip the axes of a volume so that they run as closely as possible like those of the affine `to`."""
    axes, signs = _closest_axes(_unit_columns(affine).T @ _unit_columns(to))
    turned = affine.copy()
    turned[:3, :3] = affine[:3, axes] * signs
    first = np.where(signs < 0, np.asarray(data.shape)[axes] - 1, 0)  # where index 0 of the turned array lay
    turned[:3, 3] += affine[:3, axes] @ first
    flips = tuple(slice(None, None, int(sign)) for sign in signs)
    return data.transpose(axes)[flips], turned


def _index_map(affine: NDArray[np.float64], to: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Matrix (3, 3) and offset (3,) from a voxel index of `to` to a voxel position of `affine`."""
    index_map = np.linalg.inv(affine) @ to.affine
    reach = np.maximum(np.asarray(to.shape) - 1, 1)
    return _snapped(index_map[:3, :3], reach), _snapped(index_map[:3, 3], np.ones(3))


def _snapped(values: NDArray[np.float64], reach: NDArray[Any]) -> NDArray[np.float64]:
    """Round to the closest half where that moves no voxel by more than the tolerance.

    Grids that differ by the rounding of a header alone become exact copies, and the ties of nearest neighbour (always
    met when voxels double) fall the same way in every file. The rest loses its rounding noise.
    """
    halves = np.round(2 * values) / 2
    return np.where(np.abs(values - halves) * reach < _TOLERANCE, halves, np.round(values, 9)) + 0.0


def _positions(row: NDArray[np.float64], start: float, shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Position along one source axis of every output voxel, spread over the output axes that it depends on alone."""
    position = np.full((1, 1, 1), start)
    for index, step in zip(np.ogrid[: shape[0], : shape[1], : shape[2]], row, strict=True):
        if step:
            position = position + step * index
    return position


def _averaged(values: NDArray[np.float32], step: NDArray[np.float64], *, own: int) -> NDArray[np.float32]:
    """Smooth along each axis as far as interpolation falls short of averaging over a step of so many voxels.

    `own` is the variance that the interpolation itself brings, in twelfths of a voxel^2.
    """
    for axis, f in enumerate(step):
        variance = (f**2 - 1 - own) / 12
        if variance > 1e-6:
            values = ndimage.gaussian_filter1d(values, math.sqrt(variance), axis=axis, mode="nearest")
    return values


def _along(
    values: NDArray[np.float32], axis: int, position: NDArray[np.float64], order: Literal[0, 1, 3]
) -> NDArray[np.float32]:
    """Interpolate along one axis at the positions given, clamped to the first and last voxel."""
    n = values.shape[axis]
    if order == 0:
        return values.take(np.clip(np.floor(position + 0.5).astype(np.intp), 0, n - 1), axis)
    position = np.clip(position, 0, n - 1)
    low = np.floor(position).astype(np.intp)
    weight = np.expand_dims((position - low).astype(np.float32), tuple(i for i in range(3) if i != axis))
    if not weight.any():
        return values.take(low, axis)
    if order == 3:
        return _spline(values, axis, low, weight)
    start = values.take(low, axis)
    start += weight * (values.take(np.minimum(low + 1, n - 1), axis) - start)
    return start


def _spline(
    values: NDArray[np.float32], axis: int, low: NDArray[np.intp], weight: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Evaluate along one axis the cubic spline through the values, mirrored at the first and last voxel."""
    last = values.shape[axis] - 1
    coefficients = ndimage.spline_filter1d(values, 3, axis, output=np.float32, mode="mirror")
    rest = 1 - weight
    basis = (rest**3, 4 - 3 * weight**2 * (1 + rest), 4 - 3 * rest**2 * (1 + weight), weight**3)  # times 6
    total = np.zeros([low.size if i == axis else n for i, n in enumerate(values.shape)], dtype=np.float32)
    for shift, share in zip((-1, 0, 1, 2), basis, strict=True):
        mirrored = last - np.abs(last - np.abs(low + shift))  # of the whole-sample symmetric extension
        total += share / 6 * coefficients.take(mirrored.clip(0), axis)
    return total
