"""One process a run folder: an advisory lock that dies with its holder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scanbridge.errors import UserError
from scanbridge.files import make_folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder, or refuse at once if another process holds it.

    Raises
    ------
    UserError
        If another process works in `folder`.
    """
    make_folder(folder)
    with (folder / "lock").open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            raise UserError(
                f"{folder}: another process (pid {holder}) works in this run folder",
                "one process a run",
                "wait for it, stop it, or choose another --run",
            ) from None
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield
