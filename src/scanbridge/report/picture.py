"""One image of a page: encoded as a data URI, described in words, nothing written or fetched."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

_PIXELS_PER_INCH = 96  # of CSS


@dataclass(frozen=True)
class Picture:
    """An image for a page: a data URI, what it shows in words, and its size in CSS pixels."""

    uri: str
    alt: str
    width: int
    height: int

    @property
    def data(self) -> bytes:
        """The image file itself."""
        return base64.b64decode(self.uri.partition(",")[2])


def png(figure: Figure, alt: str, dpi: int = 130) -> Picture:
    """Encode a picture of a scan."""
    return _encoded(figure, alt, "image/png", format="png", dpi=dpi, metadata={"Software": None})


def svg(figure: Figure, alt: str) -> Picture:
    """Encode a plot; without a date, so that the same numbers give the same bytes."""
    return _encoded(figure, alt, "image/svg+xml", format="svg", metadata={"Date": None, "Creator": None})


def _encoded(figure: Figure, alt: str, mime: str, **options: Any) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, facecolor=figure.get_facecolor(), **options)
    width, height = (round(float(inches) * _PIXELS_PER_INCH) for inches in figure.get_size_inches())
    return Picture(f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}", alt, width, height)


def box_around(foreground: NDArray[np.bool_], margin: int = 3) -> tuple[slice, slice, slice]:
    """Give the box of the foreground with some air around it, or all where there is none."""
    spans = []
    for axis, size in enumerate(foreground.shape):
        held = np.flatnonzero(foreground.any(axis=tuple(i for i in range(3) if i != axis)))
        first, last = (int(held[0]), int(held[-1])) if held.size else (0, size - 1)
        spans.append(slice(max(0, first - margin), min(size, last + margin + 1)))
    return spans[0], spans[1], spans[2]
