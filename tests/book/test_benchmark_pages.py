"""Witness: tables of speed and scale built from files of a few rows written by hand."""

from __future__ import annotations

import json
import re

import companion_benchmarks
import pytest
from bs4 import BeautifulSoup
from sphinx.errors import ExtensionError

PAGE = "{ref}`record-spectral-loss`\n\n```{speed-figure}\nThe caption.\n```\n\n```{speed-tables}\n```\n"
OLD = {"what": "an old row", "unit": "ms", "median": 2.5, "low": 2.0, "high": 3.0, "n": 7, "note": "no peer yet"}
GOOD = {
    **OLD, "what": "a quick one", "ratio": 12.0, "peer": "the <usual>", "goal": [8, None], "missed": "", "floor": 1.0,
    "floor_says": "copies",
}  # fmt: skip
BAD = {**GOOD, "what": "a slow one", "ratio": 0.5, "goal": [5, None], "missed": "It waits.", "floor": None}
PLAIN = {**GOOD, "what": "no goal", "goal": [None, None], "ratio": 100.0}
MACHINE = {"processor": "Some processor", "device": "cpu", "threads": "2", "torch": "1.2.3", "numpy": "9"}
JOB = {
    "chapter": 1, "network": "ResNet", "data": "CIFAR-10", "networks": 3, "updates": 1000, "batch": 512, "each": 400,
    "operations": 4e17, "besides": 1e16, "gib": 2.53, "hours": 4.5, "assumed": True, "command": "",
}  # fmt: skip


def with_records(book, **rows):
    records = {
        name: {"measures": f"How long {name} takes.", "date": "2000-01-02", "machine": MACHINE, "rows": found}
        for name, found in rows.items()
    }
    book.write("benchmarks/records.json", json.dumps(records))
    return book


def article(book):
    return BeautifulSoup(book.page("book/chapters/01_tiny"), "html.parser")


def rows_of(page, section):
    return [
        [" ".join(cell.get_text(" ").split()) for cell in row.find_all(["td", "th"])]
        for row in page.find(id=section).find_all("tr")
    ]


def test_a_record_without_peers_has_two_columns_and_no_figure(tiny):
    book = with_records(tiny(PAGE), spectral_loss=[OLD])
    book.build()
    page = article(book)
    assert page.find("figure") is None
    head, row = rows_of(page, "record-spectral-loss")
    assert head == ["What", "Measured"]
    assert row == ["an old row no peer yet", "Measured 2.5 ms 2 to 3, n = 7"]
    assert "2000-01-02; Some processor, 2 threads; torch 1.2.3" in page.get_text()
    assert page.find("a", href="#record-spectral-loss")


def test_ratio_goal_floor_and_reason_are_shown(tiny):
    book = with_records(tiny(PAGE), spectral_loss=[OLD, GOOD, BAD, PLAIN])
    book.build()
    page = article(book)
    head, old, good, bad, plain = rows_of(page, "record-spectral-loss")
    assert head == ["What", "Measured", "Against its peer", "Goal", "Floor"]
    assert good[2:] == ["Against its peer 12 × the <usual>", "Goal ≥ 8 × met", "Floor 1 ms 2.5 times it; copies"]
    assert bad[2:] == ["Against its peer 0.5 × the <usual>", "Goal ≥ 5 × missed", ""]
    assert old[2:] == ["", "", ""]
    assert plain[3] == ""
    assert "a slow one: It waits." in page.get_text()
    assert "a quick one: " not in page.get_text()
    kinds = [row["class"][1:] for row in page.select("figure.speed .speed-row:not(.speed-axis)")]
    assert kinds == [["speed-met"], ["speed-missed"], []]
    assert [title.get_text() for title in page.select("figure.speed .speed-title")] == ["The spectral loss"]


def test_bars_lie_on_a_logarithmic_axis(tiny):
    lines = "".join(companion_benchmarks.bars([GOOD, BAD, PLAIN]))
    left, width = (re.findall(rf"speed-bar[^>]*{name}:([\d.]+)%", lines) for name in ("left", "width"))
    left, width = [[float(x) for x in found] for found in (left, width)]
    one = left[0]
    assert left[1] + width[1] == pytest.approx(one, abs=0.11)  # slower than its peer: to the left of 1 x
    assert width[2] / width[0] == pytest.approx(2 / 1.07918, rel=0.01)
    marks = [float(x) for x in re.findall(r"speed-goal[^>]*left:([\d.]+)%", lines)]
    assert (marks[0] - one) / width[0] == pytest.approx(0.90309 / 1.07918, rel=0.01)
    assert "<usual>" not in lines


def test_a_goal_may_be_a_bound_of_the_median(tiny):
    row = {**OLD, "goal": [None, 10]}
    assert (companion_benchmarks.met(row), companion_benchmarks.aim(row)) == (True, "≤ 10\u202fms")
    assert companion_benchmarks.met({**row, "median": 11.0}) is False


def test_a_changed_record_rebuilds_its_page_and_a_missing_one_stops(tiny):
    book = with_records(tiny(PAGE), spectral_loss=[OLD])
    book.build()
    assert book.build() == []
    with_records(book, spectral_loss=[GOOD])
    assert "book/chapters/01_tiny" in book.build()
    (book.root / "benchmarks/records.json").write_text("{")
    with pytest.raises(ExtensionError, match=r"01_tiny, line \d+: \{speed-figure\}: benchmarks/records\.json"):
        book.build()


def test_the_gpu_profile_by_chapter_and_by_network(tiny):
    book = tiny("```{gpu-profile}\n```\n")
    other = {**JOB, "data": "CIFAR-100"}
    large = {**JOB, "network": "larger", "data": "ImageNet-100", "hours": 60.2, "gib": 59.8, "assumed": False}
    cell = {**JOB, "network": "words", "data": "grammar", "networks": 1, "command": "words --micro 4", "hours": 0.1}
    document = {"assumed_rate": 3e13, "measured": {}, "jobs": [JOB, other, large, cell, {**cell, "command": "again"}]}
    book.write("benchmarks/gpu_profile.json", json.dumps(document))
    book.build()
    first, second = article(book).find_all("table")
    texts = [[" ".join(row.get_text(" ").split()) for row in table.find_all("tr")] for table in (first, second)]
    assert texts[0][1].startswith("1. Tiny chapter Networks 8 Data CIFAR-10, CIFAR-100, grammar Time, estimated 9.2 h")
    assert texts[0][2].endswith("Networks 3 Data ImageNet-100 Time, estimated 60 h Memory, at least 60 GiB")
    assert len(texts[1]) == 5  # the two sets of one size are one row, the two commands are not
    assert "6 networks, 2,000 updates of 512" in texts[1][1]
    assert "9.0 h rate assumed" in texts[1][1]
    assert "8.2 × 10 17" in texts[1][1]
    assert "rate measured" in texts[1][2]
    assert "words --micro 4" in texts[1][3]
