"""What a run will do, before it does anything: configuration, method, cohort and split, read and validated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from pydantic import BaseModel

from scanbridge.data.cache import Case, prepare
from scanbridge.data.cohort import Cohort, Row, read_cohort
from scanbridge.data.split import choose_split
from scanbridge.errors import UserError, nearest
from scanbridge.methods.base import in_words, lengths, load_method
from scanbridge.runs.config import Common, read_tree, split_tree, to_toml, validate


@dataclass(frozen=True)
class Plan:
    """A resolved run: its tables, its method, its cohort and who is in which part."""

    common: Common
    method: ModuleType
    config: BaseModel
    cohort: Cohort
    split: dict[str, tuple[str, ...]]

    def rows(self, part: str) -> list[Row]:
        """Give the rows of a part of the split that have the source and at least one target."""
        wanted = set(self.split[part])
        task = self.common.task
        return [
            row
            for row in self.cohort.rows
            if row.subject in wanted and task.source in row.images and any(t in row.images for t in task.targets)
        ]

    @property
    def summary(self) -> str:
        """The plan in one line."""
        task, train = self.common.task, self.common.train
        people = ", ".join(f"{len(subjects)} {part}" for part, subjects in self.split.items() if subjects)
        return (
            f"{self.common.method}: {task.source} -> {', '.join(task.targets)}; subjects: {people}; "
            f"{in_words(self.lengths)} in batches of {train.batch_size}"
        )

    @property
    def lengths(self) -> dict[str, int]:
        """The images that each stage sees, but for stages whose weights are given."""
        stages = self.method.stages(self.config, self.common.task.targets)
        return lengths(stages, self.common.train.images)

    @property
    def text(self) -> str:
        """The resolved configuration as TOML."""
        return to_toml(self.common, self.config)


def plan_run(config: Path, cohort: Path, settings: Sequence[str] = ()) -> Plan:
    """Read and validate everything that a run depends on; nothing is written."""
    shared, own = split_tree(read_tree(config, settings))
    method = load_method(str(shared.get("method", "")))
    names = list(method.Config.model_fields)
    unknown = [key for key in own if key not in names]
    common = validate(Common, {**shared, **{key: own[key] for key in unknown}}, str(config), extra=names)
    table = read_cohort(cohort)
    split = choose_split(table, **common.split.model_dump())
    plan = Plan(common, method, validate(method.Config, own, str(config)), table, split)
    _refuse_unseen_mirrors(plan.config.model_dump(), common.train.augment.flip)
    with torch.device("meta"):  # networks of shapes alone: what does not fit together is said before anything is made
        for stage in plan.method.stages(plan.config, common.task.targets):
            stage.build()
    if common.task.source in common.task.targets:
        raise UserError(f"task.targets names the source '{common.task.source}'", "another image", "check [task]")
    for column in (common.task.source, *common.task.targets):
        if column not in table.images:
            raise UserError(f"{cohort} has no image '{column}'", "", nearest(column, table.images))
    if not plan.rows("train"):
        raise UserError(
            f"{cohort}: no subject is left to train on", "subjects with source and target", "check [split] and [task]"
        )
    if common.train.keep == "best" and not plan.rows("val"):
        raise UserError(
            "train.keep = 'best' without val subjects",
            "subjects set apart to choose the weights by",
            "add --set 'split.val=[...]', or set train.keep = 'last'",
        )
    return plan


def _refuse_unseen_mirrors(table: Mapping[str, Any], flipped: Sequence[str], path: str = "") -> None:
    """Refuse a translation that mirrors along an axis that training does not flip."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            _refuse_unseen_mirrors(value, flipped, f"{path}{key}.")
        elif key == "mirror" and not set(value) <= set(flipped):
            raise UserError(
                f"{path}mirror = {value}, but train.augment.flip = {list(flipped)}",
                "axes that training flips: the network has seen no other mirror image",
                f"change one of the two, or set {path}mirror=[]",
            )


def prepare_rows(plan: Plan, rows: Sequence[Row], cache: Path) -> list[Case]:
    """Bring rows of the cohort to the model grid."""
    grid, task = plan.common.grid, plan.common.task
    return [
        prepare(
            plan.cohort,
            row,
            source=task.source,
            targets=task.targets,
            spacing=(grid.spacing[0], grid.spacing[1], grid.spacing[2]),
            orientation=grid.orientation,
            on=task.source if grid.on == "source" else grid.on,
            folder=cache,
        )
        for row in rows
    ]


def resolved(path: Path) -> str:
    """Read a run's configuration as today's code resolves it: a key added since then stands at its default."""
    shared, own = split_tree(read_tree(path))
    common = validate(Common, shared, str(path))
    return to_toml(common, validate(load_method(common.method).Config, own, str(path)))
