"""What the command line shows beside its words: progress, and a summary as a table.

rich is imported where it draws: every verb would start later for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scanbridge.files import read_json


def show_summary(out: Path, *, first_calls: bool = True) -> None:
    """Print the foreground's rows of summary.json as a table, with the first calls of bridges or without."""
    from rich.console import Console
    from rich.table import Table

    table = Table("run", "metric", "mean", "95 % interval", "n", title="foreground")
    for row in read_json(out / "summary.json"):
        if not first_calls and row["run"].endswith(":one-call"):
            continue
        if row["region"] == "foreground" and row["metric"] in ("psnr", "ssim_3d", "mae", "sharpness"):
            interval = "-" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
            mean = "-" if row["mean"] is None else f"{row['mean']:.3f} {row['unit'] if row['unit'] != '1' else ''}"
            table.add_row(row["run"], row["metric"], mean.strip(), interval, str(row["n"]))
    Console().print(table)


class progress:  # noqa: N801  (reads as a verb where it is used)
    """A progress bar on stderr; calling it moves it: (done, of, words)."""

    def __init__(self, words: str, unit: str = "") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._words = words
        self._task: Any = None

    def __enter__(self) -> progress:
        self._progress.start()
        self._task = self._progress.add_task(self._words, total=None)
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def __call__(self, done: float, of: float, words: str | None = None) -> None:
        """Move the bar, and change its words where there are new ones."""
        self._progress.update(self._task, completed=done, total=of, description=words or self._words)
