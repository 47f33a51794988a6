"""Parts of a cohort held out in turn: train every row of a table without each, translate, judge, pool by patient.

Trainings resume; what is done is kept, and rows that differ in translation alone share their weights. A person's
numbers are means over the seeds. Writes tables and a page into RUNS and, with --results, a copy of the tables and
pictures into that folder. --dry-run lists rows, the folders of their weights, and whether those are trained.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from machine import machine
from scanbridge.ablation_page import Ablation, describe, write_ablation
from scanbridge.files import write_text
from scanbridge.fit import Progress
from scanbridge.judge import Judged
from scanbridge.report.planes import draw
from scanbridge.trials import Row, Trials, judge_rows, listing, plan_rows, slug, train_rows

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
PLACE = "{place}"
"""In a row's settings: the folder in which the rows of its part and seed lie."""


@dataclass(frozen=True)
class Study:
    """What is trained and judged.

    Parameters
    ----------
    name
        Of the script, and of the files of its results.
    title
        Of the page.
    rows, default
        All rows, and the names of those that are run where none is named.
    parts
        Gives what is held out in turn, from the cohort's table.
    settings
        Gives the settings of all rows for one part, of all parts: whom it sets apart, and more.
    facts
        (name, text) more for the head of the page.
    pictures, prefix
        Whether each person is drawn into the results, and what the names of the pictures begin with.
    """

    name: str
    title: str
    rows: Sequence[Row]
    default: Sequence[str]
    parts: Callable[[Path], list[str]]
    settings: Callable[[str, list[str]], list[str]]
    facts: Sequence[tuple[str, str]] = ()
    pictures: bool = True
    prefix: str = ""


def run(study: Study, doc: str | None) -> None:
    """Run all parts."""
    asked = parsed(study, doc)
    every = study.parts(asked.cohort)
    parts = asked.parts or every
    folds = {
        (seed, part): fold(study, asked, seed, part, every) for seed, part in itertools.product(asked.seeds, parts)
    }
    if asked.dry_run:
        for trials in folds.values():
            print("\n".join(listing(trials)))
        return
    judged: list[Judged] = []
    for (seed, part), trials in folds.items():
        train(asked, trials, f"{part}, seed {seed}")
        place = asked.runs / part / f"seed-{seed}"
        judged += judge_rows(trials, asked.cohort, place, seed, split="test", on=asked.on)
    page = write_ablation(asked.runs, judged, about(study, asked, parts, list(folds.values())))
    table = (asked.runs / "ablation.md").read_text(encoding="utf-8")
    print(table)
    print(f"page: {page}")
    if asked.results:
        write_results(study, asked, table, judged)


def parsed(study: Study, doc: str | None) -> argparse.Namespace:
    """Read the command line."""
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cohort", type=Path, required=True)
    options.add_argument("--runs", type=Path, required=True)
    options.add_argument("--rows", nargs="+", choices=[row.name for row in study.rows], default=list(study.default))
    options.add_argument("--parts", nargs="+", help="what to hold out in turn; all by default")
    options.add_argument("--seeds", nargs="+", type=int, default=[0])
    options.add_argument("--set", dest="settings", action="append", default=[])
    options.add_argument("--on", choices=["target", "model"], default="model")
    options.add_argument("--results", type=Path)
    options.add_argument("--dry-run", action="store_true")
    return options.parse_args()


def fold(study: Study, asked: argparse.Namespace, seed: int, part: str, every: list[str]) -> Trials:
    """Plan the rows without one part; a preset's own training lies in its folder, another beside it."""
    place = asked.runs / part / f"seed-{seed}"
    presets = {row.name: row.config.stem for row in study.rows}
    plain = {row.name for row in study.rows if not row.settings}

    def folder_of(name: str) -> Path:
        return place / (presets[name] if name in plain else f"{presets[name]}-{slug(name)}")

    rows = [
        replace(row, settings={key: placed(value, place) for key, value in row.settings.items()}) for row in study.rows
    ]
    settings = [*study.settings(part, every), *asked.settings, f"train.seed={seed}"]
    return plan_rows(rows, asked.rows, asked.cohort, settings, folder_of)


def placed(value: object, place: Path) -> object:
    """Put the folder of a part and seed into a setting that names it."""
    return value.replace(PLACE, str(place.resolve())) if isinstance(value, str) else value


def train(asked: argparse.Namespace, trials: Trials, where: str) -> None:
    """Train the rows of one part, or go on where they were left."""
    said: dict[tuple[str, str], int] = {}

    def progress(name: str, p: Progress) -> None:
        if p.images >= said.get((name, p.stage), 0) or p.images == p.of:
            print(f"  {where}: {name} {p.stage} {p.images}/{p.of}  {p.rate:.1f} images/s", flush=True)
            said[name, p.stage] = p.images + p.of // 10

    if code := train_rows(trials, cache=asked.runs / "cache", say=print, on_progress=progress):
        sys.exit(code)


def about(study: Study, asked: argparse.Namespace, parts: Sequence[str], folds: list[Trials]) -> Ablation:
    """Say what the table is, and how to make it again."""
    cohort = f"{asked.cohort.parent.name}/{asked.cohort.name}"
    rows, seeds = " ".join(f'"{row}"' for row in asked.rows), " ".join(map(str, asked.seeds))
    settings = "".join(f" --set {setting}" for setting in asked.settings)
    command = f"--cohort {cohort} --runs RUNS --rows {rows} --seeds {seeds} --on {asked.on}{settings}"
    facts = [
        ("Judged", f"{cohort}, held out in turn: {', '.join(parts)}; a person's number is the mean over seeds {seeds}"),
        ("Command", f"`python benchmarks/{study.name}.py {command}`"),
        *study.facts,
        ("Machine", json.dumps(machine())),
    ]
    return describe(folds, facts, title=study.title)


def write_results(study: Study, asked: argparse.Namespace, table: str, judged: list[Judged]) -> None:
    """Copy the tables, and draw each person once."""
    asked.results.mkdir(parents=True, exist_ok=True)
    write_text(asked.results / f"{study.name}.md", table.replace(str(asked.runs.resolve()), "RUNS"))
    (asked.results / f"{study.name}.csv").write_bytes((asked.runs / "metrics.csv").read_bytes())
    for each in judged[::-1] if study.pictures else ():  # the first seed's picture is the one that stays
        if each.planes is not None:
            drawn = draw(each.planes)
            (asked.results / f"{study.prefix}{each.subject}.png").write_bytes(drawn.images.data)
            if drawn.maps is not None:
                (asked.results / f"{study.prefix}{each.subject}-maps.png").write_bytes(drawn.maps.data)
