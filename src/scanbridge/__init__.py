"""Translate one medical scan into another that was never acquired, with an uncertainty for every voxel.

>>> import scanbridge  # doctest: +SKIP
>>> scanbridge.load("runs/a").translate("scan.nii.gz").save("t1w.nii.gz")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from scanbridge.api import Run, Translation

__version__ = "0.1.0"
__all__ = ["Run", "Translation", "__version__", "load"]


def load(run: str | Path, *, device: str = "auto") -> Run:
    """Open a trained run; see `scanbridge.api.Run`."""
    from scanbridge.api import Run  # noqa: PLC0415  (torch is loaded only when a run is opened)

    return Run(run, device=device)


def __getattr__(name: str) -> Any:
    if name in ("Run", "Translation"):
        from scanbridge import api  # noqa: PLC0415  (see load)

        return getattr(api, name)
    raise AttributeError(name)
