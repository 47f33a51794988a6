"""`scanbridge simulate`: cohorts of people who do not exist, on disk, in the form of any other cohort.

``simulate_brain`` draws brains that look like MRI; ``simulate_known`` draws pairs whose law is known, so that the best
possible error can be computed. Both can be stopped at any moment and continued by the same call: files are written
whole or not at all, the table last, and person i is the same however many are asked for.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scanbridge.data import nifti, phantom, scanner, toys
from scanbridge.errors import UserError
from scanbridge.files import write_json, write_text

Progress = Callable[[int, int], None]

_MARK = "simulated.json"  # how a folder says that it is ours, and with which settings
_VERSION = 1  # raised when the same settings give other bytes
_N_FOLDS = 5
_UNIT = 10.0  # of the toys' 1, in units of a scale that all people share: SUV

_BRAIN_FILES = {"flair": "FLAIR", "t1w": "T1w", "t2w": "T2w", "t1w_gd": "ce-gd_T1w", "lesion": "lesion"}
_BRAIN_COLUMNS = """\
# What the columns of cohort.csv are. Simulated people: nobody was scanned.
[images.flair]
kind = "mr"
[images.t1w]
kind = "mr"
[images.t2w]
kind = "mr"
[images.t1w_gd]
kind = "mr"
[masks.lesion]
on = "flair"
[covariates.age]
type = "continuous"
unit = "years"
[covariates.sex]
type = "categorical"
[split]
column = "fold"
"""
_KNOWN_FILES = {"source": "source", "target": "target", "best": "best", "sd": "sd"}
_KNOWN_COLUMNS = """\
# What the columns of cohort.csv are. Given the source, the target is Gaussian with mean `best` and the sd `sd`.
# The unit is one that all people share, as that of PET, so that one law holds for all.
[images.source]
kind = "pet"
ceiling = 16
[images.target]
kind = "pet"
ceiling = 16
[images.best]
kind = "pet"
ceiling = 16
[images.sd]
kind = "pet"
[split]
column = "fold"
"""


def simulate_brain(
    out: Path, *, subjects: int, size: int = 96, seed: int = 0, progress: Progress | None = None
) -> Path:
    """Write a cohort of simulated brains: FLAIR, T1w, T2w, T1w after gadolinium, lesions, age and sex.

    Parameters
    ----------
    out
        Folder of the cohort; new, empty, or left by an earlier call with the same settings, which is then continued.
    subjects
        Number of people, 1 or more. Person i depends on `seed`, `size` and i alone.
    size
        Voxels an axis, 32 to 192; isotropic, over 192 mm, so 96 gives voxels of 2 mm.
    seed
        0 or more; the same seed gives the same bytes.
    progress
        Called as ``progress(done, subjects)`` after each person.

    Returns
    -------
    Path
        The table, ``out / "cohort.csv"``; ``cohort.toml`` lies beside it.

    Raises
    ------
    UserError
        When `out` holds something else, a number is out of range, or nilearn, which has the average brain, is missing.
    """
    _check_numbers(subjects, size, seed, least=32, most=192)
    _claim(out, {"simulated": "brain", "version": _VERSION, "seed": seed, "size": size})
    phantom.template()  # a missing package is said before the first person

    def draw(i: int) -> tuple[Mapping[str, NDArray[np.float32]], NDArray[np.float64]]:
        person = scanner.scan_person(seed, i, size=size)
        return {**person.images, "lesion": person.lesion}, person.affine

    rows = []
    for i in range(subjects):
        rows.append(_write_person(out, i, _BRAIN_FILES, draw))
        age, sex = scanner.covariates(seed, i)
        rows[-1] |= {"age": str(age), "sex": sex, "fold": str(i % _N_FOLDS)}
        if progress:
            progress(i + 1, subjects)
    return _write_table(out, rows, _BRAIN_COLUMNS)


def simulate_known(
    out: Path,
    *,
    subjects: int,
    size: int = 48,
    seed: int = 0,
    texture: float = 0.0,
    uneven: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a cohort of pairs whose law is known: target = best + residual, the residual Gaussian of known sd.

    ``best`` is E[target | source], and no prediction has a smaller mean squared error than the square of ``sd``, both
    images of the cohort in the target's unit. Source and law, with `texture` and `uneven`, are those of
    `scanbridge.data.toys.toy_known`. See `simulate_brain` for the other parameters; `size` is 16 to 192 voxels of
    192 / `size` mm. Nothing optional is needed.
    """
    _check_numbers(subjects, size, seed, least=16, most=192)
    _claim(
        out,
        {
            **{"simulated": "known", "version": _VERSION, "seed": seed, "size": size},
            **{"residual_sd": _UNIT * toys.TOY_SD, "texture": texture, "uneven": uneven},
        },
    )
    affine = np.diag([phantom.FIELD_OF_VIEW / size] * 3 + [1.0])

    def draw(i: int) -> tuple[Mapping[str, NDArray[np.float32]], NDArray[np.float64]]:
        pair = toys.toy_known(np.random.default_rng([seed, i]), (size, size, size), texture=texture, uneven=uneven)
        return {name: _UNIT * image for name, image in pair.items()}, affine

    rows = []
    for i in range(subjects):
        rows.append(_write_person(out, i, _KNOWN_FILES, draw) | {"fold": str(i % _N_FOLDS)})
        if progress:
            progress(i + 1, subjects)
    return _write_table(out, rows, _KNOWN_COLUMNS)


def _check_numbers(subjects: int, size: int, seed: int, *, least: int, most: int) -> None:
    if subjects < 1:
        raise UserError(f"--subjects {subjects}", "1 or more people")
    if not least <= size <= most:
        raise UserError(f"--size {size}", f"{least} to {most} voxels an axis", "96 gives voxels of 2 mm")
    if seed < 0:
        raise UserError(f"--seed {seed}", "0 or more")


def _claim(out: Path, settings: Mapping[str, str | int | float]) -> None:
    """Mark `out` as ours, or refuse it: another's files and another cohort's people are never mixed with these."""
    mark = out / _MARK
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file", "a folder", "give another --out")
    if mark.is_file():
        try:
            found = json.loads(mark.read_text("utf-8"))
        except ValueError:
            found = None
        if found != settings:
            raise UserError(f"{out} holds a cohort simulated as {found}", f"{dict(settings)}", "give another --out")
        return
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and was not simulated", "a new or empty folder", "give another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_json(mark, dict(settings))


def _write_person(
    out: Path,
    i: int,
    files: Mapping[str, str],
    draw: Callable[[int], tuple[Mapping[str, NDArray[np.float32]], NDArray[np.float64]]],
) -> dict[str, str]:
    """Draw person `i` and write what is not there yet; gives their row of the table."""
    name = f"sub-{i + 1:03d}"
    row = {column: f"{name}/{name}_{stem}.nii.gz" for column, stem in files.items()}
    if not all((out / path).is_file() for path in row.values()):
        images, affine = draw(i)
        (out / name).mkdir(exist_ok=True)
        for column, path in row.items():
            if not (out / path).is_file():
                nifti.write(out / path, images[column], affine)
    return {"subject": name, **row}


def _write_table(out: Path, rows: list[dict[str, str]], columns: str) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / "cohort.toml", columns)
    write_text(out / "cohort.csv", text.getvalue())
    return out / "cohort.csv"
