"""A run of two branches, opened and held against what is asked of it, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scanbridge.data.cohort import Cohort, Row, read_cohort
from scanbridge.errors import UserError, nearest
from scanbridge.evaluate import PARTS, choose_rows
from scanbridge.methods.rlbcd import Config, Pair
from scanbridge.model import Model


def open_branches(run: Path, device: str) -> tuple[Model, Pair]:
    """Open a run that has a residual and an enhanced branch.

    Raises
    ------
    UserError
        If it has not.
    """
    model = Model.open(run, device=device)
    config, translator = model.config, model.translator
    if not isinstance(config, Config) or not isinstance(translator, Pair):
        raise UserError(f"{run} is a {model.common.method} run", "an rlbcd run", "choose one that has two branches")
    if config.branches != "both":
        raise UserError(
            f"{run} has the {config.branches} branch alone", "an rlbcd run with branches = 'both'", "choose such a run"
        )
    return model, translator


def choose(model: Model, cohort: Path, split: str) -> tuple[Cohort, list[Row]]:
    """Read the table and the rows of a split that the run was not trained on.

    Raises
    ------
    UserError
        If there is no such split, nobody in it, or somebody in it was trained on.
    """
    if split not in PARTS:
        raise UserError(f"--split {split}", "a part that was not trained on", nearest(split, PARTS))
    table, task = read_cohort(cohort), model.common.task
    return table, choose_rows(table, {name_of(model): model}, (task.source, task.targets[0]), split)


def about(model: Model, rows: Sequence[Row], cohort: Path, split: str) -> list[tuple[str, str]]:
    """Say for the head of a page which run, and whom it was held against."""
    people = len({row.subject for row in rows})
    n_train = len(model.cohort["split"]["train"])
    return [
        ("Run", f"{name_of(model)}, trained on {n_train} people"),
        ("Patients", f"{people} ({len(rows)} scans), '{split}' of {cohort.name}"),
    ]


def weights_of(model: Model) -> tuple[str, str]:
    """Say for the foot of a page whose weights these are."""
    return "Weights", "; ".join(f"{stage}: {digest[:12]}" for stage, digest in model.weights.items())


def name_of(model: Model) -> str:
    """Name a run by its folder."""
    return "" if model.run is None else model.run.resolve().name
