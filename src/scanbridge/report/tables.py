"""Tables of a report: from rows of numbers to cells of text, with the floors always in and visibly marked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Rows = Sequence[Mapping[str, Any]]

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"

REFERENCES = {
    "floor:histogram": "the source with the histogram of the training targets",
    "floor:intensity": "the mean target value of each source value in the training patients",
    "floor:regression": "a plain regression network trained on the same patients",
    "ceiling:autoencoder": "what the autoencoder keeps of the truth; no translation through it should do better",
    "one-call": "the bridge's own first estimate, one network call",
    "best-possible": "the best that any method could reach on simulated data",
}
"""What a run is compared with, in words."""

_METRICS = {
    "psnr": ("PSNR", "↑"),
    "psnr_native": ("PSNR, native scale", "↑"),
    "ssim_3d": ("SSIM 3D", "↑"),
    "ssim_axial": ("SSIM axial", "↑"),
    "ssim_coronal": ("SSIM coronal", "↑"),
    "ssim_sagittal": ("SSIM sagittal", "↑"),
    "mae": ("MAE", "↓"),
    "nrmse": ("NRMSE", "↓"),
    "nmse": ("NMSE", "↓"),
    "nmae": ("NMAE", "↓"),
    "sharpness": ("Sharpness", "→ 1"),
    "grain": ("Grain", "↓"),
    "spread_ratio": ("Spread over error", "→ 1"),
    "miss": ("Outside the interval", "↓"),
    "width": ("Width of the interval", "↓"),
    "miss_constant": ("Outside an interval of one width", "↓"),
    "width_constant": ("Width of an interval of one width", "↓"),
    "auc": ("AUC", "↑"),
    "accuracy": ("Accuracy", "↑"),
    "f1": ("F1", "↑"),
    "dice": ("Dice", "↑"),
    "jaccard": ("Jaccard", "↑"),
}


@dataclass(frozen=True)
class Cell:
    """A number as text: `main`, the interval or remark beneath it, and whether it is the best of its column."""

    main: str
    beneath: str = ""
    best: bool = False
    note: str = ""


@dataclass(frozen=True)
class Line:
    """One row: what it is about, its cells, whether it is a floor, and the group of rows that it belongs to."""

    head: str
    cells: tuple[Cell, ...]
    floor: bool = False
    group: str = ""


@dataclass(frozen=True)
class Table:
    """A table with its caption, the name of its first column, those of the others, and remarks beneath it."""

    caption: str
    head: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()


def metric_label(metric: str) -> str:
    """Name a metric for a reader.

    >>> metric_label("psnr"), metric_label("slice_style_axial")
    ('PSNR', 'Slice style axial')
    """
    return _METRICS[metric][0] if metric in _METRICS else metric.replace("_", " ").capitalize()


def metric_name(metric: str, unit: str = "1") -> str:
    """Name a metric with its unit and the way it is better.

    >>> metric_name("psnr", "dB"), metric_name("slice_style_axial", "HU"), metric_name("sharpness")
    ('PSNR (dB) ↑', 'Slice style axial (HU) ↓', 'Sharpness → 1')
    """
    arrow = _METRICS[metric][1] if metric in _METRICS else "↓"
    return f"{metric_label(metric)}{'' if unit == '1' else f' ({unit})'} {arrow}"


def is_floor(run: str) -> bool:
    """Say whether a run needs no network or is a bound: it is shown as a mark to compare with."""
    return run.startswith(("floor:", "ceiling:")) or run in REFERENCES


def number(value: float | None, unit: str, *, signed: bool = False) -> str:
    """Print a number with the digits that its unit deserves.

    >>> number(21.346, "dB"), number(-0.0123, "1", signed=True), number(None, "HU")
    ('21.35', '−0.012', '–')

    What rounds to nothing has no sign:

    >>> number(-0.0004, "dB", signed=True)
    '0.00'
    """
    if value is None:
        return DASH
    digits = {"dB": 2, "HU": 1, "SUV": 2}.get(unit, 3)
    text = f"{value:.{digits}f}"
    if not float(text):
        return text.removeprefix("-")
    return ("+" if signed and value > 0 else "") + text.replace("-", MINUS)


def interval(row: Mapping[str, Any], *, signed: bool = False) -> str:
    """Print the 95 % interval of a row, or nothing where it has none."""
    if row["low"] is None or row["high"] is None:
        return ""
    return f"[{number(row['low'], row['unit'], signed=signed)}, {number(row['high'], row['unit'], signed=signed)}]"


def summary_table(
    summary: Rows,
    metrics: Sequence[str],
    *,
    caption: str,
    target: str,
    regions: Sequence[str],
    leaders: Mapping[tuple[str, str], str | None] | None = None,
    explained: bool = False,
) -> Table | None:
    """Lay out runs by metrics: mean and interval of every cell; None where there is nothing to show.

    Parameters
    ----------
    summary
        Rows of `metrics.statistics.summarise`.
    metrics
        Columns, in order; those that no row has are left out.
    regions
        One region gives a row a run; several give a row for every region and run.
    leaders
        (target, metric) to the run that leads beyond chance; it is bold where no other number is printed like its own.
    explained
        Say beneath the table what its numbers and its floors are.
    """
    held = [row for row in summary if row["target"] == target and row["region"] in regions]
    cells = {(row["region"], row["run"], row["metric"]): row for row in held}
    units = {row["metric"]: row["unit"] for row in held}
    shown = [metric for metric in metrics if metric in units]
    if not shown:
        return None
    best, lines, counts = leaders or {}, [], []
    for region in regions:
        for run in _runs(row for row in held if row["region"] == region):
            rows = [cells.get((region, run, metric)) for metric in shown]
            counts.append(max((row["n"] for row in rows if row is not None), default=0))
            found = [
                _mean(row, counts[-1], leads=best.get((target, m)) == run) for m, row in zip(shown, rows, strict=True)
            ]
            lines.append(Line(run, tuple(found), is_floor(run), region if len(regions) > 1 else ""))
    lines = _without_ties(lines)
    columns = tuple(metric_name(metric, units[metric]) for metric in shown)
    notes = (*(_legend(lines) if explained else ()), *remarks(lines))
    if len(set(counts)) == 1:
        return Table(f"{caption}, {patients(counts[0])}", "Run", columns, tuple(lines), notes)
    counted = [replace(line, cells=(*line.cells, Cell(str(n)))) for line, n in zip(lines, counts, strict=True)]
    return Table(caption, "Run", (*columns, "Patients"), tuple(counted), notes)


def paired_table(paired: Rows, *, caption: str) -> Table | None:
    """Lay out the paired comparisons: the difference with its interval, p and Holm's p; None where there are none."""
    if not paired:
        return None
    lines = [
        Line(
            row["run"],
            (
                Cell(number(row["difference"], row["unit"], signed=True), interval(row, signed=True), note=row["note"]),
                Cell(p_value(row["p"])),
                Cell(p_value(row["p_holm"])),
                Cell(str(row["n"])),
            ),
            is_floor(row["run"]),
            f"{row['target']}, {metric_name(row['metric'], row['unit'])}, against {row['reference']}",
        )
        for row in paired
    ]
    notes = (
        "Difference: mean of run minus reference over the patients that both have, with its 95 % BCa interval. "
        "p: two-sided Wilcoxon signed-rank test. "
        f"p (Holm): adjusted for all {max(row['family'] for row in paired)} comparisons of its family.",
        *remarks(lines),
    )
    return Table(caption, "Run", ("Difference", "p", "p (Holm)", "Patients"), tuple(lines), notes)


def patients(n: int) -> str:
    """Print a count of patients.

    >>> patients(1), patients(3)
    ('1 patient', '3 patients')
    """
    return f"{n} patient{'' if n == 1 else 's'}"


def p_value(p: float | None) -> str:
    """Print a p-value as a number, never as a star.

    >>> p_value(0.03125), p_value(0.00001), p_value(None)
    ('0.031', '< 0.001', '–')
    """
    if p is None:
        return DASH
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _mean(row: Mapping[str, Any] | None, most: int, *, leads: bool) -> Cell:
    if row is None:
        return Cell(DASH)
    beneath = interval(row)
    if row["n"] != most:
        beneath = f"{beneath} n = {row['n']}".strip()
    infinite = row["mean"] is None and str(row.get("note", "")).startswith("infinite")
    return Cell("∞" if infinite else number(row["mean"], row["unit"]), beneath, best=leads, note=row.get("note", ""))


def _without_ties(lines: Sequence[Line]) -> list[Line]:
    """Take the bold from numbers that another row prints alike: beyond chance, and of the size of rounding."""
    columns = [[cell.main for cell in column] for column in zip(*(line.cells for line in lines), strict=True)]
    return [
        replace(
            line,
            cells=tuple(
                replace(cell, best=cell.best and column.count(cell.main) == 1)
                for cell, column in zip(line.cells, columns, strict=True)
            ),
        )
        for line in lines
    ]


def _legend(lines: Sequence[Line]) -> tuple[str, ...]:
    legend = "Mean over patients, beneath it the 95 % bootstrap interval (BCa, 10,000 resamples of patients)."
    if any(cell.best for line in lines for cell in line.cells):
        legend += " Bold: best of its column, and the paired interval against the next best excludes 0."
    heads = [line.head for line in lines]
    shown = [name for name in REFERENCES if any(head == name or head.endswith(f":{name}") for head in heads)]
    return (legend, *(f"{name}: {REFERENCES[name]}." for name in shown))


def remarks(lines: Sequence[Line]) -> tuple[str, ...]:
    """Say each remark about a number once."""
    said = dict.fromkeys(part for line in lines for cell in line.cells for part in cell.note.split("; ") if part)
    return (f"Remarks: {'; '.join(said)}.",) if said else ()


def _runs(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Give the runs in the order in which they came, floors last."""
    return sorted(dict.fromkeys(str(row["run"]) for row in rows), key=is_floor)
