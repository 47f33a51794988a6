"""The Python API: what the command line does, for people who write Python."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scanbridge.data.nifti import Volume, read
from scanbridge.model import Model
from scanbridge.options import Options
from scanbridge.translation import Translation, translate_volume

__all__ = ["Run", "Translation"]


class Run:
    """A trained run that translates volumes.

    Parameters
    ----------
    folder
        A run folder made by ``scanbridge train``.
    device
        auto, cpu or cuda.
    """

    def __init__(self, folder: str | Path, *, device: str = "auto") -> None:
        self.model = Model.open(Path(folder), device=device)

    def translate(
        self,
        volume: str | Path | Volume | NDArray[Any],
        *,
        affine: NDArray[np.float64] | None = None,
        **options: Any,
    ) -> Translation:
        """Translate one scan.

        Parameters
        ----------
        volume
            A NIfTI file, a `Volume`, or an array (I, J, K) in the source's own unit.
        affine
            (4, 4) voxel to mm, RAS+; needed with an array.
        options
            As in `Options`: target, quality, samples, seed, calls, order, grid, eta, temperature, style, foreground,
            interval.

        Returns
        -------
        Translation
            On the scan's own grid; with `low` and `high` where the run is calibrated for just this.

        Warns
        -----
        UserWarning
            If the scan is unlike those that the run was trained on.
        """
        if isinstance(volume, str | Path):
            volume = read(volume)
        elif not isinstance(volume, Volume):
            if affine is None:
                raise TypeError("an array needs its affine")
            volume = Volume(np.asarray(volume, np.float32), np.asarray(affine, np.float64), None, "")
        draws: list[NDArray[np.float32]] = []
        made = translate_volume(
            self.model,
            volume,
            Options(**options),
            on_draw=lambda number, draw, affine: draws.append(draw),  # noqa: ARG005
        )
        if warning := made.facts["input"].get("input_warning"):
            warnings.warn(f"the scan is {warning}", stacklevel=2)
        return replace(made, draws=draws)
