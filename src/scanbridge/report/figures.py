"""Plots of a report: every subject, every floor, every band of an interval. SVG on white, as data URIs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scanbridge.report.picture import Picture, svg

Values = Sequence[float] | npt.NDArray[np.floating[Any]]

COLOURS = ("#1f5fa8", "#c2571a", "#2e7d4f", "#7a4ea3", "#a88400", "#0f7f86")
_GREY, _RULE = "#6b7280", "#e5e7eb"
_DASHED = (0, (4, 3))
_REFERENCES = (_DASHED, (0, (1, 2)), (0, (6, 2, 1, 2)))
"""Lines of references, so that one is told from the next."""


@dataclass(frozen=True)
class Series:
    """One line of a plot; `low` and `high` bound a band, `reference` draws it as a mark to compare with."""

    label: str
    x: Values
    y: Values
    low: Values | None = None
    high: Values | None = None
    reference: bool = False


@dataclass(frozen=True)
class Dots:
    """One row of a dot plot: a run's subjects, with the mean and its interval where there are any."""

    label: str
    values: Sequence[float]
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    reference: bool = False


def dot_plot(rows: Sequence[Dots], *, label: str, alt: str) -> Picture:
    """Draw every subject as a dot, a row for each run, the mean with its interval above the dots.

    Rows marked `reference` (floors) are grey, and a dashed line carries their mean through all other rows.
    """
    with _style():
        figure, axes = _plot(4.4, 0.9 + 0.5 * len(rows))
        for position, row in enumerate(rows):
            colour = _GREY if row.reference else COLOURS[0]
            shown = [value for value in row.values if np.isfinite(value)]
            spread = 0.22 * _spread(len(shown)) + 0.12
            axes.scatter(shown, position + spread, s=16, color=colour, alpha=0.55, linewidths=0)
            if row.mean is not None and np.isfinite(row.mean):
                if row.reference:
                    axes.axvline(row.mean, color=_GREY, linestyle=_DASHED, linewidth=0.9, zorder=0)
                if row.low is not None and row.high is not None:
                    axes.plot([row.low, row.high], [position - 0.25] * 2, color=colour, linewidth=2.4)
                axes.plot([row.mean], [position - 0.25], "D" if not row.reference else "s", color=colour, markersize=5)
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=_RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel(label)
        return svg(figure, alt)


def curves(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    alt: str,
    log_y: bool = False,
    points: bool = False,
) -> Picture:
    """Draw lines with their bands: training curves, risk against coverage, and the like.

    Parameters
    ----------
    series
        References are broken and grey.
    points
        Mark every point, where there are few and each was measured.
    """
    with _style():
        figure, axes = _plot(4.4, 3.0)
        colours, marks = itertools.cycle(COLOURS), itertools.cycle(_REFERENCES)
        for line in series:
            colour, style = (_GREY, next(marks)) if line.reference else (next(colours), "-")
            marker = "o" if points and not line.reference else ""
            axes.plot(
                line.x, line.y, color=colour, linestyle=style, marker=marker, markersize=4, lw=1.5, label=line.label
            )
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.locator_params(axis="x", nbins=6)
        if log_y:
            axes.set_yscale("log")
        axes.grid(color=_RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=8)
        return svg(figure, alt)


def training_curves(series: Sequence[Series], *, y_label: str = "loss", log_y: bool = True) -> Picture:
    """Draw losses or metrics against the number of images seen."""
    names = ", ".join(line.label for line in series)
    return curves(series, x_label="images seen", y_label=y_label, log_y=log_y, alt=f"Training curves: {names}")


def risk_coverage_curves(series: Sequence[Series], *, unit: str) -> Picture:
    """Draw the mean error of the most certain voxels against their share: a lower curve ranks better."""
    alt = f"Mean absolute error of the most certain voxels against their share, for {_names(series)}"
    return curves(
        series, x_label="share of voxels kept, most certain first", y_label=_with_unit("mean error", unit), alt=alt
    )


def misses_by_width(series: Sequence[Series], *, allowed: Sequence[float]) -> Picture:
    """Draw the share of voxels outside their interval by quarter of width; the shares allowed are dashed."""
    marks = [Series(f"{share:g} allowed", [1, 4], [share, share], reference=True) for share in dict.fromkeys(allowed)]
    return curves(
        [*series, *marks],
        x_label="quarter of the voxels, narrowest intervals first",
        y_label="share outside",
        points=True,
        alt=f"Share of voxels outside their interval by quarter of its width, for {_names(series)}",
    )


def error_against_uncertainty(
    error: npt.NDArray[Any],
    uncertainty: npt.NDArray[Any],
    region: npt.NDArray[np.bool_],
    *,
    unit: str,
    n_bins: int = 20,
) -> Picture:
    """Draw |error| against uncertainty: mean and middle half of the errors in bins of equally many voxels.

    Parameters
    ----------
    error, uncertainty
        Of one shape, in `unit`; several subjects may be joined.
    region
        Voxels that count.
    """
    doubts, losses = uncertainty[region].astype(np.float64), np.abs(error[region].astype(np.float64))
    order = np.argsort(doubts, kind="stable")
    groups = [group for group in np.array_split(order, n_bins) if group.size]
    x = [float(doubts[group].mean()) for group in groups]
    low, high = ([float(np.quantile(losses[group], q)) for group in groups] for q in (0.25, 0.75))
    line = Series("mean |error|, middle half shaded", x, [float(losses[g].mean()) for g in groups], low, high)
    even = Series("error = uncertainty", [0.0, max(x)], [0.0, max(x)], reference=True)
    alt = "Absolute error against uncertainty, in bins of equally many voxels"
    return curves([line, even], x_label=_with_unit("uncertainty", unit), y_label=_with_unit("|error|", unit), alt=alt)


def _spread(n: int) -> npt.NDArray[np.float64]:
    """Offsets in [-0.5, 0.5] that keep neighbours apart, the same every time."""
    return np.asarray((np.arange(n) * 0.618034) % 1.0 - 0.5, dtype=np.float64)


def _plot(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _names(series: Sequence[Series]) -> str:
    return ", ".join(line.label for line in series)


def _with_unit(name: str, unit: str) -> str:
    return name if unit in {"", "1"} else f"{name} ({unit})"


def _style() -> AbstractContextManager[None]:
    return rc_context(
        {
            "font.family": "sans-serif",
            "font.size": 9.0,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "svg.hashsalt": "scanbridge",  # the same numbers give the same bytes
            "svg.fonttype": "path",
        }
    )
