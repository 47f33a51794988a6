"""Subjects of a downstream task: which run may translate whom, and who is in which fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scanbridge.data.cohort import Cohort, Row
from scanbridge.errors import UserError
from scanbridge.files import sha256
from scanbridge.model import Model

_LIKED = {"test": 0, "": 0, "calibration": 1, "val": 2}
"""Whose translation is taken where several runs have not seen a subject: one that nothing was chosen on."""


def hold_together(models: Mapping[str, Model], table: Cohort) -> None:
    """Refuse runs that differ in more than their split, and those of another source or target than the table's."""
    (first, model), *others = models.items()
    for name, other in others:
        if _procedure(other) != _procedure(model):
            what = f"{name} and {first} differ in more than their split"
            raise UserError(what, "folds of one cross-validation", "one set of runs at a time")
    model.refuse_table(table, str(first))


def _procedure(model: Model) -> tuple[Any, ...]:
    """Give what folds of one cross-validation share: all but the split and the seed."""
    common = model.common
    return (common.method, common.task, common.grid, common.train.model_copy(update={"seed": 0}), model.config)


def translators(
    models: Mapping[str, Model], table: Cohort, rows: Sequence[Row], needed: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """Choose by row a run that has not seen its subject, known by content; give also subjects that all have seen."""
    content: dict[str, set[str]] = {row.subject: set() for row in rows}
    for row in table.rows:  # a visit that takes no part makes its subject known too
        if row.subject in content:
            content[row.subject].update(sha256(row.images[name]) for name in needed if name in row.images)
    chosen: dict[str, str] = {}
    seen: list[str] = []
    for subject, hashes in content.items():
        unseen = [name for name, model in models.items() if not hashes & model.trained_on]
        if unseen:
            chosen[subject] = min(unseen, key=lambda name: _LIKED[_part(models[name], hashes)])
        else:
            chosen[subject] = next(iter(models))
            seen.append(subject)
    return {row.name: chosen[row.subject] for row in rows}, seen


def _part(model: Model, hashes: set[str]) -> str:
    """Give the part of a run's split that a subject is in, known by content; "" for none."""
    entries = model.cohort["content"].values()
    own = {entry["subject"] for entry in entries if hashes & set(entry["images"].values())}
    return next((part for part in ("val", "calibration", "test") if own & set(model.cohort["split"][part])), "")


def deal(classes: Mapping[str, str], folds: int, seed: int) -> dict[str, int]:
    """Deal subjects to folds, class by class, so that every fold has as many of each as it can.

    Parameters
    ----------
    classes
        Subject to class; the order does not matter.
    folds, seed
        Number of folds, and the seed of the shuffling.

    Returns
    -------
    dict
        Subject to fold.
    """
    names = sorted(classes)
    np.random.default_rng(seed).shuffle(names)
    order = sorted(names, key=lambda name: by_number(classes[name]))  # stable: shuffled within a class
    return {name: index % folds for index, name in enumerate(order)}


def by_number(name: str) -> tuple[float, str]:
    """Sort classes as numbers where they are numbers."""
    try:
        return float(name), name
    except ValueError:
        return float("inf"), name
