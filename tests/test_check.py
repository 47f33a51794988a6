"""The verb: all that is wrong with a cohort, said once, with a table and a page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from scanbridge.check import check_cohort
from scanbridge.data.nifti import write
from scanbridge.data.toys import toy_pair
from scanbridge.errors import UserError

AFFINE = np.diag([6.0, 6.0, 6.0, 1.0])
TOML = '[images.t1w]\nkind = "mr"\n[images.flair]\nkind = "mr"\n[masks.lesion]\non = "flair"\n'


@pytest.fixture
def table(tmp_path):
    lines = ["subject,t1w,flair,lesion"]
    for i, shape in enumerate([(20, 24, 22), (20, 26, 22)]):
        source, target, head = toy_pair(np.random.default_rng(i), shape)
        for name, image in {"t1w": 100 * source, "flair": 70 * target, "lesion": head}.items():
            write(tmp_path / f"p{i}_{name}.nii.gz", image, AFFINE)
        lines.append(f"p{i}," + ",".join(f"p{i}_{name}.nii.gz" for name in ("t1w", "flair", "lesion")))
    (tmp_path / "cohort.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "cohort.toml").write_text(TOML)
    return tmp_path / "cohort.csv"


def test_a_clean_cohort_gets_a_table_and_no_complaint(table, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    said: list[str] = []
    assert check_cohort(table, say=said.append) == []
    text = "\n".join(said)
    assert re.search(r"t1w .* 2 .* 6 x 6 x 6 .* 20 x 24-26 x 22", text)
    assert text.endswith("2 rows of cohort.csv: nothing wrong found")
    assert sorted(path.suffix for path in table.parent.iterdir()) == sorted([".csv", ".toml", *[".gz"] * 6])


def test_all_that_is_wrong_is_said_once_errors_first(table):
    folder = table.parent
    write(folder / "p0_lesion.nii.gz", np.zeros((20, 24, 22)), AFFINE)
    (folder / "p1_flair.nii.gz").unlink()
    rows = table.read_text() + "p2,p1_t1w.nii.gz,nowhere.nii.gz,\np2,,p0_flair.nii.gz,\n"
    table.write_text(rows)
    said: list[str] = []
    findings = check_cohort(table, say=said.append)
    assert [(f.level, f.subject, f.column, f.file) for f in findings] == [
        ("error", "", "", "cohort.csv"),
        ("error", "p1", "flair", "p1_flair.nii.gz"),
        ("error", "p2", "flair", "nowhere.nii.gz"),
        ("error", "p2", "t1w", "p1_t1w.nii.gz"),
        ("error", "p2", "flair", "p0_flair.nii.gz"),
        ("warning", "p0", "lesion", "p0_lesion.nii.gz"),
    ]
    assert "2 rows are 'p2'" in findings[0].what
    assert said[:6] == [str(finding) for finding in findings]
    assert said[-1] == "4 rows of cohort.csv: 5 errors, 1 warning"


def test_the_page_shows_every_row_and_asks_for_nothing(table, tmp_path):
    check_cohort(table, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["check.html"]
    page = (tmp_path / "out" / "check.html").read_text()
    assert "default-src 'none'" in page
    assert page.count('src="data:image/png;base64,') == 4
    assert not re.search(r"https?://|<script|<link", page)
    assert "Nothing to complain of" in page
    assert str(tmp_path.parent) not in page


def test_a_name_is_text_on_the_page_and_in_the_table(table, tmp_path):
    text = table.read_text().replace("\np0,", "\n<b>p0,").replace("t1w,flair", "[red]t1w,flair", 1)
    table.write_text(text)
    table.with_suffix(".toml").write_text(TOML.replace("images.t1w", 'images."[red]t1w"'))
    said: list[str] = []
    check_cohort(table, tmp_path / "out", say=said.append)
    page = (tmp_path / "out" / "check.html").read_text()
    assert "&lt;b&gt;p0" in page
    assert "<b>p0" not in page
    assert "[red]t1w" in "\n".join(said)


def test_a_guessed_toml_is_a_warning(table):
    table.with_suffix(".toml").unlink()
    (finding,) = check_cohort(table)
    assert (finding.level, finding.file) == ("warning", "cohort.toml")
    assert "guessed" in finding.what


def test_a_cohort_whose_files_are_all_gone_is_still_described(table):
    for file in Path(table.parent).glob("*.nii.gz"):
        file.unlink()
    findings = check_cohort(table, table.parent / "out")
    assert len(findings) == 6
    assert {finding.what for finding in findings} == {"is missing"}


def test_a_table_that_is_none_is_refused(tmp_path):
    (tmp_path / "cohort.csv").write_text("subject\n")
    with pytest.raises(UserError, match="no rows"):
        check_cohort(tmp_path / "cohort.csv")
