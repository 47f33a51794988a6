"""The verbs ``evaluate`` and ``compare``: runs judged on people that they have not seen, beside floors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanbridge.data.cohort import Cohort, Row, read_cohort
from scanbridge.data.foreground import foreground
from scanbridge.data.grid import Grid, resample
from scanbridge.data.intensity import Scale, scale_of
from scanbridge.data.nifti import Volume, read, sha256
from scanbridge.errors import UserError, nearest
from scanbridge.metrics.floors import Floors
from scanbridge.metrics.image import measure, psnr
from scanbridge.metrics.statistics import summarise
from scanbridge.metrics.uncertainty import Ranking, rankings
from scanbridge.model import Model
from scanbridge.runs.files import atomic, read_json, write_json
from scanbridge.translate import Options, stem, translate_file, translate_volume

PARTS = ("test", "val", "calibration", "external")
PLANES = {"S": "axial", "I": "axial", "A": "coronal", "P": "coronal", "L": "sagittal", "R": "sagittal"}

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Truth:
    """One subject's source and target on the target's own grid, in the unit in which metrics are computed.

    Parameters
    ----------
    row, name
        The cohort's row, and the target's column.
    source, target
        (I, J, K): the source in [0, 1]; the target mapped and clipped.
    native
        The target in its own unit, unclipped.
    regions
        Name to the voxels that count.
    grid
        The target's own grid.
    scale
        The target's own scale; its unit is that of the metrics.
    outside
        Share of the target's foreground that the source's field of view does not hold.
    """

    row: Row
    name: str
    source: Array
    target: Array
    native: Array
    regions: dict[str, NDArray[np.bool_]]
    grid: Grid
    scale: Scale
    outside: float

    @property
    def unit(self) -> str:
        """The unit of the metrics."""
        return self.scale.unit

    @property
    def data_range(self) -> float:
        """R of the metrics."""
        return 1.0 if self.unit == "1" else self.scale.range


@dataclass(frozen=True)
class Judged:
    """What one run made of one subject, on the target's own grid in the metrics' unit, and what it is worth."""

    run: str
    truth: Truth
    prediction: Array
    uncertainty: Array | None
    rows: list[dict[str, Any]]
    ranks: list[Ranking]


def evaluate_runs(
    runs: Sequence[Path],
    cohort: Path,
    out: Path,
    *,
    split: str = "test",
    translations: Path | None = None,
    device: str = "auto",
    on_progress: Callable[[float, float, str], None] = lambda done, of, words: None,  # noqa: ARG005
) -> Path:
    """Translate and judge every subject of a split with every run; write tables and the page, give the page's path.

    Raises
    ------
    UserError
        If runs do not do the same task, the split is empty, or a subject was trained on.
    """
    if split not in PARTS:
        raise UserError(f"--split {split}", "a part that was not trained on", nearest(split, PARTS))
    models = {name: Model.open(run, device=device) for name, run in zip(unique_names(runs), runs, strict=True)}
    task = _one_task(models)
    table = read_cohort(cohort)
    rows = choose_rows(table, models, task, split)
    floors = Floors.from_json(read_json(next(iter(models.values())).run / "floors.json"))  # type: ignore[operator]
    judged: list[Judged] = []
    for index, row in enumerate(rows):
        truth = load_truth(table, row, *task)
        for name, model in models.items():
            on_progress(index + len(judged) % 1, len(rows), f"{name}: {row.name}")
            judged += judge_run(name, model, truth, row.images[task[0]], translations or out / "translations" / name)
        judged += judge_floors(floors, truth)
        on_progress(index + 1, len(rows), row.name)
    frame = pd.DataFrame([line for each in judged for line in each.rows])
    summary = summarise(frame)
    write_csv(out / "metrics.csv", frame)
    write_csv(out / "subjects.csv", _subjects(judged))
    write_json(out / "summary.json", summary)
    return out / "report.html"


def unique_names(runs: Sequence[Path]) -> list[str]:
    """Name runs by their folders, made unique by the folders above where two are alike."""
    resolved = [run.resolve() for run in runs]
    names = [run.name for run in resolved]
    return [f"{run.parent.name}/{run.name}" if names.count(run.name) > 1 else run.name for run in resolved]


def _one_task(models: dict[str, Model]) -> tuple[str, str]:
    tasks = {name: (model.common.task.source, model.common.task.targets[0]) for name, model in models.items()}
    (first, task), *rest = tasks.items()
    for name, other in rest:
        if other != task:
            raise UserError(
                f"{name} does {' -> '.join(other)}, {first} does {' -> '.join(task)}",
                "runs of one task",
                "judge them apart",
            )
    return task


def choose_rows(table: Cohort, models: dict[str, Model], task: tuple[str, str], split: str) -> list[Row]:
    """Give the rows to judge: a part that every run set apart, or all of a cohort that none has seen."""
    for column in task:
        if column not in table.images:
            raise UserError(f"{table.path} has no image '{column}'", "", nearest(column, table.images))
    rows = [row for row in table.rows if all(column in row.images for column in task)]
    if split != "external":
        rows = [r for r in rows if all(r.subject in m.cohort["split"][split] for m in models.values())]
    if not rows:
        raise UserError(
            f"{table.path}: no subject with {' and '.join(task)} is in '{split}' of {', '.join(models)}",
            "people that the runs set apart",
            "use --split external for a new cohort, or train with --set split.test=[...]",
        )
    for name, model in models.items():
        seen = trained_on(model)
        for row in rows:
            for column in task:
                if sha256(row.images[column]) in seen:
                    raise UserError(
                        f"{name} was trained on {row.images[column]} ({row.name})", "people it has not seen"
                    )
    return rows


def trained_on(model: Model) -> set[str]:
    """Give the content hashes of all images that a run was trained on."""
    subjects = set(model.cohort["split"]["train"])
    files = model.cohort["content"].values()
    return {digest for entry in files if entry["subject"] in subjects for digest in entry["images"].values()}


def load_truth(table: Cohort, row: Row, source: str, target: str) -> Truth:
    """Read a subject's source, target and masks onto the target's own grid."""
    y, x = read(row.images[source]), read(row.images[target])
    body = source_foreground(table, row, source, y)
    held, inside = resample(body.astype(np.float32), y.grid, x.grid, order=0)
    body_there = held > 0
    scale = scale_of(table.images[target], x.data, body_there)
    source_scale = scale_of(table.images[source], y.data, body)
    regions = {"volume": inside, "foreground": body_there & inside}
    for name, spec in table.masks.items():
        if spec.role == "region" and name in row.masks:
            mask = read(row.masks[name], mask=True)
            marked = resample(mask.data, mask.grid, x.grid, order=0)[0] > 0
            regions[name] = marked & inside
            regions[f"not_{name}"] = body_there & inside & ~marked
    return Truth(
        row=row,
        name=target,
        source=resample((source_scale.encode(y.data) + 1) / 2, y.grid, x.grid)[0],
        target=in_metric_unit(x.data, scale),
        native=x.data,
        regions=regions,
        grid=x.grid,
        scale=scale,
        outside=1 - float(inside.mean()),
    )


def source_foreground(table: Cohort, row: Row, source: str, volume: Volume) -> NDArray[np.bool_]:
    """Give the source's foreground on its own grid: a mask with that role if the cohort has one, else computed."""
    for name, spec in table.masks.items():
        if spec.role == "foreground" and name in row.masks:
            mask = read(row.masks[name], mask=True)
            return resample(mask.data, mask.grid, volume.grid, order=0)[0] > 0
    return foreground(volume.data, table.images[source].kind)


def in_metric_unit(values: NDArray[Any], scale: Scale) -> Array:
    """Map values of a scale to the unit of the metrics: [0, 1] for MR, clipped HU or SUV else."""
    share = (scale.encode(values) + 1) / 2
    return (share if scale.unit == "1" else scale.low + scale.range * share).astype(np.float32)


def judge_run(name: str, model: Model, truth: Truth, source: Path, folder: Path) -> list[Judged]:
    """Translate one subject if that is not done, and judge the estimate and, for a bridge, its first call."""
    target = model.common.task.targets[0]
    translate_file(model, source, folder, Options())
    base = folder / f"{stem(source)}_{target}"
    facts = read_json(base.with_name(base.name + ".json"))
    scale = Scale(facts["scale"]["low"], facts["scale"]["high"], facts["scale"]["unit"])
    made, unsure = read(base.with_name(base.name + ".nii.gz")), read(base.with_name(base.name + "_uncertainty.nii.gz"))
    prediction = resample(made.data, made.grid, truth.grid, fill=scale.low)[0]
    uncertainty = resample(unsure.data, unsure.grid, truth.grid)[0] * (truth.data_range / scale.range)
    judged = [judge(name, truth, prediction, scale, uncertainty)]
    if facts["made"]["estimate"]["calls"] > 1:
        first = translate_volume(model, read(source), Options(product="one-call"))
        values = resample(first.data, made.grid, truth.grid, fill=scale.low)[0]
        judged.append(judge(f"{name}:one-call", truth, values, scale, None))
    return judged


def judge_floors(floors: Floors, truth: Truth) -> list[Judged]:
    """Judge the two maps of intensity that need no network."""
    body = truth.regions["foreground"]
    made = {"floor:histogram": floors.histogram, "floor:intensity": floors.intensity}
    return [
        judge(name, truth, truth.scale.decode(2 * floor(truth.source, body) - 1), truth.scale, None)
        for name, floor in made.items()
    ]


def judge(
    name: str,
    truth: Truth,
    prediction: Array,
    scale: Scale,
    uncertainty: Array | None,
) -> Judged:
    """Measure one prediction, in the unit of its `scale`, in all regions."""
    mapped = in_metric_unit(prediction, scale)
    code = truth.grid.orientation
    axes = {PLANES[letter]: axis for axis, letter in enumerate(code)}
    measured = measure(
        mapped,
        truth.target,
        truth.regions,
        data_range=truth.data_range,
        unit=truth.unit,
        axes=axes,
        slice_axis=axes["axial"],
    )
    key = {"run": name, "subject": truth.row.name, "target": truth.name}
    rows = [{**key, "region": m.region, "metric": m.metric, "unit": m.unit, "value": m.value} for m in measured]
    body = truth.regions["foreground"]
    if truth.unit == "1":
        native = psnr(prediction, truth.native, body, data_range=scale.range)
        rows.append({**key, "region": "foreground", "metric": "psnr_native", "unit": "dB", "value": native})
    ranks = []
    if uncertainty is not None:
        ranks = rankings(mapped - truth.target, uncertainty, truth.source, body, spacing=truth.grid.spacing)
    return Judged(name, truth, mapped, uncertainty, rows, ranks)


def _subjects(judged: Sequence[Judged]) -> pd.DataFrame:
    """Give one row a run and subject: what is known beside the metrics."""
    rows = []
    for each in judged:
        row: dict[str, Any] = {
            "run": each.run,
            "subject": each.truth.row.name,
            "foreground_voxels": int(each.truth.regions["foreground"].sum()),
            "outside_share": each.truth.outside,
        }
        for rank in each.ranks:
            row |= {f"spearman_{rank.name}": rank.spearman, f"aurc_{rank.name}": rank.curve.area}
        rows.append(row)
    return pd.DataFrame(rows)


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a table atomically."""
    with atomic(path) as beside:
        frame.to_csv(beside, index=False)
