"""Rows of a table of experiments: planned, trained once where trainings are alike, opened, and judged together.

What a training depends on is its resolved configuration without the keys that a translation alone reads. Where two rows
read alike without them, the weights of the first serve both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import tomlkit

from scanbridge.evaluate import judge_split
from scanbridge.fit import Progress
from scanbridge.judge import Judged
from scanbridge.model import Model
from scanbridge.plan import Plan, plan_run, resolved
from scanbridge.runs.log import read_log
from scanbridge.train import train_run
from scanbridge.truth import On

TRANSLATION = ("estimate", "draw")
"""Tables that no training reads; a method names those of its own tables and keys in a constant ``TRANSLATION``."""


@dataclass(frozen=True)
class Row:
    """A row: its name, its configuration, and the settings that make it, by dotted key."""

    name: str
    config: Path
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """A row with one seed and one split.

    Parameters
    ----------
    row, plan
        What it is, and that resolved.
    owner, trained, run
        The training whose weights it is judged with: name of the first row that has it, its plan, its run folder.
    """

    row: Row
    plan: Plan
    owner: str
    trained: Plan
    run: Path

    @property
    def stages(self) -> dict[str, int]:
        """Images that its training sees, by stage; weights that were given to it have none."""
        return self.trained.lengths

    @property
    def logs(self) -> dict[str, list[dict[str, Any]]]:
        """What its training said, by stage."""
        return {name: read_log(self.run / "stages" / name / "log.jsonl") for name in self.stages}

    @property
    def seconds(self) -> float | None:
        """Seconds of its training: images over the mean rate at the end of its log; None where a log has no line."""
        logs = self.logs
        if not all(logs.values()):
            return None
        return float(sum(images / logs[name][-1]["rate"] for name, images in self.stages.items()))

    @property
    def state(self) -> str:
        """Say whether its training is done."""
        if not (self.run / "config.toml").is_file():
            return "not trained"
        if resolved(self.run / "config.toml") != self.trained.text:
            return "another configuration lies there"
        return "trained" if (self.run / "done").is_file() else "begun"


Trials = dict[str, Trial]
"""Rows by name, all with one seed and one split."""


def plan_rows(
    table: Sequence[Row],
    chosen: Sequence[str],
    cohort: Path,
    settings: Sequence[str],
    folder_of: Callable[[str], Path],
) -> Trials:
    """Plan the chosen rows of a table; nothing is written.

    Parameters
    ----------
    table, chosen
        All rows, and the names of those that are wanted. A training lies in the folder of the first row of the whole
        table that has it, so that rows chosen later find it.
    cohort, settings
        As ``train`` takes them; a row's own settings win.
    folder_of
        Gives a run folder for a row's name.

    Raises
    ------
    UserError
        Where a row cannot be trained on this cohort.
    """
    owners: dict[str, tuple[str, Plan]] = {}
    trials = {}
    for row in table:
        plan = plan_row(row, cohort, settings)
        owner, trained = owners.setdefault(training_of(plan), (row.name, plan))
        trials[row.name] = Trial(row, plan, owner, trained, folder_of(owner))
    return {name: trials[name] for name in chosen}


def plan_row(row: Row, cohort: Path, settings: Sequence[str]) -> Plan:
    """Plan one row."""
    return plan_run(row.config, cohort, [*settings, *as_settings(row.settings)])


def training_of(plan: Plan) -> str:
    """Give all that a training depends on beside the cohort, as text: equal texts, equal weights."""
    tree = {**plan.common.model_dump(mode="json"), **plan.config.model_dump(mode="json")}
    for key in translation_keys(plan.method):
        *tables, last = key.split(".")
        inner = tree
        for table in tables:
            inner = inner.get(table, {})
        inner.pop(last, None)
    return json.dumps(tree, sort_keys=True)


def translation_keys(method: ModuleType) -> tuple[str, ...]:
    """Give the keys of a method that training never reads."""
    return (*TRANSLATION, *getattr(method, "TRANSLATION", ()))


def as_settings(changes: Mapping[str, Any]) -> list[str]:
    """Write changes as ``--set`` takes them.

    >>> as_settings({"style.use": False, "style.choice": "nearest"})
    ['style.use=false', 'style.choice="nearest"']
    """
    return [f"{key}={tomlkit.item(value).as_string()}" for key, value in changes.items()]


def slug(name: str) -> str:
    """Name a folder after a row.

    >>> slug("+ SKC average, ISTA")
    'skc-average-ista'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def listing(trials: Trials) -> list[str]:
    """Give a line for every row: whose weights it has, where they lie, and whether they are there."""
    return [f"{name}: {trial.run} ({trial.state})" for name, trial in trials.items()]


def train_rows(
    trials: Trials,
    *,
    device: str = "auto",
    cache: Path,
    say: Callable[[str], None] = lambda text: None,  # noqa: ARG005
    on_progress: Callable[[str, Progress], None] = lambda name, progress: None,  # noqa: ARG005
) -> int:
    """Train what the rows need, each training once, or go on where it was left; what is done is kept as it is.

    Returns
    -------
    int
        0, or 128 + n if signal n asked to leave (all is saved then).

    Raises
    ------
    UserError
        If a folder holds another run, or a training does not converge.
    """
    for trial in {each.run: each for each in trials.values()}.values():

        def told(progress: Progress, name: str = trial.owner) -> None:
            on_progress(name, progress)

        if code := train_run(trial.trained, trial.run, device=device, cache=cache, say=say, on_progress=told):
            return code
    return 0


def open_rows(trials: Trials, device: str = "auto") -> dict[str, Model]:
    """Open trained rows; those of one training share its networks, and each translates in its own way."""
    opened = {run: Model.open(run, device=device) for run in dict.fromkeys(each.run for each in trials.values())}
    models = {}
    for name, trial in trials.items():
        model, config = opened[trial.run], trial.plan.config
        models[name] = replace(model, config=config, translator=trial.plan.method.translator(config, model.fitted))
    return models


def judge_rows(
    trials: Trials,
    cohort: Path,
    out: Path,
    seed: int,
    *,
    split: str,
    on: On,
    device: str = "auto",
    on_progress: Callable[[float, float, str], None] = lambda done, of, words: None,  # noqa: ARG005
) -> list[Judged]:
    """Judge trained rows on a split: every line says its seed, pictures are kept of the first row alone."""
    judged = judge_split(open_rows(trials, device), cohort, out, split=split, on=on, on_progress=on_progress)
    first = next(iter(trials))
    return [
        replace(
            each,
            rows=[{**line, "seed": seed} for line in each.rows],
            planes=each.planes if each.run == first else None,
            doubts=None,
        )
        for each in judged
    ]
