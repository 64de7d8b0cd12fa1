"""A page in the browser as a reader has it: this screen, this theme; what it complained of, and what it asked for."""

from __future__ import annotations

import json

from selenium.webdriver import Chrome

SCREENS = {"wide": (1400, 1000), "phone": (390, 844)}
READY = """
const done = arguments[arguments.length - 1];
const maths = window.MathJax && window.MathJax.startup ? window.MathJax.startup.promise : Promise.resolve();
const loaded = document.readyState === "complete" ? Promise.resolve() : new Promise(r => addEventListener("load", r));
Promise.all([maths, loaded]).then(() => setTimeout(() => done(true), 50));
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
