"""Settings of the documentation; built by ``make docs``, where every warning is an error."""

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from scanbridge import __version__

project = "scanbridge"
author = "scanbridge maintainers"
project_copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "from_code",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
smartquotes = False  # they turn --set into a dash
suppress_warnings = ["config.cache"]

myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"scanbridge {version}"
html_static_path: list[str] = []


def plain(*event: Any) -> None:
    """Let docstrings write |x| and (B, *shape) as mathematics does: outside ``code`` neither is markup."""
    lines: list[str] = event[-1]
    for i, line in enumerate(lines):
        parts = re.split(r"(``.*?``)", line)
        parts[::2] = [re.sub(r"\*(?=\w+\))", r"\\*", part.replace("|", r"\|")) for part in parts[::2]]
        lines[i] = "".join(parts)


def setup(app: Any) -> None:
    """Connect the above, before napoleon reads the docstrings."""
    app.connect("autodoc-process-docstring", plain, priority=400)
