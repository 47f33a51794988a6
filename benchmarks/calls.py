"""Quality and time of a bridge against the number of network calls, on the same weights.

    python benchmarks/calls.py RUN... --cohort COHORT.csv --out benchmarks/results

For every run, its test subjects, a slab of 24 slices each on the model grid: PSNR, SSIM and sharpness against the truth
(foreground), the walk's own error against 200 calls of the same walk, and seconds. All rows of a subject share the
starting noise, and eta is 0, so that a row's distance to its 200-call reference is the walk's error alone.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter

from machine import machine
from scanbridge.files import write_json, write_text
from scanbridge.methods.base import Request
from scanbridge.metrics.image import psnr, ssim_map
from scanbridge.model import Model
from scanbridge.plan import plan_run, prepare_rows

CALLS = (1, 2, 4, 8, 16, 50, 100)
REFERENCE = 200
ROWS = {
    "mean_path, linear": ("estimate", "linear", 1),
    "mean_path, theta": ("estimate", "theta", 1),
    "order 1, linear": ("draw", "linear", 1),
    "order 1, quadratic": ("draw", "quadratic", 1),
    "order 1, lambda": ("draw", "lambda", 1),
    "order 1, theta": ("draw", "theta", 1),
    "order 2, theta": ("draw", "theta", 2),
}


def main() -> None:
    """Measure all rows."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("runs", nargs="+", type=Path)
    options.add_argument("--cohort", type=Path, required=True)
    options.add_argument("--cache", type=Path)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--slices", type=int, default=24, help="0 for whole volumes")
    options.add_argument("--calls", type=int, nargs="+", default=CALLS)
    asked = options.parse_args()
    lines = []
    for run in asked.runs:
        model = Model.open(run)
        plan = plan_run(run / "config.toml", asked.cohort)
        for case in prepare_rows(plan, plan.rows("test"), asked.cache or run / "cache"):
            lines += measure_case(model, case, asked.slices, asked.calls)
            print(f"{run.parent.name}/{run.name}: {case.name}", flush=True)
    frame = pd.DataFrame(lines)
    table = frame.groupby(["row", "calls"], sort=False).mean(numeric_only=True).reset_index()
    asked.out.mkdir(parents=True, exist_ok=True)
    write_json(asked.out / "calls.json", {"machine": machine(), "slices": asked.slices, "rows": lines})
    write_text(asked.out / "calls.md", markdown(table, len(set(frame["subject"])), asked.slices))
    draw(table, asked.out / "calls.png")
    print(markdown(table, len(set(frame["subject"])), asked.slices))


def measure_case(model: Model, case, n_slices: int, calls) -> list[dict[str, object]]:
    """Measure every row on one subject's slab."""
    target = model.common.task.targets[0]
    inside = np.flatnonzero(case.foreground.any(axis=(1, 2)))
    middle = int(inside.mean())
    slab = slice(middle - n_slices // 2, middle + n_slices // 2) if n_slices else slice(inside[0], inside[-1] + 1)
    source = np.asarray(case.source[slab], np.float32)
    truth = (np.asarray(case.targets[target][slab], np.float32) + 1) / 2
    body = np.asarray(case.foreground[slab])
    detail = np.square(truth - gaussian_filter(truth, 1))[body].sum()

    def run(row: str, n: int) -> tuple[np.ndarray, float, int]:
        product, grid, order = ROWS[row]
        request = Request(target=target, subject=case.name, product=product, calls=n, grid=grid, order=order)
        start = time.perf_counter()
        draws = model.draw(source, body, request)
        return (draws.volumes[0].numpy() + 1) / 2, time.perf_counter() - start, draws.calls

    references = {
        p: run(row, REFERENCE)[0] for p, row in (("estimate", "mean_path, theta"), ("draw", "order 2, theta"))
    }
    lines = []
    for row, (product, _, _) in ROWS.items():
        best = references[product]
        for n in calls:
            made, seconds, really = run(row, n)
            similarity = ssim_map(made, truth, data_range=1.0)
            lines.append(
                {
                    "subject": case.name,
                    "row": row,
                    "calls": really,
                    "psnr": psnr(made, truth, body, data_range=1.0),
                    "ssim": float(similarity[body].mean()),
                    "sharpness": float(np.square(made - gaussian_filter(made, 1))[body].sum() / detail),
                    "walk_error": float(np.sqrt(np.mean((made - best)[body] ** 2))),
                    "network_error": float(np.sqrt(np.mean((best - truth)[body] ** 2))),
                    "seconds": seconds,
                }
            )
    return lines


def markdown(table: pd.DataFrame, n: int, n_slices: int) -> str:
    """Give the means over subjects as a table."""
    where = f"a slab of {n_slices} slices each" if n_slices else "whole volumes"
    text = [
        "# Network calls",
        "",
        f"Means over {n} subjects, {where}; walk error: RMS to {REFERENCE} calls of the same kind of walk, on [0, 1].",
        "",
        f"machine: {json.dumps(machine())}",
        "",
        "| walk | calls | PSNR dB | SSIM | sharpness | walk error | network error | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    text += [
        f"| {r.row} | {r.calls} | {r.psnr:.2f} | {r.ssim:.4f} | {r.sharpness:.2f} | {r.walk_error:.4f} | "
        f"{r.network_error:.4f} | {r.seconds:.2f} |"
        for r in table.itertuples()
    ]
    return "\n".join(text) + "\n"


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw PSNR, sharpness and the walk's error against calls."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for axes, metric, label in zip(
        figure.subplots(1, 3),
        ("psnr", "sharpness", "walk_error"),
        ("PSNR, foreground (dB)", "sharpness (1 is right)", "walk error (RMS to 200 calls)"),
        strict=True,
    ):
        for row, lines in table.groupby("row", sort=False):
            axes.plot(lines["calls"], lines[metric].clip(lower=1e-5), marker="o", markersize=3, label=row)
        axes.set(xscale="log", xlabel="network calls", ylabel=label)
        if metric == "walk_error":
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
