"""The box around the foreground: where training items come from and where a translation does its work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def widened(span: slice, size: int) -> slice:
    """Give a span of at least `size` voxels about the same middle; it may reach beyond the volume."""
    missing = max(0, size - (span.stop - span.start))
    start = span.start - missing // 2
    return slice(start, span.stop + missing - missing // 2)


def take(volume: NDArray[Any], spans: Sequence[slice], fill: float) -> NDArray[np.float32]:
    """Copy a part of an array, with `fill` where a span reaches beyond it."""
    out = np.full([span.stop - span.start for span in spans], fill, dtype=np.float32)
    inside = [slice(max(s.start, 0), min(s.stop, n)) for s, n in zip(spans, volume.shape, strict=True)]
    put = tuple(slice(i.start - s.start, i.stop - s.start) for i, s in zip(inside, spans, strict=True))
    out[put] = volume[tuple(inside)]
    return out
