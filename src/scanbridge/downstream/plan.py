"""Who takes part in a downstream task, in which fold, translated by which run: read and refused before any work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from scanbridge.data.cohort import Cohort, Row, read_cohort
from scanbridge.data.nifti import read
from scanbridge.data.table import some
from scanbridge.downstream.people import by_number, deal, hold_together, translators
from scanbridge.errors import UserError, nearest
from scanbridge.evaluate import unique_names
from scanbridge.model import Model

Kind = Literal["classify", "segment"]
SIZES = {2: 96, 3: 48}
"""Voxels a side, by dimensions: what two processor cores can teach."""
IMAGES: dict[tuple[Kind, int], int] = {
    ("classify", 2): 6000,
    ("classify", 3): 1000,
    ("segment", 2): 6000,
    ("segment", 3): 1000,
}


@dataclass(frozen=True)
class Settings:
    """What may be asked of a downstream task; `size` is voxels a side, `images` what every network is shown."""

    kind: Kind
    dims: Literal[2, 3]
    size: int
    images: int
    folds: int
    seed: int


@dataclass(frozen=True)
class Plan:
    """A downstream task, resolved.

    Parameters
    ----------
    table, column
        The cohort and the column that is to be predicted: a covariate or a mask.
    models
        The runs by name.
    settings
        How networks are taught.
    classes
        Names of the classes, sorted; empty for a mask.
    rows
        Who takes part.
    by
        Row name to the run that translates it.
    fold_of
        Subject to fold.
    seen
        Subjects who take part though every run was trained on them.
    left_out
        Subjects who would have what is needed and are left out, since every run was trained on them.
    """

    table: Cohort
    column: str
    models: Mapping[str, Model]
    settings: Settings
    classes: tuple[str, ...]
    rows: tuple[Row, ...]
    by: Mapping[str, str]
    fold_of: Mapping[str, int]
    seen: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def first(self) -> Model:
        """The first run: all do the same task on the same grid."""
        return next(iter(self.models.values()))

    @property
    def names(self) -> tuple[str, str]:
        """The columns of source and target."""
        return self.first.common.task.source, self.first.common.task.targets[0]

    def label(self, row: Row) -> int:
        """Give the class of a row."""
        return self.classes.index(_named(row.covariates[self.column]))

    @property
    def summary(self) -> str:
        """The plan in one line."""
        settings, (source, target) = self.settings, self.names
        what = f"{self.column} ({', '.join(self.classes)})" if self.classes else f"the mask {self.column}"
        return (
            f"{settings.kind} {what} from {source}, with synthetic and with real {target}: "
            f"{len(self.fold_of)} subjects, {settings.folds} folds, {settings.dims}D, "
            f"{settings.images:,} images a network"
        )


def plan_task(
    cohort: Path,
    runs: Sequence[Path],
    column: str,
    *,
    kind: str | None,
    dims: int,
    size: int | None,
    images: int | None,
    folds: int,
    seed: int,
    include_seen: bool,
    device: str,
) -> Plan:
    """Read and check everything that a downstream task depends on; nothing is written.

    Raises
    ------
    UserError
        For a column that is none, classes or subjects that are too few, an empty mask, and runs that do not fit.
    """
    if folds < 2:
        raise UserError(f"--folds {folds}", "two folds at least: one to teach, one to judge", "leave it out for 5")
    if dims not in (2, 3):
        raise UserError(f"--dims {dims}", "2 (slices) or 3 (volumes)", "leave it out for 3")
    table = read_cohort(cohort)
    chosen = _kind(table, column, kind)
    models = {name: Model.open(run, device=device) for name, run in zip(unique_names(runs), runs, strict=True)}
    hold_together(models, table)
    first = next(iter(models.values()))
    needed = (first.common.task.source, first.common.task.targets[0])
    able = [row for row in table.rows if all(name in row.images for name in needed) and _has(row, column)]
    if not able:
        raise UserError(f"{cohort}: no row has {needed[0]}, {needed[1]} and {column}", "rows with all three")
    by, seen = translators(models, table, able, needed)
    rows = [row for row in able if include_seen or row.subject not in seen]
    left_out = () if include_seen else tuple(seen)
    if not rows:
        raise UserError(
            f"every subject of {cohort} with {column} was trained on by {', '.join(models)}",
            "subjects that a run has not seen: translations of others are too good",
            "give one --run for each fold of a cross-validation, another cohort, or --include-seen, which is marked",
        )
    without = f" ({len(left_out)} whom the run was trained on are left out)" if left_out else ""
    of_subject = _classes(table, rows, column, folds, without) if chosen == "classify" else {}
    if chosen == "segment":
        _look(table, rows, column, folds, without)
    settings = Settings(
        kind=chosen,
        dims=2 if dims == 2 else 3,
        size=_at_least(16, SIZES[dims] if size is None else size, "--size"),
        images=_at_least(1, IMAGES[chosen, dims] if images is None else images, "--images"),
        folds=folds,
        seed=seed,
    )
    return Plan(
        table=table,
        column=column,
        models=models,
        settings=settings,
        classes=tuple(sorted(set(of_subject.values()), key=by_number)),
        rows=tuple(rows),
        by={row.name: by[row.name] for row in rows},
        fold_of=deal({row.subject: of_subject.get(row.subject, "") for row in rows}, folds, seed),
        seen=tuple(seen) if include_seen else (),
        left_out=left_out,
    )


def _kind(table: Cohort, column: str, asked: str | None) -> Kind:
    """Say what a column asks for, and hold it against what the user says."""
    regions = [name for name, spec in table.masks.items() if spec.role == "region"]
    if column not in table.covariates and column not in regions:
        raise UserError(
            f"--task {column}: {table.path} has no such covariate or mask",
            "a column that its TOML describes",
            nearest(column, [*table.covariates, *regions]),
        )
    found: Kind = "segment" if column in regions else "classify"
    if asked is not None and asked not in get_args(Kind):
        raise UserError(f"--kind {asked}", "classify or segment", "leave it out: the column says which")
    if asked not in (None, found):
        what = "a mask is segmented" if found == "segment" else "a covariate is classified"
        raise UserError(f"--kind {asked}: {what}, and {column} is one", f"--kind {found}", "leave it out")
    return found


def _has(row: Row, column: str) -> bool:
    return column in row.masks or column in row.covariates


def _classes(table: Cohort, rows: Sequence[Row], column: str, folds: int, without: str) -> dict[str, str]:
    """Give the class of every subject."""
    held = {row.covariates[column] for row in rows}
    if table.covariates[column].type == "continuous" and len(held) > 2:
        raise UserError(
            f"{column} is continuous, with {len(held)} values",
            "classes",
            f"write a column of classes, or type = 'categorical' in [covariates.{column}]",
        )
    of_subject: dict[str, str] = {}
    for row in rows:
        if of_subject.setdefault(row.subject, _named(row.covariates[column])) != _named(row.covariates[column]):
            raise UserError(f"{column}: the visits of '{row.subject}' are of two classes", "one class a subject")
    counts = Counter(of_subject.values())
    if len(counts) < 2:
        raise UserError(f"{column}: all {len(of_subject)} subjects are '{next(iter(counts))}'{without}", "two classes")
    least, n = min(counts.items(), key=lambda item: item[1])
    if n < folds:
        raise UserError(
            f"{column}: class '{least}' has {n} subject{'s' if n > 1 else ''}{without}, fewer than --folds {folds}",
            "one in every fold",
            f"--folds {n}" if n > 1 else "more subjects of that class",
        )
    return of_subject


def _look(table: Cohort, rows: Sequence[Row], column: str, folds: int, without: str) -> None:
    """Refuse a mask that is empty nearly everywhere, and fewer subjects than folds."""
    subjects = {row.subject for row in rows}
    if len(subjects) < folds:
        raise UserError(f"{len(subjects)} subjects with {column}{without}, fewer than --folds {folds}", "one a fold")
    marked = {row.subject for row in rows if (read(row.masks[column], mask=True).data > 0).any()}
    if len(marked) < 2:
        who = f"but that of {some(sorted(marked))}" if marked else "of all subjects"
        raise UserError(
            f"{table.path}: the mask {column} {who} is empty{without}", "two subjects with something to find"
        )


def _named(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _at_least(least: int, value: int, option: str) -> int:
    if value < least:
        raise UserError(f"{option} {value}", f"{least} or more", "leave it out for the default")
    return value
