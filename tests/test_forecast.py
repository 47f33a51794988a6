"""Laws of the forecast: the method says its effort, the forecast only multiplies; what may be asked stands once."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import pytest

from scanbridge.forecast import forecast
from scanbridge.methods.base import Asked, Draws, Effort, Foreseeable, Request
from scanbridge.model import Model
from scanbridge.options import Options


@dataclass
class Quiet:
    """A translator that says nothing beforehand."""

    inner: Any

    def draw(self, source: Any, request: Request) -> Draws:
        return self.inner.draw(source, request)


@dataclass
class Telling(Quiet):
    """A translator that says what a test wants."""

    told: dict[str, Effort]

    def effort(self, request: Request) -> Effort:
        return self.told[request.product]


def test_what_a_method_says_is_what_is_forecast(run, cohort):
    model = Model.open(run, device="cpu")
    told = {"estimate": Effort(asked=16, nodes=12, calls=23, batch=4), "draw": Effort(asked=7, nodes=7, calls=7)}
    scan = cohort.parent / "p4" / "p4_flair.nii.gz"
    lines = forecast(replace(model, translator=Telling(model.translator, told)), [scan] * 3, Options(samples=5))
    assert lines[0].startswith("3 scans, 23 network calls each, and 7 for each of 5 draws: about ")
    assert lines[1:] == ["16 network calls were asked for and 12 are made: the others fall on the same times"]


def test_a_method_that_says_nothing_is_translated_without_a_forecast(run, cohort):
    model = Model.open(run, device="cpu")
    assert isinstance(model.translator, Foreseeable)
    quiet = replace(model, translator=Quiet(model.translator))
    assert not isinstance(quiet.translator, Foreseeable)
    assert forecast(quiet, [cohort.parent / "p4" / "p4_flair.nii.gz"], Options()) == []


WALK = {"calls": 3, "order": 2, "grid": "linear", "eta": 0.5, "temperature": 0.7}


@pytest.mark.parametrize(
    ("samples", "product", "quality", "walk", "n"),
    [
        (0, "estimate", "draft", WALK, 1),
        (0, "one-call", None, WALK, 1),
        (4, "estimate", "draft", {}, 1),  # what is asked of a walk means the draws, where there are any
        (4, "draw", None, WALK, 4),
    ],
)
def test_what_is_asked_reaches_the_product_that_it_means(samples, product, quality, walk, n):
    asked = Options(samples=samples, seed=9, quality="draft", **WALK).request("t1w", "s", product, lambda *_: None)
    found = {each.name: getattr(asked, each.name) for each in fields(Asked)}
    assert found == {**dict.fromkeys(found), **walk, "quality": quality}
    assert (asked.samples, asked.seed, asked.draws) == (n, 9, range(n))
