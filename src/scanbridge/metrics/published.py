"""The released definitions of three papers, under their own names, to be set beside those papers' tables alone.

None of them is ours: they include the background, or divide by the prediction's own range, or use a range that depends
on the sign of one voxel. `scanbridge.metrics.image` has the definitions that this project reports.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.ndimage import uniform_filter
from skimage.metrics import structural_similarity

from scanbridge.metrics.image import psnr
from scanbridge.metrics.slices import Image, Mask

Volume = npt.NDArray[np.float64]

_LEVEL_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, section 3.2
_LOW, _HIGH = -1024.0, 3071.0
_WINDOW = 7
_SMALLEST = 97  # (7 - 1) * 2^4 + 1: a window still fits at the fifth level


def ct2mri(prediction: Image, target: Image) -> dict[str, float]:
    """Measure as CT2MRI's released code does: the whole volume, range 1, NRMSE over the prediction's own range.

    Parameters
    ----------
    prediction, target
        (I, J, K) in [0, 1], at least 7 voxels an axis; background included.

    Returns
    -------
    dict
        nrmse (infinite for a constant prediction that is wrong), psnr in dB, ssim with a uniform window of 7^3.
    """
    p, t = prediction.astype(np.float64), target.astype(np.float64)
    rmse, spread = math.sqrt(float(np.mean((p - t) ** 2))), float(np.ptp(p))
    nrmse = rmse / spread if spread else (math.inf if rmse else 0.0)
    everywhere = np.ones(t.shape, bool)
    return {"nrmse": nrmse, "psnr": psnr(p, t, everywhere, data_range=1.0), "ssim": _uniform_ssim(p, t, 1.0)}


def resdm(prediction: Image, target: Image) -> dict[str, float]:
    """Measure as ResDM's released code does: the whole volume, library ranges of the time.

    PSNR has range 1, or 2 as soon as one voxel of the truth is negative (6 dB more); SSIM has range 2 throughout, which
    the library of the time assumed for floating point.

    Parameters
    ----------
    prediction, target
        (I, J, K) in [0, 1], at least 7 voxels an axis; background included.

    Returns
    -------
    dict
        mae, psnr in dB, ssim with a uniform window of 7^3.
    """
    p, t = prediction.astype(np.float64), target.astype(np.float64)
    data_range = 1.0 if t.min() >= 0 else 2.0
    decibel = psnr(p, t, np.ones(t.shape, bool), data_range=data_range)
    return {"mae": float(np.mean(np.abs(p - t))), "psnr": decibel, "ssim": _uniform_ssim(p, t, 2.0)}


def synthrad2025(prediction: Image, target: Image, mask: Mask) -> dict[str, float | None]:
    """Measure a synthetic CT as the SynthRAD2025 challenge does.

    Parameters
    ----------
    prediction, target
        (I, J, K) in HU.
    mask
        The body, (I, J, K), not empty.

    Returns
    -------
    dict
        mae in HU (not clipped), psnr in dB (clipped to [-1024, 3071], range 4095), ms_ssim (five levels; None where
        the mask vanishes at a level), each within the mask.
    """
    if not mask.any():
        raise ValueError("the mask is empty")
    clipped = [np.clip(image.astype(np.float64), _LOW, _HIGH) for image in (prediction, target)]
    # Outside the mask both are air; counting from 0 lets the halving below pad with air as well.
    p, t = (np.where(mask, image, _LOW) - _LOW for image in clipped)
    return {
        "mae": float(np.mean(np.abs(prediction[mask].astype(np.float64) - target[mask]))),
        "psnr": psnr(p, t, mask, data_range=_HIGH - _LOW),
        "ms_ssim": _ms_ssim(p, t, mask, _HIGH - _LOW),
    }


def _uniform_ssim(prediction: Volume, target: Volume, data_range: float) -> float:
    """SSIM with the library's defaults: a uniform window of 7^3 and sample covariance, borders left out."""
    value = structural_similarity(target, prediction, data_range=data_range)  # type: ignore[no-untyped-call]
    return float(value)


def _ms_ssim(prediction: Volume, target: Volume, mask: Mask, data_range: float) -> float | None:
    """Multi-scale SSIM within a mask: the product over levels of the weighted map's mean in the mask of that level."""
    widths = [(max(0, _SMALLEST - n) // 2, max(0, _SMALLEST - n) - max(0, _SMALLEST - n) // 2) for n in target.shape]
    p, t = np.pad(prediction, widths, mode="edge"), np.pad(target, widths, mode="edge")
    m = np.pad(mask, widths, mode="edge")
    product, inner = 1.0, (slice(_WINDOW // 2, -(_WINDOW // 2)),) * 3
    for weight in _LEVEL_WEIGHTS:
        counted = m[inner]
        if not counted.any():
            return None
        level = float(_weighted_ssim(p, t, weight, data_range)[inner][counted].mean())
        product *= min(max(level, 0.0), 1.0)
        p, t, m = _halved(p), _halved(t), m[::2, ::2, ::2]
    return product


def _halved(image: Volume) -> Volume:
    return np.asarray(uniform_filter(image, 2, mode="constant")[::2, ::2, ::2])


def _weighted_ssim(prediction: Volume, target: Volume, weight: float, data_range: float) -> Volume:
    """Luminance, contrast and structure, each clipped at 0, their product to the power of the level's weight."""
    unbiased = _WINDOW**3 / (_WINDOW**3 - 1)
    mu_p, mu_t = uniform_filter(prediction, _WINDOW), uniform_filter(target, _WINDOW)
    var_p = unbiased * (uniform_filter(prediction**2, _WINDOW) - mu_p**2)
    var_t = unbiased * (uniform_filter(target**2, _WINDOW) - mu_t**2)
    cov = unbiased * (uniform_filter(prediction * target, _WINDOW) - mu_p * mu_t)
    sd_product = np.sqrt(np.clip(var_p, 0, None)) * np.sqrt(np.clip(var_t, 0, None))
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mu_p * mu_t + c1) / (mu_p**2 + mu_t**2 + c1)
    contrast = (2 * sd_product + c2) / (var_p + var_t + c2)
    structure = (cov + c2 / 2) / (sd_product + c2 / 2)
    parts = (np.clip(part, 0, None) ** weight for part in (luminance, contrast, structure))
    return np.asarray(np.prod(list(parts), axis=0))
