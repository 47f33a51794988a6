"""Laws of the part of a page that holds intervals against their promise."""

from __future__ import annotations

from dataclasses import replace
from html import escape

from scanbridge.metrics.conformal import Promise
from scanbridge.report.figures import Series, misses_by_width
from scanbridge.report.intervals import MOST_LISTED, Intervals, interval_tables
from scanbridge.report.page import ReportContext, render


def row(metric, mean, unit="1"):
    return {"metric": metric, "unit": unit, "n": 12, "mean": mean, "low": mean / 2, "high": 2 * mean, "note": "12 seen"}


def found(misses, unit="HU", run="runs/a"):
    means = {"miss": 0.05, "width": 300.0, "miss_constant": 0.06, "width_constant": 400.0}
    return Intervals(
        run=run,
        promise=Promise().sentence(13),
        allowed=0.1,
        patients=[(f"s{i}", miss, 200.0 + i) for i, miss in enumerate(misses)],
        within=(0.62, 0.98),
        rows={m: row(m, mean, unit if m.startswith("width") else "1") for m, mean in means.items()},
        quarters=[0.04, 0.05, 0.05, 0.06],
    )


def test_patients_come_worst_first_and_those_above_are_marked():
    listed = interval_tables(found([0.02, 0.3, 0.1, 0.11]))["worst"].lines
    assert [line.head for line in listed] == ["s1", "s3", "s2", "s0"]
    assert [line.cells[0].beneath for line in listed] == ["above", "above", "", ""]


def test_those_who_keep_the_promise_are_counted_with_an_interval():
    notes = interval_tables(found([0.02, 0.3, 0.1, 0.11]))["table"].notes
    assert notes[0].startswith("2 of 4 patients (50 %, 95 % interval 62 to 98 %) have at most 10 %")
    assert notes[-1] == "Remarks: 12 seen."


def test_the_constant_width_stands_beside_and_units_are_said():
    table = interval_tables(found([0.1]))["table"]
    assert table.columns[1] == "Width (HU) \u2193"
    own, flat = table.lines
    assert (own.cells[1].main, flat.cells[1].main, flat.floor) == ("300.0", "400.0", True)
    assert len(own.cells) == len(flat.cells) == len(table.columns)


def test_marked_regions_have_a_table_of_their_own_and_without_one_there_is_none():
    rows = {"tumour": {"miss": row("miss", 0.3), "miss_constant": row("miss_constant", 0.5)}}
    table = interval_tables(replace(found([0.1]), regions=rows))["regions"]
    assert [(line.head, *(cell.main for cell in line.cells)) for line in table.lines] == [("tumour", "0.300", "0.500")]
    assert interval_tables(found([0.1]))["regions"] is None


def test_a_long_list_is_cut_and_says_so():
    worst = interval_tables(found([0.01] * (MOST_LISTED + 3)))["worst"]
    assert len(worst.lines) == MOST_LISTED
    assert worst.notes == ("3 more are in metrics.csv.",)


def test_the_page_shows_the_section_of_a_calibrated_run_alone_and_escapes_its_name():
    hostile = "<script>alert(1)</script>"
    plot = misses_by_width([Series("a", [1, 2, 3, 4], [0.1] * 4)], allowed=[0.1, 0.1])
    bare = ReportContext("ct", ["mri"], [], [])
    text = render(ReportContext("ct", ["mri"], [], [], intervals=[found([0.1], run=hostile)], interval_plots=[plot]))
    assert "The promise of the intervals" in text
    assert "<script" not in text
    assert escape(hostile) in text
    assert plot.uri in text
    assert "The promise of the intervals" not in render(bare)
