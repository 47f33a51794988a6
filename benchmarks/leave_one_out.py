"""Each person of a cohort held out in turn: train, translate, judge, pool by patient.

    python benchmarks/leave_one_out.py --cohort ms/cohort.csv --runs RUNS/real [--rows ct2mri regression]
        [--seeds 0 1 2] [--set k=v] [--dry-run]

Trainings resume; what is done is kept, and rows that differ in translation alone share their weights. A person's
numbers are means over the seeds. Writes tables and a page into RUNS and, with --results, a copy of the tables and one
picture a person into that folder. --dry-run lists rows, the folders of their weights, and whether those are trained.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

from machine import machine
from scanbridge.ablation_page import Ablation, describe, write_ablation
from scanbridge.data.cohort import read_cohort
from scanbridge.files import write_text
from scanbridge.fit import Progress
from scanbridge.judge import Judged
from scanbridge.report.planes import draw
from scanbridge.trials import Row, Trials, judge_rows, listing, plan_rows, slug, train_rows

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
CT2MRI, BBDM, REGRESSION = (CONFIGS / f"{name}-small.toml" for name in ("ct2mri", "bbdm", "regression"))
WALK = CONFIGS / "ct2mri-small-walk.toml"
PUBLISHED = {"estimate.grid": "published"}
ROWS = [
    Row("ct2mri", CT2MRI),
    Row("no key", CT2MRI, {"style.use": False}),
    Row("bbdm", BBDM),
    Row("regression", REGRESSION),
    Row("regression, 18,000 windows", REGRESSION, {"train.images": 18000}),
    Row("walk", WALK),
    Row("walk, no key", WALK, {"style.use": False}),
    Row("walk, key nearest", WALK, {"style.choice": "nearest"}),
    Row("walk, no co-prediction", WALK, {"coprediction": False}),
    Row("walk, no key, no co-prediction", WALK, {"style.use": False, "coprediction": False}),
    Row("walk, ISTA 4 + 3", WALK, {"correction.corrections": 1}),
    Row("walk, 100 calls", WALK, {**PUBLISHED, "estimate.calls": 100}),
    Row("walk, ISTA 50 + 49", WALK, {**PUBLISHED, "estimate.calls": 50, "correction.corrections": 1}),
]
"""The presets; then, with a bridge that is walked from the source, the paper's Table 2 in form:
with and without key, co-prediction and corrector (calls + moves), and its own two walks ("100 calls", "ISTA 50 + 49").
"""


def main() -> None:
    """Run all folds."""
    asked = parsed()
    folds = {
        (seed, subject): fold(asked, seed, subject) for seed, subject in itertools.product(asked.seeds, people(asked))
    }
    if asked.dry_run:
        for trials in folds.values():
            print("\n".join(listing(trials)))
        return
    judged: list[Judged] = []
    for (seed, subject), trials in folds.items():
        train(asked, trials, f"{subject}, seed {seed}")
        place = asked.runs / subject / f"seed-{seed}"
        judged += judge_rows(trials, asked.cohort, place, seed, split="test", on=asked.on)
    page = write_ablation(asked.runs, judged, about(asked, list(folds.values())))
    table = (asked.runs / "ablation.md").read_text(encoding="utf-8")
    print(table)
    print(f"page: {page}")
    if asked.results:
        write_results(asked, table, judged)


def parsed() -> argparse.Namespace:
    """Read the command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cohort", type=Path, required=True)
    options.add_argument("--runs", type=Path, required=True)
    options.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], default=["ct2mri", "regression"])
    options.add_argument("--folds", nargs="+", help="subjects to hold out; all by default")
    options.add_argument("--seeds", nargs="+", type=int, default=[0])
    options.add_argument("--set", dest="settings", action="append", default=[])
    options.add_argument("--on", choices=["target", "model"], default="model")
    options.add_argument("--results", type=Path)
    options.add_argument("--dry-run", action="store_true")
    return options.parse_args()


def people(asked: argparse.Namespace) -> list[str]:
    """Give the subjects to hold out."""
    return asked.folds or list(dict.fromkeys(row.subject for row in read_cohort(asked.cohort).rows))


def fold(asked: argparse.Namespace, seed: int, subject: str) -> Trials:
    """Plan the rows without one person; a preset's own training lies in its folder, another beside it."""
    presets = {row.name: row.config.stem for row in ROWS}
    plain = {row.name for row in ROWS if not row.settings}

    def folder_of(name: str) -> Path:
        preset = presets[name] if name in plain else f"{presets[name]}-{slug(name)}"
        return asked.runs / subject / f"seed-{seed}" / preset

    settings = [*asked.settings, f'split.test=["{subject}"]', f"train.seed={seed}"]
    return plan_rows(ROWS, asked.rows, asked.cohort, settings, folder_of)


def train(asked: argparse.Namespace, trials: Trials, where: str) -> None:
    """Train the rows of one fold, or go on where they were left."""
    said: dict[tuple[str, str], int] = {}

    def progress(name: str, p: Progress) -> None:
        if p.images >= said.get((name, p.stage), 0) or p.images == p.of:
            print(f"  {where}: {name} {p.stage} {p.images}/{p.of}  {p.rate:.1f} images/s", flush=True)
            said[name, p.stage] = p.images + p.of // 10

    if code := train_rows(trials, cache=asked.runs / "cache", say=print, on_progress=progress):
        sys.exit(code)


def about(asked: argparse.Namespace, folds: list[Trials]) -> Ablation:
    """Say what the table is, and how to make it again."""
    cohort = f"{asked.cohort.parent.name}/{asked.cohort.name}"
    rows, seeds = " ".join(f'"{row}"' for row in asked.rows), " ".join(map(str, asked.seeds))
    settings = "".join(f" --set {setting}" for setting in asked.settings)
    command = f"--cohort {cohort} --runs RUNS --rows {rows} --seeds {seeds} --on {asked.on}{settings}"
    facts = [
        ("Judged", f"{cohort}, each held out in turn; a person's number is the mean over seeds {seeds}"),
        ("Command", f"`python benchmarks/leave_one_out.py {command}`"),
        ("Machine", json.dumps(machine())),
    ]
    return describe(folds, facts, title="Each person held out in turn")


def write_results(asked: argparse.Namespace, table: str, judged: list[Judged]) -> None:
    """Copy the tables, and draw each person once."""
    asked.results.mkdir(parents=True, exist_ok=True)
    write_text(asked.results / "leave_one_out.md", table)
    (asked.results / "leave_one_out.csv").write_bytes((asked.runs / "metrics.csv").read_bytes())
    for each in judged[::-1]:  # the first seed's picture is the one that stays
        if each.planes is not None:
            drawn = draw(each.planes)
            (asked.results / f"{each.subject}.png").write_bytes(drawn.images.data)
            if drawn.maps is not None:
                (asked.results / f"{each.subject}-maps.png").write_bytes(drawn.maps.data)


if __name__ == "__main__":
    main()
