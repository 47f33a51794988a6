"""Figures of a report, each as one data URI: nothing is written, fetched or shown.

Pictures of scans are PNG on black; plots are SVG on white. Volumes come in display orientation, array order (D, H, W)
with axis 0 running to the patient's superior, rows to the posterior and columns to the left ("SPL"): shown with row 0
on top that is the radiological convention, the patient's right on the viewer's left.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

Volume = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]
Spacing = tuple[float, float, float]

SIGNED = LinearSegmentedColormap.from_list("signed", ["#8fd3ff", "#1f77c9", "#000000", "#d1541a", "#ffd08a"])
"""Blue is too low, black is right, orange is too high; told apart by every kind of colour vision."""

COLOURS = ("#1f5fa8", "#c2571a", "#2e7d4f", "#7a4ea3", "#a88400", "#0f7f86")
_GREY = "#6b7280"
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "scanbridge",  # the same numbers give the same bytes
    "svg.fonttype": "path",
}

PLANES = ("axial", "coronal", "sagittal")


@dataclass(frozen=True)
class Picture:
    """An image for a page: a data URI, what it shows in words, and its size in CSS pixels."""

    uri: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class Strip:
    """One subject in three planes: the images beside each other, and the maps of error and uncertainty."""

    images: Picture
    maps: Picture


@dataclass(frozen=True)
class Series:
    """One line of a plot; `low` and `high` bound a band, `reference` draws it as a mark to compare with."""

    label: str
    x: Sequence[float] | npt.NDArray[np.float64]
    y: Sequence[float] | npt.NDArray[np.float64]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
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


@dataclass(frozen=True)
class _Panel:
    title: str
    volume: Volume
    colours: str | Colormap
    low: float
    high: float
    unit: str = ""


def strip(
    source: Volume,
    prediction: Volume,
    truth: Volume | None,
    *,
    spacing: Spacing,
    names: tuple[str, str],
    source_window: tuple[float, float],
    window: tuple[float, float],
    unit: str,
    foreground: Mask,
    uncertainty: Volume | None = None,
    at: tuple[int, int, int] | None = None,
    error_limit: float | None = None,
    uncertainty_limit: float | None = None,
    outline: bool = False,
) -> Strip:
    """Draw a subject in three planes: source, prediction and truth, and beside them signed error and uncertainty.

    Parameters
    ----------
    source, prediction, truth
        (D, H, W) in "SPL" order, each in its own unit. Without a truth there is no error.
    spacing
        Voxel size in mm in array order: a pixel is drawn with the shape that it has.
    names
        What source and target are called, for titles and alternative text.
    source_window, window
        Values shown as black and white, of the source, and of prediction and truth alike.
    unit
        Of prediction, error and uncertainty; "1" is not printed.
    foreground
        (D, H, W): the picture is cropped to it, and the three planes go through its middle.
    uncertainty
        (D, H, W), high = unsure.
    at
        Voxel (d, h, w) that the planes go through instead, as the centre of a lesion.
    error_limit, uncertainty_limit
        End of each colour bar: give one for all subjects of a page. Default: the 99th percentile in the foreground.
    outline
        Draw the foreground's edge.
    """
    box = _box(foreground)
    centre = _middle(foreground) if at is None else at
    index = (centre[0] - box[0].start, centre[1] - box[1].start, centre[2] - box[2].start)
    images = [_Panel(names[0], source[box], "gray", *source_window)]
    images.append(_Panel(f"{names[1]}, predicted", prediction[box], "gray", *window))
    maps = []
    if truth is not None:
        images.append(_Panel(f"{names[1]}, measured", truth[box], "gray", *window))
        error = np.where(foreground, prediction.astype(np.float32) - truth, 0.0)
        limit = error_limit or _limit(error, foreground)
        maps.append(_Panel("predicted − measured", error[box], SIGNED, -limit, limit, unit))
    if uncertainty is not None:
        limit = uncertainty_limit or _limit(uncertainty, foreground)
        maps.append(_Panel("uncertainty", np.where(foreground, uncertainty, 0.0)[box], "magma", 0.0, limit, unit))
    edge = foreground[box] if outline else None
    where = "in axial, coronal and sagittal planes, the patient's right on the left of the picture"
    alt = f"{', '.join(panel.title for panel in images)}; {where}"
    alt_maps = f"Maps of {' and of '.join(panel.title for panel in maps)}; {where}" if maps else ""
    return Strip(_panels(images, index, spacing, edge, alt), _panels(maps, index, spacing, edge, alt_maps))


def dot_plot(rows: Sequence[Dots], *, label: str, alt: str) -> Picture:
    """Draw every subject as a dot, a row for each run, the mean with its interval above the dots.

    Rows marked `reference` (floors) are grey, and a dashed line carries their mean through all other rows.
    """
    with rc_context(_STYLE):
        figure, axes = _plot(5.2, 1.0 + 0.52 * len(rows))
        for position, row in enumerate(rows):
            colour = _GREY if row.reference else COLOURS[0]
            shown = [value for value in row.values if np.isfinite(value)]
            spread = 0.22 * _spread(len(shown)) + 0.12
            axes.scatter(shown, position + spread, s=16, color=colour, alpha=0.55, linewidths=0)
            if row.mean is not None and np.isfinite(row.mean):
                if row.reference:
                    axes.axvline(row.mean, color=_GREY, linestyle=(0, (4, 3)), linewidth=0.9, zorder=0)
                if row.low is not None and row.high is not None:
                    axes.plot([row.low, row.high], [position - 0.25] * 2, color=colour, linewidth=2.4)
                axes.plot([row.mean], [position - 0.25], "D" if not row.reference else "s", color=colour, markersize=5)
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="#e5e7eb", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel(label)
        return _svg(figure, alt)


def curves(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    alt: str,
    log_x: bool = False,
    log_y: bool = False,
    points: bool = False,
) -> Picture:
    """Draw lines with their bands: training curves, quality against calls, risk against coverage, and the like.

    Parameters
    ----------
    series
        References are dashed and grey.
    points
        Mark every point, where there are few and each was measured.
    """
    with rc_context(_STYLE):
        figure, axes = _plot(5.2, 3.3)
        colours = iter(COLOURS * (1 + len(series) // len(COLOURS)))
        for line in series:
            colour = _GREY if line.reference else next(colours)
            style, marker = ((0, (4, 3)) if line.reference else "-"), ("o" if points and not line.reference else "")
            axes.plot(
                line.x, line.y, color=colour, linestyle=style, marker=marker, markersize=4, lw=1.5, label=line.label
            )
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if log_x:
            axes.set_xscale("log")
            _plain_ticks(axes, sorted({float(x) for line in series for x in line.x}))
        if log_y:
            axes.set_yscale("log")
        axes.grid(color="#e5e7eb", linewidth=0.6)
        axes.set_axisbelow(True)
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=8)
        return _svg(figure, alt)


def training_curves(series: Sequence[Series], *, y_label: str = "loss", log_y: bool = True) -> Picture:
    """Draw losses or metrics against the number of images seen."""
    names = ", ".join(line.label for line in series)
    return curves(series, x_label="images seen", y_label=y_label, log_y=log_y, alt=f"Training curves: {names}")


def quality_against_calls(series: Sequence[Series], *, y_label: str) -> Picture:
    """Draw a metric against the network calls a volume takes."""
    alt = f"{y_label} against network calls for {', '.join(line.label for line in series)}"
    return curves(series, x_label="network calls", y_label=y_label, log_x=True, points=True, alt=alt)


def risk_coverage_curves(series: Sequence[Series], *, unit: str) -> Picture:
    """Draw the mean error of the most certain voxels against their share: a lower curve ranks better."""
    alt = f"Mean absolute error of the most certain voxels against their share, for {_names(series)}"
    return curves(
        series, x_label="share of voxels kept, most certain first", y_label=_with_unit("mean error", unit), alt=alt
    )


def error_against_uncertainty(
    error: Volume, uncertainty: Volume, region: Mask, *, unit: str, n_bins: int = 20
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
    labels = {"x_label": _with_unit("uncertainty", unit), "y_label": _with_unit("|error|", unit)}
    return curves([line, even], **labels, alt="Absolute error against uncertainty, in bins of equally many voxels")


def _panels(panels: Sequence[_Panel], index: tuple[int, ...], spacing: Spacing, edge: Mask | None, alt: str) -> Picture:
    """Draw rows of planes by columns of panels; all voxels at one scale in mm, so that rows fit each other."""
    if not panels:
        return Picture("", alt, 0, 0)
    shape = panels[0].volume.shape
    sizes = [extent * step for extent, step in zip(shape, spacing, strict=True)]  # mm
    heights, widths = (sizes[1], sizes[0], sizes[0]), (sizes[2], sizes[2], sizes[1])
    inch = 1.9 / max(widths)
    bar, title = 0.42, 0.24
    height = sum(heights) * inch + bar + title + 0.06 * len(PLANES)
    figure = Figure(figsize=(1.96 * len(panels), height), facecolor="black")
    FigureCanvasAgg(figure)
    for column, panel in enumerate(panels):
        top = height - title
        figure.text((column + 0.5) / len(panels), 1 - 0.13 / height, panel.title, color="#e5e7eb", fontsize=8.5, **_MID)
        for plane, tall, wide in zip(PLANES, heights, widths, strict=True):
            top -= tall * inch
            left = (column + 0.5) * 1.96 - wide * inch / 2
            axes = figure.add_axes(
                (left / (1.96 * len(panels)), top / height, wide * inch / (1.96 * len(panels)), tall * inch / height)
            )
            _slice(axes, panel, plane, index, edge, labelled=column == 0)
            top -= 0.06
        if panel.low < 0 or panel.colours == "magma":
            _bar(figure, panel, (column + 0.14) / len(panels), 0.72 / len(panels), 0.3 / height, 0.09 / height)
        elif panel.unit == "" and column < len(panels):
            figure.text((column + 0.5) / len(panels), 0.2 / height, _range(panel), color="#9ca3af", fontsize=7, **_MID)
    return _png(figure, alt)


_MID = {"ha": "center", "va": "center"}


def _slice(axes: Axes, panel: _Panel, plane: str, index: tuple[int, ...], edge: Mask | None, *, labelled: bool) -> None:
    """Show one plane; superior is up in coronal and sagittal planes, anterior up in axial ones."""
    axes.imshow(_cut(panel.volume, plane, index), cmap=panel.colours, vmin=panel.low, vmax=panel.high, aspect="auto")
    if edge is not None:
        cut = _cut(edge, plane, index).astype(np.float32)
        if 0 < cut.mean() < 1:
            axes.contour(cut, levels=[0.5], colors=["#7dd3a8"], linewidths=0.5)
    axes.set_axis_off()
    if labelled:
        sides = ("A", "P") if plane == "sagittal" else ("R", "L")
        for x, side in zip((0.02, 0.98), sides, strict=True):
            axes.text(x, 0.5, side, transform=axes.transAxes, color="#fbbf24", fontsize=7.5, ha="center", va="center")


def _cut(volume: npt.NDArray[Any], plane: str, index: tuple[int, ...]) -> npt.NDArray[Any]:
    if plane == "axial":
        return volume[index[0]]
    cut = volume[:, index[1], :] if plane == "coronal" else volume[:, :, index[2]]
    return cut[::-1]  # slices run to superior, rows of a picture run down


def _bar(figure: Figure, panel: _Panel, left: float, width: float, bottom: float, height: float) -> None:
    axes = figure.add_axes((left, bottom, width, height))
    mappable = ScalarMappable(Normalize(panel.low, panel.high), panel.colours)
    ticks = [panel.low, 0.0, panel.high] if panel.low < 0 else [0.0, panel.high]
    bar = figure.colorbar(mappable, cax=axes, orientation="horizontal", ticks=ticks)
    bar.ax.set_xticklabels([_short(tick, panel.unit if tick == panel.high else "") for tick in ticks])
    bar.ax.tick_params(colors="#9ca3af", labelsize=7, length=2, pad=2)
    bar.outline.set_visible(False)  # type: ignore[operator]


def _range(panel: _Panel) -> str:
    return f"{_short(panel.low)} to {_short(panel.high)}"


def _short(value: float, unit: str = "") -> str:
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return text.replace("-", "−") + (f" {unit}" if unit not in {"", "1"} else "")


def _box(foreground: Mask, margin: int = 3) -> tuple[slice, slice, slice]:
    spans = []
    for axis, size in enumerate(foreground.shape):
        held = np.flatnonzero(foreground.any(axis=tuple(i for i in range(3) if i != axis)))
        first, last = (int(held[0]), int(held[-1])) if held.size else (0, size - 1)
        spans.append(slice(max(0, first - margin), min(size, last + margin + 1)))
    return spans[0], spans[1], spans[2]


def _middle(foreground: Mask) -> tuple[int, int, int]:
    box = _box(foreground, margin=0)
    d, h, w = ((span.start + span.stop) // 2 for span in box)
    return d, h, w


def _limit(values: Volume, foreground: Mask) -> float:
    held = np.abs(values[foreground])
    return float(np.percentile(held, 99)) or 1.0 if held.size else 1.0


def _spread(n: int) -> npt.NDArray[np.float64]:
    """Offsets in [-0.5, 0.5] that keep neighbours apart, the same every time."""
    return (np.arange(n) * 0.618034) % 1.0 - 0.5


def _plot(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _plain_ticks(axes: Axes, values: Sequence[float]) -> None:
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.minorticks_off()


def _names(series: Sequence[Series]) -> str:
    return ", ".join(line.label for line in series)


def _with_unit(name: str, unit: str) -> str:
    return name if unit in {"", "1"} else f"{name} ({unit})"


def _png(figure: Figure, alt: str, dpi: int = 130) -> Picture:
    return _encoded(figure, alt, "image/png", {"format": "png", "dpi": dpi, "metadata": {"Software": None}})


def _svg(figure: Figure, alt: str) -> Picture:
    return _encoded(figure, alt, "image/svg+xml", {"format": "svg", "metadata": {"Date": None, "Creator": None}})


def _encoded(figure: Figure, alt: str, mime: str, options: Mapping[str, Any]) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, facecolor=figure.get_facecolor(), **options)
    width, height = (int(round(inches * 96)) for inches in figure.get_size_inches())
    return Picture(f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}", alt, width, height)
