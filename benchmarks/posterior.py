"""Are draws what they say they are? Held against a law that is known, voxel by voxel.

    python benchmarks/posterior.py --runs RUNS --out benchmarks/results [--samples 16] [--set k=v]

Simulates pairs whose target, given the source, is Gaussian with known mean and sd: once white and alike everywhere,
once textured and more uncertain where the source is bright. Trains a preset on each, translates people whom it has not
seen, and holds their draws against the law: size and place of the spread, how far the mean of draws is from the mean
of the law, correlation of neighbours, and how often the truth lies outside all draws. The same command goes on.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kept import about, told, trained, write
from scanbridge.data.cache import Case
from scanbridge.data.cohort import read_cohort
from scanbridge.data.grid import resample
from scanbridge.data.nifti import read
from scanbridge.methods.base import Request
from scanbridge.metrics.statistics import mean_interval
from scanbridge.model import Model
from scanbridge.plan import plan_run, prepare_rows
from scanbridge.simulate import simulate_known
from scanbridge.trials import as_settings

Array = NDArray[np.float64]
CONFIG = Path(__file__).resolve().parent.parent / "configs" / "bbdm-small.toml"
N_TRAIN, N_TEST, SIZE = 8, 10, 48


class Law(NamedTuple):
    """What is simulated, and what the table calls it."""

    name: str
    texture: float
    uneven: bool


LAWS = (Law("white, even", 0.0, False), Law("textured, uneven", 1.0, True))
COLUMNS = {
    "excess": "estimate to the law's mean, of its sd",
    "mean": "mean of draws to the law's mean, of its sd",
    "spread": "spread of draws, of its sd (1)",
    "uneven": "spread where the sd is largest over smallest",
    "uneven_law": "the sd's own",
    "slices": "correlation of neighbours across slices",
    "slices_law": "the law's",
    "plane": "in plane",
    "plane_law": "the law's",
    "outside": "truth outside all draws",
}


def main() -> None:
    """Run both laws, and write the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--config", type=Path, default=CONFIG)
    options.add_argument("--runs", type=Path, required=True, help="folder for cohorts and runs")
    options.add_argument("--out", type=Path, required=True, help="folder for the table")
    options.add_argument("--set", dest="settings", action="append", default=[])
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--samples", type=int, default=16, help="draws a person")
    asked = options.parse_args()
    lines: list[dict[str, Any]] = []
    for law in LAWS:
        lines += of_law(asked, law)
    frame = pd.DataFrame(lines)
    write(asked, "posterior", page(frame, asked), frame, about(asked))


def of_law(asked: argparse.Namespace, law: Law) -> Iterator[dict[str, Any]]:
    """Simulate, train, and give a line a person."""
    place = asked.runs / law.name.replace(", ", "-")
    cohort = simulate_known(
        place / "cohort", subjects=N_TRAIN + N_TEST, size=SIZE, seed=asked.seed, texture=law.texture, uneven=law.uneven
    )
    names = list(dict.fromkeys(row.subject for row in read_cohort(cohort).rows))
    settings = {
        "task.source": "source",
        "task.targets": ["target"],
        "task.match_median": False,
        "grid.spacing": [192 / SIZE] * 3,
        "split.test": names[N_TRAIN:],
    }
    run = trained(asked, place / asked.config.stem, cohort, as_settings(settings))
    plan = plan_run(run / "config.toml", cohort)
    model = Model.open(run)
    rows = {row.name: row for row in plan.rows("test")}
    for done, case in enumerate(prepare_rows(plan, plan.rows("test"), asked.runs / "cache"), start=1):
        images = {name: read(rows[case.name].images[name]).data for name in ("best", "sd")}
        yield {"law": law.name, "subject": case.subject} | against(model, case, images, asked.samples)
        told(done, len(rows), law.name)


def against(model: Model, case: Case, images: dict[str, NDArray[np.float32]], samples: int) -> dict[str, float]:
    """Hold the draws of one person against the law; everything in [0, 1], as the person's own scale maps the target."""
    body, scale = np.asarray(case.foreground), case.scales["target"]
    source, truth = np.asarray(case.source, np.float32), (np.asarray(case.targets["target"], np.float64) + 1) / 2
    best = (on_grid(images["best"], case) - scale.low) / scale.range
    sd = on_grid(images["sd"], case) / scale.range
    known = body & np.asarray(case.inside["target"]) & (sd > 0)

    def made(product: str, k: int) -> Array:
        request = Request(target="target", subject=case.name, product=product, samples=k)  # type: ignore[arg-type]
        return (model.draw(source, body, request).volumes.numpy().astype(np.float64) + 1) / 2

    (estimate,), draws = made("estimate", 1), made("draw", samples)
    mean, spread = draws.mean(0), draws.std(0, ddof=1)
    low, high = (sd[known] <= np.quantile(sd[known], q) for q in (0.25, 0.75))
    of_law, of_draw = (np.where(known, each, 0) for each in ((truth - best) / np.where(known, sd, 1), draws[0] - mean))
    return {
        "excess": rms((estimate - best)[known]) / rms(sd[known]),
        "mean": rms((mean - best)[known]) / rms(sd[known]),
        "spread": rms(spread[known]) / rms(sd[known]),
        "uneven": rms(spread[known][~high]) / rms(spread[known][low]) if (~high).any() else math.nan,
        "uneven_law": rms(sd[known][~high]) / rms(sd[known][low]) if (~high).any() else math.nan,
        "slices": neighbours(of_draw, known, 0),
        "slices_law": neighbours(of_law, known, 0),
        "plane": neighbours(of_draw, known, 2),
        "plane_law": neighbours(of_law, known, 2),
        "outside": float(((truth < draws.min(0)) | (truth > draws.max(0)))[known].mean()),
    }


def on_grid(image: NDArray[np.float32], case: Case) -> Array:
    """Bring an image to the model grid, whose voxels are its own in another order."""
    return resample(image, case.source_grid, case.grid, order=0)[0].astype(np.float64)


def rms(values: Array) -> float:
    """Give the root of the mean square."""
    return float(np.sqrt(np.mean(values**2)))


def neighbours(values: Array, known: NDArray[np.bool_], axis: int) -> float:
    """Give the correlation of neighbouring voxels along an axis."""
    one, other = (np.moveaxis(values, axis, 0)[part] for part in (slice(1, None), slice(None, -1)))
    both = np.moveaxis(known, axis, 0)[1:] & np.moveaxis(known, axis, 0)[:-1]
    return float(np.corrcoef(one[both], other[both])[0, 1])


def page(frame: pd.DataFrame, asked: argparse.Namespace) -> str:
    """Give the table."""
    columns: Sequence[str] = list(COLUMNS)
    perfect = f"{2 / (asked.samples + 1):.3f}", f"{1 / math.sqrt(asked.samples):.2f}"
    text = [
        "# Draws against a known law",
        "",
        f"{asked.config.stem}, {N_TRAIN} simulated people to learn from, {N_TEST} others, {asked.samples} draws each. "
        "Means over people with 95 % intervals. The law is Gaussian, so everything in it is known; of a perfect "
        f"sampler the spread is 1, the truth lies outside all draws with probability {perfect[0]}, neighbours "
        f"correlate as the law's do, and the mean of draws is {perfect[1]} sd from the law's.",
        "",
        "| law | " + " | ".join(COLUMNS.values()) + " |",
        "| --- " * (1 + len(columns)) + "|",
    ]
    for name, group in frame.groupby("law", sort=False):
        text.append(f"| {name} | " + " | ".join(cell(group[column].to_numpy()) for column in columns) + " |")
    return "\n".join(text)


def cell(values: Array) -> str:
    """Give a mean with its interval; a dash where there is none."""
    found = mean_interval(values)
    if found.mean is None:
        return "-"
    return f"{found.mean:.2f} ({found.low:.2f} to {found.high:.2f})" if found.low is not None else f"{found.mean:.2f}"


if __name__ == "__main__":
    main()
