"""Witness: the steps of companion.theory.message_passing, and a browser in which somebody presses the buttons."""

from __future__ import annotations

import math

import pytest
import torch
from in_browser import CONTRAST, OUTSIDE, SCREENS, console_errors, explorable, foreign_requests
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from companion.theory import message_passing
from companion.theory.graph import PositivePairGraph

MODEL = """
const m = companionMessages;
const next = m.uniform(arguments[0].seed);
const points = m.twoGaussians(next, arguments[0].n, 0.7);
const start = m.uniformFeatures(next, arguments[0].n);
const graph = m.neighbourGraph(points, 0.4);
"""
RUN = f"""{MODEL}
const {{ mu, alpha, tau, steps }} = arguments[0];
let F = m.weighted(start, graph);
for (let t = 0; t < steps; t += 1) F = m.step(F, graph, {{ mu, alpha, tau }});
const U = m.raw(F, graph);
const estimated = m.estimatedGraph(start, graph, tau);
const arrays = [points, start, graph.A, graph.p, F, estimated].map(array => [...array]);
return [...arrays, m.spread(U, graph), m.gap(U, graph, tau)];
"""
READ = """
return Object.fromEntries([...document.querySelectorAll("[data-read]")].map(dd => [dd.dataset.read, dd.textContent]));
"""
PLACES = """
return [...document.querySelectorAll('[data-panel="features"] .mark')].map(mark => {
  const box = mark.getBBox();
  return [box.x + box.width / 2, box.y + box.height / 2];
});
"""
HEIGHTS = """
return [...document.querySelectorAll(".explorable :is(text, button)")].map(node => node.getBoundingClientRect().height);
"""
SAYS = "return document.querySelector('.explorable-says').textContent"
MOVE = """
const input = document.getElementById("messages-mu");
input.value = arguments[0];
input.dispatchEvent(new Event("input", { bubbles: true }));
"""


@pytest.fixture
def live(tiny, browser):
    """Build a page with the two panels under the book's style sheet, and open it."""
    return explorable(tiny, browser, "messages")


def press(browser, name: str) -> None:
    browser.find_element(By.CSS_SELECTOR, f'button[data-do="{name}"]').click()


def number(text: str) -> float:
    return float(text.replace(",", ""))


def in_javascript(browser, n: int, **options) -> list[torch.Tensor]:
    """Points, start, A, p, features F after the steps, estimated graph at the start; then spread and gap at the end."""
    *arrays, spread, gap = browser.execute_script(RUN, {"seed": 3, "n": n, **options})
    shapes = [(n, 2), (n, 2), (n, n), (n,), (n, 2), (n, n)]
    found = [torch.tensor(a, dtype=torch.float64).reshape(shape) for a, shape in zip(arrays, shapes, strict=True)]
    return [*found, torch.tensor(spread, dtype=torch.float64), torch.tensor(gap, dtype=torch.float64)]


def neighbours(points: torch.Tensor) -> PositivePairGraph:
    close = (points[:, None] - points).norm(dim=2) <= 0.4
    return PositivePairGraph.from_adjacency(close.double(), allow_disconnected=True)


@pytest.mark.parametrize(("mu", "tau", "alpha"), [(0.0, 1.0, 0.1), (1.0, 1.0, 0.1), (0.3, 1.0, 0.1), (0.6, 0.5, 0.05)])
def test_steps_equal_the_theory(live, mu, tau, alpha):
    """At both ends of the slider a step of the theory, in between the same mean of the two steps."""
    found = in_javascript(live(), 40, mu=mu, tau=tau, alpha=alpha, steps=200)
    points, start, A, p, F_end, estimated, spread, gap = found
    graph = neighbours(points)
    same = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(A, graph.adjacency, **same)
    torch.testing.assert_close(p, graph.degree, **same)
    torch.testing.assert_close(estimated, message_passing.estimated_graph(start, p, tau), **same)
    F, Abar = p.sqrt()[:, None] * start, graph.normalized
    for _ in range(200):
        alone = message_passing.alignment_step(F, Abar, alpha)
        both = message_passing.contrastive_step(F, Abar, p, tau, alpha)
        F = (1 - mu) * alone + mu * both
    torch.testing.assert_close(F_end, F, **same)
    U = F / p.sqrt()[:, None]
    torch.testing.assert_close(spread, ((U - p @ U).square().sum(1) @ p).sqrt(), **same)
    torch.testing.assert_close(gap, message_passing.equilibrium_gap(U, graph.adjacency, tau), **same)
    assert (F_end - p.sqrt()[:, None] * start).abs().max() > 0.01


@pytest.mark.parametrize("mu", [0.1, 0.5, 1.0])
def test_near_zero_a_mode_grows_where_the_weight_exceeds_its_laplacian_eigenvalue(mu):
    rng = torch.Generator().manual_seed(0)
    A = torch.rand(9, 9, generator=rng, dtype=torch.float64)
    graph = PositivePairGraph.from_adjacency(A @ A.T)
    values, vectors = torch.linalg.eigh(graph.normalized)
    F = 1e-5 * vectors[:, :-1]  # one mode a column, all but the constant one
    for mode, value in zip(F.T[:, :, None], values[:-1], strict=True):
        alone = message_passing.alignment_step(mode, graph.normalized, 0.05)
        both = message_passing.contrastive_step(mode, graph.normalized, graph.degree, 1.0, 0.05)
        factor = ((1 - mu) * alone + mu * both).norm() / mode.norm()
        assert float(factor) == pytest.approx(1 + 0.1 * float(mu - (1 - value)), abs=1e-6)


def test_points_and_features_have_the_laws_that_the_caption_names(live):
    drawn = live().execute_script(f"{MODEL} return [[...points], [...start]]", {"seed": 11, "n": 4000})
    points, start = (torch.tensor(a, dtype=torch.float64).reshape(-1, 2) for a in drawn)
    for label, mean in ((0, -1.0), (1, 1.0)):
        own = points[label::2]
        error = math.sqrt(0.7 / len(own))
        assert (own.mean(0) - torch.tensor([mean, 0.0])).abs().max() < 4 * error
        assert (own.var(0) - 0.7).abs().max() < 4 * 0.7 * math.sqrt(2 / len(own))
    assert start.abs().max() <= 1
    assert (start.var(0) - 1 / 3).abs().max() < 0.03


def test_alignment_alone_shrinks_and_both_forces_spread(live):
    browser = live()
    ends, gaps = {}, {0: [], 1: []}
    for mu in (0, 1):
        browser.execute_script(MOVE, mu)
        press(browser, "reset")
        assert browser.execute_script(READ)["step"] == "0"
        for _ in range(100):
            press(browser, "ahead")
            gaps[mu].append(number(browser.execute_script(READ)["gap"]))
        ends[mu] = browser.execute_script(READ)
        assert ends[mu]["step"] == "2,000"
        assert browser.execute_script(SAYS).startswith("After 2,000 steps the spread is ")
    assert number(ends[0]["spread"]) < 0.25
    assert number(ends[1]["spread"]) > 2.5
    assert number(ends[1]["gap"]) < 0.5 * number(ends[0]["gap"])
    assert gaps[1] == sorted(gaps[1], reverse=True)  # the step is short enough
    press(browser, "ahead")
    assert browser.execute_script(READ) == ends[1]  # the end is the end


def test_it_plays_pauses_starts_again_and_draws_anew(live):
    browser = live()
    play = browser.find_element(By.CSS_SELECTOR, 'button[data-do="play"]')
    start = browser.execute_script(PLACES)
    assert len(start) == 120
    play.click()
    assert play.text == "Pause"
    WebDriverWait(browser, 20).until(lambda b: number(b.execute_script(READ)["step"]) > 20)
    play.click()
    assert play.text == "Play"
    rest = browser.execute_script(READ)
    moved = browser.execute_script(PLACES)
    assert moved != start
    assert browser.execute_script(SAYS).startswith(f"After {rest['step']} steps ")
    browser.execute_async_script("setTimeout(arguments[0], 150)")
    assert browser.execute_script(READ) == rest
    press(browser, "reset")
    assert browser.execute_script(PLACES) == start
    press(browser, "draw")
    assert browser.execute_script(PLACES) != start
    assert browser.execute_script(READ)["step"] == "0"
    assert console_errors(browser) == []


def test_the_keyboard_suffices(live):
    browser = live()
    slider = browser.find_element(By.ID, "messages-mu")
    spoken = slider.get_attribute("aria-valuetext")
    assert spoken == "1, both forces"
    slider.send_keys(Keys.HOME)
    assert slider.get_attribute("aria-valuetext") == "0, alignment alone"
    assert browser.find_element(By.CSS_SELECTOR, "[for=messages-mu]").text.startswith("weight of the negatives")
    button = browser.find_element(By.CSS_SELECTOR, 'button[data-do="ahead"]')
    button.send_keys(Keys.ENTER)
    button.send_keys(Keys.SPACE)
    assert browser.execute_script(READ)["step"] == "40"


def test_who_wants_no_motion_gets_the_end_at_once(live):
    browser = live()
    reduce = {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", reduce)
    try:
        press(browser, "play")
        assert browser.execute_script(READ)["step"] == "2,000"
        assert browser.find_element(By.CSS_SELECTOR, 'button[data-do="play"]').text == "Play"
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_it_fits_reads_and_asks_for_nothing(live, mode, screen):
    browser = live(mode, screen)
    ground = {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 18, 18)"}[mode]
    for mu in (0, 0.5, 1):
        browser.execute_script(MOVE, mu)
        for name in ("reset", "ahead", "draw", "ahead"):
            press(browser, name)
            assert browser.execute_script(OUTSIDE) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= SCREENS[screen][0]
    assert min(browser.execute_script(HEIGHTS)) > 11
    inks = browser.execute_script(CONTRAST, ground)
    assert len(inks) > 240
    assert min(inks) > 4.5
    assert console_errors(browser) == []
    assert foreign_requests(browser) == []


def test_without_javascript_it_says_what_it_would_show(live):
    browser = live()
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.refresh()
        figure = browser.find_element(By.ID, "messages")
        assert "only where JavaScript runs" in figure.text
        assert not figure.find_element(By.CSS_SELECTOR, ".explorable-body").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_drawings_have_words_that_follow_them(live):
    browser = live()
    before = browser.find_element(By.ID, "messages-features-text").get_attribute("textContent")
    press(browser, "ahead")
    figure = browser.find_element(By.CSS_SELECTOR, "figure#fig-live")
    for drawing in figure.find_elements(By.CSS_SELECTOR, ".explorable svg[role=img]"):
        for name in drawing.get_dom_attribute("aria-labelledby").split():
            assert len(drawing.find_element(By.ID, name).get_attribute("textContent")) > 7
    assert browser.find_element(By.ID, "messages-features-text").get_attribute("textContent") != before
