"""What an ablation leaves behind: one table of rows by metrics, differences to the full method, a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scanbridge import __version__
from scanbridge.files import write_json, write_text
from scanbridge.judge import Judged
from scanbridge.metrics.statistics import FAMILY, FEW, leaders, paired, summarise
from scanbridge.report.figures import Dots, Series, dot_plot, training_curves
from scanbridge.report.page import ReportContext, Subject, render
from scanbridge.report.picture import Picture
from scanbridge.report.planes import draw
from scanbridge.report.tables import Cell, Line, Table, interval, is_floor, metric_name, number, patients, summary_table
from scanbridge.trials import Trial, Trials, as_settings

REGION = "foreground"
MARKED = ("psnr", "mae")
"""Of regions that masks mark."""
SHOWN = ("psnr", "ssim_3d", "mae", "sharpness", "slice_style_axial", "slice_shape_axial")


@dataclass(frozen=True)
class Ablation:
    """What was compared.

    Parameters
    ----------
    title, source, target
        What the page is about, and what was translated into what.
    rows
        Names, the full method first.
    data, settings
        (name, text) for the head of the page: who was judged, at which budget; and what makes each row.
    logs
        Training logs by name.
    """

    title: str
    source: str
    target: str
    rows: tuple[str, ...]
    data: Sequence[tuple[str, str]]
    settings: Sequence[tuple[str, str]]
    logs: Mapping[str, Sequence[Mapping[str, Any]]]


def describe(trials: Sequence[Trials], facts: Sequence[tuple[str, str]], *, title: str = "") -> Ablation:
    """Say what was compared: rows, budgets, and whose weights served whom.

    Parameters
    ----------
    trials
        The same rows for every seed and fold.
    facts
        (name, text) for the head of the page.
    title
        "Ablation of" the method by default.
    """
    rows = trials[0]
    plan = next(iter(rows.values())).plan
    return Ablation(
        title=title or f"Ablation of {plan.common.method}",
        source=plan.common.task.source,
        target=plan.common.task.targets[0],
        rows=tuple(rows),
        data=(*facts, ("Budget", _budget(trials))),
        settings=tuple((name, _made_of([each[name] for each in trials])) for name in rows),
        logs={
            each.owner if len(each.stages) == 1 else f"{each.owner}: {stage}": lines
            for each in rows.values()
            for stage, lines in each.logs.items()
        },
    )


def _budget(trials: Sequence[Trials]) -> str:
    """Say how much every row was trained, stage by stage, and whether that was the same."""
    spent: dict[str, set[tuple[int, int]]] = {}
    for trial in (each for rows in trials for each in rows.values()):
        for stage, images in trial.stages.items():
            spent.setdefault(stage, set()).add((images, trial.trained.common.train.batch_size))
    equal = all(len(each) == 1 for each in spent.values())
    stages = [
        f"{stage} on {' or '.join(f'{images:,} images in batches of {size}' for images, size in sorted(each))}"
        for stage, each in spent.items()
    ]
    n_runs, n_rows = len({trial.run for trial in trials[0].values()}), len(trials[0])
    shared = "" if n_runs == n_rows else "; rows that differ in translation alone share their weights"
    return f"{'equal' if equal else 'NOT equal'}: {', '.join(stages)}; {n_runs} trainings for {n_rows} rows{shared}"


def _made_of(trials: Sequence[Trial]) -> str:
    """Say what makes a row, whose weights it has, and what their training took."""
    one = trials[0]
    settings = ", ".join(as_settings(one.row.settings)) or f"{one.row.config.name} as it is"
    whose = "own weights" if one.owner == one.row.name else f"weights of '{one.owner}'"
    seconds = [each.seconds for each in trials if each.seconds is not None]
    took = f", trained in {', '.join(f'{s:.0f}' for s in seconds)} s" if seconds else ""
    return f"{settings}; {whose}{took}"


def write_ablation(out: Path, judged: Sequence[Judged], about: Ablation) -> Path:
    """Write ``metrics.csv``, ``summary.json``, ``ablation.md`` and ``report.html``; give the page's path.

    Several lines of a person (visits, seeds) are averaged before anything is said of people.
    """
    judged = [each for each in judged if each.product == "estimate"]
    frame = pd.DataFrame([line for each in judged for line in each.rows])
    summary = summarise(frame)
    write_text(out / "metrics.csv", frame.to_csv(index=False))
    write_json(out / "summary.json", summary)
    write_text(out / "ablation.md", _markdown(frame, summary, about, judged[0]))
    write_text(out / "report.html", _page(frame, summary, about, judged))
    return out / "report.html"


def _compared(frame: pd.DataFrame, about: Ablation) -> list[dict[str, Any]]:
    """Hold each row against the full method: one family; then the full method against its first call and the floors."""
    full, *others = about.rows
    references = [run for run in _runs(frame, about) if run not in about.rows]
    found = paired(frame, full, FAMILY, REGION, runs=others)
    return found + [line for run in references for line in paired(frame, run, FAMILY, REGION, runs=[full])]


def _runs(frame: pd.DataFrame, about: Ablation) -> list[str]:
    """Give the rows, the full method's own first call, and the floors; other first calls stand in the CSV alone."""
    there = list(dict.fromkeys(frame["run"]))
    beside = (f"{about.rows[0]}:one-call", *(run for run in there if is_floor(run)))
    return [*about.rows, *(run for run in beside if run in there)]


def _markdown(frame: pd.DataFrame, summary: Sequence[Mapping[str, Any]], about: Ablation, one: Judged) -> str:
    """Give the tables as text."""
    shown = [row for run in _runs(frame, about) for row in summary if row["run"] == run]
    best = leaders(frame[frame["run"].isin(_runs(frame, about))], FAMILY, REGION)
    main = summary_table(
        shown, SHOWN, caption=REGION, target=about.target, regions=[REGION], leaders=best, explained=True
    )
    marked = [region for region in dict.fromkeys(row["region"] for row in shown) if region not in (REGION, "volume")]
    inside = summary_table(
        shown, MARKED, caption="inside and outside of what masks mark", target=about.target, regions=marked
    )
    n = frame["subject"].nunique()
    tables = [main, inside, differences_table(frame, about), *(people_tables(frame, about) if n < FEW else [])]
    facts = [*about.data, ("Metrics", one.measured), *about.settings, ("scanbridge", __version__)]
    head = [f"# {about.title}: {about.source} to {about.target}, {patients(n)}", ""]
    return "\n".join(
        [*head, *(f"- {name}: {text}" for name, text in facts), "", *map(as_markdown, filter(None, tables))]
    )


def differences_table(frame: pd.DataFrame, about: Ablation) -> Table:
    """Lay out each row minus the full method, person by person, with the 95 % interval."""
    full, *others = _runs(frame, about)
    found = paired(frame, full, SHOWN, REGION, runs=others)
    cells = {(row["run"], row["metric"]): row for row in found}
    units = {row["metric"]: row["unit"] for row in found}

    def cell(run: str, metric: str) -> Cell:
        row = cells[run, metric]
        return Cell(number(row["difference"], row["unit"], signed=True), interval(row, signed=True))

    lines = tuple(Line(run, tuple(cell(run, m) for m in units), is_floor(run)) for run in others)
    note = f"Mean over patients of the row minus {full}, with its 95 % interval (BCa)."
    columns = tuple(metric_name(metric, unit) for metric, unit in units.items())
    return Table(f"Minus {full}, {REGION}", "Run", columns, lines, (note,))


def people_tables(frame: pd.DataFrame, about: Ablation) -> list[Table]:
    """Lay out every person's numbers, a table a metric; each the mean over its lines (visits, seeds)."""
    tables = []
    for metric in SHOWN:
        held = frame[(frame["region"] == REGION) & (frame["metric"] == metric)]
        if held.empty:
            continue
        unit = str(held["unit"].iloc[0])
        wide = held.pivot_table(index="run", columns="subject", values="value", sort=False)
        lines = [
            Line(run, tuple(Cell(number(None if np.isnan(v) else float(v), unit)) for v in wide.loc[run].to_numpy()))
            for run in _runs(frame, about)
            if run in wide.index
        ]
        tables.append(Table(metric_name(metric, unit), "Run", tuple(map(str, wide.columns)), tuple(lines)))
    return tables


def as_markdown(table: Table) -> str:
    """Write a table as Markdown: the best of a column is bold, regions are a column, remarks stand beneath it."""
    grouped = any(line.group for line in table.lines)
    head = [*(["Region"] if grouped else []), table.head, *table.columns]
    rows = [head, ["---"] * len(head)]
    for line in table.lines:
        cells = [f"**{cell.main}**" if cell.best else cell.main for cell in line.cells]
        own = [f"{main} {c.beneath}".strip() for main, c in zip(cells, line.cells, strict=True)]
        rows.append([*([line.group] if grouped else []), line.head, *own])
    lines = [f"| {' | '.join(text.replace('|', '/') for text in row)} |" for row in rows]
    notes = [part for note in table.notes for part in (note.replace("beneath it", "beside it"), "")]
    return "\n".join([f"## {table.caption}", "", *lines, "", *notes])


def _page(frame: pd.DataFrame, summary: Sequence[Mapping[str, Any]], about: Ablation, judged: Sequence[Judged]) -> str:
    runs = _runs(frame, about)
    return render(
        ReportContext(
            source=about.source,
            targets=[about.target],
            title=f"{about.title}: {about.source} to {about.target}",
            data=[*about.data, ("Metrics", judged[0].measured)],
            summary=[row for run in runs for row in summary if row["run"] == run],
            paired=_compared(frame, about),
            leaders=leaders(frame[frame["run"].isin(runs)], FAMILY, REGION),
            plots=[_dots(frame, summary, runs)],
            subjects=_subjects(judged, about),
            training=_training(about),
            settings=[*about.settings, ("scanbridge", __version__)],
        )
    )


def _dots(frame: pd.DataFrame, summary: Sequence[Mapping[str, Any]], runs: Sequence[str]) -> Picture:
    """Draw PSNR of every person, floors as references."""
    means = {row["run"]: row for row in summary if (row["metric"], row["region"]) == ("psnr", REGION)}
    held = frame[(frame["metric"] == "psnr") & (frame["region"] == REGION)]
    values = held.groupby(["run", "subject"], sort=False)["value"].mean()
    rows = [
        Dots(run, values[run].tolist(), each["mean"], each["low"], each["high"], reference=is_floor(run))
        for run in runs
        if (each := means[run])
    ]
    return dot_plot(rows, label=f"PSNR in the {REGION} (dB)", alt="PSNR of every person by row, floors for reference")


def _subjects(judged: Sequence[Judged], about: Ablation) -> list[Subject]:
    """Draw what the full method made of each person, beside the rows' numbers; the error bars of all end alike."""
    pictured = {each.subject: each for each in reversed(judged) if each.run == about.rows[0] and each.planes}
    limit = max((p.error.high for e in pictured.values() if (p := e.planes) and p.error is not None), default=None)
    subjects = []
    for name, each in reversed(pictured.items()):
        assert each.planes is not None  # noqa: S101  (chosen so above)
        same = [other for other in judged if other.subject == name and other.rows[0]["seed"] == each.rows[0]["seed"]]
        numbers = [(other.run, f"{psnr:.1f} dB") for other in same if (psnr := other.value("psnr")) is not None]
        subjects.append(Subject(name, each.value("psnr") or 0.0, draw(each.planes, error_limit=limit), numbers))
    return subjects


def _training(about: Ablation) -> list[Picture]:
    series = [
        Series(name, [line["images"] for line in lines], [line["loss"] for line in lines])
        for name, lines in about.logs.items()
        if lines
    ]
    return [training_curves(series)] if series else []
