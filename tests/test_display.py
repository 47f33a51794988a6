"""Laws of how images are shown: a window for a kind, the same for what is predicted and what is true."""

from __future__ import annotations

import numpy as np
import pytest

from scanbridge.data.cohort import read_cohort
from scanbridge.data.intensity import Scale
from scanbridge.display import LEAST_SUV, look, planes_of
from scanbridge.model import Model
from scanbridge.truth import load_truth

SUV = Scale(0.0, 15.0, "SUV")


@pytest.mark.parametrize(("top", "end"), [(2.0, LEAST_SUV), (8.0, 8.0), (40.0, 15.0)])
def test_a_pet_ends_at_its_own_brightest_voxels_and_never_beyond_its_scale(top, end):
    values = np.concatenate([np.full(90, 1.0), np.full(10, top)])
    shown = look("pet", "pet", SUV, values)
    assert (shown.low, shown.high, shown.unit) == (0.0, end, "SUV")
    assert shown.inverted


def test_a_few_hot_voxels_do_not_darken_the_rest():
    values = np.concatenate([np.full(10_000, 2.0), np.full(20, 15.0)])
    assert look("pet", "pet", SUV, values).high == LEAST_SUV


@pytest.mark.parametrize(("kind", "scale"), [("mr", Scale(20.0, 900.0, "1")), ("ct", Scale(-1000.0, 1000.0, "HU"))])
def test_others_are_shown_on_their_whole_scale(kind, scale):
    shown = look("x", kind, scale, np.zeros(5))
    assert (shown.low, shown.high) == ((0.0, 1.0) if kind == "mr" else (-1000.0, 1000.0))
    assert not shown.inverted


def test_prediction_draw_and_truth_of_a_subject_have_one_window(run, cohort):
    table = read_cohort(cohort)
    truth = load_truth(table, table.rows[-1], Model.open(run, device="cpu"), "target")
    planes = planes_of(truth, 2 * truth.target, truth.target, 0.5 * truth.target)
    target = [planes.images[-1], *planes.draws]
    assert len({(panel.low, panel.high, panel.unit) for panel in target}) == 1
