"""The verb ``ablate``: the rows of a method's table, trained at one budget and judged against the full method."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from scanbridge.ablation_page import describe, write_ablation
from scanbridge.errors import UserError, nearest
from scanbridge.files import write_text
from scanbridge.fit import Progress
from scanbridge.judge import Judged
from scanbridge.plan import Plan, plan_run, resolved
from scanbridge.trials import Row, Trials, judge_rows, listing, plan_row, plan_rows, slug, train_rows
from scanbridge.truth import On

PARTS = ("test", "val")
FILE = "ablation.toml"
"""In the folder of an ablation: the full method, resolved."""


def ablate_method(
    config: Path,
    cohort: Path,
    out: Path,
    *,
    rows: Sequence[str] = (),
    seeds: Sequence[int] = (),
    settings: Sequence[str] = (),
    split: str = "test",
    on: On = "target",
    device: str = "auto",
    cache: Path | None = None,
    say: Callable[[str], None] = lambda text: None,  # noqa: ARG005
    on_progress: Callable[[float, float, str], None] = lambda done, of, words: None,  # noqa: ARG005
) -> int:
    """Train and judge the rows of a method's table; write tables and the page.

    Parameters
    ----------
    config, cohort, settings
        The full method, as ``train`` takes it; a row's own settings win over `settings`.
    out
        Folder for ``runs/<row>/seed-N``, ``seed-N/translations``, ``metrics.csv``, ``summary.json``, ``ablation.md``
        and ``report.html``.
    rows
        Names in the table; all by default. The full method always stands first.
    seeds
        Of the trainings; the configuration's own by default. A person's number is the mean over them.
    split, on
        As in ``evaluate``: test or val; the target's own grid, or the model grid.

    Returns
    -------
    int
        0, or 128 + n if signal n asked a training to leave (all is saved then).

    Raises
    ------
    UserError
        Before anything is trained: for an unknown row, a method without a table, a split with nobody in it, and a
        folder that holds something else.
    """
    if split not in PARTS:
        raise UserError(f"--split {split}", "a part that was set apart for judging", nearest(split, PARTS))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("ablate runs in one process", "no torchrun", "train the rows by themselves for that")
    full = plan_run(config, cohort, settings)
    table = table_of(full, config, cohort, settings)
    chosen = choose(table, rows, full.common.method)
    trials = _plan(table, chosen, cohort, settings, out, seeds or [full.common.train.seed])
    _refuse_nobody(full, split)
    _claim(out, full)
    for each in trials.values():
        for line in listing(each):
            say(line)

    def training(name: str, p: Progress) -> None:
        on_progress(p.images, p.of, f"{name}: {p.stage}  loss {p.loss:.4f}  {p.rate:.1f} images/s")

    for each in trials.values():
        if code := train_rows(each, device=device, cache=cache or out / "cache", say=say, on_progress=training):
            return code
    judged: list[Judged] = []
    for seed, each in trials.items():
        place = out / f"seed-{seed}"
        judged += judge_rows(each, cohort, place, seed, split=split, on=on, device=device, on_progress=on_progress)
    facts = [("Judged", f"'{split}' of {cohort.name}; a person's number is the mean over seeds {_listed(trials)}")]
    write_ablation(out, judged, describe(list(trials.values()), facts))
    return 0


def table_of(full: Plan, config: Path, cohort: Path, settings: Sequence[str]) -> list[Row]:
    """Give the rows of a method's table, the full method first; where no row is that, it gets the method's name.

    Raises
    ------
    UserError
        If the method has no table.
    """
    declared = getattr(full.method, "ABLATIONS", {})
    if not declared:
        raise UserError(f"method '{full.common.method}' has no table of rows", "a method that has one")
    rows = [Row(name, config, changes) for name, changes in declared.items()]
    plans = {row.name: plan_row(row, cohort, settings) for row in rows}
    alike = (row for row in rows if (plans[row.name].common, plans[row.name].config) == (full.common, full.config))
    first = next(alike, Row(full.common.method, config))
    return [first, *(row for row in rows if row is not first)]


def choose(table: Sequence[Row], names: Sequence[str], method: str) -> list[str]:
    """Give the names of the rows that were asked for, in the table's order, the full method first; all for none.

    Raises
    ------
    UserError
        For a name that no row has.
    """
    known = [row.name for row in table]
    for name in names:
        if name not in known:
            raise UserError(f"--rows '{name}' is no row of {method}", "", nearest(name, known))
    return [name for name in known if not names or name in names or name == known[0]]


def _plan(
    table: Sequence[Row], chosen: Sequence[str], cohort: Path, settings: Sequence[str], out: Path, seeds: Sequence[int]
) -> dict[int, Trials]:
    def at(seed: int) -> Trials:
        def folder_of(name: str) -> Path:
            return out / "runs" / slug(name) / f"seed-{seed}"

        return plan_rows(table, chosen, cohort, [*settings, f"train.seed={seed}"], folder_of)

    return {seed: at(seed) for seed in dict.fromkeys(seeds)}


def _refuse_nobody(full: Plan, split: str) -> None:
    """Say before a training that nobody would be judged after it."""
    source, target = full.common.task.source, full.common.task.targets[0]
    if not any(target in row.images for row in full.rows(split)):
        raise UserError(
            f"{full.cohort.path}: no subject with {source} and {target} is in '{split}'",
            "people set apart",
            f"add --set 'split.{split}=[...]'",
        )


def _claim(out: Path, full: Plan) -> None:
    """Note whose ablation a folder holds, or hold that against what is asked for."""
    path = out / FILE
    if path.is_file():
        if resolved(path) != full.text:
            raise UserError(
                f"{out} holds another ablation: {path} is not the configuration asked for",
                "the command that made it",
                "repeat that command, or choose another --out",
            )
    elif any((out / name).exists() for name in ("metrics.csv", "stages")):
        raise UserError(f"{out} holds a run or an evaluation", "a folder for the ablation", "choose another --out")
    else:
        write_text(path, full.text)


def _listed(seeds: Sequence[int] | dict[int, Trials]) -> str:
    return ", ".join(map(str, seeds))
