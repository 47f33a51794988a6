"""The verbs ``evaluate`` and ``compare``: runs judged on people that they have not seen, beside floors, on one page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from scanbridge.calibration import Calibration
from scanbridge.data.cohort import Cohort, Row, read_cohort
from scanbridge.errors import UserError, nearest
from scanbridge.evaluation_page import page_of
from scanbridge.files import make_folder, read_json, sha256, write_json, write_text
from scanbridge.judge import Judged, Product, judge_floors, judge_run, judge_truth
from scanbridge.metrics.floors import Floors
from scanbridge.metrics.statistics import FAMILY, leaders, paired, summarise
from scanbridge.model import Model
from scanbridge.options import Options
from scanbridge.translate import stem
from scanbridge.truth import On, load_truth

PARTS = ("test", "val", "calibration", "external")
ORACLE = "(oracle)"
OF_DRAWS: tuple[Product, ...] = ("mean", "draw")
"""Kinds of products that are compared among themselves alone."""


def evaluate_runs(
    runs: Sequence[Path],
    cohort: Path,
    out: Path,
    *,
    split: str = "test",
    on: On = "target",
    regression: Path | None = None,
    translations: Path | None = None,
    style: str | None = None,
    oracle: bool = False,
    samples: int = 0,
    device: str = "auto",
    on_progress: Callable[[float, float, str], None] = lambda done, of, words: None,  # noqa: ARG005
    say: Callable[[str], None] = lambda text: None,  # noqa: ARG005
) -> Path:
    """Translate and judge every subject of a split with every run; write tables and the page, give the page's path.

    Parameters
    ----------
    runs
        Run folders of one task; the first one's floors are shown.
    cohort
        The cohort's table.
    out
        Folder for ``metrics.csv``, ``summary.json``, ``subjects.csv``, ``report.html`` and the translated volumes.
    split
        test, val or calibration as the runs chose them, or external for a cohort that none has seen.
    on
        Where metrics are computed: on the target's own grid, or on the run's model grid.
    regression
        A run to hold against the others as ``floor:regression``.
    translations
        Folder of volumes that ``translate`` has made with the first run, judged instead of new ones.
    style, oracle
        As in ``translate``; ``own`` is the subject's own target and needs `oracle`: such runs are marked, not ranked.
    samples
        Draws a subject and run that are judged beside the estimate; 0 for none, else two at least.
    say
        Told of scans that are unlike those of a run's training.

    Raises
    ------
    UserError
        If runs do not do the same task, the split is empty, a subject was trained on, or draws cannot be had.
    """
    if split not in PARTS:
        raise UserError(f"--split {split}", "a part that was not trained on", nearest(split, PARTS))
    models = {name: Model.open(run, device=device) for name, run in zip(unique_names(runs), runs, strict=True)}
    if regression is not None:
        models["floor:regression"] = Model.open(regression, device=device)
    if style == "own" and not oracle:
        raise UserError("--style own takes the style from the truth", "--allow-oracle beside it", "or use 'average'")
    if style is not None and not any(model.has_styles for model in models.values()):
        raise UserError(f"--style {style}: no run here has a style", "a ct2mri run with style.use", "leave it out")
    judged = judge_split(
        models,
        cohort,
        out,
        split=split,
        on=on,
        translations=translations,
        style=style,
        oracle=oracle,
        samples=samples,
        on_progress=on_progress,
        say=say,
    )
    return write_evaluation(out, judged, models, facts={"cohort": cohort.name, "split": split, "samples": samples})


def judge_split(
    models: Mapping[str, Model],
    cohort: Path,
    out: Path,
    *,
    split: str,
    on: On,
    translations: Path | None = None,
    style: str | None = None,
    oracle: bool = False,
    samples: int = 0,
    on_progress: Callable[[float, float, str], None] = lambda done, of, words: None,  # noqa: ARG005
    say: Callable[[str], None] = lambda text: None,  # noqa: ARG005
) -> list[Judged]:
    """Translate and judge every subject of a split with every model, and with the first one's floors."""
    first = next(iter(models.values()))
    task = _one_task(models)
    n_draws = _draws_of(models, samples, on)
    table = read_cohort(cohort)
    rows = choose_rows(table, models, task, split)
    if translations is not None:
        _refuse_absent(translations, rows, task)
    floors = Floors.from_json(read_json(_folder(first) / "floors.json"))
    make_folder(out)
    judged: list[Judged] = []
    for index, row in enumerate(rows):
        truth = load_truth(table, row, first, on)
        if samples:
            truth = truth.with_looks()
        for step, (name, model) in enumerate(models.items()):
            on_progress(index + step / len(models), len(rows), f"{row.name}: {name}")
            options = Options(
                samples=n_draws[name],
                style=_style_for(model, style, row.images[task[1]]),
                oracle=oracle,
                foreground=table.foreground_file(row, task[0]),
                on="source" if on == "target" else "model",
            )
            marked = f"{name} {ORACLE}" if oracle and options.reads_style else name
            kind = "translations" if on == "target" else "translations-model-grid"
            folder = out / kind / marked / row.name  # scans of several people may have one file name
            if translations is not None and model is first:  # what stands beside it was made by other weights
                folder = translations
                options = _as_given(options, _given(folder, row, task)[0], samples)
            draws = samples > 0 and _has_draws(model)
            made = judge_run(marked, model, truth, folder, options, draws=draws)
            judged += made
            if warning := made[0].input.get("input_warning"):
                say(f"{marked}: {row.name} is {warning}")
        judged += [*judge_floors(floors, truth), *judge_truth(truth)]
        on_progress(index + 1, len(rows), row.name)
    return judged


def _draws_of(models: Mapping[str, Model], samples: int, on: On) -> dict[str, int]:
    """Give the draws to make with each run: as many as are asked for, else those that its intervals need.

    Raises
    ------
    UserError
        If one draw is asked for, no run has any, or intervals need another number.
    """
    if samples == 1:
        raise UserError("--samples 1 has no spread and no mean", "two draws at least", "for example --samples 8")
    if samples and not any(_has_draws(model) for model in models.values()):
        raise UserError(f"--samples {samples}: {', '.join(models)} has no draws", "a bridge", "leave --samples out")
    needed = {name: _samples_for(model) if on == "target" else 0 for name, model in models.items()}
    for name, n in needed.items():
        if samples and n and n != samples:
            what = f"--samples {samples}: the intervals of {name} are made of {n} draws"
            raise UserError(what, "the same number", f"use --samples {n}, or leave it out")
    return {name: samples if samples and _has_draws(model) else needed[name] for name, model in models.items()}


def _has_draws(model: Model) -> bool:
    return hasattr(model.config, "draw")


def _samples_for(model: Model) -> int:
    """Give the draws that a run's intervals need."""
    calibration = None if model.run is None else Calibration.of_run(model.run)
    return 0 if calibration is None else calibration.samples


def _given(folder: Path, row: Row, task: tuple[str, str]) -> tuple[Path, Path]:
    """Give the JSON and the volume of a row's translation in a folder."""
    base = f"{stem(row.images[task[0]])}_{task[1]}"
    return folder / f"{base}.json", folder / f"{base}.nii.gz"


def _refuse_absent(folder: Path, rows: Sequence[Row], task: tuple[str, str]) -> None:
    """Refuse translations that are not whole: nothing is translated into somebody's folder, or over what lies there."""
    for row in rows:
        for path in reversed(_given(folder, row, task)):
            if not path.is_file():
                raise UserError(
                    f"{row.name}: {path} is not there", "what 'translate' writes", "translate that scan first"
                )


def _as_given(options: Options, about: Path, samples: int) -> Options:
    """Leave a given translation as it is: one without an interval gets none, nor draws for it alone."""
    bare = not read_json(about).get("interval")
    return replace(options, interval=False, samples=samples) if bare else options


def _style_for(model: Model, style: str | None, target: Path) -> str | None:
    """Give the style for one subject: the truth's own for ``own``; none for a method without styles beside others."""
    if not model.has_styles:
        return None
    return str(target) if style == "own" else style


def _folder(model: Model) -> Path:
    if model.run is None:
        raise ValueError("a model without a run folder has no floors")
    return model.run


def write_evaluation(
    out: Path, judged: Sequence[Judged], models: Mapping[str, Model], facts: Mapping[str, Any]
) -> Path:
    """Write ``metrics.csv``, ``summary.json``, ``subjects.csv`` and ``report.html``; give the page's path.

    Subjects may come from several folds: they are pooled by patient, under the names of the runs.
    """
    frame = _frame(judged)
    estimates = _frame(judged, "estimate")
    ranked = estimates[~estimates["run"].str.contains(ORACLE, regex=False)]
    summary = summarise(frame)
    people = list(dict.fromkeys(each.subject for each in judged))
    page = page_of(
        judged,
        models,
        summary=summary,
        comparisons=_compared(estimates, _pairs(list(dict.fromkeys(estimates["run"])), models)),
        among_draws=[row for product in OF_DRAWS for row in _among(_frame(judged, product), models)],
        leading=leaders(ranked, FAMILY, "foreground"),
        facts={**facts, "subjects": people},
    )
    subjects = _subjects([each for each in judged if each.product != "truth"])
    write_text(out / "metrics.csv", frame.to_csv(index=False))
    write_text(out / "subjects.csv", subjects.to_csv(index=False))
    write_json(out / "summary.json", summary)
    write_text(out / "report.html", page)
    return out / "report.html"


def _frame(judged: Sequence[Judged], product: Product | None = None) -> pd.DataFrame:
    """Give the lines of ``metrics.csv``: all of them, or those of one kind of product."""
    lines = [line for each in judged if product in (None, each.product) for line in each.rows]
    return pd.DataFrame(lines, columns=["run", "subject", "target", "region", "metric", "unit", "value"])


def _compared(frame: pd.DataFrame, pairs: Iterable[tuple[str, list[str]]]) -> list[dict[str, Any]]:
    return [row for reference, runs in pairs for row in paired(frame, reference, FAMILY, "foreground", runs=runs)]


def _among(frame: pd.DataFrame, models: Mapping[str, Model]) -> list[dict[str, Any]]:
    """Compare draws with draws, or means of draws with such means: each run's with those of the runs before it."""
    runs = [run for run in dict.fromkeys(frame["run"]) if run.rpartition(":")[0] in models]
    return _compared(frame, [(reference, runs[:index]) for index, reference in enumerate(runs) if index])


def _pairs(rows: Sequence[str], models: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Give (reference, runs held against it): each run before it, its own first call, and the floors."""
    contenders = [run for run in rows if run in models and not run.startswith("floor:")]  # an oracle is not ranked
    for index, reference in enumerate(contenders):
        if index:
            yield reference, contenders[:index]
    for run in contenders:
        if f"{run}:one-call" in rows:
            yield f"{run}:one-call", [run]
    for floor in rows:
        if floor.startswith("floor:"):
            yield floor, contenders


def unique_names(runs: Sequence[Path]) -> list[str]:
    """Name runs by their folders, made unique by the folders above where two are alike.

    Raises
    ------
    UserError
        If a folder is given twice.
    """
    resolved = [run.resolve() for run in runs]
    names = [run.name for run in resolved]
    for depth in range(2, max(len(run.parts) for run in resolved) + 1):
        alike = {name for name in names if names.count(name) > 1}
        names = ["/".join(r.parts[-depth:]) if name in alike else name for r, name in zip(resolved, names, strict=True)]
    if len(set(resolved)) < len(resolved):
        raise UserError(f"{' '.join(map(str, runs))} names a run twice", "runs that differ", "leave one out")
    return names


def _one_task(models: Mapping[str, Model]) -> tuple[str, str]:
    tasks = {name: (model.common.task.source, model.common.task.targets[0]) for name, model in models.items()}
    (first, task), *rest = tasks.items()
    for name, other in rest:
        if other != task:
            what = f"{name} does {' -> '.join(other)}, {first} does {' -> '.join(task)}"
            raise UserError(what, "runs of one task", "judge them apart")
    return task


def choose_rows(table: Cohort, models: Mapping[str, Model], task: tuple[str, str], split: str) -> list[Row]:
    """Give the rows to judge: a part that every run set apart, or all of a cohort that none has seen."""
    for name, model in models.items():
        model.refuse_table(table, name)
    rows = [row for row in table.rows if all(column in row.images for column in task)]
    if split != "external":
        rows = [r for r in rows if all(r.subject in m.cohort["split"][split] for m in models.values())]
    if not rows:
        raise UserError(
            f"{table.path}: no subject with {' and '.join(task)} is in '{split}' of {', '.join(models)}",
            "people that the runs set apart",
            "use --split external for a new cohort, or train with --set split.test=[...]",
        )
    seen = {name: model.trained_on for name, model in models.items()}
    for row in rows:
        for file in (row.images[column] for column in task):
            digest = sha256(file)
            for name in (name for name, digests in seen.items() if digest in digests):
                raise UserError(f"{name} was trained on {file} ({row.name})", "people it has not seen")
    return rows


def _subjects(judged: Sequence[Judged]) -> pd.DataFrame:
    """Give one row a run and subject: what is known beside the metrics."""
    rows = []
    for each in judged:
        row: dict[str, Any] = {
            "run": each.run,
            "subject": each.subject,
            "grid": each.on,
            "foreground_voxels": each.foreground_voxels,
            "outside_share": each.outside,
            **{key: each.input.get(key) for key in ("input_distance", "input_limit")},
        }
        for rank in each.ranks:
            row |= {f"spearman_{rank.name}": rank.spearman, f"aurc_{rank.name}": rank.curve.area}
        rows.append(row)
    return pd.DataFrame(rows)
