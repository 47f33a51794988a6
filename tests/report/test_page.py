import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from scanbridge.metrics.statistics import leaders, paired, summarise
from scanbridge.report.figures import Dots, dot_plot
from scanbridge.report.page import Less, ReportContext, Subject, Uncertainty, render, verdict
from scanbridge.report.picture import Picture
from scanbridge.report.planes import Strip

PIXEL = Picture("data:image/png;base64,iVBORw0KGgo=", "a pixel", 1, 1)
METRICS = ("psnr", "ssim_3d")


def frame(shift=4.0, n=12, runs=("runs/a", "floor:intensity", "floor:histogram"), regions=("foreground", "lesion")):
    rng = np.random.default_rng(0)
    base = dict(zip(runs, (15 + shift, 15.0, 11.0), strict=False))
    rows = []
    for region in regions:
        for subject in range(n):
            hard = rng.normal()
            for run, mean in base.items():
                value = mean + hard + rng.normal(0, 0.3)
                rows.append((run, f"s{subject}", "t1w", region, "psnr", "dB", value))
                rows.append((run, f"s{subject}", "t1w", region, "ssim_3d", "1", 0.03 * value))
    return pd.DataFrame(rows, columns=["run", "subject", "target", "region", "metric", "unit", "value"])


def above(by):
    """Give a table in which runs/a is the same amount above the first floor for every patient, in every metric."""
    table = frame()
    floor = table[table["run"] == "floor:intensity"]
    same = floor.assign(run="runs/a", value=floor["value"] + by)
    return pd.concat([same, table[table["run"] != "runs/a"]])


def context(table=None, **changes):
    table = frame() if table is None else table
    settings = {
        "source": "flair",
        "targets": ["t1w"],
        "data": [("Patients", "12 of the test split"), ("Weights", "EMA")],
        "summary": summarise(table),
        "paired": paired(table, "floor:intensity", METRICS, "foreground"),
        "leaders": leaders(table, METRICS, "foreground"),
    }
    return ReportContext(**(settings | changes))


class Outline(HTMLParser):
    """What a reader's browser would see: elements, and whether they are closed in order."""

    VOID = frozenset({"meta", "img", "link", "br"})

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


FULL = {
    "plots": [dot_plot([Dots("a", [1.0, 2.0])], label="PSNR", alt="dots")],
    "subjects": [
        Subject("good", 21.0, Strip(PIXEL, PIXEL), [("PSNR", "21.0 dB")]),
        Subject("bad", 12.0, Strip(PIXEL, None)),
    ],
    "uncertainty": Uncertainty([("model", 0.4, 1.0, 0.1), ("constant", None, 2.0, 1.1)], "SUV", 12, [PIXEL]),
    "training": [PIXEL],
    "settings": [("scanbridge", "0.1.0")],
    "limits": ["One hospital."],
}


def test_a_page_asks_for_nothing_and_forbids_what_could_ask():
    outline = Outline(render(context(**FULL)))
    for tag in ("script", "link", "iframe", "object", "form", "base"):
        assert not outline.all(tag)
    for attrs in outline.all("img"):
        assert attrs["src"].startswith("data:")
    for _, attrs in outline.elements:
        assert not {"style", "onload", "onclick", "href"} & attrs.keys()
    (policy,) = [a["content"] for a in outline.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "img-src data:;" in policy
    style = re.search(r"<style>(.*?)</style>", render(context()), re.S).group(1)
    assert "url(" not in style
    assert "@import" not in style


def test_every_picture_is_described_and_every_table_captioned_and_scoped():
    text = render(context(**FULL))
    outline = Outline(text)
    assert all(attrs["alt"] for attrs in outline.all("img"))
    assert all({"width", "height"} <= attrs.keys() for attrs in outline.all("img"))
    assert len(outline.all("caption")) == len(outline.all("table")) >= 4
    assert all(attrs["scope"] in {"col", "row", "rowgroup"} for attrs in outline.all("th"))
    assert outline.all("html") == [{"lang": "en"}]
    assert len(outline.all("h1")) == 1


def test_a_map_of_uncertainty_is_held_against_maps_that_know_nothing():
    against = {"gradient": Less(11, 12, 0.2, 0.1, 0.3), "constant": Less(5, 12, -0.02, -0.1, 0.1)}
    text = render(context(uncertainty=replace(FULL["uncertainty"], against=against)))
    found = re.findall(r"smaller than that of [^<]*", text)
    assert "the gradient of the source in 11 of 12 patients; on average it is 0.20 SUV smaller" in found[0]
    assert "told apart" not in found[0]
    assert "a constant in 5 of 12 patients; on average it is 0.02 SUV larger" in found[1]
    assert "cannot be told apart" in found[1]


def test_what_a_user_wrote_is_text_and_never_markup():
    hostile = "<script>alert(1)</script>"
    table = frame(runs=(hostile, "floor:intensity"))
    subject = Subject(hostile, 1.0, Strip(Picture(PIXEL.uri, f'"{hostile}', 1, 1), None), [(hostile, hostile)], hostile)
    text = render(
        context(table, source=hostile, data=[(hostile, hostile)], subjects=[subject], settings=[(hostile, hostile)])
    )
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    Outline(text)


def test_the_verdict_names_size_interval_and_patients():
    (sentence,) = verdict(context())
    assert sentence.startswith("PSNR of runs/a for t1w in 12 patients (foreground) is ")
    size, low, high = (float(v) for v in re.findall(r"[+]?(\d+\.\d+)", sentence))
    assert 3.5 < low < size < high < 4.5
    assert "dB above floor:intensity" in sentence


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (frame(shift=-2.0), "below floor:intensity"),
        (frame(shift=0.0), "cannot be told apart from floor:intensity"),
        (above(1e-5), "is that of floor:intensity to every digit shown"),
        (frame(n=4), "With so few patients the interval is too narrow"),
        (frame(n=1), "there is no interval"),
    ],
)
def test_the_verdict_is_neutral_and_knows_its_limits(table, said):
    (sentence,) = verdict(context(table))
    assert said in sentence
    assert not re.search(r"better|worse|significant|\*", sentence)


def test_without_a_comparison_there_is_no_statement():
    assert verdict(context(paired=())) == [
        "No run was compared with anything: this page supports no statement about quality."
    ]


def test_a_perfect_prediction_is_said_to_be_so():
    table = frame()
    table.loc[(table["run"] == "runs/a") & (table["metric"] == "psnr"), "value"] = np.inf
    text = render(context(table))
    assert "∞" in text
    assert "identical to the truth" in text
    assert "inf<" not in text
    assert "nan" not in text.lower().replace("data:image", "")[:2000]


def test_floors_stand_last_and_are_marked():
    text = render(context())
    main = text[text.index("<table>") : text.index("</table>")]
    assert main.index("runs/a") < main.index("floor:intensity") < main.index("floor:histogram")
    assert main.count('class="floor"') == 2
    assert "foreground, 12 patients" in main
    assert main.count("(best)") == 2


def test_only_a_lead_beyond_chance_is_bold():
    assert "(best)" not in render(context(frame(shift=0.0)))


def test_a_lead_of_the_size_of_rounding_is_not_bold():
    assert "(best)" in render(context(above(0.1)))
    assert "(best)" not in render(context(above(1e-5)))


def test_patients_are_counted_by_row_where_they_differ():
    table = frame()
    fewer = table[~((table["run"] == "runs/a") & (table["subject"] == "s0"))]
    text = render(context(fewer))
    assert '<th scope="col">Patients</th>' in text
    assert "<td>11</td>" in text
    assert "<td>12</td>" in text


def test_pictures_come_worst_first():
    text = render(context(**FULL))
    assert text.index("<h3>bad</h3>") < text.index("<h3>good</h3>")


def test_what_is_missing_does_not_appear():
    text = render(context(frame(regions=("foreground",))))
    for heading in ("Regions", "Uncertainty", "Training", "Pictures", "Settings"):
        assert f'">{heading}' not in text
    assert "What these numbers do not say" in text
    assert "Research use only" in text


def test_two_targets_have_a_table_each():
    table = frame()
    both = pd.concat([table, table.assign(target="t2w")])
    text = render(context(both, targets=["t1w", "t2w"]))
    assert "flair to t1w and t2w" in text
    assert "t1w: foreground" in text
    assert "t2w: foreground" in text
    assert len(verdict(context(both, targets=["t1w", "t2w"]))) == 2
