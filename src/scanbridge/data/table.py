"""A table as a person types it in a spreadsheet."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from scanbridge.errors import UserError, nearest

_SHOWN = 5  # findings that are spelled out; the rest is counted


class Line(NamedTuple):
    """One row of the table as it was typed."""

    number: int
    cells: dict[str, str]


def some(findings: Sequence[str], separator: str = ", ") -> str:
    """Spell out the first few and count the rest."""
    more = [f"and {len(findings) - _SHOWN} more"] if len(findings) > _SHOWN else []
    return separator.join([*findings[:_SHOWN], *more])


def read_table(path: Path) -> tuple[list[str], list[Line]]:
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
    lines = [Line(n, dict(zip(columns, row + [""] * len(columns), strict=False))) for n, row in table[1:]]
    return [name for name in columns if name], lines


def number_in(cell: str) -> float | None:
    """Give the finite number in a cell, if that is what it holds."""
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
