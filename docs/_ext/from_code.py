"""Two directives that write reference tables from the code itself, so that they cannot go stale.

``{command} train`` lists the arguments and options of a verb; ``{settings} scanbridge.runs.config:Train`` the keys of a
table of the configuration, with type, default and meaning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from docutils import nodes
from docutils.parsers.rst import Directive
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.models import OptionInfo

from scanbridge.cli import app


def option_rows(verb: str) -> list[tuple[str, str, str]]:
    """Give (name, default, help) of every argument and option of a verb, in the order of its signature."""
    functions = {c.callback.__name__: c.callback for c in app.registered_commands if c.callback}
    hints = get_type_hints(functions[verb], include_extras=True)
    rows = []
    for name, parameter in signature(functions[verb]).parameters.items():
        kind, info = get_args(hints[name])[:2]
        if isinstance(info, OptionInfo):
            # within Annotated, typer keeps the first name of an option where a default would stand
            words = [d for d in (info.default, *(info.param_decls or ())) if isinstance(d, str)] + [_word(kind)]
        else:
            words = [name.upper(), "..." if get_origin(kind) is list else ""]
        default = "required" if parameter.default is parameter.empty else parameter.default
        shown = "" if default is None or default is False else str(default)
        rows.append((" ".join(filter(None, words)), shown, info.help or ""))
    return rows


def _word(kind: Any) -> str:
    """Give what follows an option on the command line."""
    inner = [k for k in (kind, *get_args(kind), *(a for k in get_args(kind) for a in get_args(k))) if k in _WORDS]
    return _WORDS[inner[0]] if inner else "TEXT"


PRESETS = Path(__file__).resolve().parents[2] / "configs"
_WORDS = {Path: "PATH", int: "N", float: "X", str: "TEXT", bool: ""}


def setting_rows(table: type[BaseModel], prefix: str = "") -> list[tuple[str, str, str, str]]:
    """Give (key, type, default, meaning) of every key of a strict table; tables within it follow with dotted keys."""
    rows, inner = [], []
    for key, field in table.model_fields.items():
        below = field.annotation
        if isinstance(below, type) and issubclass(below, BaseModel):
            inner += setting_rows(below, f"{prefix}{key}.")
        else:
            meaning = field.description or _comments().get(prefix + key, "")
            rows.append((prefix + key, _type(field), _default(field), meaning))
    return rows + inner


@cache
def _comments() -> dict[str, str]:
    """Give the comments of the keys in the small presets, for keys that have no description of their own."""
    found: dict[str, str] = {}
    for preset in sorted(PRESETS.glob("*-small.toml")):
        table = ""
        for line in preset.read_text(encoding="utf-8").splitlines():
            if head := re.match(r"\[([\w.]+)\]", line):
                table = f"{head[1]}."
            elif key := re.match(r"(\w+) *=.*?\s# (.+)", line):
                found.setdefault(table + key[1], key[2])
    return found


def _type(field: FieldInfo) -> str:
    choices = [a for a in get_args(field.annotation) if isinstance(a, str)]
    if choices:
        return ", ".join(choices)
    text = re.sub(r"typing\.|<class '|'>", "", str(field.annotation))
    if "Literal" in text:
        text = re.sub(r"Literal\[(.*?)\]", lambda m: m[1].replace("'", "").replace(", ", " or "), text)
    limits = [
        f"{sign} {getattr(m, name)}"
        for m in field.metadata
        for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
        if hasattr(m, name)
    ]
    return " ".join([text, *limits])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return str(field.get_default(call_default_factory=True)).replace("'", '"')


class _Table(Directive):
    has_content = False
    required_arguments = 1
    header: ClassVar[tuple[str, ...]]

    def rows(self) -> Iterable[tuple[str, ...]]:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        group = nodes.tgroup(cols=len(self.header))
        group += [nodes.colspec(colwidth=1) for _ in self.header]
        head, body = nodes.thead(), nodes.tbody()
        head += self._row(self.header, literal=())
        for row in self.rows():
            body += self._row(row, literal=(0,))
        group += [head, body]
        table = nodes.table()
        table += group
        return [table]

    def _row(self, cells: Iterable[str], literal: tuple[int, ...]) -> nodes.row:
        row = nodes.row()
        for index, text in enumerate(cells):
            shown = nodes.literal(text, text) if index in literal else nodes.Text(text)
            paragraph = nodes.paragraph()
            paragraph += shown
            entry = nodes.entry()
            entry += paragraph
            row += entry
        return row


class Command(_Table):
    """Arguments and options of a verb."""

    header = ("argument or option", "default", "meaning")

    def rows(self) -> Iterable[tuple[str, ...]]:
        """Give the table's rows."""
        return option_rows(self.arguments[0])


class Settings(_Table):
    """Keys of a table of the configuration; an argument ``module:Class prefix`` puts a prefix before them."""

    header = ("key", "type", "default", "meaning")
    optional_arguments = 1

    def rows(self) -> Iterable[tuple[str, ...]]:
        """Give the table's rows."""
        module, _, name = self.arguments[0].partition(":")
        prefix = f"{self.arguments[1]}." if len(self.arguments) > 1 else ""
        return setting_rows(getattr(import_module(module), name), prefix)


def setup(app: Any) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("command", Command)
    app.add_directive("settings", Settings)
    return {"parallel_read_safe": True}
