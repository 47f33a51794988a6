"""What a prediction is worth: runs, their draws and the floors held against one subject's truth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scanbridge.calibration import Calibration
from scanbridge.data.grid import resample
from scanbridge.data.intensity import Scale
from scanbridge.data.nifti import Volume, read
from scanbridge.display import planes_of
from scanbridge.files import read_json
from scanbridge.metrics.draws import Moments, spread_ratio
from scanbridge.metrics.floors import Floors
from scanbridge.metrics.image import measure, psnr
from scanbridge.metrics.uncertainty import Ranking, by_quartile, missed, rankings
from scanbridge.model import Model
from scanbridge.options import Options
from scanbridge.report.planes import Planes
from scanbridge.translate import ENDS, draw_path, stem, translate_file
from scanbridge.translation import translate_volume
from scanbridge.truth import Array, On, Truth, in_metric_unit

MOST_DOUBTS = 100_000
"""Voxels a subject in the plot of error against uncertainty."""
PLANES = {"S": "axial", "I": "axial", "A": "coronal", "P": "coronal", "L": "sagittal", "R": "sagittal"}

BEST = "best"
"""The image of a simulated cohort that holds E[target | source]."""
TRUTH = "truth"
"""The run of ``metrics.csv`` that holds what is measured of the truth itself."""

Product = Literal["estimate", "draw", "mean", "truth"]
"""What a judged volume is. Only volumes of one kind are ranked: a draw is no worse for being no estimate."""


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
    product
        What it is.
    input
        How far the source is from the run's training scans, as the JSON of the translation says it; of estimates.
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
    product: Product = "estimate"
    input: dict[str, Any] = field(default_factory=dict)

    @property
    def measured(self) -> str:
        """Where and in which unit the metrics are, for a reader."""
        on = "the target's own grid" if self.on == "target" else "the model grid"
        spacing = " x ".join(f"{step:.3g}" for step in self.spacing)
        unit = "share of the target's own 0.5 to 99.5 percentile range" if self.unit == "1" else self.unit
        return f"on {on} ({spacing} mm), foreground of the source; unit: {unit}"

    def value(self, metric: str, region: str = "foreground") -> float | None:
        """Give one metric in one region."""
        return next((r["value"] for r in self.rows if (r["metric"], r["region"]) == (metric, region)), None)


def judge_run(
    name: str, model: Model, truth: Truth, folder: Path, options: Options, *, draws: bool = False
) -> list[Judged]:
    """Translate one subject if that is not done, and judge what came of it.

    Parameters
    ----------
    name
        What the run is called.
    model, truth, folder, options
        The run, the subject, where translations are kept, and what is asked of them.
    draws
        Judge the draws too, two at least.

    Returns
    -------
    list of Judged
        The estimate; for a bridge its first call; the mean of the draws and one of them.
    """
    source = truth.row.images[model.common.task.source]
    translate_file(model, source, folder, options)
    base = folder / f"{stem(source)}_{truth.names[1]}"
    facts = read_json(base.with_name(base.name + ".json"))
    scale = Scale(facts["scale"]["low"], facts["scale"]["high"], facts["scale"]["unit"])

    def there(path: Path, fill: float = 0.0) -> Array:
        made = read(path)
        return resample(made.data, made.grid, truth.grid, fill=fill)[0]

    def beside(end: str, fill: float = 0.0) -> Array:
        return there(base.with_name(f"{base.name}{end}.nii.gz"), fill)

    prediction = beside("", scale.low)
    about_input = {key: value for key, value in facts.items() if key.startswith("input_")}
    judged = [replace(judge(name, truth, prediction, scale), input=about_input)]
    calibration = _to_judge(model, facts)
    if calibration is not None:
        low, high = (beside(f"_{end}") for end in ENDS)
        judged[0] = with_interval(judged[0], truth, scale, calibration, prediction, low, high)
    made = facts["made"]["estimate"]
    if made["calls"] > 1 or made.get("walk", {}).get("mirror"):
        first = translate_volume(model, read(source), replace(options, product="one-call", samples=0))
        own = Volume(first.data, first.affine, None, "").grid
        values = resample(first.data, own, truth.grid, fill=scale.low)[0]
        judged.append(judge(f"{name}:one-call", truth, values, scale))
    draw = None
    if draws:
        paths = [draw_path(base, number) for number in range(options.samples)]
        judged += judge_draws(name, truth, (there(path, scale.low) for path in paths), scale)
        draw = in_metric_unit(there(paths[0], scale.low), scale)
    doubt = beside("_uncertainty") * (truth.data_range / scale.range)
    judged[0] = with_pictures(judged[0], truth, in_metric_unit(prediction, scale), doubt, draw)
    return judged


def judge_draws(name: str, truth: Truth, draws: Iterable[Array], scale: Scale) -> list[Judged]:
    """Judge the mean of K draws, with the ratio of their spread to its error, and the first of them.

    Parameters
    ----------
    draws
        (I, J, K) each on the truth's grid, in the unit of `scale`; one is held at a time.
    """
    moments, first = Moments(), None
    for draw in draws:
        moments.add(draw)
        first = first or replace(judge(f"{name}:draw", truth, draw, scale), product="draw")
    mean = replace(judge(f"{name}:mean-of-{moments.n}", truth, moments.mean, scale), product="mean")
    error = in_metric_unit(moments.mean, scale) - truth.target
    spread = moments.spread * np.float32(truth.data_range / scale.range)
    ratios = [
        _line(mean.run, truth, region, "spread_ratio", "1", spread_ratio(error, spread, held, moments.n))
        for region, held in truth.regions.items()
    ]
    return [replace(mean, rows=[*mean.rows, *ratios]), *([first] if first else [])]


def _to_judge(model: Model, facts: dict[str, Any]) -> Calibration | None:
    """Give the calibration of a translation that has an interval; None where its subject was a part of it."""
    if not facts.get("interval") or model.run is None:
        return None
    held = Calibration.of_run(model.run)
    return None if held is None or held.made_with(facts["recipe"]["source_sha256"]) else held


def with_interval(
    judged: Judged, truth: Truth, scale: Scale, calibration: Calibration, estimate: Array, low: Array, high: Array
) -> Judged:
    """Hold an interval (low, high on the truth's grid, in the written unit) against the truth; add it to the rows.

    The promise is about the foreground; of every marked region it is said what lies outside there.
    """
    body, real = truth.regions["foreground"], truth.written(scale)
    unit = truth.data_range / scale.range
    outside = missed(real, low, high)
    wide, flat = high - low, np.abs(real - estimate) > calibration.constant
    kept = Kept(
        calibration=calibration,
        miss=float(outside[body].mean()),
        width=float(wide[body].mean(dtype=np.float64)) * unit,
        miss_constant=float(flat[body].mean()),
        width_constant=2 * calibration.constant * unit,
        by_width=by_quartile(outside, wide, body),
    )
    lines = [
        _line(judged.run, truth, "foreground", metric, truth.unit if metric.startswith("width") else "1", value)
        for metric, value in vars(kept).items()
        if isinstance(value, float)
    ]
    lines += [
        _line(judged.run, truth, region, metric, "1", float(each[held].mean()))
        for region, held in truth.regions.items()
        if region not in ("volume", "foreground") and held.any()
        for metric, each in (("miss", outside), ("miss_constant", flat))
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
    return [judge(name, truth, value, truth.scale) for name, value in values.items()]


def judge_truth(truth: Truth) -> list[Judged]:
    """Measure of the truth itself what predictions are held against: its grain and contrasts, if that is asked."""
    rows = _looks(TRUTH, truth, truth.target)
    return [replace(_about(TRUTH, truth, rows), product="truth")] if rows else []


def judge(name: str, truth: Truth, prediction: Array, scale: Scale) -> Judged:
    """Measure one prediction, in the unit of its `scale`, in all regions."""
    mapped = in_metric_unit(prediction, scale)
    axes = {PLANES[letter]: axis for axis, letter in enumerate(truth.grid.orientation)}
    measured = measure(
        mapped,
        truth.target,
        truth.regions,
        data_range=truth.data_range,
        unit=truth.unit,
        axes=axes,
        slice_axis=axes["axial"],
    )
    rows = [_line(name, truth, m.region, m.metric, m.unit, m.value) for m in measured]
    if truth.unit == "1":
        native = psnr(prediction, truth.native, truth.regions["foreground"], data_range=scale.range)
        rows.append(_line(name, truth, "foreground", "psnr_native", "dB", native))
    return _about(name, truth, [*rows, *_looks(name, truth, mapped)])


def with_pictures(judged: Judged, truth: Truth, estimate: Array, uncertainty: Array, draw: Array | None) -> Judged:
    """Judge how the uncertainty ranks an estimate's errors, and cut what its pictures show; in the metrics' unit."""
    body, error = truth.regions["foreground"], estimate - truth.target
    every = -(-judged.foreground_voxels // MOST_DOUBTS)
    return replace(
        judged,
        ranks=rankings(error, uncertainty, truth.source, body, spacing=truth.grid.spacing),
        doubts=(error[body][::every], uncertainty[body][::every]),
        planes=planes_of(truth, estimate, uncertainty, draw),
    )


def _about(name: str, truth: Truth, rows: list[dict[str, Any]]) -> Judged:
    return Judged(
        run=name,
        subject=truth.row.name,
        unit=truth.unit,
        spacing=truth.grid.spacing,
        on=truth.on,
        foreground_voxels=int(np.count_nonzero(truth.regions["foreground"])),
        outside=truth.outside,
        rows=rows,
    )


def _looks(name: str, truth: Truth, image: Array) -> list[dict[str, Any]]:
    return [
        _line(name, truth, region, metric, unit, measured(image))
        for (region, metric, unit), measured in truth.looks.items()
    ]


def _line(name: str, truth: Truth, region: str, metric: str, unit: str, value: float | None) -> dict[str, Any]:
    """Give a line of ``metrics.csv``."""
    about = {"run": name, "subject": truth.row.subject, "target": truth.names[1]}
    return {**about, "region": region, "metric": metric, "unit": unit, "value": value}
