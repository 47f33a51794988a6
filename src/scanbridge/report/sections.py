"""A page of sections: what was found, in sentences, and the tables, plots and pictures that it was found by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scanbridge.report.picture import Picture
from scanbridge.report.tables import Table
from scanbridge.report.template import template


@dataclass(frozen=True)
class Pictured:
    """One subject: its name, a line of text beside it, and its pictures, one beneath the other."""

    name: str
    text: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Section:
    """One question: sentences, then tables, plots beside each other, and subjects."""

    title: str
    words: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Picture] = ()
    subjects: Sequence[Pictured] = ()


@dataclass(frozen=True)
class SectionsContext:
    """Everything the page says; `verb` is the command that made it, `data` and `settings` are (name, text)."""

    verb: str
    title: str
    data: Sequence[tuple[str, str]]
    verdict: Sequence[str]
    sections: Sequence[Section]
    limits: Sequence[str]
    settings: Sequence[tuple[str, str]]


def render_sections(context: SectionsContext) -> str:
    """Give the page as one string of HTML that asks for nothing else."""
    return template("sections.html.j2").render(context=context)
