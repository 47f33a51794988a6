"""One page for a person: what was translated into what, how good it is against doing nothing clever, and the limits.

The page is one file that asks for nothing else: no script, no font, no request; a policy in its head forbids them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scanbridge.report.draws import PRODUCTS, Drawn, draw_block
from scanbridge.report.intervals import Intervals, interval_tables
from scanbridge.report.picture import Picture
from scanbridge.report.planes import Strip
from scanbridge.report.tables import (
    Cell,
    Line,
    Rows,
    Table,
    interval,
    is_floor,
    metric_label,
    number,
    paired_table,
    patients,
    summary_table,
)
from scanbridge.report.template import template

MAIN = ("psnr", "ssim_3d", "ssim_axial", "mae", "nrmse", "sharpness")
"""Columns of the main table, where the caller names no others."""

SLICES = tuple(f"slice_{kind}_{plane}" for kind in ("style", "shape") for plane in ("axial", "coronal", "sagittal"))

LIMITS = (
    "Research use only. Nothing on this page supports a decision about a patient.",
    "A translated image shows what is probable given its source. It cannot show what left no trace there: a lesion, an "
    "enhancement or an uptake may be missing, and one that is not in the patient may be there.",
    "PSNR and SSIM reward smooth images and say little about small lesions. Read them with the regions, the sharpness "
    "and the pictures.",
    "The intervals describe patients like these. Another scanner, protocol or disease is not covered by them.",
    "Uncertainty is a ranking of voxels. Without calibration it is no probability; with it, the promise is about "
    "patients like those of the calibration, not about a voxel, a region or one patient.",
)


@dataclass(frozen=True)
class Subject:
    """One patient's pictures: `score` orders them (higher is better), `numbers` are (name, text) beside them."""

    name: str
    score: float
    strip: Strip
    numbers: Sequence[tuple[str, str]] = ()
    note: str = ""


MAPS = {"model": "the run's map", "gradient": "the gradient of the source", "constant": "a constant"}


@dataclass(frozen=True)
class Less:
    """How far the areas of the run's map are below another's: in `better` of `n` patients; mean and 95 % interval."""

    better: int
    n: int
    mean: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Uncertainty:
    """Rows of map, Spearman, AURC and E-AURC (means over patients, None where there is none), and plots.

    `against` says of the maps that know nothing how far their areas are above that of the run's.
    """

    rows: Sequence[tuple[str, float | None, float | None, float | None]]
    unit: str
    n: int
    plots: Sequence[Picture] = ()
    against: Mapping[str, Less] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportContext:
    """Everything a page says. What is left empty does not appear.

    Attributes
    ----------
    source, targets
        What was translated into what, by the cohort's names.
    data
        (name, text): cohort, number of patients, split, which weights; all that makes the numbers honest.
    summary, paired, leaders
        As `metrics.statistics` gives them (`summarise`, `paired` over the foreground, `leaders`).
    metrics
        Columns of the main table; the first that a target has is the verdict's.
    region
        The region of the main table and the verdict.
    plots
        Quality of every subject, quality against calls, and the like.
    subjects
        Shown worst first.
    drawn, among_draws
        Of the runs whose draws were judged; draws compared with draws, as `metrics.statistics.paired` gives them.
    intervals, interval_plots
        Of the runs that are calibrated.
    training
        Training curves.
    settings
        (name, text): settings and versions.
    limits
        Said after the limits that hold for every page.
    """

    source: str
    targets: Sequence[str]
    data: Sequence[tuple[str, str]]
    summary: Rows
    paired: Rows = ()
    leaders: Mapping[tuple[str, str], str | None] | None = None
    metrics: Sequence[str] = MAIN
    region: str = "foreground"
    plots: Sequence[Picture] = ()
    subjects: Sequence[Subject] = ()
    uncertainty: Uncertainty | None = None
    drawn: Sequence[Drawn] = ()
    among_draws: Rows = ()
    intervals: Sequence[Intervals] = ()
    interval_plots: Sequence[Picture] = ()
    training: Sequence[Picture] = ()
    settings: Sequence[tuple[str, str]] = ()
    limits: Sequence[str] = ()
    title: str = ""


def render(context: ReportContext) -> str:
    """Give the page as one string of HTML."""
    return template("report.html.j2").render(
        title=context.title or f"{context.source} to {_listed(context.targets)}",
        context=context,
        verdict=verdict(context),
        blocks=[_target_block(context, target) for target in context.targets],
        paired=paired_table(context.paired, caption=f"Paired comparisons, {context.region}"),
        subjects=sorted(context.subjects, key=lambda subject: subject.score),
        uncertainty=_uncertainty_table(context.uncertainty),
        products=PRODUCTS,
        drawn=[draw_block(found) for found in context.drawn],
        among_draws=paired_table(context.among_draws, caption=f"Draws compared with draws, {context.region}"),
        promised=[interval_tables(found) for found in context.intervals],
        limits=(*LIMITS, *context.limits),
    )


def verdict(context: ReportContext) -> list[str]:
    """Say in one plain sentence for every run, target and reference how they stand, with the interval.

    A reference is another run, the run's own first call, or a floor. The sentence is about the first of the context's
    metrics that was compared. It names the size and the interval of the difference and leaves the judgement to the
    reader.
    """
    sentences = []
    for target in context.targets:
        rows = [row for row in context.paired if row["target"] == target]
        for run in dict.fromkeys(row["run"] for row in rows if not is_floor(row["run"])):
            of_run = {(row["metric"], row["reference"]): row for row in rows if row["run"] == run}
            metric = next((m for m in context.metrics if any(m == key[0] for key in of_run)), None)
            sentences += [_sentence(row) for key, row in of_run.items() if key[0] == metric]
    return sentences or ["No run was compared with anything: this page supports no statement about quality."]


def _sentence(row: Mapping[str, Any]) -> str:
    name = metric_label(row["metric"])
    who = f"{row['run']} for {row['target']} in {patients(row['n'])} ({row['region']})"
    against, unit = row["reference"], "" if row["unit"] == "1" else f" {row['unit']}"
    if row["difference"] is None:
        return f"{name} of {who} cannot be compared with {against}: {row['note'] or 'no number'}."
    size = f"{number(abs(row['difference']), row['unit'])}{unit} {'above' if row['difference'] >= 0 else 'below'}"
    if not interval(row):
        return f"{name} of {who} is {size} {against}; with so few patients there is no interval."
    spans = f"95 % interval of the difference {interval(row, signed=True)}{unit}"
    if len({number(value, row["unit"]) for value in (0.0, row["low"], row["high"])}) == 1:
        return f"{name} of {who} is that of {against} to every digit shown, {spans}."
    if row["low"] <= 0 <= row["high"]:
        return f"{name} of {who} cannot be told apart from {against}: it is {size} it, {spans}."
    few = " With so few patients the interval is too narrow." if "too narrow" in row["note"] else ""
    return f"{name} of {who} is {size} {against} ({spans}).{few}"


def _target_block(context: ReportContext, target: str) -> dict[str, Any]:
    """Tables of one target: the main one, the other regions, and what happens between slices."""
    regions = list(dict.fromkeys(row["region"] for row in context.summary if row["target"] == target))
    others = [region for region in regions if region != context.region]
    main = summary_table(
        context.summary,
        context.metrics,
        caption=f"{target}: {context.region}",
        target=target,
        regions=[context.region],
        leaders=context.leaders,
        explained=True,
    )
    by_region = summary_table(
        context.summary, context.metrics, caption=f"{target}: other regions", target=target, regions=others
    )
    slices = summary_table(
        context.summary,
        ("sharpness", *SLICES),
        caption=f"{target}: sharpness and consistency from slice to slice, {context.region}",
        target=target,
        regions=[context.region],
    )
    return {"target": target, "main": main, "regions": by_region, "slices": slices}


def _uncertainty_table(found: Uncertainty | None) -> Table | None:
    if found is None:
        return None
    lines = tuple(
        Line(
            MAPS.get(name, name),
            (Cell(number(rho, "1")), Cell(number(area, found.unit)), Cell(number(excess, found.unit))),
            floor=name in {"gradient", "constant"},
        )
        for name, rho, area, excess in found.rows
    )
    unit = "" if found.unit == "1" else f" ({found.unit})"
    note = (
        f"Means over {patients(found.n)}. Spearman: rank correlation of |error| and uncertainty. AURC: mean error of "
        "the most certain voxels, over all shares of them. E-AURC: its distance to the perfect order. The gradient of "
        "the source and a constant know nothing of the model."
    )
    columns = ("Spearman ↑", f"AURC{unit} ↓", f"E-AURC{unit} ↓")
    said = tuple(_against(name, less, found.unit) for name, less in found.against.items())
    return Table("Does the uncertainty point at the errors?", "Map", columns, lines, (*said, note))


def _against(name: str, less: Less, unit: str) -> str:
    """Say whether the run's map ranks errors better than one that knows nothing."""
    better = f"The area of the run's map is smaller than that of {MAPS[name]} in {less.better} of {patients(less.n)}"
    if less.mean is None or less.low is None or less.high is None:
        return f"{better}."
    amount = f"{number(abs(less.mean), unit)}{'' if unit == '1' else f' {unit}'}"
    way = "smaller" if less.mean >= 0 else "larger"
    spans = interval({"low": less.low, "high": less.high, "unit": unit}, signed=True)
    apart = ": the two cannot be told apart" if less.low <= 0 <= less.high else ""
    return f"{better}; on average it is {amount} {way}, 95 % interval of the difference {spans}{apart}."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
