"""Does the promise of the intervals hold? On simulated patients again and again, and on real ones in rotation.

    python benchmarks/coverage.py simulated --runs RUNS --out benchmarks/results [--run RUN --cohort COHORT.csv]
        [--others 100] [--size 48] [--samples 4] [--set k=v]
    python benchmarks/coverage.py rotation --cohort sts/cohort.csv --runs RUNS --out benchmarks/results [--folds 0 1]
        [--cost] [--above 2.5] --set 'task.source="ct"' --set 'task.targets=["pet"]' --set 'grid.spacing=[4,4,4]'

`simulated` trains one run on simulated brains (or takes one), translates every other patient once, and then draws again
and again who calibrates and who is the test. `rotation` tests every patient of a cohort with folds once: rotation i
tests fold i, calibrates on the next two, takes three of the others for val and trains the rest; --cost trains it once
more with the calibration patients among the training. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from kept import about, told, trained, write
from rotation import rotation
from scanbridge.calibrate import CONSTANT, learn_signals
from scanbridge.calibration import known_signals
from scanbridge.data.cohort import read_cohort
from scanbridge.metrics.conformal import Promise, ladder
from scanbridge.model import Model
from scanbridge.options import Options
from scanbridge.residuals import Residuals
from scanbridge.signals import OF_DRAWS
from scanbridge.simulate import simulate_brain
from scanbridge.trials import as_settings

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "bbdm-small.toml"
POT = "all voxels in one pot"
"""What not to do: take voxels for patients."""
N_TRAIN, N_VAL = 8, 6
"""Simulated patients."""
N_CALIBRATION, N_TEST = 20, 40
"""Patients that are drawn a repetition."""


def main() -> None:
    """Run one part."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = options.add_subparsers(dest="part", required=True)
    both = argparse.ArgumentParser(add_help=False)
    both.add_argument("--cohort", type=Path)
    both.add_argument("--config", type=Path, default=CONFIG)
    both.add_argument("--runs", type=Path, required=True, help="folder for runs and translations")
    both.add_argument("--out", type=Path, required=True, help="folder for the tables")
    both.add_argument("--set", dest="settings", action="append", default=[])
    both.add_argument("--seed", type=int, default=0)
    both.add_argument("--miss", type=float, default=0.1)
    both.add_argument("--patients", type=float, default=0.9)
    one = parts.add_parser("simulated", parents=[both])
    one.add_argument("--run", type=Path, help="a trained run; its test and calibration patients are drawn from")
    one.add_argument("--others", type=int, default=100, help="simulated patients to draw from")
    one.add_argument("--size", type=int, default=48, help="voxels an axis")
    one.add_argument("--samples", type=int, default=0, help="draws a patient, for the signal 'spread'")
    one.add_argument("--repetitions", type=int, default=1000)
    two = parts.add_parser("rotation", parents=[both])
    two.add_argument("--folds", nargs="+", help="those to test; all by default")
    two.add_argument("--n-val", type=int, default=3)
    two.add_argument("--above", type=float, help="misses are also given of voxels above this, such as 2.5 SUV")
    two.add_argument("--cost", action="store_true", help="train again with the calibration patients")
    asked = options.parse_args()
    (simulated if asked.part == "simulated" else rotation)(asked)


Factor = Callable[[Sequence[NDArray[np.float64]]], float]


class Patient(NamedTuple):
    """One patient by one signal: ladder, sorted |error| over expected error, mean width over the scale's range."""

    ladder: NDArray[np.float64]
    ratios: NDArray[np.float64]
    width: float


def simulated(asked: argparse.Namespace) -> None:
    """Draw calibrations from simulated patients."""
    run, cohort = (asked.run, asked.cohort) if asked.run else simulated_run(asked)
    model, table = Model.open(run), read_cohort(cohort)
    split = model.cohort["split"]
    val, others = (
        [row for row in table.rows if row.subject in part]
        for part in (split["val"], [*split["calibration"], *split["test"]])
    )
    promise = Promise("quantile", asked.miss, asked.patients)
    names = [name for name in known_signals(model) if asked.samples or name not in OF_DRAWS]
    residuals = Residuals(table, model, asked.runs / "translated", told, 2 * len(val) + 1 + len(others))
    learned, flat = learn_signals(residuals, val, names, promise, asked.samples)
    heads = {row.subject: each.head for each in learned.values() if each.head for row in others}
    held = residuals.samples(others, list(learned), Options(samples=asked.samples, interval=False), heads)
    span = model.scales[residuals.target].range
    people = {name: [patient(e, learned[name].expected(d), span) for d, e in each] for name, each in held.items()}
    people[CONSTANT] = [patient(e, np.ones_like(e), span) for _, e in next(iter(held.values()))]
    ways = {
        "quantile": promise.factor,
        "risk": Promise("risk", asked.miss).factor,
        POT: lambda ladders: float(np.quantile(np.concatenate(ladders), 1 - asked.miss)),
    }
    rows = [row for control, factor in ways.items() for row in repeated(people, control, factor, asked)]
    on_val = {
        name: width / span for name, width in [*((n, each.width) for n, each in learned.items()), (CONSTANT, flat)]
    }
    said = f"{model.common.method}, {model.trained_for} of {len(split['train'])} people"
    facts = {**about(asked), "trained": said, "patients": len(others), "width_on_val": on_val, "rows": rows}
    frame = pd.DataFrame(
        {"subject": row.subject, "signal": name, "needs": promise.needs(each.ladder), "width": each.width}
        for name, some in people.items()
        for row, each in zip(others, some, strict=True)
    )
    write(asked, "coverage-simulated", simulated_page(facts, rows, asked), frame, facts)


def simulated_run(asked: argparse.Namespace) -> tuple[Path, Path]:
    """Simulate the cohort and train on it."""
    cohort = simulate_brain(
        asked.runs / "cohort",
        subjects=N_TRAIN + N_VAL + asked.others,
        size=asked.size,
        seed=asked.seed,
        progress=lambda done, of: told(done, of, "simulated"),
    )
    names = list(dict.fromkeys(row.subject for row in read_cohort(cohort).rows))
    settings = as_settings(
        {
            "grid.spacing": [192 / asked.size] * 3,
            "split.val": names[N_TRAIN : N_TRAIN + N_VAL],
            "split.test": names[N_TRAIN + N_VAL :],
        }
    )
    return trained(asked, asked.runs / "run", cohort, settings), cohort


def patient(error: NDArray[np.float32], half: NDArray[np.float32], span: float) -> Patient:
    """Hold one patient's errors against their expected errors."""
    ratios = np.sort(np.abs(error).astype(np.float64) / half)
    return Patient(ladder(error, half), ratios, 2 * float(half.mean(dtype=np.float64)) / span)


def repeated(
    people: dict[str, list[Patient]], control: str, factor_of: Factor, asked: argparse.Namespace
) -> list[dict[str, Any]]:
    """Draw calibration and test patients many times, the same for all signals, and sum up by signal."""
    rng = np.random.default_rng(asked.seed)
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in people}
    for _ in range(asked.repetitions):
        drawn = rng.permutation(len(people[CONSTANT]))
        calibration, test = drawn[:N_CALIBRATION], drawn[N_CALIBRATION : N_CALIBRATION + N_TEST]
        for name, some in people.items():
            factor = factor_of([some[i].ladder for i in calibration])
            outside = [1 - np.searchsorted(some[i].ratios, factor, "right") / some[i].ratios.size for i in test]
            kept = float(np.mean(np.array(outside) <= asked.miss))
            width = factor * float(np.mean([some[i].width for i in test]))
            found[name].append((kept, float(np.mean(outside)), width))
    rank = math.ceil((N_CALIBRATION + 1) * asked.patients - 1e-9)
    exact = stats.betabinom(N_TEST, rank, N_CALIBRATION + 1 - rank)  # of test patients, whatever they are
    rows = []
    for name, each in found.items():
        kept, outside, width = np.array(each).T
        rows.append(
            {
                "control": control,
                "signal": name,
                "kept": kept.mean(),
                "kept_sd": kept.std(ddof=1),
                "exact": exact.mean() / N_TEST if control == "quantile" else None,
                "exact_sd": exact.std() / N_TEST if control == "quantile" else None,
                "miss": outside.mean(),
                "miss_sd": outside.std(ddof=1),
                "width": width.mean(),
                "of_constant": float(np.mean(width / np.array(found[CONSTANT])[:, 2])),
            }
        )
    return rows


def simulated_page(facts: dict[str, Any], rows: Sequence[dict[str, Any]], asked: argparse.Namespace) -> str:
    """Give the table."""
    root = math.sqrt(asked.repetitions)
    text = [
        "# Coverage on simulated patients",
        "",
        f"{facts['trained']}. {facts['patients']} others; {asked.repetitions} times {N_CALIBRATION} calibrate and "
        f"{N_TEST} are the test. Promised: at least {asked.patients:.0%} of the patients miss at most {asked.miss:.0%} "
        f"of their voxels (quantile), or patients miss at most {asked.miss:.0%} on average (risk); '{POT}' promises "
        "nothing. Widths as shares of the scale. +- is 1.96 standard errors over repetitions; 'exact' is the law of "
        "the share of test patients for whom it holds, beta-binomial. They are drawn from one pool, so that the law "
        "must hold: tested is the code, measured are the widths.",
        "",
        "| control | signal | it held for | exact | sd | exact | mean miss | mean width | of a constant's |",
        "| --- " * 9 + "|",
    ]
    for row in rows:
        exact, exact_sd = (f"{row[key]:.1%}" if row[key] is not None else "" for key in ("exact", "exact_sd"))
        text.append(
            f"| {row['control']} | {row['signal']} | {row['kept']:.1%} +- {1.96 * row['kept_sd'] / root:.1%} | {exact} "
            f"| {row['kept_sd']:.1%} | {exact_sd} | {row['miss']:.2%} +- {1.96 * row['miss_sd'] / root:.2%} | "
            f"{row['width']:.2%} | {row['of_constant']:.3f} |"
        )
    on_val = ", ".join(f"{name} {width:.2%}" for name, width in facts["width_on_val"].items())
    text += ["", f"Mean width on the {N_VAL} val patients, by which the signal is chosen: {on_val}."]
    return "\n".join(text)


if __name__ == "__main__":
    main()
