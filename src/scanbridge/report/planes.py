"""A scan in three planes, in the radiological convention, with the maps of its error and its uncertainty.

Volumes come in display orientation, array order (D, H, W) with axis 0 running to the patient's superior, rows to the
posterior and columns to the left ("SPL"): shown with row 0 on top, the patient's right is on the viewer's left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from scanbridge.report.picture import Picture, box_around, png

Volume = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]
Spacing = tuple[float, float, float]

PLANES = ("axial", "coronal", "sagittal")
SIGNED = LinearSegmentedColormap.from_list("signed", ["#8fd3ff", "#1f77c9", "#000000", "#d1541a", "#ffd08a"])
"""Blue is too low, black is right, orange is too high; told apart by every kind of colour vision."""

_MINUS = "\N{MINUS SIGN}"
_COLUMN, _GAP, _TITLE, _FOOT = 1.96, 0.06, 0.3, 0.44  # inches
_LIGHT, _DIM, _SIDE, _EDGE = "#e5e7eb", "#9ca3af", "#fbbf24", "#7dd3a8"
_SIDE_ON_WHITE = "#b45309"


@dataclass(frozen=True)
class Look:
    """How an image and what is predicted of it are shown: its name, the values at both ends, their unit ("1": none).

    `inverted` has the high values dark, as PET is read.
    """

    name: str
    low: float
    high: float
    unit: str = "1"
    inverted: bool = False

    def panel(self, title: str, planes: dict[str, npt.NDArray[Any]]) -> Panel:
        """Give a panel of three planes."""
        return Panel(title, planes, self.low, self.high, "gray_r" if self.inverted else "gray", self.unit)


@dataclass(frozen=True)
class Strip:
    """One subject: the images beside each other, the maps of error and uncertainty, and estimate beside draw.

    Where there is a draw no picture has more than two columns, so that it fits a phone.
    """

    images: Picture
    maps: Picture | None
    draws: Picture | None = None


@dataclass(frozen=True)
class Panel:
    """Three planes of one volume, and the values at the ends of its colours."""

    title: str
    planes: dict[str, npt.NDArray[Any]]
    low: float
    high: float
    colours: str | Colormap = "gray"
    unit: str = ""

    @property
    def is_map(self) -> bool:
        """Whether it is a map of error or uncertainty, and not an image."""
        return self.colours not in ("gray", "gray_r")

    def up_to(self, limit: float | None) -> Panel:
        """Give the panel with another end of its colour bar."""
        return self if limit is None else replace(self, low=-limit if self.low < 0 else self.low, high=limit)


@dataclass(frozen=True)
class Planes:
    """What the pictures of one subject show: a few flat images, however large the volumes were.

    `draws` are estimate and draw, which then are not among the `images`.
    `extent` is (deep, high, wide) in mm; `edge` the foreground's planes where its outline is drawn.
    """

    images: tuple[Panel, ...]
    error: Panel | None
    uncertainty: Panel | None
    extent: tuple[float, float, float]
    edge: dict[str, npt.NDArray[Any]] | None = None
    draws: tuple[Panel, ...] = ()


def cut(
    source: Volume,
    prediction: Volume,
    truth: Volume | None,
    *,
    spacing: Spacing,
    looks: tuple[Look, Look],
    foreground: Mask,
    uncertainty: Volume | None = None,
    draw: Volume | None = None,
    at: tuple[int, int, int] | None = None,
    outline: bool = False,
) -> Planes:
    """Cut a subject in three planes: source, prediction and truth, signed error and uncertainty.

    Parameters
    ----------
    source, prediction, truth
        (D, H, W) in "SPL" order, each in its own unit. Without a truth there is no error.
    spacing
        Voxel size in mm in array order: a voxel is drawn with the shape that it has.
    looks
        How the source is shown, and how prediction, draw and truth are, all three alike.
    foreground
        (D, H, W): the picture is cropped to it, the planes go through its middle, and the maps are 0 outside.
    uncertainty
        (D, H, W), high = unsure.
    draw
        (D, H, W), one draw, to stand beside the prediction, which is then called an estimate.
    at
        Voxel (d, h, w) that the planes go through instead, as the centre of a lesion.
    outline
        Draw the foreground's edge.
    """
    centre, box = at or _middle(foreground), box_around(foreground)

    def planes(volume: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        return {plane: _cut(volume, plane, box, centre) for plane in PLANES}

    of_source, of_target = looks
    name, unit = of_target.name, of_target.unit
    images = [of_source.panel(of_source.name, planes(source))]
    draws: tuple[Panel, ...] = ()
    if draw is None:
        images.append(of_target.panel(f"predicted {name}", planes(prediction)))
    else:
        named = {f"{name}, estimate": prediction, f"{name}, one draw": draw}
        draws = tuple(of_target.panel(title, planes(volume)) for title, volume in named.items())
    error = doubt = None
    if truth is not None:
        images.append(of_target.panel(f"measured {name}", planes(truth)))
        wrong = np.where(foreground, prediction.astype(np.float32) - truth, 0.0)
        limit = limit_of(wrong, foreground)
        error = Panel(f"predicted {_MINUS} measured", planes(wrong), -limit, limit, SIGNED, unit)
    if uncertainty is not None:
        limit = limit_of(uncertainty, foreground)
        doubt = Panel("uncertainty", planes(np.where(foreground, uncertainty, 0.0)), 0.0, limit, "magma", unit)
    deep, high, wide = ((span.stop - span.start) * step for span, step in zip(box, spacing, strict=True))
    edge = planes(foreground) if outline else None
    return Planes(tuple(images), error, doubt, (deep, high, wide), edge, draws)


def draw(planes: Planes, *, error_limit: float | None = None, uncertainty_limit: float | None = None) -> Strip:
    """Draw a subject: the images beside each other, and the maps beside them.

    Parameters
    ----------
    planes
        As `cut` gives them.
    error_limit, uncertainty_limit
        End of each colour bar: give one for all subjects of a page. Default: the 99th percentile in the foreground.
    """
    limited = ((planes.error, error_limit), (planes.uncertainty, uncertainty_limit))
    maps = [panel.up_to(limit) for panel, limit in limited if panel is not None]
    drawn = [_draw(panels, planes) if panels else None for panels in (maps, planes.draws)]
    return Strip(_draw(planes.images, planes), *drawn)


def limit_of(values: Volume, foreground: Mask) -> float:
    """Give the 99th percentile of |values| in the foreground, 1 where that is 0: the end of a colour bar."""
    held = np.abs(values[foreground])
    return (float(np.percentile(held, 99)) if held.size else 0.0) or 1.0


def _draw(panels: Sequence[Panel], subject: Planes) -> Picture:
    """Draw rows of planes by columns of panels, all at one scale in mm, so that two such pictures align."""
    deep, high, wide = subject.extent
    sizes = {"axial": (high, wide), "coronal": (deep, wide), "sagittal": (deep, high)}
    scale = (_COLUMN - _GAP) / max(wide, high)  # inches per mm
    width = _COLUMN * len(panels)
    height = sum(tall for tall, _ in sizes.values()) * scale + len(PLANES) * _GAP + _TITLE + _FOOT
    figure = Figure(figsize=(width, height), facecolor="black")
    FigureCanvasAgg(figure)
    for column, panel in enumerate(panels):
        middle, top = (column + 0.5) * _COLUMN, height - _TITLE
        _write(figure, middle / width, 1 - _TITLE / 2 / height, panel.title, 10, _LIGHT)
        for plane in PLANES:
            tall, across = (extent * scale for extent in sizes[plane])
            top -= tall
            axes = figure.add_axes(((middle - across / 2) / width, top / height, across / width, tall / height))
            _show(axes, panel, plane, subject.edge)
            top -= _GAP
        _foot(figure, panel, middle / width, _COLUMN / width, 1 / height)
    titles = " and ".join([", ".join(panel.title for panel in panels[:-1]), panels[-1].title]).removeprefix(" and ")
    return png(figure, f"{titles}; {', '.join(PLANES)} planes, the patient's right on the left")


def _show(axes: Axes, panel: Panel, plane: str, edge: dict[str, npt.NDArray[Any]] | None) -> None:
    scale = Normalize(panel.low, panel.high)
    axes.imshow(panel.planes[plane], cmap=panel.colours, norm=scale, aspect="auto", interpolation="bicubic")
    if edge is not None:
        outline = edge[plane].astype(np.float32)
        if 0 < outline.mean() < 1:
            axes.contour(outline, levels=[0.5], colors=[_EDGE], linewidths=0.5)
    axes.set_axis_off()
    colour = _SIDE_ON_WHITE if panel.colours == "gray_r" else _SIDE
    sides = ("A", "P") if plane == "sagittal" else ("R", "L")
    for x, side in zip((0.03, 0.97), sides, strict=True):
        axes.text(x, 0.06, side, transform=axes.transAxes, color=colour, fontsize=8.5, ha="center", va="center")


def _cut(
    volume: npt.NDArray[Any], plane: str, box: tuple[slice, slice, slice], centre: tuple[int, int, int]
) -> npt.NDArray[Any]:
    """Copy one plane: anterior is up in axial planes, superior in the others."""
    if plane == "axial":
        return volume[centre[0], box[1], box[2]].copy()
    flat = volume[box[0], centre[1], box[2]] if plane == "coronal" else volume[box[0], box[1], centre[2]]
    return flat[::-1].copy()  # slices run to superior, the rows of a picture run down


def _foot(figure: Figure, panel: Panel, middle: float, column: float, inch: float) -> None:
    """Say what the brightness means: a bar for maps, the two ends of the window for images."""
    if not panel.is_map:
        window = f"window {_short(panel.low)} to {_short(panel.high, panel.unit)}"
        _write(figure, middle, 0.5 * _FOOT * inch, window, 8, _DIM)
        return
    axes = figure.add_axes((middle - 0.36 * column, 0.28 * inch, 0.72 * column, 0.08 * inch))
    ticks = [panel.low, 0.0, panel.high] if panel.low < 0 else [0.0, panel.high]
    bar = figure.colorbar(
        ScalarMappable(Normalize(panel.low, panel.high), panel.colours), cax=axes, orientation="horizontal", ticks=ticks
    )
    bar.ax.set_xticklabels([_short(tick, panel.unit if tick == panel.high else "") for tick in ticks])
    labels = bar.ax.get_xticklabels()
    labels[0].set_horizontalalignment("left")  # so that none leaves the picture
    labels[-1].set_horizontalalignment("right")
    bar.ax.tick_params(colors=_DIM, labelsize=8, length=2, pad=2)


def _write(figure: Figure, x: float, y: float, text: str, size: float, colour: str) -> None:
    figure.text(x, y, text, color=colour, fontsize=size, ha="center", va="center")


def _short(value: float, unit: str = "") -> str:
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return text.replace("-", _MINUS) + (f" {unit}" if unit not in {"", "1"} else "")


def _middle(foreground: Mask) -> tuple[int, int, int]:
    d, h, w = ((span.start + span.stop) // 2 for span in box_around(foreground, margin=0))
    return d, h, w
