"""The box around the foreground: where training items come from and where a translation does its work."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Box = tuple[slice, slice, slice]


def box_of(foreground: NDArray[np.bool_], margin: int = 4) -> Box:
    """Give the bounding box of a foreground (D, H, W), `margin` voxels wider in plane where the volume allows it."""
    edges = []
    for axis, extra in zip(range(3), (0, margin, margin), strict=True):
        others = tuple(a for a in range(3) if a != axis)
        hit = np.flatnonzero(foreground.any(axis=others))
        edges.append(slice(max(int(hit[0]) - extra, 0), min(int(hit[-1]) + 1 + extra, foreground.shape[axis])))
    return edges[0], edges[1], edges[2]
