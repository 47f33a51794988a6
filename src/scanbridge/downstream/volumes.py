"""Subjects of a downstream task as arrays: source, synthetic and real target on one grid that a small network takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scanbridge.data.box import box_of
from scanbridge.data.cache import Case, prepare
from scanbridge.data.cohort import Row
from scanbridge.data.grid import Grid, resample
from scanbridge.data.intensity import Scale
from scanbridge.data.nifti import Volume, read
from scanbridge.downstream.plan import Plan
from scanbridge.errors import UserError
from scanbridge.files import read_json
from scanbridge.options import Options
from scanbridge.translate import stem, translate_file

MULTIPLE = 8
"""A segmenter halves three times."""
BACKGROUND = -1.0

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Field:
    """The grid that all subjects share, each about the middle of its own foreground: voxels, and their size in mm."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]


@dataclass(frozen=True, eq=False)  # arrays have no single truth of equality
class Sample:
    """One row of the table for a network.

    Parameters
    ----------
    name, subject
        As in the table.
    images
        (3, D, H, W): source, synthetic target, real target, each in [-1, 1]; -1 outside its field of view.
    foreground
        (D, H, W), of the source.
    truth
        The class, or the mask (D, H, W).
    grid
        Where the arrays lie.
    """

    name: str
    subject: str
    images: Array
    foreground: NDArray[np.bool_]
    truth: int | NDArray[np.bool_]
    grid: Grid


def samples_of(
    plan: Plan,
    out: Path,
    cache: Path,
    told: Callable[[float, str], None] = lambda done, words: None,  # noqa: ARG005
) -> list[Sample]:
    """Translate every row that is not translated yet, and bring all images and masks to one grid.

    Parameters
    ----------
    plan
        Who takes part.
    out, cache
        Folder of the translations, one a row; and of the scans on the model grid.
    told
        Called with the number of rows done and words.

    Raises
    ------
    UserError
        If a file cannot be read, a scan has no foreground, or all masks vanish on the grid.
    """
    source, target = plan.names
    grid = plan.first.common.grid
    cases = []
    for row in plan.rows:
        case = prepare(
            plan.table,
            row,
            source=source,
            targets=[target],
            spacing=(grid.spacing[0], grid.spacing[1], grid.spacing[2]),
            orientation=grid.orientation,
            on=source if grid.on == "source" else grid.on,
            folder=cache,
        )
        if not case.foreground.any():
            raise UserError(f"{row.images[source]} has no foreground", "a scan with something in it", "look at 'check'")
        cases.append(case)
    field = field_of(cases, plan.settings.size, plan.settings.dims)
    samples = []
    for index, (row, case) in enumerate(zip(plan.rows, cases, strict=True)):

        def calling(call: int, calls: int, index: int = index, row: Row = row) -> None:
            told(index + call / calls * 0.99, f"translating {row.name}")

        samples.append(_sample(plan, row, case, _translated(plan, row, out, calling), field))
        told(index + 1, f"translating {row.name}")
    if plan.settings.kind == "segment" and not any(np.any(sample.truth) for sample in samples):
        what = f"{plan.column} vanishes on a grid of {max(field.spacing):.1f} mm"
        raise UserError(what, "a mask of more than a voxel there", f"--size {2 * plan.settings.size}")
    return samples


def field_of(cases: Sequence[Case], size: int, dims: int) -> Field:
    """Give the finest common grid that holds every foreground in at most ``size ** dims`` voxels.

    In 2D a slice has at most ``size ** 2`` pixels, and slices are as far apart as pixels are wide. The grid is never
    finer than the model grid, and axes that a network halves are multiples of eight.
    """
    boxes = [box_of(case.foreground) for case in cases]
    extents = [
        [(span.stop - span.start) * step for span, step in zip(box, case.grid.spacing, strict=True)]
        for box, case in zip(boxes, cases, strict=True)
    ]
    largest = [max(axis) for axis in zip(*extents, strict=True)]
    own = [min(case.grid.spacing[axis] for case in cases) for axis in range(3)]
    halved = range(3 - dims, 3)
    step = max(own[axis] for axis in halved)
    while True:
        shape = [math.ceil(mm / max(step, each)) for mm, each in zip(largest, own, strict=True)]
        shape = [-(-n // MULTIPLE) * MULTIPLE if axis in halved else n for axis, n in enumerate(shape)]
        if math.prod(shape[axis] for axis in halved) <= size**dims:
            break
        step *= 1.01
    spacing = [max(step, each) for each in own]
    return Field((shape[0], shape[1], shape[2]), (spacing[0], spacing[1], spacing[2]))


def field_grid(case: Case, field: Field) -> Grid:
    """Lay the common grid along the model grid of a case, about the middle of its foreground."""
    own = case.grid
    middle = [(span.start + span.stop - 1) / 2 for span in box_of(case.foreground)]
    affine = np.eye(4)
    affine[:3, :3] = own.affine[:3, :3] / np.asarray(own.spacing) * np.asarray(field.spacing)
    centre = own.affine[:3, :3] @ np.asarray(middle) + own.affine[:3, 3]
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.asarray(field.shape) - 1) / 2)
    return Grid(field.shape, affine)


def _sample(plan: Plan, row: Row, case: Case, made: tuple[Volume, Scale], field: Field) -> Sample:
    grid = field_grid(case, field)
    volume, scale = made
    images = [
        resample(values, own, grid, fill=BACKGROUND)[0]
        for values, own in (
            (case.source.astype(np.float32), case.grid),
            (scale.encode(volume.data), volume.grid),
            (case.targets[plan.names[1]].astype(np.float32), case.grid),
        )
    ]
    truth: int | NDArray[np.bool_]
    if plan.settings.kind == "segment":
        mask = read(row.masks[plan.column], mask=True)
        truth = resample((mask.data > 0).astype(np.float32), mask.grid, grid)[0] >= 0.5
    else:
        truth = plan.label(row)
    foreground = resample(case.foreground, case.grid, grid, order=0)[0] > 0
    return Sample(row.name, row.subject, np.stack(images), foreground, truth, grid)


def _translated(plan: Plan, row: Row, out: Path, calling: Callable[[int, int], None]) -> tuple[Volume, Scale]:
    """Give the estimate of a row on the model grid of its run, and the scale that it was written on."""
    model, (source, target) = plan.models[plan.by[row.name]], plan.names
    options = Options(on="model", interval=False, foreground=plan.table.foreground_file(row, source))
    folder = out / row.name  # scans of several people may have one file name
    translate_file(model, row.images[source], folder, options, on_call=calling)
    base = folder / f"{stem(row.images[source])}_{target}"
    said = read_json(base.with_name(f"{base.name}.json"))["scale"]
    return read(base.with_name(f"{base.name}.nii.gz")), Scale(said["low"], said["high"], said["unit"])
