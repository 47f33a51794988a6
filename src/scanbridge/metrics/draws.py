"""What K draws of one scan are worth beside one estimate: their mean, spread, contrasts and grain.

The truth is one more draw of a perfect sampler. Everything here follows from that: K perfect draws of variance v have
a mean whose squared error is v (1 + 1 / K), where the posterior mean has v and a single draw 2 v, which is 3 dB more.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_dilation, generate_binary_structure

from scanbridge.metrics.image import detail
from scanbridge.metrics.slices import Image, Mask

RIM = 3
"""Voxels around a region that its contrast is measured against."""
SURROUND = (5, 10)
"""Voxels away from a body: beyond the first, where its edge has faded, and up to the second, grain is measured."""

Values = npt.NDArray[np.float64]


class Moments:
    """Mean and standard deviation of volumes that come one by one; its memory does not grow with their number.

    Source: Welford, Note on a method for calculating corrected sums of squares and products, Technometrics 4 (1962).
    """

    def __init__(self) -> None:
        self.n = 0
        self._mean: Values = np.zeros(())
        self._squares: Values = np.zeros(())

    def add(self, volume: Image) -> None:
        """Take in one more volume; all are of one shape."""
        self.n += 1
        off = volume - self._mean
        self._mean = self._mean + off / self.n
        self._squares = self._squares + off * (volume - self._mean)

    @property
    def mean(self) -> npt.NDArray[np.float32]:
        """The mean, in the volumes' unit."""
        return self._mean.astype(np.float32)

    @property
    def spread(self) -> npt.NDArray[np.float32]:
        """The standard deviation (n - 1 in its denominator), in the volumes' unit; two volumes at least.

        Raises
        ------
        ValueError
            For fewer.
        """
        if self.n < 2:
            raise ValueError(f"{self.n} volumes have no spread")
        return np.sqrt(self._squares / (self.n - 1)).astype(np.float32)


def spread_ratio(error: Image, spread: Image, region: Mask, n_draws: int) -> float | None:
    """Give RMS of the spread over RMS error of the mean of K draws: 1 is calibrated, below 1 the draws are too alike.

    The mean of K draws is off by its own noise too, so the spread is multiplied by sqrt(1 + 1 / K): draws of a perfect
    sampler have a ratio of 1 for any K.

    Parameters
    ----------
    error
        Mean of the draws minus truth, (I, J, K).
    spread
        Standard deviation over the draws, (I, J, K), in the error's unit.
    region
        Voxels that count.
    n_draws
        K.

    Returns
    -------
    float or None
        Without unit; None where the region is empty or the mean is the truth itself.

    Source: Fortin et al., Why should ensemble spread match the RMSE of the ensemble mean?, J. Hydrometeorology 15
    (2014).
    """
    wrong = float(np.square(error[region], dtype=np.float64).sum())
    wide = float(np.square(spread[region], dtype=np.float64).sum())
    return math.sqrt((1 + 1 / n_draws) * wide / wrong) if wrong else None


def rim_of(region: Mask, within: Mask, *, width: int = RIM) -> Mask:
    """Give the voxels within `width` voxels of a region (city blocks), outside it and inside `within`."""
    grown = binary_dilation(region, generate_binary_structure(3, 1), iterations=width)
    return np.asarray(grown & within & ~region)


def contrast(region: Mask, within: Mask, *, width: int = RIM) -> Callable[[Image], float | None]:
    """Give what measures a region's contrast in an image: mean inside minus mean in its rim, None where one is empty.

    Parameters
    ----------
    region
        Lesions, (I, J, K); all of them are one region, and no other lesion is in the rim.
    within
        Voxels that a rim may have, as the foreground.
    """
    rim = rim_of(region, within, width=width)
    if not (region.any() and rim.any()):
        return lambda image: None  # noqa: ARG005  (nothing to measure in any image)
    return lambda image: float(image[region].mean(dtype=np.float64) - image[rim].mean(dtype=np.float64))


def grain(body: Mask, truth: Image) -> Callable[[Image], float | None]:
    """Give what measures grain in an image: its detail around a body, where there is nothing, over the truth's inside.

    RMS of the high frequencies in the `SURROUND`, over that of the truth within the body. White noise that passes for
    texture inside shows here; 0 is an empty surround, and the truth's own grain is its noise. None where the body
    fills the volume or the truth is constant.

    Parameters
    ----------
    body
        The foreground, (I, J, K).
    truth
        (I, J, K), in the unit of the images that will be measured.
    """
    near, far = (binary_dilation(body, generate_binary_structure(3, 1), iterations=n) for n in SURROUND)
    around = far & ~near
    inside = _rms(detail(truth), body) if body.any() else 0.0
    if not (around.any() and inside):
        return lambda image: None  # noqa: ARG005  (nothing to measure in any image)
    return lambda image: _rms(detail(image), around) / inside


def _rms(values: Image, region: Mask) -> float:
    return math.sqrt(float(np.square(values[region], dtype=np.float64).mean()))
