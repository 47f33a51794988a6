"""Laws of ablate: a row that shares weights is what it would be by itself, and nothing is trained twice."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scanbridge.methods import METHODS
from scanbridge.methods.base import load_method
from scanbridge.trials import Row, as_settings, plan_rows, slug, training_of
from small import CONFIGS, TINY, Strike, child, copied, done, scanbridge, training

ROWS = ("Pure BBDM", "+ SKC average", "+ SKC nearest, ISTA")
ALL = ["ct2mri", *ROWS]
SETTINGS = (*TINY, 'split.test=["p3","p4"]')
ONE = ("regression.use=false", "bridge.at_source=0.5", "bridge.images=24")
"""One stage, so that a digest says all."""
KEY = ["run", "subject", "region", "metric"]


def command(cohort: Path, out: Path, *options: object, config: str = "ct2mri-small.toml") -> list[object]:
    """Give the arguments of a small ablation."""
    settings = (*SETTINGS, *ONE) if config != "regression-small.toml" else SETTINGS
    sets = [word for setting in settings for word in ("--set", setting)]
    return ["ablate", CONFIGS / config, "--cohort", cohort, "--out", out, "--device", "cpu", *sets, *options]


def weights(out: Path) -> dict[str, int]:
    """Give the weights below a folder, and when each was written."""
    return {str(p.relative_to(out)): p.stat().st_mtime_ns for p in sorted(out.rglob("weights.safetensors"))}


def digest(run: Path) -> str:
    return json.loads((run / "stages" / "bridge" / "weights.json").read_text())["sha256"]


def table(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "metrics.csv")


@pytest.fixture(scope="module")
def ablated(cohort, tmp_path_factory) -> Path:
    """Three rows and the full method, two seeds, judged on p3 and p4. Not to be changed."""
    out = tmp_path_factory.mktemp("ablated") / "out"
    said = done(scanbridge(*command(cohort, out, "--rows", *ROWS, "--seeds", 0, 1)))
    assert f"page: {out / 'report.html'}" in said.out
    return out


def test_each_training_is_made_once_a_seed(ablated):
    places = [f"runs/{row}/seed-{seed}" for row in ("ct2mri", "pure-bbdm") for seed in (0, 1)]
    assert list(weights(ablated)) == [f"{place}/stages/bridge/weights.safetensors" for place in places]


def test_every_row_and_seed_is_judged_on_the_same_people_beside_the_floors(ablated):
    frame = table(ablated)
    assert {"floor:histogram", "floor:intensity", *ALL} <= set(frame["run"])
    for _, held in frame[frame["metric"] == "psnr"].groupby(["run", "region"]):
        assert set(zip(held["subject"], held["seed"], strict=True)) == {(s, n) for s in ("p3", "p4") for n in (0, 1)}
    rows = {(r["run"], r["metric"]): r for r in json.loads((ablated / "summary.json").read_text())}
    assert list(dict.fromkeys(run for run, _ in rows if run in ALL)) == ALL


def test_seeds_are_averaged_within_a_person_before_anything_is_said_of_people(ablated):
    frame = table(ablated)
    for row in json.loads((ablated / "summary.json").read_text()):
        held = frame[(frame["run"] == row["run"]) & (frame["region"] == row["region"])]
        people = held[held["metric"] == row["metric"]].groupby("subject")["value"].mean()
        assert row["n"] == len(people) == 2
        assert row["mean"] == pytest.approx(people.mean(), rel=1e-9)
        assert people.min() - 1e-9 <= row["low"] <= row["high"] <= people.max() + 1e-9


def test_a_row_of_shared_weights_is_the_run_that_it_would_train_by_itself(ablated, cohort, tmp_path):
    run, out = tmp_path / "alone", tmp_path / "out"
    own = as_settings(load_method("ct2mri").ABLATIONS["+ SKC average"])
    assert own
    done(scanbridge(*training(cohort, run, *ONE, *own, "train.seed=1", tiny=SETTINGS)))
    assert digest(run) == digest(ablated / "runs" / "ct2mri" / "seed-1")
    done(scanbridge("evaluate", run, "--cohort", cohort, "--out", out, "--device", "cpu"))
    mine = table(out).replace({"run": {"alone": "+ SKC average"}})
    theirs = table(ablated).query("seed == 1")
    mine, theirs = (f[f["run"] == "+ SKC average"].set_index(KEY)["value"].sort_index() for f in (mine, theirs))
    assert len(mine) > 100
    pd.testing.assert_series_equal(mine, theirs)
    full = table(ablated).query("run == 'ct2mri' and seed == 1").set_index(KEY)["value"]
    assert not np.allclose(full.sort_index().to_numpy(), theirs.to_numpy())


@pytest.mark.parametrize("method", ["ct2mri", "bbdm"])
def test_training_reads_no_key_that_a_translation_alone_reads(ablated, cohort, tmp_path, method):
    changed = ["estimate.calls=2", 'estimate.walk="marginals"', "draw.calls=3", "draw.eta=0.5"]
    if method == "ct2mri":
        changed += ["coprediction=false", "correction.corrections=1", 'style.choice="nearest"']
        first = ablated / "runs" / "ct2mri" / "seed-0"
    else:
        first = tmp_path / "first"
        done(scanbridge(*training(cohort, first, *ONE, config="bbdm-small.toml", tiny=SETTINGS)))
    done(scanbridge(*training(cohort, tmp_path / "b", *ONE, *changed, config=f"{method}-small.toml", tiny=SETTINGS)))
    assert digest(first) == digest(tmp_path / "b")


def test_a_further_row_that_differs_in_translation_trains_nothing(ablated, cohort, tmp_path):
    out = copied(ablated, tmp_path / "out")
    before = weights(out)
    done(scanbridge(*command(cohort, out, "--rows", "+ ISTA", "--seeds", 0, "--on", "model")))
    assert weights(out) == before
    assert {"ct2mri", "+ ISTA"} == {run for run in table(out)["run"] if ":" not in run}


@pytest.mark.parametrize(
    ("strike", "code"),
    [
        (Strike("scanbridge.fit", "_update", 9), -signal.SIGKILL),
        (Strike("scanbridge.judge", "translate_file", 3, signal.SIGTERM), 128 + signal.SIGTERM),
    ],
    ids=["killed in the second training", "asked to leave while it judges"],
)
def test_a_killed_ablation_goes_on(ablated, cohort, tmp_path, strike, code):
    words = command(cohort, tmp_path / "out", "--rows", "Pure BBDM", "--seeds", 0)
    assert child(words, tmp_path / "log", strike=strike).wait().code == code
    before = weights(tmp_path)
    assert before
    assert not (tmp_path / "out" / "metrics.csv").exists()
    done(scanbridge(*words))
    assert before.items() <= weights(tmp_path).items()
    mine, theirs = table(tmp_path / "out"), table(ablated).query("seed == 0")
    runs = set(mine["run"])
    assert {"ct2mri", "Pure BBDM"} <= runs
    both = [f[f["run"].isin(runs)].set_index(KEY)["value"].sort_index() for f in (mine, theirs)]
    pd.testing.assert_series_equal(*both)


def test_the_text_says_rows_budget_seeds_and_differences(ablated):
    text, page = ((ablated / name).read_text() for name in ("ablation.md", "report.html"))
    for said in (text, page):
        assert "equal: bridge on 24 images in batches of 4; 2 trainings for 4 rows" in said
        assert "seeds 0, 1" in said
        assert "2 patients" in said
        assert "floor:intensity" in said
    assert "- + SKC average: coprediction=false, correction.corrections=0; weights of &#39;ct2mri&#39;" not in text
    assert "- + SKC average: coprediction=false, correction.corrections=0; weights of 'ct2mri', trained in" in text
    cells = next(line for line in text.partition("## Minus ct2mri")[2].splitlines() if line.startswith("| Pure BBDM"))
    means = table(ablated).query("metric == 'psnr' and region == 'foreground'").groupby("run")["value"].mean()
    shown = float(cells.split("|")[2].split()[0].replace("\N{MINUS SIGN}", "-"))
    assert shown == pytest.approx(means["Pure BBDM"] - means["ct2mri"], abs=0.006)
    assert "Pure BBDM for t1w in 2 patients" in page
    assert all(f"| {region} | Pure BBDM | " in text for region in ("lesion", "not_lesion"))


@pytest.mark.parametrize("method", METHODS)
def test_every_table_can_be_run_and_a_folder_is_the_same_whichever_rows_are_chosen(method, cohort):
    config = CONFIGS / f"{method}-small.toml"
    if not config.is_file():
        pytest.skip("no small preset")
    table = [Row(name, config, changes) for name, changes in load_method(method).ABLATIONS.items()]
    names = [row.name for row in table]
    assert len({slug(name) for name in names}) == len(names)
    task = ['task.source="flair"', 'task.targets=["t1w"]']
    whole = plan_rows(table, names, cohort, task, lambda name: Path(slug(name)))
    for each in whole.values():
        same = [other for other in whole.values() if training_of(other.plan) == training_of(each.plan)]
        assert {other.run for other in same} == {Path(slug(same[0].row.name))}
        assert each.trained == same[0].plan
    last = plan_rows(table, names[-1:], cohort, task, lambda name: Path(slug(name)))
    assert last == {names[-1]: whole[names[-1]]}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rows", "Pure BDM"], "did you mean 'Pure BBDM'?"),
        (["--rows", "Pure BBDM", "+ ISTAR"], "did you mean '+ ISTA'?"),
        (["--split", "val"], "is in 'val'"),
        (["--split", "tset"], "did you mean 'test'?"),
        (["--set", "train.images=28"], "holds another ablation"),
        (["--set", "estimate.calls=3"], "holds another ablation"),
        (["--set", "bridge.s=-1"], "bridge.s"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_trained(ablated, cohort, options, said):
    before = weights(ablated)
    told = scanbridge(*command(cohort, ablated, *options))
    assert told.code == 2
    assert said in told.fault
    assert weights(ablated) == before


@pytest.mark.parametrize("there", ["metrics.csv", "stages/bridge/weights.json"])
def test_a_folder_of_something_else_is_left_alone(cohort, tmp_path, there):
    (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / there).write_text("mine")
    told = scanbridge(*command(cohort, tmp_path))
    assert told.code == 2
    assert "holds a run or an evaluation" in told.fault
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()] == [there]


def test_a_method_without_a_table_is_refused(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(load_method("bbdm"), "ABLATIONS", {})
    told = scanbridge(*command(cohort, tmp_path / "out", config="bbdm-small.toml"))
    assert told.code == 2
    assert "bbdm" in told.fault
    assert not (tmp_path / "out").exists()


def test_the_row_that_is_the_full_method_stands_first_and_is_not_made_twice(cohort, tmp_path):
    told = scanbridge(*command(cohort, tmp_path, "--rows", "nothing", config="regression-small.toml"))
    assert "one of: L1, L2" in told.fault
