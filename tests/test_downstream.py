"""What a synthetic image is worth: what is planted is found, where nothing is nothing is, and no subject is split."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scanbridge.data.grid import Grid
from scanbridge.data.nifti import write
from scanbridge.downstream.learn import ARMS, channels, learn, predict
from scanbridge.downstream.plan import Plan, Settings, deal, plan_task
from scanbridge.downstream.volumes import Sample, field_grid, field_of
from scanbridge.errors import UserError
from scanbridge.files import read_json
from scanbridge.metrics.tasks import accuracy, auc, bootstrap, dice, f1, jaccard, resampled, statistics_of
from small import RAS, TOML, Strike, brain, changed, child, contents, copied, done, scanbridge, write_cohort

pytest.importorskip("monai")
sklearn = pytest.importorskip("sklearn.metrics")

SMALL = (16, 24, 24)
TASKS = """
[covariates.status]
type = "categorical"
[covariates.chance]
type = "categorical"
[covariates.rare]
type = "categorical"
[covariates.same]
type = "categorical"
[covariates.age]
type = "continuous"
unit = "years"
"""
QUICK = ("--folds", 2, "--size", 16, "--device", "cpu")


def planted(seed: int, *, ill: bool) -> dict[str, np.ndarray]:
    """Draw somebody whose lesion is seen in the T1w alone: bright in the ill, nothing in the others."""
    images = brain(seed, SMALL)
    if ill:
        images["t1w"] = images["t1w"] + 1.5 * images["t1w"].max() * images["lesion"]
    return images


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    """Sixteen people of two kinds by turns; the last two rows are visits of one of them. Not to be changed."""
    n = 16
    folder = tmp_path_factory.mktemp("people")
    table = write_cohort(folder, {f"q{i:02d}": planted(100 + i, ill=i % 2 == 1) for i in range(n)}, toml=TOML + TASKS)
    frame = pd.read_csv(table)
    frame["status"] = ["ill" if i % 2 else "well" for i in range(n)]
    frame["chance"] = ["a" if i % 4 < 2 else "b" for i in range(n)]
    frame["rare"] = ["yes" if i == 3 else "no" for i in range(n)]
    frame["same"], frame["age"] = "yes", [30 + i for i in range(n)]
    frame["visit"] = ""
    frame.loc[[13, 15], "visit"] = ["first", "second"]
    for column in ("subject", "fold", "chance"):
        frame.loc[15, column] = frame.loc[13, column]
    frame.to_csv(table, index=False)
    return table


@pytest.fixture(scope="module")
def told(people, run, tmp_path_factory) -> Path:
    """The planted status, told apart in two folds. Not to be changed."""
    out = tmp_path_factory.mktemp("told")
    done(scanbridge("downstream", people, "--run", run, "--task", "status", "--out", out, "--images", 96, *QUICK))
    return out


def summary(out: Path, arm: str, metric: str) -> dict:
    return next(r for r in read_json(out / "summary.json")["arms"] if (r["run"], r["metric"]) == (arm, metric))


def difference(out: Path, arm: str, reference: str, metric: str) -> dict:
    rows = read_json(out / "summary.json")["differences"]
    return next(r for r in rows if (r["run"], r["reference"], r["metric"]) == (arm, reference, metric))


# numbers

probabilities = st.integers(2, 4).flatmap(
    lambda c: st.lists(st.lists(st.integers(1, 5), min_size=c, max_size=c), min_size=2 * c, max_size=24)
)


@settings(deadline=None, max_examples=25)
@given(probabilities)
def test_classes_are_measured_as_scikit_learn_measures_them(table):
    p = np.array(table, float) / np.sum(table, axis=1, keepdims=True)
    n, c = p.shape
    truth, ones, fold = np.arange(n) % c, np.ones(n), np.zeros(n, int)
    told = p.argmax(axis=1)
    area = sklearn.roc_auc_score(truth, p[:, 1]) if c == 2 else sklearn.roc_auc_score(truth, p, multi_class="ovr")
    assert auc(p, truth, fold, ones) == pytest.approx(area)
    assert accuracy(p, truth, ones) == pytest.approx(sklearn.accuracy_score(truth, told))
    score = sklearn.f1_score(truth, told, average="macro", labels=range(c), zero_division=0)
    assert f1(p, truth, ones) == pytest.approx(score)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_masks_are_measured_as_scikit_learn_measures_them(voxels):
    found, truth = (np.array(each) for each in zip(*voxels, strict=True))
    if not truth.any():
        assert dice(found, truth) is None
        assert jaccard(found, truth) is None
    else:
        assert dice(found, truth) == pytest.approx(sklearn.f1_score(truth, found, zero_division=0))
        assert jaccard(found, truth) == pytest.approx(sklearn.jaccard_score(truth, found, zero_division=0))


def scored(n: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth, folds = np.arange(n) % 2, np.arange(n) // 2 % 3
    ill = 1 / (1 + np.exp(-(rng.normal(size=n) + truth)))
    return np.stack([1 - ill, ill], axis=1), truth, folds


def test_scores_of_two_networks_are_never_compared():
    p, truth, folds = scored()
    moved = np.log(p[:, 1] / p[:, 0]) + 10.0 * folds
    ill = 1 / (1 + np.exp(-moved))
    ones = np.ones(truth.size)
    assert auc(np.stack([1 - ill, ill], axis=1), truth, folds, ones) == pytest.approx(auc(p, truth, folds, ones))
    each = [sklearn.roc_auc_score(truth[folds == f], p[folds == f, 1]) for f in range(3)]
    assert auc(p, truth, folds, ones) == pytest.approx(np.mean(each))  # folds of one size


def test_a_weight_of_two_is_a_patient_twice():
    p, truth, folds = scored()
    weights = np.random.default_rng(1).integers(0, 3, truth.size)
    again = np.repeat(np.arange(truth.size), weights)
    repeated = statistics_of(p[again], truth[again], folds[again])
    for name, statistic in statistics_of(p, truth, folds).items():
        assert statistic(weights.astype(float)) == pytest.approx(repeated[name](np.ones(again.size)))


def test_resamples_keep_the_classes():
    truth = np.array([0, 0, 0, 1, 1])
    weights = resampled(truth, n=50)
    assert weights[:, truth == 0].sum(axis=1).tolist() == [3] * 50
    assert weights[:, truth == 1].sum(axis=1).tolist() == [2] * 50


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Shares of right answers of 60 patients, 200 times over: a 95 % interval misses the truth in about a twentieth."""
    rng, held = np.random.default_rng(3), 0
    truth = np.arange(60) % 2
    for _ in range(200):
        right = rng.random(60) < 0.7
        told = np.where(right, truth, 1 - truth)
        p = np.eye(2)[told]
        found = bootstrap(lambda w, p=p: accuracy(p, truth, w), resampled(truth, n=400, seed=int(rng.integers(1e6))))
        held += found.low <= 0.7 <= found.high
    assert 180 <= held <= 198


# folds

classes = st.dictionaries(st.text("abc", min_size=1), st.sampled_from(["well", "ill", "odd"]), min_size=1)


@settings(deadline=None, max_examples=50)
@given(classes, st.integers(2, 6), st.integers(0, 3))
def test_subjects_are_dealt_evenly_whatever_their_order(of, folds, seed):
    dealt = deal(of, folds, seed)
    assert dealt.keys() == of.keys()
    assert dealt == deal(dict(reversed(of.items())), folds, seed)
    sizes = np.bincount(list(dealt.values()), minlength=folds)
    assert sizes.max() - sizes.min() <= 1
    for name in set(of.values()):
        counts = np.bincount([dealt[s] for s in of if of[s] == name], minlength=folds)
        assert counts.max() - counts.min() <= 1


def test_no_subject_is_in_two_folds_and_none_is_judged_by_a_network_that_knows_it(told):
    lines = pd.read_csv(told / "predictions.csv")
    assert lines.groupby("subject")["fold"].nunique().max() == 1
    names = [*(f"q{i:02d}" for i in range(13)), "q13_first", "q13_second", "q14"]
    assert sorted(lines[lines["arm"] == "source"]["name"]) == names
    assert lines.groupby(["arm", "name"]).size().max() == 1


# networks


def blobs(n: int, *, seen_in: int, seed: int = 0) -> list[Sample]:
    """Draw people of noise, each with a ball somewhere that one channel alone shows."""
    rng = np.random.default_rng(seed)
    places = np.indices((16, 16, 16))
    samples = []
    for i in range(n):
        images = rng.normal(0, 0.3, (3, 16, 16, 16)).astype(np.float32)
        centre = rng.integers(4, 12, 3)
        ball = ((places - centre[:, None, None, None]) ** 2).sum(axis=0) <= 9
        images[seen_in][ball] += 1.0
        samples.append(Sample(f"s{i}", f"s{i}", images, np.ones(ball.shape, bool), ball, Grid(ball.shape, np.eye(4))))
    return samples


@pytest.mark.parametrize("dims", [2, 3])
def test_a_segmenter_finds_what_the_target_alone_shows_and_only_with_the_target(dims):
    settings = Settings("segment", dims, 16, 240 if dims == 3 else 960, 2, 0)
    samples, cpu = blobs(12, seen_in=2), torch.device("cpu")
    scores = {}
    for arm in ("source", "real"):
        learned = learn(samples[:8], arm, settings, 0, 0, cpu)
        found = [predict(learned, each, settings, cpu) >= 0.5 for each in samples[8:]]
        scores[arm] = np.mean([dice(f, np.asarray(s.truth)) for f, s in zip(found, samples[8:], strict=True)])
    assert scores["real"] > 0.6
    assert scores["source"] < 0.3


def test_all_arms_start_alike_and_see_the_same_order():
    settings = Settings("segment", 3, 16, 12, 2, 0)
    samples, cpu = blobs(4, seen_in=0), torch.device("cpu")
    for sample in samples:
        sample.images[1:] = -1.0  # nothing but background tells no more than nothing
    nets = [learn(samples, arm, settings, 1, 0, cpu).network.state_dict() for arm in ARMS]
    assert all(torch.equal(nets[0][key], other[key]) for other in nets[1:] for key in nets[0])
    again = learn(samples, "source", settings, 1, 0, cpu).network.state_dict()
    assert all(torch.equal(nets[0][key], again[key]) for key in again)


def test_an_arm_sees_the_source_and_what_is_beside_it():
    images = np.arange(3, dtype=np.float32)[:, None, None, None] * np.ones((3, 2, 2, 2), np.float32)
    assert {arm: channels(images, arm)[:, 0, 0, 0].tolist() for arm in ARMS} == {
        "source": [0, 0],
        "synthetic": [0, 1],
        "real": [0, 2],
    }


def test_the_common_grid_holds_every_foreground():
    class Case:
        def __init__(self, shape: tuple[int, int, int], box: tuple[slice, slice, slice]) -> None:
            self.grid = Grid(shape, np.diag([2.0, 2.0, 2.0, 1.0]))
            self.foreground = np.zeros(shape, bool)
            self.foreground[box] = True

    cases = [Case((60, 40, 40), np.s_[3:50, 5:20, 5:30]), Case((20, 50, 40), np.s_[0:20, 0:50, 7:10])]
    for dims, size in ((2, 24), (3, 16), (3, 200)):
        field = field_of(cases, size, dims)
        assert np.prod(field.shape[3 - dims :]) <= size**dims
        assert all(n % 8 == 0 for n in field.shape[3 - dims :])
        assert min(field.spacing) >= 2.0
        for case in cases:
            grid = field_grid(case, field)
            corners = np.argwhere(case.foreground) @ case.grid.affine[:3, :3].T + case.grid.affine[:3, 3]
            at = np.linalg.solve(grid.affine[:3, :3], (corners - grid.affine[:3, 3]).T)
            assert at.min() >= -0.5 - 1e-6
            assert (at.max(axis=1) <= np.asarray(grid.shape) - 0.5 + 1e-6).all()
    assert max(field.spacing) == 2.0  # never finer than what there is


# the whole way


def test_a_class_that_the_target_alone_shows_is_told_with_the_target_alone(told):
    assert summary(told, "source + real", "auc")["mean"] > 0.9
    assert summary(told, "source", "auc")["high"] >= 0.5 >= summary(told, "source", "auc")["low"]
    gain = difference(told, "source + real", "source", "accuracy")
    assert gain["difference"] > 0.2
    assert gain["low"] > 0
    assert summary(told, "floor:blind", "auc")["mean"] == 0.5
    assert {row["n"] for row in read_json(told / "summary.json")["arms"]} == {15}  # visits are no further people
    page = (told / "report.html").read_text()
    assert "what a synthetic t1w is worth" in page
    assert "(seen)" not in page
    assert "AUC of source + real" in (told / "downstream.md").read_text()


def test_numbers_in_the_table_are_those_of_the_predictions(told):
    lines = pd.read_csv(told / "predictions.csv")
    people = lines[lines["arm"] == "source"].groupby("subject").mean(numeric_only=True)
    truth = lines.drop_duplicates("subject").set_index("subject")["truth"].loc[people.index]
    metrics = pd.read_csv(told / "metrics.csv").query("arm == 'source' and metric == 'auc'").set_index("fold")["value"]
    for fold in (0, 1):
        here = people["fold"] == fold
        expected = sklearn.roc_auc_score(truth[here] == "well", people["probability_well"][here])
        assert metrics[str(fold)] == pytest.approx(expected)


def test_a_class_that_nothing_shows_is_not_told(people, run, told, tmp_path):
    shutil.copytree(told / "translations", tmp_path / "out" / "translations")
    command = ("downstream", people, "--run", run, "--task", "chance", "--out", tmp_path / "out", "--images", 48)
    done(scanbridge(*command, *QUICK))
    for arm in ("source", "source + synthetic", "source + real"):
        found = summary(tmp_path / "out", arm, "auc")
        assert found["low"] <= 0.5 <= found["high"]
    said, other = ((out / "downstream.md").read_text() for out in (tmp_path / "out", told))
    assert "The AUC with source, and with source + synthetic, and with source + real is not beyond chance" in said
    assert "- The AUC with source, and with source + synthetic is not beyond chance" in other


def test_killed_anywhere_the_same_command_ends_with_the_same_bytes(people, run, told, tmp_path):
    def command(out: Path) -> list[object]:
        return ["downstream", people, "--run", run, "--task", "lesion", "--out", out, "--images", 8, *QUICK]

    for name in ("killed", "whole"):
        shutil.copytree(told / "translations", tmp_path / name / "translations")
        shutil.copytree(told / "cache", tmp_path / name / "cache")
    shutil.rmtree(tmp_path / "killed" / "translations" / "q05")
    strike = Strike("scanbridge.downstream.run", "learn", 4, signal.SIGKILL)
    killed = child(command(tmp_path / "killed"), tmp_path / "log", strike=strike).wait()
    assert killed.code == -signal.SIGKILL
    assert len(list((tmp_path / "killed").glob("folds/*/*.json"))) == 4  # three arms and the floor
    done(scanbridge(*command(tmp_path / "killed")))
    done(scanbridge(*command(tmp_path / "whole")))
    one, other = (contents(tmp_path / name) for name in ("killed", "whole"))
    assert one == other
    assert "floor:blind" in (tmp_path / "whole" / "metrics.csv").read_text()


# who takes part


def planned(cohort: Path, *runs: Path, column: str = "lesion", include_seen: bool = False, **changes: object) -> Plan:
    asked = {"kind": None, "dims": 3, "size": 16, "images": 8, "folds": 2, "seed": 0, "device": "cpu", **changes}
    return plan_task(cohort, runs, column, include_seen=include_seen, **asked)


def turned(run: Path, to: Path) -> Path:
    """Copy a run as if it had been trained on p4 alone and tested on the others."""
    fold = copied(run, to)
    facts = json.loads((fold / "cohort.json").read_text())
    facts["split"] = {"train": ["p4"], "val": ["p1"], "calibration": [], "test": ["p2", "p3"]}
    (fold / "cohort.json").write_text(json.dumps(facts))
    return fold


def test_each_subject_is_translated_by_a_run_that_has_not_seen_it(cohort, run, tmp_path):
    plan = planned(cohort, run, turned(run, tmp_path / "turned"))
    assert plan.by == {"p1": "turned", "p2": "turned", "p3": "turned", "p4": run.name}
    assert plan.left_out == plan.seen == ()


def test_a_translation_that_nothing_was_chosen_on_is_preferred(cohort, run, tmp_path):
    other = turned(run, tmp_path / "other")
    facts = json.loads((other / "cohort.json").read_text())
    facts["split"] = {"train": ["p4"], "val": ["p2"], "calibration": ["p3"], "test": ["p1"]}
    (other / "cohort.json").write_text(json.dumps(facts))
    plan = planned(cohort, run, turned(run, tmp_path / "turned"), other)
    assert plan.by == {"p1": "other", "p2": "turned", "p3": "turned", "p4": run.name}


def test_subjects_that_the_run_has_seen_are_left_out_or_marked(cohort, run):
    with pytest.raises(UserError, match="3 whom the run was trained on are left out"):
        planned(cohort, run)
    plan = planned(cohort, run, include_seen=True)
    assert plan.seen == ("p1", "p2", "p3")
    assert len(plan.rows) == 4


def test_a_result_with_seen_subjects_is_marked_everywhere(cohort, run, tmp_path):
    out = tmp_path / "out"
    command = ("downstream", cohort, "--run", run, "--task", "lesion", "--out", out, "--images", 4, *QUICK)
    done(scanbridge(*command, "--include-seen"))
    assert "source + synthetic (seen)" in set(pd.read_csv(out / "metrics.csv")["arm"])
    assert read_json(out / "summary.json")["seen"] == 3
    for name in ("report.html", "downstream.md"):
        assert "no measure of what synthetic images are worth" in (out / name).read_text()


# faults


def other_task(table: Path) -> None:
    toml = table.with_suffix(".toml")
    toml.write_text(toml.read_text().replace("flair", "t2w"))
    table.write_text(table.read_text().replace("flair,", "t2w,", 1))


def other_kind(table: Path) -> None:
    toml = table.with_suffix(".toml")
    toml.write_text(toml.read_text().replace('[images.t1w]\nkind = "mr"', '[images.t1w]\nkind = "pet"'))


def no_lesion(table: Path) -> None:
    for path in table.parent.glob("*/*_lesion.nii.gz"):
        changed(path, np.zeros_like)


def two_kinds_of_one(table: Path) -> None:
    frame = pd.read_csv(table)
    frame.loc[frame["visit"] == "second", "status"] = "well"
    frame.to_csv(table, index=False)


def nothing(table: Path) -> None:
    """Leave the cohort as it is."""


@pytest.mark.parametrize(
    ("task", "options", "change", "words"),
    [
        ("statu", (), nothing, "did you mean 'status'"),
        ("t1w", (), nothing, "no such covariate or mask"),
        ("same", (), nothing, "all 15 subjects are 'yes'"),
        ("rare", (), nothing, "class 'yes' has 1 subject, fewer than --folds 2"),
        ("age", (), nothing, "age is continuous, with 16 values"),
        ("lesion", ("--kind", "classify"), nothing, "a mask is segmented"),
        ("status", ("--kind", "segment"), nothing, "a covariate is classified"),
        ("status", ("--kind", "regress"), nothing, "classify or segment"),
        ("status", ("--dims", 4), nothing, "--dims 4"),
        ("status", ("--size", 8), nothing, "--size 8"),
        ("status", ("--images", 0), nothing, "--images 0"),
        ("status", ("--folds", 1), nothing, "--folds 1"),
        ("status", ("--folds", 8), nothing, "class 'ill' has 7 subjects, fewer than --folds 8"),
        ("lesion", (), no_lesion, "the mask lesion of all subjects is empty"),
        ("status", (), two_kinds_of_one, "visits of 'q13' are of two classes"),
        ("status", (), other_task, "has no image 'flair'"),
        ("status", (), other_kind, "images.t1w is not what small was trained on"),
    ],
)
def test_a_fault_is_one_line_before_any_work(people, run, tmp_path, task, options, change, words):
    table = copied(people.parent, tmp_path / "cohort") / people.name
    change(table)
    out = tmp_path / "out"
    told = scanbridge("downstream", table, "--run", run, "--task", task, "--out", out, *QUICK, *options)
    assert told.code == 2
    assert words in told.fault
    assert not out.exists()


def test_a_cohort_that_the_run_was_trained_on_is_refused(cohort, run, tmp_path):
    known = copied(run, tmp_path / "run")
    facts = json.loads((known / "cohort.json").read_text())
    facts["split"] = {"train": ["p1", "p2", "p3", "p4"], "val": [], "calibration": [], "test": []}
    (known / "cohort.json").write_text(json.dumps(facts))
    told = scanbridge("downstream", cohort, "--run", known, "--task", "lesion", "--out", tmp_path / "out", *QUICK)
    assert told.code == 2
    assert "was trained on by run" in told.fault
    assert "--include-seen" in told.fault
    assert not (tmp_path / "out").exists()


def test_runs_of_different_methods_are_refused(cohort, run, regression, tmp_path):
    runs = ("--run", run, "--run", regression)
    told = scanbridge("downstream", cohort, *runs, "--task", "lesion", "--out", tmp_path / "out", *QUICK)
    assert told.code == 2
    assert "differ in more than their split" in told.fault


def test_a_folder_of_another_task_is_refused(people, run, told):
    before = contents(told)
    command = ("downstream", people, "--run", run, "--out", told, "--images", 96, *QUICK)
    for options, differs in ((("--task", "chance"), "task"), (("--task", "status", "--seed", 1), "seed")):
        outcome = scanbridge(*command, *options)
        assert outcome.code == 2
        assert f"'{differs}' differs" in outcome.fault
    assert contents(told) == before


def test_without_monai_one_line_says_how_to_install_it(people, run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "monai", None)
    told = scanbridge("downstream", people, "--run", run, "--task", "status", "--out", tmp_path / "out")
    assert told.code == 2
    assert "pip install 'scanbridge[monai]'" in told.fault
    assert not (tmp_path / "out").exists()


def test_a_mask_that_vanishes_on_the_grid_is_said(people, run, told, tmp_path):
    table = copied(people.parent, tmp_path / "cohort") / people.name
    out = tmp_path / "out"
    shutil.copytree(told / "translations", out / "translations")
    fine, speck = RAS @ np.diag([0.25, 0.25, 0.25, 1.0]), np.zeros([4 * n for n in SMALL], np.float32)
    speck[tuple(n // 2 for n in speck.shape)] = 1
    for path in table.parent.glob("*/*_lesion.nii.gz"):
        write(path, speck, fine)
    told = scanbridge("downstream", table, "--run", run, "--task", "lesion", "--out", out, "--images", 4, *QUICK)
    assert told.code == 2
    assert "lesion vanishes on a grid of" in told.fault
    assert not (out / "folds").exists()
