"""Quality and cost of a bridge against the number of network calls, on the same weights.

    python benchmarks/calls.py RUN... --cohort COHORT.csv --out OUT
    python benchmarks/calls.py --merge OUT/calls.csv OTHER/calls.csv --out BOTH

For every run (ct2mri, bbdm, or another with walks) and its test subjects, or those of --split val: distortion (PSNR,
SSIM, MAE in the foreground, on the model grid), sharpness, consistency from slice to slice, the spread over two draws
where a row draws, seconds, and the network's floating point operations: those of one window, counted, times the windows
that were run. All rows of a subject share the starting noise, and eta is 0: a row's distance to REFERENCE calls of its
kind on theta is the walk's error alone, and stands beside the RMSE against the truth, which is the network's as well.
An estimate and a draw are different products; a perfect draw loses 3 dB to a perfect estimate.

Folds and seeds of one name are pooled by patient. ``--rows``, ``--calls`` and ``--slices`` run a part; what is measured
is in OUT/calls.csv after every row, and several such files are merged, the later one winning.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter
from torch.utils.flop_counter import FlopCounterMode

from machine import machine
from scanbridge.data.cache import Case
from scanbridge.files import write_json, write_text
from scanbridge.methods.base import Draws, Product, Request
from scanbridge.metrics.image import psnr, ssim_map
from scanbridge.metrics.slices import slice_shape, slice_style
from scanbridge.metrics.statistics import paired
from scanbridge.model import Model
from scanbridge.plan import plan_run, prepare_rows

CALLS = (1, 2, 4, 8, 16, 50, 100)
REFERENCE = 200
FEW = 16
"""Calls; above it one draw is made, and no spread is measured."""
FLOP_SLICES = 4


class Row(NamedTuple):
    """A product, what its table says, and the most calls that it is measured at: where more tell nothing new, few."""

    product: Product
    settings: dict[str, Any]
    most: int = max(CALLS)


def mean_path(grid: str, stride: int = 1, most: int = max(CALLS)) -> Row:
    """Give an estimate's row."""
    walk = {"walk": "mean_path", "start": "source", "mirror": []}
    return Row("estimate", walk | {"grid": grid, "stride": stride}, most)


def mirrored(most: int) -> Row:
    """Give the row of a mean path whose every call is averaged with that of the mirrored image."""
    return Row("estimate", {"walk": "mean_path", "start": "source", "grid": "linear", "mirror": ["columns"]}, most)


def draw(grid: str, order: int, variance: str = "none", stride: int = 1, most: int = max(CALLS)) -> Row:
    """Give a draw's row."""
    walk = {"walk": "marginals", "start": "prior", "temperature": 1.0, "mirror": []}
    return Row("draw", walk | {"grid": grid, "order": order, "variance": variance, "stride": stride}, most)


ROWS = {
    "one call": Row("one-call", {}),
    "one call, mirrored": mirrored(most=1),
    "mean_path, linear, mirrored": mirrored(most=FEW),
    "mean_path, published": mean_path("published"),
    "mean_path, linear": mean_path("linear"),
    "mean_path, linear, stride 3": mean_path("linear", stride=3, most=FEW),
    "mean_path, quadratic": mean_path("quadratic", most=FEW),
    "mean_path, lambda": mean_path("lambda", most=FEW),
    "mean_path, theta": mean_path("theta"),
    "mean_path, theta, stride 3": mean_path("theta", stride=3, most=FEW),
    "order 1, linear": draw("linear", 1),
    "order 1, quadratic": draw("quadratic", 1, most=FEW),
    "order 1, lambda": draw("lambda", 1, most=FEW),
    "order 1, theta": draw("theta", 1),
    "order 1, theta, stride 3": draw("theta", 1, stride=3, most=FEW),
    "order 2, theta": draw("theta", 2),
    "order 2, theta, stride 3": draw("theta", 2, stride=3, most=FEW),
    "order 2, theta, variance": draw("theta", 2, "residual", most=FEW),
}
REFERENCES = {"estimate": mean_path("theta"), "draw": draw("theta", 1)}
KEY = ["task", "run", "slices", "fold", "subject", "row", "asked"]
GROUP = ["task", "run", "slices"]


def main() -> None:
    """Measure rows, or merge what was measured."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("runs", nargs="*", type=Path)
    options.add_argument("--cohort", type=Path)
    options.add_argument("--cache", type=Path)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--slices", type=int, default=24, help="in the middle of the foreground; 0 for all")
    options.add_argument("--split", choices=["test", "val"], default="test")
    options.add_argument("--people", type=int, help="the first so many of the split; all by default")
    options.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    options.add_argument("--calls", type=int, nargs="+", default=CALLS)
    options.add_argument(
        "--no-reference", dest="reference", action="store_false", help="without the walk error, and its 200 calls"
    )
    options.add_argument("--merge", type=Path, nargs="+", default=[], help="files calls.csv of earlier invocations")
    asked = options.parse_args()
    if asked.runs and not asked.cohort:
        options.error("runs need a --cohort")
    asked.out.mkdir(parents=True, exist_ok=True)
    text = dict.fromkeys(("unit", "fold", "subject", "run"), str)
    frame = pd.concat([pd.read_csv(path, dtype=text) for path in asked.merge]) if asked.merge else pd.DataFrame()
    for lines in measured(asked):
        frame = pd.concat([frame, pd.DataFrame(lines)]).drop_duplicates(KEY, keep="last")
        frame.to_csv(asked.out / "calls.csv", index=False)
    if frame.empty:
        options.error("name runs to measure, or files to --merge")
    frame = frame.drop_duplicates(KEY, keep="last")
    frame.to_csv(asked.out / "calls.csv", index=False)
    write_json(asked.out / "calls.json", {"machine": machine()})
    write_text(asked.out / "calls.md", page(frame))
    for (task, run, _), group in frame.groupby(GROUP, sort=False):
        picture(group, asked.out / f"calls-{run}-{task.split()[-1]}.png")
    print(page(frame))


def measured(asked: argparse.Namespace) -> Iterator[list[dict[str, object]]]:
    """Give the lines of one row of one subject after another."""
    for run in asked.runs:
        plan = plan_run(run / "config.toml", asked.cohort)
        task = plan.common.task
        for case in prepare_rows(plan, plan.rows(asked.split)[: asked.people], asked.cache or run / "cache"):
            if task.targets[0] not in case.targets:
                continue
            slab = Slab.of(case, task.targets[0], asked.slices)
            key = {
                "task": f"{task.source} -> {task.targets[0]}",
                "run": run.name,
                "slices": asked.slices,
                "fold": "/".join(run.parts[-3:-1]),
                "subject": case.subject,
            }
            for product, row in REFERENCES.items():
                if asked.reference and any(ROWS[name].product == product for name in asked.rows):
                    slab.references[product] = made(opened(run, row), slab, row.product, REFERENCE)[0][0]
            for name in asked.rows:
                row = ROWS[name]
                calls = (1,) if row.product == "one-call" else [n for n in asked.calls if n <= row.most]
                model = opened(run, row)
                yield [key | {"row": name, "asked": n} | measure(model, slab, row, n) for n in calls]
                print(f"{key['fold']}/{run.name}: {case.name}: {name}", flush=True)


def opened(run: Path, row: Row) -> Model:
    """Open a run with a row's settings, as far as its method knows them."""
    known = type(Model.open(run).config.estimate).model_fields
    return Model.open(run, settings=[f"{row.product}.{k}={v}" for k, v in row.settings.items() if k in known])


@dataclass
class Slab:
    """The slices of one subject that are measured: images (D, H, W), the truth in [0, 1], and the reference walks."""

    name: str
    target: str
    source: np.ndarray
    seen: np.ndarray
    truth: np.ndarray
    body: np.ndarray
    references: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, case: Case, target: str, n_slices: int) -> Slab:
        """Cut the middle of the foreground; all slices for 0."""
        middle = int(np.flatnonzero(case.foreground.any(axis=(1, 2))).mean())
        cut = slice(max(0, middle - n_slices // 2), middle + n_slices // 2) if n_slices else slice(None)
        seen = np.asarray(case.foreground[cut])
        truth = (np.asarray(case.targets[target][cut], np.float32) + 1) / 2
        body = seen & np.asarray(case.inside[target][cut])
        return cls(case.name, target, np.asarray(case.source[cut], np.float32), seen, truth, body)


def made(model: Model, slab: Slab, product: Product, calls: int, samples: int = 1) -> tuple[np.ndarray, Draws, float]:
    """Give volumes (K, D, H, W) in [0, 1], how they were made, and seconds a volume."""
    asked = None if product == "one-call" else calls
    request = Request(target=slab.target, subject=slab.name, product=product, samples=samples, calls=asked)
    start = time.perf_counter()
    draws = model.draw(slab.source, slab.seen, request)
    seconds = (time.perf_counter() - start) / samples
    return (draws.volumes.cpu().numpy() + 1) / 2, draws, seconds


def measure(model: Model, slab: Slab, row: Row, calls: int) -> dict[str, object]:
    """Measure one row at one number of calls on one subject."""
    scale, body = model.scales[slab.target], slab.body
    size = 1.0 if scale.unit == "1" else scale.range
    samples = 2 if row.product == "draw" and calls <= FEW else 1
    values, draws, seconds = made(model, slab, row.product, calls, samples)
    estimate, windows = values[0], int(draws.facts["windows"])
    error = estimate - slab.truth
    another_law = row.settings.get("variance", "none") != "none"
    reference = None if another_law else slab.references.get(row.product)
    return {
        "calls": draws.calls,
        "unit": scale.unit,
        "psnr": psnr(estimate, slab.truth, body, data_range=1.0),
        "ssim": similarity(estimate, slab.truth, body),
        "mae": float(np.abs(error)[body].mean()) * size,
        "rmse": rms(error, body) * size,
        "walk_error": np.nan if reference is None else rms(estimate - reference, body) * size,
        "sharpness": detail(estimate, body) / detail(slab.truth, body),
        "slice_style": (slice_style(error, body, 0) or np.nan) * size,
        "slice_shape": slice_shape(error, slab.truth, body, 0),
        "spread": rms(values[0] - values[1], body) / 2**0.5 * size if samples > 1 else np.nan,
        "windows": windows,
        "tflop": flops_of_a_window(model, slab) * windows / 1e12,
        "seconds": seconds,
    }


def rms(values: np.ndarray, body: np.ndarray) -> float:
    """Give the root of the mean square over a region."""
    return float(np.sqrt(np.mean(np.square(values[body], dtype=np.float64))))


def flops_of_a_window(model: Model, slab: Slab) -> float:
    """Count the operations (a multiply-add is two) of the network for one window of this subject."""
    n = min(FLOP_SLICES, len(slab.source))
    whole = np.broadcast_to(slab.seen.any(axis=0), (n, *slab.seen.shape[1:]))
    with FlopCounterMode(display=False) as counter:
        draws = model.draw(slab.source[:n], whole, Request(target=slab.target, subject="flops", product="one-call"))
    return counter.get_total_flops() / int(draws.facts["windows"])


def similarity(estimate: np.ndarray, truth: np.ndarray, body: np.ndarray) -> float:
    """Give the mean SSIM over a region; NaN where the slab is thinner than the window of SSIM."""
    values = ssim_map(estimate, truth, data_range=1.0)
    return float("nan") if values is None else float(values[body].mean())


def detail(image: np.ndarray, body: np.ndarray) -> float:
    """Give the energy of an image minus its Gaussian of one voxel."""
    return float(np.square(image - gaussian_filter(image, 1))[body].sum())


def page(frame: pd.DataFrame) -> str:
    """Give all groups as tables of means over patients, with paired differences to the row of the best PSNR."""
    text = ["# Network calls", ""]
    for (task, run, slices), group in frame.groupby(GROUP, sort=False):
        where = f"{slices} slices in the middle of each" if slices else "whole volumes"
        n, runs = group["subject"].nunique(), group["fold"].nunique()
        text += [f"## {task}, {run}", "", f"{n} patients of {runs} runs, {where}.", "", *table(group), ""]
    return "\n".join([*text, f"machine: {json.dumps(machine())}", ""])


def table(group: pd.DataFrame) -> list[str]:
    """Give the lines of one group's table."""
    unit = group["unit"].iloc[0]
    in_unit = "" if unit == "1" else f" {unit}"
    means = by_patient(group).groupby(["row", "asked"], sort=False).mean(numeric_only=True)
    best = means["psnr"].idxmax()
    to_best = differences(group, label(*best))
    lines = [
        f"Differences are paired, to the best mean PSNR ({label(*best)}, found on these same patients), with 95 % "
        f"intervals over patients. The walk error is the RMS distance to {REFERENCE} calls of the same product.",
        "",
        f"| walk | asked | calls | PSNR dB | to the best | SSIM | to the best | MAE{in_unit} | RMSE{in_unit} "
        f"| walk error{in_unit} | sharpness | slice style{in_unit} | slice shape | spread{in_unit} | TFLOP | seconds |",
        "| --- " * 16 + "|",
    ]
    for (row, asked), r in means.loc[sorted(means.index, key=lambda k: (list(ROWS).index(k[0]), k[1]))].iterrows():
        by_psnr, by_ssim = (to_best.get((label(row, asked), metric), "-") for metric in ("psnr", "ssim"))
        lines.append(
            f"| {row} | {asked} | {r.calls:g} | {r.psnr:.2f} | {by_psnr} | {r.ssim:.4f} | {by_ssim} | {r.mae:.4f} "
            f"| {r.rmse:.4f} | {number(r.walk_error)} | {r.sharpness:.2f} | {r.slice_style:.4f} | {r.slice_shape:.3f} "
            f"| {number(r.spread)} | {r.tflop:.3g} | {r.seconds:.2f} |"
        )
    return lines


def by_patient(group: pd.DataFrame) -> pd.DataFrame:
    """Average folds, seeds and visits of one patient: nobody counts twice."""
    return group.groupby(["row", "asked", "subject"], sort=False).mean(numeric_only=True).reset_index()


def label(row: str, asked: int) -> str:
    """Name a row at a number of calls."""
    return f"{row} @ {asked}"


def number(value: float) -> str:
    """Give a number, or a dash where there is none."""
    return "-" if np.isnan(value) else f"{value:.4f}"


def differences(group: pd.DataFrame, best: str) -> dict[tuple[str, str], str]:
    """Give the paired difference of every row and metric to the best row, with its interval."""
    long = group.melt(["subject", "row", "asked"], ["psnr", "ssim"], "metric", "value")
    long["run"] = [label(row, asked) for row, asked in zip(long["row"], long["asked"], strict=True)]
    long = long.assign(target="", region="foreground", unit="1")
    found = {}
    for line in paired(long, best, ("psnr", "ssim"), "foreground"):
        digits = 2 if line["metric"] == "psnr" else 4
        if line["difference"] is not None:
            text = f"{line['difference']:+.{digits}f}"
            if line["low"] is not None:
                text += f" ({line['low']:+.{digits}f} to {line['high']:+.{digits}f})"
            found[line["run"], line["metric"]] = text
    return found


def picture(group: pd.DataFrame, path: Path) -> None:
    """Draw quality against calls and against the network's work.

    One call of a walk with a variance is white noise about the estimate: it would set every axis, and is left out.
    """
    means = by_patient(group).groupby(["row", "asked"], sort=False).mean(numeric_only=True).reset_index()
    means = means[~((means["asked"] == 1) & means["row"].str.contains("variance"))]
    means["walk_share"] = means["walk_error"] / means["rmse"]
    unit = group["unit"].iloc[0]
    panels = (
        ("asked", "psnr", "PSNR, foreground (dB)"),
        ("tflop", "psnr", "PSNR, foreground (dB)"),
        ("asked", "ssim", "SSIM, foreground"),
        ("asked", "sharpness", "sharpness (1 is right)"),
        ("asked", "walk_share", "walk error as a share of the RMSE"),
        ("asked", "spread", f"spread over two draws ({unit if unit != '1' else 'of 1'})"),
    )
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    names = list(dict.fromkeys(means["row"]))
    families = list(dict.fromkeys(name.partition(", stride")[0] for name in names))
    for axes, (across, metric, words) in zip(figure.subplots(2, 3).flat, panels, strict=True):
        for name in names:
            lines = means[means["row"] == name].sort_values(across)
            color = colormaps["tab20"](families.index(name.partition(", stride")[0]))
            style = ":" if "stride" in name else "-"
            if name == "one call":
                axes.axhline(float(lines[metric].iloc[0]), linestyle="--", color=color, linewidth=1, label=name)
                continue
            axes.plot(lines[across], lines[metric], style, color=color, marker="o", markersize=3, label=name)
        axes.set(xscale="log", xlabel="network calls" if across == "asked" else "TFLOP of the network", ylabel=words)
        if across == "asked":
            axes.set_xticks(
                sorted(means["asked"].unique()), labels=map(str, sorted(means["asked"].unique())), minor=False
            )
            axes.minorticks_off()
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    patients = group["subject"].nunique()
    figure.suptitle(f"{group['task'].iloc[0]}, {group['run'].iloc[0]}: means over {patients} patients", fontsize=10)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
