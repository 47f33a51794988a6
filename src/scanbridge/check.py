"""`scanbridge check`: read every scan of a cohort once, and say subject by subject what is wrong."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from scanbridge.data.check import Finding, Scan, check_row, copies
from scanbridge.data.cohort import Cohort, Row, survey_cohort
from scanbridge.data.grid import Grid, model_grid, resample
from scanbridge.data.intensity import Scale, scale_of
from scanbridge.errors import UserError
from scanbridge.files import write_text
from scanbridge.report.check_page import CheckContext, Found, Pictures, render_check
from scanbridge.report.picture import Picture
from scanbridge.report.thumbnails import thumbnail

_PERCENTILES = (0.5, 50.0, 99.5)
_HEAD = ("image", "scans", "spacing (mm)", "shape", *(f"{p:g} %" for p in _PERCENTILES), "foreground (ml)")
_LONGEST, _FINEST = 96, 1.0  # voxels along the longest axis of a picture, mm


@dataclass(frozen=True)
class Facts:
    """What the table says of one scan: its grid, percentiles of its foreground in its unit, and that in ml."""

    grid: Grid
    percentiles: tuple[float, ...]
    foreground: float


def check_cohort(
    path: Path,
    out: Path | None = None,
    say: Callable[[str], None] = lambda text: None,  # noqa: ARG005
) -> list[Finding]:
    """Read all scans of a cohort and give all that is wrong with them.

    Parameters
    ----------
    path
        The cohort's table.
    out
        Folder for ``check.html``, a page with pictures of every row; None writes none.
    say
        Gets the findings, one a line, errors first, then the table of the columns.

    Returns
    -------
    list
        Errors first; the cohort is good when none is an error.

    Raises
    ------
    UserError
        When table or TOML cannot be understood at all.
    """
    cohort, wrong = survey_cohort(path)
    findings = [Finding("error", "", "", cohort.path.name, what) for what in wrong]
    if cohort.guessed:
        what, declared = "was guessed from names and values", cohort.path.with_suffix(".toml").name
        findings.append(Finding("warning", "", "", declared, what, "look at it before you go on"))
    seen: dict[str, tuple[Row, str]] = {}
    facts: dict[str, list[Facts]] = {column: [] for column in cohort.images}
    pictures: list[Pictures] = []
    for row in cohort.rows:
        found, scans = check_row(cohort, row)
        found += copies(row, scans, seen, cohort.path.parent)
        findings += found
        for column, scan in scans.items():
            facts[column].append(_facts(scan))
        if out is not None:
            pictures.append(Pictures(row.name, _pictures(cohort, row, scans), [_found(f) for f in found]))
    findings.sort(key=lambda finding: finding.level)  # "error" comes before "warning"
    columns = [_described(column, facts[column]) for column in cohort.images]
    for finding in findings:
        say(str(finding))
    say(_table(columns))
    say(_verdict(cohort, findings))
    if out is not None:
        page = out / "check.html"
        write_text(page, render_check(_context(cohort, findings, columns, pictures)))
        say(f"page: {page}")
    return findings


def _verdict(cohort: Cohort, findings: Sequence[Finding]) -> str:
    n_errors = sum(finding.level == "error" for finding in findings)
    counted = f"{_count(n_errors, 'error')}, {_count(len(findings) - n_errors, 'warning')}"
    return f"{_count(len(cohort.rows), 'row')} of {cohort.path.name}: {counted if findings else 'nothing wrong found'}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _facts(scan: Scan) -> Facts:
    values = scan.volume.data[scan.foreground]
    percentiles = np.percentile(values, _PERCENTILES).tolist() if values.size else [math.nan] * len(_PERCENTILES)
    grid = scan.volume.grid
    return Facts(grid, tuple(percentiles), values.size * math.prod(grid.spacing) / 1000)


def _described(column: str, facts: Sequence[Facts]) -> list[str]:
    """Give the cells of one image column."""
    if not facts:
        return [column, "0", *["-"] * (len(_HEAD) - 2)]
    return [
        column,
        str(len(facts)),
        _ranges([f.grid.spacing for f in facts], ".3g"),
        _ranges([f.grid.shape for f in facts], "d"),
        *(f"{np.median(values):.4g}" for values in zip(*(f.percentiles for f in facts), strict=True)),
        _range([f.foreground for f in facts], ".0f"),
    ]


def _ranges(of: Sequence[Sequence[float]], form: str) -> str:
    return " x ".join(_range(values, form) for values in zip(*of, strict=True))


def _range(values: Iterable[float], form: str) -> str:
    low, high = (format(end(list(values)), form) for end in (min, max))
    return low if low == high else f"{low}-{high}"


def _table(columns: Sequence[Sequence[str]]) -> str:
    """Draw the table of the columns for a terminal."""
    table = Table(*_HEAD)
    for cells in columns:
        table.add_row(*cells)
    console = Console(
        file=io.StringIO(),
        width=shutil.get_terminal_size((120, 24)).columns,
        markup=False,  # a column may be named [b]
        highlight=False,
    )
    with console.capture() as drawn:
        console.print(table)
    return drawn.get().rstrip()


def _found(finding: Finding) -> Found:
    return Found(**asdict(finding))


def _context(
    cohort: Cohort, findings: Sequence[Finding], columns: Sequence[Sequence[str]], pictures: Sequence[Pictures]
) -> CheckContext:
    n_subjects = len({row.subject for row in cohort.rows})
    said = [
        ("People", str(n_subjects)),
        ("Rows", str(len(cohort.rows))),
        ("Result", _verdict(cohort, findings).partition(": ")[2]),
    ]
    title = f"{cohort.path.parent.name}/{cohort.path.name}"
    return CheckContext(title, said, [_found(f) for f in findings], _HEAD, columns, pictures)


def _pictures(cohort: Cohort, row: Row, scans: dict[str, Scan]) -> list[tuple[str, Picture]]:
    """Draw the images of a row on one coarse grid, that of the first, with the foreground of the first."""
    if not scans:
        return []
    first = next(iter(scans.values()))
    own = first.volume.grid
    extent = max(n * step for n, step in zip(own.shape, own.spacing, strict=True))
    step = max(_FINEST, extent / _LONGEST)
    grid = model_grid(own, spacing=(step, step, step), orientation="SPL")
    body = resample(first.foreground, own, grid, order=0)[0] > 0
    pictures = []
    for column, scan in scans.items():
        scale = _window(cohort, column, scan)
        values, _ = resample(scan.volume.data, scan.volume.grid, grid, fill=scale.low)
        alt = f"{column} of {row.name}: axial, coronal and sagittal plane"
        pictures.append((column, thumbnail(scale.encode(values), body, alt=alt)))
    return pictures


def _window(cohort: Cohort, column: str, scan: Scan) -> Scale:
    """Give the scale of an image, or its whole range where it has none."""
    try:
        return scale_of(cohort.images[column], scan.volume.data, scan.foreground)
    except UserError:
        low = float(scan.volume.data.min())
        return Scale(low, max(float(scan.volume.data.max()), low + 1), unit="1")
