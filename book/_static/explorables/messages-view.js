// Two panels, a slider and four buttons over the message passing of messages.js: draws, plays, says how it ended.
"use strict";

(() => {
  const messages = globalThis.companionMessages;
  const { uniform, twoGaussians, uniformFeatures, neighbourGraph, weighted, raw, step, spread, gap } = messages;
  const POINTS = 120;
  const VARIANCE = 0.7;
  const RADIUS = 0.4;
  const RULE = { alpha: 0.05, tau: 1 }; // at 0.1 features that are far out overshoot, and the gap no longer falls
  const STEPS = 2000;
  const AHEAD = 20;
  const SPEED = 0.25; // steps a millisecond: eight seconds for all
  const SEED = 7;
  const NARROWEST = 1.25; // the features' panel never shows less than the square where they start, and a margin
  const MARGIN = { left: 30, right: 8, top: 22, bottom: 24 };
  const MARKS = [{ name: "circle", size: 3.4 }, { name: "rect", size: 6 }]; // classes differ in shape, too

  const three = (x) => x.toPrecision(3);

  function add(parent, name, attributes, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  }

  /** Draw n points and a start of the features from a seed. */
  function begin(seed) {
    const next = uniform(seed);
    const points = twoGaussians(next, POINTS, VARIANCE);
    const start = uniformFeatures(next, POINTS);
    const graph = neighbourGraph(points, RADIUS);
    return { seed, points, start, graph, F: weighted(start, graph), done: 0 };
  }

  /** Number of connected components of a graph. */
  function components({ n, edges }) {
    const root = Array.from({ length: n }, (_, i) => i);
    const find = (i) => (root[i] === i ? i : (root[i] = find(root[i])));
    for (const [i, j] of edges) root[find(i)] = find(j);
    return root.filter((r, i) => r === i).length;
  }

  /** Numbers on an axis from -reach to reach: 0 and one round number on either side. */
  function ticks(reach) {
    const power = 10 ** Math.floor(Math.log10(0.9 * reach));
    const round = [5, 2, 1].map((m) => m * power).find((x) => x <= 0.9 * reach);
    return [-round, 0, round];
  }

  /** Clear a panel, give it today's width, set up its axes; returns how to place things in it. */
  function open(svg, heading, reach) {
    const width = Math.max(200, Math.round(svg.getBoundingClientRect().width));
    const side = Math.min(width - MARGIN.left - MARGIN.right, 0.3 * window.innerHeight, 300); // both panels on a phone
    const height = side + MARGIN.top + MARGIN.bottom;
    const left = MARGIN.left + (width - MARGIN.left - MARGIN.right - side) / 2;
    svg.querySelectorAll(":scope > :not(title, desc)").forEach((node) => node.remove());
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);
    const x = (value) => left + (side * (value + reach)) / (2 * reach);
    const y = (value) => MARGIN.top + (side * (reach - value)) / (2 * reach);
    add(svg, "text", { x: left, y: 14, class: "heading" }, heading);
    for (const value of ticks(reach)) {
      const label = String(value).replace("-", "−");
      add(svg, "path", { class: "rule", d: `M${left} ${y(value)}h${side}M${x(value)} ${MARGIN.top}v${side}` });
      add(svg, "text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, label);
      add(svg, "text", { x: x(value), y: height - 6, "text-anchor": "middle" }, label);
    }
    return { svg, x, y };
  }

  /** One mark a point: a disc of class 0, a square of class 1. */
  function marks({ svg, x, y }, positions) {
    for (let i = 0; i < POINTS; i += 1) {
      const { name, size } = MARKS[i % 2];
      const [cx, cy] = [x(positions[2 * i]), y(positions[2 * i + 1])].map((v) => v.toFixed(1));
      const place = { cx, cy, r: size, x: cx - size / 2, y: cy - size / 2, width: size, height: size };
      const wanted = name === "circle" ? ["cx", "cy", "r"] : ["x", "y", "width", "height"];
      const shape = Object.fromEntries(wanted.map((key) => [key, place[key]]));
      add(svg, name, { class: `mark mode-${(i % 2) + 1}`, ...shape });
    }
  }

  const reachOf = (positions, least) => Math.max(least, 1.06 * Math.max(...positions.map(Math.abs)));

  function mount(figure) {
    const slider = figure.querySelector("input");
    const buttons = Object.fromEntries([...figure.querySelectorAll("button")].map((node) => [node.dataset.do, node]));
    const panel = (name) => figure.querySelector(`[data-panel="${name}"]`);
    const read = (name, text) => { figure.querySelector(`[data-read="${name}"]`).textContent = text; };
    const still = window.matchMedia("(prefers-reduced-motion: reduce)");
    let run = begin(SEED);
    let before = null; // time of the last frame while it plays, otherwise null

    const mu = () => Number(slider.value);
    const features = () => raw(run.F, run.graph);

    function drawPoints() {
      const drawn = open(panel("points"), "points and edges", reachOf(run.points, 2.5));
      const at = (i) => `${drawn.x(run.points[2 * i]).toFixed(1)} ${drawn.y(run.points[2 * i + 1]).toFixed(1)}`;
      add(drawn.svg, "path", { class: "edges", d: run.graph.edges.map(([i, j]) => `M${at(i)}L${at(j)}`).join("") });
      marks(drawn, run.points);
      drawn.svg.querySelector("desc").textContent =
        `${POINTS} points, half of them around (−1, 0) and half around (1, 0); ` +
        `${run.graph.edges.length} edges join those at most ${RADIUS} apart into ${components(run.graph)} groups.`;
    }

    function drawFeatures() {
      const U = features();
      marks(open(panel("features"), "features", reachOf(U, NARROWEST)), U);
      const [wide, lacks] = [spread(U, run.graph), gap(U, run.graph, RULE.tau)];
      const now = { step: run.done.toLocaleString("en"), spread: three(wide), gap: three(lacks) };
      for (const [name, text] of Object.entries(now)) read(name, text);
      return now;
    }

    /** Words that are also spoken, once the figure rests. */
    function say() {
      const now = drawFeatures();
      const first = { spread: spread(run.start, run.graph), gap: gap(run.start, run.graph, RULE.tau) };
      const times = three(spread(features(), run.graph) / first.spread);
      const text = run.done === 0
        ? `Features at random: spread ${now.spread}, KL ${now.gap} nats.`
        : `After ${now.step} steps the spread is ${times} times that at the start; ` +
          `KL went from ${three(first.gap)} to ${now.gap} nats.`;
      figure.querySelector(".explorable-says").textContent = text;
      panel("features").querySelector("desc").textContent = `The features of the two classes. ${text}`;
    }

    function advance(count) {
      const rule = { mu: mu(), ...RULE };
      for (let i = 0; i < count && run.done < STEPS; i += 1) {
        run.F = step(run.F, run.graph, rule);
        run.done += 1;
      }
    }

    function pause() {
      before = null;
      buttons.play.textContent = "Play";
      say();
    }

    function frame(time) {
      if (before === null) return;
      const count = Math.min(40, Math.floor((time - before) * SPEED));
      if (count > 0) {
        advance(count);
        before = time;
        drawFeatures();
      }
      if (run.done >= STEPS) pause();
      else window.requestAnimationFrame(frame);
    }

    function restart(seed) {
      run = begin(seed);
      drawPoints();
      pause();
    }

    const actions = {
      play() {
        if (before !== null) return pause();
        if (run.done >= STEPS) restart(run.seed);
        if (still.matches) {
          advance(STEPS); // no motion: the end at once
          return pause();
        }
        buttons.play.textContent = "Pause";
        before = performance.now();
        return window.requestAnimationFrame(frame);
      },
      ahead() {
        advance(AHEAD);
        pause();
      },
      reset: () => restart(run.seed),
      draw: () => restart(run.seed + 1),
    };

    function weight() {
      const text = mu() === 0 ? "0, alignment alone" : mu() === 1 ? "1, both forces" : mu().toFixed(2);
      slider.setAttribute("aria-valuetext", text);
      slider.parentElement.querySelector("output").textContent = text;
    }

    figure.querySelector(".explorable-body").hidden = false;
    figure.addEventListener("input", weight);
    for (const [name, button] of Object.entries(buttons)) button.addEventListener("click", actions[name]);
    let width = 0;
    new ResizeObserver(([entry]) => {
      if (entry.contentRect.width !== width) window.requestAnimationFrame(() => { drawPoints(); drawFeatures(); });
      width = entry.contentRect.width;
    }).observe(figure);
    weight();
    restart(SEED);
  }

  mount(document.getElementById("messages"));
})();
