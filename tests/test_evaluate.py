"""Laws of evaluate and compare: the tables hold what the protocol promises, and nobody trained on is judged."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scanbridge.data.nifti import read
from scanbridge.evaluate import unique_names
from small import brain, contents, done, scanbridge, training, write_cohort

FLOORS = {"floor:histogram", "floor:intensity"}
METRICS = {
    "psnr", "mae", "nrmse", "nmse", "nmae", "ssim_3d", "ssim_axial", "ssim_coronal", "ssim_sagittal", "sharpness",
    "slice_style_axial", "slice_style_coronal", "slice_style_sagittal",
    "slice_shape_axial", "slice_shape_coronal", "slice_shape_sagittal",
}  # fmt: skip


def evaluate(run: Path, cohort: Path, out: Path, *options: object) -> Path:
    done(scanbridge("evaluate", run, "--cohort", cohort, "--out", out, "--device", "cpu", *options))
    return out


@pytest.fixture(scope="module")
def strangers(tmp_path_factory) -> Path:
    """Three people that no run has seen."""
    return write_cohort(tmp_path_factory.mktemp("strangers"), {f"s{i}": brain(40 + i) for i in range(3)})


@pytest.fixture(scope="module")
def compared(run, regression, strangers, tmp_path_factory) -> Path:
    """Two runs on the strangers. Not to be changed."""
    out = tmp_path_factory.mktemp("compared") / "out"
    words = ["--cohort", strangers, "--out", out, "--split", "external", "--device", "cpu"]
    said = done(scanbridge("compare", run, regression, *words))
    assert f"page: {out / 'report.html'}" in said.out
    assert "foreground" in said.out
    return out


def test_the_tables_are_those_of_the_protocol(compared):
    frame = pd.read_csv(compared / "metrics.csv")
    assert list(frame.columns) == ["run", "subject", "target", "region", "metric", "unit", "value"]
    assert set(frame["run"]) == {"small", "small:one-call", "regression", *FLOORS}
    assert set(frame["subject"]) == {"s0", "s1", "s2"}
    for (_, _, region), rows in frame.groupby(["run", "subject", "region"]):
        assert set(rows["metric"]) - {"psnr_native"} == METRICS
        assert region in {"volume", "foreground", "lesion", "not_lesion"}
    assert not frame.duplicated(["run", "subject", "target", "region", "metric"]).any()
    subjects = pd.read_csv(compared / "subjects.csv")
    assert {"run", "subject", "foreground_voxels", "outside_share"} <= set(subjects.columns)
    assert len(subjects) == 5 * 3


def test_a_summary_has_an_interval_and_the_number_of_people(compared):
    rows = json.loads((compared / "summary.json").read_text(), parse_constant=pytest.fail)
    frame = pd.read_csv(compared / "metrics.csv")
    assert {row["n"] for row in rows} == {3}
    for row in rows:
        assert {"run", "target", "region", "metric", "unit", "n", "mean", "sd", "low", "high"} <= row.keys()
        values = frame.query("run == @row['run'] and region == @row['region'] and metric == @row['metric']")["value"]
        assert row["mean"] == pytest.approx(values.mean(), rel=1e-9)
        assert row["low"] <= row["mean"] <= row["high"]


def test_the_page_names_the_weights_of_every_stage(compared, run):
    page = (compared / "report.html").read_text()
    for stage in ("regression", "bridge"):
        digest = json.loads((run / "stages" / stage / "weights.json").read_text())["sha256"]
        assert f"{run.name}, {stage}: {digest[:12]}" in page


def test_the_page_says_what_it_holds_a_run_against(compared):
    page = (compared / "report.html").read_text()
    for name in ("one-call: the bridge", "floor:histogram: the source", "floor:intensity: the mean target value"):
        assert name in page


def test_the_page_needs_nothing_beside_it(compared):
    page = (compared / "report.html").read_text()
    assert "<html" in page
    assert 'src="http' not in page
    assert 'href="http' not in page
    assert all(name in page for name in ("small", "regression", "s0"))


def test_the_page_says_how_a_bridge_stands_to_the_regression_and_to_its_own_first_call(compared):
    page = (compared / "report.html").read_text()
    said = re.findall(r"PSNR of (\S+) for t1w in 3 patients \(foreground\) [^<]*?(?:above|below|from) ([^ ;<]+)", page)
    pairs = [(run, reference.strip(" .:;")) for run, reference in said]
    assert pairs[:2] == [("small", "regression"), ("small", "small:one-call")]
    assert set(pairs[2:]) == {(run, floor) for run in ("small", "regression") for floor in FLOORS}


def test_a_floor_does_not_depend_on_the_run_it_stands_beside(compared, run, strangers, tmp_path):
    out = evaluate(run, strangers, tmp_path / "out", "--split", "external")
    both = (pd.read_csv(folder / "metrics.csv").query("run in @FLOORS") for folder in (compared, out))
    pd.testing.assert_frame_equal(*(frame.reset_index(drop=True) for frame in both))


def test_evaluating_again_gives_the_same_numbers_and_translates_nothing_anew(run, cohort, tmp_path):
    out = evaluate(run, cohort, tmp_path / "out")
    tables = {name: data for name, data in contents(out).items() if name.endswith((".csv", ".json"))}
    made = {path: path.stat().st_mtime_ns for path in (out / "translations").rglob("*.nii.gz")}
    assert len(made) == 2
    evaluate(run, cohort, out)
    assert {name: data for name, data in contents(out).items() if name.endswith((".csv", ".json"))} == tables
    assert made == {path: path.stat().st_mtime_ns for path in made}


def test_the_test_split_of_a_run_is_who_was_set_apart(run, cohort, tmp_path):
    out = evaluate(run, cohort, tmp_path / "out")
    assert set(pd.read_csv(out / "metrics.csv")["subject"]) == {"p4"}


def test_what_translate_wrote_is_judged_as_what_evaluate_makes(run, cohort, tmp_path):
    scan = cohort.parent / "p4" / "p4_flair.nii.gz"
    done(scanbridge("translate", run, scan, "--out", tmp_path / "mine", "--device", "cpu"))
    before = contents(tmp_path / "mine")
    given = evaluate(run, cohort, tmp_path / "given", "--translations", tmp_path / "mine")
    fresh = evaluate(run, cohort, tmp_path / "fresh")
    assert (given / "metrics.csv").read_bytes() == (fresh / "metrics.csv").read_bytes()
    assert contents(tmp_path / "mine") == before
    assert not (given / "translations").exists()


def test_a_regression_stands_beside_given_translations(run, regression, cohort, tmp_path):
    scan = cohort.parent / "p4" / "p4_flair.nii.gz"
    done(scanbridge("translate", run, scan, "--out", tmp_path / "mine", "--device", "cpu"))
    before = contents(tmp_path / "mine")
    out = evaluate(run, cohort, tmp_path / "out", "--translations", tmp_path / "mine", "--regression", regression)
    assert {"small", "floor:regression"} <= set(pd.read_csv(out / "metrics.csv")["run"])
    assert contents(tmp_path / "mine") == before


def test_the_grids_of_this_cohort_are_one_and_so_are_its_numbers(run, cohort, tmp_path):
    own, model = (evaluate(run, cohort, tmp_path / on, "--on", on) for on in ("target", "model"))
    one, other = (
        pd.read_csv(out / "metrics.csv").set_index(["run", "region", "metric"])["value"] for out in (own, model)
    )
    pd.testing.assert_series_equal(one.sort_index(), other.sort_index(), rtol=1e-3, atol=1e-4)


def test_people_without_the_target_are_left_out(run, strangers, tmp_path):
    header, *lines = strangers.read_text().splitlines()
    table = strangers.with_name("some.csv")
    lines[1] = ",".join("" if "t1w" in cell else cell for cell in lines[1].split(","))
    table.write_text("\n".join([header, *lines]))
    table.with_suffix(".toml").write_text(strangers.with_suffix(".toml").read_text())
    out = evaluate(run, table, tmp_path / "out", "--split", "external")
    assert set(pd.read_csv(out / "metrics.csv")["subject"]) == {"s0", "s2"}


def test_a_mask_can_be_missing_for_some(run, strangers, tmp_path):
    header, *lines = strangers.read_text().splitlines()
    table = strangers.with_name("masks.csv")
    lines[0] = ",".join("" if "lesion" in cell else cell for cell in lines[0].split(","))
    table.write_text("\n".join([header, *lines]))
    table.with_suffix(".toml").write_text(strangers.with_suffix(".toml").read_text())
    out = evaluate(run, table, tmp_path / "out", "--split", "external")
    counts = {row["n"] for row in json.loads((out / "summary.json").read_text()) if row["region"] == "lesion"}
    assert counts == {2}


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [tmp_path / place for place in ("a/x", "b/x", "c/y")]
    assert unique_names(runs) == ["a/x", "b/x", "y"]
    deep = [tmp_path / place for place in ("1/runs/x", "2/runs/x")]
    assert len(set(unique_names(deep))) == 2


def test_a_run_compared_with_a_copy_of_itself_differs_by_nothing(run, cohort, tmp_path):
    from small import copied

    twin = copied(run, tmp_path / "twin")
    out = tmp_path / "out"
    done(scanbridge("compare", run, twin, "--cohort", cohort, "--out", out, "--device", "cpu"))
    frame = pd.read_csv(out / "metrics.csv").set_index(["region", "metric"])
    one, other = (frame[frame["run"] == name]["value"] for name in ("small", "twin"))
    pd.testing.assert_series_equal(one, other)


def test_the_oracle_is_asked_for_by_name_and_marked(run, cohort, tmp_path):
    words = ["evaluate", run, "--cohort", cohort, "--out", tmp_path / "out", "--device", "cpu", "--style", "own"]
    refused = scanbridge(*words)
    assert refused.code == 2
    assert "--allow-oracle" in refused.fault
    done(scanbridge(*words, "--allow-oracle"))
    names = set(pd.read_csv(tmp_path / "out" / "metrics.csv")["run"]) - FLOORS
    assert names
    assert all("oracle" in name for name in names)
    assert "oracle" in (tmp_path / "out" / "report.html").read_text()


def test_the_style_of_a_subject_set_apart_is_refused(run, cohort, tmp_path):
    words = ["translate", run, cohort.parent / "p4/p4_flair.nii.gz", "--device", "cpu", "--style"]
    leaking = scanbridge(*words, cohort.parent / "p4/p4_t1w.nii.gz", "--out", tmp_path / "leak")
    assert leaking.code == 2
    assert "set apart" in leaking.fault
    assert not list(tmp_path.rglob("*.nii.gz"))
    renamed = tmp_path / "innocent.nii.gz"
    renamed.write_bytes((cohort.parent / "p4/p4_t1w.nii.gz").read_bytes())
    assert "set apart" in scanbridge(*words, renamed, "--out", tmp_path / "leak").fault
    own = scanbridge(*words, "own", "--out", tmp_path / "leak")
    assert own.code == 2
    assert not (tmp_path / "leak").exists() or not list((tmp_path / "leak").iterdir())


@pytest.mark.parametrize("style", ["average", "nearest", "p2"])
def test_a_style_from_training_is_taken_and_noted(run, cohort, tmp_path, style):
    given = cohort.parent / style / f"{style}_t1w.nii.gz" if style == "p2" else style
    words = ["translate", run, cohort.parent / "p4/p4_flair.nii.gz", "--device", "cpu", "--out", tmp_path / "out"]
    done(scanbridge(*words, "--style", given))
    about = json.loads((tmp_path / "out" / "p4_flair_t1w.json").read_text())
    assert about["recipe"]["style"] is not None
    assert np.isfinite(read(tmp_path / "out" / "p4_flair_t1w.nii.gz").data).all()
    other = scanbridge(*words, "--style", "average" if style != "average" else "nearest")
    assert other.code == 2
    assert "'style'" in other.fault


def test_a_run_of_seen_people_is_external_to_nobody(cohort, run, tmp_path):
    done(scanbridge(*training(cohort, tmp_path / "other", 'split.test=["p3"]', "train.images=4")))
    words = ["--cohort", cohort, "--out", tmp_path / "out", "--device", "cpu"]
    refused = scanbridge("compare", run, tmp_path / "other", *words)
    assert refused.code == 2
    assert "'test' of small, other" in refused.fault
