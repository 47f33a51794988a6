import json
import math

import numpy as np
import pandas as pd
import pytest

from scanbridge.metrics.statistics import holm, leaders, mean_interval, paired, signed_rank, summarise

COLUMNS = ["run", "subject", "target", "region", "metric", "unit", "value"]


def table(runs, metric="psnr", unit="dB", region="foreground"):
    rows = [
        (run, f"sub-{i:02d}", "t1w", region, metric, unit, value)
        for run, values in runs.items()
        for i, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def test_an_interval_holds_its_mean_and_is_the_same_twice():
    values = np.random.default_rng(0).normal(20, 2, 30)
    found = mean_interval(values)
    assert found == mean_interval(values)
    assert found.low < found.mean < found.high
    assert found.mean == pytest.approx(values.mean())
    assert found.sd == pytest.approx(values.std(ddof=1))
    standard_error = found.sd / math.sqrt(30)
    assert found.high - found.low == pytest.approx(2 * 1.96 * standard_error, rel=0.15)
    assert found.note == ""


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        found = mean_interval(rng.exponential(size=40))
        hits += found.low <= 1.0 <= found.high
    assert 0.85 <= hits / 100 <= 0.99


def test_the_interval_moves_and_scales_with_the_data():
    values = np.random.default_rng(2).gamma(2, size=15)
    found = mean_interval(values)
    for factor in (1e-100, 3.0, 1e100):
        other = mean_interval(values * factor)
        assert (other.low, other.high) == pytest.approx((found.low * factor, found.high * factor), rel=1e-9)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], (0, None, None, "no value")),
        ([math.nan], (0, None, None, "no value")),
        ([2.0], (1, 2.0, None, "one patient: no interval")),
        ([2.0, 2.0, 2.0], (3, 2.0, 2.0, "3 patients: the interval is too narrow")),
        ([2.0] * 12, (12, 2.0, 2.0, "")),
        ([1.0, math.inf], (2, None, None, "infinite in 1 of 2: identical to the truth")),
    ],
)
def test_degenerate_data_are_told_apart(values, expected):
    found = mean_interval(values)
    assert (found.n, found.mean, found.low, found.note) == expected


def test_a_summary_is_json_and_counts_patients_with_a_number():
    frame = table({"a": [20.0, math.inf, 21.0], "b": [18.0, None, 19.0]})
    first, second = json.loads(json.dumps(summarise(frame), allow_nan=False))
    assert (first["run"], first["n"], first["mean"]) == ("a", 3, None)
    assert "identical" in first["note"]
    assert (second["run"], second["n"], second["mean"]) == ("b", 2, 18.5)
    assert set(second) == {"run", "target", "region", "metric", "unit", "n", "mean", "sd", "low", "high", "note"}


def test_visits_of_a_patient_are_one_patient():
    frame = table({"a": [10.0, 20.0, 30.0]})
    again = frame[frame["subject"] == "sub-00"].assign(value=14.0)
    (row,) = summarise(pd.concat([frame, again]))
    assert row["n"] == 3
    assert row["mean"] == pytest.approx((12 + 20 + 30) / 3)


def test_rows_keep_the_order_in_which_runs_came():
    frame = table({"z": [1.0, 2.0], "a": [1.0, 2.0]})
    assert [row["run"] for row in summarise(frame)] == ["z", "a"]


def test_holm_by_hand():
    """Sorted 0.005, 0.011, 0.02, 0.04 times 4, 3, 2, 1, then never falling."""
    assert holm([0.02, 0.005, 0.04, 0.011]) == pytest.approx([0.04, 0.02, 0.04, 0.033])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_signed_rank_test_is_exact():
    assert signed_rank([1, 2, 3, 4, 5, 6]) == 2 * 2**-6
    assert signed_rank([-1, 2, 3, 4, 5, 6]) == 4 * 2**-6
    assert signed_rank([1, 1, 1, 1, 1, 1]) == 2 * 2**-6  # ties
    assert signed_rank([0, 0, 1, 2, 3]) == 2 * 2**-3  # zeros are dropped
    assert signed_rank([0, 0]) == 1.0
    assert signed_rank([1.0]) is None


def test_a_pair_shares_its_patients():
    reference = [15.0, 16.0, 18.0, 14.0, 15.5, 17.0, 16.5]
    better = [r + d for r, d in zip(reference, (1, 2, 3, 4, 5, 6, 7), strict=True)]
    frame = table({"floor:intensity": reference, "a": better})
    rows = paired(frame, "floor:intensity", ["psnr", "absent"], "foreground")
    (row,) = rows
    assert (row["n"], row["difference"], row["p"], row["family"]) == (7, 4.0, 2 * 2**-7, 1)
    assert 0 < row["low"] < 4 < row["high"]
    assert row["p_holm"] == row["p"]
    fewer = frame[~((frame["run"] == "a") & (frame["subject"] == "sub-06"))]
    (row,) = paired(fewer, "floor:intensity", ["psnr"], "foreground")
    assert (row["n"], row["difference"]) == (6, 3.5)


def test_the_family_is_all_runs_and_metrics():
    runs = {"ref": [1.0] * 6, "a": [2.0, 3, 4, 5, 6, 7], "b": [0.5, 3, 4, 5, 6, 7]}
    frame = pd.concat([table(runs), table(runs, "mae", "1"), table(runs, region="volume")])
    rows = paired(frame, "ref", ["psnr", "mae"], "foreground")
    assert [(row["run"], row["metric"]) for row in rows] == [("a", "psnr"), ("b", "psnr"), ("a", "mae"), ("b", "mae")]
    assert {row["family"] for row in rows} == {4}
    assert [row["p_holm"] for row in rows] == pytest.approx(holm([row["p"] for row in rows]))


def test_what_cannot_be_compared_is_said():
    frame = table({"ref": [1.0, 2.0], "perfect": [math.inf, math.inf], "few": [2.0, 4.0]})
    perfect, few = json.loads(json.dumps(paired(frame, "ref", ["psnr"], "foreground"), allow_nan=False))
    assert (perfect["n"], perfect["difference"], perfect["p"], perfect["p_holm"]) == (0, None, None, None)
    assert "identical" in perfect["note"]
    assert few["p"] == 0.5
    assert "smallest possible p is 0.5" in few["note"]
    with pytest.raises(ValueError, match="no run"):
        paired(frame, "reff", ["psnr"], "foreground")


@pytest.mark.parametrize(
    ("metric", "runs", "leader"),
    [
        ("psnr", {"a": [20.0, 21, 22] * 2, "b": [18.0, 19.5, 20] * 2}, "a"),
        ("mae", {"a": [20.0, 21, 22] * 2, "b": [18.0, 19.5, 20] * 2}, "b"),
        ("sharpness", {"a": [0.9, 0.95, 0.9] * 2, "b": [1.5, 1.6, 1.4] * 2, "c": [0.2, 0.3, 0.1] * 2}, "a"),
        ("psnr", {"a": [20.0, 21, 22] * 2, "b": [20.5, 19.5, 21.5] * 2}, None),
        ("psnr", {"a": [20.0, 21, 22, 23, 24], "b": [18.0, 19.5, 20, 20, 20]}, None),  # too few to tell
        ("psnr", {"a": [20.0], "b": [10.0]}, None),
        ("psnr", {"a": [20.0, 21.0]}, None),
    ],
)
def test_a_leader_leads_beyond_chance(metric, runs, leader):
    assert leaders(table(runs, metric), [metric], "foreground") == {("t1w", metric): leader}
