"""The page of the verb ``consistency``: five groups by score, what choosing by it gains, and whether its map ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scanbridge import __version__
from scanbridge.branches.sampled import CHOICES, GROUPS, HIGHER, METRICS, TRIVIAL, Sampled
from scanbridge.metrics.statistics import side
from scanbridge.report.figures import Series, curves, risk_coverage_curves
from scanbridge.report.picture import Picture
from scanbridge.report.sections import Section, SectionsContext, render_sections
from scanbridge.report.tables import (
    DASH,
    MINUS,
    Cell,
    Line,
    Table,
    interval,
    metric_label,
    metric_name,
    number,
    patients,
    remarks,
)

OWN = ("consistency", "branches", "spread")
LIMITS = (
    "Research use only. Nothing on this page supports a decision about a patient.",
    "The score is optimistic by construction: the bridges were trained to please the network that gives it. A pair "
    "that is wrong together may still be consistent.",
    "The groups are the paper's figure 4. The least consistent and the most consistent draw of each scan fall into the "
    "first and the last group by definition; those between hold other patients and fewer of them, so that only "
    "differences from a patient's own mean compare like with like.",
    "Over few draws a rank correlation within one patient is coarse; only its mean over patients is worth reading.",
)
MAPS = (
    "consistency: root of the mean squared distance of latents. branches: half the distance between the two decoded "
    "branches. spread: standard deviation over the draws. gradient (of the source) and a constant know nothing of the "
    "run: a map that does no better than the gradient shows where edges are."
)


def consistency_page(
    found: Sequence[Sampled],
    summary: Sequence[Mapping[str, Any]],
    names: tuple[str, str],
    data: Sequence[tuple[str, str]],
    weights: tuple[str, str],
) -> str:
    """Give the page as HTML.

    Parameters
    ----------
    found, summary
        What was found: by scan, and over patients.
    names
        Of source and target.
    data, weights
        (name, text) for the head of the page, and whose weights these are.
    """
    cells = {(row["region"], row["metric"]): row for row in summary}
    n_draws = len(found[0].scores)
    draws = Section(
        "Does the score tell good draws from bad?",
        (
            f"Rank correlation of the score with quality over the {n_draws} draws of a scan, mean over patients: above "
            "0 for PSNR and SSIM, below 0 for the error, where a high score means a good image; 0 where it says "
            "nothing.",
        ),
        tables=[_correlations(cells), _choices(cells)],
    )
    groups = Section(
        "Five groups by normalised score, the paper's figure 4",
        (
            "The score of each draw, brought to 0 for the lowest and 1 for the highest of its scan; group 1 holds the "
            "lowest fifth of that range. The second table takes each patient's own mean away first.",
        ),
        tables=[_groups(cells, found, ""), _groups(cells, found, "_from_own_mean")],
        plots=[_group_plot(cells, metric) for metric in METRICS],
    )
    maps = Section(
        "Does the map of the score point at errors?",
        ("Maps beside the errors of the run's estimate, voxel by voxel within the foreground.", MAPS),
        tables=[_maps(cells, found[0].unit)],
        plots=[_risks(found)],
    )
    return render_sections(
        SectionsContext(
            verb="consistency",
            title=f"{names[0]} to {names[1]}: what the consistency score is worth",
            data=data,
            verdict=_verdict(cells),
            sections=[draws, groups, maps],
            limits=LIMITS,
            settings=[("scanbridge", __version__), weights],
        )
    )


Cells = Mapping[tuple[str, str], Mapping[str, Any]]


def _verdict(cells: Cells) -> list[str]:
    """Say what the score is worth: over draws, for choosing one, and voxel by voxel."""
    rank, gain = cells["score over the draws", "spearman_psnr"], cells["choosing by the score", "psnr_gain"]
    oracle = cells["choosing by the truth", "psnr_gain"]
    said = [
        f"Over the draws of a patient the score's rank correlation with PSNR is {_signed(rank)}: "
        f"{_meaning(rank, 'it prefers better draws', 'it prefers worse draws', 'no preference can be told')}.",
        f"The draw with the best score has {_signed(gain)} dB against any draw "
        f"({_meaning(gain, 'choosing helps', 'choosing harms', 'not beyond chance')}); "
        f"choosing by the truth would give {_signed(oracle)} dB.",
    ]
    words = ("worse than", "better than", "not to be told apart from")  # a small area is a good one
    edges, nothing = (_meaning(cells["map consistency", f"aurc_from_{name}"], *words) for name in TRIVIAL)
    best = min(OWN, key=lambda name: cells[f"map {name}", "aurc"]["mean"])
    return [
        *said,
        f"Voxel by voxel, the score's map ranks the errors {edges} the gradient of the source and {nothing} a "
        f"constant. Of the run's own maps '{best}' has the smallest area under its risk-coverage curve.",
    ]


def _meaning(row: Mapping[str, Any], above: str, below: str, neither: str) -> str:
    """Choose words by whether an interval excludes 0."""
    return {1: above, -1: below, 0: neither}[side(row["n"], row["low"], row["high"])]


def _signed(row: Mapping[str, Any]) -> str:
    return f"{number(row['mean'], row['unit'], signed=True)} {interval(row, signed=True)}".strip()


def _cell(row: Mapping[str, Any] | None, *, signed: bool = False) -> Cell:
    if row is None:
        return Cell(DASH)
    return Cell(number(row["mean"], row["unit"], signed=signed), interval(row, signed=signed), note=row["note"])


def _correlations(cells: Cells) -> Table:
    rows = [cells["score over the draws", f"spearman_{metric}"] for metric in METRICS]
    lines = (Line("consistency score", tuple(_cell(row, signed=True) for row in rows)),)
    columns = tuple(f"with {metric_label(metric)} {'→ 1' if metric in HIGHER else f'→ {MINUS}1'}" for metric in METRICS)
    n = max(row["n"] for row in rows)
    notes = ("Mean over patients, beneath it the 95 % bootstrap interval (BCa, 10,000 resamples of patients).",)
    return Table(f"Spearman over the draws, {patients(n)}", "", columns, lines, (*notes, *remarks(lines)))


def _choices(cells: Cells) -> Table:
    lines = [Line(name, tuple(_cell(cells[name, metric]) for metric in METRICS)) for name in CHOICES]
    lines += [
        Line(f"gain of {name}", tuple(_cell(cells[name, f"{metric}_gain"], signed=True) for metric in METRICS))
        for name in ("choosing by the score", "choosing by the truth")
    ]
    units = [cells[CHOICES[0], metric]["unit"] for metric in METRICS]
    columns = tuple(metric_name(metric, unit) for metric, unit in zip(METRICS, units, strict=True))
    note = "Choosing by the truth, metric by metric, is what no score can pass. Gains are against any draw."
    n = cells[CHOICES[0], "psnr"]["n"]
    return Table(f"What choosing by the score is worth, {patients(n)}", "Image", columns, tuple(lines), (note,))


def _groups(cells: Cells, found: Sequence[Sampled], end: str) -> Table:
    draws = [group for scan in found for group in scan.groups]
    units = {metric: cells[CHOICES[0], metric]["unit"] for metric in METRICS}
    lines = []
    for group in range(1, GROUPS + 1):
        rows = [cells.get((f"group {group}", f"{metric}{end}")) for metric in METRICS]
        n = max((row["n"] for row in rows if row is not None), default=0)
        counts = (Cell(str(n)), Cell(str(draws.count(group))))
        which = {1: " (lowest score)", GROUPS: " (highest score)"}.get(group, "")
        lines.append(Line(f"{group}{which}", (*(_cell(row, signed=bool(end)) for row in rows), *counts)))
    columns = (*(metric_name(metric, unit) for metric, unit in units.items()), "Patients", "Draws")
    caption = "Quality by group, from the patient's own mean" if end else "Quality by group"
    return Table(caption, "Group", columns, tuple(lines), remarks(lines))


def _group_plot(cells: Cells, metric: str) -> Picture:
    """Draw a metric's difference from the patient's own mean by group."""
    rows = {g: cells.get((f"group {g}", f"{metric}_from_own_mean")) for g in range(1, GROUPS + 1)}
    there = {group: row for group, row in rows.items() if row is not None and row["mean"] is not None}

    def ends(key: str) -> list[float]:
        return [row["mean"] if row[key] is None else row[key] for row in there.values()]

    line = Series(metric_label(metric), [*there], [row["mean"] for row in there.values()], ends("low"), ends("high"))
    zero = Series("the patient's own mean", [1, GROUPS], [0.0, 0.0], reference=True)
    unit = cells[CHOICES[0], metric]["unit"]
    label = f"{metric_label(metric)}{'' if unit == '1' else f' ({unit})'}, from own mean"
    alt = f"{metric_label(metric)} by group of the score, difference from the patient's own mean"
    return curves([line, zero], x_label="group by normalised score", y_label=label, points=True, alt=alt)


def _maps(cells: Cells, unit: str) -> Table:
    ended = "" if unit == "1" else f" ({unit})"
    metrics = {
        "spearman": "Spearman ↑",
        "aurc": f"AURC{ended} ↓",
        "e_aurc": f"E-AURC{ended} ↓",
        **{f"aurc_from_{name}": f"AURC less that of the {name}{ended} ↓" for name in TRIVIAL},
    }
    nothing = {("constant", "spearman"), *((name, f"aurc_from_{name}") for name in TRIVIAL)}
    lines = tuple(
        Line(
            name,
            tuple(
                _cell(
                    None if (name, metric) in nothing else cells[f"map {name}", metric],
                    signed=metric.startswith("aurc_from"),
                )
                for metric in metrics
            ),
            floor=name in TRIVIAL,
        )
        for name in (*OWN, *TRIVIAL)
    )
    note = (
        "Means over patients with their 95 % bootstrap intervals. Spearman: rank correlation of |error| and map. AURC: "
        "mean error of the voxels that a map is surest of, over all shares of them; E-AURC: its distance to the "
        "perfect order."
    )
    n = cells["map consistency", "aurc"]["n"]
    columns = tuple(metrics.values())
    return Table(f"How maps rank the errors of the estimate, {patients(n)}", "Map", columns, lines, (note,))


def _risks(found: Sequence[Sampled]) -> Picture:
    """Draw the risk-coverage curve of every map, mean over patients."""
    coverage = np.linspace(0.01, 1.0, 100)
    series = []
    for index, rank in enumerate(found[0].maps):
        people: dict[str, list[Any]] = {}
        for scan in found:
            curve = scan.maps[index].curve
            people.setdefault(scan.subject, []).append(np.interp(coverage, curve.coverage, curve.risk))
        risk = np.mean([np.mean(visits, axis=0) for visits in people.values()], axis=0)
        series.append(Series(rank.name, coverage, risk, reference=rank.name in TRIVIAL))
    return risk_coverage_curves(series, unit=found[0].unit)
