"""A page in the browser as a reader has it: this screen, this theme; what it complained of, and what it asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome

STATIC = Path(__file__).resolve().parents[2] / "book" / "_static"

SCREENS = {"wide": (1400, 1000), "phone": (390, 844)}
READY = """
const done = arguments[arguments.length - 1];
const maths = window.MathJax && window.MathJax.startup ? window.MathJax.startup.promise : Promise.resolve();
const loaded = document.readyState === "complete" ? Promise.resolve() : new Promise(r => addEventListener("load", r));
Promise.all([maths, loaded]).then(() => setTimeout(() => done(true), 50));
"""
# drawings that leave their panel, by their words or by their kind
OUTSIDE = """
return [...document.querySelectorAll(".explorable svg")].flatMap(svg => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text, polyline, circle, rect")]
    .filter(node => {
      const b = node.getBoundingClientRect();
      return b.left < box.left || b.right > box.right || b.top < box.top || b.bottom > box.bottom;
    }).map(node => node.textContent || node.tagName);
});
"""
# contrast of words and marks with the page's ground, which is the argument
CONTRAST = r"""
const luminance = colour => {
  const [r, g, b] = colour.match(/[\d.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = luminance(arguments[0]);
return [...document.querySelectorAll(".explorable svg text, .explorable .curve, .explorable .mark")].map(node => {
  const style = getComputedStyle(node);
  const ink = luminance(node.matches(".curve") ? style.stroke : style.fill);
  return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
});
"""


def load(browser: Chrome, url: str, mode: str = "light", screen: str = "wide") -> None:
    """Open a page as a reader with this screen and this theme would, and wait until it has settled."""
    width, height = SCREENS[screen]
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": screen == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    source = f"localStorage.setItem('mode', '{mode}'); localStorage.setItem('theme', '{mode}');"
    script = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": source})
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(url)
    browser.execute_async_script(READY)
    browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": script["identifier"]})


def console_errors(browser: Chrome) -> list[str]:
    """What the page complained of."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def foreign_requests(browser: Chrome) -> list[str]:
    """What the page asked of anybody but the disk."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [url for url in asked if not url.startswith(("file:", "data:", "about:", "blob:"))]


def explorable(tiny: Callable[..., Any], browser: Chrome, name: str) -> Callable[..., Chrome]:
    """Build a page with one explorable under the book's style sheet; what comes back opens it."""
    book = tiny(f"```{{explorable}} {name}\n:name: fig-live\n\nA caption with $x$.\n```")
    settings = f'master_doc = "index"\nhtml_static_path = [{str(STATIC)!r}]\nhtml_css_files = ["companion.css"]\n'
    book.write("source/conf.py", settings)
    book.build()

    def look(mode: str = "light", screen: str = "wide") -> Chrome:
        load(browser, (book.root / "html/book/chapters/01_tiny.html").as_uri(), mode, screen)
        # what the book's theme does: the mode, and the colour of text in it
        ink = {"light": "#323232", "dark": "#ced6dd"}[mode]
        browser.execute_script(
            f"const root = document.documentElement; root.dataset.theme = '{mode}';"
            f"root.style.setProperty('--pst-color-text-base', '{ink}')"
        )
        return browser

    return look
