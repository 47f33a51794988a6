"""The input warning through the command line: one line a scan that is unlike the training, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scanbridge import load
from scanbridge.data.nifti import write
from scanbridge.likeness import Likeness
from small import RAS, brain, brains, contents, copied, done, scanbridge, write_cohort

DEVICE = ("--device", "cpu")


def spoilt(seed: int) -> np.ndarray:
    """Draw a head's scan under heavy noise."""
    flair = brain(seed)["flair"]
    noise = np.random.default_rng(seed).standard_normal(flair.shape).astype(np.float32)
    return np.where(flair > 0, np.abs(flair + 0.6 * flair.max() * noise) + 1, 0).astype(np.float32)


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """A scan of the training's kind and two that are not."""
    folder = tmp_path_factory.mktemp("scans")
    write(folder / "good.nii.gz", brain(20)["flair"], RAS)
    write(folder / "bad.nii.gz", spoilt(21), RAS)
    write(folder / "worse.nii.gz", spoilt(22), RAS)
    return folder


@pytest.fixture(scope="module")
def translated(run, scans, tmp_path_factory):
    out = tmp_path_factory.mktemp("translated")
    return out, done(scanbridge("translate", run, scans, "--out", out, *DEVICE))


def told(text: str) -> list[str]:
    return [line for line in text.splitlines() if "unlike the scans" in line]


def test_a_scan_unlike_the_training_is_said_once(translated):
    _, outcome = translated
    lines = told(outcome.err)
    assert [line.split()[0] for line in lines] == ["bad.nii.gz", "worse.nii.gz"]
    for line in lines:
        assert "is unlike the scans of 3 people that the run was trained on: distance " in line
        assert "noise level" in line


def test_the_json_holds_distance_and_limit(translated, run):
    out, _ = translated
    limit = Likeness.of_run(run).limit
    for name in ("good", "bad", "worse"):
        about = json.loads((out / f"{name}_t1w.json").read_text())
        assert about["input_limit"] == limit
        assert (about["input_distance"] > limit) is (name != "good")
        assert (about["input_warning"] is None) is (name == "good")


def test_what_is_kept_is_not_said_again(run, scans, translated):
    out, _ = translated
    assert told(done(scanbridge("translate", run, scans, "--out", out, *DEVICE)).err) == []


def test_a_run_that_noted_nothing_says_nothing_and_translates_alike(run, scans, translated, tmp_path):
    older = copied(run, tmp_path / "older")
    (older / "likeness.json").unlink()
    outcome = done(scanbridge("translate", older, scans, "--out", tmp_path / "out", *DEVICE))
    assert told(outcome.err) == []
    about = json.loads((tmp_path / "out" / "bad_t1w.json").read_text())
    assert not [key for key in about if key.startswith("input")]
    volumes = {name: content for name, content in contents(translated[0]).items() if name.endswith(".nii.gz")}
    assert volumes == {n: c for n, c in contents(tmp_path / "out").items() if n.endswith(".nii.gz")}
    assert "input warning: none" in done(scanbridge("info", older)).out
    assert "input warning: beyond a distance of" in done(scanbridge("info", run)).out


def test_the_python_api_warns(run, scans):
    opened = load(run, device="cpu")
    opened.translate(scans / "good.nii.gz")  # warnings are errors here
    with pytest.warns(UserWarning, match="the scan is unlike"):
        made = opened.translate(scans / "bad.nii.gz")
    assert made.facts["input"]["input_distance"] > made.facts["input"]["input_limit"]


def test_evaluate_says_it_and_writes_it_down(run, tmp_path):
    people = {"q1": brain(20), "q2": brain(21) | {"flair": spoilt(21)}}
    table = write_cohort(tmp_path / "new", people)
    words = ["--cohort", table, "--split", "external", "--out", tmp_path / "out", *DEVICE]
    (line,) = told(done(scanbridge("evaluate", run, *words)).err)
    assert line.startswith("small: q2 is unlike")
    frame = pd.read_csv(tmp_path / "out" / "subjects.csv").dropna(subset=["input_distance"]).set_index("subject")
    assert (frame["input_distance"] > frame["input_limit"]).to_dict() == {"q1": False, "q2": True}
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("The source is unlike the scans of 3 people") == 1


def test_calibrate_says_it(run, tmp_path):
    mine = copied(run, tmp_path / "run")
    table = write_cohort(tmp_path / "new", {"q1": brain(20), "q2": brain(21) | {"flair": spoilt(21)}})
    words = ["--cohort", table, "--split", "external", "--patients", 0.5, *DEVICE]
    (line,) = told(done(scanbridge("calibrate", mine, *words)).err)
    assert line.startswith("q2 is unlike")


def test_what_training_noted_can_be_had_from_a_cache(run, cohort, tmp_path):
    from scanbridge.plan import plan_run, prepare_rows

    plan = plan_run(run / "config.toml", cohort)
    assert Likeness.of_cases(prepare_rows(plan, plan.rows("train"), tmp_path)) == Likeness.of_run(run)


def test_names_of_people_and_files_do_not_count(run, tmp_path, scans):
    write(tmp_path / "another name.nii.gz", spoilt(21), RAS)
    outcome = done(scanbridge("translate", run, tmp_path / "another name.nii.gz", "--out", tmp_path / "out", *DEVICE))
    (line,) = told(outcome.err)
    before = done(scanbridge("translate", run, scans / "bad.nii.gz", "--out", tmp_path / "out", *DEVICE))
    assert line.replace("another name", "bad") == told(before.err)[0]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda text: text[: len(text) // 2], "not readable as JSON"),
        (lambda text: text.replace('"limit"', '"limits"'), "limit is not what 'train' wrote"),
        (lambda text: text.replace('"noise"', '"noisy"', 1), "the file is not what 'train' wrote"),
    ],
)
def test_a_damaged_note_is_one_line(run, scans, tmp_path, change, what):
    mine = copied(run, tmp_path / "run")
    path = mine / "likeness.json"
    path.write_text(change(path.read_text()))
    outcome = scanbridge("translate", mine, scans / "good.nii.gz", "--out", tmp_path / "out", *DEVICE)
    assert outcome.code == 2
    assert what in outcome.fault
    assert "likeness.json" in outcome.fault
    assert not (tmp_path / "out" / "good_t1w.json").exists()


def test_a_table_of_one_person_is_enough(tmp_path):
    from small import TINY, training

    table = brains(tmp_path / "cohort", 2)
    sets = tuple(word for word in TINY if not word.startswith("split"))
    done(scanbridge(*training(table, tmp_path / "run", 'split.test=["p2"]', tiny=sets, config="regression-small.toml")))
    likeness = Likeness.of_run(tmp_path / "run")
    assert (likeness.n, likeness.largest) == (1, None)
    assert "the scans of 1 person" in done(scanbridge("info", tmp_path / "run")).out
