"""One visit on the model grid, prepared once and then served from memory maps."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scanbridge.data.cohort import Cohort, Row
from scanbridge.data.foreground import foreground
from scanbridge.data.grid import Grid, model_grid, resample
from scanbridge.data.intensity import Scale, scale_of
from scanbridge.data.nifti import Volume, read
from scanbridge.errors import UserError, nearest
from scanbridge.files import sha256

_VERSION = 2  # raise it whenever the same files would give other arrays
_STALE = 24 * 3600  # seconds


@dataclass(frozen=True, eq=False)  # arrays have no single truth of equality
class Case:
    """One row of a cohort on the model grid.

    Parameters
    ----------
    name, subject
        As in the table.
    source
        (D, H, W) float16 in [-1, 1], a memory map; -1 outside its field of view.
    targets
        Name to the like; a target that the row lacks is absent.
    inside
        Image name (the source too) to (D, H, W) bool: within that image's field of view.
    foreground
        (D, H, W) bool, from the source alone.
    grid
        The model grid.
    source_grid
        The source's own grid.
    scales
        Image name to the scale that decodes it.
    clipped
        Image name to the share of foreground voxels outside its scale, on its own grid.
    content
        Image or foreground mask to the SHA-256 of its file.
    covariates
        As in the table.
    gain
        Factor of the source's intensity that a run applies before its networks see it.
    """

    name: str
    subject: str
    source: NDArray[np.float16]
    targets: dict[str, NDArray[np.float16]]
    inside: dict[str, NDArray[np.bool_]]
    foreground: NDArray[np.bool_]
    grid: Grid
    source_grid: Grid
    scales: dict[str, Scale]
    clipped: dict[str, float]
    content: dict[str, str]
    covariates: dict[str, float | str]
    gain: float = 1.0


def prepare(
    cohort: Cohort,
    row: Row,
    *,
    source: str,
    targets: Sequence[str],
    spacing: tuple[float, float, float],
    orientation: str,
    on: str,
    folder: Path,
) -> Case:
    """Bring one row of a cohort to the model grid, or find it there.

    Parameters
    ----------
    cohort, row
        The cohort and one of its rows.
    source, targets
        Image columns. Targets that the row lacks are left out.
    spacing, orientation
        Of the model grid: mm in array order, and a code such as ``"SPL"``.
    on
        The image column whose axes and field of view the model grid follows.
    folder
        The cache. An entry is named by the hash of all that it depends on; it appears there whole or not at all, so any
        number of processes may prepare the same row.

    Raises
    ------
    UserError
        For a column that the cohort or the row lacks, and for whatever is wrong with a file.
    """
    for column in (source, *targets, on):
        if column not in cohort.images:
            raise UserError(f"{cohort.path} has no image '{column}'", "", nearest(column, cohort.images))
    for column in (source, on):
        if column not in row.images:
            raise UserError(
                f"{cohort.path}: '{row.name}' has no {column}", "the source and the image that gives the grid"
            )
    images = list(dict.fromkeys([source, *(target for target in targets if target in row.images)]))
    files = {column: row.images[column] for column in dict.fromkeys([*images, on])}
    mask = cohort.foreground_mask(row, source)
    files |= {mask: row.masks[mask]} if mask else {}
    content = {column: sha256(file) for column, file in files.items()}
    recipe = {
        "version": _VERSION,
        "images": [[column, asdict(cohort.images[column])] for column in images],
        "grid": [list(map(float, spacing)), orientation, on],
        "content": content,
    }
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:32]
    entry = folder / key
    if not entry.is_dir():
        _sweep(folder)
        volumes = {column: read(file, mask=column in cohort.masks) for column, file in files.items()}
        changed = [str(files[column]) for column, volume in volumes.items() if volume.sha256 != content[column]]
        if changed:
            raise UserError(f"{changed[0]} changed while it was read", "files that stay as they are")
        grid = model_grid(volumes[on].grid, spacing=spacing, orientation=orientation)
        _store(entry, _built(cohort, volumes, images, grid))
    return _opened(entry, row, images, content)


def _sweep(folder: Path) -> None:
    """Remove what killed processes left half-made, a day after: no entry takes that long."""
    for part in folder.glob(".*.part"):
        with suppress(OSError):  # another process may sweep too
            if time.time() - part.stat().st_mtime > _STALE:
                shutil.rmtree(part, ignore_errors=True)


def _built(
    cohort: Cohort, volumes: dict[str, Volume], images: Sequence[str], grid: Grid
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Give the arrays of an entry and what is said about them."""
    source = volumes[images[0]]
    mask = next((volume for name, volume in volumes.items() if name in cohort.masks), None)
    if mask is None:
        body = foreground(source.data, cohort.images[images[0]].kind)
    else:
        body = resample(mask.data, mask.grid, source.grid, order=0)[0] > 0
    arrays: dict[str, NDArray[Any]] = {"foreground": resample(body, source.grid, grid, order=0)[0] > 0}
    about: dict[str, Any] = {"grid": _said(grid), "source_grid": _said(source.grid), "images": {}}
    for index, name in enumerate(images):
        volume = volumes[name]
        own = resample(body, source.grid, volume.grid, order=0)[0] > 0
        try:
            scale = scale_of(cohort.images[name], volume.data, own)
        except UserError as error:
            raise UserError(f"{volume.path}: {error.what}", error.expected, error.remedy) from error
        values, inside = resample(volume.data, volume.grid, grid, fill=scale.low)
        arrays[f"image-{index}"] = scale.encode(values).astype(np.float16)
        arrays[f"inside-{index}"] = inside
        about["images"][name] = {"scale": asdict(scale), "clipped": scale.clipped_share(volume.data[own])}
    return arrays, about


def _said(grid: Grid) -> dict[str, Any]:
    return {"shape": list(grid.shape), "affine": grid.affine.tolist()}


def _store(entry: Path, built: tuple[dict[str, NDArray[Any]], dict[str, Any]]) -> None:
    """Write an entry beside its place and rename it there; who comes second drops his own."""
    arrays, about = built
    part = entry.with_name(f".{entry.name}.{uuid.uuid4().hex}.part")
    try:
        part.mkdir(parents=True)
        for name, array in arrays.items():
            with (part / f"{name}.npy").open("wb") as file:
                np.save(file, np.ascontiguousarray(array), allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
        with (part / "case.json").open("w", encoding="utf-8") as text:
            json.dump(about, text, indent=1)
            text.flush()
            os.fsync(text.fileno())
        try:
            part.rename(entry)
        except OSError:
            if not entry.is_dir():
                raise
    except OSError as error:
        raise UserError(f"cache {entry.parent} cannot be written ({error.strerror})", "a folder with room") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _opened(entry: Path, row: Row, images: Sequence[str], content: dict[str, str]) -> Case:
    """Map an entry into memory."""
    try:
        about = json.loads((entry / "case.json").read_text(encoding="utf-8"))
        arrays = {file.stem: np.load(file, mmap_mode="r", allow_pickle=False) for file in entry.glob("*.npy")}
        values = {name: arrays[f"image-{index}"] for index, name in enumerate(images)}
        inside = {name: arrays[f"inside-{index}"] for index, name in enumerate(images)}
        mask = arrays["foreground"]
        grid, source_grid = (
            Grid(tuple(g["shape"]), np.array(g["affine"])) for g in (about["grid"], about["source_grid"])
        )
        scales = {name: Scale(**about["images"][name]["scale"]) for name in images}
        clipped = {name: float(about["images"][name]["clipped"]) for name in images}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cache entry {entry} is damaged ({error})", "", "remove it; it is made again") from error
    return Case(
        name=row.name,
        subject=row.subject,
        source=values[images[0]],
        targets={name: values[name] for name in images[1:]},
        inside=inside,
        foreground=mask,
        grid=grid,
        source_grid=source_grid,
        scales=scales,
        clipped=clipped,
        content=content,
        covariates=row.covariates,
    )
