"""The cohort: a table of scans that a person makes in a spreadsheet, and a TOML beside it that says what they are."""

from __future__ import annotations

import json
import logging
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from scanbridge.data.guess import guess
from scanbridge.data.table import Line, number_in, read_table, some
from scanbridge.errors import UserError, nearest
from scanbridge.files import write_text

Kind = Literal["mr", "ct", "pet", "other"]
_STRICT = ConfigDict(extra="forbid", strict=True)
_log = logging.getLogger(__name__)


def _increasing(window: tuple[float, float]) -> tuple[float, float]:
    if not window[0] < window[1]:
        raise ValueError("the window must be two increasing numbers")
    return window


@dataclass(frozen=True, config=_STRICT)
class ImageSpec:
    """What an image column holds.

    Parameters
    ----------
    kind
        ``"mr"``, ``"ct"`` (HU), ``"pet"`` (SUV) or ``"other"``.
    window
        HU that are mapped to [-1, 1]; CT alone.
    ceiling
        SUV that is mapped to 1 (0 is mapped to -1); PET alone.
    """

    kind: Kind
    window: Annotated[tuple[FiniteFloat, FiniteFloat], AfterValidator(_increasing)] = (-1000.0, 1000.0)
    ceiling: Annotated[FiniteFloat, Field(gt=0)] = 15.0


@dataclass(frozen=True, config=_STRICT)
class MaskSpec:
    """What a mask column holds: the image it was drawn on, and whether it is a region or replaces the foreground."""

    on: str
    role: Literal["region", "foreground"] = "region"


@dataclass(frozen=True, config=_STRICT)
class CovariateSpec:
    """What a covariate column holds, and the unit of its numbers."""

    type: Literal["continuous", "categorical"]
    unit: str = ""


@dataclass(frozen=True, config=_STRICT)
class SplitSpec:
    """Which column names the groups that a split can choose from."""

    column: str


@dataclass(frozen=True, config=_STRICT)
class _Declaration:
    """The TOML."""

    images: dict[str, ImageSpec]
    masks: dict[str, MaskSpec] = field(default_factory=dict)
    covariates: dict[str, CovariateSpec] = field(default_factory=dict)
    split: SplitSpec | None = None


@dataclass(frozen=True)
class Row:
    """One visit of one subject; an empty cell of the table is absent from the dicts.

    Parameters
    ----------
    name
        The subject, or ``subject_visit`` where several rows share a subject.
    subject, visit
        As the table says; no visit is ``""``.
    images, masks
        Column to file, absolute.
    covariates
        Column to number (continuous) or text (categorical).
    group
        Cell of the split column.
    """

    name: str
    subject: str
    visit: str
    images: dict[str, Path]
    masks: dict[str, Path]
    covariates: dict[str, float | str]
    group: str | None


@dataclass(frozen=True)
class Cohort:
    """A table of scans and what its columns are.

    Parameters
    ----------
    path
        The table.
    images, masks, covariates
        What each column is, in the order of the TOML.
    rows
        In the order of the table.
    split_column
        The column that names groups, or None.
    guessed
        No TOML lay beside the table; one was guessed and written.
    """

    path: Path
    images: dict[str, ImageSpec]
    masks: dict[str, MaskSpec]
    covariates: dict[str, CovariateSpec]
    rows: tuple[Row, ...]
    split_column: str | None
    guessed: bool = False

    def foreground_mask(self, row: Row, image: str) -> str | None:
        """Give the mask column that replaces the computed foreground of a row: the one drawn on `image` first."""
        names = [name for name, spec in self.masks.items() if spec.role == "foreground" and name in row.masks]
        return min(names, key=lambda name: self.masks[name].on != image, default=None)

    def foreground_file(self, row: Row, image: str) -> Path | None:
        """Give the file of that mask."""
        name = self.foreground_mask(row, image)
        return None if name is None else row.masks[name]


def read_cohort(path: str | Path) -> Cohort:
    """Read a cohort: the table, and the TOML of the same stem beside it.

    Where there is no TOML, one is guessed from names and values, written beside the table, and said as a warning.

    Parameters
    ----------
    path
        A table in CSV (comma, semicolon or tab), UTF-8, with a ``subject`` column. Paths in it are relative to it.

    Raises
    ------
    UserError
        Naming file and key, or all findings in the table together: up to five of them and their number.
    """
    cohort, findings = survey_cohort(path)
    if findings:
        raise UserError(f"{cohort.path}: {some(findings, '; ')}")
    files = dict.fromkeys(file for row in cohort.rows for file in [*row.images.values(), *row.masks.values()])
    missing = [str(file) for file in files if not file.exists()]
    if missing:
        what = f"{cohort.path}: {len(missing)} of {len(files)} files {'is' if len(missing) == 1 else 'are'} missing"
        raise UserError(
            f"{what}: {some(missing)}", "paths relative to the table", "correct the paths or empty the cells"
        )
    return cohort


def survey_cohort(path: str | Path) -> tuple[Cohort, list[str]]:
    """Read a cohort as far as it can be read, and give all that is wrong with its rows; files are not looked at.

    See `read_cohort`; an error is raised where columns or TOML cannot be understood.
    """
    path = Path(path).absolute()
    columns, lines = read_table(path)
    declared = path.with_suffix(".toml")
    guessed = not declared.exists()
    if guessed:
        write_text(declared, guess(path, columns, lines))
        _log.warning("%s was guessed from names and values: look at it before you go on", declared)
    declaration = _read_declaration(declared)
    _check_columns(declared, declaration, columns)
    rows, findings = _rows(path, declaration, lines)
    cohort = Cohort(
        path=path,
        images=declaration.images,
        masks=declaration.masks,
        covariates=declaration.covariates,
        rows=rows,
        split_column=declaration.split.column if declaration.split else None,
        guessed=guessed,
    )
    return cohort, findings


def _read_declaration(path: Path) -> _Declaration:
    """Read the TOML, strictly."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error})", "a TOML file that says what the columns are") from error
    try:
        # Only in JSON mode does pydantic accept a table for a dataclass and still refuse "5" for 5.
        declaration = TypeAdapter(_Declaration).validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        raise UserError(f"{path}: {some([_explained(e) for e in error.errors()], '; ')}") from error
    for name, spec in declaration.images.items():
        for key, kind in (("window", "ct"), ("ceiling", "pet")):
            if key in raw["images"][name] and spec.kind != kind:
                raise UserError(f"{path}: images.{name}.{key} has no effect", f"it with kind = '{kind}' alone")
    return declaration


_SECTIONS: dict[str, type] = {"images": ImageSpec, "masks": MaskSpec, "covariates": CovariateSpec, "split": SplitSpec}


def _explained(error: Any) -> str:
    """Say one finding of pydantic in the user's words."""
    *parents, key = [str(part) for part in error["loc"]] or ["the file"]
    where = ".".join([*parents, key])
    if error["type"] == "unexpected_keyword_argument":
        owner = _SECTIONS[parents[0]] if parents else _Declaration
        return f"{where} is not a known key, {nearest(key, owner.__dataclass_fields__)}"  # type: ignore[attr-defined]
    if error["type"] == "literal_error":
        choices = re.findall(r"'(\w+)'", error["ctx"]["expected"])
        return f"{where} = '{error['input']}', {nearest(str(error['input']), choices)}"
    if error["type"] in {"missing", "missing_argument"}:
        return f"{where} is missing"
    return f"{where} = {error['input']!r}: {error['msg'].removeprefix('Value error, ')}"


def _check_columns(path: Path, declaration: _Declaration, columns: Sequence[str]) -> None:
    """Hold the names in the TOML against the table and against each other."""
    sections: dict[str, Iterable[str]] = {
        "images": declaration.images,
        "masks": declaration.masks,
        "covariates": declaration.covariates,
    }
    named = [(f"{section}.{column}", column) for section, specs in sections.items() for column in specs]
    if declaration.split:
        named.append((f"split.column = '{declaration.split.column}'", declaration.split.column))
    findings = [f"{key}: the table has no such column, {nearest(c, columns)}" for key, c in named if c not in columns]
    described = Counter(column for specs in sections.values() for column in specs) + Counter(["subject", "visit"])
    findings += [f"column '{column}' is said to be two things" for column, n in described.items() if n > 1]
    findings += [
        f"masks.{name}.on = '{spec.on}' is no image, {nearest(spec.on, declaration.images)}"
        for name, spec in declaration.masks.items()
        if spec.on not in declaration.images
    ]
    if not declaration.images:
        findings.append("no image column is described: add [images.NAME] with its kind")
    if findings:
        raise UserError(f"{path}: {some(findings, '; ')}")


def _rows(path: Path, declaration: _Declaration, lines: Sequence[Line]) -> tuple[tuple[Row, ...], list[str]]:
    """Read all rows, and collect what is wrong with them."""
    visits = Counter(line.cells["subject"] for line in lines)
    findings: list[str] = []
    rows = [_row(path.parent, declaration, line, visits, findings) for line in lines]
    for name, count in Counter(row.name for row in rows).items():
        if count > 1:
            findings.append(f"{count} rows are '{name}': tell the visits of a subject apart in a column 'visit'")
    groups = {(row.subject, row.group) for row in rows}
    for subject, count in Counter(subject for subject, _ in groups).items():
        if count > 1:
            findings.append(f"subject '{subject}' is in {count} groups: its visits must stay together")
    return tuple(rows), findings


def _row(folder: Path, declaration: _Declaration, line: Line, visits: Counter[str], findings: list[str]) -> Row:
    """Read one row, and note what is wrong with it."""
    cells, where = line.cells, f"line {line.number}"
    subject, visit = cells["subject"], cells.get("visit", "")
    name = f"{subject}_{visit}" if visits[subject] > 1 and visit else subject
    if not subject:
        findings.append(f"{where}: the subject is missing")
    elif re.search(r"[/\\\x00-\x1f]", name) or name.startswith("."):
        findings.append(f"{where}: '{name}' cannot be part of a file name")
    images = {column: folder / cells[column] for column in declaration.images if cells[column]}
    if not images:
        findings.append(f"{where}: '{name}' has no image")
    covariates: dict[str, float | str] = {}
    for column, spec in declaration.covariates.items():
        if cells[column] and spec.type == "categorical":
            covariates[column] = cells[column]
        elif cells[column]:
            number = number_in(cells[column])
            if number is None:
                findings.append(f"{where}, {column}: '{cells[column]}' is no number")
            else:
                covariates[column] = number
    return Row(
        name=name,
        subject=subject,
        visit=visit,
        images=images,
        masks={column: folder / cells[column] for column in declaration.masks if cells[column]},
        covariates=covariates,
        group=(cells[declaration.split.column] or None) if declaration.split else None,
    )
