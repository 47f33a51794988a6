"""How a subject is shown: turned to the radiological convention, each image in the window that its kind is read in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scanbridge.data.grid import Grid, model_grid, resample
from scanbridge.data.intensity import Scale
from scanbridge.report.planes import Look, Planes, cut
from scanbridge.truth import Array, Truth

DISPLAY = "SPL"
LEAST_SUV, BRIGHTEST = 5.0, 99.5
"""The window of a PET ends at this SUV, or at this percentile of the patient's own foreground where that is higher."""
SOFT_TISSUE = (-160.0, 240.0)
"""The window, in HU, in which a CT is read for what is neither bone nor air; a CT that is predicted is shown whole."""


def planes_of(truth: Truth, estimate: Array, uncertainty: Array, draw: Array | None = None) -> Planes:
    """Cut a subject in the three planes of its picture, in display orientation.

    Parameters
    ----------
    truth
        The subject.
    estimate, uncertainty, draw
        (I, J, K) on its grid, in the unit of the metrics.
    """
    to = model_grid(truth.grid, spacing=display_spacing(truth.grid), orientation=DISPLAY)
    body, share, scale = truth.regions["foreground"], truth.source, truth.source_scale
    source = share if scale.unit == "1" else scale.low + scale.range * share
    images = (source, scale), (truth.target, truth.scale)
    looks = [look(n, k, s, v[body]) for n, k, (v, s) in zip(truth.names, truth.kinds, images, strict=True)]
    if truth.kinds[0] == "ct":
        looks[0] = replace(looks[0], low=max(scale.low, SOFT_TISSUE[0]), high=min(scale.high, SOFT_TISSUE[1]))

    def turned(array: NDArray[Any]) -> NDArray[np.float32]:
        return resample(array.astype(np.float32), truth.grid, to)[0]

    return cut(
        turned(source),
        turned(estimate),
        turned(truth.target),
        spacing=to.spacing,
        looks=(looks[0], looks[1]),
        foreground=turned(body) > 0.5,
        uncertainty=turned(uncertainty),
        draw=None if draw is None else turned(draw),
    )


def look(name: str, kind: str, scale: Scale, values: NDArray[Any]) -> Look:
    """Give the window in which an image and what is predicted of it are shown.

    A PET ends where its brightest voxels do, since the whole scale would show a tumour of SUV 5 nearly as background.

    Parameters
    ----------
    name, kind, scale
        The image's column, its kind, and its scale.
    values
        The true image in its foreground, in the unit of the metrics.
    """
    low, high = (0.0, 1.0) if scale.unit == "1" else (scale.low, scale.high)
    if kind == "pet" and values.size:
        high = min(high, max(LEAST_SUV, float(np.percentile(values, BRIGHTEST))))
    return Look(name, low, high, scale.unit, inverted=kind == "pet")


def display_spacing(grid: Grid) -> tuple[float, float, float]:
    """Give a grid's spacing in the order of the display's axes, so that turning it copies values."""
    pairs = {frozenset(pair): pair for pair in ("SI", "AP", "LR")}
    by_pair = {next(p for p in pairs if code in p): mm for code, mm in zip(grid.orientation, grid.spacing, strict=True)}
    first, second, third = (by_pair[next(p for p in pairs if code in p)] for code in DISPLAY)
    return first, second, third
