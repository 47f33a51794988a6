"""Laws of simulated cohorts on disk: the same bytes again, readable, restartable, and never over another's files."""

import csv
import hashlib
import json
import tomllib

import nibabel as nib
import numpy as np
import pytest

from scanbridge.errors import UserError
from scanbridge.simulate import simulate_brain, simulate_known

NAMES = ("source", "target", "best", "sd")


def bytes_of(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def brains(tmp_path_factory):
    pytest.importorskip("nilearn", reason="the average brain comes with the extra 'demo'")
    return simulate_brain(tmp_path_factory.mktemp("brains") / "a", subjects=2, size=32).parent


def test_the_same_seed_gives_the_same_bytes_and_a_person_does_not_depend_on_their_number(brains, tmp_path):
    one, two = bytes_of(simulate_brain(tmp_path / "b", subjects=1, size=32).parent), bytes_of(brains)
    shared = {name for name in one if name != "cohort.csv"}
    assert shared < set(two)
    assert all(one[name] == two[name] for name in shared)


def test_another_seed_gives_other_people(brains, tmp_path):
    other = bytes_of(simulate_brain(tmp_path / "b", subjects=1, size=32, seed=1).parent)
    assert other["sub-001/sub-001_T1w.nii.gz"] != bytes_of(brains)["sub-001/sub-001_T1w.nii.gz"]


def test_table_and_columns_agree(brains):
    columns = tomllib.loads((brains / "cohort.toml").read_text())
    with (brains / "cohort.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["subject", "flair", "t1w", "t2w", "t1w_gd", "lesion", "age", "sex", "fold"]
    assert set(columns["images"]) == {"flair", "t1w", "t2w", "t1w_gd"}
    assert columns["masks"] == {"lesion": {"on": "flair"}}
    for row in rows:
        images = {name: nib.load(brains / row[name]) for name in ("flair", "t1w", "t2w", "t1w_gd", "lesion")}
        assert all(image.shape == (32, 32, 32) for image in images.values())
        assert all(image.header.get_zooms() == (6.0, 6.0, 6.0) for image in images.values())
        assert set(np.unique(images["lesion"].get_fdata())) <= {0.0, 1.0}
        assert 20 <= int(row["age"]) <= 70
        assert row["sex"] in {"F", "M"}


def test_our_own_reader_reads_it(brains):
    cohort = pytest.importorskip("scanbridge.data.cohort").read_cohort(brains / "cohort.csv")
    assert [row.subject for row in cohort.rows] == ["sub-001", "sub-002"]
    assert cohort.split_column == "fold"


def test_a_stopped_run_continues(brains, tmp_path):
    out = tmp_path / "b"

    def stop(done, of):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate_brain(out, subjects=2, size=32, progress=stop)
    assert not (out / "cohort.csv").exists()
    (out / "sub-001" / "sub-001_T2w.nii.gz").unlink()
    untouched = (out / "sub-001" / "sub-001_T1w.nii.gz").read_bytes()
    seen = []
    simulate_brain(out, subjects=2, size=32, progress=lambda *done: seen.append(done))
    assert seen == [(1, 2), (2, 2)]
    assert (out / "sub-001" / "sub-001_T1w.nii.gz").read_bytes() == untouched
    assert bytes_of(out) == bytes_of(brains)


def test_what_is_done_is_not_done_again(brains):
    before = {p: p.stat().st_mtime_ns for p in brains.rglob("*.nii.gz")}
    simulate_brain(brains, subjects=2, size=32)
    assert {p: p.stat().st_mtime_ns for p in brains.rglob("*.nii.gz")} == before


def test_the_folder_of_another_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        simulate_known(tmp_path, subjects=1, size=16)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="is a file"):
        simulate_known(tmp_path / "thesis.txt", subjects=1, size=16)


def test_other_settings_in_the_same_folder_are_refused(tmp_path):
    simulate_known(tmp_path / "a", subjects=1, size=16)
    with pytest.raises(UserError, match="another --out"):
        simulate_known(tmp_path / "a", subjects=1, size=16, seed=5)


@pytest.mark.parametrize(("subjects", "size", "seed"), [(0, 32, 0), (1, 8, 0), (1, 500, 0), (1, 32, -1)])
def test_impossible_numbers_are_refused_before_anything_is_written(tmp_path, subjects, size, seed):
    with pytest.raises(UserError, match="--"):
        simulate_known(tmp_path / "a", subjects=subjects, size=size, seed=seed)
    assert not (tmp_path / "a").exists()


def test_the_known_law_is_on_disk(tmp_path):
    table = simulate_known(tmp_path / "a", subjects=2, size=32)
    even = json.loads((table.parent / "simulated.json").read_text())["residual_sd"]
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            source, target, best, sd = (nib.load(table.parent / row[k]).get_fdata() for k in NAMES)
            np.testing.assert_allclose(sd[source != 0], even, rtol=1e-3)
            assert (target - best)[source != 0].std() == pytest.approx(even, rel=0.05)
