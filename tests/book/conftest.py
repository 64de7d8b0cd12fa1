"""What the tests of the book share: the site under test, one browser, a tiny book to build."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

from companion.ledger import paths

ROOT = Path(__file__).resolve().parents[2]
SITE = Path(os.environ.get("COMPANION_SITE") or ROOT / "_build" / "smoke" / "html").resolve()
NO_SITE = f"no book at {SITE}: build it with `make reproduce PROFILE=smoke`, or name one in COMPANION_SITE"
NO_BROWSER = "chromium or chromedriver is missing; on Debian: sudo apt-get install chromium chromium-driver"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
CHAPTER = "01_tiny"

sys.path += [str(ROOT / "book" / "_ext"), str(Path(__file__).parent)]


def pages() -> list[str]:
    """Every page of the site, relative to it; the name of what is missing if there is none."""
    found = [file.relative_to(SITE) for file in SITE.rglob("*.html")]
    return sorted(name.as_posix() for name in found if not name.parts[0].startswith("_")) or ["missing"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a page where a test asks for `page`."""
    if "page" in metafunc.fixturenames:
        metafunc.parametrize("page", pages())


@pytest.fixture(scope="session")
def site() -> Path:
    """The built site."""
    if not (SITE / "index.html").is_file():
        pytest.fail(NO_SITE, pytrace=False)
    return SITE


@pytest.fixture(scope="session")
def browser() -> Iterator[webdriver.Chrome]:
    """One headless Chromium for all tests, with a fresh profile and logs of console and network."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.fail(NO_BROWSER, pytrace=False)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        chrome = webdriver.Chrome(options=options, service=Service(driver))
        chrome.set_script_timeout(60)
        yield chrome
        chrome.quit()


@dataclass
class TinyBook:
    """A book of a few lines under a root of its own, to build again and again."""

    root: Path

    @property
    def source(self) -> Path:
        """Folder of the pages."""
        return self.root / "source"

    def write(self, name: str, text: str) -> None:
        """Write one page, or any other file below the root."""
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def record(self, profile: str = "cpu", **values: float | list[float]) -> None:
        """Leave results behind; a name ``a__b`` stands for the id ``tiny.a-b``."""
        records = [
            {"id": f"tiny.{name.replace('__', '-')}", "value": value, "interval": None, "n": 5, "seconds": 1.0}
            for name, value in values.items()
        ]
        for entry in records:
            if entry["id"] == "tiny.mean":
                entry["interval"] = [0.5, 0.75]
        stamp = {
            "commit": "0123456789abcdef",
            "dirty": False,
            "source_hash": "f" * 64,
            "python": "3.11.2",
            "packages": {"torch": "1.2.3"},
            "platform": "Linux x86_64",
            "processor": "Some processor",
            "device": "cpu",
            "threads": 2,
            "seed": 7,
            "started": "2026-01-02T03:04:05+00:00",
            "wall_seconds": 75.0,
            "peak_memory_bytes": 1_500_000_000,
        }
        head = {"schema": 1, "chapter": CHAPTER, "topic": "tiny", "profile": profile}
        document = {**head, "records": [{**entry, "note": None} for entry in records], "stamp": stamp}
        self.write(f"_build/{profile}/chapters/{CHAPTER}.json", json.dumps(document))

    def build(self) -> list[str]:
        """Build it as HTML; the pages that were read anew."""
        read: list[str] = []
        with patch_docutils(), docutils_namespace():
            app = Sphinx(
                self.source,
                self.source,
                self.root / "html",
                self.root / "doctrees",
                "html",
                confoverrides={
                    "html_theme": "basic",
                    "extensions": ["myst_parser", "companion_book"],
                    "myst_enable_extensions": ["dollarmath"],
                },
                status=None,
                warning=io.StringIO(),
                warningiserror=True,
            )
            app.connect("source-read", lambda app, docname, source: read.append(docname))
            app.build()
        return sorted(read)

    def page(self, name: str) -> str:
        """The HTML of a page."""
        return (self.root / "html" / f"{name}.html").read_text(encoding="utf-8")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TinyBook]:
    """Make a tiny book whose chapter holds the given text."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.delenv("COMPANION_PROFILE", raising=False)
    book = TinyBook(tmp_path)

    def make(chapter: str) -> TinyBook:
        claims = [
            ("identity", "exact", "{ below = 1e-8 }", 'control = "tiny.identity-broken"\ncontrol_says = "no weights"'),
            ("mean", "statistical", "{ above = 0.6 }", ""),
            ("curve", "trend", "{ increasing = true }", ""),
            ("table", "published", "{ equals = 41.3, tol = 1.0 }", 'published = { value = 41.30, setting = "paper" }'),
            ("later", "exact", "{ below = 1.0 }", 'runs = ["gpu"]'),
        ]
        text = ""
        for name, evidence, expect, more in claims:
            text += f'[[claim]]\nid = "tiny.{name}"\npaper = "companion"\nlocator = "Section {name}"\n'
            text += f'says = "It holds that *{name}* is so."\nevidence = "{evidence}"\nquantity = "size of {name}"\n'
            text += f'unit = "1"\nexpect = {expect}\n{more}\n'
        book.write("claims/tiny.toml", text)
        book.write(f"notebooks/{CHAPTER}.py", "# %%\n")
        toc = f"```{{toctree}}\nbook/chapters/{CHAPTER}\nbook/ledger\nbook/plain\n```\n"
        book.write("source/index.md", f"# Front\n\n{toc}")
        book.write("source/conf.py", 'master_doc = "index"\n')
        book.write("source/book/ledger.md", "# Ledger\n\n```{ledger}\n```\n")
        book.write("source/book/plain.md", "# A page without numbers\n")
        book.write(f"source/book/chapters/{CHAPTER}.md", f"# Tiny chapter\n\n{chapter}\n")
        book.record(identity=1.5e-12, identity__broken=0.3, mean=0.625, curve=[0.25, 0.5])
        return book

    return make
