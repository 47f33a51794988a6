"""Laws of the check: every fault that is planted is named where it lies, and a clean person has none."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scanbridge.data.align import alignment
from scanbridge.data.check import check_row, copies
from scanbridge.data.cohort import read_cohort
from scanbridge.data.nifti import Volume, read, write
from scanbridge.data.toys import toy_pair

AFFINE = np.diag([6.0, 6.0, 6.0, 1.0])
SHAPE = (24, 28, 26)
TOML = """
[images.t1w]
kind = "mr"
[images.ct]
kind = "ct"
[images.pet]
kind = "pet"
[masks.lesion]
on = "t1w"
"""


def moved(mm: tuple[float, float, float]) -> np.ndarray:
    affine = AFFINE.copy()
    affine[:3, 3] += mm
    return affine


@pytest.fixture
def person(tmp_path):
    """One clean person on disk, and what the check says of them, as text without the files' folder."""
    source, target, head = toy_pair(np.random.default_rng(3), SHAPE)
    lesion = np.zeros(SHAPE)
    lesion[10:12, 12:15, 12:14] = 1
    write(tmp_path / "t1w.nii.gz", 500 * source, AFFINE)
    write(tmp_path / "ct.nii.gz", np.where(head, 200 * target - 50, -1000), AFFINE)
    write(tmp_path / "pet.nii.gz", 8 * target, AFFINE)
    write(tmp_path / "lesion.nii.gz", lesion, AFFINE)
    (tmp_path / "cohort.csv").write_text(
        "subject,t1w,ct,pet,lesion\np1,t1w.nii.gz,ct.nii.gz,pet.nii.gz,lesion.nii.gz\n"
    )
    (tmp_path / "cohort.toml").write_text(TOML)
    return tmp_path


def found(folder: Path) -> list[str]:
    cohort = read_cohort(folder / "cohort.csv")
    return [str(finding) for finding in check_row(cohort, cohort.rows[0])[0]]


def changed(folder: Path, name: str, change=lambda data: data, affine=None) -> None:
    volume = read(folder / f"{name}.nii.gz")
    write(folder / f"{name}.nii.gz", change(volume.data), volume.affine if affine is None else affine)


def test_a_clean_person_has_no_finding(person):
    assert found(person) == []


def truncated(folder):
    (folder / "ct.nii.gz").write_bytes((folder / "ct.nii.gz").read_bytes()[:2000])


def holed(folder):
    volume = read(folder / "ct.nii.gz")
    data = volume.data.copy()
    data[5:7, 5, 5] = np.nan
    nib.save(nib.Nifti1Image(data, volume.affine), folder / "ct.nii.gz")


def two_forms(folder):
    image = nib.Nifti1Image(read(folder / "ct.nii.gz").data, AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(moved((12, 0, 0)), 1)
    nib.save(image, folder / "ct.nii.gz")


PLANTED = {
    "truncated": (truncated, "error", "ct", "truncated or damaged"),
    "NaN": (holed, "error", "ct", "holds 2 of"),
    "forms": (two_forms, "error", "ct", "its sform and its qform disagree by up to 12.00 mm"),
    "text": (lambda f: (f / "ct.nii.gz").write_text("<html>"), "error", "ct", "less than a header"),
    "constant": (lambda f: changed(f, "ct", lambda d: 0 * d + 7), "error", "ct", "is constant (7)"),
    "raw CT": (lambda f: changed(f, "ct", lambda d: d + 1024), "error", "ct", "is not in HU"),
    "Bq/ml": (lambda f: changed(f, "pet", lambda d: 900 * d), "error", "pet", "is not in SUV"),
    "negative PET": (lambda f: changed(f, "pet", lambda d: d - 4), "error", "pet", "smallest value is -4"),
    "elsewhere": (
        lambda f: changed(f, "ct", affine=moved((0, 0, 900))),
        "error",
        "ct",
        "has no field of view in common with t1w",
    ),
    "mirrored": (lambda f: changed(f, "ct", lambda d: d[::-1]), "error", "ct", "is mirrored against t1w"),
    "shifted": (
        lambda f: changed(f, "ct", affine=moved((0, 30, 0))),
        "error",
        "ct",
        "is shifted against t1w: moved by 3",
    ),
    "empty mask": (lambda f: changed(f, "lesion", lambda d: 0 * d), "warning", "lesion", "is empty"),
    "mask that is none": (lambda f: changed(f, "lesion", lambda d: d / 2), "error", "lesion", "is no mask"),
    "mask elsewhere": (
        lambda f: changed(f, "lesion", affine=moved((0, 0, 400))),
        "error",
        "lesion",
        "lies with 100 % of its voxels outside the field of view of t1w",
    ),
    "mask in air": (
        lambda f: changed(f, "lesion", lambda d: np.roll(d, (-10, -12, -12), (0, 1, 2))),
        "warning",
        "lesion",
        "outside the foreground of t1w",
    ),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_named_with_its_place_and_nothing_else_is(fault, person):
    plant, level, column, said = PLANTED[fault]
    plant(person)
    (finding,) = found(person)
    assert finding.startswith(f"{level}: p1, {column}, {column}.nii.gz: ")
    assert said in finding
    assert str(person) not in finding
    assert "; " in finding, "no remedy"


def test_all_faults_of_a_person_are_collected(person):
    for fault in ("truncated", "Bq/ml", "empty mask"):
        PLANTED[fault][0](person)
    assert len(found(person)) == 3


def test_a_shift_is_measured(person):
    first = read(person / "t1w.nii.gz")
    second = read(person / "ct.nii.gz")
    for mm in ((0.0, 30.0, 0.0), (-24.0, 0.0, 18.0)):
        there = alignment(first, Volume(second.data, moved(mm), None, ""))
        assert np.allclose(there.shift, np.negative(mm), atol=5)
        assert there.shifted > 1.5 * there.information


def test_a_shift_of_a_voxel_and_a_small_gain_are_no_faults(person):
    changed(person, "ct", affine=moved((0, 6, 0)))
    assert found(person) == []


def test_a_copy_is_named_whoever_has_it_and_however_it_is_packed(person):
    volume = read(person / "t1w.nii.gz")
    nib.save(nib.Nifti1Image(volume.data, AFFINE), person / "again.nii")
    table = person / "cohort.csv"
    table.write_text(table.read_text() + "p2,again.nii,ct.nii.gz,,\n")
    cohort, seen = read_cohort(table), {}
    (first, scans), (second, others) = ((row, check_row(cohort, row)[1]) for row in cohort.rows)
    assert copies(first, scans, seen, person) == []
    one, two = map(str, copies(second, others, seen, person))
    assert one.startswith("error: p2, t1w, again.nii: holds the same voxels as t1w of p1 (t1w.nii.gz)")
    assert two.startswith("error: p2, ct, ct.nii.gz: holds the same voxels as ct of p1")


def test_a_source_that_is_its_own_target_is_named(person):
    (person / "cohort.toml").write_text('[images.t1w]\nkind = "mr"\n[images.t2w]\nkind = "mr"\n')
    (person / "cohort.csv").write_text("subject,t1w,t2w\np1,t1w.nii.gz,t1w.nii.gz\n")
    cohort = read_cohort(person / "cohort.csv")
    (finding,) = copies(cohort.rows[0], check_row(cohort, cohort.rows[0])[1], {}, person)
    assert str(finding).startswith("error: p1, t2w, t1w.nii.gz: holds the same voxels as t1w (t1w.nii.gz)")


def test_another_visit_may_use_the_same_scan(person):
    (person / "cohort.toml").write_text('[images.t1w]\nkind = "mr"\n')
    (person / "cohort.csv").write_text("subject,visit,t1w\np1,a,t1w.nii.gz\np1,b,t1w.nii.gz\n")
    cohort, seen = read_cohort(person / "cohort.csv"), {}
    assert [copies(row, check_row(cohort, row)[1], seen, person) for row in cohort.rows] == [[], []]
