"""The part of a report that holds intervals against their promise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scanbridge.report.tables import Cell, Line, Table, interval, number, patients, remarks

QUARTERS = ("narrowest quarter", "second", "third", "widest quarter")
MOST_LISTED = 20
"""Patients in the table of the worst."""


@dataclass(frozen=True)
class Intervals:
    """What the intervals of one run did, beside intervals of one width with the same promise.

    Attributes
    ----------
    run, promise, allowed
        The run, its promise in a sentence, and the share of a patient's voxels that may lie outside.
    patients
        (name, share outside, mean width); of several visits the worst.
    within
        95 % interval of the share of patients that keep `allowed`.
    rows
        Rows of `metrics.statistics.summarise` by metric: miss, width, and the same with ``_constant``.
    quarters
        Share outside by quarter of width, the narrowest first, mean over patients.
    regions
        Rows of miss and miss_constant by marked region.
    """

    run: str
    promise: str
    allowed: float
    patients: Sequence[tuple[str, float, float]]
    within: tuple[float, float]
    rows: Mapping[str, Mapping[str, Any]]
    quarters: Sequence[float]
    regions: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)


def interval_tables(found: Intervals) -> dict[str, Any]:
    """Lay out what the intervals of a run did beside those of one width, and its patients, the worst first."""
    unit = found.rows["width"]["unit"]
    columns = ("Share outside ↓", f"Width{'' if unit == '1' else f' ({unit})'} ↓", *(f"Outside, {q}" for q in QUARTERS))
    own, flat = ([_measured(found.rows[metric + end]) for metric in ("miss", "width")] for end in ("", "_constant"))
    lines = (
        Line(found.run, (*own, *(Cell(number(share, "1")) for share in found.quarters))),
        Line("one width, same promise", (*flat, *[Cell("")] * len(QUARTERS)), floor=True),
    )
    kept = sum(miss <= found.allowed for _, miss, _ in found.patients)
    n, (low, high) = len(found.patients), found.within
    notes = (
        f"{kept} of {patients(n)} ({100 * kept / n:.0f} %, 95 % interval {100 * low:.0f} to {100 * high:.0f} %) have "
        f"at most {100 * found.allowed:g} % of their voxels outside.",
        "Means over patients, beneath them the 95 % bootstrap interval. Quarters are of each patient's voxels, by "
        "width. An interval of one width, calibrated on the same patients, promises the same and knows nothing of the "
        "model: where it is no wider, the map is worth nothing.",
        *remarks(lines),
    )
    worst = sorted(found.patients, key=lambda patient: -patient[1])
    listed = tuple(
        Line(name, (Cell(number(miss, "1"), "" if miss <= found.allowed else "above"), Cell(number(width, unit))))
        for name, miss, width in worst[:MOST_LISTED]
    )
    more = (f"{n - MOST_LISTED} more are in metrics.csv.",) if n > MOST_LISTED else ()
    return {
        "promise": f"{found.run} promises: {found.promise}.",
        "table": Table(f"{found.run}: does the interval keep its promise?", "Interval", columns, lines, notes),
        "regions": _by_region(found),
        "worst": Table(f"{found.run}: patients, the worst first", "Patient", columns[:2], listed, more),
    }


def _by_region(found: Intervals) -> Table | None:
    """Lay out the misses in marked regions; None where there is none."""
    if not found.regions:
        return None
    lines = tuple(
        Line(region, tuple(_measured(rows[metric]) for metric in ("miss", "miss_constant")))
        for region, rows in found.regions.items()
    )
    notes = (
        "The promise is about the foreground as a whole, and a region may be missed altogether: read here what is "
        "outside where it matters. Means over the patients who have the region.",
        *remarks(lines),
    )
    columns = ("Share outside ↓", "Share outside, one width ↓")
    return Table(f"{found.run}: outside, region by region", "Region", columns, lines, notes)


def _measured(row: Mapping[str, Any]) -> Cell:
    return Cell(number(row["mean"], row["unit"]), interval(row), note=row["note"])
