"""Witness: the closed forms of companion.theory.stepwise, and a browser in which somebody moves the sliders."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from in_browser import CONTRAST, OUTSIDE, SCREENS, console_errors, explorable, foreign_requests
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from companion.theory import stepwise

GAMMAS = [1e-4, 0.0081, 0.3, 0.98, 1.0, 2.5, 11.0]  # the last times the largest start squared stays below 1
STARTS = [1e-150, 1e-12, 1e-6, 1e-3, 0.1, 0.3]
TIMES = [0.0, 1e-12, 0.01, 0.5, 1.0, 3.0, 17.0, 500.0, 1e6, 1e300, math.inf]
CURVES = "return [...document.querySelectorAll('.explorable polyline')].map(line => line.getAttribute('points'))"
BEGINNINGS = r"""
const paths = document.querySelectorAll(`[data-panel="loss"] .${arguments[0]}`);
return [...paths].map(path => path.getAttribute("d").match(/^M([\d.]+) ([\d.]+)/).slice(1));
"""
SAYS = "return document.querySelector('.explorable-says').textContent"
MOVE = """
for (const [id, value] of Object.entries(arguments[0])) {
  const input = document.getElementById(`staircase-${id}`);
  input.value = value;
  input.dispatchEvent(new Event("input", { bubbles: true }));
}
"""


@pytest.fixture
def live(tiny, browser):
    """Build a page with the staircase under the book's style sheet, and open it."""
    return explorable(tiny, browser, "staircase")


def in_javascript(browser, expression: str, *lists: list) -> torch.Tensor:
    """An expression in `a`, `b`, ... over all combinations of the lists' entries; infinity travels as null."""
    names = ", ".join("abc"[: len(lists)])
    grid = [[None if value == math.inf else value for value in row] for row in itertools.product(*lists)]
    code = "const m = companionStaircase; return arguments[0].map(row => row.map(v => v === null ? Infinity : v))"
    found = browser.execute_script(f"{code}.map(([{names}]) => {expression})", grid)
    return torch.tensor(found, dtype=torch.float64).reshape([len(values) for values in lists])


def grid(*lists: list[float]) -> list[torch.Tensor]:
    return torch.meshgrid(*(torch.tensor(values, dtype=torch.float64) for values in lists), indexing="ij")


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_curves_equal_the_theory_at_every_scale(live):
    browser = live()
    gamma, start, time = grid(GAMMAS, STARTS, TIMES)
    same(
        in_javascript(browser, "m.eigenvalue(a, b, c)", GAMMAS, STARTS, TIMES),
        stepwise.correlation_eigenvalues(gamma, start, time),
    )
    same(
        in_javascript(browser, "m.singularValue(a, b, c)", GAMMAS, STARTS, TIMES),
        stepwise.singular_values(gamma, start, time),
    )


def test_times_equal_the_theory(live):
    browser = live()
    gamma, start = grid(GAMMAS, STARTS)
    same(in_javascript(browser, "m.criticalTime(a, b)", GAMMAS, STARTS), stepwise.critical_times(gamma, start))
    same(in_javascript(browser, "m.riseTime(a)", GAMMAS), stepwise.rise_times(gamma[:, 0]))


def test_the_loss_equals_the_theory(live):
    browser = live()
    ratios = [0.3, 0.6, 0.98]
    found = in_javascript(browser, "m.lossStaircase(m.spectrum(a, 5), b, c)", ratios, STARTS, TIMES)
    for i, ratio in enumerate(ratios):
        gamma = torch.tensor(ratio, dtype=torch.float64) ** torch.arange(5)
        for j, start in enumerate(STARTS):
            same(found[i, j], stepwise.loss_staircase(gamma, start, torch.tensor(TIMES, dtype=torch.float64)))


def test_small_eigenvalues_and_residuals_keep_their_digits(live):
    """Relative, far below rounding of 1: what a subtraction would have lost."""
    browser = live()
    found = in_javascript(browser, "m.eigenvalue(1, a, b)", [1e-100, 1e-30], [0.0, 1.0, 5.0])
    start, time = grid([1e-100, 1e-30], [0.0, 1.0, 5.0])
    torch.testing.assert_close(found, stepwise.correlation_eigenvalues(1.0, start, time), rtol=1e-12, atol=0)
    found = in_javascript(browser, "m.lossStaircase([1, 0.5], 0.1, a)", [5.0, 10.0, 30.0])
    expected = stepwise.loss_staircase(torch.tensor([1.0, 0.5]), 0.1, torch.tensor([5.0, 10.0, 30.0]))
    assert expected[-1] < 1e-90
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def steps_by_theory(ratio: float, start: float) -> list[list[int]]:
    """Modes joined where the rise of one, from 10 % to 90 %, overlaps the next one's; naively."""
    gamma = torch.tensor(ratio, dtype=torch.float64) ** torch.arange(5)
    middle, half = stepwise.critical_times(gamma, start), stepwise.rise_times(gamma) / 2
    apart = (middle[1:] - half[1:] >= middle[:-1] + half[:-1]).tolist()
    steps = [[0]]
    for mode, alone in enumerate(apart, start=1):
        if alone:
            steps.append([])
        steps[-1].append(mode)
    return steps


def test_steps_are_counted_as_the_theory_counts_them(live):
    browser = live()
    seen = set()
    for exponent, ratio in itertools.product([-6, -5, -4, -3, -2, -1.5, -1, -0.52], [0.3, 0.4, 0.5, 0.6, 0.75, 0.98]):
        expected = steps_by_theory(ratio, 10**exponent)
        code = "return companionStaircase.visibleSteps(companionStaircase.spectrum(arguments[0], 5), arguments[1])"
        assert browser.execute_script(code, ratio, 10**exponent) == expected
        browser.execute_script(MOVE, {"alpha": exponent, "ratio": ratio})
        count = len(expected)
        assert browser.execute_script(SAYS).startswith(f"{count} step{'s are' if count > 1 else ' is'} visible")
        seen.add(count)
    assert {1, 5} < seen  # and something between


def test_moving_a_slider_with_the_keyboard_changes_the_picture(live):
    browser = live()
    for name, key in (("alpha", Keys.ARROW_LEFT), ("ratio", Keys.ARROW_RIGHT)):
        before = browser.execute_script(CURVES)
        slider = browser.find_element(By.ID, f"staircase-{name}")
        spoken = slider.get_attribute("aria-valuetext")
        slider.send_keys(key * 5)
        after = browser.execute_script(CURVES)
        assert len(before) == len(after) == 6
        assert all(old != new for old, new in zip(before, after, strict=True))
        assert slider.get_attribute("aria-valuetext") != spoken
        assert browser.find_element(By.CSS_SELECTOR, f"[for=staircase-{name}]").text.startswith(("start", "ratio"))
    assert console_errors(browser) == []


def test_the_drawn_loss_is_the_closed_form(live):
    """Read back from the pixels: at each predicted time the curve has the predicted height."""
    browser = live()
    browser.execute_script(MOVE, {"alpha": -4, "ratio": 0.5})
    times = [float(x) for x, _ in browser.execute_script(BEGINNINGS, "critical")]
    levels = [float(y) for _, y in browser.execute_script(BEGINNINGS, "rule")]
    points = [pair.split(",") for pair in browser.execute_script(CURVES)[0].split()]
    heights = np.interp(times, [float(x) for x, _ in points], [float(y) for _, y in points])
    drawn = (levels[0] - heights) / (levels[0] - levels[5]) * 5
    gamma = 0.5 ** torch.arange(5, dtype=torch.float64)
    predicted = stepwise.loss_staircase(gamma, 1e-4, stepwise.critical_times(gamma, 1e-4))
    np.testing.assert_allclose(drawn, predicted, atol=0.03)


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_it_fits_reads_and_asks_for_nothing(live, mode, screen):
    browser = live(mode, screen)
    ground = {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 18, 18)"}[mode]
    for exponent, ratio in itertools.product([-6, -3, -0.52], [0.3, 0.6, 0.75, 0.98]):
        browser.execute_script(MOVE, {"alpha": exponent, "ratio": ratio})
        assert browser.execute_script(OUTSIDE) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= SCREENS[screen][0]
    heights = "return [...document.querySelectorAll('.explorable text')].map(t => t.getBoundingClientRect().height)"
    assert min(browser.execute_script(heights)) > 11
    inks = browser.execute_script(CONTRAST, ground)
    assert len(inks) > 20
    assert min(inks) > 4.5
    assert console_errors(browser) == []
    assert foreign_requests(browser) == []


def test_without_javascript_it_says_what_it_would_show(live):
    browser = live()
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.refresh()
        figure = browser.find_element(By.ID, "staircase")
        assert "only where JavaScript runs" in figure.text
        assert not figure.find_element(By.CSS_SELECTOR, ".explorable-body").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_it_is_a_figure_with_label_and_caption(live):
    figure = live().find_element(By.CSS_SELECTOR, "figure#fig-live")
    assert "A caption with" in figure.find_element(By.TAG_NAME, "figcaption").text
    for drawing in figure.find_elements(By.CSS_SELECTOR, ".explorable svg[role=img]"):
        for name in drawing.get_dom_attribute("aria-labelledby").split():
            assert len(drawing.find_element(By.ID, name).get_attribute("textContent")) > 10
