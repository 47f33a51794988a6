"""The templates of the pages, and what all of them are filled in by."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


def template(name: str) -> Template:
    """Give a template of this package by its file name."""
    return _ENVIRONMENT.get_template(name)


_ENVIRONMENT = Environment(
    loader=PackageLoader("scanbridge.report"),
    autoescape=True,  # subject names and settings are the user's text
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
