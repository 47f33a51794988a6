"""The command line's verbs for runs of two branches; heavy parts are imported by the verb that needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scanbridge.cli_options import CohortOption, Device, On, Run, grid_of_metrics
from scanbridge.terminal import progress

Out = Annotated[Path, typer.Option("--out", help="Folder for tables and the page.")]
Split = Annotated[str, typer.Option("--split", help="test, val, calibration, or external for a new cohort.")]


def features(
    run: Run,
    cohort: CohortOption,
    out: Out,
    split: Split = "test",
    time: Annotated[float, typer.Option("--time", help="Where on the bridges, in (0, 1]; 1 is the source.")] = 0.5,
    device: Device = "auto",
) -> None:
    """Say how alike the features of the two branches of an RLBCD run are, level by level, with pictures."""
    from scanbridge.branches.features import compare_features

    with progress("comparing features") as advance:
        page = compare_features(run, cohort, out, split=split, time=time, device=device, on_progress=advance)
    print(f"page: {page}")


def consistency(
    run: Run,
    cohort: CohortOption,
    out: Out,
    split: Split = "test",
    samples: Annotated[int, typer.Option("--samples", help="Draws a scan, whose scores are ranked; 2 at least.")] = 10,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the draws.")] = 0,
    on: On = "target",
    device: Device = "auto",
) -> None:
    """Hold the consistency scores of an RLBCD run's draws, and their maps, against the errors."""
    from scanbridge.branches.consistency import judge_consistency

    with progress("drawing") as advance:
        page = judge_consistency(
            run,
            cohort,
            out,
            split=split,
            samples=samples,
            seed=seed,
            on=grid_of_metrics(on),
            device=device,
            on_progress=advance,
        )
    print(f"page: {page}")
