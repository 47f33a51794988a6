"""Laws of the cache: the same files give the same arrays, whole or not at all, whoever asks and however often."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from scanbridge.data.cache import Case, prepare
from scanbridge.data.cohort import Cohort, read_cohort
from scanbridge.data.foreground import foreground
from scanbridge.data.grid import Grid, model_grid, resample
from scanbridge.data.nifti import read, write
from scanbridge.errors import UserError

TASK = {"source": "ct", "targets": ["pet", "mr"], "spacing": (4.0, 3.0, 3.0), "orientation": "SPL", "on": "ct"}
FINE = np.array([[-1.5, 0, 0, 40], [0, -1.5, 0, 40], [0, 0, 2, -30], [0, 0, 0, 1]])
COARSE = np.array([[-3.9, 0, 0, 20], [0, -3.9, 0, 28], [0, 0, 3, -30], [0, 0, 0, 1]])
TOML = """
[images.ct]
kind = "ct"
[images.pet]
kind = "pet"
[images.mr]
kind = "mr"
[masks.body]
on = "ct"
role = "foreground"
[masks.tumour]
on = "pet"
[covariates.age]
type = "continuous"
"""


def anatomy(shape: tuple[int, int, int], affine: np.ndarray, seed: int) -> np.ndarray:
    """A smooth random field in a ball of 28 mm, 0 outside; the same place has the same value on any grid."""
    at = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    waves = np.random.default_rng(seed).normal(scale=0.08, size=(3, 5))
    field = 2 + np.cos(at @ waves).mean(-1)
    return field * ((at**2).sum(-1) < 28**2)


def cohort_of(folder: Path, *, seed: int = 0, rows: str = "p1,ct.nii.gz,pet.nii.gz,mr.nii.gz,,,50\n") -> Cohort:
    fine, coarse = ((54, 50, 30), FINE), ((14, 15, 22), COARSE)
    write(folder / "ct.nii.gz", np.where((a := anatomy(*fine, seed)) > 0, 400 * a, -1000), FINE)
    write(folder / "pet.nii.gz", 6 * anatomy(*coarse, seed), COARSE)
    write(folder / "mr.nii.gz", 100 * anatomy(*coarse, seed) + 30, COARSE)
    write(folder / "body.nii.gz", np.pad(np.ones((10, 10, 10)), [(2, 2), (2, 3), (6, 6)]), COARSE)
    (folder / "cohort.csv").write_text(f"subject,ct,pet,mr,body,tumour,age\n{rows}")
    (folder / "cohort.toml").write_text(TOML)
    return read_cohort(folder / "cohort.csv")


def made(folder: Path, **changes) -> Case:
    cohort = cohort_of(folder) if not (folder / "cohort.csv").exists() else read_cohort(folder / "cohort.csv")
    return prepare(cohort, cohort.rows[0], folder=folder / "cache", **{**TASK, **changes})


def same(one: Case, other: Case) -> bool:
    pairs = zip(dataclasses.astuple(one), dataclasses.astuple(other), strict=True)
    return all(
        str(a) == str(b) and np.array_equal(a, b) if isinstance(a, np.ndarray) else str(a) == str(b) for a, b in pairs
    )


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "cache").iterdir())


def test_a_case_is_the_images_on_the_model_grid_in_their_scales(tmp_path):
    case, volume = made(tmp_path), read(tmp_path / "ct.nii.gz")
    assert case.grid == model_grid(volume.grid, spacing=TASK["spacing"], orientation="SPL")
    assert case.source_grid == volume.grid
    assert case.source.dtype == np.float16
    assert case.source.shape == case.grid.shape == case.foreground.shape
    for name, encoded in {"ct": case.source, **case.targets}.items():
        own, scale = read(tmp_path / f"{name}.nii.gz"), case.scales[name]
        values, inside = resample(own.data, own.grid, case.grid)
        assert np.array_equal(case.inside[name], inside)
        decoded = scale.decode(encoded)
        assert np.abs(decoded - values.clip(scale.low, scale.high))[inside].max() <= scale.range * 2**-12 + 1e-4
        assert (encoded[~inside] == -1).all()
        assert np.abs(encoded).max() <= 1
    assert not case.inside["pet"].all()
    assert case.inside["ct"].all()
    assert (case.name, case.subject, case.covariates) == ("p1", "p1", {"age": 50.0})
    assert {name: read(tmp_path / f"{name}.nii.gz").sha256 for name in ("ct", "pet", "mr")} == case.content


def test_the_foreground_is_computed_on_the_sources_own_grid(tmp_path):
    case, volume = made(tmp_path), read(tmp_path / "ct.nii.gz")
    mask = foreground(volume.data, "ct")
    assert np.array_equal(case.foreground, resample(mask, volume.grid, case.grid, order=0)[0] > 0)
    assert case.clipped["ct"] == case.scales["ct"].clipped_share(volume.data[mask]) > 0


def test_percentiles_of_a_target_are_of_the_sources_foreground_on_the_targets_own_grid(tmp_path):
    case = made(tmp_path)
    ct, mr = (read(tmp_path / f"{name}.nii.gz") for name in ("ct", "mr"))
    body = resample(foreground(ct.data, "ct"), ct.grid, mr.grid, order=0)[0] > 0
    assert 0 < body.mean() < 0.9
    assert np.allclose((case.scales["mr"].low, case.scales["mr"].high), np.percentile(mr.data[body], (0.5, 99.5)))
    assert case.clipped["mr"] == pytest.approx(0.01, abs=0.005)


def test_a_mask_with_the_role_of_foreground_replaces_the_computed_one(tmp_path):
    computed = made(tmp_path)
    cohort = cohort_of(tmp_path, rows="p1,ct.nii.gz,pet.nii.gz,mr.nii.gz,body.nii.gz,,50\n")
    case = prepare(cohort, cohort.rows[0], folder=tmp_path / "cache", **TASK)
    mask = read(tmp_path / "body.nii.gz", mask=True)
    expected, _ = resample(mask.data, mask.grid, case.source_grid, order=0)
    expected, _ = resample(expected, case.source_grid, case.grid, order=0)
    assert np.array_equal(case.foreground, expected > 0)
    assert not np.array_equal(case.foreground, computed.foreground)
    assert case.content["body"] == mask.sha256
    assert len(entries(tmp_path)) == 2


@pytest.mark.parametrize("on", ["ct", "pet"])
def test_the_grid_follows_the_image_asked_for(on, tmp_path):
    case, own = made(tmp_path, on=on), read(tmp_path / f"{on}.nii.gz") if (tmp_path / "cohort.csv").exists() else None
    assert own is not None
    assert case.grid == model_grid(own.grid, spacing=TASK["spacing"], orientation="SPL")
    assert case.inside[on].all()
    assert (case.source[~case.inside["ct"]] == -1).all()
    assert case.inside["ct"].all() == (on == "ct")
    inside = case.inside["ct"] & case.inside["pet"] & ndimage.binary_erosion(case.foreground, iterations=3)
    ct, pet = (case.scales[n].decode(v)[inside] for n, v in (("ct", case.source), ("pet", case.targets["pet"])))
    unclipped = (ct < 990) & (pet < 14.9)
    assert unclipped.sum() > 100
    assert np.abs(ct / 400 - pet / 6)[unclipped].max() < 0.03  # one anatomy: both images show the same place


def test_an_entry_is_made_once(tmp_path):
    first = made(tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    again = made(tmp_path)
    assert same(first, again)
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}


def test_whatever_changes_the_arrays_changes_the_key(tmp_path):
    made(tmp_path)
    n_entries = 1
    for changes in (
        {"spacing": (4.0, 3.0, 3.5)},
        {"orientation": "SAL"},
        {"on": "pet"},
        {"targets": ["mr"]},
        {"source": "mr", "targets": ["pet"]},
    ):
        made(tmp_path, **changes)
        n_entries += 1
        assert len(entries(tmp_path)) == n_entries
    (tmp_path / "cohort.toml").write_text(TOML.replace('kind = "ct"', 'kind = "ct"\nwindow = [-500, 500]'))
    assert made(tmp_path).scales["ct"].high == 500
    assert len(entries(tmp_path)) == n_entries + 1
    before = made(tmp_path)
    cohort_of(tmp_path, seed=1)
    after = made(tmp_path)
    assert len(entries(tmp_path)) == n_entries + 2
    assert after.content != before.content
    assert not np.array_equal(after.source, before.source)


def test_a_name_is_no_content(tmp_path):
    first = made(tmp_path)
    (tmp_path / "ct.nii.gz").rename(tmp_path / "other.nii.gz")
    table = tmp_path / "cohort.csv"
    table.write_text(table.read_text().replace("ct.nii.gz", "other.nii.gz").replace("p1", "p9").replace("50", "60"))
    again = made(tmp_path)
    assert len(entries(tmp_path)) == 1
    assert np.array_equal(first.source, again.source)
    assert (again.name, again.covariates) == ("p9", {"age": 60.0})


def test_a_target_that_a_row_lacks_is_absent(tmp_path):
    cohort_of(tmp_path, rows="p1,ct.nii.gz,pet.nii.gz,,,,50\n")
    case = made(tmp_path)
    assert list(case.targets) == ["pet"]
    assert set(case.inside) == set(case.scales) == {"ct", "pet"}
    assert not made(tmp_path, targets=[]).targets


def test_a_window_of_three_slices_comes_in_well_under_a_millisecond(tmp_path):
    case = made(tmp_path)
    seconds = []
    for i in range(200):
        start, k = time.perf_counter(), 1 + i % (case.grid.shape[0] - 2)
        np.array(case.source[k - 1 : k + 2])
        seconds.append(time.perf_counter() - start)
    assert isinstance(case.source, np.memmap)
    assert np.median(seconds) < 5e-4


def _prepare_when_all_are_ready(barrier, folder: Path, sums) -> None:
    barrier.wait()
    sums.put(float(np.asarray(made(folder).source, dtype=np.float64).sum()))


def test_processes_that_make_the_same_entry_together_all_succeed(tmp_path):
    cohort_of(tmp_path)
    processes = multiprocessing.get_context("spawn")
    barrier, sums = processes.Barrier(3), processes.SimpleQueue()
    workers = [processes.Process(target=_prepare_when_all_are_ready, args=(barrier, tmp_path, sums)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len({sums.get() for _ in workers}) == 1
    assert len(entries(tmp_path)) == 1, "somebody left a half-made entry behind"


def test_a_process_killed_while_it_writes_leaves_no_entry_that_is_seen(tmp_path):
    cohort_of(tmp_path)
    script = f"""
import os, pathlib, signal
from scanbridge.data import cache, cohort
cache.json.dump = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
study = cohort.read_cohort({str(tmp_path / "cohort.csv")!r})
cache.prepare(study, study.rows[0], folder=pathlib.Path({str(tmp_path / "cache")!r}), **{TASK!r})
"""
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [name for name in entries(tmp_path) if not name.startswith(".")] == []
    case = made(tmp_path)
    assert case.source.shape == case.grid.shape


def test_what_a_killed_process_left_is_swept_away_a_day_later(tmp_path):
    cohort_of(tmp_path)
    old, young = (tmp_path / "cache" / f".{name}.part" for name in ("old", "young"))
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "image-0.npy").write_bytes(b"half")
    yesterday = time.time() - 25 * 3600
    os.utime(old, (yesterday, yesterday))
    made(tmp_path)
    assert not old.exists()
    assert young.exists(), "another process may be writing it"


def test_a_damaged_entry_is_said(tmp_path):
    made(tmp_path)
    (file,) = (tmp_path / "cache").rglob("image-0.npy")
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(UserError, match=r"cache entry .* is damaged .* remove it"):
        made(tmp_path)


def test_a_cache_that_cannot_be_written_is_said(tmp_path):
    cohort_of(tmp_path)
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"cache .* cannot be written"):
        made(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": "cct"}, "no image 'cct'; did you mean 'ct'"),
        ({"targets": ["pett"]}, "no image 'pett'; did you mean 'pet'"),
        ({"on": "tumour"}, "no image 'tumour'"),
        ({"source": "mr"}, "'p1' has no mr"),
        ({"on": "mr"}, "'p1' has no mr"),
    ],
)
def test_an_image_that_is_not_there_is_named(changes, said, tmp_path):
    cohort_of(tmp_path, rows="p1,ct.nii.gz,pet.nii.gz,,,,50\n")
    with pytest.raises(UserError, match=said):
        made(tmp_path, **changes)


def test_an_image_without_a_scale_is_named(tmp_path):
    cohort_of(tmp_path)
    write(tmp_path / "mr.nii.gz", np.full((14, 15, 22), 7.0), COARSE)
    with pytest.raises(UserError, match=r"mr\.nii\.gz: the image is constant"):
        made(tmp_path)
    far = COARSE + np.array([[0, 0, 0, 900]] + [[0] * 4] * 3)
    write(tmp_path / "mr.nii.gz", np.random.default_rng(0).normal(size=(14, 15, 22)), far)
    with pytest.raises(UserError, match=r"mr\.nii\.gz: the foreground is empty"):
        made(tmp_path)


def test_a_case_does_not_depend_on_how_its_files_order_their_axes(tmp_path):
    first = made(tmp_path)
    volume = read(tmp_path / "ct.nii.gz")
    grid = Grid((30, 54, 50), volume.affine[:, [2, 0, 1, 3]])
    write(tmp_path / "ct.nii.gz", volume.data.transpose(2, 0, 1), grid.affine)
    again = made(tmp_path)
    assert len(entries(tmp_path)) == 2
    for name in ("source", "foreground"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    for name in ("pet", "mr"):
        assert np.array_equal(first.targets[name], again.targets[name])
    assert first.scales == again.scales
