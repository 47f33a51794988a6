"""Between an image's own unit and the [-1, 1] that networks see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scanbridge.data.cohort import ImageSpec
from scanbridge.errors import UserError

_PERCENTILES = (0.5, 99.5)
_LARGEST_GAIN = 2.0


@dataclass(frozen=True)
class Scale:
    """The window of values that is mapped to [-1, 1], linearly.

    Parameters
    ----------
    low, high
        The values that become -1 and 1.
    unit
        ``"HU"``, ``"SUV"``, or ``"1"`` where the scanner's numbers mean nothing by themselves.
    """

    low: float
    high: float
    unit: str

    @property
    def range(self) -> float:
        """Width of the window, the R of the metrics."""
        return self.high - self.low

    def encode(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Map values to [-1, 1]; what lies outside the window is clipped."""
        unit = (np.asarray(values, dtype=np.float64) - self.low) / self.range
        return np.clip(2 * unit - 1, -1, 1).astype(np.float32)

    def decode(self, encoded: NDArray[Any]) -> NDArray[np.float32]:
        """Map [-1, 1] back to values: the inverse of `encode` inside the window, to the rounding of float32."""
        return (self.low + self.range * (np.asarray(encoded, dtype=np.float64) + 1) / 2).astype(np.float32)

    def clipped_share(self, values: NDArray[Any]) -> float:
        """Give the share of values outside the window, 0 where there are none."""
        outside = (values < self.low) | (values > self.high)
        return float(outside.mean()) if outside.size else 0.0


def scale_of(spec: ImageSpec, data: NDArray[Any], foreground: NDArray[np.bool_]) -> Scale:
    """Give the scale of one image (protocol, "Scale").

    CT and PET have one for the cohort; MR and others the 0.5 and 99.5 percentiles of their own foreground.

    Parameters
    ----------
    spec
        Kind, window and ceiling.
    data, foreground
        The image in its own unit and its foreground, on one grid.

    Raises
    ------
    UserError
        When the foreground is empty, or constant where percentiles are taken.
    """
    values = data[foreground].astype(np.float64)
    if not values.size:
        raise UserError("the foreground is empty", "an image with something in it", "look at the image and its mask")
    if spec.kind == "ct":
        return Scale(*spec.window, unit="HU")
    if spec.kind == "pet":
        return Scale(0.0, spec.ceiling, unit="SUV")
    low, high = (float(value) for value in np.percentile(values, _PERCENTILES))
    if not high > low:
        raise UserError(f"the image is constant in its foreground ({low:g})", "an image with contrast")
    return Scale(low, high, unit="1")


def median_of(encoded: NDArray[Any], foreground: NDArray[np.bool_]) -> float:
    """Give the median of an image in [-1, 1] over its foreground, as a share of its scale in [0, 1]."""
    return float(np.median((encoded[foreground].astype(np.float64) + 1) / 2))


def gain_to(median: float, encoded: NDArray[Any], foreground: NDArray[np.bool_]) -> float:
    """Give the factor that brings an image's median to `median`, between a half and two.

    The upper percentile of an MR scale follows what is rare and bright: lesions in FLAIR, vessels and fat. The median
    follows tissue (docs/decisions/source-median.md).
    """
    own = median_of(encoded, foreground)
    return float(np.clip(median / own, 1 / _LARGEST_GAIN, _LARGEST_GAIN)) if own > 0 else 1.0


def amplified(encoded: NDArray[Any], gain: float) -> NDArray[np.float32]:
    """Multiply an image in [-1, 1] by a factor, from its lower end; what gets too bright is clipped."""
    values = np.asarray(encoded, np.float32)
    brighter = values if gain == 1 else (values + 1) * np.float32(gain) - 1
    return np.asarray(brighter.clip(-1, 1))
