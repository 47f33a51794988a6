import base64
import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from scanbridge.report.figures import (
    Dots,
    Series,
    dot_plot,
    error_against_uncertainty,
    risk_coverage_curves,
    training_curves,
)

LINE = Series("bridge", [1, 2, 4, 8], [18.0, 19, 19.5, 19.6], [17.0, 18, 18.5, 18.6], [19.0, 20, 20.5, 20.6])
FLOOR = Series("floor:intensity", [1, 8], [15.6, 15.6], reference=True)


def rng_volume(seed):
    return np.random.default_rng(seed).uniform(size=(6, 7, 8)).astype(np.float32)


FIGURES = {
    "dots": lambda: dot_plot(
        [
            Dots("bridge", [19.0, 20.0, math.inf], None),
            Dots("one", [18.0], 18.0),
            Dots("none", []),
            Dots("floor:intensity", [15.0, 16.0], 15.5, 15.0, 16.0, reference=True),
        ],
        label="PSNR (dB)",
        alt="PSNR of every patient",
    ),
    "training": lambda: training_curves([Series("train", [1, 2, 3], [0.5, 0.4, 0.3])]),
    "risk": lambda: risk_coverage_curves([Series("model", [0.5, 1.0], [1.0, 2.0])], unit="HU"),
    "error": lambda: error_against_uncertainty(
        rng_volume(0), rng_volume(1), np.ones((6, 7, 8), bool), unit="SUV", n_bins=5
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_plot_is_a_described_svg_that_asks_for_nothing_and_is_the_same_twice(name):
    first, second = FIGURES[name](), FIGURES[name]()
    assert first == second
    assert first.alt
    text = base64.b64decode(first.uri.removeprefix("data:image/svg+xml;base64,")).decode()
    root = ET.fromstring(text)  # noqa: S314 - our own picture
    assert root.tag.endswith("svg")
    for element in root.iter():
        for key, value in element.attrib.items():
            if key.endswith("href"):
                assert value.startswith("#")
    assert "<script" not in text


def test_plots_leave_no_state_behind():
    from matplotlib import rcParams

    before = dict(rcParams)
    for make in FIGURES.values():
        make()
    assert dict(rcParams) == before


def test_the_sizes_suit_a_phone():
    for make in FIGURES.values():
        assert make().width <= 430  # shown at 343 pixels, the text keeps at least eight tenths of its size
