"""Which numbers and pictures the page of an evaluation shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scanbridge import __version__
from scanbridge.data.grid import Grid, model_grid, resample
from scanbridge.judge import Judged, Truth
from scanbridge.model import Model
from scanbridge.report.figures import (
    Dots,
    Series,
    dot_plot,
    error_against_uncertainty,
    risk_coverage_curves,
    training_curves,
)
from scanbridge.report.page import ReportContext, Subject, Uncertainty, render
from scanbridge.report.picture import Picture
from scanbridge.report.planes import Strip, limit_of, strip
from scanbridge.runs.log import read_log

Rows = Sequence[Mapping[str, Any]]
DISPLAY = "SPL"


def page_of(
    judged: Sequence[Judged],
    models: Mapping[str, Model],
    *,
    summary: Rows,
    comparisons: Rows,
    leading: Mapping[tuple[str, str], str | None],
    facts: Mapping[str, Any],
) -> str:
    """Give the page of an evaluation as HTML."""
    first = next(iter(models.values()))
    truths = {each.truth.row.name: each.truth for each in judged}
    shown = [each for each in judged if each.run == next(iter(models))]
    return render(
        ReportContext(
            source=first.common.task.source,
            targets=first.common.task.targets[:1],
            data=_data(models, truths, facts),
            summary=summary,
            paired=comparisons,
            leaders=leading,
            plots=[_dots(judged, summary)],
            subjects=[_subject(each, shown, judged, first.common.task.source) for each in shown],
            uncertainty=_uncertainty(shown),
            training=_training(models),
            settings=_settings(models),
        )
    )


def _data(models: Mapping[str, Model], truths: Mapping[str, Truth], facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    truth = next(iter(truths.values()))
    train = {name: len(model.cohort["split"]["train"]) for name, model in models.items()}
    on = "the target's own grid" if truth.on == "target" else "the model grid"
    spacing = " x ".join(f"{step:.3g}" for step in truth.grid.spacing)
    unit = "share of the target's own 0.5 to 99.5 percentile range" if truth.unit == "1" else truth.unit
    return [
        ("Judged", f"{len(facts['subjects'])} scans, '{facts['split']}' of {facts['cohort']}"),
        ("Trained on", "; ".join(f"{name}: {n} people" for name, n in train.items())),
        ("Metrics", f"on {on} ({spacing} mm), foreground of the source; unit: {unit}"),
        ("Products", "rows named after a run are its estimate; ':one-call' is the same network's first call"),
        ("Weights", "; ".join(f"{name}: {digest[:12]}" for name, m in models.items() for digest in m.weights.values())),
    ]


def _value(each: Judged, metric: str) -> float | None:
    found = [r["value"] for r in each.rows if r["metric"] == metric and r["region"] == "foreground"]
    return found[0] if found else None


def _dots(judged: Sequence[Judged], summary: Rows) -> Picture:
    """Draw PSNR of every subject, floors as references."""
    rows = []
    for run in dict.fromkeys(each.run for each in judged):
        of = next(r for r in summary if (r["run"], r["metric"], r["region"]) == (run, "psnr", "foreground"))
        values = [v for each in judged if each.run == run and (v := _value(each, "psnr")) is not None]
        rows.append(Dots(run, values, of["mean"], of["low"], of["high"], reference=run.startswith("floor:")))
    return dot_plot(rows, label="PSNR in the foreground (dB)", alt="PSNR of every subject by run, floors for reference")


def _subject(each: Judged, shown: Sequence[Judged], judged: Sequence[Judged], source_name: str) -> Subject:
    """Draw one subject of the first run; error bars are the same for all subjects."""
    numbers = [
        (other.run, f"{psnr:.1f} dB, SSIM {_value(other, 'ssim_3d') or float('nan'):.3f}")
        for other in judged
        if other.truth is each.truth and (psnr := _value(other, "psnr")) is not None
    ]
    limit = max(limit_of(s.prediction - s.truth.target, s.truth.regions["foreground"]) for s in shown)
    return Subject(each.truth.row.name, _value(each, "psnr") or 0.0, draw_subject(each, source_name, limit), numbers)


def draw_subject(each: Judged, source_name: str, error_limit: float | None = None) -> Strip:
    """Draw a judged subject in three planes: source, prediction, truth, error and uncertainty."""
    truth = each.truth
    to = model_grid(truth.grid, spacing=_display_spacing(truth.grid), orientation=DISPLAY)
    low = 0.0 if truth.unit == "1" else truth.scale.low

    def turned(array: NDArray[Any]) -> NDArray[np.float32]:
        return resample(array.astype(np.float32), truth.grid, to)[0]

    return strip(
        turned(truth.source),
        turned(each.prediction),
        turned(truth.target),
        spacing=to.spacing,
        names=(source_name, truth.name),
        source_window=(0.0, 1.0),
        window=(low, low + truth.data_range),
        unit=truth.unit,
        foreground=turned(truth.regions["foreground"]) > 0.5,
        uncertainty=None if each.uncertainty is None else turned(each.uncertainty),
        error_limit=error_limit,
    )


def _display_spacing(grid: Grid) -> tuple[float, float, float]:
    """Give a grid's spacing in the order of the display's axes, so that turning it copies values."""
    pairs = {frozenset(pair): pair for pair in ("SI", "AP", "LR")}
    by_pair = {next(p for p in pairs if code in p): mm for code, mm in zip(grid.orientation, grid.spacing, strict=True)}
    first, second, third = (by_pair[next(p for p in pairs if code in p)] for code in DISPLAY)
    return first, second, third


def _uncertainty(shown: Sequence[Judged]) -> Uncertainty | None:
    """Judge the first run's map beside the trivial ones, means over subjects."""
    ranked = [each for each in shown if each.ranks]
    if not ranked:
        return None
    rows, curves = [], []
    for index, rank in enumerate(ranked[0].ranks):
        same = [each.ranks[index] for each in ranked]
        rhos = [r.spearman for r in same if r.spearman is not None]
        area, excess = (float(np.mean([getattr(r.curve, key) for r in same])) for key in ("area", "excess"))
        rows.append((rank.name, float(np.mean(rhos)) if rhos else None, area, excess))
        risk = np.mean([r.curve.risk for r in same], axis=0)
        curves.append(Series(rank.name, rank.curve.coverage, risk, reference=rank.name != "model"))
    unit = ranked[0].truth.unit
    held = [(each, each.truth.regions["foreground"]) for each in ranked if each.uncertainty is not None]
    error = np.concatenate([(each.prediction - each.truth.target)[body] for each, body in held])
    doubt = np.concatenate([np.asarray(each.uncertainty)[body] for each, body in held])
    plots = [
        risk_coverage_curves(curves, unit=unit),
        error_against_uncertainty(error, doubt, np.ones(error.shape, dtype=np.bool_), unit=unit),
    ]
    return Uncertainty(rows, unit, len(ranked), plots)


def _training(models: Mapping[str, Model]) -> list[Picture]:
    series = []
    for name, model in models.items():
        for stage in model.weights:
            lines = read_log(model.run / "stages" / stage / "log.jsonl") if model.run else []
            if lines:
                series.append(Series(name, [line["images"] for line in lines], [line["loss"] for line in lines]))
    return [training_curves(series)] if series else []


def _settings(models: Mapping[str, Model]) -> list[tuple[str, str]]:
    rows = [("scanbridge", __version__)]
    for name, model in models.items():
        train, estimate = model.common.train, getattr(model.config, "estimate", None)
        walk = f"{estimate.walk}, {estimate.calls} calls, grid {estimate.grid}" if estimate else "one call"
        rows.append((name, f"{model.common.method}; {train.images:,} images, seed {train.seed}; estimate: {walk}"))
    return rows
