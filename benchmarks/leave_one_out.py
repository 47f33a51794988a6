"""Each person of a cohort held out in turn: train, translate, judge, pool by patient.

    python benchmarks/leave_one_out.py --cohort ms/cohort.csv --runs RUNS/real [--rows ct2mri regression] [--set k=v]

Trainings resume; what is done is kept. Writes tables, pictures and a page into RUNS and, with --results, a copy of the
tables and one picture a person into that folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from machine import machine
from scanbridge.data.cohort import read_cohort
from scanbridge.evaluate import judge_split, write_evaluation
from scanbridge.files import write_json, write_text
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
    options.add_argument("--set", dest="settings", action="append", default=[])
    options.add_argument("--on", choices=["target", "model"], default="model")
    options.add_argument("--results", type=Path)
    asked = options.parse_args()

    subjects = list(dict.fromkeys(row.subject for row in read_cohort(asked.cohort).rows))
    judged, models = [], {}
    for subject in asked.folds or subjects:
        for row in asked.rows:
            preset, settings, _ = ROWS[row]
            run = asked.runs / subject / preset
            plan = plan_run(
                CONFIGS / f"{preset}.toml", asked.cohort, [*settings, *asked.settings, f'split.test=["{subject}"]']
            )
            said = {"next": 0}

            def progress(p, run=run, said=said):
                if p.images >= said["next"] or p.images == p.of:
                    print(f"  {run.parent.name}/{run.name} {p.images}/{p.of}  {p.rate:.1f} images/s", flush=True)
                    said["next"] = p.images + p.of // 10

            if train_run(plan, run, cache=asked.runs / "cache", say=print, on_progress=progress):
                sys.exit(143)
        models = {row: Model.open(asked.runs / subject / ROWS[row][0], settings=ROWS[row][2]) for row in asked.rows}
        judged += judge_split(models, asked.cohort, asked.runs / subject, split="test", on=asked.on)
    facts = {"cohort": f"{asked.cohort.parent.name}/{asked.cohort.name}", "split": "each held out in turn"}
    page = write_evaluation(asked.runs, judged, models, facts)
    write_json(asked.runs / "machine.json", machine())
    table = markdown(asked.runs)
    print(table)
    print(f"page: {page}")
    if asked.results:
        for each in judged:
            if each.run == asked.rows[0]:
                drawn = draw(each.planes)
                asked.results.mkdir(parents=True, exist_ok=True)
                (asked.results / f"{each.subject}.png").write_bytes(drawn.images.data)
                (asked.results / f"{each.subject}-maps.png").write_bytes(drawn.maps.data)
        write_text(asked.results / "leave_one_out.md", table)
        (asked.results / "leave_one_out.csv").write_bytes((asked.runs / "metrics.csv").read_bytes())


def markdown(folder: Path) -> str:
    """Give the foreground's rows as a table: mean, and the value of every person."""
    import pandas as pd

    frame = pd.read_csv(folder / "metrics.csv")
    frame = frame[(frame["region"] == "foreground") & frame["metric"].isin(SHOWN)]
    lines = ["# Each person held out in turn", "", f"machine: {json.dumps(machine())}", ""]
    lines += ["| run | " + " | ".join(SHOWN) + " |", "| --- |" + " --- |" * len(SHOWN)]
    for run in dict.fromkeys(frame["run"]):
        cells = []
        for metric in SHOWN:
            values = frame[(frame["run"] == run) & (frame["metric"] == metric)]["value"]
            cells.append(f"{values.mean():.3f} ({', '.join(f'{v:.3f}' for v in values)})")
        lines.append(f"| {run} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
