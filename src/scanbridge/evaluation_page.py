"""Which numbers and pictures the page of an evaluation shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

from scanbridge import __version__
from scanbridge.calibration import FILE
from scanbridge.judge import TRUTH, Judged
from scanbridge.metrics.statistics import mean_interval
from scanbridge.model import Model
from scanbridge.report.draws import Contrast, Drawn
from scanbridge.report.figures import (
    Dots,
    Series,
    dot_plot,
    error_against_uncertainty,
    misses_by_width,
    risk_coverage_curves,
    training_curves,
)
from scanbridge.report.intervals import Intervals
from scanbridge.report.page import ReportContext, Subject, Uncertainty, render
from scanbridge.report.picture import Picture
from scanbridge.report.planes import draw
from scanbridge.runs.log import read_log

Rows = Sequence[Mapping[str, Any]]


def page_of(
    judged: Sequence[Judged],
    models: Mapping[str, Model],
    *,
    summary: Rows,
    comparisons: Rows,
    among_draws: Rows,
    leading: Mapping[tuple[str, str], str | None],
    facts: Mapping[str, Any],
) -> str:
    """Give the page of an evaluation as HTML."""
    first = next(iter(models.values()))
    estimates = [each for each in judged if each.product == "estimate"]
    runs = {each.run for each in estimates}
    shown = [each for each in estimates if each.run == judged[0].run]
    intervals = _intervals(judged, summary)
    return render(
        ReportContext(
            source=first.common.task.source,
            targets=first.common.task.targets[:1],
            data=_data(models, shown[0], facts),
            summary=[row for row in summary if row["run"] in runs],
            paired=comparisons,
            leaders=leading,
            plots=[_dots(estimates, summary)],
            subjects=_subjects(shown, estimates),
            uncertainty=_uncertainty(shown),
            drawn=_drawn(judged, summary),
            among_draws=among_draws,
            intervals=intervals,
            interval_plots=_interval_plots(intervals),
            training=_training(models),
            settings=_settings(models),
        )
    )


def _data(models: Mapping[str, Model], one: Judged, facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    train = {name: len(model.cohort["split"]["train"]) for name, model in models.items()}
    on = "the target's own grid" if one.on == "target" else "the model grid"
    spacing = " x ".join(f"{step:.3g}" for step in one.spacing)
    unit = "share of the target's own 0.5 to 99.5 percentile range" if one.unit == "1" else one.unit
    return [
        ("Judged", f"{len(facts['subjects'])} scans, '{facts['split']}' of {facts['cohort']}"),
        ("Trained on", "; ".join(f"{name}: {n} people" for name, n in train.items())),
        ("Metrics", f"on {on} ({spacing} mm), foreground of the source; unit: {unit}"),
        ("Products", "rows named after a run are its estimate; ':one-call' is the same network's first call"),
        *_not_judged(models, facts),
        ("Weights", "; ".join(f"{name}: {digest[:12]}" for name, m in models.items() for digest in m.weights.values())),
    ]


def _not_judged(models: Mapping[str, Model], facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Say why calibrated runs show no interval on the people who calibrated them."""
    calibrated = [name for name, model in models.items() if model.run and (model.run / FILE).is_file()]
    if facts["split"] not in ("val", "calibration") or not calibrated:
        return []
    return [
        ("Intervals", f"of {', '.join(calibrated)} are not judged here: the calibration was made with these people")
    ]


def _dots(judged: Sequence[Judged], summary: Rows) -> Picture:
    """Draw PSNR of every subject, floors as references."""
    rows = []
    for run in dict.fromkeys(each.run for each in judged):
        of = next(r for r in summary if (r["run"], r["metric"], r["region"]) == (run, "psnr", "foreground"))
        values = [v for each in judged if each.run == run and (v := each.value("psnr")) is not None]
        rows.append(Dots(run, values, of["mean"], of["low"], of["high"], reference=run.startswith("floor:")))
    return dot_plot(rows, label="PSNR in the foreground (dB)", alt="PSNR of every subject by run, floors for reference")


def _subjects(shown: Sequence[Judged], judged: Sequence[Judged]) -> list[Subject]:
    """Draw the subjects of the first run; the error bars of all end alike."""
    pictured = [(each, each.planes) for each in shown if each.planes is not None]
    limit = max((planes.error.high for _, planes in pictured if planes.error is not None), default=None)
    subjects = []
    for each, planes in pictured:
        numbers = [
            (other.run, f"{psnr:.1f} dB, SSIM {other.value('ssim_3d') or float('nan'):.3f}")
            for other in judged
            if other.subject == each.subject and (psnr := other.value("psnr")) is not None
        ]
        if each.input:
            numbers.append(("input", f"distance {each.input['input_distance']:.1f} of {each.input['input_limit']:.1f}"))
        strip, warning = draw(planes, error_limit=limit), each.input.get("input_warning")
        note = f"The source is {warning}." if warning else ""
        subjects.append(Subject(each.subject, each.value("psnr") or 0.0, strip, numbers, note))
    return subjects


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
    unit = ranked[0].unit
    error, doubt = (np.concatenate(part) for part in zip(*(each.doubts for each in ranked if each.doubts), strict=True))
    plots = [
        risk_coverage_curves(curves, unit=unit),
        error_against_uncertainty(error, doubt, np.ones(error.shape, dtype=np.bool_), unit=unit),
    ]
    return Uncertainty(rows, unit, len(ranked), plots)


def _drawn(judged: Sequence[Judged], summary: Rows) -> list[Drawn]:
    """Gather each run's draws with its estimate, in the order: first call, estimate, mean of draws, one draw."""
    found = []
    for mean in dict.fromkeys(each.run for each in judged if each.product == "mean"):
        run, _, ending = mean.rpartition(":")
        shown = [f"{run}:one-call", run, mean, f"{run}:draw"]
        rows = [row for name in shown for row in summary if row["run"] == name]
        found.append(
            Drawn(
                run=run,
                draw=shown[-1],
                mean=mean,
                n_draws=int(ending.rpartition("-")[2]),
                target=rows[0]["target"],
                region="foreground",
                summary=rows,
                contrasts=_contrasts(judged, shown, summary),
            )
        )
    return found


def _contrasts(judged: Sequence[Judged], shown: Sequence[str], summary: Rows) -> list[Contrast]:
    """Gather the contrasts of the products of one run, and how far they are from the truth's in each patient."""
    visits: dict[tuple[str, str, str], list[float]] = {}
    for row in (row for each in judged for row in each.rows if row["metric"] == "contrast"):
        if row["value"] is not None:
            visits.setdefault((row["run"], row["subject"], row["region"]), []).append(row["value"])
    values = {key: float(np.mean(found)) for key, found in visits.items()}
    found = []
    for region in dict.fromkeys(region for _, _, region in values):
        rows = {row["run"]: row for row in summary if (row["metric"], row["region"]) == ("contrast", region)}
        distances = {run: _distances(values, run, region) for run in shown}
        off = {run: float(np.mean([*each.values()])) for run, each in distances.items() if each}
        unit = next(iter(rows.values()))["unit"]
        products = {run: rows[run] for run in (TRUTH, *shown) if run in rows}
        found.append(Contrast(region, unit, products, off, _nearer(distances[shown[-1]], distances[shown[1]])))
    return found


def _distances(values: Mapping[tuple[str, str, str], float], run: str, region: str) -> dict[str, float]:
    """Give |product minus truth| of a contrast by patient."""
    return {
        subject: abs(value - values[TRUTH, subject, region])
        for (name, subject, of), value in values.items()
        if (name, of) == (run, region) and (TRUTH, subject, region) in values
    }


def _nearer(draw: Mapping[str, float], estimate: Mapping[str, float]) -> bool:
    """Say whether draws are nearer to the truth than estimates beyond chance: the interval over patients excludes 0."""
    found = mean_interval([draw[subject] - estimate[subject] for subject in draw if subject in estimate])
    return found.high is not None and found.high < 0


def _intervals(judged: Sequence[Judged], summary: Rows) -> list[Intervals]:
    """Gather what the intervals of each calibrated run did, patient by patient."""
    found = []
    for run in dict.fromkeys(each.run for each in judged if each.kept is not None):
        kept = [(str(each.rows[0]["subject"]), each.kept) for each in judged if each.run == run and each.kept]
        worst = {subject: max((k for s, k in kept if s == subject), key=lambda k: k.miss) for subject, _ in kept}
        promise = kept[0][1].calibration
        good = sum(each.miss <= promise.miss for each in worst.values())
        share = binomtest(good, len(worst)).proportion_ci()
        found.append(
            Intervals(
                run=run,
                promise=promise.sentence,
                allowed=promise.miss,
                patients=[(subject, each.miss, each.width) for subject, each in worst.items()],
                within=(float(share.low), float(share.high)),
                rows={r["metric"]: r for r in summary if (r["run"], r["region"]) == (run, "foreground")},
                quarters=np.mean([each.by_width for each in worst.values()], axis=0).tolist(),
            )
        )
    return found


def _interval_plots(intervals: Sequence[Intervals]) -> list[Picture]:
    """Draw every patient against what is allowed, and misses by width."""
    if not intervals:
        return []
    rows = []
    for each in intervals:
        of = each.rows["miss"]
        rows.append(Dots(each.run, [miss for _, miss, _ in each.patients], of["mean"], of["low"], of["high"]))
    rows += [Dots("allowed", [], share, reference=True) for share in dict.fromkeys(each.allowed for each in intervals)]
    dots = dot_plot(
        rows,
        label="share of a patient's voxels outside their interval",
        alt="Share of voxels outside their interval, a dot for every patient, beside the share that is allowed",
    )
    series = [Series(each.run, [1, 2, 3, 4], list(each.quarters)) for each in intervals]
    return [dots, misses_by_width(series, allowed=[each.allowed for each in intervals])]


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
