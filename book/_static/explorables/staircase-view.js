// The staircase's picture: reads two sliders, draws two panels over one time axis, says how many steps one sees.
"use strict";

(() => {
  const { eigenvalue, criticalTime, riseTime, lossStaircase, spectrum, visibleSteps } = globalThis.companionStaircase;
  const MODES = 5;
  const SAMPLES = 500;
  const MARGIN = { left: 34, right: 14, top: 26 };
  const PANELS = { loss: { height: 170, bottom: 8 }, eigenvalues: { height: 150, bottom: 40 } };
  const WORDS = ["no step", "1 step", "2 steps", "3 steps", "4 steps", "5 steps"];

  const raised = (n) => String(n).replace(/./g, (c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]));
  const lowered = (n) => String(n).replace(/./g, (c) => "₀₁₂₃₄₅₆₇₈₉"[c]);
  const span = (letter, group) =>
    letter + lowered(group[0] + 1) + (group.length > 1 ? `–${letter}${lowered(group[group.length - 1] + 1)}` : "");

  /** 3 × 10⁻⁴ for a small number, 10⁻⁴ for a power, 0.12 for one near 1. */
  function short(x) {
    if (x >= 0.01) return String(Number(x.toPrecision(2)));
    const [digits, exponent] = x.toExponential(1).split("e");
    return `${Number(digits) === 1 ? "" : `${Number(digits)} × `}10${raised(Number(exponent))}`;
  }

  /** Round numbers 1, 2, 5 times powers of ten in a range; powers of ten alone where those are many. */
  function roundNumbers(low, high) {
    const found = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e += 1) {
      for (const m of [1, 2, 5]) found.push(Number(`${m}e${e}`));
    }
    const inside = found.filter((x) => x >= low && x <= high);
    return inside.length > 6 ? inside.filter((x) => /^[.01]*$/.test(String(x))) : inside;
  }

  /** Numbers along an axis, joined where they come closer than a gap. */
  function joinClose(places, gap) {
    const groups = [];
    places.forEach((x, j) => {
      if (j > 0 && x - places[j - 1] < gap) groups[groups.length - 1].push(j);
      else groups.push([j]);
    });
    return groups;
  }

  /** The sentence under the panels. */
  function sentence(steps) {
    const names = (step) => `${step.slice(0, -1).map((j) => j + 1).join(", ")} and ${step[step.length - 1] + 1}`;
    const merged = steps.filter((step) => step.length > 1);
    if (!merged.length) return `${WORDS[MODES]} are visible, one for each mode.`;
    if (steps.length === 1) return `${WORDS[1]} is visible: all ${MODES} modes rise together.`;
    const parts = merged.map((step) => `modes ${names(step)} rise together, in one drop of ${step.length}`);
    return `${WORDS[steps.length]} are visible: ${parts.join("; ")}.`;
  }

  function add(parent, name, attributes, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  }

  /** Clear a panel, give it today's width, return how to draw in it. */
  function open(svg, width, top) {
    const { height, bottom } = PANELS[svg.dataset.panel];
    svg.querySelectorAll(":scope > :not(title, desc)").forEach((node) => node.remove());
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);
    const floor = height - bottom;
    return { svg, floor, y: (value) => floor - (value / top) * (floor - MARGIN.top) };
  }

  function curve(panel, x, times, values, attributes) {
    const points = times.map((t, i) => `${x(t).toFixed(1)},${panel.y(values[i]).toFixed(2)}`);
    add(panel.svg, "polyline", { points: points.join(" "), ...attributes });
  }

  function draw(figure, alpha, ratio) {
    const width = Math.max(240, Math.round(figure.querySelector("svg").getBoundingClientRect().width));
    const gammas = spectrum(ratio, MODES);
    const critical = gammas.map((gamma) => criticalTime(gamma, alpha));
    const low = critical[0] / 4;
    const high = 1.3 * (critical[MODES - 1] + riseTime(gammas[MODES - 1]) / 2);
    const right = width - MARGIN.right;
    const x = (t) => MARGIN.left + (Math.log(t / low) / Math.log(high / low)) * (right - MARGIN.left);
    const times = Array.from({ length: SAMPLES + 1 }, (_, i) => low * (high / low) ** (i / SAMPLES));
    const groups = joinClose(critical.map(x), 30);
    const middle = (group) => (x(critical[group[0]]) + x(critical[group[group.length - 1]])) / 2;

    const loss = open(figure.querySelector('[data-panel="loss"]'), width, MODES);
    const small = open(figure.querySelector('[data-panel="eigenvalues"]'), width, 1);
    add(loss.svg, "text", { x: MARGIN.left, y: 14, class: "heading" }, "loss");
    add(small.svg, "text", { x: MARGIN.left, y: 14, class: "heading" }, "eigenvalues of C");
    for (let value = 0; value <= MODES; value += 1) {
      add(loss.svg, "path", { class: "rule", d: `M${MARGIN.left} ${loss.y(value)}H${right}` });
      add(loss.svg, "text", { x: MARGIN.left - 8, y: loss.y(value) + 4, "text-anchor": "end" }, value);
    }
    for (const value of [0, 0.5, 1]) {
      add(small.svg, "path", { class: "rule", d: `M${MARGIN.left} ${small.y(value)}H${right}` });
      add(small.svg, "text", { x: MARGIN.left - 8, y: small.y(value) + 4, "text-anchor": "end" }, value === 0.5 ? "½" : value);
    }
    critical.forEach((t) => {
      add(loss.svg, "path", { class: "critical", d: `M${x(t)} ${MARGIN.top - 6}V${loss.floor}` });
      add(small.svg, "path", { class: "critical", d: `M${x(t)} ${MARGIN.top - 6}V${small.floor}` });
    });
    for (const group of groups) {
      add(loss.svg, "text", { x: middle(group), y: 14, "text-anchor": "middle", class: "time" }, span("t", group));
    }
    for (const t of roundNumbers(low, high)) {
      add(small.svg, "path", { class: "tick", d: `M${x(t)} ${small.floor}v5` });
      add(small.svg, "text", { x: x(t), y: small.floor + 18, "text-anchor": "middle" }, t);
    }
    const axis = { x: right, y: small.floor + 34, "text-anchor": "end" };
    add(small.svg, "text", axis, "time t, logarithmic");

    curve(loss, x, times, times.map((t) => lossStaircase(gammas, alpha, t)), { class: "curve loss" });
    gammas.forEach((gamma, j) => {
      curve(small, x, times, times.map((t) => eigenvalue(gamma, alpha, t)), { class: `curve mode-${j + 1}` });
    });
    critical.forEach((t, j) => add(small.svg, "circle", { class: `mode-${j + 1}`, cx: x(t), cy: small.y(0.5), r: 3.5 }));
    for (const group of groups) {
      const last = group[group.length - 1];
      const place = { x: x(critical[last]) + 8, y: small.y(0.5) + 15, class: `mode-${last + 1}` };
      add(small.svg, "text", place, span("c", group));
    }

    const steps = visibleSteps(gammas, alpha);
    const listed = critical.map((t) => Number(t.toPrecision(3))).join(", ");
    figure.querySelector(".explorable-says").textContent = sentence(steps);
    loss.svg.querySelector("desc").textContent =
      `The loss falls from ${MODES} to 0 in ${WORDS[steps.length]}, at the predicted times ${listed}.`;
    small.svg.querySelector("desc").textContent =
      `${MODES} eigenvalues rise from 0 to 1 along S-shaped curves; they pass one half at the times ${listed}.`;
  }

  function mount(figure) {
    const [alpha, ratio] = figure.querySelectorAll("input");
    const show = (input, text) => {
      input.setAttribute("aria-valuetext", text);
      input.parentElement.querySelector("output").textContent = text;
    };
    const update = () => {
      const start = 10 ** Number(alpha.value);
      show(alpha, short(start));
      show(ratio, Number(ratio.value).toFixed(2));
      draw(figure, start, Number(ratio.value));
    };
    figure.querySelector(".explorable-body").hidden = false;
    figure.addEventListener("input", update);
    let width = 0;
    new ResizeObserver(([entry]) => {
      if (entry.contentRect.width !== width) window.requestAnimationFrame(update);
      width = entry.contentRect.width;
    }).observe(figure);
    update();
  }

  mount(document.getElementById("staircase"));
})();
