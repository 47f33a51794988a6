"""Does the consistency score of an RLBCD run notice a wrong input? Beside the input warning and the autoencoder.

    python benchmarks/wrong_input.py RUN [RUN ...] --data DATA --out benchmarks/results

RUNs are of CT to PET at 4 mm (latent_folds.py), DATA holds the cohorts. Every test person's CT is given as it is and
wrongly: noisy, bent, blurred, in another unit, the PET in its place; and the MR of strangers. Three numbers are tried
as alarms, all of them without a truth: minus the score of the estimate's pair, the distance of the input warning, and
what the run's autoencoder misses of its own input (RMS in the foreground). AUROC: the probability that a wrong scan
lies further out than a right one, within each run, then the mean over runs.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kept import about, write
from likeness import Array, Study, auroc, seen, shifts, studies
from scanbridge.files import read_json
from scanbridge.likeness import Likeness
from scanbridge.methods.base import Request
from scanbridge.model import Model

ALARMS = {"score": "minus the score", "distance": "input distance", "missed": "missed by the autoencoder"}
RIGHT = "**its own kind**"


def main() -> None:
    """Hold every scan against every run, and write the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("runs", nargs="+", type=Path)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, required=True)
    asked = options.parse_args()
    study = next(each for each in studies(asked.data, asked.data) if each.kind == "ct")
    frame = pd.DataFrame(line for run in asked.runs for line in of_run(run, study))
    write(asked, "wrong_input", page(frame), frame, about(asked))


def of_run(run: Path, study: Study) -> Iterator[dict[str, Any]]:
    """Give a line for every scan that a run is given."""
    model, likeness = Model.open(run, device="cpu"), Likeness.model_validate(read_json(run / "likeness.json"))

    def line(given: str, path: Path, change: Callable[[Array], Array] | None = None) -> dict[str, Any]:
        values, body = seen(study, path, change)
        source = values.astype(np.float32)
        found = likeness.of_scan(source, body, (study.spacing,) * 3)
        where = {"run": "/".join(run.parts[-3:]), "subject": path.parent.name, "given": given}
        return {
            **where,
            "score": -score(model, source, body),
            "distance": found.distance,
            "missed": missed(model, source, body),
            "alarm": found.distance > found.limit,
        }

    for name in model.cohort["split"]["test"]:
        path = study.people[name]
        yield line(RIGHT, path)
        for given, change in shifts(study.kind).items():
            yield line(given, path, change)
        for given, find in study.own_others.items():
            yield line(given, find(path))
        print(f"{run.name}: {name}", flush=True)
    for given, paths in study.strangers.items():
        yield from (line(given, path) for path in paths)


def score(model: Model, source: Array, body: NDArray[np.bool_]) -> float:
    """Give the consistency score of the estimate of a source (D, H, W)."""
    request = Request(target=model.common.task.targets[0], subject="tried")
    (found,) = model.draw(source, body, request).facts["consistency"]
    return float(found)


def missed(model: Model, source: Array, body: NDArray[np.bool_]) -> float:
    """Give what the autoencoder misses of a source (D, H, W): RMS in the foreground, of [-1, 1]."""
    made = model.reconstruct(source, body)
    return math.nan if made is None else float(np.sqrt(np.mean((made - source)[body] ** 2)))


def page(frame: pd.DataFrame) -> str:
    """Give the table."""
    n, runs = frame.loc[frame["given"] == RIGHT, "subject"].nunique(), frame["run"].nunique()
    text = [
        "# A wrong input",
        "",
        f"RLBCD, CT to PET at 4 mm, {n} people, runs: {runs}. Medians over people, and AUROC: 0.5 is chance, below it "
        "the wrong scan looks better than the right one. Alarms: share of scans beyond the limit of the input warning.",
        "",
        "| given | " + " | ".join(f"{words} | AUROC" for words in ALARMS.values()) + " | alarms |",
        "| --- " * (2 * len(ALARMS) + 2) + "|",
    ]
    for given, lines in frame.groupby("given", sort=False):
        cells = [str(given)]
        for alarm in ALARMS:
            cells += [
                f"{lines[alarm].median():.3g}",
                "" if given == RIGHT else f"{within(frame, str(given), alarm):.2f}",
            ]
        text.append("| " + " | ".join([*cells, f"{lines['alarm'].mean():.0%}"]) + " |")
    return "\n".join(text)


def within(frame: pd.DataFrame, given: str, alarm: str) -> float:
    """Give the mean over runs of the AUROC of an alarm."""
    each = []
    for _, lines in frame.groupby("run"):
        right, wrong = (lines.loc[lines["given"] == kind, alarm].tolist() for kind in (RIGHT, given))
        each.append(auroc(right, wrong))
    return float(np.mean(each))


if __name__ == "__main__":
    main()
