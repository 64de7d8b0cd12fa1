"""Witness: a real browser that opens the pages from disk, wide and on a phone, light and dark."""

from __future__ import annotations

from pathlib import Path

import pytest
from in_browser import READY, SCREENS, console_errors, foreign_requests, load

MATHS = """
const article = document.querySelector("article") || document.body;
const formulas = [...article.querySelectorAll(".math")];
return {
  unset: formulas.filter(f => !f.querySelector("mjx-container svg")).map(f => f.textContent.slice(0, 80)),
  wrong: [...document.querySelectorAll('[data-mml-node="merror"], [fill="red"], mjx-merror')]
    .map(node => node.closest("mjx-container").outerHTML.slice(0, 200)),
  count: formulas.length,
};
"""
WIDE = """
document.querySelectorAll("article details").forEach(d => { d.open = true; });
return document.documentElement.scrollWidth;
"""
TOGGLES = """
const dead = [];
for (const details of document.querySelectorAll("article details")) {
  details.open = false;
}
for (const details of document.querySelectorAll("article details")) {
  for (let outer = details.parentElement.closest("details"); outer; outer = outer.parentElement.closest("details")) {
    outer.open = true;
  }
  const before = details.getBoundingClientRect().height;
  details.querySelector("summary").click();
  if (!details.open || details.getBoundingClientRect().height <= before) dead.push(details.textContent.slice(0, 60));
}
return dead;
"""


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_page_reads_well(site, browser, page, mode, screen):
    if page == "index.html":  # leads to the front page, which is tested under its own name
        load(browser, (site / page).as_uri())
        assert browser.current_url == (site / "book/index.html").as_uri()
        return
    load(browser, (site / page).as_uri(), mode, screen)
    maths = browser.execute_script(MATHS)
    assert maths["unset"] == []
    assert maths["wrong"] == []
    assert browser.execute_script("return document.documentElement.dataset.theme") == mode
    assert browser.execute_script(TOGGLES) == []
    assert browser.execute_script(WIDE) <= SCREENS[screen][0], "the page scrolls sideways"
    assert console_errors(browser) == []
    assert foreign_requests(browser) == []


def test_a_first_visit_without_a_chosen_theme_is_silent(site, browser):
    load(browser, (site / "book/index.html").as_uri())
    browser.execute_script("localStorage.clear()")
    browser.get_log("browser")
    browser.get((site / "book/index.html").as_uri())
    browser.execute_async_script(READY)
    assert console_errors(browser) == []


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_line_figures_are_inverted_in_the_dark_and_photographs_are_not(site, browser, mode):
    for chapter in sorted((site / "book/chapters").glob("*.html")):
        load(browser, chapter.as_uri(), mode)
        seen = browser.execute_script(
            "return [...document.querySelectorAll('article figure img')]"
            ".map(i => [i.classList.contains('photo'), getComputedStyle(i).filter, i.naturalWidth])"
        )
        assert seen, f"{chapter.name} shows no figure"
        for photo, look, width in seen:
            assert width > 0
            assert ("invert" in look) == (mode == "dark" and not photo)


ICONS = """
const done = arguments[0];
document.fonts.ready.then(() => done({
  fonts: [...document.fonts].filter(f => f.status !== "unloaded").map(f => f.status),
  blank: [...document.querySelectorAll("i[class*='fa-']")].filter(i => i.offsetParent && (
    getComputedStyle(i, "::before").content === "none" || i.getBoundingClientRect().width < 5)).map(i => i.className),
  shown: [...document.querySelectorAll("i[class*='fa-']")].filter(i => i.offsetParent).length,
}));
"""


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_icons_are_drawn_from_a_font_on_disk(site, browser, mode, screen):
    load(browser, (site / "book/index.html").as_uri(), mode, screen)
    found = browser.execute_async_script(ICONS)
    assert found["shown"] >= 4  # menu, download, full screen, light or dark
    assert found["blank"] == []
    assert found["fonts"] == ["loaded"]


def test_the_check_of_icons_sees_a_font_that_is_gone(site, browser, tmp_path):
    sheet = next((site / "_static/vendor/fontawesome").rglob("*.css"))
    page, copy = tmp_path / "page.html", tmp_path / "css" / sheet.name
    copy.parent.mkdir()
    copy.write_bytes(sheet.read_bytes())
    page.write_text(
        f'<link rel="stylesheet" href="css/{sheet.name}"><i class="fa-solid fa-bars"></i><i class="fa-x-y"></i>'
    )
    load(browser, page.as_uri())
    found = browser.execute_async_script(ICONS)
    assert (found["fonts"], found["blank"], found["shown"]) == (["error"], ["fa-x-y"], 2)


def test_search_works_without_a_server(site, browser):
    load(browser, (site / "search.html").as_uri() + "?q=conductance")
    found = browser.execute_async_script(
        "const done = arguments[0]; let tries = 0;"
        "const look = () => { const n = document.querySelectorAll('#search-results li').length;"
        "  if (n || ++tries > 50) done(n); else setTimeout(look, 100); }; look();"
    )
    assert found >= 1
    assert console_errors(browser) == []
    assert foreign_requests(browser) == []


def test_the_front_pages_picture_is_legible_on_a_phone(site, browser):
    load(browser, (site / "book/index.html").as_uri(), "dark", "phone")
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('.front-figure text')].map(t => t.getBoundingClientRect().height)"
    )
    assert len(sizes) >= 10
    assert min(sizes) > 11


BROKEN = r"""<!DOCTYPE html><title>x</title><meta name="viewport" content="width=device-width">
<script src="{maths}"></script><article style="width:{width}px"><p class="math">\({formula}\)</p>
<details><summary>a</summary>{inside}</details></article><script>{script}</script>"""


@pytest.mark.parametrize(
    ("changes", "caught"),
    [
        ({}, set()),
        ({"formula": r"\nosuchmacro x"}, {"wrong"}),
        ({"formula": r"\left( x"}, {"wrong"}),
        ({"formula": r"\frac{1}{"}, {"unset"}),
        ({"width": 900}, {"wide"}),
        ({"script": "nowhere.call()"}, {"console"}),
        ({"script": "new Image().src = 'http://companion.invalid/x.png'"}, {"console", "foreign"}),
        ({"inside": ""}, {"dead"}),
    ],
)
def test_the_checks_catch_a_broken_page(site, browser, tmp_path, changes, caught):
    good = {"maths": (site / "_static/mathjax/tex-svg-full.js").as_uri(), "width": 300, "formula": "x^2"}
    file = Path(tmp_path, "page.html")
    text = BROKEN
    for key, value in {**good, "inside": "<p>b</p>", "script": "", **changes}.items():
        text = text.replace(f"{{{key}}}", str(value))
    file.write_text(text)
    load(browser, file.as_uri(), "light", "phone")
    browser.execute_async_script("setTimeout(arguments[0], 200)")
    found = {
        "unset": browser.execute_script(MATHS)["unset"],
        "wrong": browser.execute_script(MATHS)["wrong"],
        "dead": browser.execute_script(TOGGLES),
        "wide": browser.execute_script(WIDE) > SCREENS["phone"][0],
        "console": console_errors(browser),
        "foreign": foreign_requests(browser),
    }
    assert {name for name, hit in found.items() if hit} == caught
