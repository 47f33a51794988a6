"""Small grey pictures that a training leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scanbridge.files import atomic


def save_strip(path: Path, slices: Sequence[NDArray[np.float32]]) -> None:
    """Write slices (H, W) in [-1, 1] side by side as a PNG, twice their size."""
    strip = np.concatenate([np.nan_to_num(s) for s in slices], axis=1)
    grey = np.round((strip.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    with atomic(path) as beside:
        Image.fromarray(grey).resize((grey.shape[1] * 2, grey.shape[0] * 2)).save(beside, format="PNG")
