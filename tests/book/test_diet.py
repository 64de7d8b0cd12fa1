"""Witness: a small site written by hand, of which every file is known before and after."""

from __future__ import annotations

import json
from types import SimpleNamespace

import companion_diet


def test_the_diet_takes_the_doubles_and_leaves_the_rest(tmp_path):
    icons = "_static/vendor/fontawesome/9"
    face = '@font-face{src:url(../f/a.woff2) format("woff2"),url(../f/a.ttf) format("truetype")}'
    own = '<script src="_static/own.js"></script><p>fontawesome</p>'
    files = {
        "page.html": f'<script src="{icons}/js/all.js?x=1"></script>{own}',
        f"{icons}/js/all.js": "draw()",
        f"{icons}/css/all.css": face,
        f"{icons}/f/a.woff2": "font",
        f"{icons}/f/a.ttf": "font",
        f"{icons}/f/lonely.ttf": "font",
        "claims.html": '<p class="claim-source"><a title="all of a title">2021</a></p><p title="kept"></p>',
        "code.html": '<pre><span class="k">if</span> <span class="n">x</span><span class="o">:</span></pre>',
        "text.html": '<tr class="row-odd"><td class="math notranslate nohighlight">'
        '<code class="docutils literal notranslate"><span class="pre">x</span></code></td></tr><i class="fa-bars"></i>',
        "prf-prf.html": "every theorem",
        "_images/a.svg": '<g id="figure_1">\n  <path d="M 1.2345 6 \nL -7 8.999 \n" style="stroke-width: 0.123; x: 0"/>'
        '\n <!-- 0.5 --><g clip-path="url(#p1)"><use x="1.239" y="2.50" '
        'transform="translate(1.234 5) scale(0.0156)"/></g><clipPath id="p1"/><text>a  b</text></g>',
        f"{icons}/css/icons.css": '.fa-bars:before,.fa-navicon:before{content:"a"}.fa-cat:before{content:"b"}',
        f"{icons}/css/brands.css": "@font-face{src:url(fa-brands-400.woff2)}b{}",
        f"{icons}/f/fa-brands-400.woff2": "signs",
        "_static/own.js": "run()\n//# sourceMappingURL=own.js.map",
        "_static/own.js.map": "{}",
        "_static/locales/de/x.po": "Suche",
        "_sources/a.ipynb": '{"cells": [], "metadata": {"papermill": {}, "title": "\u00e4"}}',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    app = SimpleNamespace(outdir=tmp_path, builder=SimpleNamespace(format="html"))

    def left():
        return {f.relative_to(tmp_path).as_posix(): f.read_text("utf-8") for f in tmp_path.rglob("*") if f.is_file()}

    companion_diet.slim(app, RuntimeError("a build that failed"))
    assert left() == files
    companion_diet.slim(app, None)
    kept = left()
    gone = {"_static/own.js.map", "_static/locales/de/x.po", f"{icons}/js/all.js", f"{icons}/f/a.ttf"}
    gone |= {f"{icons}/f/fa-brands-400.woff2", "prf-prf.html"}
    assert files.keys() - kept.keys() == gone
    assert kept["page.html"] == own
    assert kept[f"{icons}/css/all.css"] == '@font-face{src:url(../f/a.woff2) format("woff2")}'
    assert kept["_static/own.js"] == "run()\n"
    assert kept["claims.html"] == '<p class="claim-source"><a>2021</a></p><p title="kept"></p>'
    assert kept["code.html"] == '<pre><span class="k">if</span> x:</pre>'
    assert kept["text.html"] == ('<tr><td class="math"><code class="literal">x</code></td></tr><i class="fa-bars"></i>')
    drawing = '<g><path d="M1.23 6L-7 8.99" style="stroke-width:0.123;x:0"/><g clip-path="url(#a)">'
    drawing += '<use x="1.23" y="2.5" transform="translate(1.23 5) scale(0.0156)"/></g><clipPath id="a"/>'
    assert kept["_images/a.svg"] == drawing + "<text>a  b</text></g>"
    assert kept[f"{icons}/css/icons.css"] == '.fa-bars:before,.fa-navicon:before{content:"a"}'
    assert kept[f"{icons}/css/brands.css"] == "b{}"
    assert json.loads(kept["_sources/a.ipynb"]) == {"cells": [], "metadata": {"title": "\u00e4"}}
    companion_diet.slim(app, None)
    assert left() == kept
