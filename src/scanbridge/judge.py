"""What a prediction is worth: one subject's truth, the runs and the floors held against it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scanbridge.calibration import Calibration
from scanbridge.data.cohort import Cohort, Row
from scanbridge.data.foreground import foreground
from scanbridge.data.grid import Grid, model_grid, resample
from scanbridge.data.intensity import Scale, scale_of
from scanbridge.data.nifti import Volume, read
from scanbridge.files import read_json
from scanbridge.metrics.floors import Floors
from scanbridge.metrics.image import measure, psnr
from scanbridge.metrics.uncertainty import Ranking, by_quartile, missed, rankings
from scanbridge.model import Model
from scanbridge.options import Options
from scanbridge.report.planes import Planes, cut
from scanbridge.translate import ENDS, stem, translate_file
from scanbridge.translation import foreground_of, grid_of, translate_volume

DISPLAY = "SPL"
MOST_DOUBTS = 100_000
"""Voxels a subject in the plot of error against uncertainty."""
PLANES = {"S": "axial", "I": "axial", "A": "coronal", "P": "coronal", "L": "sagittal", "R": "sagittal"}

BEST = "best"
"""The image of a simulated cohort that holds E[target | source]."""

Array = NDArray[np.float32]
On = Literal["target", "model"]


@dataclass(frozen=True)
class Truth:
    """One subject's source and target on the grid and in the unit in which metrics are computed.

    Parameters
    ----------
    row, names
        The cohort's row, and the columns of source and target.
    source, target
        (I, J, K): the source in [0, 1]; the target mapped and clipped.
    native
        The target in its own unit, unclipped.
    regions
        Name to the voxels that count.
    grid, on
        Where metrics are computed: the target's own grid, or the run's model grid.
    scale
        The target's own scale; its unit is that of the metrics.
    outside
        Share of the grid that the source's field of view does not hold.
    """

    row: Row
    names: tuple[str, str]
    source: Array
    target: Array
    native: Array
    regions: dict[str, NDArray[np.bool_]]
    grid: Grid
    on: On
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

    def written(self, scale: Scale) -> Array:
        """Give the target as metrics see it, on the scale of a written volume: what an interval is about."""
        return scale.decode(2 * self.target - 1) if self.unit == "1" else self.target


@dataclass(frozen=True)
class Kept:
    """What the intervals of one scan did, and what intervals of one width with the same promise would have done.

    Parameters
    ----------
    calibration
        What was promised.
    miss, width
        Share of the foreground outside, and mean width in the unit of the metrics.
    miss_constant, width_constant
        The same of the constant width.
    by_width
        Misses by quartile of width, the narrowest first.
    """

    calibration: Calibration
    miss: float
    width: float
    miss_constant: float
    width_constant: float
    by_width: tuple[float, ...]


@dataclass(frozen=True)
class Judged:
    """What one run made of one subject is worth: numbers and a few flat images, however large the scans are.

    Parameters
    ----------
    run, subject
        Names of the run and of the cohort's row.
    unit, spacing, on
        Of the metrics, and the grid that they were computed on.
    foreground_voxels, outside
        Size of the foreground, and the share of the grid that the source's field of view does not hold.
    rows
        Lines of ``metrics.csv``.
    ranks, doubts
        How the uncertainty ranks the errors, and a sample of (error, uncertainty) in the foreground; of estimates.
    planes
        What its pictures show; of estimates.
    kept
        What its intervals did, where it has any and was no part of their calibration.
    """

    run: str
    subject: str
    unit: str
    spacing: tuple[float, float, float]
    on: On
    foreground_voxels: int
    outside: float
    rows: list[dict[str, Any]]
    ranks: list[Ranking] = field(default_factory=list)
    doubts: tuple[Array, Array] | None = None
    planes: Planes | None = None
    kept: Kept | None = None

    def value(self, metric: str, region: str = "foreground") -> float | None:
        """Give one metric in one region."""
        return next((r["value"] for r in self.rows if (r["metric"], r["region"]) == (metric, region)), None)


def load_truth(table: Cohort, row: Row, model: Model, on: On) -> Truth:
    """Read a subject's source, target and masks onto the grid where metrics are computed."""
    source, target = model.common.task.source, model.common.task.targets[0]
    y, x = read(row.images[source]), read(row.images[target])
    body = source_foreground(table, row, source, y)
    grid = x.grid if on == "target" else grid_of(model, y)
    held, inside = resample(body.astype(np.float32), y.grid, grid, order=0)
    seen = inside & resample(x.data, x.grid, grid)[1]
    scale = scale_of(table.images[target], x.data, resample(body.astype(np.float32), y.grid, x.grid, order=0)[0] > 0)
    source_scale = scale_of(table.images[source], y.data, body)
    regions = {"volume": seen, "foreground": (held > 0) & seen}
    for name, spec in table.masks.items():
        if spec.role == "region" and name in row.masks:
            mask = read(row.masks[name], mask=True)
            marked = resample(mask.data, mask.grid, grid, order=0)[0] > 0
            regions[name] = marked & seen
            regions[f"not_{name}"] = regions["foreground"] & ~marked
    native = resample(x.data, x.grid, grid, fill=scale.low)[0]
    return Truth(
        row=row,
        names=(source, target),
        source=in_unit(source_scale.encode(resample(y.data, y.grid, grid, fill=source_scale.low)[0])),
        target=in_metric_unit(native, scale),
        native=native,
        regions=regions,
        grid=grid,
        on=on,
        scale=scale,
        outside=1 - float(inside.mean()),
    )


def source_foreground(table: Cohort, row: Row, source: str, volume: Volume) -> NDArray[np.bool_]:
    """Give the source's foreground on its own grid: a mask with that role if the cohort has one, else computed."""
    mask = table.foreground_mask(row, source)
    if mask is None:
        return foreground(volume.data, table.images[source].kind)
    return foreground_of(row.masks[mask], volume)


def in_metric_unit(values: NDArray[Any], scale: Scale) -> Array:
    """Map values of a scale to the unit of the metrics: [0, 1] for MR, clipped HU or SUV else."""
    share = in_unit(scale.encode(values))
    return (share if scale.unit == "1" else scale.low + scale.range * share).astype(np.float32)


def in_unit(encoded: NDArray[Any]) -> Array:
    """Map [-1, 1] to [0, 1]."""
    return np.asarray((encoded + 1) / 2, dtype=np.float32)


def judge_run(name: str, model: Model, truth: Truth, folder: Path, options: Options) -> list[Judged]:
    """Translate one subject if that is not done, and judge the estimate and, for a bridge, its first call."""
    source = truth.row.images[model.common.task.source]
    translate_file(model, source, folder, options)
    base = folder / f"{stem(source)}_{truth.names[1]}"
    facts = read_json(base.with_name(base.name + ".json"))
    scale = Scale(facts["scale"]["low"], facts["scale"]["high"], facts["scale"]["unit"])

    def there(end: str, fill: float = 0.0) -> Array:
        made = read(base.with_name(f"{base.name}{end}.nii.gz"))
        return resample(made.data, made.grid, truth.grid, fill=fill)[0]

    prediction = there("", scale.low)
    judged = [judge(name, truth, prediction, scale, there("_uncertainty") * (truth.data_range / scale.range))]
    calibration = _to_judge(model, facts)
    if calibration is not None:
        low, high = (there(f"_{end}") for end in ENDS)
        judged[0] = with_interval(judged[0], truth, scale, calibration, prediction, low, high)
    if facts["made"]["estimate"]["calls"] > 1:
        first = translate_volume(model, read(source), replace(options, product="one-call", samples=0))
        own = Volume(first.data, first.affine, None, "").grid
        values = resample(first.data, own, truth.grid, fill=scale.low)[0]
        judged.append(judge(f"{name}:one-call", truth, values, scale, None))
    return judged


def _to_judge(model: Model, facts: dict[str, Any]) -> Calibration | None:
    """Give the calibration of a translation that has an interval; None where its subject was a part of it."""
    if not facts.get("interval") or model.run is None:
        return None
    held = Calibration.of_run(model.run)
    return None if held is None or held.made_with(facts["recipe"]["source_sha256"]) else held


def with_interval(
    judged: Judged, truth: Truth, scale: Scale, calibration: Calibration, estimate: Array, low: Array, high: Array
) -> Judged:
    """Hold an interval (low, high on the truth's grid, in the written unit) against the truth; add it to the rows."""
    body, real = truth.regions["foreground"], truth.written(scale)
    unit = truth.data_range / scale.range
    outside = missed(real, low, high)
    wide = high - low
    kept = Kept(
        calibration=calibration,
        miss=float(outside[body].mean()),
        width=float(wide[body].mean(dtype=np.float64)) * unit,
        miss_constant=float((np.abs(real - estimate) > calibration.constant)[body].mean()),
        width_constant=2 * calibration.constant * unit,
        by_width=by_quartile(outside, wide, body),
    )
    key = {k: judged.rows[0][k] for k in ("run", "subject", "target")} | {"region": "foreground"}
    lines = [
        {**key, "metric": metric, "unit": truth.unit if metric.startswith("width") else "1", "value": value}
        for metric, value in vars(kept).items()
        if isinstance(value, float)
    ]
    return replace(judged, rows=[*judged.rows, *lines], kept=kept)


def judge_floors(floors: Floors, truth: Truth) -> list[Judged]:
    """Judge the two maps of intensity that need no network, and the best possible where a simulation knows it."""
    body = truth.regions["foreground"]
    made = {"floor:histogram": floors.histogram, "floor:intensity": floors.intensity}
    values = {name: truth.scale.decode(2 * floor(truth.source, body) - 1) for name, floor in made.items()}
    if BEST in truth.row.images:
        best = read(truth.row.images[BEST])
        values["best-possible"] = resample(best.data, best.grid, truth.grid, fill=truth.scale.low)[0]
    return [judge(name, truth, value, truth.scale, None) for name, value in values.items()]


def judge(name: str, truth: Truth, prediction: Array, scale: Scale, uncertainty: Array | None) -> Judged:
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
    key = {"run": name, "subject": truth.row.subject, "target": truth.names[1]}
    rows = [{**key, "region": m.region, "metric": m.metric, "unit": m.unit, "value": m.value} for m in measured]
    body = truth.regions["foreground"]
    if truth.unit == "1":
        native = psnr(prediction, truth.native, body, data_range=scale.range)
        rows.append({**key, "region": "foreground", "metric": "psnr_native", "unit": "dB", "value": native})
    judged = Judged(
        run=name,
        subject=truth.row.name,
        unit=truth.unit,
        spacing=truth.grid.spacing,
        on=truth.on,
        foreground_voxels=int(np.count_nonzero(body)),
        outside=truth.outside,
        rows=rows,
    )
    if uncertainty is None:
        return judged
    error = mapped - truth.target
    every = -(-judged.foreground_voxels // MOST_DOUBTS)
    return replace(
        judged,
        ranks=rankings(error, uncertainty, truth.source, body, spacing=truth.grid.spacing),
        doubts=(error[body][::every], uncertainty[body][::every]),
        planes=planes_of(truth, mapped, uncertainty),
    )


def planes_of(truth: Truth, prediction: Array, uncertainty: Array) -> Planes:
    """Cut a subject in the three planes of its picture, in display orientation."""
    to = model_grid(truth.grid, spacing=_display_spacing(truth.grid), orientation=DISPLAY)
    low = 0.0 if truth.unit == "1" else truth.scale.low

    def turned(array: NDArray[Any]) -> NDArray[np.float32]:
        return resample(array.astype(np.float32), truth.grid, to)[0]

    return cut(
        turned(truth.source),
        turned(prediction),
        turned(truth.target),
        spacing=to.spacing,
        names=truth.names,
        source_window=(0.0, 1.0),
        window=(low, low + truth.data_range),
        unit=truth.unit,
        foreground=turned(truth.regions["foreground"]) > 0.5,
        uncertainty=turned(uncertainty),
    )


def _display_spacing(grid: Grid) -> tuple[float, float, float]:
    """Give a grid's spacing in the order of the display's axes, so that turning it copies values."""
    pairs = {frozenset(pair): pair for pair in ("SI", "AP", "LR")}
    by_pair = {next(p for p in pairs if code in p): mm for code, mm in zip(grid.orientation, grid.spacing, strict=True)}
    first, second, third = (by_pair[next(p for p in pairs if code in p)] for code in DISPLAY)
    return first, second, third
