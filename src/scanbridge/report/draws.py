"""The part of a report that shows draws beside the estimate: what they cost, and what they offer for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scanbridge.metrics.draws import SURROUND
from scanbridge.report.tables import Cell, Line, Rows, Table, interval, metric_name, number, remarks, summary_table

SIDE_BY_SIDE = ("psnr", "ssim_3d", "mae", "sharpness", "grain")
CLOSE = 0.1
"""How far from 1 a ratio may be to count as right."""

PRODUCTS = (
    "An estimate is one volume that aims at the smallest error and is smooth; a draw is one sample of what the scan "
    "may have been, with texture. A perfect draw has twice the squared error of a perfect estimate, so it loses 3 dB "
    "to the mean: the rows below stand beside each other and are not ranked."
)

GRAIN = (
    f"Grain: RMS of the detail from {SURROUND[0]} to {SURROUND[1]} voxels outside the foreground, where there is "
    "nothing to show, over that of the truth inside it."
)


@dataclass(frozen=True)
class Contrast:
    """Contrast of a region in every product of a run.

    Attributes
    ----------
    region, unit
        The mask's name, and the unit of the contrast.
    rows, off
        By product's run: the summary's row, and the mean distance to the truth's contrast.
    nearer
        Whether a draw is nearer to the truth than the estimate, beyond chance.
    """

    region: str
    unit: str
    rows: Mapping[str, Mapping[str, Any]]
    off: Mapping[str, float]
    nearer: bool = False


@dataclass(frozen=True)
class Drawn:
    """What one run's draws did.

    Attributes
    ----------
    run, draw, mean, truth
        The rows of its estimate, of one draw, of the mean of its draws, and of the truth itself.
    n_draws
        K.
    target, region
        Where it was measured.
    summary
        Rows of `metrics.statistics.summarise`, in the order in which the products are shown.
    contrasts
        Of the regions that masks mark.
    """

    run: str
    draw: str
    mean: str
    truth: str
    n_draws: int
    target: str
    region: str
    summary: Rows
    contrasts: Sequence[Contrast] = ()

    def value(self, run: str, metric: str) -> float | None:
        """Give the mean over patients of one metric of one product."""
        row = self.row(run, metric)
        return None if row is None else row["mean"]

    def row(self, run: str, metric: str, region: str | None = None) -> Mapping[str, Any] | None:
        """Give the summary's row of one metric of one product."""
        key = (run, metric, region or self.region)
        return next((row for row in self.summary if (row["run"], row["metric"], row["region"]) == key), None)


def draw_block(found: Drawn) -> dict[str, Any]:
    """Lay out one run's draws beside its estimate: the sentences that the numbers make, and the tables."""
    beside = summary_table(
        found.summary,
        SIDE_BY_SIDE,
        caption=f"{found.run}, estimate and draws side by side: {found.region}",
        target=found.target,
        regions=[found.region],
    )
    if beside is not None:
        beside = replace(beside, notes=(*beside.notes, GRAIN))
    tables = [beside, _spread_table(found), *(_contrast_table(found, each) for each in found.contrasts)]
    return {"sentences": [cost(found), offer(found)], "tables": [table for table in tables if table is not None]}


def cost(found: Drawn) -> str:
    """Say what a draw costs in PSNR against the mean of K, beside what a perfect one would."""
    due = 10 * math.log10(2 / (1 + 1 / found.n_draws))
    draw, mean = (found.value(run, "psnr") for run in (found.draw, found.mean))
    said = f"A perfect draw is {number(due, 'dB')} dB below the mean of {found.n_draws} draws"
    if draw is None or mean is None:
        return f"{said}."
    side = "below" if draw < mean else "above"
    return f"{said}; a draw of {found.run} is {number(abs(mean - draw), 'dB')} dB {side} it."


def offer(found: Drawn) -> str:
    """Say what the draws offer that the estimate does not, or that they offer nothing."""
    kept = [_spread(found), _sharpness(found), *(_contrast(found, each) for each in found.contrasts)]
    known = [each for each in kept if each is not None]
    good, bad = ([text for is_good, text in known if is_good is wanted] for wanted in (True, False))
    if not good:
        return f"The draws of {found.run} offer nothing that the estimate does not: {'; '.join(bad) or 'no number'}."
    but = f" Against that: {'; '.join(bad)}." if bad else ""
    return f"The draws of {found.run} offer this: {'; '.join(good)}.{but}"


def _spread(found: Drawn) -> tuple[bool, str] | None:
    ratio = found.value(found.mean, "spread_ratio")
    if ratio is None:
        return None
    calibrated = abs(ratio - 1) <= CLOSE
    how = "calibrated" if calibrated else ("too alike" if ratio < 1 else "too unlike each other")
    return calibrated, f"their spread is {number(ratio, '1')} of the error of their mean ({how}; 1 is calibrated)"


def _sharpness(found: Drawn) -> tuple[bool, str] | None:
    draw, estimate = (found.value(run, "sharpness") for run in (found.draw, found.run))
    if draw is None or estimate is None:
        return None
    right = abs(draw - 1) <= CLOSE
    goal = f"{'within' if right else 'not within'} {100 * CLOSE:.0f} % of 1"
    shares = f"{number(draw, '1')} of the truth's sharpness ({goal}), the estimate {number(estimate, '1')}"
    grain, own = (found.value(run, "grain") for run in (found.draw, found.truth))
    if grain is None or own is None:
        return right, f"a draw has {shares}; grain counts as sharpness, so look at the pictures"
    clean = grain - own <= CLOSE
    noise = f"its grain is {number(grain, '1')} where the truth's is {number(own, '1')}"
    counts = "" if clean else ": much of what passes for detail is noise"
    return right and clean, f"a draw has {shares}; {noise}{counts}"


def _contrast(found: Drawn, each: Contrast) -> tuple[bool, str] | None:
    draw, estimate = (each.off.get(run) for run in (found.draw, found.run))
    if draw is None or estimate is None:
        return None
    unit = "" if each.unit == "1" else f" {each.unit}"
    off = f"{number(draw, each.unit)}{unit} off in a draw and {number(estimate, each.unit)}{unit} in the estimate"
    chance = "" if each.nearer or draw >= estimate else ", which may be chance"
    return each.nearer, f"the contrast of {each.region} is {off}{chance}"


def _spread_table(found: Drawn) -> Table | None:
    """Lay out the ratio of spread to error in all regions."""
    held = [row for row in found.summary if (row["run"], row["metric"]) == (found.mean, "spread_ratio")]
    if not held:
        return None
    lines = tuple(Line(row["region"], (_measured(row),)) for row in held)
    note = (
        f"RMS of the spread over {found.n_draws} draws, over the RMS error of their mean, with the factor "
        f"sqrt(1 + 1 / {found.n_draws}) for so few draws: below 1 the draws are too alike, above 1 too unlike."
    )
    columns = (metric_name("spread_ratio"),)
    return Table(f"{found.run}: is the spread of the draws their error?", "Region", columns, lines, (note,))


def _contrast_table(found: Drawn, each: Contrast) -> Table:
    lines = tuple(
        Line(run, (_measured(row), Cell(number(each.off.get(run), each.unit))), floor=run == "truth")
        for run, row in each.rows.items()
    )
    unit = "" if each.unit == "1" else f" ({each.unit})"
    note = (
        f"Mean inside {each.region} minus mean in a rim of 3 voxels around it. "
        "Distance: mean over patients of |product minus truth|. A contrast is a difference of means, so that of a draw "
        "differs from that of the mean of draws by chance alone."
    )
    columns = (f"Contrast{unit}", f"Distance to the truth's{unit} ↓")
    return Table(f"{found.run}: contrast of {each.region}", "Product", columns, lines, (note, *remarks(lines)))


def _measured(row: Mapping[str, Any]) -> Cell:
    return Cell(number(row["mean"], row["unit"]), interval(row), note=row["note"])
