"""Trainings that go on where they were left, and results kept as a page, a table and JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from machine import machine
from scanbridge.files import write_json, write_text
from scanbridge.fit import Progress
from scanbridge.plan import plan_run
from scanbridge.train import train_run


def trained(asked: argparse.Namespace, run: Path, cohort: Path, settings: Sequence[str]) -> Path:
    """Train a run, or go on where it was left."""
    told = [0]

    def progress(p: Progress) -> None:
        if p.images >= told[0] or p.images == p.of:
            print(f"  {run.name}: {p.images}/{p.of}  {p.rate:.1f} images/s", flush=True)
            told[0] = p.images + p.of // 10

    plan = plan_run(asked.config, cohort, [*asked.settings, f"train.seed={asked.seed}", *settings])
    if code := train_run(plan, run, cache=asked.runs / "cache", say=print, on_progress=progress):
        sys.exit(code)
    return run


def told(done: float, of: float, words: str) -> None:
    """Say what was done, row by row."""
    if float(done).is_integer():
        print(f"  {words}: {done:g} of {of:g}", flush=True)


def about(asked: argparse.Namespace) -> dict[str, Any]:
    """Give what the numbers depend on; of paths the names alone."""

    def plain(value: Any) -> Any:
        return [plain(each) for each in value] if isinstance(value, list) else getattr(value, "name", value)

    return {"machine": machine(), "asked": {name: plain(value) for name, value in vars(asked).items()}}


def write(asked: argparse.Namespace, name: str, text: str, frame: pd.DataFrame, facts: dict[str, Any]) -> None:
    """Write the page, a line a patient, and everything."""
    asked.out.mkdir(parents=True, exist_ok=True)
    text += f"\n\nAsked: {json.dumps(facts['asked'])}; machine: {json.dumps(facts['machine'])}.\n"
    write_text(asked.out / f"{name}.md", text)
    write_text(asked.out / f"{name}.csv", frame.to_csv(index=False, float_format="%.6g"))
    write_json(asked.out / f"{name}.json", facts)
    print(text)
