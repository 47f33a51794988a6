"""The page of a downstream task: what each input was worth, how far apart they are, and pictures of what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scanbridge.report.picture import Picture, png
from scanbridge.report.planes import Look
from scanbridge.report.tables import Table
from scanbridge.report.template import template

Plane = npt.NDArray[Any]

_TRUTH, _EXTRA, _MISSED, _LIGHT = "#7dd3a8", (0.95, 0.48, 0.1), (0.25, 0.6, 1.0), "#e5e7eb"
_COLUMN, _TITLE = 2.2, 0.3  # inches


@dataclass(frozen=True)
class Shown:
    """One image of a subject, (H, W), how it is shown, and what was found on it where a mask was looked for."""

    look: Look
    image: Plane
    found: Plane | None = None


@dataclass(frozen=True)
class Pictured:
    """One subject: its pictures, and a line of text beside its name."""

    name: str
    text: str
    picture: Picture


@dataclass(frozen=True)
class TaskContext:
    """Everything the page says; `tables` are shown in order, each after the other, `verb` is the command."""

    title: str
    data: Sequence[tuple[str, str]]
    verdict: Sequence[str]
    tables: Sequence[Table]
    plots: Sequence[Picture]
    subjects: Sequence[Pictured]
    legend: str
    limits: Sequence[str]
    settings: Sequence[tuple[str, str]]
    verb: str = "downstream"


def render_task(context: TaskContext) -> str:
    """Give the page as one string of HTML that asks for nothing else."""
    return template("task.html.j2").render(context=context)


def side_by_side(
    shown: Sequence[Shown], *, spacing: tuple[float, float], truth: Plane | None = None, alt: str
) -> Picture:
    """Draw images of one slice beside each other.

    Parameters
    ----------
    shown
        (H, W) each, row 0 on top.
    spacing
        Size of a pixel in mm, rows first.
    truth
        (H, W) bool: its edge is drawn; what was found beside it is orange, what was missed blue.
    alt
        What is shown, in words.
    """
    rows, columns = shown[0].image.shape
    height = _COLUMN * rows * spacing[0] / (columns * spacing[1])
    figure = Figure(figsize=(_COLUMN * len(shown), height + _TITLE), facecolor="black")
    FigureCanvasAgg(figure)
    for index, each in enumerate(shown):
        axes = figure.add_axes((index / len(shown), 0, 0.98 / len(shown), height / (height + _TITLE)))
        colours, (low, high) = "gray_r" if each.look.inverted else "gray", (each.look.low, each.look.high)
        axes.imshow(each.image, cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="bicubic")
        if truth is not None:
            if each.found is not None:
                axes.imshow(_overlay(each.found, truth), aspect="auto", interpolation="nearest")
            if truth.any() and not truth.all():
                axes.contour(truth.astype(np.float32), levels=[0.5], colors=[_TRUTH], linewidths=0.9)
        axes.set_axis_off()
        middle, top = (index + 0.49) / len(shown), 1 - _TITLE / 2 / (height + _TITLE)
        figure.text(middle, top, each.look.name, color=_LIGHT, fontsize=9, ha="center", va="center")
    return png(figure, alt)


def _overlay(found: Plane, truth: Plane) -> npt.NDArray[np.float32]:
    """Give colours (H, W, 4): too much and too little, all else transparent."""
    colours = np.zeros((*truth.shape, 4), dtype=np.float32)
    for marked, colour in ((found & ~truth, _EXTRA), (truth & ~found, _MISSED)):
        colours[marked] = (*colour, 0.55)
    return colours
