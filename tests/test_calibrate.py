"""Laws of calibrate: untouched patients make a promise, translations carry it, and what would break it is refused."""

from __future__ import annotations

import json
import shutil
import signal
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scanbridge import load
from scanbridge.calibration import Calibration
from scanbridge.data.grid import Grid, resample
from scanbridge.data.nifti import read, write
from scanbridge.evaluate import judge_split
from scanbridge.evaluation_page import _intervals, _uncertainty
from scanbridge.judge import Judged
from scanbridge.model import Model
from small import (
    RAS,
    Strike,
    brain,
    changed,
    child,
    contents,
    copied,
    done,
    scanbridge,
    training,
    write_cohort,
)

DEVICE = ("--device", "cpu")
SPLIT = ('split.val=["p2","p3"]', 'split.calibration=["p5","p6","p7","p8"]')
FOUR = ("--patients", "0.8")  # what four patients can carry
PROMISE = (
    "for a new patient from the same population, with probability at least 80 %, at most 10 % of the voxels in the "
    "foreground lie outside their interval (4 patients)"
)


def calibrate(run: Path, cohort: Path, *options: object) -> list[object]:
    """By the windows unless something else is asked for, since nothing is fitted for them: see test_head.py."""
    by = () if {"--signal", "--samples"} & set(options) else ("--signal", "windows")
    return ["calibrate", run, "--cohort", cohort, *DEVICE, *FOUR, *by, *options]


def held(run: Path) -> dict[str, Any]:
    return json.loads((run / "calibration.json").read_text())


@pytest.fixture(scope="module")
def eight(tmp_path_factory) -> Path:
    """p1 trains, p2 and p3 are val, p4 is the test, p5 to p8 calibrate. Not to be changed."""
    return write_cohort(tmp_path_factory.mktemp("eight"), {f"p{i}": brain(i) for i in range(1, 9)})


@pytest.fixture(scope="module")
def apart(eight, tmp_path_factory) -> Path:
    """A run with all parts, not calibrated. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "apart"
    done(scanbridge(*training(eight, folder, *SPLIT)))
    return folder


@pytest.fixture(scope="module")
def calibrated(apart, eight, tmp_path_factory) -> Path:
    """The same, calibrated. Not to be changed."""
    folder = copied(apart, tmp_path_factory.mktemp("runs") / "calibrated")
    assert done(scanbridge(*calibrate(folder, eight))).out == PROMISE + "\n"
    return folder


@pytest.fixture(scope="module")
def strangers(tmp_path_factory) -> Path:
    """Three people that no run has seen."""
    return write_cohort(tmp_path_factory.mktemp("strangers"), {f"s{i}": brain(40 + i) for i in range(3)})


def translated(run: Path, scan: Path, out: Path, *options: object) -> dict[str, Any]:
    """Translate one scan; give its JSON."""
    done(scanbridge("translate", run, scan, "--out", out, *DEVICE, *options))
    return json.loads((out / f"{scan.name.removesuffix('.nii.gz')}_t1w.json").read_text())


def flair(cohort: Path, person: str) -> Path:
    return cohort.parent / person / f"{person}_flair.nii.gz"


def harsh(target: np.ndarray) -> np.ndarray:
    """Make an image black and white: nobody predicts that well."""
    return np.where(target > np.median(target[target > 0]), target.max(), 0.01 * target)


def test_a_run_says_what_it_promises_and_by_what(calibrated, apart):
    found = held(calibrated)
    assert found["sentence"] == PROMISE
    assert (found["n"], found["miss"], found["patients"], found["signal"]) == (4, 0.1, 0.8, "windows")
    assert set(found["content"]) == {"p5", "p6", "p7", "p8"}
    assert set(found["fitted"]) == {"p2", "p3"}
    assert found["factor"] == max(found["scores"].values()) > 0
    stages = ("regression", "bridge")
    about = {name: json.loads((calibrated / f"stages/{name}/weights.json").read_text())["sha256"] for name in stages}
    assert found["procedure"]["weights"] == about
    assert {"grid", "scale", "target", "walk", "settings"} <= found["procedure"].keys()
    assert np.all(np.diff(found["error"]) >= 0)
    assert PROMISE in done(scanbridge("info", calibrated)).out
    assert "not calibrated" in done(scanbridge("info", apart)).out


def test_a_translation_carries_its_interval_on_its_own_grid(calibrated, apart, eight, tmp_path):
    about = translated(calibrated, flair(eight, "p4"), tmp_path / "with")
    bare = translated(apart, flair(eight, "p4"), tmp_path / "without")
    made = {
        kind: read(tmp_path / "with" / f"p4_flair_t1w{kind}.nii.gz") for kind in ("", "_low", "_high", "_uncertainty")
    }
    low, data, high = (made[kind].data for kind in ("_low", "", "_high"))
    assert (low <= data).all()
    assert (data <= high).all()
    assert np.isfinite(high - low).all()
    np.testing.assert_array_equal(made["_low"].affine, made[""].affine)
    step = Calibration.of_run(calibrated).step
    assert step <= (about["scale"]["high"] - about["scale"]["low"]) / 2**11
    order = np.argsort(made["_uncertainty"].data, axis=None)
    assert (np.diff((high - low).ravel()[order]) > -2.01 * step).all()  # unsure is never narrower, bar rounding
    assert about["interval"]["promise"] == PROMISE
    assert "calibrated" in about["uncertainty"]
    assert bare["interval"] is None
    assert "a ranking and not a promise: this run is not calibrated" in bare["uncertainty"]
    assert "p4_flair_t1w_low.nii.gz" not in contents(tmp_path / "without")


def test_an_interval_costs_no_call_and_changes_no_other_byte(calibrated, apart, eight, tmp_path, monkeypatch):
    calls: list[str] = []
    draw = Model.draw
    monkeypatch.setattr(Model, "draw", lambda self, *given: (calls.append(given[2].product), draw(self, *given))[1])
    one = translated(calibrated, flair(eight, "p4"), tmp_path / "with")
    other = translated(apart, flair(eight, "p4"), tmp_path / "without")
    drawn = [product for product in calls if product != "one-call"]  # which is timed, to say how long it takes
    assert drawn == ["estimate", "estimate"]
    assert one["made"] == other["made"]
    both = contents(tmp_path / "with"), contents(tmp_path / "without")
    for name in ("p4_flair_t1w.nii.gz", "p4_flair_t1w_uncertainty.nii.gz"):
        assert both[0][name] == both[1][name]


def test_the_library_gives_the_interval_that_the_command_line_writes(calibrated, apart, eight, tmp_path):
    translated(calibrated, flair(eight, "p4"), tmp_path)
    made = load(calibrated, device="cpu").translate(flair(eight, "p4"))
    np.testing.assert_array_equal(made.low, read(tmp_path / "p4_flair_t1w_low.nii.gz").data)
    np.testing.assert_array_equal(made.high, read(tmp_path / "p4_flair_t1w_high.nii.gz").data)
    assert set(made.signals) == {"windows"}
    bare = load(apart, device="cpu").translate(flair(eight, "p4"))
    assert bare.low is None
    assert bare.high is None
    assert load(calibrated, device="cpu").translate(flair(eight, "p4"), interval=False).low is None


def test_its_own_patients_keep_the_promise_by_the_files_alone(calibrated, eight, tmp_path):
    """Four of four patients: one of them misses just what is allowed, none more; read with nothing but numpy."""
    misses = []
    for person in held(calibrated)["content"]:
        translated(calibrated, flair(eight, person), tmp_path)
        scale = json.loads((tmp_path / f"{person}_flair_t1w.json").read_text())["scale"]
        low, high = (read(tmp_path / f"{person}_flair_t1w_{end}.nii.gz").data for end in ("low", "high"))
        source, target = (read(eight.parent / person / f"{person}_{image}.nii.gz").data for image in ("flair", "t1w"))
        body = source > 0.01 * np.percentile(source[source > 0], 99.9)
        first, last = np.percentile(target[body], [0.5, 99.5])
        truth = scale["low"] + (scale["high"] - scale["low"]) * ((target - first) / (last - first)).clip(0, 1)
        misses.append(((truth < low) | (truth > high))[body].mean())
    assert max(misses) == pytest.approx(0.1, abs=0.01)


def test_on_the_grid_of_another_scanner_the_files_do_what_the_calibration_says(tmp_path, monkeypatch):
    """CT to PET: the interval comes home to the CT's grid, and is judged on the PET's."""
    coarse = np.array([[-3.0, 0, 0, 34], [0, 3, 0, -40], [0, 0, 2.5, -20], [0, 0, 0, 1]])
    people = {}
    for i in range(1, 9):
        images = brain(i)
        ct = np.where(images["flair"] > 0, images["flair"] - 100, -1000).astype(np.float32)
        uptake = 8 * images["t1w"] / (80 + 40 * i)
        pet = resample(uptake, Grid(ct.shape, RAS), Grid((24, 26, 20), coarse))[0]
        people[f"p{i}"] = {"ct": ct, "pet": pet}
    toml = '[images.ct]\nkind = "ct"\n[images.pet]\nkind = "pet"\n'
    cohort = write_cohort(tmp_path / "cohort", people, affines={"pet": coarse}, toml=toml)
    task = ('task.source="ct"', 'task.targets=["pet"]', "train.images=4")
    done(scanbridge(*training(cohort, tmp_path / "run", *SPLIT, *task)))
    done(scanbridge(*calibrate(tmp_path / "run", cohort)))
    monkeypatch.setattr(Calibration, "made_with", lambda *_: False)
    found = judged(tmp_path / "run", cohort, tmp_path / "out", "calibration")
    assert max(each.kept.miss for each in found) == pytest.approx(0.1, abs=0.002)
    assert {each.unit for each in found} == {"SUV"}
    scores = held(tmp_path / "run")["scores"]
    worst = max(found, key=lambda each: each.kept.miss)
    assert scores[worst.subject] == max(scores.values())


def test_a_scan_that_lacked_nothing_but_its_interval_gets_it(apart, eight, tmp_path):
    run = copied(apart, tmp_path / "run")
    translated(run, flair(eight, "p4"), tmp_path / "out")
    before = contents(tmp_path / "out")
    done(scanbridge(*calibrate(run, eight)))
    assert translated(run, flair(eight, "p4"), tmp_path / "out")["interval"] is not None
    after = contents(tmp_path / "out")
    assert after["p4_flair_t1w.nii.gz"] == before["p4_flair_t1w.nii.gz"]
    done(scanbridge(*calibrate(run, eight, "--miss", 0.2)))
    refused = scanbridge("translate", run, flair(eight, "p4"), "--out", tmp_path / "out", *DEVICE)
    assert refused.code == 2
    assert "'calibration'" in refused.fault
    assert contents(tmp_path / "out") == after


@pytest.mark.parametrize("n", [2, 5])
def test_a_calibration_that_was_killed_goes_on_to_the_same_bytes(apart, calibrated, eight, tmp_path, n):
    run = copied(apart, tmp_path / "run")
    strike = Strike("scanbridge.residuals", "translate_volume", n)
    assert child(calibrate(run, eight), tmp_path / "log", strike=strike).wait().code == -signal.SIGKILL
    assert not (run / "calibration.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in (run / "calibration").rglob("*.nii.gz")}
    assert len(finished) == 2 * (n - 1)
    done(scanbridge(*calibrate(run, eight)))
    assert finished == {path: path.stat().st_mtime_ns for path in finished}
    assert contents(run / "calibration") == contents(calibrated / "calibration")
    assert (run / "calibration.json").read_bytes() == (calibrated / "calibration.json").read_bytes()


def test_the_calibration_patients_choose_nothing_but_the_factor(apart, eight, calibrated, tmp_path):
    cohort = copied(eight.parent, tmp_path / "cohort") / eight.name
    run = copied(calibrated, tmp_path / "run")
    for person in ("p5", "p6", "p7", "p8"):
        changed(cohort.parent / person / f"{person}_t1w.nii.gz", harsh)
    done(scanbridge(*calibrate(run, cohort)))
    before, after = held(calibrated), held(run)
    same = ("doubt", "error", "floor", "choice", "signal", "fitted", "procedure")
    assert {key: before[key] for key in same} == {key: after[key] for key in same}
    assert after["factor"] > 1.05 * before["factor"]


def test_the_gain_of_a_scanner_is_not_promised_and_is_of_no_matter(eight, calibrated, tmp_path):
    cohort = copied(eight.parent, tmp_path / "cohort") / eight.name
    run = copied(calibrated, tmp_path / "run")
    changed(cohort.parent / "p5" / "p5_t1w.nii.gz", lambda t: 3 * t)
    done(scanbridge(*calibrate(run, cohort)))
    assert held(run)["factor"] == pytest.approx(held(calibrated)["factor"], rel=1e-3)


def test_several_visits_are_one_patient_and_the_worst_counts(apart, eight, calibrated, tmp_path):
    cohort = copied(eight.parent, tmp_path / "cohort") / eight.name
    run = copied(calibrated, tmp_path / "run")
    lines = cohort.read_text().splitlines()
    again = brain(50)
    again["t1w"] = harsh(again["t1w"])
    for image, data in again.items():
        write(cohort.parent / "p5" / f"again_{image}.nii.gz", data, RAS)
    visits = [f"{lines[0]},visit", *(f"{line},1" for line in lines[1:])]
    visits.append("p5," + ",".join(f"p5/again_{image}.nii.gz" for image in again) + ",4,2")
    cohort.write_text("\n".join(visits) + "\n")
    done(scanbridge(*calibrate(run, cohort)))
    assert held(run)["n"] == 4
    assert set(held(run)["content"]) == {"p5_1", "p5_2", "p6", "p7", "p8"}
    before, after = held(calibrated)["scores"], held(run)["scores"]
    assert after["p5"] > before["p5"]
    assert {name: after[name] for name in ("p6", "p7", "p8")} == {name: before[name] for name in ("p6", "p7", "p8")}


def test_without_val_subjects_nothing_is_chosen_and_this_is_said(run, strangers, tmp_path):
    own = copied(run, tmp_path / "run")
    words = ["calibrate", own, "--cohort", strangers, "--split", "external", "--patients", 0.75, *DEVICE]
    said = done(scanbridge(*words))
    assert "no val subjects" in said.err
    assert held(own)["doubt"] == []
    assert "identity" in held(own)["origin"]
    assert "(3 patients)" in said.out


def test_another_place_keeps_what_val_subjects_chose_and_gets_a_factor_of_its_own(calibrated, strangers, tmp_path):
    run = copied(calibrated, tmp_path / "run")
    words = ["calibrate", run, "--cohort", strangers, "--split", "external", "--patients", 0.75, *DEVICE]
    assert "'windows' and its map stay" in done(scanbridge(*words)).err
    before, after = held(calibrated), held(run)
    same = ("signal", "origin", "doubt", "error", "floor", "choice", "fitted", "procedure")
    assert {key: before[key] for key in same} == {key: after[key] for key in same}
    assert set(after["content"]) == {"s0", "s1", "s2"}
    done(scanbridge(*words))
    assert held(run) == after


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_kept_translation_that_is_damaged_is_made_again(calibrated, eight, tmp_path, text):
    run = copied(calibrated, tmp_path / "run")
    about = run / "calibration" / "p5" / "p5_flair_t1w.json"
    about.write_text(text)
    done(scanbridge(*calibrate(run, eight)))
    assert held(run) == held(calibrated)
    assert about.read_bytes() == (calibrated / "calibration" / "p5" / "p5_flair_t1w.json").read_bytes()


def test_who_taught_weights_that_a_run_took_over_is_no_stranger_to_it(strangers, eight, tmp_path):
    """Nor to a run that takes them over again from there."""
    teacher, words = tmp_path / "teacher", ("split.test=[]", "train.images=4", "bridge.images=4")
    done(scanbridge(*training(strangers, teacher, *words)))
    for name, given in {"pupil": teacher, "pupils-pupil": tmp_path / "pupil"}.items():
        run = tmp_path / name
        taken = f'regression.weights="{given}/stages/regression"'
        done(scanbridge(*training(eight, run, *SPLIT, taken, "train.images=4", "bridge.images=4")))
        external = ["--cohort", strangers, "--split", "external", *DEVICE]
        for refused in (
            scanbridge("calibrate", run, *external, "--patients", 0.75),
            scanbridge("evaluate", run, *external, "--out", tmp_path / "out"),
        ):
            assert refused.code == 2
            assert "trained on" in refused.fault
            assert "s0_flair.nii.gz" in refused.fault
        assert not (run / "calibration.json").exists()


def test_risk_control_promises_a_mean(calibrated, eight, tmp_path):
    run = copied(calibrated, tmp_path / "run")
    said = done(scanbridge(*calibrate(run, eight, "--control", "risk", "--miss", 0.2)))
    assert said.out.startswith("for new patients from the same population, on average at most 20 % of the voxels")
    assert held(run)["factor"] > 0


def test_intervals_of_draws_need_the_draws_and_evaluate_makes_them(calibrated, eight, tmp_path, monkeypatch):
    monkeypatch.setattr("scanbridge.head.VISITS", 1)
    run = copied(calibrated, tmp_path / "run")
    done(scanbridge(*calibrate(run, eight, "--samples", 2)))
    choice = held(run)["choice"]
    assert set(choice) == {"windows", "head", "spread", "constant"}
    assert held(run)["signal"] == min(set(choice) - {"constant"}, key=lambda name: choice[name])
    done(scanbridge(*calibrate(run, eight, "--signal", "spread", "--samples", 2)))
    scan = flair(eight, "p4")
    assert "--samples 2" in translated(run, scan, tmp_path / "none")["uncertainty"]
    assert not list((tmp_path / "none").glob("*_low.nii.gz"))
    assert translated(run, scan, tmp_path / "two", "--samples", 2)["interval"]["promise"] == PROMISE
    assert translated(run, scan, tmp_path / "walk", "--samples", 2, "--calls", 3)["interval"] is None
    (mine,) = judged(run, eight, tmp_path / "out", "test")
    assert mine.kept is not None


@pytest.mark.parametrize(
    ("options", "says"), [(("--calls", 3), "another walk ("), (("--style", "nearest"), "another style")]
)
def test_another_walk_gets_no_interval_and_says_so_or_is_refused(calibrated, eight, tmp_path, options, says):
    about = translated(calibrated, flair(eight, "p4"), tmp_path / "out", *options)
    assert about["interval"] is None
    assert says in about["uncertainty"]
    assert not list((tmp_path / "out").glob("*_low.nii.gz"))
    words = ["translate", calibrated, flair(eight, "p4"), "--out", tmp_path / "asked", *DEVICE, *options]
    refused = scanbridge(*words, "--interval")
    assert refused.code == 2
    assert says in refused.fault
    assert not (tmp_path / "asked").exists()


def test_the_calibrated_walk_may_be_asked_for_by_name(calibrated, eight, tmp_path):
    calls = held(calibrated)["procedure"]["walk"]["calls"]
    assert translated(calibrated, flair(eight, "p4"), tmp_path, "--calls", calls, "--interval")["interval"] is not None


def evaluated(run: Path, cohort: Path, out: Path, *options: object) -> Path:
    done(scanbridge("evaluate", run, "--cohort", cohort, "--out", out, *DEVICE, *options))
    return out


def judged(run: Path, cohort: Path, out: Path, split: str, **given: Any) -> list[Judged]:
    """Judge a run's estimates, without the tables and the page."""
    found = judge_split({"mine": Model.open(run, device="cpu")}, cohort, out, split=split, on="target", **given)
    return [each for each in found if each.run == "mine"]


def test_the_page_holds_the_intervals_against_their_promise(calibrated, strangers, tmp_path):
    out = evaluated(calibrated, strangers, tmp_path / "out", "--split", "external")
    frame = pd.read_csv(out / "metrics.csv")
    mine = frame[frame["metric"].isin(["miss", "width", "miss_constant", "width_constant"])]
    assert set(mine["run"]) == {"calibrated"}
    assert set(mine[mine["metric"].str.startswith("width")]["region"]) == {"foreground"}
    assert set(mine["region"]) == {"foreground", "lesion", "not_lesion"}
    assert len(mine) == (4 + 2 + 2) * 3
    rows = [row for row in json.loads((out / "summary.json").read_text()) if row["metric"] == "miss"]
    assert [row["n"] for row in rows] == [3, 3, 3]
    page = (out / "report.html").read_text()
    said = ("one width, same promise", "outside, region by region", "patients, the worst first")
    for words in ("The promise of the intervals", PROMISE, *said, "smaller than that of a constant in"):
        assert words in page
    for person in ("s0", "s1", "s2"):
        low, high = (
            read(out / "translations" / "calibrated" / person / f"{person}_flair_t1w_{end}.nii.gz").data
            for end in ("low", "high")
        )
        body = brain(40 + int(person[1]))["flair"] > 0
        value = mine.query("subject == @person and metric == 'width'")["value"].item()
        shares = mine[(mine["subject"] == person) & (mine["metric"] == "miss")].set_index("region")["value"]
        inside, outside, all_of_it = shares["lesion"], shares["not_lesion"], shares["foreground"]
        assert min(inside, outside) <= all_of_it <= max(inside, outside)
        scale = held(calibrated)["procedure"]["scale"]
        assert value == pytest.approx((high - low)[body].mean() / (scale["high"] - scale["low"]), rel=0.02)


def test_a_contrast_that_was_not_there_shows_up_as_lost_coverage(calibrated, strangers, tmp_path):
    other = copied(strangers.parent, tmp_path / "other") / strangers.name
    for path in other.parent.rglob("*_t1w.nii.gz"):
        changed(path, harsh)
    misses = [
        np.array([each.kept.miss for each in judged(calibrated, cohort, tmp_path / "out", "external")])
        for cohort in (strangers, other)
    ]
    assert (misses[1] > misses[0]).all()
    assert misses[1].mean() > 0.2


def test_those_who_made_the_calibration_are_not_judged_by_it(calibrated, eight, tmp_path):
    out = evaluated(calibrated, eight, tmp_path / "out", "--split", "calibration")
    assert not pd.read_csv(out / "metrics.csv")["metric"].isin(["miss", "width"]).any()
    page = (out / "report.html").read_text()
    assert "of calibrated are not judged in 4 of 4 scans" in page
    assert "The promise of the intervals" not in page


def test_a_page_without_intervals_says_that_they_are_not_judged(calibrated, strangers, tmp_path):
    out = evaluated(calibrated, strangers, tmp_path / "out", "--split", "external", "--on", "model")
    assert "of calibrated are not judged in 3 of 3 scans" in (out / "report.html").read_text()


def test_visits_are_averaged_before_patients_in_all_that_the_page_says(calibrated, strangers, tmp_path):
    cohort = copied(strangers.parent, tmp_path / "cohort") / strangers.name
    again = {**brain(41), "t1w": harsh(brain(41)["t1w"])}
    for image, data in again.items():
        write(cohort.parent / "s0" / f"again_{image}.nii.gz", data, RAS)
    lines = cohort.read_text().splitlines()
    visits = [f"{lines[0]},visit", *(f"{line},1" for line in lines[1:])]
    visits.append("s0," + ",".join(f"s0/again_{image}.nii.gz" for image in again) + ",0,2")
    cohort.write_text("\n".join(visits) + "\n")
    model = Model.open(calibrated, device="cpu")
    found = judge_split({"calibrated": model}, cohort, tmp_path / "out", split="external", on="target")
    mine = [each for each in found if each.run == "calibrated"]
    assert len(mine) == 4
    said = _uncertainty(mine)
    areas = pd.Series([each.ranks[0].curve.area for each in mine], [each.subject.split("_")[0] for each in mine])
    assert said.n == 3
    assert said.rows[0][2] == pytest.approx(areas.groupby(level=0).mean().mean())
    misses = pd.Series([each.kept.miss for each in mine], areas.index).groupby(level=0)
    summary = [{"run": "calibrated", "metric": "miss", "region": "foreground"}]
    (kept,) = _intervals(mine, summary)
    assert {name: miss for name, miss, _ in kept.patients} == pytest.approx(misses.max().to_dict())
    assert np.mean(kept.quarters) == pytest.approx(misses.mean().mean(), abs=1e-3)


def test_given_translations_are_judged_as_they_are(calibrated, eight, tmp_path):
    for name, options in {"with": (), "without": ("--no-interval",)}.items():
        translated(calibrated, flair(eight, "p4"), tmp_path / name, *options)
        before = contents(tmp_path / name)
        (mine,) = judged(calibrated, eight, tmp_path / "out", "test", translations=tmp_path / name)
        assert contents(tmp_path / name) == before
        assert (mine.kept is not None) == (name == "with")


def test_people_whose_scans_have_one_file_name_are_all_judged(calibrated, strangers, tmp_path):
    lines = ["subject,flair,t1w"]
    for person in ("s0", "s1"):
        (tmp_path / person).mkdir()
        for image in ("flair", "t1w"):
            shutil.copy(strangers.parent / person / f"{person}_{image}.nii.gz", tmp_path / person / f"{image}.nii.gz")
        lines.append(f"{person},{person}/flair.nii.gz,{person}/t1w.nii.gz")
    (tmp_path / "cohort.csv").write_text("\n".join(lines))
    (tmp_path / "cohort.toml").write_text('[images.flair]\nkind = "mr"\n[images.t1w]\nkind = "mr"\n')
    found = judged(calibrated, tmp_path / "cohort.csv", tmp_path / "out", "external")
    assert [each.subject for each in found] == ["s0", "s1"]


def test_an_interval_is_wider_where_the_signal_is_higher_and_scales_with_the_factor(calibrated):
    doubt, estimate = np.linspace(0, 5, 50, dtype=np.float32), np.zeros(50, np.float32)
    found = held(calibrated) | {"doubt": [0.5, 1.0, 2.0], "error": [1.0, 1.0, 4.0], "factor": 2.0}
    calibration = Calibration.model_validate(found)
    low, high = calibration.interval(estimate, doubt)
    exact = np.array([2.0, 2.0 * (1 + 3 * (doubt[10] - 1)), 2 * 4 * doubt[20] / 2])
    off = high[[0, 10, 20]] - exact
    assert ((off > -1e-5) & (off < calibration.step)).all()
    np.testing.assert_array_equal(low, -high)
    assert (np.diff(high) >= 0).all()
    flat = Calibration.model_validate(found | {"factor": 0.0}).interval(estimate, doubt)
    assert not np.any(flat)


def test_bounds_are_rounded_outwards_by_less_than_a_step_and_pack_better(calibrated):
    calibration = Calibration.model_validate(held(calibrated))
    scale = calibration.procedure["scale"]
    rng = np.random.default_rng(0)
    estimate = rng.uniform(scale["low"], scale["high"], 100_000).astype(np.float32)
    doubt = rng.uniform(0, 0.1 * scale["high"], estimate.size).astype(np.float32)
    half = np.float32(calibration.factor) * calibration.expected(doubt)
    low, high = calibration.interval(estimate, doubt)
    assert (low <= estimate - half).all()
    assert (estimate + half <= high).all()
    assert max((estimate - half - low).max(), (high - estimate - half).max()) <= calibration.step
    assert len(zlib.compress(low.tobytes(), 1)) < 0.8 * len(zlib.compress((estimate - half).tobytes(), 1))


def edited(run: Path, *keys: str, value: Any) -> None:
    """Change one value of a calibration."""
    tree = held(run)
    inner = tree
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (run / "calibration.json").write_text(json.dumps(tree))


class World:
    """A calibrated run and its cohort, which a fault may spoil."""

    def __init__(self, folder: Path, cohort: Path, run: Path) -> None:
        self.folder = folder
        self.cohort, self.run = copied(cohort.parent, folder / "cohort") / cohort.name, copied(run, folder / "run")

    def scan(self, person: str, image: str) -> Path:
        return self.cohort.parent / person / f"{person}_{image}.nii.gz"

    def translate(self, *options: object) -> list[object]:
        return ["translate", self.run, self.scan("p4", "flair"), "--out", self.folder / "out", *DEVICE, *options]

    def external(self, *people: str) -> list[object]:
        """Lay people out anew under other names, and calibrate on them."""
        lines = ["subject,flair,t1w"]
        for index, person in enumerate(people):
            for image in ("flair", "t1w"):
                shutil.copy(self.scan(person, image), self.folder / f"{index}-{image}.nii.gz")
            lines.append(f"somebody{index},{index}-flair.nii.gz,{index}-t1w.nii.gz")
        (self.folder / "new.csv").write_text("\n".join(lines))
        (self.folder / "new.toml").write_text('[images.flair]\nkind = "mr"\n[images.t1w]\nkind = "mr"\n')
        return calibrate(self.run, self.folder / "new.csv", "--split", "external")


def option(*options: object) -> Callable[[World], Sequence[object]]:
    return lambda w: calibrate(w.run, w.cohort, *options)


def empty(world: World) -> Sequence[object]:
    write(world.scan("p7", "flair"), np.zeros((16, 16, 16)), RAS)
    return calibrate(world.run, world.cohort)


def elsewhere(world: World) -> Sequence[object]:
    far = RAS.copy()
    far[:3, 3] += 500
    write(world.scan("p7", "t1w"), brain(7)["t1w"], far)
    return calibrate(world.run, world.cohort)


def foreign(*keys: str, value: Any, options: Sequence[object] = ()) -> Callable[[World], Sequence[object]]:
    def planted(world: World) -> Sequence[object]:
        edited(world.run, *keys, value=value)
        return world.translate(*options)

    return planted


FAULTS: dict[str, tuple[Callable[[World], Sequence[object]], tuple[str, ...]]] = {
    "trained on": (lambda w: w.external("p5", "p6", "p1", "p7"), ("2-flair.nii.gz", "somebody2", "trained on")),
    "validated on": (lambda w: w.external("p5", "p6", "p7", "p2"), ("somebody3", "validated on")),
    "of the test": (lambda w: w.external("p5", "p6", "p7", "p4"), ("set apart for its test",)),
    "one patient twice": (
        lambda w: w.external("p5", "p6", "p7", "p6"),
        ("somebody3", "somebody1", "each patient once"),
    ),
    "too few for 90 %": (option("--patients", 0.9), ("4 calibration patients", "9 at least", "--patients 0.8")),
    "too few for a risk": (option("--control", "risk"), ("4 calibration patients", "9 at least", "--miss 0.2")),
    "an empty foreground": (empty, ("p7", "no foreground")),
    "no overlap": (elsewhere, ("p7", "no foreground")),
    "--miss 0": (option("--miss", 0), ("--miss 0", "between 0 and 1")),
    "--miss 1": (option("--miss", 1), ("--miss 1",)),
    "--patients 1.5": (option("--patients", 1.5), ("--patients 1.5", "between 0 and 1")),
    "--patients nan": (option("--patients", "nan"), ("--patients nan",)),
    "--signal": (option("--signal", "widnows"), ("widnows", "did you mean 'windows'?")),
    "--control": (option("--control", "quantil"), ("quantil", "did you mean 'quantile'?")),
    "--split": (option("--split", "test"), ("--split test", "external")),
    "one sample": (option("--signal", "spread", "--samples", 1), ("--samples 1", "two samples")),
    "no sample": (option("--signal", "spread"), ("--samples 0", "two samples")),
    "other weights": (foreign("procedure", "weights", "bridge", value="00"), ("calibration.json", "other weights")),
    "another grid": (foreign("procedure", "grid", "spacing", value=[1.0, 1, 1]), ("other grid", "calibrate")),
    "another scale": (foreign("procedure", "scale", "high", value=7.0), ("other scale",)),
    "no weights": (foreign("procedure", value={}), ("other weights",)),
    "not calibrated, asked for": (
        lambda w: [(w.run / "calibration.json").unlink(), *w.translate("--interval")][1:],
        ("this run is not calibrated", "scanbridge calibrate"),
    ),
    "another walk, asked for": (
        foreign("procedure", "walk", "calls", value=50, options=["--interval"]),
        ("another walk (50 calls)",),
    ),
    "another target, asked for": (
        foreign("procedure", "target", value="t2w", options=["--interval"]),
        ("another target (t2w)",),
    ),
    "an infinite factor": (foreign("factor", value=float("inf")), ("calibration.json", "factor")),
    "a factor below 0": (foreign("factor", value=-1.0), ("calibration.json", "factor")),
    "another sentence": (foreign("miss", value=0.01), ("calibration.json",)),
    "a map that falls": (foreign("error", value=[3.0, 1.0]), ("calibration.json",)),
    "an unknown signal": (foreign("signal", value="oracle"), ("calibration.json",)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line_and_leaves_nothing_behind(calibrated, eight, tmp_path, name):
    plant, says = FAULTS[name]
    world = World(tmp_path, eight, calibrated)
    arguments = plant(world)
    before = contents(tmp_path)
    outcome = scanbridge(*arguments)
    assert outcome.code == 2, outcome.err
    assert outcome.out == ""
    for words in says:
        assert words in outcome.fault
    assert contents(tmp_path) == before


def test_a_calibration_of_other_weights_is_no_promise_of_this_run(calibrated, tmp_path):
    run = copied(calibrated, tmp_path / "run")
    edited(run, "procedure", "weights", "bridge", value="00")
    assert "a ranking, not a promise" in done(scanbridge("info", run)).out


def test_three_patients_never_carry_nine_of_ten(run, strangers, tmp_path):
    own = copied(run, tmp_path / "run")
    for control in ("quantile", "risk"):
        words = ["calibrate", own, "--cohort", strangers, "--split", "external", "--control", control, *DEVICE]
        refused = scanbridge(*words)
        assert refused.code == 2
        assert "3 calibration patients" in refused.fault
    assert not (own / "calibration.json").exists()
    assert not (own / "calibration").exists()


def test_a_run_without_such_a_part_says_how_to_set_one_apart(run, cohort, tmp_path):
    refused = scanbridge("calibrate", copied(run, tmp_path / "run"), "--cohort", cohort, *DEVICE)
    assert refused.code == 2
    assert "split.calibration" in refused.fault


def test_a_walk_without_spread_has_no_signal_of_that_name(eight, regression, strangers, tmp_path):
    done(scanbridge(*training(eight, tmp_path / "run", *SPLIT, "draw.temperature=0.0", "train.images=4")))
    refused = scanbridge(*calibrate(tmp_path / "run", eight, "--signal", "spread", "--samples", 2))
    assert refused.code == 2
    assert "would all be equal" in refused.fault
    assert not (tmp_path / "run" / "calibration").exists()
    own = copied(regression, tmp_path / "regression")
    words = ["calibrate", own, "--cohort", strangers, "--split", "external", "--patients", 0.75, *DEVICE]
    assert "no draws" in scanbridge(*words, "--signal", "spread", "--samples", 2).fault
    done(scanbridge(*words))  # its windows disagree like any others
