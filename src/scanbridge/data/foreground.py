"""Where there is a patient: the voxels that scales, metrics and floors are about."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_multiotsu

from scanbridge.data.cohort import Kind

_AIR = -500.0  # HU, between air and any tissue
_NO_UPTAKE = 0.1  # SUV


def foreground(data: NDArray[Any], kind: Kind) -> NDArray[np.bool_]:
    """Give the largest connected piece of the body, holes filled (protocol, "Foreground").

    Parameters
    ----------
    data
        (I, J, K) in the image's own unit, on its own grid.
    kind
        ``"ct"``: above -500 HU. ``"pet"``: above 0.1 SUV. ``"mr"`` and ``"other"``: where at least 20 % of the box is
        empty (skull-stripped), magnitude above 1 % of its 99.9th percentile; else, smoothed by one voxel, above the
        lower of Otsu's two thresholds between air, dim tissue and bright tissue. The box is that of what is not exactly
        0, so that padding changes nothing; empty is below 0.1 % of that percentile, which air with noise is not.

    Returns
    -------
    numpy.ndarray
        Bool of the same shape; all False where nothing stands out.
    """
    if kind == "ct":
        body = data > _AIR
    elif kind == "pet":
        body = data > _NO_UPTAKE
    else:
        body = np.zeros(data.shape, dtype=np.bool_)
        box = _bounding_box(data != 0)
        body[box] = _bright(np.abs(data[box]))
    box = _bounding_box(body)
    body[box] = _filled(_largest(body[box]))
    return body


def _bright(magnitude: NDArray[Any]) -> NDArray[np.bool_]:
    """Threshold the magnitude of an image without a unit."""
    if not magnitude.size:
        return np.zeros(magnitude.shape, dtype=np.bool_)
    top = float(np.percentile(magnitude, 99.9))
    if magnitude.min() >= top > 0:
        return np.zeros(magnitude.shape, dtype=np.bool_)
    level, image = 0.01 * top, magnitude
    if (magnitude > 0.001 * top).mean() > 0.8:  # air is not empty, so there is noise in it
        # A few very bright voxels would leave the histogram with one bin for all the rest.
        image = ndimage.gaussian_filter(np.minimum(magnitude, top), sigma=1.0)
        level = _above_air(image)
    body: NDArray[np.bool_] = image > level
    return body


def _above_air(image: NDArray[Any]) -> float:
    """Give Otsu's lower threshold of three classes: with two, dim tissue goes to the air; infinite for two values."""
    try:
        return float(threshold_multiotsu(image.ravel(), classes=3)[0])  # type: ignore[no-untyped-call]
    except ValueError:
        return np.inf


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Give the smallest box that holds all True voxels, empty where there are none."""
    spans = (np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3))
    return tuple(slice(int(span[0]), int(span[-1]) + 1) if span.size else slice(0, 0) for span in spans)


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the largest piece that hangs together by faces."""
    pieces, _ = ndimage.label(mask)
    sizes = np.bincount(pieces.ravel())
    if sizes.size < 2:
        return mask
    sizes[0] = 0
    largest: NDArray[np.bool_] = pieces == sizes.argmax()
    return largest


def _filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill what the mask encloses; labelling is many times faster than growing the outside as scipy does."""
    pieces, n_pieces = ndimage.label(~mask)
    enclosed = np.ones(n_pieces + 1, dtype=np.bool_)
    for axis in range(3):
        enclosed[np.take(pieces, (0, -1) if mask.shape[axis] else (), axis)] = False
    enclosed[0] = False
    return mask | enclosed[pieces]
