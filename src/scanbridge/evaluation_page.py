"""Which numbers and pictures the page of an evaluation shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

from scanbridge import __version__
from scanbridge.calibration import FILE
from scanbridge.ceiling import known_ceiling
from scanbridge.judge import TRUTH, Judged
from scanbridge.metrics.statistics import mean_interval, side
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
from scanbridge.report.page import MAPS, Less, ReportContext, Subject, Uncertainty, render
from scanbridge.report.picture import Picture
from scanbridge.report.planes import draw
from scanbridge.report.tables import number, patients
from scanbridge.runs.log import read_log

Rows = Sequence[Mapping[str, Any]]
CEILING = "ceiling:autoencoder"


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
    ceilings = _ceilings(models)
    return render(
        ReportContext(
            source=first.common.task.source,
            targets=first.common.task.targets[:1],
            data=[*_data(models, shown[0], facts), *_not_judged(models, estimates), *_kept(ceilings)],
            summary=[*(row for row in summary if row["run"] in runs), *_ceiling_rows(ceilings, first)],
            paired=comparisons,
            leaders=leading,
            plots=[_dots(estimates, summary, ceilings)],
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
    return [
        ("Judged", f"{len(facts['subjects'])} scans, '{facts['split']}' of {facts['cohort']}"),
        ("Trained on", "; ".join(f"{name}: {n} people" for name, n in train.items())),
        ("Metrics", one.measured),
        ("Products", "rows named after a run are its estimate; ':one-call' is the same network's first call"),
        ("Weights", "; ".join(f"{label}: {model.weights[stage][:12]}" for label, model, stage in _stages(models))),
    ]


def _not_judged(models: Mapping[str, Model], estimates: Sequence[Judged]) -> list[tuple[str, str]]:
    """Say of how many scans the intervals of calibrated runs are not judged, and why that may be."""
    left = []
    for name in (name for name, model in models.items() if model.run and (model.run / FILE).is_file()):
        without = [each.kept is None for each in estimates if each.run == name]
        if any(without):
            left.append(f"of {name} are not judged in {sum(without)} of {len(without)} scans")
    why = "who calibrated a run does not judge it, and a promise is about the estimate as calibrated, on its own grid"
    return [("Intervals", f"{'; '.join(left)}: {why}")] if left else []


def _ceilings(models: Mapping[str, Model]) -> dict[str, list[dict[str, float]]]:
    """Gather what the autoencoders of latent runs keep of each val subject's target, by the name of the row."""
    found = {name: known_ceiling(model.run) for name, model in models.items() if model.run}
    latent = {name: people for name, people in found.items() if people}
    return {CEILING if len(latent) == 1 else f"ceiling:{name}": people for name, people in latent.items()}


def _kept(ceilings: Mapping[str, Sequence[Mapping[str, float]]]) -> list[tuple[str, str]]:
    """Say in words what a ceiling is."""
    if not ceilings:
        return []
    n = {name: patients(len(people)) for name, people in ceilings.items()}
    whose = ", ".join(n.values()) if len(n) == 1 else ", ".join(f"{name}: {each}" for name, each in n.items())
    what = "the truth, encoded and decoded by itself; no translation through that autoencoder should do better"
    return [("Ceiling: what the autoencoder keeps", f"{what}. Measured on val subjects ({whose}), on the model grid")]


def _ceiling_rows(ceilings: Mapping[str, Sequence[Mapping[str, float]]], model: Model) -> list[dict[str, Any]]:
    """Lay ceilings out as rows of the table in which the floors stand."""
    note = "a ceiling is of val subjects on the model grid, who need not be those judged"
    return [
        {
            **{"run": name, "target": model.common.task.targets[0], "region": "foreground", "metric": metric},
            **{"unit": unit, **vars(found), "note": "; ".join(filter(None, (note, found.note)))},
        }
        for name, people in ceilings.items()
        for metric, unit in (("psnr", "dB"), ("ssim_3d", "1"))
        if (found := mean_interval([each[metric] for each in people if metric in each])).n
    ]


def _dots(judged: Sequence[Judged], summary: Rows, ceilings: Mapping[str, Sequence[Mapping[str, float]]]) -> Picture:
    """Draw PSNR of every subject, floors and ceilings as references."""
    rows = []
    for run in dict.fromkeys(each.run for each in judged):
        of = next(r for r in summary if (r["run"], r["metric"], r["region"]) == (run, "psnr", "foreground"))
        values = [v for each in judged if each.run == run and (v := each.value("psnr")) is not None]
        rows.append(Dots(run, values, of["mean"], of["low"], of["high"], reference=run.startswith("floor:")))
    for name, people in ceilings.items():
        values = [each["psnr"] for each in people]
        mean = mean_interval(values)
        rows.append(Dots(name, values, mean.mean, mean.low, mean.high, reference=True))
    alt = f"PSNR of every subject by run, floors{' and ceiling' if ceilings else ''} for reference"
    return dot_plot(rows, label="PSNR in the foreground (dB)", alt=alt)


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
    """Judge the first run's map beside the trivial ones, means over patients."""
    ranked = [each for each in shown if each.ranks]
    if not ranked:
        return None
    unit = ranked[0].unit
    rows, curves, areas = [], [], {}
    for index, rank in enumerate(ranked[0].ranks):
        visits = [(_patient(each), each.ranks[index]) for each in ranked]
        rhos = _by_patient([(who, r.spearman) for who, r in visits if r.spearman is not None])
        areas[rank.name] = _by_patient([(who, r.curve.area) for who, r in visits])
        area, excess = _mean(areas[rank.name]), _mean(_by_patient([(who, r.curve.excess) for who, r in visits]))
        rows.append((rank.name, float(_mean(rhos)) if rhos else None, float(area), float(excess)))
        risk = _mean(_by_patient([(who, r.curve.risk) for who, r in visits]))
        label = f"{MAPS[rank.name]}, area {number(area, unit)}"
        curves.append(Series(label, rank.curve.coverage, risk, reference=rank.name != "model"))
    own = areas.pop("model")
    against = {name: _less(own, other) for name, other in areas.items()}
    error, doubt = (np.concatenate(part) for part in zip(*(each.doubts for each in ranked if each.doubts), strict=True))
    plots = [
        risk_coverage_curves(curves, unit=unit),
        error_against_uncertainty(error, doubt, np.ones(error.shape, dtype=np.bool_), unit=unit),
    ]
    return Uncertainty(rows, unit, len(own), plots, against)


def _patient(judged: Judged) -> str:
    """Give whose scan was judged; a patient may have several."""
    return str(judged.rows[0]["subject"])


def _by_patient(visits: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Give the mean over each patient's visits, of numbers or of arrays."""
    return {name: np.mean([value for who, value in visits if who == name], axis=0) for name, _ in visits}


def _mean(patients: Mapping[str, Any]) -> Any:
    """Give the mean over patients."""
    return np.mean([*patients.values()], axis=0)


def _less(own: Mapping[str, float], other: Mapping[str, float]) -> Less:
    """Say by how much the areas of a map are below another's, patient by patient."""
    found = mean_interval([other[name] - own[name] for name in own])
    return Less(sum(own[name] < other[name] for name in own), found.n, found.mean, found.low, found.high)


def _drawn(judged: Sequence[Judged], summary: Rows) -> list[Drawn]:
    """Gather each run's draws with its estimate, in the order: first call, estimate, mean of draws, one draw."""
    found = []
    for mean in dict.fromkeys(each.run for each in judged if each.product == "mean"):
        run, _, ending = mean.rpartition(":")
        shown = [f"{run}:one-call", run, mean, f"{run}:draw"]
        rows = [row for name in (*shown, TRUTH) for row in summary if row["run"] == name]
        found.append(
            Drawn(
                run=run,
                draw=shown[-1],
                mean=mean,
                truth=TRUTH,
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
    return side(found.n, found.low, found.high) < 0


def _intervals(judged: Sequence[Judged], summary: Rows) -> list[Intervals]:
    """Gather what the intervals of each calibrated run did, patient by patient."""
    found = []
    for run in dict.fromkeys(each.run for each in judged if each.kept is not None):
        kept = [(_patient(each), each.kept) for each in judged if each.run == run and each.kept]
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
                quarters=_mean(_by_patient([(who, each.by_width) for who, each in kept])).tolist(),
                regions=_by_region(run, summary),
            )
        )
    return found


def _by_region(run: str, summary: Rows) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Gather the misses of a run's intervals in marked regions, and those of one width."""
    rows = [r for r in summary if r["run"] == run and r["metric"].startswith("miss") and r["region"] != "foreground"]
    return {
        region: {r["metric"]: r for r in rows if r["region"] == region} for region in {r["region"]: 0 for r in rows}
    }


def _interval_plots(intervals: Sequence[Intervals]) -> list[Picture]:
    """Draw every patient against what is allowed, and misses by width."""
    if not intervals:
        return []
    rows = []
    for each in intervals:
        misses = [miss for _, miss, _ in each.patients]
        of = mean_interval(misses)
        rows.append(Dots(each.run, misses, of.mean, of.low, of.high))
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
    for label, model, stage in _stages(models):
        lines = read_log(model.run / "stages" / stage / "log.jsonl") if model.run else []
        if lines:
            series.append(Series(label, [line["images"] for line in lines], [line["loss"] for line in lines]))
    return [training_curves(series)] if series else []


def _stages(models: Mapping[str, Model]) -> Iterator[tuple[str, Model, str]]:
    """Give every stage of every run with a name for a reader: the run's, and the stage's where there are several."""
    for name, model in models.items():
        for stage in model.weights:
            yield (f"{name}, {stage}" if len(model.weights) > 1 else name), model, stage


def _settings(models: Mapping[str, Model]) -> list[tuple[str, str]]:
    rows = [("scanbridge", __version__)]
    for name, model in models.items():
        train, estimate = model.common.train, getattr(model.config, "estimate", None)
        walk = f"{estimate.walk}, {estimate.calls} calls, grid {estimate.grid}" if estimate else "one call"
        rows.append((name, f"{model.common.method}; {model.trained_for}, seed {train.seed}; estimate: {walk}"))
    return rows
