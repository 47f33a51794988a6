"""What a training says as it goes: a line of JSON, and an event for TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Log:
    """Appends to ``log.jsonl`` and to TensorBoard events; lines past the checkpoint of a resumed run are dropped.

    Parameters
    ----------
    folder
        The stage's folder.
    images
        Where the training stands as it starts.
    enabled
        Off on all processes but the first.
    """

    def __init__(self, folder: Path, images: int, *, enabled: bool = True) -> None:
        self._file: Any = None
        self._events: Any = None
        if not enabled:
            return
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  (slow to load; training alone needs it)

        path = folder / "log.jsonl"
        kept = [line for line in read_log(path) if line["images"] <= images]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(folder / "events"), purge_step=images)

    def write(self, images: int, **numbers: float) -> None:
        """Log `numbers` at a count of images."""
        if self._file is None:
            return
        self._file.write(json.dumps({"images": images, **numbers}) + "\n")
        for name, value in numbers.items():
            self._events.add_scalar(name, value, images)

    def flush(self) -> None:
        """Bring everything to disk."""
        if self._file is not None:
            self._file.flush()
            self._events.flush()

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._events.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the whole lines of a ``log.jsonl``; a last line cut short by a kill is left out."""
    lines: list[dict[str, Any]] = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    return lines
