"""The book's own Sphinx extension: the ledger in the pages, mathematics without a network, downloads.

``companion_ledger``, ``companion_directives`` and ``companion_runs`` hold the roles and directives that print
numbers of the run, ``companion_benchmarks`` those of speed and scale, ``companion_explorables`` the figures that a
reader moves, ``companion_diet`` what the site can do without. This file wires them up and looks after what the
finished site has to have: one local MathJax file, the TeX macros, each chapter's ``.py`` beside its ``.ipynb``, and
no script that could fail without a network.
"""

from __future__ import annotations

import os
import shutil
import tomllib
import zlib
from importlib import metadata
from pathlib import Path
from typing import Any

import companion_diet
import companion_ledger
from companion_benchmarks import GpuProfile, SpeedFigure, SpeedTables
from companion_directives import ClaimsTable, LedgerPage
from companion_explorables import Explorable
from companion_runs import CostCard, CostTable, Stamp
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError

from companion.ledger import paths

MATHJAX_PACKAGE = "sphinx-mathjax-offline"  # its own extension would copy 24 MB; one file of it is enough
MATHJAX_FILE = "tex-svg-full.js"


def read_macros(path: Path) -> dict[str, str | list[str | int]]:
    r"""Read the TeX macros of the book.

    Args:
        path: a TOML file of lines ``name = "body"`` or ``name = ["body", number of arguments]``.

    Returns:
        The macros by name, as MathJax takes them.

    Raises:
        ExtensionError: the file is missing or an entry has another shape.
    """
    if not path.is_file():
        raise ExtensionError(f"no file of TeX macros {path.name}; companion_macros in _config.yml names it")
    macros = tomllib.loads(path.read_text(encoding="utf-8"))
    for name, body in macros.items():
        pair = isinstance(body, list) and len(body) == 2 and isinstance(body[0], str) and isinstance(body[1], int)
        if not (isinstance(body, str) or pair):
            raise ExtensionError(f'{path.name}: {name} must be "body" or ["body", number of arguments], not {body!r}')
    return macros


def latex_preamble(macros: dict[str, Any]) -> str:
    r"""The same macros for LaTeX; an existing command of that name (``\R``, ``\1``) is redefined.

    >>> print(latex_preamble({"E": r"\mathbb{E}", "norm": [r"\lVert #1 \rVert", 1]}))
    \providecommand{\E}{}\renewcommand{\E}{\mathbb{E}}
    \providecommand{\norm}{}\renewcommand{\norm}[1]{\lVert #1 \rVert}
    """
    lines = []
    for name, body in macros.items():
        text, count = (body, 0) if isinstance(body, str) else body
        arity = f"[{count}]" if count else ""
        lines.append(f"\\providecommand{{\\{name}}}{{}}\\renewcommand{{\\{name}}}{arity}{{{text}}}")
    return "\n".join(lines)


def configure(app: Sphinx, config: Config) -> None:
    """Set what follows from other settings: profile, macros, the local MathJax."""
    config.companion_profile = os.environ.get("COMPANION_PROFILE") or config.companion_profile
    if config.companion_profile not in paths.PROFILES:
        known = ", ".join(paths.PROFILES)
        raise ExtensionError(f"COMPANION_PROFILE is {config.companion_profile!r}; expected one of {known}")
    if config.companion_macros:
        macros = read_macros(Path(app.srcdir) / config.companion_macros)
        settings = dict(config.mathjax3_config or {})
        settings["tex"] = {**settings.get("tex", {}), "macros": macros}
        config.mathjax3_config = settings
        elements = dict(config.latex_elements)
        elements["preamble"] = "\n".join(filter(None, [elements.get("preamble", ""), latex_preamble(macros)]))
        config.latex_elements = elements
    config.mathjax_path = f"mathjax/{MATHJAX_FILE}"


def mathjax_source() -> Path:
    """Path of the one MathJax file in the installed package.

    Raises:
        ExtensionError: the package is not installed or no longer holds the file.
    """
    try:
        files = metadata.files(MATHJAX_PACKAGE) or []
    except metadata.PackageNotFoundError as error:
        raise ExtensionError(f"{MATHJAX_PACKAGE} is not installed; it is in requirements/book.txt") from error
    found = [file for file in files if file.name == MATHJAX_FILE]
    if not found:
        raise ExtensionError(f"{MATHJAX_PACKAGE} holds no {MATHJAX_FILE}; install the version in requirements/book.txt")
    return Path(str(found[0].locate()))


def copy_mathjax(app: Sphinx) -> None:
    """Copy MathJax into the site before pages are written, so that pages carry its checksum."""
    if app.builder.format == "html":
        target = Path(app.outdir) / "_static" / "mathjax" / MATHJAX_FILE
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(mathjax_source(), target)


def static_files(app: Sphinx) -> list[Path]:
    """The book's own static files: style sheet, scripts, explorables."""
    folders = [Path(app.confdir, name) for name in app.config.html_static_path]
    return sorted(file for folder in folders for file in folder.rglob("*") if file.is_file())


def stale_pages(app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]) -> set[str]:
    """All pages, when a static file has changed or a chapter has come or gone, which no page could foresee.

    Sphinx copies no static file while every page is up to date, and a page depends on files that were there when it was
    read: the ledger, say, on the records of the chapters of that time.
    """
    parts = [file.name.encode() + file.read_bytes() for file in static_files(app)]
    digest = zlib.crc32(b"".join([*parts, *(chapter.encode() for chapter in companion_ledger.chapters(env))]))
    known, env.companion_static = getattr(env, "companion_static", None), digest  # pyright: ignore
    return set() if known == digest else set(env.found_docs)


def copy_notebook_sources(app: Sphinx, error: Exception | None) -> None:
    """Put each chapter's percent notebook beside its executed one, under ``_sources``."""
    if error is not None or app.builder.format != "html":
        return
    for chapter in companion_ledger.chapters(app.env):
        source = paths.ROOT / "notebooks" / f"{chapter}.py"
        if not source.is_file():
            raise ExtensionError(f"no notebooks/{source.name}; the page of {chapter} offers it for download")
        target = Path(app.outdir) / "_sources" / companion_ledger.CHAPTERS / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def tidy_page(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Drop thebe's scripts, set the theme's mode, add the ``.py`` to a chapter's download menu.

    sphinx-thebe declares the constant ``THEBE_JS_URL`` once for every builder event, a script error on each page. The
    book starts no kernel from a page, so nothing of it is needed.
    """
    context.setdefault("default_mode", "auto")  # the theme logs an error when nobody has set it
    scripts = context.get("script_files", [])
    context["script_files"] = [script for script in scripts if not _is_thebe(script)]
    if pagename in (f"{companion_ledger.CHAPTERS}/{c}" for c in companion_ledger.chapters(app.env)):
        for group in context.get("header_buttons", []):
            if group.get("label") == "download-buttons":
                url = f"{context['pathto']('_sources', 1)}/{pagename}.py"
                button = {"type": "link", "url": url, "text": ".py", "tooltip": "Download percent notebook"}
                group["buttons"].insert(1, {**button, "icon": "fas fa-code", "label": "download-percent-button"})


def _is_thebe(script: Any) -> bool:
    body = getattr(script, "attributes", {}).get("body") or ""
    return "THEBE_JS_URL" in body or "thebe" in str(getattr(script, "filename", "") or "")


def tidy_doctree(app: Sphinx, doctree: nodes.document) -> None:
    """Give each theorem's body an id of its own; sphinx-proof gives the same one to all."""
    for number, section in enumerate(doctree.findall(nodes.section)):
        if section["ids"] == ["proof-content"]:
            section["ids"] = [f"{(section.parent['ids'] or [f'item-{number}'])[0]}-content"]


def drop_thebe_config(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Take away thebe's settings, which name a repository that has nothing to do with this book."""
    for node in list(doctree.findall(nodes.raw)):
        if "thebe" in node.astext() or "kernelName" in node.astext():
            node.parent.remove(node)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything."""
    app.add_config_value("companion_profile", "cpu", "env", types=(str,))
    app.add_config_value("companion_macros", "", "env", types=(str,))
    app.add_directive("claims-table", ClaimsTable)
    app.add_directive("ledger", LedgerPage)
    app.add_directive("cost-card", CostCard)
    app.add_directive("cost-table", CostTable)
    app.add_directive("stamp", Stamp)
    app.add_directive("explorable", Explorable)
    app.add_directive("speed-tables", SpeedTables)
    app.add_directive("speed-figure", SpeedFigure)
    app.add_directive("gpu-profile", GpuProfile)
    app.add_role("measured", companion_ledger.MeasuredRole())
    app.add_role("published", companion_ledger.PublishedRole())
    app.add_role("verdict", companion_ledger.VerdictRole())
    app.add_role("evidence", companion_ledger.EvidenceRole())
    app.connect("missing-reference", companion_ledger.resolve_link)
    app.connect("config-inited", configure, priority=900)
    app.connect("builder-inited", copy_mathjax)
    app.connect("env-get-outdated", stale_pages)
    app.connect("doctree-read", tidy_doctree)
    app.connect("doctree-resolved", drop_thebe_config, priority=900)
    app.connect("html-page-context", tidy_page, priority=900)
    app.connect("build-finished", copy_notebook_sources)
    app.connect("build-finished", companion_diet.slim)
    own = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    # a changed extension makes every page stale: Sphinx itself looks at the pages and their dependencies only
    return {"version": "1", "env_version": zlib.crc32(own), "parallel_read_safe": True, "parallel_write_safe": True}
