"""Random changes of training windows: where a window is taken from, for all images alike, and the source's intensity.

What changes is drawn by `draw_change` from one generator an item; everything after it is deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from scanbridge.data.box import take

BACKGROUND = -1.0
_REACH = 8  # voxels: a cubic spline's coefficients forget a border by a quarter a voxel

Array = NDArray[np.float32]
Order = Literal[0, 3]


class AugmentSettings(Protocol):
    """What `draw_change` reads; see the [train.augment] table."""

    @property
    def flip(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def shift(self) -> float: ...  # noqa: D102
    @property
    def turned(self) -> float: ...  # noqa: D102
    @property
    def rotate(self) -> float: ...  # noqa: D102
    @property
    def tilt(self) -> float: ...  # noqa: D102
    @property
    def scale(self) -> float: ...  # noqa: D102
    @property
    def contrast(self) -> float: ...  # noqa: D102


@dataclass(frozen=True)
class Change:
    """One drawn change.

    Parameters
    ----------
    flip
        Mirrored axes (slices, rows, columns).
    shift
        Voxels that the image moves by, rows and columns; whole ones where nothing turns.
    angle, tilt
        Radians: turn in plane; of the plane itself, about the columns' axis and about the rows'.
    scale
        Above 1 the image gets larger.
    gamma, gain
        Of the source's intensity in [0, 1].
    """

    flip: tuple[bool, bool, bool] = (False, False, False)
    shift: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    tilt: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    gamma: float = 1.0
    gain: float = 1.0

    @property
    def turns(self) -> bool:
        """Whether values lie between voxels."""
        return self.angle != 0 or any(self.tilt) or self.scale != 1

    def matrix(self, spacing: Sequence[float]) -> NDArray[np.float64]:
        """Give the (3, 3) map from offsets in the changed image to offsets in the image, in voxels: a turn in mm."""
        (nod, lean), turn = self.tilt, self.angle
        axes = ((nod, 0, 1), (lean, 0, 2), (turn, 1, 2))
        rotation = np.linalg.multi_dot([_rotation(angle, first, second) for angle, first, second in axes])
        steps = np.asarray(spacing, np.float64)
        return np.asarray(rotation * steps / steps[:, None] / self.scale)


def _rotation(angle: float, first: int, second: int) -> NDArray[np.float64]:
    """Give the turn by an angle in the plane of two of three axes."""
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = math.cos(angle)
    matrix[first, second], matrix[second, first] = -math.sin(angle), math.sin(angle)
    return matrix


def draw_change(rng: np.random.Generator, settings: AugmentSettings) -> Change:
    """Draw a change; a fixed number of draws, so that switching one kind off does not move the others.

    A share of the items turns. The others copy voxels: what was interpolated has lost detail, and a network that saw
    nothing else paints too smoothly.
    """
    coin = rng.random(3) < 0.5
    turning = float(rng.random() < settings.turned)
    shift = rng.uniform(-1, 1, 2) * settings.shift
    angle, scale, gamma, gain, nod, lean = rng.uniform(-1, 1, 6) * [turning, turning, 1, 1, turning, turning]
    axes = ("slices", "rows", "columns")
    flip = [bool(c) and axis in settings.flip for c, axis in zip(coin, axes, strict=True)]
    change = Change(
        flip=(flip[0], flip[1], flip[2]),
        shift=(float(shift[0]), float(shift[1])),
        angle=math.radians(float(angle) * settings.rotate),
        tilt=(math.radians(float(nod) * settings.tilt), math.radians(float(lean) * settings.tilt)),
        scale=float(1 + scale * settings.scale),
        gamma=math.exp(float(gamma) * settings.contrast),
        gain=math.exp(float(gain) * settings.contrast),
    )
    return change if change.turns else replace(change, shift=(round(change.shift[0]), round(change.shift[1])))


def sample(volume: NDArray[Any], points: NDArray[np.float64], fill: float, *, order: Order = 3) -> Array:
    """Read a volume (D, H, W) at `points` (3, ...) in voxels; `fill` beyond it.

    A cubic spline through the voxels (`order` = 3), or the nearest voxel (0). No more of the volume is read than the
    points need.
    """
    flat = points.reshape(3, -1)
    low = np.floor(flat.min(axis=1)).astype(int) - _REACH
    high = np.ceil(flat.max(axis=1)).astype(int) + _REACH + 1
    near = take(volume, [slice(int(a), int(b)) for a, b in zip(low, high, strict=True)], fill)
    if order == 3:
        near = ndimage.spline_filter(near, order, output=np.dtype(np.float32))
    return ndimage.map_coordinates(near, points - _column(low, points), order=order, prefilter=False)


@dataclass(frozen=True)
class Spline:
    """The cubic spline through a volume's voxels, for reading it many times: `sample` in two steps.

    Parameters
    ----------
    coefficients
        (D + 16, H + 16, W + 16), with a margin of what lies beyond the volume.
    fill
        What lies beyond it.
    """

    coefficients: Array
    fill: float

    @classmethod
    def through(cls, volume: NDArray[Any], fill: float) -> Spline:
        """Fit the spline of a volume (D, H, W)."""
        wide = take(volume, [slice(-_REACH, n + _REACH) for n in volume.shape], fill)
        return cls(ndimage.spline_filter(wide, 3, output=np.dtype(np.float32)), fill)

    @staticmethod
    def n_bytes(shape: Sequence[int]) -> int:
        """Give the memory that the spline of a volume of this shape takes."""
        return 4 * math.prod(n + 2 * _REACH for n in shape)

    def __call__(self, points: NDArray[np.float64]) -> Array:
        """Read it at `points` (3, ...) in voxels of the volume."""
        at = points + _REACH
        return ndimage.map_coordinates(self.coefficients, at, order=3, prefilter=False, mode="constant", cval=self.fill)


def _column(values: NDArray[Any], points: NDArray[np.float64]) -> NDArray[Any]:
    """Shape one value an axis (3,) to go with points (3, ...)."""
    return values.reshape(3, *[1] * (points.ndim - 1))


def bend(source: Array, change: Change) -> Array:
    """Change gamma and gain of a source in [-1, 1]."""
    if change.gamma == 1 and change.gain == 1:
        return source
    share = np.clip((source + 1) / 2, 0, 1) ** change.gamma * change.gain
    return np.asarray(2 * np.clip(share, 0, 1) - 1, dtype=np.float32)
