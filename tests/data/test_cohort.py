"""Laws of cohorts: what a table says is what is read, and every mistake is named with its remedy."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scanbridge.data.cohort import CovariateSpec, ImageSpec, MaskSpec, read_cohort
from scanbridge.data.nifti import write
from scanbridge.data.split import choose_split
from scanbridge.errors import UserError

TOML = """
[images.flair]
kind = "mr"
[images.ct]
kind = "ct"
window = [-200, 300]
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
HEADER = "subject,visit,flair,ct,lesion,age,sex,fold"
ROWS = ["007,,a.nii,b.nii,m.nii,53,F,0", "p2,w0,a.nii,,,,,1", "p2,w4,b.nii,a.nii,,41.5,M,1"]


def table(folder: Path, *rows: str, header: str = HEADER, toml: str | None = TOML, name: str = "cohort.csv") -> Path:
    for file in ("a.nii", "b.nii", "m.nii"):
        (folder / file).touch()
    (folder / name).write_text("\n".join([header, *(rows or ROWS)]) + "\n", encoding="utf-8")
    if toml is not None:
        (folder / name).with_suffix(".toml").write_text(toml, encoding="utf-8")
    return folder / name


def test_a_cohort_is_what_its_table_says(tmp_path):
    cohort = read_cohort(table(tmp_path))
    assert cohort.images == {"flair": ImageSpec("mr"), "ct": ImageSpec("ct", window=(-200, 300))}
    assert cohort.masks == {"lesion": MaskSpec("flair", "region")}
    assert cohort.covariates == {"age": CovariateSpec("continuous", "years"), "sex": CovariateSpec("categorical")}
    assert not cohort.guessed
    one, two, three = cohort.rows
    assert [row.name for row in cohort.rows] == ["007", "p2_w0", "p2_w4"]
    assert [row.subject for row in cohort.rows] == ["007", "p2", "p2"]
    assert one.images == {"flair": tmp_path / "a.nii", "ct": tmp_path / "b.nii"}
    assert one.masks == {"lesion": tmp_path / "m.nii"}
    assert one.covariates == {"age": 53.0, "sex": "F"}
    assert (two.images, two.masks, two.covariates) == ({"flair": tmp_path / "a.nii"}, {}, {})
    assert three.covariates == {"age": 41.5, "sex": "M"}
    assert [row.group for row in cohort.rows] == ["0", "1", "1"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_what_spreadsheets_make_of_a_table_is_read(delimiter, tmp_path):
    path = table(tmp_path)
    expected = read_cohort(path).rows
    text = path.read_text().replace(",", f"{delimiter} ").replace("\n", f"{delimiter}\r\n") + delimiter * 8 + "\r\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_cohort(path).rows == expected


def test_paths_are_relative_to_the_table_and_may_leave_it_where_the_user_says_so(tmp_path, monkeypatch):
    folder = tmp_path / "study"
    folder.mkdir()
    (tmp_path / "far.nii").touch()
    rows = ["p1,,../far.nii,,,,,", f"p2,,{tmp_path / 'far.nii'},,,,,", "p3,,~/x.nii,,,,,", "p4,,$HOME/x.nii,,,,,"]
    monkeypatch.chdir(tmp_path)
    first, second = read_cohort(table(folder, *rows[:2]).relative_to(tmp_path)).rows
    assert first.images["flair"].samefile(second.images["flair"])
    assert all(row.images["flair"].is_absolute() for row in (first, second))
    with pytest.raises(UserError) as caught:  # nothing is expanded behind the user's back
        read_cohort(table(folder, *rows))
    assert f"{folder}/~/x.nii" in str(caught.value)
    assert f"{folder}/$HOME/x.nii" in str(caught.value)


MISTAKES = {
    "key of an image": ('window = [-200, 300]', "windw = [-200, 300]", "images.ct.windw is not a known key, did"),
    "key of a mask": ('on = "flair"', 'onn = "flair"', "masks.lesion.onn is not a known key, did you mean 'on'?"),
    "section": ("[masks.lesion]", "[mask.lesion]", "mask is not a known key, did you mean 'masks'?"),
    "key of the split": ('column = "fold"', 'colum = "fold"', "split.colum is not a known key, did you mean 'column'?"),
    "kind": ('kind = "mr"', 'kind = "mri"', "images.flair.kind = 'mri', did you mean 'mr'?"),
    "kind that is none": ('kind = "mr"', 'kind = "ultrasound"', "one of: ct, mr, other, pet"),
    "no kind": ('kind = "mr"', "", "images.flair.kind is missing"),
    "type": ('"continuous"', '"continous"', "covariates.age.type = 'continous', did you mean 'continuous'?"),
    "role": ('on = "flair"', 'on = "flair"\nrole = "forground"', "did you mean 'foreground'?"),
    "window that falls": ("[-200, 300]", "[300, -200]", "images.ct.window"),
    "window that is empty": ("[-200, 300]", "[300, 300]", "images.ct.window"),
    "window of three": ("[-200, 300]", "[1, 2, 3]", "images.ct.window"),
    "window of words": ("[-200, 300]", '["-200", "300"]', "images.ct.window.0"),
    "window without end": ("[-200, 300]", "[-200, inf]", "images.ct.window.1"),
    "window without effect": ('kind = "mr"', 'kind = "mr"\nwindow = [0, 1]', "images.flair.window has no effect"),
    "ceiling without effect": ('kind = "mr"', 'kind = "mr"\nceiling = 5.0', "images.flair.ceiling has no effect"),
    "ceiling below zero": ('kind = "mr"', 'kind = "pet"\nceiling = -5.0', "images.flair.ceiling"),
    "image column": ("images.flair", "images.flare", "images.flare: the table has no such column, did you mean"),
    "covariate column": ("covariates.age", "covariates.ages", "covariates.ages: the table has no such column"),
    "split column": ('"fold"', '"folds"', "split.column = 'folds': the table has no such column, did you mean 'fold'?"),
    "mask on nothing": ('on = "flair"', 'on = "flare"', "masks.lesion.on = 'flare' is no image, did you mean 'flair'?"),
    "one column, two things": ("covariates.age", "covariates.ct", "column 'ct' is said to be two things"),
    "subject as a covariate": ("covariates.age", "covariates.subject", "column 'subject' is said to be two things"),
    "no TOML": ("[images.flair]", "[images.flair", "cannot be read"),
    "a kind for a section": ('[images.flair]\nkind = "mr"', '[images]\nflair = "mr"', "images.flair = 'mr'"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_toml_is_named_with_file_key_and_remedy(name, tmp_path):
    right, wrong, said = MISTAKES[name]
    assert right in TOML
    path = table(tmp_path, toml=TOML.replace(right, wrong, 1))
    with pytest.raises(UserError) as caught:
        read_cohort(path)
    assert str(path.with_suffix(".toml")) in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


ROWS_WITH_MISTAKES = {
    "no rows": (["", ""], "holds no rows"),
    "same subject twice": (["p1,,a.nii,,,,,", "p1,,b.nii,,,,,"], "2 rows are 'p1': tell the visits"),
    "same visit twice": (["p1,w0,a.nii,,,,,", "p1,w0,b.nii,,,,,"], "2 rows are 'p1_w0'"),
    "names that fall together": (["p1,0,a.nii,,,,,", "p1,1,a.nii,,,,,", "p1_0,,a.nii,,,,,"], "2 rows are 'p1_0'"),
    "visits in two groups": (["p1,w0,a.nii,,,,,0", "p1,w4,b.nii,,,,,1"], "subject 'p1' is in 2 groups"),
    "no subject": (["p1,,a.nii,,,,,", ",,b.nii,,,,,"], "line 3: the subject is missing"),
    "no image": (["p1,,,,m.nii,,,"], "line 2: 'p1' has no image"),
    "a path as subject": (["../p1,,a.nii,,,,,"], "'../p1' cannot be part of a file name"),
    "age in words": (["p1,,a.nii,,,old,,"], "line 2, age: 'old' is no number"),
    "age not a number": (["p1,,a.nii,,,nan,,"], "line 2, age: 'nan' is no number"),
    "a cell too many": (["p1,,a.nii,,,,,,7"], "line 2: a cell without a column"),
}


@pytest.mark.parametrize("name", ROWS_WITH_MISTAKES)
def test_a_mistake_in_the_table_is_named_with_its_line(name, tmp_path):
    rows, said = ROWS_WITH_MISTAKES[name]
    path = table(tmp_path, *rows)
    with pytest.raises(UserError) as caught:
        read_cohort(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_all_findings_are_said_at_once(tmp_path):
    rows = [f"p{i},,a.nii,,,old,,{i}" for i in range(9)]
    with pytest.raises(UserError) as caught:
        read_cohort(table(tmp_path, *rows))
    assert str(caught.value).count("is no number") == 5
    assert "and 4 more" in str(caught.value)


def test_all_missing_files_are_said_at_once_five_by_name(tmp_path):
    rows = ["p0,,a.nii,,,,,", *(f"p{i},,gone-{i}.nii,a.nii,,,," for i in range(1, 8))]
    with pytest.raises(UserError, match="7 of 8 files are missing") as caught:
        read_cohort(table(tmp_path, *rows))
    assert [f"gone-{i}.nii" in str(caught.value) for i in range(1, 8)] == [True] * 5 + [False] * 2
    assert "and 2 more" in str(caught.value)
    with pytest.raises(UserError, match="1 of 2 files is missing"):
        read_cohort(table(tmp_path, *rows[:2]))


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (HEADER.replace("subject", "sujbect"), "has no column 'subject'; expected .* did you mean 'sujbect'"),
        (HEADER.replace("sex", "age"), "column 'age' stands there twice"),
        ("", "has no column 'subject'|cell without a column"),
    ],
)
def test_a_mistake_in_the_line_of_column_names_is_named(header, said, tmp_path):
    with pytest.raises(UserError, match=said):
        read_cohort(table(tmp_path, header=header))


def test_what_is_no_table_is_refused_by_name(tmp_path):
    for name, content in {
        "a.csv": None,
        "b.csv": b"",
        "c.csv": "subjéct,a\n1,2\n".encode("latin-1"),
        "d.csv": b"PK\x00\xff",
    }.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            read_cohort(tmp_path / name)
    (tmp_path / "e.csv").mkdir()
    with pytest.raises(UserError, match=r"e\.csv"):
        read_cohort(tmp_path / "e.csv")


def scans(folder: Path) -> Path:
    """Images of all kinds and no TOML."""
    rng, affine = np.random.default_rng(0), np.diag([2.0, 2, 2, 1])
    fine = np.diag([1.0, 1, 1, 1])
    images = {
        "t1": (rng.uniform(-60, 900, (6, 6, 6)), affine),
        "planning": (rng.integers(-1000, 900, (8, 8, 8)), fine),
        "contrast_ct": (rng.integers(-90, 900, (6, 6, 6)), affine),
        "SUVbw": (rng.uniform(0, 9, (6, 6, 6)), affine),
        "gtv": (rng.integers(0, 2, (8, 8, 8)), fine),
        "lesion_labels": (rng.integers(0, 4, (6, 6, 6)), affine),
        "lesion_score": (rng.uniform(0, 1, (6, 6, 6)), affine),
    }
    for name, (data, at) in images.items():
        write(folder / f"{name}.nii.gz", data, at)
    columns = ["subject", *images, "age", "sex", "fold", "remark", "empty"]
    files = [f"{name}.nii.gz" for name in images]
    lines = [
        [f"p{i}", *files[:4], *(files[4:] if i else ["", "", ""]), f"{50 + i}.5", "FM"[i % 2], str(i % 2), f"r{i}", ""]
        for i in range(4)
    ]
    (folder / "study.csv").write_text("\n".join(",".join(row) for row in [columns, *lines]))
    return folder / "study.csv"


def test_a_toml_is_guessed_written_beside_and_said(tmp_path, caplog):
    path = scans(tmp_path)
    with caplog.at_level(logging.WARNING):
        cohort = read_cohort(path)
    assert cohort.guessed
    assert "study.toml was guessed" in caplog.text
    assert {name: spec.kind for name, spec in cohort.images.items()} == {
        "t1": "mr",
        "planning": "ct",
        "contrast_ct": "ct",
        "SUVbw": "pet",
        "lesion_score": "mr",
    }
    assert cohort.masks == {"gtv": MaskSpec("planning"), "lesion_labels": MaskSpec("t1")}
    assert cohort.covariates == {"age": CovariateSpec("continuous"), "sex": CovariateSpec("categorical")}
    assert cohort.split_column == "fold"
    caplog.clear()
    again = read_cohort(path)
    assert not again.guessed
    assert not caplog.text
    assert again.images == cohort.images
    assert again.rows == cohort.rows


def test_a_mask_is_guessed_to_lie_on_the_image_whose_name_it_bears(tmp_path):
    for name in ("pet", "ct", "tumour_ct", "tumour_pet"):
        write(tmp_path / f"{name}.nii", np.arange(27).reshape(3, 3, 3) % (2 if "tumour" in name else 20), np.eye(4))
    header = "subject,pet,ct,tumour_ct,tumour_pet"
    path = table(tmp_path, "p1,pet.nii,ct.nii,tumour_ct.nii,tumour_pet.nii", header=header, toml=None)
    assert read_cohort(path).masks == {"tumour_ct": MaskSpec("ct"), "tumour_pet": MaskSpec("pet")}


def test_what_cannot_be_guessed_is_refused(tmp_path):
    with pytest.raises(UserError, match="no column holds"):
        read_cohort(table(tmp_path, "p1,scan.dcm", header="subject,scan", toml=None))
    write(tmp_path / "m.nii.gz", np.eye(3)[None], np.eye(4))
    with pytest.raises(UserError, match="look like masks"):
        read_cohort(table(tmp_path, "p1,m.nii.gz", header="subject,scan", toml=None))
    with pytest.raises(UserError, match=r"gone\.nii"):
        read_cohort(table(tmp_path, "p1,gone.nii", header="subject,scan", toml=None))
    assert not (tmp_path / "cohort.toml").exists()


def grouped(folder: Path, groups: dict[str, list[str]]):
    rows = [f"{s},{v},a.nii,,,,,{group}" for group, subjects in groups.items() for s in subjects for v in ("w0", "w4")]
    return read_cohort(table(folder, *rows))


GROUPS = {"a": ["p0", "p1"], "b": ["p2", "p3"], "c": ["p4", "p5"], "d": ["p6"], "": ["p7"]}


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.lists(st.sampled_from(["train", "val", "calibration", "test"]), min_size=4, max_size=4))
def test_a_split_is_a_partition_of_subjects_by_group(places, tmp_path):
    cohort = grouped(tmp_path, GROUPS)
    chosen = {
        part: [g for g, place in zip("abcd", places, strict=True) if place == part]
        for part in ("test", "val", "calibration")
    }
    split = choose_split(cohort, **chosen)
    assert list(split) == ["train", "val", "calibration", "test"]
    assert sorted(sum(split.values(), ())) == [f"p{i}" for i in range(8)]
    for part, groups in chosen.items():
        assert split[part] == tuple(s for g in groups for s in GROUPS[g])


def test_groups_and_subjects_mix_and_numbers_name_groups(tmp_path):
    cohort = grouped(tmp_path, {"0": ["p0", "p1"], "1": ["p2", "p3"], "2": ["p4"]})
    split = choose_split(cohort, test=[0], val=["p3"], calibration=["p2"])
    assert split == {"train": ("p4",), "val": ("p3",), "calibration": ("p2",), "test": ("p0", "p1")}


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"test": ["e"]}, "split.test: 'e' is neither subject nor group of .*cohort.csv; one of: a, b, c, d, p0"),
        ({"val": ["p33"]}, "split.val: 'p33' .* did you mean 'p3'?"),
        ({"test": ["a"], "val": ["p1"]}, "split.(val|test) and split.(val|test) share p1"),
        ({"test": ["a"], "calibration": ["a"]}, "share p0, p1"),
        ({"test": ["a", "b", "c", "d", "p7"]}, "no subject of .* to train on"),
    ],
)
def test_a_split_that_cannot_be_is_refused(chosen, said, tmp_path):
    with pytest.raises(UserError, match=said):
        choose_split(grouped(tmp_path, GROUPS), **{"test": [], "val": [], "calibration": [], **chosen})


def test_a_name_of_both_a_subject_and_another_group_is_refused(tmp_path):
    with pytest.raises(UserError, match="'a' names a subject and a group"):
        choose_split(grouped(tmp_path, {"a": ["p0"], "b": ["a"]}), test=["a"], val=[], calibration=[])
