"""The protocol's rotation: every patient of a cohort with folds is the test of one calibrated run. See coverage.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from kept import about, told, trained, write
from scanbridge.calibrate import calibrate_run
from scanbridge.calibration import FILE, Calibration
from scanbridge.data.cohort import Cohort, read_cohort
from scanbridge.data.grid import resample
from scanbridge.data.nifti import read
from scanbridge.evaluate import judge_split, write_evaluation
from scanbridge.judge import Judged
from scanbridge.metrics.statistics import mean_interval
from scanbridge.metrics.uncertainty import missed
from scanbridge.model import Model
from scanbridge.translate import stem
from scanbridge.trials import as_settings
from scanbridge.truth import load_truth

MAPS = ("model", "gradient", "constant")
WAYS = ("", "_constant")
"""The run's intervals, and those of one width with the same promise."""


def rotation(asked: argparse.Namespace) -> None:
    """Train, calibrate and test every rotation, then pool by patient."""
    table = read_cohort(asked.cohort)
    folds = sorted({row.group for row in table.rows if row.group is not None})
    lines, runs = [], []
    for fold in asked.folds or folds:
        patients, run = one_rotation(asked, table, folds, folds.index(fold))
        lines += patients
        runs.append(run)
    frame = pd.DataFrame(lines)
    facts = {**about(asked), "unit": frame["unit"][0], "rotations": runs, "pooled": pooled(frame, asked.miss)}
    write(asked, "coverage-rotation", rotation_page(facts, frame, asked), frame, facts)


def one_rotation(
    asked: argparse.Namespace, table: Cohort, folds: Sequence[str], i: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Give a line a test patient, and what is to be said of the run."""
    place = asked.runs / f"rotation-{folds[i]}"
    apart = {"test": [folds[i]], "calibration": [folds[(i + step) % len(folds)] for step in (1, 2)]}
    others = list(
        dict.fromkeys(row.subject for row in table.rows if row.group not in (*apart["test"], *apart["calibration"]))
    )
    val = sorted(np.random.default_rng([asked.seed, i]).choice(others, asked.n_val, replace=False).tolist())

    def made(name: str, calibration: Sequence[str]) -> Path:
        split = {"split.test": apart["test"], "split.val": val, "split.calibration": list(calibration)}
        return trained(asked, place / name, asked.cohort, as_settings(split))

    run = made("calibrated", apart["calibration"])
    if not (run / FILE).is_file():
        calibrate_run(run, asked.cohort, miss=asked.miss, patients=asked.patients, on_progress=told, say=print)
    models = {"calibrated": Model.open(run)}
    if asked.cost:
        models["all"] = Model.open(made("all", []))
    judged = judge_split(models, asked.cohort, place / "evaluation", split="test", on="target", on_progress=told)
    write_evaluation(place / "evaluation", judged, models, {"cohort": asked.cohort.name, "split": "test", "samples": 0})
    lines = []
    for each in (each for each in judged if each.run == "calibrated"):
        same = {other.run: other for other in judged if other.subject == each.subject}
        lines.append({"rotation": folds[i], **of_patient(each), **hot(asked, table, models["calibrated"], each, place)})
        for name in models:
            lines[-1] |= {f"{metric}_{name}": same[name].value(metric) for metric in ("psnr", "ssim_3d", "mae")}
    held = Calibration.of_run(run)
    parts = {part: len(people) for part, people in models["calibrated"].cohort["split"].items()}
    known = {key: getattr(held, key) for key in ("sentence", "signal", "factor", "constant", "choice")}
    return lines, {"rotation": folds[i], **parts, **known}


def of_patient(judged: Judged) -> dict[str, Any]:
    """Give what the intervals of one patient did, and how well the maps rank the errors."""
    widths = {key: value for key, value in vars(judged.kept).items() if isinstance(value, float)}
    areas = {f"aurc_{rank.name}": rank.curve.area for rank in judged.ranks}
    return {"subject": judged.subject, "unit": judged.unit, **widths, **areas}


def hot(asked: argparse.Namespace, table: Cohort, model: Model, judged: Judged, place: Path) -> dict[str, float]:
    """Give the share of the voxels above a value that lie outside their interval; nothing where there is none."""
    if asked.above is None:
        return {}
    row = next(row for row in table.rows if row.name == judged.subject)
    truth, scale = load_truth(table, row, model, "target"), model.scales[model.common.task.targets[0]]
    base = f"{stem(row.images[model.common.task.source])}_{model.common.task.targets[0]}"
    folder = place / "evaluation" / "translations" / judged.run / row.name

    def there(end: str) -> NDArray[np.float32]:
        volume = read(folder / f"{base}{end}.nii.gz")
        return resample(volume.data, volume.grid, truth.grid)[0]

    held = truth.regions["foreground"] & (truth.native > asked.above)
    if not held.any():
        return {}
    real, estimate = truth.written(scale), there("")
    flat = judged.kept.calibration.constant
    outside = (missed(real, there("_low"), there("_high")), missed(real, estimate - flat, estimate + flat))
    return {f"hot_miss{way}": float(each[held].mean()) for way, each in zip(WAYS, outside, strict=True)}


def pooled(frame: pd.DataFrame, miss: float) -> dict[str, Any]:
    """Sum up patients: those for whom the promise held, of all, and means with their intervals."""
    found: dict[str, Any] = {"n": len(frame)}
    for way in WAYS:
        kept = int((frame[f"miss{way}"] <= miss).sum())
        share = stats.binomtest(kept, len(frame)).proportion_ci()
        found[f"kept{way}"] = {"n": kept, "share": kept / len(frame), "low": share.low, "high": share.high}
    for name in frame.columns[frame.dtypes == np.float64]:
        found[name] = vars(mean_interval(frame[name].to_numpy()))
    pairs = {
        "width - width_constant": ("width", "width_constant"),
        **{f"aurc_model - aurc_{name}": ("aurc_model", f"aurc_{name}") for name in MAPS[1:]},
        **{f"{m}_all - {m}_calibrated": (f"{m}_all", f"{m}_calibrated") for m in ("psnr", "ssim_3d", "mae")},
    }
    for name, (one, other) in pairs.items():
        if one in frame:
            found[name] = vars(mean_interval((frame[one] - frame[other]).to_numpy()))
    return found


def rotation_page(facts: dict[str, Any], frame: pd.DataFrame, asked: argparse.Namespace) -> str:
    """Give the tables."""
    unit, hot_too = facts["unit"], "hot_miss" in frame
    above = [f"missed above {asked.above:g}", "one width"] if hot_too else []
    head = ["tests fold", "signal", "patients for whom it held", "one width", "mean width", "one width", *above]
    text = [
        "# Coverage in rotation",
        "",
        f"Every rotation tests one fold, calibrates on the next two, takes {asked.n_val} of the others for val and "
        f"trains the rest. Promised: at least {asked.patients:.0%} of the patients miss at most {asked.miss:.0%} of "
        f"their voxels. Widths in {unit}; 'one width' is a constant interval with the same promise. Means over "
        "patients with their 95 % bootstrap interval, shares of patients with the exact binomial one. Rotations share "
        "patients: they are not independent of each other.",
        "",
        "| " + " | ".join(head) + " |",
        "| --- " * len(head) + "|",
    ]
    groups = [
        (run["rotation"], run["signal"], frame[frame["rotation"] == run["rotation"]]) for run in facts["rotations"]
    ]
    for name, signal, some in [*groups, ("**all**", "", frame)]:
        found = pooled(some, asked.miss)
        cells = [name, signal, *(_kept(found[f"kept{way}"], found["n"]) for way in WAYS)]
        cells += [_mean(found[f"width{way}"]) for way in WAYS]
        cells += [_mean(found[f"hot_miss{way}"], "{:.1%}") for way in WAYS] if hot_too else []
        text.append("| " + " | ".join(cells) + " |")
    found = facts["pooled"]
    text += ["", f"Width minus that of one width: {_mean(found['width - width_constant'])} {unit}."]
    text += ["", f"| map | AURC ({unit}) | the run's minus this |", "| --- | --- | --- |"]
    for name in MAPS:
        against = "" if name == "model" else _mean(found[f"aurc_model - aurc_{name}"])
        text.append(f"| {name} | {_mean(found[f'aurc_{name}'])} | {against} |")
    if asked.cost:
        text += [
            "",
            "| metric | without the calibration patients | trained on them too | difference |",
            "| --- " * 4 + "|",
        ]
        for metric in ("psnr", "ssim_3d", "mae"):
            names = (f"{metric}_calibrated", f"{metric}_all", f"{metric}_all - {metric}_calibrated")
            text.append(f"| {metric} | " + " | ".join(_mean(found[name]) for name in names) + " |")
    return "\n".join(text)


def _kept(share: dict[str, float], n: int) -> str:
    return f"{share['n']} of {n} ({share['low']:.0%} to {share['high']:.0%})"


def _mean(found: dict[str, Any], form: str = "{:.3g}") -> str:
    mean, low, high = (found[key] for key in ("mean", "low", "high"))
    return "" if mean is None else form.format(mean) + ("" if low is None else f" ({form} to {form})".format(low, high))
