"""The TOML of a table that has none, guessed from the names of its columns and the first image in each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tomlkit

from scanbridge.data.nifti import Volume, read
from scanbridge.data.table import Line, number_in
from scanbridge.errors import UserError


def guess(path: Path, columns: Sequence[str], lines: Sequence[Line]) -> str:
    """Guess the TOML of a table from the names of its columns and the first image in each."""
    cells = {column: [line.cells[column] for line in lines if line.cells[column]] for column in columns}
    files = {c: v for c, v in cells.items() if v and all(cell.lower().endswith((".nii", ".nii.gz")) for cell in v)}
    if not files:
        raise UserError(f"{path}: no column holds .nii or .nii.gz files", "at least one column of images")
    volumes = {column: _first_volume(path.parent, values) for column, values in files.items()}
    masks = [column for column, volume in volumes.items() if _looks_like_a_mask(column, volume)]
    images = [column for column in volumes if column not in masks]
    if not images:
        raise UserError(f"{path}: all image columns look like masks", f"a TOML beside it that says what {files} are")
    document = tomlkit.document()
    document.add(
        tomlkit.comment("What the columns of the table are. GUESSED from names and values: please correct it.")
    )
    document.add("images", tomlkit.table(is_super_table=True))
    for column in images:
        document["images"][column] = _guessed_image(column, volumes[column])
    if masks:
        document.add("masks", tomlkit.table(is_super_table=True))
    for column in masks:
        document["masks"][column] = _table(on=_drawn_on(column, volumes, images))
    split = next((column for column in columns if column.lower() in {"fold", "split"}), None)
    others = [c for c in columns if c not in {*files, "subject", "visit", split} and cells[c]]
    numeric = {c: all(number_in(cell) is not None for cell in cells[c]) for c in others}
    # Text that is different in every row is a note or a name, not a covariate.
    described = [c for c in others if numeric[c] or len(set(cells[c])) < len(cells[c])]
    if described:
        document.add("covariates", tomlkit.table(is_super_table=True))
    for column in described:
        kind = "continuous" if numeric[column] else "categorical"
        document["covariates"][column] = _table(type=kind)
    if split:
        document.add("split", _table(column=split))
    return tomlkit.dumps(document)


def _table(**entries: Any) -> tomlkit.items.Table:
    table = tomlkit.table()
    table.update(entries)
    return table


def _first_volume(folder: Path, cells: Iterable[str]) -> Volume:
    """Read the first file of a column that is there; what is missing is said later, all at once."""
    files = [folder / cell for cell in cells]
    return read(next((file for file in files if file.exists()), files[0]))


def _looks_like_a_mask(column: str, volume: Volume) -> bool:
    """Whole numbers up to 255 under a mask's name, or 0 and 1 alone under any."""
    top = volume.data.max()
    if volume.data.min() < 0 or top > 255 or np.any(volume.data != np.round(volume.data)):
        return False
    return bool(top <= 1 or re.search(r"mask|lesion|tumou?r|seg|label", column.lower()))


def _guessed_image(column: str, volume: Volume) -> tomlkit.items.Table:
    """Guess the kind from the name, else from air, which only CT counts far below zero."""
    words = re.split(r"[^a-z]+", column.lower())
    if any("pet" in word or "suv" in word for word in words):
        return _table(kind="pet", ceiling=15)
    if any(word.endswith("ct") for word in words) or volume.data.min() < -500:
        return _table(kind="ct", window=[-1000, 1000])
    return _table(kind="mr")


def _drawn_on(mask: str, volumes: dict[str, Volume], images: Sequence[str]) -> str:
    """Guess which image a mask was drawn on: one on its own grid, best one that its name names."""

    def fit(image: str) -> tuple[bool, bool]:
        a, b = volumes[mask], volumes[image]
        same = a.data.shape == b.data.shape and np.allclose(a.affine, b.affine, atol=1e-3)
        return same, image.lower() in mask.lower()

    return max(images, key=fit)
