"""Laws of an RLBCD run through the command line: its signals, its ceiling, its features, and its scores."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scanbridge.branches import consistency
from scanbridge.calibration import Calibration
from scanbridge.data.nifti import read
from small import Outcome, brain, copied, done, metrics, scanbridge, training, write_cohort

DEVICE = ("--device", "cpu")
TINY = (
    'task.source="flair"',
    'task.targets=["t1w"]',
    "grid.spacing=[2.0,2.0,2.0]",
    "train.images=16",
    "train.batch_size=4",
    "train.warmup=0",
    "train.checkpoint_every=8",
    "train.picture_every=1000",
    "train.augment.turned=0.0",
    "network.channels=8",
    "network.multipliers=[1,2]",
    "network.head_channels=8",
    "network.groups=4",
    "guidance.scales=[1,2]",
    "autoencoder.channels=8",
    "autoencoder.multipliers=[1,2]",
    "autoencoder.strides=[2]",
    "autoencoder.codes=16",
    "autoencoder.images=16",
    "autoencoder.discriminator.channels=8",
    "autoencoder.discriminator.strides=[2]",
    "consistency.channels=8",
    "consistency.images=8",
    "estimate.calls=2",
    "draw.calls=2",
    'split.test=["p4"]',
    'split.val=["p2"]',
    'split.calibration=["p5","p6","p7","p8"]',
)


@pytest.fixture(scope="module")
def eight(tmp_path_factory) -> Path:
    """p1 and p3 train, p2 is val, p4 is the test, p5 to p8 calibrate. Not to be changed."""
    return write_cohort(tmp_path_factory.mktemp("eight"), {f"p{i}": brain(i) for i in range(1, 9)})


def trained(cohort: Path, folder: Path, *settings: str) -> Path:
    done(scanbridge(*training(cohort, folder, *settings, config="rlbcd-small.toml", tiny=TINY)))
    return folder


@pytest.fixture(scope="module")
def whole(eight, tmp_path_factory) -> Path:
    """A run with both branches. Not to be changed."""
    return trained(eight, tmp_path_factory.mktemp("runs") / "whole")


def taken(run: Path, *names: str) -> list[str]:
    """Give settings that take stages from another run."""
    return [f'{name}.weights="{run}/stages/{name}"' for name in names]


def flair(cohort: Path, person: str) -> Path:
    return cohort.parent / person / f"{person}_flair.nii.gz"


# ---- signals


def calibrated(run: Path, cohort: Path, *options: object) -> dict[str, Any]:
    done(scanbridge("calibrate", run, "--cohort", cohort, *DEVICE, "--patients", "0.8", *options))
    found: dict[str, Any] = json.loads((run / "calibration.json").read_text())
    return found


@pytest.fixture(scope="module")
def by_consistency(whole, eight, tmp_path_factory) -> Path:
    """The run, calibrated by the map of the score. Not to be changed."""
    run = copied(whole, tmp_path_factory.mktemp("runs") / "consistency")
    assert calibrated(run, eight, "--signal", "consistency")["signal"] == "consistency"
    return run


def test_the_val_subjects_choose_among_the_signals_that_the_method_alone_has(whole, eight, tmp_path):
    found = calibrated(copied(whole, tmp_path / "run"), eight)
    assert {"branches", "consistency"} <= found["choice"].keys()
    assert "windows" not in found["choice"]  # slices that do not overlap: it would be the map of the branches again
    assert found["choice"][found["signal"]] == min(found["choice"].values())


def test_a_translation_makes_its_interval_of_the_chosen_signal(by_consistency, eight, tmp_path):
    done(scanbridge("translate", by_consistency, flair(eight, "p4"), "--out", tmp_path, *DEVICE, "--interval"))
    base = str(tmp_path / "p4_flair_t1w")
    low, estimate, high = (read(f"{base}{end}.nii.gz").data for end in ("_low", "", "_high"))
    held = Calibration.of_run(by_consistency)
    assert held is not None
    kept = by_consistency / "calibration" / "p5"  # there the signal itself was kept
    signal = read(kept / "p5_flair_t1w_consistency.nii.gz").data
    data = read(kept / "p5_flair_t1w.nii.gz").data
    bounds = held.interval(data, signal)
    assert np.ptp(bounds[1] - bounds[0]) > 0  # not one width
    done(scanbridge("translate", by_consistency, flair(eight, "p5"), "--out", tmp_path, *DEVICE))
    written = [read(tmp_path / f"p5_flair_t1w_{end}.nii.gz").data for end in ("low", "high")]
    for wanted, found in zip(bounds, written, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-3 * np.ptp(data))
    assert np.all((low <= estimate) & (estimate <= high))


def test_an_evaluation_holds_that_interval_against_the_truth(by_consistency, eight, tmp_path):
    done(scanbridge("evaluate", by_consistency, "--cohort", eight, "--out", tmp_path, *DEVICE))
    found = metrics(tmp_path, by_consistency.name)["value"]
    assert 0 <= found["foreground", "miss"] <= 1
    assert found["foreground", "width"] > 0


# ---- the ceiling


def page(run: Path, cohort: Path, out: Path) -> str:
    done(scanbridge("evaluate", run, "--cohort", cohort, "--out", out, *DEVICE))
    return (out / "report.html").read_text()


def test_the_page_shows_what_the_autoencoder_keeps_beside_the_floors(whole, eight, tmp_path):
    text = page(whole, eight, tmp_path / "out")
    (kept,) = json.loads((whole / "reconstruction.json").read_text())["per_subject"]["target"]
    row = re.search(r'<tr class="floor">\s*<th[^>]*>ceiling:autoencoder.*?</tr>', text, re.DOTALL)
    assert row is not None
    assert f"{kept['psnr']:.2f}" in row[0]
    assert f"{kept['ssim_3d']:.3f}" in row[0]
    assert "Ceiling: what the autoencoder keeps" in text
    assert "ceiling" not in (tmp_path / "out" / "summary.json").read_text()  # it is of other people


def test_a_run_without_an_autoencoder_has_no_ceiling_and_a_damaged_one_is_said(whole, eight, tmp_path):
    run = copied(whole, tmp_path / "run")
    (run / "reconstruction.json").write_text('{"per_subject": {"target": [{"psnr": "good"}]}}')
    outcome = scanbridge("evaluate", run, "--cohort", eight, "--out", tmp_path / "out", *DEVICE)
    assert outcome.code == 2
    assert "reconstruction.json is not what training wrote" in outcome.fault
    (run / "reconstruction.json").unlink()
    assert "ceiling" not in page(run, eight, tmp_path / "out").lower()


# ---- features


def test_features_are_compared_at_every_level_of_both_ways(whole, eight, tmp_path):
    out = tmp_path / "features"
    done(scanbridge("features", whole, "--cohort", eight, "--out", out, "--split", "calibration", *DEVICE))
    frame = pd.read_csv(out / "metrics.csv")
    assert set(frame["region"]) == {"encoder 1/1", "encoder 1/2", "decoder 1/2", "decoder 1/1"}
    assert set(frame["subject"]) == {"p5", "p6", "p7", "p8"}
    assert frame.loc[frame["metric"] == "cka", "value"].between(0, 1).all()
    wide = frame.pivot_table(index=["subject", "region"], columns="metric", values="value")
    assert (wide["cka_shuffled"] < wide["cka"]).all()
    text = (out / "report.html").read_text()
    assert not re.search(r"https?://|<script|src=\"(?!data:)", text)
    assert "encoders less decoders" in text
    assert text.count("<figure>") == 4
    again = tmp_path / "again"
    done(scanbridge("features", whole, "--cohort", eight, "--out", again, "--split", "calibration", *DEVICE))
    assert (again / "metrics.csv").read_bytes() == (out / "metrics.csv").read_bytes()


# ---- scores


@pytest.fixture(scope="module")
def scored(whole, eight, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scored")
    asked = ("--samples", "3", "--split", "calibration")
    done(scanbridge("consistency", whole, "--cohort", eight, "--out", out, *asked, *DEVICE))
    return out


def test_what_was_found_of_a_scan_is_kept_and_read_again(scored, whole, eight, tmp_path, monkeypatch):
    out = copied(scored, tmp_path / "out")
    for name in ("p6", "p8"):  # as if it had been killed, and one file spoilt
        file = out / "scans" / f"{name}.json"
        file.unlink() if name == "p6" else file.write_text(file.read_text().replace('"found"', '"lost"'))
    drawn: list[str] = []
    honest = consistency._sampled
    monkeypatch.setattr(
        consistency, "_sampled", lambda table, row, *others: (drawn.append(row.name), honest(table, row, *others))[1]
    )
    asked = ("--samples", "3", "--split", "calibration", *DEVICE)
    done(scanbridge("consistency", whole, "--cohort", eight, "--out", out, *asked))
    assert drawn == ["p6", "p8"]
    for table in ("draws.csv", "metrics.csv", "report.html"):
        assert (out / table).read_bytes() == (scored / table).read_bytes()
    done(scanbridge("consistency", whole, "--cohort", eight, "--out", out, *asked, "--seed", "1"))
    assert drawn == ["p6", "p8", "p5", "p6", "p7", "p8"]


def test_draws_and_estimate_are_those_that_evaluate_judges(scored, whole, eight, tmp_path):
    asked = ("--samples", "3", "--split", "calibration")
    done(scanbridge("evaluate", whole, "--cohort", eight, "--out", tmp_path, *asked, *DEVICE))
    judged = pd.read_csv(tmp_path / "metrics.csv")
    judged = judged[judged["region"] == "foreground"].set_index(["run", "subject", "metric"])["value"]
    draws, found = pd.read_csv(scored / "draws.csv"), pd.read_csv(scored / "metrics.csv")
    of = found.set_index(["subject", "region", "metric"])["value"]
    told = pd.read_csv(tmp_path / "subjects.csv").set_index(["run", "subject"])
    for person in ("p5", "p8"):
        first = draws[(draws["subject"] == person) & (draws["draw"] == 1)].iloc[0]
        about = json.loads((tmp_path / f"translations/whole/{person}/{person}_flair_t1w.json").read_text())
        scores = [each[0] for each in about["made"]["draws"]["consistency"]]
        assert draws.loc[draws["subject"] == person, "score"].tolist() == pytest.approx(scores)
        for metric in ("psnr", "ssim_3d", "mae"):
            assert first[metric] == pytest.approx(judged["whole:draw", person, metric], rel=1e-5)
            assert of[person, "the estimate", metric] == pytest.approx(judged["whole", person, metric], rel=1e-5)
        assert of[person, "map spread", "aurc"] == pytest.approx(told.loc[("whole", person), "aurc_model"], rel=1e-4)
        assert of[person, "map constant", "aurc"] == pytest.approx(
            told.loc[("whole", person), "aurc_constant"], rel=1e-5
        )


def test_scores_run_from_0_to_1_over_the_draws_of_each_scan(scored):
    draws = pd.read_csv(scored / "draws.csv")
    for _, each in draws.groupby("row"):
        assert (each["normalised"].min(), each["normalised"].max()) == (0, 1)
        assert each.loc[each["score"].idxmax(), "group"] == 5
        assert each.loc[each["score"].idxmin(), "group"] == 1


def test_the_page_of_the_scores_says_what_they_are_worth_and_needs_nothing_beside_it(scored):
    text = (scored / "report.html").read_text()
    assert not re.search(r"https?://|<script|src=\"(?!data:)", text)
    for said in ("Five groups by normalised score", "choosing by the truth would give", "ranks the errors"):
        assert said in text
    summary = json.loads((scored / "summary.json").read_text())
    rows = {(row["region"], row["metric"]): row for row in summary}
    assert rows["score over the draws", "spearman_psnr"]["n"] == 4
    for name in ("consistency", "branches", "spread", "gradient", "constant"):
        assert rows[f"map {name}", "aurc"]["mean"] > 0


# ---- what a user may get wrong


def refused(out: Path, verb: str, run: Path, cohort: Path, *options: object) -> str:
    outcome: Outcome = scanbridge(verb, run, "--cohort", cohort, "--out", out, *options, *DEVICE)
    assert outcome.code == 2, outcome.err
    assert not out.exists()  # nothing was begun
    return outcome.fault


@pytest.mark.parametrize(
    ("verb", "options", "said"),
    [
        ("consistency", ("--samples", 0), "--samples 0 cannot be ranked; expected two draws at least"),
        ("consistency", ("--samples", 1), "--samples 1 cannot be ranked"),
        ("consistency", ("--on", "source"), "--on source; expected target or model"),
        ("consistency", ("--split", "tset"), "--split tset"),
        ("features", ("--split", "train"), "--split train"),
        ("features", ("--time", 0), "--time 0; expected a time of the bridge in (0, 1]"),
        ("features", ("--time", 1.5), "--time 1.5"),
    ],
)
def test_an_option_that_cannot_be_is_one_line(whole, eight, tmp_path, verb, options, said):
    assert said in refused(tmp_path / "out", verb, whole, eight, *options)


@pytest.mark.parametrize("verb", ["features", "consistency"])
def test_a_run_without_two_branches_or_people_is_one_line(whole, eight, regression, tmp_path, verb):
    out = tmp_path / "out"
    assert "is a regression run; expected an rlbcd run" in refused(out, verb, regression, eight)
    seen = eight.with_name("seen.csv")
    seen.write_text("\n".join(eight.read_text().splitlines()[:2]) + "\n")
    seen.with_suffix(".toml").write_text(eight.with_suffix(".toml").read_text())
    assert "no subject with flair and t1w is in 'test'" in refused(out, verb, whole, seen)
    assert "trained on" in refused(out, verb, whole, seen, "--split", "external")


def test_one_branch_and_draws_without_spread_are_one_line(whole, eight, tmp_path):
    one = trained(eight, tmp_path / "one", 'branches="enhanced"', *taken(whole, "autoencoder"))
    flat = trained(eight, tmp_path / "flat", "draw.temperature=0.0", *taken(whole, "autoencoder", "consistency"))
    for verb in ("features", "consistency"):
        assert "has the enhanced branch alone" in refused(tmp_path / "out", verb, one, eight)
    assert "would all be equal" in refused(tmp_path / "out", "consistency", flat, eight)
    outcome = scanbridge("calibrate", one, "--cohort", eight, "--signal", "branches", "--patients", "0.8", *DEVICE)
    assert outcome.code == 2
    assert "--signal branches" in outcome.fault
