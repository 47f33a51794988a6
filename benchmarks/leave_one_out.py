"""Each person of a cohort held out in turn: train, translate, judge, pool by patient.

    python benchmarks/leave_one_out.py --cohort ms/cohort.csv --runs RUNS/real [--rows ct2mri regression]
        [--seeds 0 1 2] [--set k=v]

Trainings resume; what is done is kept. A person's numbers are means over the seeds. Writes tables and a page into RUNS
and, with --results, a copy of the tables and one picture a person into that folder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from machine import machine
from scanbridge.data.cohort import read_cohort
from scanbridge.evaluate import judge_split, write_evaluation
from scanbridge.files import write_text
from scanbridge.fit import Progress
from scanbridge.metrics.statistics import paired, summarise
from scanbridge.model import Model
from scanbridge.plan import plan_run
from scanbridge.report.planes import draw
from scanbridge.train import train_run

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
ISTA = ["estimate.calls=50", "correction.corrections=1"]
ROWS = {  # name: (preset, settings of the training, settings of the translation alone)
    "ct2mri": ("ct2mri-small", [], []),
    "ct2mri, key nearest": ("ct2mri-small", [], ['style.choice="nearest"']),
    "ct2mri, no co-prediction": ("ct2mri-small", [], ["coprediction=false"]),
    "ct2mri, 100 calls": ("ct2mri-small", [], ["estimate.calls=100"]),
    "ct2mri, ISTA 50 + 49": ("ct2mri-small", [], ISTA),
    "bbdm": ("bbdm-small", [], []),
    "regression": ("regression-small", [], []),
}
"""Rows of the paper's Table 2, in form: with and without key, co-prediction and corrector; and the floor."""

SHOWN = ("psnr", "ssim_3d", "mae", "sharpness", "slice_style_axial", "slice_shape_axial")


def main() -> None:
    """Run all folds."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cohort", type=Path, required=True)
    options.add_argument("--runs", type=Path, required=True)
    options.add_argument("--rows", nargs="+", choices=list(ROWS), default=["ct2mri", "regression"])
    options.add_argument("--folds", nargs="+", help="subjects to hold out; all by default")
    options.add_argument("--seeds", nargs="+", type=int, default=[0])
    options.add_argument("--set", dest="settings", action="append", default=[])
    options.add_argument("--on", choices=["target", "model"], default="model")
    options.add_argument("--results", type=Path)
    asked = options.parse_args()

    subjects = asked.folds or list(dict.fromkeys(row.subject for row in read_cohort(asked.cohort).rows))
    judged, models = [], {}
    for seed, subject in itertools.product(asked.seeds, subjects):
        folder = asked.runs / subject / f"seed-{seed}"
        for row in asked.rows:
            train(asked, row, subject, seed, folder)
        models = {row: Model.open(folder / ROWS[row][0], settings=ROWS[row][2]) for row in asked.rows}
        judged += judge_split(models, asked.cohort, folder, split="test", on=asked.on)
    facts = {"cohort": f"{asked.cohort.parent.name}/{asked.cohort.name}", "split": "each held out in turn"}
    page = write_evaluation(asked.runs, judged, models, facts)
    table = markdown(asked)
    print(table)
    print(f"page: {page}")
    if asked.results:
        asked.results.mkdir(parents=True, exist_ok=True)
        write_text(asked.results / "leave_one_out.md", table)
        (asked.results / "leave_one_out.csv").write_bytes((asked.runs / "metrics.csv").read_bytes())
        for each in judged[::-1]:  # the first seed's picture is the one that stays
            if each.run == asked.rows[0] and each.planes is not None:
                drawn = draw(each.planes)
                (asked.results / f"{each.subject}.png").write_bytes(drawn.images.data)
                (asked.results / f"{each.subject}-maps.png").write_bytes(drawn.maps.data)


def train(asked: argparse.Namespace, row: str, subject: str, seed: int, folder: Path) -> None:
    """Train a row without one person, or go on where it was left."""
    preset, settings, _ = ROWS[row]
    plan = plan_run(
        CONFIGS / f"{preset}.toml",
        asked.cohort,
        [*settings, *asked.settings, f'split.test=["{subject}"]', f"train.seed={seed}"],
    )
    said = {"next": 0}

    def progress(p: Progress) -> None:
        if p.images >= said["next"] or p.images == p.of:
            print(f"  {subject}, seed {seed}: {preset} {p.images}/{p.of}  {p.rate:.1f} images/s", flush=True)
            said["next"] = p.images + p.of // 10

    if train_run(plan, folder / preset, cache=asked.runs / "cache", say=print, on_progress=progress):
        sys.exit(143)


def markdown(asked: argparse.Namespace) -> str:
    """Give the foreground's numbers: mean with interval and every person's value, and differences to the first row."""
    frame = pd.read_csv(asked.runs / "metrics.csv")
    frame = frame[(frame["region"] == "foreground") & frame["metric"].isin(SHOWN)]
    people = list(dict.fromkeys(frame["subject"]))
    rows = " ".join(f'"{row}"' for row in asked.rows)
    seeds = " ".join(map(str, asked.seeds))
    settings = "".join(f" --set {setting}" for setting in asked.settings)
    lines = [
        "# Each person held out in turn",
        "",
        f"Command: `python benchmarks/leave_one_out.py --cohort {asked.cohort.parent.name}/{asked.cohort.name} "
        f"--runs RUNS --rows {rows} --seeds {seeds} --on {asked.on}{settings}`",
        "",
        f"Machine: {json.dumps(machine())}",
        "",
        f"Foreground, mean over {len(people)} people with its 95 % interval (too narrow for so few), then "
        f"{', '.join(people)}, each the mean over seeds {seeds}.",
        "",
        *_table(summarise(frame), frame, "run"),
        "",
        f"Differences, {asked.rows[0]} minus the row:",
        "",
    ]
    others = [run for run in dict.fromkeys(frame["run"]) if run != asked.rows[0]]
    compared = [r for run in others for r in paired(frame, run, SHOWN, "foreground", runs=[asked.rows[0]])]
    lines += ["| against | " + " | ".join(SHOWN) + " |", "| --- |" + " --- |" * len(SHOWN)]
    for run in others:
        found = {r["metric"]: r for r in compared if r["reference"] == run}
        cells = [f"{f['difference']:+.3f} [{f['low']:+.3f}, {f['high']:+.3f}]" for m in SHOWN if (f := found[m])]
        lines.append(f"| {run} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _table(summary: list[dict[str, Any]], frame: pd.DataFrame, head: str) -> list[str]:
    lines = [f"| {head} | " + " | ".join(SHOWN) + " |", "| --- |" + " --- |" * len(SHOWN)]
    for run in dict.fromkeys(frame["run"]):
        cells = []
        for metric in SHOWN:
            (row,) = (r for r in summary if (r["run"], r["metric"]) == (run, metric))
            held = frame[(frame["run"] == run) & (frame["metric"] == metric)]
            each = ", ".join(f"{v:.3f}" for v in held.groupby("subject", sort=False)["value"].mean())
            cells.append(f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}] ({each})")
        lines.append(f"| {run} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
