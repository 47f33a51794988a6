"""How close a predicted volume is to the truth, region by region.

All numbers are those of the protocol: the range R is the fixed range of the image's scale (1, the width of the HU
window, the SUV ceiling) and never a volume's own maximum, since that alone moves PSNR by decibels; every mean is over
the voxels of a region, since background that is trivially right moves PSNR by decibels too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from scanbridge.metrics.slices import Image, Mask, slice_shape, slice_style

SSIM_WINDOW = 11
"""Voxels across the Gaussian window of SSIM (sigma 1.5, cut at 3.5 sigma)."""

_EMPTY = "the region is empty"
_FLAT = "the truth is constant here"

_HIGHER, _ONE = ("psnr", "psnr_native", "ssim"), ("sharpness", "spread_ratio")


def direction(metric: str) -> Literal["higher", "lower", "one"]:
    """Say which way a metric is better: higher, lower, or the nearer to one.

    >>> direction("ssim_axial"), direction("mae"), direction("sharpness")
    ('higher', 'lower', 'one')
    """
    if metric in _ONE:
        return "one"
    return "higher" if metric in _HIGHER or metric.startswith("ssim_") else "lower"


@dataclass(frozen=True)
class Measurement:
    """One number of one region: `value` is None where it cannot be had, and `note` says why."""

    region: str
    metric: str
    unit: str
    value: float | None
    note: str = ""


def measure(
    prediction: Image,
    target: Image,
    regions: Mapping[str, Mask],
    *,
    data_range: float,
    unit: str,
    axes: Mapping[str, int],
    slice_axis: int,
) -> list[Measurement]:
    """Measure a prediction against the truth in every region, in every metric of the protocol.

    Parameters
    ----------
    prediction, target
        (I, J, K) in the unit of the scale, finite everywhere.
    regions
        Name to voxels that count, (I, J, K) each. Voxels outside the other image's field of view are already out.
    data_range
        R, the range of the scale in `unit`; positive.
    unit
        "HU", "SUV" or "1".
    axes
        Name of each plane to the array axis orthogonal to it, as {"axial": 2, "coronal": 1, "sagittal": 0} for RAS.
    slice_axis
        The array axis along which the model stacks its slices: said in the note of that plane's slice metrics.

    Returns
    -------
    list of Measurement
        Region by region. PSNR of a perfect prediction is infinite.

    Raises
    ------
    ValueError
        Where shapes differ, an image is not finite or `data_range` is not positive.
    """
    _check(prediction, target, regions, data_range)
    union = np.logical_or.reduce([*regions.values()]) if regions else np.zeros(target.shape, bool)
    box = bounding_box(union, margin=SSIM_WINDOW // 2)
    p, t = prediction[box], target[box]
    held = {name: region[box] for name, region in regions.items()}
    similarity = {name: ssim_map(p, t, data_range=data_range, axis=axis) for name, axis in _windows(axes).items()}
    details = (detail(p), detail(t))
    error = p.astype(np.float64) - t

    rows: list[Measurement] = []
    for name, region in held.items():
        if not region.any():
            rows += [Measurement(name, metric, u, None, _EMPTY) for metric, u in _metrics(unit, axes)]
            continue
        rows += _pointwise(name, error, t, region, data_range, unit)
        rows += [_mean_similarity(name, metric, values, region) for metric, values in similarity.items()]
        sharpness = _ratio(*(float(np.square(d[region], dtype=np.float64).sum()) for d in details))
        rows.append(Measurement(name, "sharpness", "1", sharpness, _FLAT if sharpness is None else ""))
        rows += _across_slices(name, error, t, region, unit, axes, slice_axis)
    return rows


def psnr(prediction: Image, target: Image, region: Mask, *, data_range: float) -> float:
    """Give 10 log10(R^2 / MSE) in dB over a region; infinite for a perfect prediction.

    >>> psnr(np.full((2, 2, 2), 0.1), np.zeros((2, 2, 2)), np.ones((2, 2, 2), bool), data_range=1.0)
    20.0
    """
    return _decibel(float(np.mean(np.square(prediction[region].astype(np.float64) - target[region]))), data_range)


def ssim_map(prediction: Image, target: Image, *, data_range: float, axis: int | None = None) -> Image | None:
    """Give structural similarity at every voxel.

    Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, population covariance, reflected at the ends of the volume: with
    three voxels of constant background around a region, more background changes nothing inside it.

    Parameters
    ----------
    prediction, target
        (I, J, K), one unit.
    data_range
        R in that unit.
    axis
        None for windows in three dimensions; otherwise windows of two in the planes orthogonal to this array axis.

    Returns
    -------
    ndarray or None
        (I, J, K) in [-1, 1]; None where the volume is smaller than the window.

    Source: Wang et al., Image quality assessment, IEEE TIP 13 (2004), eq. 13, with the parameters given there.
    """
    if min(n for i, n in enumerate(target.shape) if i != axis) < SSIM_WINDOW:
        return None
    _, values = structural_similarity(  # type: ignore[no-untyped-call]
        target,
        prediction.astype(target.dtype, copy=False),
        data_range=data_range,
        channel_axis=axis,  # every slice is a channel of its own: windows never leave their plane
        gaussian_weights=True,
        sigma=1.5,
        K1=0.01,
        K2=0.03,
        use_sample_covariance=False,
        full=True,
    )
    return np.asarray(values)


def bounding_box(region: Mask, margin: int) -> tuple[slice, ...]:
    """Give the slices that hold a region and `margin` voxels around it, as far as the volume goes.

    Each side is at least a whole window (2 margin + 1) where the volume has that many voxels: the values inside the
    region are then those of the uncropped volume, whatever filter up to that size is applied.
    An empty region gives the box of the smallest size.
    """
    box = []
    for axis, size in enumerate(region.shape):
        occupied = np.flatnonzero(region.any(axis=tuple(i for i in range(region.ndim) if i != axis)))
        first, last = (int(occupied[0]), int(occupied[-1])) if occupied.size else (0, 0)
        start, stop = max(0, first - margin), min(size, last + margin + 1)
        stop = min(size, max(stop, start + 2 * margin + 1))
        box.append(slice(max(0, min(start, stop - 2 * margin - 1)), stop))
    return tuple(box)


def _windows(axes: Mapping[str, int]) -> dict[str, int | None]:
    return {"ssim_3d": None, **{f"ssim_{plane}": axis for plane, axis in axes.items()}}


def _metrics(unit: str, axes: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every metric with its unit, in the order in which they are given."""
    return [
        *[("psnr", "dB"), ("mae", unit), ("nrmse", "1"), ("nmse", "1"), ("nmae", "1")],
        *[(metric, "1") for metric in _windows(axes)],
        ("sharpness", "1"),
        *[(f"slice_style_{plane}", unit) for plane in axes],
        *[(f"slice_shape_{plane}", "1") for plane in axes],
    ]


def _pointwise(name: str, error: Image, target: Image, region: Mask, data_range: float, unit: str) -> list[Measurement]:
    e, t = error[region], target[region].astype(np.float64)
    mse, mae = float(np.mean(e**2)), float(np.mean(np.abs(e)))
    nmse, nmae = _ratio(mse, float(np.mean(t**2))), _ratio(mae, float(np.mean(np.abs(t))))
    zero = "the truth is zero here"
    return [
        Measurement(name, "psnr", "dB", _decibel(mse, data_range), "" if mse else "identical to the truth"),
        Measurement(name, "mae", unit, mae),
        Measurement(name, "nrmse", "1", math.sqrt(mse) / data_range),
        Measurement(name, "nmse", "1", nmse, zero if nmse is None else ""),
        Measurement(name, "nmae", "1", nmae, zero if nmae is None else ""),
    ]


def _mean_similarity(name: str, metric: str, values: Image | None, region: Mask) -> Measurement:
    if values is None:
        return Measurement(name, metric, "1", None, f"an axis has fewer than {SSIM_WINDOW} voxels")
    return Measurement(name, metric, "1", float(values[region].mean(dtype=np.float64)))


def _across_slices(
    name: str, error: Image, target: Image, region: Mask, unit: str, axes: Mapping[str, int], slice_axis: int
) -> list[Measurement]:
    styles, shapes = [], []
    for plane, axis in axes.items():
        own = "across the model's own slices" if axis == slice_axis else ""
        style, shape = slice_style(error, region, axis), slice_shape(error, target, region, axis)
        styles.append(Measurement(name, f"slice_style_{plane}", unit, style, "one slice" if style is None else own))
        shapes.append(Measurement(name, f"slice_shape_{plane}", "1", shape, _FLAT if shape is None else own))
    return styles + shapes


def detail(image: Image) -> Image:
    """Give what a Gaussian of one voxel takes away from an image (I, J, K), its high frequencies."""
    single = image.astype(np.float32, copy=False)
    return np.asarray(single - gaussian_filter(single, 1.0, mode="reflect"))


def _decibel(mse: float, data_range: float) -> float:
    return 10.0 * math.log10(data_range**2 / mse) if mse else math.inf


def _ratio(value: float, reference: float) -> float | None:
    return value / reference if reference else None


def _check(prediction: Image, target: Image, regions: Mapping[str, Mask], data_range: float) -> None:
    shapes = {prediction.shape, target.shape, *(region.shape for region in regions.values())}
    if len(shapes) != 1 or target.ndim != 3:
        raise ValueError(f"one shape (I, J, K) for images and regions, not {sorted(shapes)}")
    if not data_range > 0:
        raise ValueError(f"data_range must be positive, not {data_range}")
    if not (np.isfinite(prediction).all() and np.isfinite(target).all()):
        raise ValueError("prediction and target must be finite")
