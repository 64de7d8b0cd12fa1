"""Witness: tiny books with numbers known by hand, built by Sphinx itself."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import time
from pathlib import Path

import companion_book
import pytest
from sphinx.errors import ExtensionError

CHAPTER = "book/chapters/01_tiny"


def text_of(html: str) -> str:
    body = re.sub(r"<(script|style).*?</\1>", "", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def change(file: Path) -> None:
    """Make sure that the file counts as newer than whatever was built from it."""
    later = time.time() + 2
    os.utime(file, (later, later))


@pytest.mark.parametrize(
    "name",
    [
        "companion_book",
        "companion_benchmarks",
        "companion_ledger",
        "companion_diet",
        "companion_drawings",
        "companion_directives",
        "companion_explorables",
        "companion_runs",
        "companion_numbers",
    ],
)
def test_doctests_of_the_extension_hold(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_claims_table_says_what_was_expected_measured_and_decided(tiny):
    book = tiny("```{claims-table} tiny\n```")
    book.build()
    html = book.page(CHAPTER)
    text = text_of(html)
    assert "2 reproduced" in text
    assert "1 unresolved" in text  # the interval of tiny.mean straddles 0.6
    assert "2 not run" in text
    assert "<em>identity</em>" in html  # what a claim says is Markdown
    assert "This companion, Section identity" in text
    assert "&lt; 10<sup>−8</sup>" in html
    assert "1.5\u202f×\u202f10<sup>−12</sup>, n = 5" in html
    assert "control: 0.3 (no weights)" in text
    assert "0.625 [0.5, 0.75], n = 5" in text
    assert "profile cpu, run on 2026-01-02" in text


def test_published_rows_are_folded_and_unrounded(tiny):
    book = tiny("```{claims-table} tiny\n```")
    book.build()
    folded = re.search(r'<details class="ledger-details"><summary>.*?</details>', book.page(CHAPTER), re.DOTALL)
    assert folded is not None
    assert "Numbers that the papers print (1)" in folded[0]
    assert "41.3" in folded[0]
    assert "badge-not-run" in folded[0]


def test_published_rows_can_stand_open_or_be_left_out(tiny):
    book = tiny("```{claims-table} tiny\n:published: open\n```\n\n```{claims-table} tiny\n:published: none\n```")
    book.build()
    assert book.page(CHAPTER).count('<details class="ledger-details" open>') == 1
    assert book.page(CHAPTER).count("<details") == 1


def test_only_shows_the_named_claims(tiny):
    book = tiny("```{claims-table} tiny\n:only: tiny.curve\n```")
    book.build()
    assert "tiny.curve" in book.page(CHAPTER)
    assert "tiny.identity" not in book.page(CHAPTER)


@pytest.mark.parametrize(
    ("role", "shown"),
    [
        ("{measured}`tiny.mean`", "0.625 [0.5, 0.75]"),
        ("{measured}`tiny.mean|.2f`", "0.62 [0.50, 0.75]"),
        ("{measured}`tiny.mean|percent`", "62.5 % [50.0, 75.0]"),
        ("{measured}`tiny.mean|percent.0|value`", "62 %"),
        ("{measured}`tiny.curve`", "0.25, 0.5"),
        ("{measured}`tiny.curve|.1f|1`", "0.5"),
        ("{measured}`tiny.identity-broken`", "0.3"),
        ("{measured}`tiny.later`", "not run"),
        ("{published}`tiny.table`", "41.3"),
        ("{evidence}`tiny.curve`", "trend"),
        ("{verdict}`tiny.mean`", "unresolved"),
    ],
)
def test_roles_print_the_runs_numbers(tiny, role, shown):
    book = tiny(f"Before {role} after.")
    book.build()
    assert f"Before {shown} after." in text_of(book.page(CHAPTER)).replace("\u202f", " ")


def test_verdict_links_to_the_claims_line_of_the_ledger_page(tiny):
    book = tiny("{verdict}`tiny.identity`")
    book.build()
    assert 'href="../ledger.html#claim-tiny-identity"' in book.page(CHAPTER)
    assert 'id="claim-tiny-identity"' in book.page("book/ledger")


def test_ledger_page_counts_verdicts(tiny):
    book = tiny("Nothing.")
    book.build()
    assert "Tiny chapter 2 0 1 2" in text_of(book.page("book/ledger"))


def test_a_record_that_should_be_there_is_said_to_be_missing(tiny):
    book = tiny("```{claims-table} tiny\n```")
    book.record(identity=1.5e-12, identity__broken=0.3, curve=[0.25, 0.5])
    book.build()
    assert "1 missing" in text_of(book.page(CHAPTER))


def test_cost_card_and_stamp_show_the_runs_stamp(tiny):
    book = tiny("```{cost-card} 01_tiny\n```\n\n```{stamp} 01_tiny\n```\n\n```{cost-table}\n```")
    book.build()
    text = text_of(book.page(CHAPTER))
    for fact in ("1 min 15 s", "1.5 GB", "cpu, 2 threads", "0123456789ab", "torch 1.2.3", "cpu, 7"):
        assert fact in text
    assert "make chapter C=01 PROFILE=cpu" in text


def test_downloads_lie_in_the_site(tiny):
    book = tiny("```{cost-card} 01_tiny\n```")
    book.build()
    assert 'href="../../_sources/book/chapters/01_tiny.py" download' in book.page(CHAPTER)
    assert (book.root / "html/_sources/book/chapters/01_tiny.py").is_file()


def test_mathjax_is_one_local_file(tiny):
    book = tiny("$x$")
    book.build()
    assert re.search(r'src="../../_static/mathjax/tex-svg-full.js', book.page(CHAPTER))
    assert [f.name for f in (book.root / "html/_static/mathjax").iterdir()] == ["tex-svg-full.js"]


@pytest.mark.parametrize(
    ("chapter", "message"),
    [
        ("{measured}`tiny.idenity`", r"01_tiny.*no claim or control 'tiny\.idenity'.*tiny\.identity"),
        ("{verdict}`other.thing`", r"01_tiny.*no claim 'other\.thing'"),
        ("{measured}`tiny.mean|0`", r"tiny\.mean is one number"),
        ("{measured}`tiny.curve|5`", r"01_tiny.*tiny\.curve"),
        ("{published}`tiny.mean`", r"tiny\.mean quotes no published number"),
        ("```{claims-table} tinny\n```", r"01_tiny.*no claims of topic 'tinny'.*tiny"),
        ("```{claims-table} tiny\n:only: tiny.meen\n```", r"no claim 'tiny\.meen'"),
        ("```{stamp} 02_tiny\n```", r"no chapter '02_tiny'; chapters: 01_tiny"),
    ],
)
def test_an_unknown_name_stops_the_build_and_is_named(tiny, chapter, message):
    with pytest.raises(ExtensionError, match=message):
        tiny(chapter).build()


@pytest.mark.parametrize(
    ("chapter", "message"),
    [
        ("```{explorable} stairs\n\nMove it.\n```", r"01_tiny, line \d+.*no explorable 'stairs'; there are staircase"),
        ("```{explorable} staircase\n```", r"01_tiny, line \d+.*staircase has no caption"),
    ],
)
def test_an_explorable_has_a_known_name_and_a_caption(tiny, chapter, message):
    book = tiny(chapter)
    book.write("source/book/_static/explorables/staircase.html", "<p>It moves.</p>")
    book.write("source/conf.py", 'master_doc = "index"\nhtml_static_path = ["book/_static"]\n')
    with pytest.raises(ExtensionError, match=message):
        book.build()


def test_an_explorable_is_a_figure_that_finds_its_scripts(tiny):
    book = tiny("```{explorable} staircase\n:name: fig-stairs\n\nMove *it*.\n```")
    book.write("source/book/_static/explorables/staircase.html", '<script src="staircase.js" defer></script>')
    book.write("source/book/_static/explorables/staircase.js", "1")
    book.write("source/conf.py", 'master_doc = "index"\nhtml_static_path = ["book/_static"]\n')
    book.build()
    assert '<script src="../../_static/explorables/staircase.js" defer>' in book.page(CHAPTER)
    assert (book.root / "html/_static/explorables/staircase.js").is_file()
    assert re.search(r'<figure [^>]*id="fig-stairs".*<em>it</em>.*</figure>', book.page(CHAPTER), re.DOTALL)


def test_a_changed_static_file_reaches_the_site(tiny):
    book = tiny("Text.")
    book.write("source/conf.py", 'master_doc = "index"\nhtml_static_path = ["book/_static"]\n')
    book.write("source/book/_static/house.css", "p { margin: 1px }")
    book.build()
    assert book.build() == []
    book.write("source/book/_static/house.css", "p { margin: 2px }")
    assert CHAPTER in book.build()
    assert "2px" in (book.root / "html/_static/house.css").read_text()
    assert book.build() == []


def test_missing_results_stop_the_build_and_are_named(tiny):
    book = tiny("{measured}`tiny.mean`")
    (book.root / "_build/cpu/chapters/01_tiny.json").unlink()
    with pytest.raises(ExtensionError, match=r"01_tiny\.json"):
        book.build()


def test_half_written_results_stop_the_build(tiny):
    book = tiny("{measured}`tiny.mean`")
    file = book.root / "_build/cpu/chapters/01_tiny.json"
    file.write_text(file.read_text()[:200])
    with pytest.raises(ExtensionError, match=r"01_tiny\.json is not a whole results file"):
        book.build()


def test_missing_claims_stop_the_build_and_are_named(tiny):
    book = tiny("{measured}`tiny.mean`")
    (book.root / "claims/tiny.toml").unlink()
    with pytest.raises(ExtensionError, match=r"tiny\.toml"):
        book.build()


def test_missing_notebook_source_stops_the_build(tiny):
    book = tiny("Text.")
    (book.root / "notebooks/01_tiny.py").unlink()
    with pytest.raises(ExtensionError, match=r"no notebooks/01_tiny\.py"):
        book.build()


def test_a_changed_result_rebuilds_the_pages_that_use_it_and_no_other(tiny):
    book = tiny("{measured}`tiny.mean`")
    book.build()
    assert book.build() == []
    book.record(identity=1.5e-12, identity__broken=0.3, mean=0.7, curve=[0.25, 0.5])
    change(book.root / "_build/cpu/chapters/01_tiny.json")
    assert book.build() == [CHAPTER, "book/ledger"]
    assert "0.7 [0.5, 0.75]" in text_of(book.page(CHAPTER))


def test_changed_claims_rebuild_the_pages_that_use_them(tiny):
    book = tiny("{verdict}`tiny.mean`")
    book.build()
    file = book.root / "claims/tiny.toml"
    file.write_text(file.read_text().replace("above = 0.6", "above = 0.4"))
    change(file)
    assert book.build() == [CHAPTER, "book/ledger"]
    assert "reproduced" in text_of(book.page(CHAPTER))


def test_a_new_chapter_comes_into_the_ledger(tiny):
    book = tiny("Text.")
    book.build()
    assert book.build() == []
    for file in (book.root / "claims/tiny.toml", book.root / "_build/cpu/chapters/01_tiny.json"):
        new = file.with_name(file.name.replace("01_tiny", "02_small").replace("tiny.toml", "small.toml"))
        new.write_text(file.read_text().replace("01_tiny", "02_small").replace("tiny", "small"))
    book.write("notebooks/02_small.py", "# %%\n")
    book.write("source/book/chapters/02_small.md", "---\norphan: true\n---\n# Small chapter\n")
    assert "book/ledger" in book.build()
    assert "small.identity" in text_of(book.page("book/ledger"))
    assert book.build() == []


def test_another_profile_shows_that_profiles_numbers(tiny, monkeypatch):
    book = tiny("{measured}`tiny.mean|.2f|value`")
    book.build()
    book.record("smoke", identity=1.5e-12, identity__broken=0.3, mean=0.55, curve=[0.25, 0.5])
    monkeypatch.setenv("COMPANION_PROFILE", "smoke")
    assert CHAPTER in book.build()
    assert "0.55" in text_of(book.page(CHAPTER))


def test_an_unknown_profile_is_refused(tiny, monkeypatch):
    monkeypatch.setenv("COMPANION_PROFILE", "cup")
    with pytest.raises(ExtensionError, match="'cup'; expected one of smoke, cpu, gpu"):
        tiny("Text.").build()


def test_macros_are_read_once_for_both_formats(tmp_path):
    file = tmp_path / "macros.toml"
    file.write_text('E = "\\\\mathbb{E}"\nnorm = ["\\\\lVert #1 \\\\rVert", 1]\n')
    macros = companion_book.read_macros(file)
    assert macros == {"E": r"\mathbb{E}", "norm": [r"\lVert #1 \rVert", 1]}
    assert r"\renewcommand{\norm}[1]{\lVert #1 \rVert}" in companion_book.latex_preamble(macros)


@pytest.mark.parametrize("line", ['E = ["x"]', "E = 3", 'E = ["x", "y"]'])
def test_a_macro_of_another_shape_is_refused(tmp_path, line):
    file = tmp_path / "macros.toml"
    file.write_text(line)
    with pytest.raises(ExtensionError, match=r"macros\.toml: E must be"):
        companion_book.read_macros(file)
