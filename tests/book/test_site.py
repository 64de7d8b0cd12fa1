"""Witness: the finished site's files, read with an HTML parser that knows nothing of Sphinx."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup, Tag

LIMIT = 12e6  # bytes of the whole site
LOADING = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "object": "data"}


@cache
def parse(file: Path) -> BeautifulSoup:
    return BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser")


def anchors(file: Path) -> set[str]:
    return {str(tag.get("id") or tag.get("name")) for tag in parse(file).find_all(id=True)} | {
        str(tag["name"]) for tag in parse(file).find_all("a", attrs={"name": True})
    }


def broken_links(site: Path, file: Path) -> list[str]:
    """Links of a page to files or anchors that are not there."""
    broken = []
    for tag, key in [("a", "href"), *LOADING.items()]:
        for element in parse(file).find_all(tag, attrs={key: True}):
            link = urlsplit(str(element[key]))
            if link.scheme or link.netloc or not (link.path or link.fragment):
                continue
            target = (file.parent / unquote(link.path)).resolve() if link.path else file
            if not target.is_file() or not target.is_relative_to(site):
                broken.append(f"{element[key]}: no such file")
            elif link.fragment and target.suffix == ".html" and unquote(link.fragment) not in anchors(target):
                broken.append(f"{element[key]}: no such anchor")
    return broken


def article(site: Path, page: str) -> Tag:
    return parse(site / page).find("article") or parse(site / page)


def test_links_and_anchors_resolve(site, page):
    assert broken_links(site, site / page) == []


def test_nothing_is_loaded_from_elsewhere(site, page):
    loaded = [(t, str(e[k])) for t, k in LOADING.items() for e in parse(site / page).find_all(t, attrs={k: True})]
    assert [url for _, url in loaded if urlsplit(url).scheme not in ("", "data") or url.startswith("//")] == []


def test_style_sheets_and_scripts_name_no_other_host(site):
    for file in site.rglob("*.css"):
        text = file.read_text(encoding="utf-8")
        assert re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^\"')]+", text) == [], file
    for page in site.rglob("*.html"):
        assert "THEBE" not in page.read_text(encoding="utf-8"), page


def test_ids_are_unique(site, page):
    ids = Counter(str(tag["id"]) for tag in article(site, page).find_all(id=True))
    ours = {name: count for name, count in ids.items() if name != "search-input"}  # the theme's form is there twice
    assert [name for name, count in ours.items() if count > 1] == []


def test_figures_have_alt_text_and_captions(site, page):
    for image in article(site, page).find_all("img"):
        assert len(str(image.get("alt") or "")) > 15, f"alt text of {image.get('src')}"
        figure = image.find_parent("figure")
        assert figure is not None, f"{image.get('src')} stands outside a figure"
        caption = figure.find("figcaption")
        assert caption is not None, f"no caption of {image.get('src')}"
        assert len(caption.get_text(strip=True)) > 15, f"caption of {image.get('src')}"
    for drawing in article(site, page).find_all("svg", attrs={"role": "img"}):
        assert drawing.find("title"), "a drawing in the page has a title"
        assert drawing.find("desc"), "and a description"


def test_no_markup_is_left_unrendered(site, page):
    body = BeautifulSoup(str(article(site, page)), "html.parser")
    for code in body.find_all(["pre", "code", "script", "style"]):
        code.decompose()
    text = body.get_text()
    left = re.findall(r"\{[a-z][a-z:-]*\}`|```|:::|\[\[claim\]\]|system-message|\\(?:begin|ref|cite)\{claim", text)
    assert left == []
    assert body.find(class_=["problematic", "system-message"]) is None


def test_the_site_is_small(site):
    assert sum(file.stat().st_size for file in site.rglob("*") if file.is_file()) <= LIMIT


def test_what_a_style_sheet_loads_is_there(site):
    loaded = []
    for sheet in site.rglob("*.css"):
        for quoted in re.findall(r"url\(([^)]*)\)", sheet.read_text(encoding="utf-8")):
            url = quoted.strip("\"' ")
            if not url.startswith(("data:", "#")):
                loaded.append(url)
                assert (sheet.parent / unquote(urlsplit(url).path)).is_file(), f"{sheet.name}: {url}"
    assert len(loaded) > 5
    assert not any(url.endswith(".ttf") for url in loaded)


def test_an_icon_is_in_the_site_once(site):
    icons = site / "_static/vendor/fontawesome"
    assert {file.suffix for file in icons.rglob("*") if file.is_file()} == {".css", ".woff2", ".txt"}
    for page in site.rglob("*.html"):
        assert "fontawesome" not in "".join(str(tag.get("src")) for tag in parse(page).find_all("script")), page.name


def test_notebooks_for_download_keep_what_was_printed_and_leave_out_pictures(site):
    notebooks = sorted((site / "_sources").rglob("*.ipynb"))
    assert notebooks
    for file in notebooks:
        notebook = json.loads(file.read_text(encoding="utf-8"))
        outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
        kinds = {kind for output in outputs for kind in output.get("data", {})}
        assert "text/plain" in kinds, file.name
        assert not any(kind.startswith("image/") for kind in kinds), file.name
        printed = "".join("".join(output.get("text", "")) for output in outputs)
        assert len(re.findall(r"\d", printed)) > 20, "numbers that the page shows"
        assert "papermill" not in notebook["metadata"]
        source = [line for cell in notebook["cells"] for line in "".join(cell["source"]).splitlines()]
        percent = file.with_suffix(".py").read_text(encoding="utf-8")
        assert any(line.startswith("import ") for line in source)
        assert [line for line in source if line.startswith("import ") and line not in percent] == []


def test_no_source_map_and_no_mention_of_one(site):
    assert list(site.rglob("*.map")) == []
    sources = [file for kind in ("css", "js") for file in (site / "_static").rglob(f"*.{kind}")]
    assert len(sources) > 5
    assert [file.name for file in sources if "sourceMappingURL=" in file.read_text(encoding="utf-8")[-200:]] == []


def test_index_leads_to_the_front_page(site):
    meta = parse(site / "index.html").find("meta", attrs={"http-equiv": re.compile("refresh", re.IGNORECASE)})
    assert meta is not None
    target = str(meta["content"]).partition("url=")[2]
    assert (site / target).is_file()
    assert parse(site / target).find("h1")


def test_every_chapter_offers_both_downloads(site):
    chapters = sorted((site / "book/chapters").glob("*.html"))
    assert chapters
    for file in chapters:
        links = {str(a["href"]).rpartition(".")[2] for a in parse(file).find_all("a", class_="cost-download")}
        assert links == {"ipynb", "py"}, file.name
        menu = {str(a["href"]) for a in parse(file).find_all("a") if "_sources" in str(a.get("href"))}
        assert {link.rpartition(".")[2] for link in menu} == {"ipynb", "py"}, file.name


@pytest.mark.parametrize(
    ("html", "count"),
    [
        ('<a href="there.html#x">a</a><p id="x">', 0),
        ('<a href="gone.html">a</a>', 1),
        ('<a href="there.html#y">a</a>', 1),
        ('<a href="#y">a</a><img src="gone.png">', 2),
        ('<a href="https://example.org/gone">a</a>', 0),
        ('<a href="../outside.html">a</a>', 1),
    ],
)
def test_the_link_check_finds_what_is_broken(tmp_path, html, count):
    site = tmp_path / "site"
    site.mkdir()
    (tmp_path / "outside.html").write_text("<p>")
    (site / "there.html").write_text('<p id="x">')
    (site / "page.html").write_text(html)
    assert len(broken_links(site, site / "page.html")) == count
