"""Which numbers and pictures the page of a downstream task shows, and the same in plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scanbridge import __version__
from scanbridge.downstream.pictures import MOST_PICTURED, curves, dots, worst_subjects
from scanbridge.downstream.plan import Plan
from scanbridge.downstream.results import ALL, FLOOR, Folded, Results
from scanbridge.downstream.volumes import Sample
from scanbridge.metrics.tasks import CLASSIFY, SEGMENT
from scanbridge.report.page import ReportContext, verdict
from scanbridge.report.tables import Cell, Line, Table, metric_name, number, paired_table, remarks, summary_table
from scanbridge.report.task_page import TaskContext, render_task

LIMITS = (
    "Research use only. Nothing on this page supports a decision about a patient.",
    "A synthetic image is computed from the source: it holds nothing about a patient that the source does not. It "
    "helps where a run has learned, from people who had both scans, what a small network cannot learn from few.",
    "The networks are small, taught on few patients and never tuned. The differences between inputs are the result; "
    "the level is not what a well-made tool for this task would reach.",
    "The intervals describe patients like these, and networks from one seed: another seed, or other folds, move every "
    "number. Repeat with --seed before a difference is believed.",
)
SEEN = (
    "Marked (seen): subjects were translated by a run that was trained on them. Its images of them are better than "
    "those of anybody new would be: this result is no measure of what synthetic images are worth."
)


def page_of(
    plan: Plan, results: Results, samples: Sequence[Sample], folded: Sequence[Folded], out: Path
) -> tuple[str, str]:
    """Give the page as HTML, and its words and numbers as Markdown."""
    metrics = CLASSIFY if plan.classes else SEGMENT
    said = verdict(
        ReportContext(plan.names[0], [plan.column], (), results.summary, results.differences, metrics=metrics)
    )
    seen = (SEEN,) if plan.seen else ()
    context = TaskContext(
        title=f"{plan.column}: what a synthetic {plan.names[1]} is worth",
        data=_data(plan),
        verdict=(*_unlearned(results, metrics[0]), *said, *seen),
        tables=_tables(plan, results, metrics),
        plots=[dots(plan, results), curves(plan, folded)],
        subjects=worst_subjects(plan, results.predictions, samples, out),
        legend=_legend(plan),
        limits=(*LIMITS, *seen),
        settings=_settings(plan),
    )
    return render_task(context), _markdown(context)


def _unlearned(results: Results, metric: str) -> list[str]:
    """Say which inputs taught a network nothing that the floor does not know: no difference to it means anything."""
    rows = {row["run"]: row for row in results.summary if row["metric"] == metric and row["region"] == ALL}
    floor = rows.pop(FLOOR)["mean"]
    lows = {run: row["low"] if row["low"] is not None else row["mean"] for run, row in rows.items()}
    nothing = [run for run, low in lows.items() if low is None or low <= floor]
    if not nothing:
        return []
    name = metric_name(metric).split()[0]
    return [
        f"The {name} with {', and with '.join(nothing)} is not beyond chance above that of {FLOOR}, which looks at no "
        "image: no network has learned the task there, and no difference to it means anything. Raise --images, or try "
        "--dims 2."
    ]


def _data(plan: Plan) -> list[tuple[str, str]]:
    source, target = plan.names
    counts = {name: sum(plan.by[row.name] == name for row in plan.rows) for name in plan.models}
    left = f"; {len(plan.left_out)} left out, whom every run was trained on" if plan.left_out else ""
    classes = {name: len({r.subject for r in plan.rows if plan.label(r) == i}) for i, name in enumerate(plan.classes)}
    what = ", ".join(f"{name}: {n}" for name, n in classes.items()) or f"the mask '{plan.column}'"
    return [
        ("Task", f"{plan.settings.kind} {plan.column}; {what}"),
        ("Inputs", f"{source}; {source} with the {target} that a run made of it; {source} with the real {target}"),
        ("Subjects", f"{len(plan.fold_of)} of {plan.table.path.name}, {len(plan.rows)} scans{left}"),
        ("Translated by", "; ".join(f"{name}: {n} scans" for name, n in counts.items() if n)),
        ("Folds", f"{plan.settings.folds}, by subject; the same folds, seeds, order and budget for every input"),
    ]


def _tables(plan: Plan, results: Results, metrics: Sequence[str]) -> list[Table]:
    arms = summary_table(results.summary, metrics, caption=plan.column, target=plan.column, regions=[ALL], leaders=None)
    apart = paired_table(results.differences, caption="Paired differences between inputs")
    if arms is None or apart is None:
        raise ValueError("a task without numbers")
    floor = "gives everybody the commonest class" if plan.classes else "marks all of the foreground"
    if plan.classes:
        how = (
            "AUC: share of pairs of subjects of two classes in the right order, pairs within a fold. Accuracy and F1 "
            "(mean over classes): all folds together. Beneath: 95 % interval, 10,000 resamples of subjects, class by "
            "class."
        )
        differences = "Difference of the two on the same resampled subjects, with its 95 % interval; no test is made."
        apart = _untested(apart)
    else:
        how = (
            "Mean over subjects, on the mask's own grid; an empty mask counts in neither. Beneath: 95 % bootstrap "
            "interval (BCa, 10,000 resamples of subjects)."
        )
        differences = apart.notes[0]
    return [
        replace(
            arms,
            head="Input",
            notes=(
                how,
                f"{FLOOR} looks at no image: it {floor}.",
                *remarks([line for line in arms.lines if not line.floor]),
            ),
        ),
        replace(apart, head="Input", notes=(differences, *remarks(apart.lines))),
        _by_fold(results, metrics),
    ]


def _untested(table: Table) -> Table:
    """Leave out the columns of p-values."""
    lines = tuple(replace(line, cells=(line.cells[0], line.cells[-1])) for line in table.lines)
    return replace(table, columns=(table.columns[0], table.columns[-1]), lines=lines)


def _by_fold(results: Results, metrics: Sequence[str]) -> Table:
    held = {(row["arm"], row["metric"], row["fold"]): row for row in results.folds}
    folds = sorted({fold for _, _, fold in held})
    arms = list(dict.fromkeys(arm for arm, _, _ in held if arm != FLOOR))
    lines = [
        Line(
            arm, tuple(Cell(number(held[arm, metric, fold]["value"], "1")) for fold in folds), group=metric_name(metric)
        )
        for metric in metrics
        for arm in arms
    ]
    columns = tuple(f"Fold {fold + 1} (n = {held[arms[0], metrics[0], fold]['n']})" for fold in folds)
    return Table("Fold by fold", "Input", columns, tuple(lines))


def _legend(plan: Plan) -> str:
    which = f"The {MOST_PICTURED} worst of {len(plan.rows)}" if len(plan.rows) > MOST_PICTURED else "All"
    side = "Axial slices, the patient's right on the left."
    if plan.classes:
        return f"{which}, by the probability of their own class from source and synthetic image. {side}"
    return (
        f"{which}, by the Dice of source and synthetic image; the slice with most of the mask. Green: its edge. "
        f"Orange: found and not there. Blue: missed. What the first input found is drawn on the source. {side}"
    )


def _settings(plan: Plan) -> list[tuple[str, str]]:
    settings = plan.settings
    network = "ResNet-10, a quarter of its width" if plan.classes else "U-Net, 16 to 128 channels"
    loss = "cross-entropy, classes weighing the same" if plan.classes else "Dice and cross-entropy"
    return [
        ("scanbridge", __version__),
        ("Network", f"{network} (MONAI), {settings.dims}D, two channels; beside the source alone the second is 0"),
        (
            "Teaching",
            f"{settings.images:,} images each, {loss}, AdamW, seed {settings.seed}; last weights, no selection",
        ),
        ("Grid", f"at most {settings.size} voxels a side on average, standardised by the foregrounds taught on"),
        *[
            (name, f"{m.common.method}, weights {', '.join(d[:12] for d in m.weights.values())}")
            for name, m in plan.models.items()
        ],
    ]


def _markdown(context: TaskContext) -> str:
    """Give the words and numbers of the page as Markdown."""
    parts = [f"# {context.title}", "\n".join(f"- **{name}**: {text}" for name, text in context.data)]
    parts += ["\n".join(f"- {sentence}" for sentence in context.verdict)]
    for table in context.tables:
        head = ["", table.head, *table.columns]
        rows = [[line.group, line.head, *(f"{c.main} {c.beneath}".strip() for c in line.cells)] for line in table.lines]
        lines = [head, ["---"] * len(head), *rows]
        parts += [f"## {table.caption}", "\n".join(f"| {' | '.join(cells)} |" for cells in lines), *table.notes]
    parts += ["## What these numbers do not say", "\n".join(f"- {limit}" for limit in context.limits)]
    parts += ["\n".join(f"- **{name}**: {text}" for name, text in context.settings)]
    return "\n\n".join(parts) + "\n"
