"""The page of `scanbridge check`: what was found, what the columns hold, and a strip of pictures for every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scanbridge.report.picture import Picture
from scanbridge.report.template import template


@dataclass(frozen=True)
class Found:
    """One finding, in words; `level` is ``"error"`` or ``"warning"``."""

    level: str
    subject: str
    column: str
    file: str
    what: str
    remedy: str


@dataclass(frozen=True)
class Pictures:
    """One row of the table: the images that could be read, by column, and what was found about it."""

    name: str
    images: Sequence[tuple[str, Picture]]
    findings: Sequence[Found]


@dataclass(frozen=True)
class CheckContext:
    """Everything the page says: findings, a table of the columns (head and rows of text), and the rows' pictures."""

    title: str
    data: Sequence[tuple[str, str]]
    findings: Sequence[Found]
    head: Sequence[str]
    columns: Sequence[Sequence[str]]
    rows: Sequence[Pictures]


def render_check(context: CheckContext) -> str:
    """Give the page as one string of HTML that asks for nothing else."""
    return template("check.html.j2").render(context=context)
