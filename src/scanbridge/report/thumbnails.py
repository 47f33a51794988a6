"""Small pictures of a scan for a page that shows many: three planes beside each other, the foreground outlined."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from scanbridge.report.picture import Picture, box_around

_EDGE = 255  # the last of 256 colours; the others are greys
_COLOURS = [*(level for grey in range(_EDGE) for level in (grey, grey, grey)), 125, 211, 168]
_HEIGHT, _GAP = 150, 4  # CSS pixels; drawn twice as fine


def thumbnail(volume: npt.NDArray[Any], foreground: npt.NDArray[np.bool_], *, alt: str) -> Picture:
    """Draw the axial, coronal and sagittal plane through the middle of a foreground.

    Parameters
    ----------
    volume
        (D, H, W) in "SPL" order and [-1, 1], of cubic voxels.
    foreground
        (D, H, W): the picture is cropped to it, and its edge is drawn.
    alt
        What is shown, in words.
    """
    box = box_around(foreground)
    d, h, w = ((span.start + span.stop) // 2 for span in box)
    planes = [(d, box[1], box[2]), (box[0], h, box[2]), (box[0], box[1], w)]
    largest = max(span.stop - span.start for span in box)
    drawn = [
        _drawn(np.asarray(volume[at]), foreground[at], 2 * _HEIGHT / largest, upside_down=index > 0)
        for index, at in enumerate(planes)
    ]
    tall = max(picture.shape[0] for picture in drawn)
    gap = np.zeros((tall, 2 * _GAP), dtype=np.uint8)
    strip = np.concatenate([part for picture in drawn for part in (_centred(picture, tall), gap)][:-1], axis=1)
    buffer = io.BytesIO()
    image = Image.fromarray(strip)
    image.putpalette(_COLOURS)
    image.save(buffer, format="PNG", optimize=True)
    uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(uri, alt, strip.shape[1] // 2, strip.shape[0] // 2)


def _drawn(
    plane: npt.NDArray[Any], inside: npt.NDArray[np.bool_], scale: float, *, upside_down: bool
) -> npt.NDArray[np.uint8]:
    """Give a plane (rows, columns) as colours, enlarged by `scale`, with the edge of the foreground."""
    if upside_down:  # slices run to superior, the rows of a picture run down
        plane, inside = plane[::-1], inside[::-1]
    size = tuple(max(1, round(n * scale)) for n in plane.shape[::-1])
    grey = np.round((np.clip(plane, -1, 1) + 1) * ((_EDGE - 1) / 2)).astype(np.uint8)
    picture = np.array(Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC))
    body = np.asarray(Image.fromarray(inside.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)) > 127
    picture[picture == _EDGE] = _EDGE - 1  # bicubic overshoot
    picture[body & ~ndimage.binary_erosion(body)] = _EDGE
    return picture


def _centred(picture: npt.NDArray[np.uint8], tall: int) -> npt.NDArray[np.uint8]:
    """Put black above and below."""
    above = (tall - picture.shape[0]) // 2
    return np.pad(picture, ((above, tall - picture.shape[0] - above), (0, 0)))
