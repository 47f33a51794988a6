"""Laws of translation: on the scan's own grid, the same bytes whatever else is done, never half a file."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from scanbridge import load
from scanbridge.data.nifti import read, write
from small import RAS, Strike, brain, child, contents, copied, done, scanbridge, training

DEVICE = ("--device", "cpu")
FILES = ("", "_uncertainty")


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """Five scans of new people."""
    folder = tmp_path_factory.mktemp("scans")
    for i in range(5):
        write(folder / f"new{i}.nii.gz", brain(20 + i)["flair"], RAS)
    return folder


@pytest.fixture(scope="module")
def translated(run, scans, tmp_path_factory) -> Path:
    """All five, translated in one go. Not to be changed."""
    out = tmp_path_factory.mktemp("translated")
    done(scanbridge("translate", run, scans, "--out", out, *DEVICE))
    return out


def stored(order: tuple[int, int, int], flips: tuple[bool, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Give the same head with its axes in another order and direction: data and affine."""
    data = np.transpose(brain(20)["flair"], order)
    affine = RAS @ np.eye(4)[:, [*order, 3]]
    for axis, flip in enumerate(flips):
        if flip:
            data = np.flip(data, axis)
            turn = np.eye(4)
            turn[axis, axis], turn[axis, 3] = -1, data.shape[axis] - 1
            affine = affine @ turn
    return np.ascontiguousarray(data), affine


def pir() -> tuple[np.ndarray, np.ndarray]:
    data, affine = stored((1, 2, 0), (True, True, False))
    assert "".join(nib.aff2axcodes(affine)) == "PIR"
    return data, affine


def oblique() -> tuple[np.ndarray, np.ndarray]:
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", [12, -7, 20], degrees=True).as_matrix()
    return brain(20)["flair"], turn @ RAS


def coarse() -> tuple[np.ndarray, np.ndarray]:
    return brain(20)["flair"][::2, :, ::3], RAS @ np.diag([2, 1, 3, 1])


def thin() -> tuple[np.ndarray, np.ndarray]:
    return brain(20)["flair"][:, :, 11:12], RAS


@pytest.mark.parametrize("scan", [pir, oblique, coarse, thin])
def test_a_translation_lies_on_the_grid_of_its_scan(run, tmp_path, scan):
    data, affine = scan()
    write(tmp_path / "scan.nii.gz", data, affine)
    done(scanbridge("translate", run, tmp_path / "scan.nii.gz", "--out", tmp_path / "out", *DEVICE))
    for kind in FILES:
        made = nib.load(tmp_path / "out" / f"scan_t1w{kind}.nii.gz")
        assert made.shape == data.shape
        assert made.get_data_dtype() == np.float32
        np.testing.assert_allclose(made.affine, affine, atol=1e-4)
        assert int(made.header["sform_code"]) > 0
    assert (read(tmp_path / "out" / "scan_t1w_uncertainty.nii.gz").data >= 0).all()


@pytest.mark.parametrize(("order", "flips"), [((1, 2, 0), (True, True, False)), ((2, 0, 1), (False, True, True))])
def test_the_order_in_which_voxels_are_stored_changes_no_value(run, translated, tmp_path, order, flips):
    write(tmp_path / "other.nii", *stored(order, flips))
    done(scanbridge("translate", run, tmp_path / "other.nii", "--out", tmp_path, *DEVICE))
    for kind in FILES:
        made = read(tmp_path / f"other_t1w{kind}.nii.gz").data
        made = np.flip(made, [axis for axis, flip in enumerate(flips) if flip])
        np.testing.assert_array_equal(
            np.transpose(made, np.argsort(order)), read(translated / f"new0_t1w{kind}.nii.gz").data
        )


def test_where_the_patient_lies_in_the_scanner_changes_no_value(run, translated, tmp_path):
    write(tmp_path / "turned.nii.gz", *oblique())
    done(scanbridge("translate", run, tmp_path / "turned.nii.gz", "--out", tmp_path, *DEVICE))
    np.testing.assert_array_equal(read(tmp_path / "turned_t1w.nii.gz").data, read(translated / "new0_t1w.nii.gz").data)


def test_padding_by_whole_voxels_of_the_model_grid_changes_no_value(run, tmp_path):
    roomy, widths = np.pad(brain(20)["flair"], 5), [(1, 3), (2, 0), (4, 1)]
    moved = RAS.copy()
    moved[:3, 3] -= [2 * before for before, _ in widths]
    write(tmp_path / "roomy.nii.gz", roomy, RAS)
    write(tmp_path / "padded.nii.gz", np.pad(roomy, widths), moved)
    done(
        scanbridge("translate", run, tmp_path / "roomy.nii.gz", tmp_path / "padded.nii.gz", "--out", tmp_path, *DEVICE)
    )
    made = read(tmp_path / "padded_t1w.nii.gz").data[1:-3, 2:, 4:-1]
    np.testing.assert_array_equal(made, read(tmp_path / "roomy_t1w.nii.gz").data)


def test_what_is_written_is_said_and_finite(run, translated):
    assert len(contents(translated)) == 15
    about = json.loads((translated / "new0_t1w.json").read_text())
    assert about["recipe"]["source_sha256"] == about["recipe"]["source_sha256"].lower()
    assert {"source", "target", "method", "scale", "uncertainty", "made", "recipe", "scanbridge"} <= about.keys()
    made = read(translated / "new0_t1w.nii.gz").data
    low, high = about["scale"]["low"], about["scale"]["high"]
    slack = 1e-4 * (high - low)
    assert low - slack <= made.min() < made.max() <= high + slack


def test_shards_together_are_the_whole_with_the_same_bytes(run, scans, translated, tmp_path):
    for part in ("2/2", "1/2"):
        done(scanbridge("translate", run, scans, "--out", tmp_path, "--shard", part, *DEVICE))
    assert contents(tmp_path) == contents(translated)


def test_neither_order_nor_company_changes_a_byte(run, scans, translated, tmp_path):
    backwards = sorted(scans.iterdir(), reverse=True)[1:4]
    done(scanbridge("translate", run, *backwards, "--out", tmp_path, *DEVICE))
    found, all_files = contents(tmp_path), contents(translated)
    assert len(found) == 9
    assert found == {name: all_files[name] for name in found}


def test_a_renamed_file_gives_the_same_bytes(run, scans, translated, tmp_path):
    shutil.copy(scans / "new3.nii.gz", tmp_path / "renamed.nii.gz")
    words = ["--samples", 1, "--seed", 0]
    done(scanbridge("translate", run, tmp_path / "renamed.nii.gz", "--out", tmp_path / "a", *words, *DEVICE))
    done(scanbridge("translate", run, scans / "new3.nii.gz", "--out", tmp_path / "b", *words, *DEVICE))
    for kind in (*FILES, "_draw-01"):
        a, b = tmp_path / "a" / f"renamed_t1w{kind}.nii.gz", tmp_path / "b" / f"new3_t1w{kind}.nii.gz"
        assert a.read_bytes() == b.read_bytes()
    assert (tmp_path / "a/renamed_t1w.nii.gz").read_bytes() == (translated / "new3_t1w.nii.gz").read_bytes()


def test_the_library_gives_what_the_command_line_writes(run, scans, translated):
    made = load(run, device="cpu").translate(scans / "new1.nii.gz")
    np.testing.assert_array_equal(made.data, read(translated / "new1_t1w.nii.gz").data)
    np.testing.assert_array_equal(made.uncertainty, read(translated / "new1_t1w_uncertainty.nii.gz").data)
    volume = read(scans / "new1.nii.gz")
    again = load(run, device="cpu").translate(volume.data, affine=volume.affine)
    np.testing.assert_array_equal(again.data, made.data)


def test_a_batch_that_was_killed_goes_on_and_finished_volumes_stay(run, scans, translated, tmp_path):
    words = ["translate", run, scans, "--out", tmp_path / "out", *DEVICE]
    strike = Strike("scanbridge.translate", "write", 6)  # two files a scan: the third scan has one of them
    assert child(words, tmp_path / "log", strike=strike).wait().code == -signal.SIGKILL
    left = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    for path in left:
        if path.name.endswith(".nii.gz"):
            read(path)
    finished = [p for p in left if (tmp_path / "out" / p.name.split("_")[0]).with_name(p.name[:8] + ".json").exists()]
    assert len(finished) == 6
    assert done(scanbridge(*words)).out.startswith("3 translated, 2 were there already")
    assert {path: path.stat().st_mtime_ns for path in finished} == {path: left[path] for path in finished}
    assert contents(tmp_path / "out") == contents(translated)


def test_a_volume_is_never_seen_half_written(run, scans, translated, tmp_path):
    words = ["translate", run, scans / "new0.nii.gz", "--out", tmp_path / "out", *DEVICE]
    strike = Strike("os", "fsync", 1)
    assert child(words, tmp_path / "log", strike=strike).wait().code == -signal.SIGKILL
    assert not [path for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")]
    done(scanbridge(*words))
    kept = contents(translated)
    named = {name: data for name, data in contents(tmp_path / "out").items() if not name.startswith(".")}
    assert named == {name: kept[name] for name in named}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_batch_that_is_asked_to_leave_keeps_what_is_finished(run, scans, tmp_path, number, status):
    words = ["translate", run, scans, "--out", tmp_path / "out", *DEVICE]
    left = child(words, tmp_path / "log", strike=Strike("scanbridge.translate", "translate_file", 3, number)).wait()
    assert left.code == status
    assert "Traceback" not in left.err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"new0_t1w.json", "new1_t1w.json"} <= names
    assert not [name for name in names if name.startswith(".")]


def test_what_was_made_otherwise_is_refused_without_overwrite(run, scans, tmp_path):
    words = ["translate", run, scans / "new0.nii.gz", "--out", tmp_path, *DEVICE]
    done(scanbridge(*words))
    before = contents(tmp_path)
    other = scanbridge(*words, "--calls", 3)
    assert other.code == 2
    assert "--overwrite" in other.fault
    assert contents(tmp_path) == before
    done(scanbridge(*words, "--calls", 3, "--overwrite"))
    assert json.loads((tmp_path / "new0_t1w.json").read_text())["made"]["estimate"]["calls"] == 3


def test_what_other_weights_made_is_refused(cohort, run, scans, tmp_path):
    done(scanbridge(*training(cohort, tmp_path / "other", "train.seed=1", "train.images=4")))
    out = tmp_path / "out"
    done(scanbridge("translate", run, scans / "new0.nii.gz", "--out", out, *DEVICE))
    before = contents(out)
    refused = scanbridge("translate", tmp_path / "other", scans / "new0.nii.gz", "--out", out, *DEVICE)
    assert refused.code == 2
    assert "weights" in refused.fault
    assert contents(out) == before


def test_a_changed_scan_under_the_same_name_is_refused(run, scans, tmp_path):
    shutil.copy(scans / "new0.nii.gz", tmp_path / "scan.nii.gz")
    words = ["translate", run, tmp_path / "scan.nii.gz", "--out", tmp_path / "out", *DEVICE]
    done(scanbridge(*words))
    shutil.copy(scans / "new1.nii.gz", tmp_path / "scan.nii.gz")
    refused = scanbridge(*words)
    assert refused.code == 2
    assert "source_sha256" in refused.fault


def test_two_scans_of_one_stem_are_refused_before_any_work(run, scans, tmp_path):
    other = copied(scans, tmp_path / "other")
    refused = scanbridge("translate", run, scans, other / "new4.nii.gz", "--out", tmp_path / "out", *DEVICE)
    assert refused.code == 2
    assert "same stem" in refused.fault
    assert not (tmp_path / "out").exists()


def test_draws_differ_and_the_same_seed_gives_the_same_bytes(run, scans, translated, tmp_path):
    words = ["translate", run, scans / "new0.nii.gz", *DEVICE, "--samples", 2, "--calls", 3]
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        done(scanbridge(*words, "--seed", seed, "--out", tmp_path / name))
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert "new0_t1w_draw-02.nii.gz" in a
    draws = [folder[f"new0_t1w_draw-0{k}.nii.gz"] for folder in (a, c) for k in (1, 2)]
    assert len(set(draws)) == 4
    assert a["new0_t1w.nii.gz"] == c["new0_t1w.nii.gz"]  # the estimate has no chance in it
    assert a["new0_t1w_uncertainty.nii.gz"] != contents(translated)["new0_t1w_uncertainty.nii.gz"]


def test_the_first_of_many_draws_is_the_only_one_of_one(run, scans, tmp_path):
    for k in (1, 2):
        done(scanbridge("translate", run, scans / "new0.nii.gz", *DEVICE, "--samples", k, "--out", tmp_path / str(k)))
    one, two = ((tmp_path / k / "new0_t1w_draw-01.nii.gz").read_bytes() for k in "12")
    assert one == two


def test_what_it_will_take_is_said_before_it_starts_and_not_where_all_is_done(run, scans, tmp_path):
    words = ["translate", run, scans / "new0.nii.gz", scans / "new1.nii.gz", "--out", tmp_path, *DEVICE]
    said = done(scanbridge(*words, "--samples", 2)).err
    assert re.search(
        r"^2 scans, 2 network calls each on 2 mirror images, and 8 for each of 2 draws: "
        r"about \d+ (s|min), [\d.]+ GB of memory$",
        said,
        re.M,
    )
    assert "network call" not in done(scanbridge(*words, "--samples", 2)).err
    (tmp_path / "new1_t1w.json").unlink()
    assert "\n1 scans, 2 network calls each" in done(scanbridge(*words, "--samples", 2)).err


@pytest.mark.parametrize(
    ("words", "walk"),
    [
        (["draft"], {"calls": 1, "mirror": []}),
        (["normal"], {"calls": 2, "grid": "linear", "mirror": ["columns"]}),
        (["paper", "--calls", 5], {"walk": "mean_path", "grid": "published", "calls": 5, "start": "source"}),
        (["draft", "--calls", 2, "--grid", "theta"], {"calls": 2, "grid": "theta"}),
    ],
)
def test_a_quality_names_a_walk_and_what_is_named_beside_it_wins(run, scans, translated, tmp_path, words, walk):
    about = ["translate", run, scans / "new0.nii.gz", "--out", tmp_path, *DEVICE]
    done(scanbridge(*about, "--quality", *words))
    made = json.loads((tmp_path / "new0_t1w.json").read_text())
    assert made["recipe"]["options"]["quality"] == made["made"]["estimate"]["quality"] == words[0]
    beyond = words[0] == "paper"  # whose first time is not t = 1: the bridge is called there too, after the regression
    assert made["made"]["estimate"]["calls"] == walk["calls"] + beyond
    assert made["made"]["estimate"]["walk"].items() >= walk.items()
    same = contents(tmp_path)["new0_t1w.nii.gz"] == contents(translated)["new0_t1w.nii.gz"]
    assert same == (words == ["normal"])


def test_a_quality_means_the_estimate_and_not_the_draws(run, scans, tmp_path):
    words = ["translate", run, scans / "new0.nii.gz", *DEVICE, "--samples", 2, "--quality", "draft", "--calls", 3]
    done(scanbridge(*words, "--out", tmp_path))
    made = json.loads((tmp_path / "new0_t1w.json").read_text())["made"]
    assert (made["estimate"]["calls"], made["draws"]["calls"]) == (1, 3)


def test_a_method_without_a_walk_refuses_a_quality(regression, scans, tmp_path):
    words = ["translate", regression, scans / "new0.nii.gz", *DEVICE, "--out", tmp_path / "out"]
    assert "a regression has no walk" in scanbridge(*words, "--quality", "paper").fault
    assert not (tmp_path / "out").exists() or not contents(tmp_path / "out")
    assert (
        "1 scans, 1 network call each on 2 mirror images: about" in done(scanbridge(*words, "--quality", "normal")).err
    )


def test_calls_that_fall_together_on_trained_steps_are_said_and_stored(cohort, scans, tmp_path):
    alone = ("regression.use=false", 'bridge.times="published"', "bridge.images=4")
    done(scanbridge(*training(cohort, tmp_path / "run", *alone)))
    words = ["translate", tmp_path / "run", scans / "new0.nii.gz", *DEVICE, "--grid", "theta", "--calls", 16]
    said = done(scanbridge(*words, "--out", tmp_path)).err
    assert "16 network calls were asked for and 15 are made" in said
    assert "1 scans, 15 network calls each on 2" in said
    made = json.loads((tmp_path / "new0_t1w.json").read_text())["made"]["estimate"]
    assert made["walk"]["calls"] == 16
    assert made["calls"] == len(made["times"]) - 1 == 15


def test_samples_of_a_walk_without_spread_are_refused(cohort, scans, tmp_path):
    done(scanbridge(*training(cohort, tmp_path / "run", "draw.temperature=0.0", "train.images=4")))
    words = ["translate", tmp_path / "run", scans / "new0.nii.gz", *DEVICE, "--out", tmp_path / "out"]
    refused = scanbridge(*words, "--samples", 2)
    assert refused.code == 2
    assert "would all be equal" in refused.fault
    assert not contents(tmp_path / "out")


def test_a_regression_has_an_uncertainty_and_no_draws(regression, scans, tmp_path):
    words = ["translate", regression, scans / "new0.nii.gz", *DEVICE, "--out", tmp_path / "out"]
    assert "no draws" in scanbridge(*words, "--samples", 1).fault
    done(scanbridge(*words))
    assert read(tmp_path / "out" / "new0_t1w_uncertainty.nii.gz").data.max() > 0


def test_what_is_asked_of_a_walk_means_the_draws_where_draws_are_asked_for(run, scans, translated, tmp_path):
    words = ["translate", run, scans / "new0.nii.gz", *DEVICE, "--samples", 1, "--order", 2, "--grid", "theta"]
    done(scanbridge(*words, "--out", tmp_path / "out"))  # the estimate's mean_path has no order 2
    made = json.loads((tmp_path / "out" / "new0_t1w.json").read_text())["made"]
    assert made["draws"]["walk"]["order"] == 2
    assert made["estimate"]["walk"]["order"] == 1
    assert contents(tmp_path / "out")["new0_t1w.nii.gz"] == contents(translated)["new0_t1w.nii.gz"]


def test_overwriting_with_fewer_draws_leaves_none_of_the_old_ones(run, scans, tmp_path):
    words = ["translate", run, scans / "new0.nii.gz", *DEVICE, "--out", tmp_path / "out", "--calls", 2]
    done(scanbridge(*words, "--samples", 2))
    assert "new0_t1w_draw-02.nii.gz" in contents(tmp_path / "out")
    done(scanbridge(*words, "--samples", 1, "--overwrite"))
    drawn = [name for name in contents(tmp_path / "out") if "_draw-" in name]
    assert drawn == ["new0_t1w_draw-01.nii.gz"]


def test_a_method_without_styles_refuses_one(regression, scans, tmp_path):
    words = ["translate", regression, scans / "new0.nii.gz", *DEVICE, "--out", tmp_path / "out"]
    assert "knows no style" in scanbridge(*words, "--style", "nearest").fault
