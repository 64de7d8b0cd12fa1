"""What the finished site can do without: everything here is taken away after the pages have been written.

A site is read from disk, without a network, and copied whole; its bar is 12 MB. No page needs what goes: the theme's
source maps and translations, its icons as a script where the style sheet draws the same ones from a font, that font's
second format, and inside the notebooks for download their second copy, the hours of each cell's run and the pictures,
which the pages show. Of drawings goes what `companion_drawings` says, of style sheets the indentation; of code the
marks of all but keywords, strings, functions and comments; of the text the classes that no style sheet here asks for;
of the tables of claims the hover text of each citation, which the bibliography has once; of the icons' style sheet the
names that no page calls; and the extension's list of theorems, to which nothing links.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from companion_drawings import lighter
from sphinx.application import Sphinx

SOURCE_MAP = re.compile(r"\s*(?:/\*|//)# sourceMappingURL=\S+(?: ?\*/)?\s*$")
FONT_PRELOAD = re.compile(r'\s*<link rel="preload" as="font"[^>]*>')
ICON_SCRIPT = re.compile(r'\s*<(script|link)\b[^>]*="[^"]*/fontawesome/[^"]*\.js\b[^>]*>(?:</script>)?')
SOURCE_OF_CLAIM = re.compile(r'(<p class="claim-source">.*?</p>)', re.DOTALL)
HOVER = re.compile(r' title="[^"]*"')
CODE = re.compile(r"<pre>.*?</pre>", re.DOTALL)
PLAIN = re.compile(r'<span class="(?:n|nn|p|w|o|ow|mi|mf|nb|bp|kc|si)">([^<]*)</span>')  # names, signs, numbers, blanks
LITERAL = re.compile(r'<code class="docutils literal notranslate"><span class="pre">([^<]*)</span></code>')
CITATION = re.compile(r'<span class="bibtex-citation" id="[^"]*">(.*?)</span>')
ROW = re.compile(r'<tr class="row-(?:odd|even)">')
ICON = re.compile(r'((?:\.fa-[a-z0-9-]+:{1,2}before,?)+)\{content:"[^"]*"\}')
INDENTED = re.compile(r"\n\s+")
BRANDS = re.compile(r"@font-face\s*\{[^}]*fa-brands[^}]*\}")
TRUETYPE = re.compile(r',\s*url\([^)]*\.ttf\)\s*format\("truetype"\)')


def slim(app: Sphinx, error: Exception | None) -> None:
    """Take away what no page of the finished site needs. A second call finds nothing left to do."""
    if error is not None or app.builder.format != "html":
        return
    site = Path(app.outdir)
    drop_tags(site)
    drop_source_maps(site / "_static")
    (site / "prf-prf.html").unlink(missing_ok=True)
    drop_icon_doubles(site / "_static" / "vendor" / "fontawesome")
    drop_icons(site)
    shutil.rmtree(site / "_static" / "locales", ignore_errors=True)  # the theme's translations, used while building
    for drawing in (site / "_images").glob("*.svg"):
        drawing.write_text(lighter(drawing.read_text(encoding="utf-8")), encoding="utf-8")
    for sheet in (site / "_static").rglob("*.css"):
        sheet.write_text(INDENTED.sub("\n", sheet.read_text(encoding="utf-8")), encoding="utf-8")
    for notebook in (site / "_sources").rglob("*.ipynb"):
        notebook.write_text(lightened(notebook.read_text(encoding="utf-8")), encoding="utf-8")


def drop_tags(site: Path) -> None:
    """Take font preloads, the icon script, marks of plain code and hover text of claims' sources out of every page.

    Under ``file://`` a browser refuses the preloads with an error; the fonts come through the style sheet anyway. The
    script turns each icon into a drawing; without it the style sheet shows the same icon as a letter of that font.
    """
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        kept = ICON_SCRIPT.sub("", FONT_PRELOAD.sub("", text))
        kept = CODE.sub(lambda code: PLAIN.sub(r"\1", code[0]), kept)
        kept = SOURCE_OF_CLAIM.sub(lambda source: CITATION.sub(r"\1", HOVER.sub("", source[1])), kept)
        kept = kept.replace('class="math notranslate nohighlight"', 'class="math"')
        kept = ROW.sub("<tr>", LITERAL.sub(r'<code class="literal">\1</code>', kept))
        if kept != text:
            page.write_text(kept, encoding="utf-8")


def drop_source_maps(static: Path) -> None:
    """Take away the theme's source maps, over 1 MB that only its own developers need, and their mentions."""
    for source_map in static.rglob("*.map"):
        source = source_map.with_suffix("")  # bootstrap.css.map describes bootstrap.css
        if source.is_file():
            source.write_text(SOURCE_MAP.sub("\n", source.read_text(encoding="utf-8")), encoding="utf-8")
        source_map.unlink()


def drop_icon_doubles(icons: Path) -> None:
    """Keep each icon once, in a WOFF2 font: neither the script that draws it nor the TrueType font, and no mention.

    Companies' signs, which no page shows, go as well.
    """
    for scripts in icons.glob("*/js"):
        shutil.rmtree(scripts)
    for sheet in icons.rglob("*.css"):
        sheet.write_text(BRANDS.sub("", TRUETYPE.sub("", sheet.read_text(encoding="utf-8"))), encoding="utf-8")
    for font in icons.rglob("*.ttf"):
        if font.with_suffix(".woff2").is_file():
            font.unlink()
    for font in icons.rglob("fa-brands-*.woff2"):
        font.unlink()


def drop_icons(site: Path) -> None:
    """Take the icons that no page and no script of the theme names out of their style sheet."""
    named = "".join(f.read_text(encoding="utf-8") for kind in ("html", "js") for f in site.rglob(f"*.{kind}"))
    called = set(re.findall(r"fa-[a-z0-9-]+", named))

    def used(rule: re.Match[str]) -> str:
        return rule[0] if called & set(re.findall(r"fa-[a-z0-9-]+", rule[1])) else ""

    for sheet in (site / "_static" / "vendor" / "fontawesome").rglob("*.css"):
        sheet.write_text(ICON.sub(used, sheet.read_text(encoding="utf-8")), encoding="utf-8")


def lightened(notebook: str) -> str:
    r"""A notebook's JSON without pictures among its outputs and papermill's notes; what cells printed stays.

    Those notes hold the whole notebook a second time, the folder in which it ran, and the hour of every cell, which the
    page's stamp says once. Lines of a text are one string, which a notebook may have as well as a list.

    >>> cell = {"outputs": [{"data": {"image/png": "iVBO", "text/plain": "<Figure>"}}, {"text": ["0.5\n", "1"]}]}
    >>> cell |= {"source": ["a = 1\n", "a"], "metadata": {"papermill": {}, "execution": {}, "tags": []}}
    >>> slim = json.loads(lightened(json.dumps({"cells": [cell], "metadata": {"papermill": {"version": "2"}}})))
    >>> slim["metadata"], slim["cells"][0]["metadata"], slim["cells"][0]["source"]
    ({}, {}, 'a = 1\na')
    >>> slim["cells"][0]["outputs"]
    [{'data': {'text/plain': '<Figure>'}}, {'text': '0.5\n1'}]
    """
    document = json.loads(notebook)
    document["metadata"].pop("papermill", None)
    for cell in document["cells"]:
        notes = cell.get("metadata", {})
        for name in ("papermill", "execution", *([] if notes.get("tags") else ["tags"])):
            notes.pop(name, None)
        texts = [(cell, "source"), *((output, "text") for output in cell.get("outputs", []))]
        for place, name in texts:
            if name in place:
                place[name] = "".join(place[name])
        for output in cell.get("outputs", []):
            for kind in [kind for kind in output.get("data", {}) if kind.startswith("image/")]:
                del output["data"][kind]
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n"
