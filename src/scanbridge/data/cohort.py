"""The cohort: a table of scans that a person makes in a spreadsheet, and a TOML beside it that says what they are."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tomlkit
from pydantic import AfterValidator, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from scanbridge.data.nifti import Volume, read, write_bytes
from scanbridge.errors import UserError, nearest

Kind = Literal["mr", "ct", "pet", "other"]
_STRICT = ConfigDict(extra="forbid", strict=True)
_SHOWN = 5  # findings that are spelled out; the rest is counted
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
    path = Path(path).absolute()
    columns, lines = _read_table(path)
    declared = path.with_suffix(".toml")
    guessed = not declared.exists()
    if guessed:
        write_bytes(declared, _guess(path, columns, lines).encode())
        _log.warning("%s was guessed from names and values: look at it before you go on", declared)
    declaration = _read_declaration(declared)
    _check_columns(declared, declaration, columns)
    rows = _rows(path, declaration, lines)
    return Cohort(
        path=path,
        images=declaration.images,
        masks=declaration.masks,
        covariates=declaration.covariates,
        rows=rows,
        split_column=declaration.split.column if declaration.split else None,
        guessed=guessed,
    )


def choose_split(
    cohort: Cohort, *, test: Sequence[str | int], val: Sequence[str | int], calibration: Sequence[str | int]
) -> dict[str, tuple[str, ...]]:
    """Divide the subjects of a cohort; all visits of a subject fall on the same side.

    Parameters
    ----------
    cohort
        The cohort, whose split column names groups.
    test, val, calibration
        Subjects or groups, mixed as one likes. Who is in none of them trains.

    Returns
    -------
    dict
        ``"train"``, ``"val"``, ``"calibration"``, ``"test"`` to subjects in the order of the table.

    Raises
    ------
    UserError
        For an entry that is neither subject nor group, or both; for a subject chosen twice; when nobody trains.
    """
    subjects = list(dict.fromkeys(row.subject for row in cohort.rows))
    members: dict[str, set[str]] = {subject: {subject} for subject in subjects}
    for group in dict.fromkeys(row.group for row in cohort.rows if row.group is not None):
        named = {row.subject for row in cohort.rows if row.group == group}
        if members.get(group, named) != named:
            raise UserError(f"{cohort.path}: '{group}' names a subject and a group", "names that are different")
        members[group] = named
    chosen: dict[str, set[str]] = {}
    for part, entries in {"val": val, "calibration": calibration, "test": test}.items():
        unknown = [str(entry) for entry in entries if str(entry) not in members]
        if unknown:
            hint = nearest(unknown[0], members)
            raise UserError(f"split.{part}: '{unknown[0]}' is neither subject nor group of {cohort.path}", "", hint)
        chosen[part] = set().union(*(members[str(entry)] for entry in entries))
        for other in list(chosen)[:-1]:
            twice = sorted(chosen[part] & chosen[other])
            if twice:
                raise UserError(
                    f"split.{part} and split.{other} share {_some(twice)}", "each subject in one part alone"
                )
    chosen["train"] = set(subjects).difference(*chosen.values())
    if not chosen["train"]:
        raise UserError(f"the split leaves no subject of {cohort.path} to train on", "at least one")
    return {p: tuple(s for s in subjects if s in chosen[p]) for p in ("train", "val", "calibration", "test")}


class _Line(NamedTuple):
    """One row of the table as it was typed."""

    number: int
    cells: dict[str, str]


def _some(findings: Sequence[str], separator: str = ", ") -> str:
    """Spell out the first few and count the rest."""
    more = [f"and {len(findings) - _SHOWN} more"] if len(findings) > _SHOWN else []
    return separator.join([*findings[:_SHOWN], *more])


def _read_table(path: Path) -> tuple[list[str], list[_Line]]:
    """Read columns and rows; blank rows, and unnamed columns without a cell, are spreadsheets' own and skipped."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        table = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})", "a table in CSV") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no table in UTF-8 text", "a table in CSV", "save it as 'CSV UTF-8'") from error
    table = [(number, row) for number, row in table if any(row)]
    if len(table) < 2:
        raise UserError(f"{path} holds no rows", "a line of column names and one line for each scan")
    columns = table[0][1]
    repeated = [name for name, count in Counter(filter(None, columns)).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: column '{repeated[0]}' stands there twice", "columns with different names")
    if "subject" not in columns:
        raise UserError(f"{path} has no column 'subject'", "one that tells people apart", nearest("subject", columns))
    for number, row in table[1:]:
        if any(row[len(columns) :]) or any(c for name, c in zip(columns, row, strict=False) if not name):
            raise UserError(f"{path}, line {number}: a cell without a column", f"{len(columns)} cells, one a column")
    lines = [_Line(n, dict(zip(columns, row + [""] * len(columns), strict=False))) for n, row in table[1:]]
    return [name for name in columns if name], lines


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
        raise UserError(f"{path}: {_some([_explained(e) for e in error.errors()], '; ')}") from error
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
        raise UserError(f"{path}: {_some(findings, '; ')}")


def _rows(path: Path, declaration: _Declaration, lines: Sequence[_Line]) -> tuple[Row, ...]:
    """Read all rows, then raise for all findings at once."""
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
    if findings:
        raise UserError(f"{path}: {_some(findings, '; ')}")
    files = dict.fromkeys(file for row in rows for file in [*row.images.values(), *row.masks.values()])
    missing = [str(file) for file in files if not file.exists()]
    if missing:
        what = f"{path}: {len(missing)} of {len(files)} files {'is' if len(missing) == 1 else 'are'} missing"
        raise UserError(
            f"{what}: {_some(missing)}", "paths relative to the table", "correct the paths or empty the cells"
        )
    return tuple(rows)


def _row(folder: Path, declaration: _Declaration, line: _Line, visits: Counter[str], findings: list[str]) -> Row:
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
            number = _number(cells[column])
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


def _number(cell: str) -> float | None:
    """Give the finite number in a cell, if that is what it holds."""
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _guess(path: Path, columns: Sequence[str], lines: Sequence[_Line]) -> str:
    """Guess the TOML of a table from the names of its columns and the first image in each."""
    cells = {column: [line.cells[column] for line in lines if line.cells[column]] for column in columns}
    files = {c: v for c, v in cells.items() if v and all(cell.lower().endswith((".nii", ".nii.gz")) for cell in v)}
    if not files:
        raise UserError(f"{path}: no column holds .nii or .nii.gz files", "at least one column of images")
    volumes = {column: _first_volume(path.parent, values) for column, values in files.items()}
    masks = [column for column, volume in volumes.items() if _looks_like_a_mask(column, volume)]
    images = [column for column in volumes if column not in masks]
    if not images:
        raise UserError(f"{path}: all image columns look like masks", f"a TOML beside it that says what {files} are")
    document = tomlkit.document()
    document.add(
        tomlkit.comment("What the columns of the table are. GUESSED from names and values: please correct it.")
    )
    document.add("images", tomlkit.table(is_super_table=True))
    for column in images:
        document["images"][column] = _guessed_image(column, volumes[column])
    if masks:
        document.add("masks", tomlkit.table(is_super_table=True))
    for column in masks:
        document["masks"][column] = _table(on=_drawn_on(column, volumes, images))
    split = next((column for column in columns if column.lower() in {"fold", "split"}), None)
    others = [c for c in columns if c not in {*files, "subject", "visit", split} and cells[c]]
    numeric = {c: all(_number(cell) is not None for cell in cells[c]) for c in others}
    # Text that is different in every row is a note or a name, not a covariate.
    described = [c for c in others if numeric[c] or len(set(cells[c])) < len(cells[c])]
    if described:
        document.add("covariates", tomlkit.table(is_super_table=True))
    for column in described:
        kind = "continuous" if numeric[column] else "categorical"
        document["covariates"][column] = _table(type=kind)
    if split:
        document.add("split", _table(column=split))
    return tomlkit.dumps(document)


def _table(**entries: Any) -> tomlkit.items.Table:
    table = tomlkit.table()
    table.update(entries)
    return table


def _first_volume(folder: Path, cells: Iterable[str]) -> Volume:
    """Read the first file of a column that is there; what is missing is said later, all at once."""
    files = [folder / cell for cell in cells]
    return read(next((file for file in files if file.exists()), files[0]))


def _looks_like_a_mask(column: str, volume: Volume) -> bool:
    """Whole numbers up to 255 under a mask's name, or 0 and 1 alone under any."""
    top = volume.data.max()
    if volume.data.min() < 0 or top > 255 or np.any(volume.data != np.round(volume.data)):
        return False
    return bool(top <= 1 or re.search(r"mask|lesion|tumou?r|seg|label", column.lower()))


def _guessed_image(column: str, volume: Volume) -> tomlkit.items.Table:
    """Guess the kind from the name, else from air, which only CT counts far below zero."""
    words = re.split(r"[^a-z]+", column.lower())
    if any("pet" in word or "suv" in word for word in words):
        return _table(kind="pet", ceiling=15)
    if any(word.endswith("ct") for word in words) or volume.data.min() < -500:
        return _table(kind="ct", window=[-1000, 1000])
    return _table(kind="mr")


def _drawn_on(mask: str, volumes: dict[str, Volume], images: Sequence[str]) -> str:
    """Guess which image a mask was drawn on: one on its own grid, best one that its name names."""

    def fit(image: str) -> tuple[bool, bool]:
        a, b = volumes[mask], volumes[image]
        same = a.data.shape == b.data.shape and np.allclose(a.affine, b.affine, atol=1e-3)
        return same, image.lower() in mask.lower()

    return max(images, key=fit)
