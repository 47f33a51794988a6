"""Laws of the draws of a scan and their scores: groups, choices and rank correlations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scanbridge.branches.sampled import CHOICES, Sampled, draws_frame, metrics_frame
from scanbridge.metrics.uncertainty import Ranking, RiskCoverage
from scanbridge.nets.fusion import normalise

MAE = [0.5, 0.1, 0.4, 0.2, 0.3]


def curve(area: float) -> RiskCoverage:
    return RiskCoverage(np.array([0.5, 1.0]), np.array([area, area]), area, 0.0)


def sampled(scores: list[float], subject: str = "p1", mae: list[float] | None = None) -> Sampled:
    errors = mae or MAE
    return Sampled(
        row=subject,
        subject=subject,
        unit="SUV",
        scores=scores,
        normalised=normalise(torch.tensor(scores, dtype=torch.float64)).tolist(),
        qualities=[{"psnr": 20 - 10 * e, "ssim_3d": 1 - e, "mae": e} for e in errors],
        estimate={"psnr": 21.0, "ssim_3d": 0.9, "mae": 0.05},
        maps=[Ranking("consistency", 0.3, curve(0.2)), Ranking("gradient", 0.1, curve(0.3))],
    )


def number(scan: Sampled, region: str, metric: str) -> float:
    frame = metrics_frame([scan], "run", "pet").set_index(["region", "metric"])["value"]
    return float(frame[region, metric])


def test_a_score_that_is_the_error_turned_round_chooses_what_the_truth_would_choose():
    scan = sampled([-e for e in MAE])
    assert number(scan, "score over the draws", "spearman_mae") == pytest.approx(-1)
    assert number(scan, "score over the draws", "spearman_psnr") == pytest.approx(1)
    for metric in ("psnr", "ssim_3d", "mae"):
        by_score, by_truth = (number(scan, f"choosing by the {how}", f"{metric}_gain") for how in ("score", "truth"))
        assert by_score == by_truth != 0
    assert number(scan, CHOICES[1], "mae") == 0.1


def test_a_score_that_prefers_errors_loses_by_choosing():
    scan = sampled(MAE)
    assert number(scan, "score over the draws", "spearman_psnr") == pytest.approx(-1)
    assert number(scan, "choosing by the score", "psnr_gain") < 0 < number(scan, "choosing by the score", "mae_gain")


def test_groups_are_fifths_of_the_range_of_the_scores_of_a_scan():
    assert sampled([-10.0, -8.1, -6.0, -1.0, 0.0]).groups == [1, 1, 3, 5, 5]
    assert sampled([-1.0] * 5).groups == [None] * 5  # equal scores rank nothing


def test_a_group_holds_the_mean_of_its_draws_and_its_difference_from_all_of_them():
    scan = sampled([-10.0, -8.1, -6.0, -1.0, 0.0])
    assert number(scan, "group 1", "mae") == pytest.approx(0.3)
    assert number(scan, "group 1", "mae_from_own_mean") == pytest.approx(0.0)
    assert number(scan, "group 5", "mae_from_own_mean") == pytest.approx(0.25 - 0.3)
    frame = metrics_frame([scan], "run", "pet")
    assert not (frame["region"] == "group 2").any()  # nobody is in it: no number


def test_adding_a_constant_to_the_errors_of_a_patient_moves_no_difference():
    scores = [-3.0, -1.0, -2.0, -5.0, -4.0]
    here, there = sampled(scores), sampled(scores, mae=[e + 1 for e in MAE])
    for group in range(1, 6):
        assert number(here, f"group {group}", "mae_from_own_mean") == pytest.approx(
            number(there, f"group {group}", "mae_from_own_mean")
        )


def test_equal_scores_have_no_correlation_and_draws_without_a_group():
    scan = sampled([-1.0] * 5)
    assert math.isnan(number(scan, "score over the draws", "spearman_psnr"))
    assert draws_frame([scan])["group"].isna().all()


def test_a_map_is_held_against_the_gradient_of_the_source():
    assert number(sampled(MAE), "map consistency", "aurc_from_gradient") == pytest.approx(-0.1)
