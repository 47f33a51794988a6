"""What several verbs take on the command line: their arguments and options, once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from scanbridge.errors import UserError

Run = Annotated[Path, typer.Argument(help="A run folder made by 'train'.")]
CohortOption = Annotated[Path, typer.Option("--cohort", help="The cohort's table (CSV), with its TOML beside it.")]
Style = Annotated[str | None, typer.Option("--style", help="average, nearest, or a scan whose look to take.")]
On = Annotated[str, typer.Option("--on", help="Grid of the metrics: target (its own) or model.")]
Samples = Annotated[int, typer.Option("--samples", min=0, help="Draws to judge beside the estimate; 2 at least.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Change a setting: --set train.images=8000.")]
Cache = Annotated[Path | None, typer.Option("--cache", help="Where scans on the model grid are kept.")]


def grid_of_metrics(text: str) -> Literal["target", "model"]:
    """Read what ``--on`` says.

    Raises
    ------
    UserError
        If it is neither.
    """
    if text not in ("target", "model"):
        raise UserError(f"--on {text}", "target or model", "leave it out for the target's own grid")
    return "target" if text == "target" else "model"
