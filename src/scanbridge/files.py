"""Files that are there whole or not at all: written beside, fsynced, renamed; and read with errors that name them."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from scanbridge.errors import UserError


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, where it is missing.

    Raises
    ------
    UserError
        When a file stands in its place, or the file system refuses.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be made ({error.strerror or error})", "a folder", "choose another") from error


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; on success it is fsynced and renamed, else removed.

    The folder is made where it is missing.

    Raises
    ------
    UserError
        When the file system refuses: no room, no right, a folder where the file should be.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        descriptor = os.open(beside, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        beside.replace(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error})", "a folder that may be written to and has room"
        ) from error
    finally:
        with suppress(OSError):  # where the folder could not be made there is nothing to remove
            beside.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Put bytes in a file at once: it is there whole, or as it was before, even when the power fails."""
    with atomic(path) as beside:
        beside.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write text atomically, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinity are refused, since JSON has neither."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path, remedy: str = "") -> Any:
    """Read JSON, or say in one line why it cannot be."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "a JSON file", remedy) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})", "the file as it was written", remedy) from None


def sha256(path: Path) -> str:
    """Give the SHA-256 of a file's bytes, in hexadecimal digits.

    Raises
    ------
    UserError
        When the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})", "a file that is there") from error
