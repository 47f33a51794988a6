"""Laws of draws through the whole house: written one by one, judged beside the estimate, never ranked against it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scanbridge.api import Run
from scanbridge.data.cohort import read_cohort
from scanbridge.data.nifti import read
from scanbridge.judge import judge_draws, judge_truth
from scanbridge.methods.base import Request
from scanbridge.metrics.draws import rim_of
from scanbridge.model import Model
from scanbridge.translation import grid_of, prepare_source
from scanbridge.truth import load_truth
from small import brain, contents, copied, done, scanbridge, write_cohort

K = 3
DEVICE = ("--device", "cpu")


@pytest.fixture(scope="module")
def judged(run, cohort, tmp_path_factory) -> Path:
    """The test patient, judged with draws. Not to be changed."""
    out = tmp_path_factory.mktemp("judged") / "out"
    done(scanbridge("evaluate", run, "--cohort", cohort, "--out", out, "--samples", K, *DEVICE))
    return out


@pytest.fixture(scope="module")
def plain(run, cohort, tmp_path_factory) -> Path:
    """The same without. Not to be changed."""
    out = tmp_path_factory.mktemp("plain") / "out"
    done(scanbridge("evaluate", run, "--cohort", cohort, "--out", out, *DEVICE))
    return out


@pytest.fixture(scope="module")
def truth(run, cohort):
    """What the test patient's predictions are held against."""
    table = read_cohort(cohort)
    row = next(row for row in table.rows if row.subject == "p4")
    return load_truth(table, row, Model.open(run, device="cpu"), "target").with_looks()


def test_the_api_gives_draws_that_are_those_of_one_call_and_their_spread(run, cohort):
    scan = read(cohort.parent / "p4" / "p4_flair.nii.gz")
    opened = Run(run, device="cpu")
    made = opened.translate(scan, samples=K, on="model")
    prepared = prepare_source(opened.model, scan)
    together = opened.model.draw(
        prepared.source, prepared.foreground, Request("t1w", prepared.subject, product="draw", samples=K)
    )
    scale = opened.model.scales["t1w"]
    assert len(made.draws) == K
    np.testing.assert_array_equal(made.draws, scale.decode(together.volumes.numpy()))
    np.testing.assert_allclose(made.uncertainty, np.std(made.draws, axis=0, ddof=1), rtol=1e-3, atol=1e-4 * scale.range)
    assert made.affine.tolist() == grid_of(opened.model, scan).affine.tolist()
    assert made.facts["draws"]["samples"] == K
    assert opened.translate(scan).draws == []


def test_files_of_draws_are_those_of_the_api(run, cohort, tmp_path):
    scan = cohort.parent / "p4" / "p4_flair.nii.gz"
    done(scanbridge("translate", run, scan, "--out", tmp_path, "--samples", 2, *DEVICE))
    made = Run(run, device="cpu").translate(scan, samples=2)
    for number, draw in enumerate(made.draws, start=1):
        np.testing.assert_array_equal(read(tmp_path / f"p4_flair_t1w_draw-{number:02d}.nii.gz").data, draw)
    np.testing.assert_array_equal(read(tmp_path / "p4_flair_t1w_uncertainty.nii.gz").data, made.uncertainty)


def test_a_failure_leaves_what_was_there_before_the_first_draw(run, cohort, tmp_path):
    spoilt = copied(run, tmp_path / "run")
    scan, out = cohort.parent / "p4" / "p4_flair.nii.gz", tmp_path / "out"
    done(scanbridge("translate", spoilt, scan, "--out", out, *DEVICE))
    before = contents(out)
    refused = scanbridge(
        "translate", spoilt, scan, "--out", out, "--samples", 2, "--grid", "thet", "--overwrite", *DEVICE
    )
    assert refused.code == 2
    assert contents(out) == before


def test_an_evaluation_has_rows_of_one_draw_and_of_the_mean(judged):
    frame = pd.read_csv(judged / "metrics.csv")
    assert {"small", "small:one-call", "small:draw", f"small:mean-of-{K}"} <= set(frame["run"])
    assert not frame.duplicated(["run", "subject", "target", "region", "metric"]).any()
    rows = json.loads((judged / "summary.json").read_text(), parse_constant=pytest.fail)
    named = {(row["run"], row["metric"]) for row in rows if row["region"] == "foreground"}
    assert {("small:draw", "sharpness"), ("small:draw", "psnr"), (f"small:mean-of-{K}", "spread_ratio")} <= named


def test_all_else_is_as_it_is_without_draws(judged, plain):
    alone, beside = (pd.read_csv(out / "metrics.csv") for out in (plain, judged))
    new = beside["run"].str.contains(":draw|:mean-of", regex=True) | beside["metric"].isin(["contrast", "grain"])
    pd.testing.assert_frame_equal(beside[~new].reset_index(drop=True), alone)
    assert not alone["run"].str.contains("draw|mean-of|truth", regex=True).any()
    assert "Draws beside the estimate" not in (plain / "report.html").read_text()


def test_draws_are_in_a_section_of_their_own_and_ranked_against_no_estimate(judged):
    page = (judged / "report.html").read_text()
    section = page[
        page.index('id="draws"') : page.index('id="draws"') + page[page.index('id="draws"') :].index("</section>")
    ]
    for words in ("An estimate is", "a draw is", "3 dB", "small:draw", f"small:mean-of-{K}", "spread", "contrast"):
        assert words in section
    elsewhere = page.replace(section, "")
    assert "small:draw" not in elsewhere
    assert "mean-of" not in elsewhere
    assert "<strong>" not in section
    assert re.search(r"The draws of small offer (this|nothing)", section)


def test_the_numbers_are_those_of_the_written_draws(judged, truth):
    folder = judged / "translations" / "small" / "p4"
    draws = [read(folder / f"p4_flair_t1w_draw-{number + 1:02d}.nii.gz").data for number in range(K)]
    facts = json.loads((folder / "p4_flair_t1w.json").read_text())["scale"]
    inside, span = truth.regions["foreground"], facts["high"] - facts["low"]
    share = (np.asarray(draws, np.float64) - facts["low"]) / span
    error = np.clip(share.mean(0), 0, 1) - truth.target
    ratio = np.sqrt((1 + 1 / K) * share.var(0, ddof=1)[inside].mean() / (error[inside] ** 2).mean())
    frame = pd.read_csv(judged / "metrics.csv").set_index(["run", "region", "metric"])["value"]
    assert frame[f"small:mean-of-{K}", "foreground", "spread_ratio"] == pytest.approx(ratio, rel=1e-4)
    mask = truth.regions["lesion"]
    rim = rim_of(mask, inside)
    assert frame["truth", "lesion", "contrast"] == pytest.approx(
        truth.target[mask].mean() - truth.target[rim].mean(), abs=1e-6
    )
    one = np.clip(share[0], 0, 1)
    assert frame["small:draw", "lesion", "contrast"] == pytest.approx(one[mask].mean() - one[rim].mean(), abs=1e-5)
    assert frame["small:draw", "foreground", "mae"] == pytest.approx(
        np.abs(one - truth.target)[inside].mean(), abs=1e-5
    )


def test_an_oracle_sampler_is_calibrated_as_sharp_as_the_truth_and_loses_three_db(truth):
    """Truth and draws are one law: the real image in its noise, once as the truth and K times as draws."""
    from dataclasses import replace

    rng = np.random.default_rng(0)
    clean = 0.25 + 0.5 * truth.target

    def noisy() -> np.ndarray:
        return (clean + 0.05 * rng.normal(size=clean.shape)).astype(np.float32)

    real = replace(truth, target=noisy())
    mean, one = judge_draws("oracle", real, (truth.scale.decode(2 * noisy() - 1) for _ in range(8)), truth.scale)
    assert mean.value("spread_ratio") == pytest.approx(1, abs=0.03)
    assert one.value("sharpness") == pytest.approx(1, abs=0.05)
    assert mean.value("sharpness") < 0.7
    assert mean.value("psnr") - one.value("psnr") == pytest.approx(10 * np.log10(2 / (1 + 1 / 8)), abs=0.2)
    (own,) = judge_truth(real)
    assert one.value("grain") == pytest.approx(own.value("grain"), rel=0.1)
    assert own.value("grain") > 0.1
    assert one.value("contrast", "lesion") == pytest.approx(own.value("contrast", "lesion"), abs=0.02)


@pytest.mark.parametrize(("samples", "said"), [(1, "has no spread"), (2, "has no draws")])
def test_draws_that_say_nothing_are_refused(run, regression, cohort, tmp_path, samples, said):
    which = run if samples == 1 else regression
    words = ["evaluate", which, "--cohort", cohort, "--out", tmp_path / "out", "--samples", samples, *DEVICE]
    refused = scanbridge(*words)
    assert refused.code == 2
    assert said in refused.fault
    assert not (tmp_path / "out").exists()


def test_draws_of_two_runs_are_compared_with_each_other_and_a_regression_stands_by(run, regression, cohort, tmp_path):
    twin = copied(run, tmp_path / "twin")
    strangers = write_cohort(tmp_path / "new", {f"s{i}": brain(50 + i) for i in range(2)})
    words = ["--cohort", strangers, "--split", "external", "--out", tmp_path / "out", "--samples", 2, *DEVICE]
    done(scanbridge("compare", run, twin, regression, *words))
    page = (tmp_path / "out" / "report.html").read_text()
    assert re.findall(r"against (\S+:(?:draw|mean-of-2))<", page) == ["twin:mean-of-2"] * 3 + ["twin:draw"] * 3
    assert not re.search(
        r"against (?:twin|small):(?:draw|mean-of-2)<.{0,400}>(?:small|twin|regression)(?::one-call)?<", page, re.S
    )
