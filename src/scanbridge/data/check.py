"""What can be wrong with the scans of a person: each fault a function of volumes, all of them collected."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scanbridge.data.align import alignment
from scanbridge.data.cohort import Cohort, ImageSpec, Kind, MaskSpec, Row
from scanbridge.data.foreground import foreground
from scanbridge.data.nifti import Volume, read
from scanbridge.errors import UserError

Level = Literal["error", "warning"]
Fault = tuple[Level, str, str]
"""How bad, what is wrong, what to do about it."""

_CT_AIR = -200.0  # HU; a body in air, padding or lung goes below
_MOST_SUV = 200.0  # even a full bladder stays below; Bq/ml do not
_LEAST_SUV = -1.0  # reconstruction leaves some noise below 0, not that much
_FAR, _COARSE = 10.0, 2.0  # a shift counts beyond this many mm and voxels of the coarser grid
_GAIN = 1.10  # and where it explains more by this factor


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Parameters
    ----------
    level
        ``"error"``: not to be used like this; ``"warning"``: to be looked at.
    subject, column, file
        Where: the row's name, the column, the file as the table names it. Empty where the whole table is meant.
    what, remedy
        What is wrong and what to do.
    """

    level: Level
    subject: str
    column: str
    file: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        where = ", ".join(part for part in (self.subject, self.column, self.file) if part)
        return f"{self.level}: {where}: {self.what}" + (f"; {self.remedy}" if self.remedy else "")


@dataclass(frozen=True, eq=False)  # arrays have no single truth of equality
class Scan:
    """An image that could be read, and its foreground on its own grid."""

    volume: Volume
    foreground: NDArray[np.bool_]

    @property
    def digest(self) -> str:
        """Hash of the voxels alone: the same scan packed anew, or under another header, is the same."""
        digest = hashlib.sha256(repr(self.volume.data.shape).encode())
        digest.update(np.ascontiguousarray(self.volume.data.T).data)
        return digest.hexdigest()


def check_row(cohort: Cohort, row: Row) -> tuple[list[Finding], dict[str, Scan]]:
    """Read all images and masks of a row; give what is wrong with them, and the images that could be read.

    Copies between people are not seen from one row: see `copies`.
    """
    findings: list[Finding] = []
    scans: dict[str, Scan] = {}

    def note(column: str, faults: list[Fault]) -> None:
        file = shown({**row.images, **row.masks}[column], cohort.path.parent)
        findings.extend(Finding(level, row.name, column, file, what, remedy) for level, what, remedy in faults)

    for column, file in row.images.items():
        volume, faults = _read(file)
        if volume is not None:
            kind = cohort.images[column].kind
            scans[column] = Scan(volume, foreground(volume.data, kind))
            faults += image_faults(cohort.images[column], scans[column])
        note(column, faults)
    usable = [column for column, scan in scans.items() if np.ptp(scan.volume.data) > 0]
    for column in usable[1:]:
        note(column, pair_faults(usable[0], scans[usable[0]].volume, scans[column].volume))
    for column, file in row.masks.items():
        spec = cohort.masks[column]
        volume, faults = _read(file, mask=True)
        if volume is not None:
            faults += mask_faults(spec, volume, scans.get(spec.on))
        note(column, faults)
    return findings, scans


def copies(row: Row, scans: dict[str, Scan], seen: dict[str, tuple[Row, str]], folder: Path) -> list[Finding]:
    """Name the scans that are another's voxel by voxel: of another person, or of another column of the row.

    Parameters
    ----------
    row, scans
        A row of the table and its images.
    seen
        Digest to the first row and column that had it; this row's are added.
    folder
        That of the table.
    """
    findings = []
    for column, scan in scans.items():
        other, its_column = seen.setdefault(scan.digest, (row, column))
        if other is row and its_column == column:
            continue
        if other is row or other.subject != row.subject:
            whose = "" if other is row else f" of {other.name}"
            what = f"holds the same voxels as {its_column}{whose} ({shown(other.images[its_column], folder)})"
            remedy = "find out whose scan it is and correct the path"
            findings.append(Finding("error", row.name, column, shown(row.images[column], folder), what, remedy))
    return findings


def image_faults(spec: ImageSpec, scan: Scan) -> list[Fault]:
    """Name what is wrong with one image by itself: constant, without foreground, not in its unit."""
    data = scan.volume.data
    low, high = float(data.min()), float(data.max())
    if low == high:
        return [("error", f"is constant ({low:g})", "convert it again, or empty the cell")]
    faults = [] if (wrong := _wrong_unit(spec.kind, data, low)) is None else [wrong]
    if not scan.foreground.any() and not faults:
        faults.append(("error", "has no foreground: nothing stands out of it", "look at the image and at its kind"))
    return faults


def _wrong_unit(kind: Kind, data: NDArray[np.float32], low: float) -> Fault | None:
    if kind == "ct" and low >= _CT_AIR:
        remedy = "apply the rescale slope and intercept, or declare kind = 'other' if air was cut off on purpose"
        return "error", f"is not in HU: its values run from {low:g} to {data.max():g}, and air is -1000", remedy
    if kind == "pet":
        top = float(np.percentile(data, 99.9))
        remedy = "divide by injected dose per body weight, or declare kind = 'other'"
        if top > _MOST_SUV:
            return "error", f"is not in SUV: its 99.9th percentile is {top:g}", remedy
        if low < _LEAST_SUV:
            return "error", f"is not in SUV: its smallest value is {low:g}", remedy
    return None


def pair_faults(name: str, first: Volume, second: Volume) -> list[Fault]:
    """Name what is wrong between an image and the row's first, called `name`: no overlap, mirrored, shifted."""
    found = alignment(first, second)
    if found.overlap < 0.01:
        return [("error", f"has no field of view in common with {name}", "register them, or correct the headers")]
    if found.mirrored > found.information:
        what = (
            f"is mirrored against {name}: flipped left to right it fits better "
            f"(mutual information {found.mirrored:.3f} instead of {found.information:.3f})"
        )
        return [("error", what, "find out which of the two has its sides right, by a scan with a marker, and convert")]
    faults: list[Fault] = []
    coarser = max(*first.grid.spacing, *second.grid.spacing)
    if found.distance > max(_FAR, _COARSE * coarser) and found.shifted > _GAIN * found.information:
        ways = zip(found.shift, ("LR", "PA", "IS"), strict=True)
        steps = ", ".join(f"{abs(mm):.0f} to {way[mm > 0]}" for mm, way in ways if abs(mm) >= 1)
        what = (
            f"is shifted against {name}: moved by {found.distance:.0f} mm ({steps}) it fits better "
            f"(mutual information {found.shifted:.3f} instead of {found.information:.3f})"
        )
        faults.append(("error", what, "register it, or correct the origin in its header"))
    elif found.overlap < 0.5:
        what = f"shares {100 * found.overlap:.0f} % of the smaller field of view with {name}"
        faults.append(("warning", what, "only what both hold can be learnt"))
    return faults


def mask_faults(spec: MaskSpec, mask: Volume, on: Scan | None) -> list[Fault]:
    """Name what is wrong with a mask: empty, beside the image that it was drawn on, outside the patient."""
    index = np.argwhere(mask.data > 0)
    if not len(index):
        level: Level = "error" if spec.role == "foreground" else "warning"
        return [(level, "is empty", "empty the cell if nobody has drawn it")]
    if on is None:
        return []
    position = (np.linalg.inv(on.volume.affine) @ mask.affine @ np.c_[index, np.ones(len(index))].T)[:3].T
    nearest = np.floor(position + 0.5).astype(np.intp)
    held = ((nearest >= 0) & (nearest < on.volume.data.shape)).all(1)
    if held.mean() < 0.99:
        what = f"lies with {100 * (1 - held.mean()):.0f} % of its voxels outside the field of view of {spec.on}"
        return [("error", what, f"give the mask that was drawn on {spec.on}, or change masks.*.on")]
    if spec.role == "region":
        body = on.foreground[tuple(nearest[held].T)].mean()
        if body < 0.5:
            what = f"lies with {100 * (1 - body):.0f} % of its voxels outside the foreground of {spec.on}"
            return [("warning", what, "look at the picture: is it this person's mask?")]
    return []


def shown(file: Path, folder: Path) -> str:
    """Give a file as the table in `folder` names it."""
    return str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file)


def _read(file: Path, *, mask: bool = False) -> tuple[Volume | None, list[Fault]]:
    if not file.exists():
        return None, [("error", "is missing", "correct the path, relative to the table, or empty the cell")]
    try:
        return read(file, mask=mask), []
    except UserError as error:
        what = error.what.removeprefix(str(file)).lstrip(": ")
        expected = f"expected {error.expected}" if error.expected else ""
        return None, [("error", what, "; ".join(part for part in (expected, error.remedy) if part))]
