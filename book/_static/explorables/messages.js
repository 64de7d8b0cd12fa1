// Message passing on a small graph: pure functions of arrays, no page. The rules are those of
// companion/theory/message_passing.py, written down a second time and tested against it. A step descends, in the
// weighted features F = D^{1/2} U, the loss (1 - mu) L_align + mu L_NCE, whose gradient is
//   -2 [(1 - mu) (A_bar - I) + (mu / tau) (A_bar - A'_bar)] F ,
// with A_bar the graph and A'_bar the estimated graph, symmetric, both divided by the roots of the degrees.
// Matrices are flat arrays, one row after the other; features and points have two columns.
"use strict";

globalThis.companionMessages = (() => {
  /** Uniform numbers in [0, 1) from a seed (mulberry32): the same picture for every reader. */
  function uniform(seed) {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let t = Math.imul(state ^ (state >>> 15), state | 1);
      t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
  }

  /** n points, in turn of class 0 around (-1, 0) and of class 1 around (1, 0); the variance is that of a coordinate. */
  function twoGaussians(next, n, variance) {
    const points = new Float64Array(2 * n);
    for (let i = 0; i < n; i += 1) {
      const radius = Math.sqrt(-2 * variance * Math.log(1 - next()));
      const angle = 2 * Math.PI * next();
      points[2 * i] = radius * Math.cos(angle) + (i % 2 ? 1 : -1);
      points[2 * i + 1] = radius * Math.sin(angle);
    }
    return points;
  }

  /** Features of n points, uniform in the square [-1, 1]^2. */
  function uniformFeatures(next, n) {
    return Float64Array.from({ length: 2 * n }, () => 2 * next() - 1);
  }

  /** The graph that joins points no further apart than a radius, itself included: A sums to 1, p are its row sums. */
  function neighbourGraph(points, radius) {
    const n = points.length / 2;
    const A = new Float64Array(n * n);
    const edges = [];
    for (let i = 0; i < n; i += 1) {
      for (let j = 0; j <= i; j += 1) {
        const close = Math.hypot(points[2 * i] - points[2 * j], points[2 * i + 1] - points[2 * j + 1]) <= radius;
        if (close) A[i * n + j] = A[j * n + i] = 1;
        if (close && j < i) edges.push([i, j]);
      }
    }
    const total = n + 2 * edges.length;
    const p = new Float64Array(n);
    A.forEach((weight, at) => {
      A[at] = weight / total;
      p[Math.floor(at / n)] += A[at];
    });
    const root = p.map(Math.sqrt);
    const normalized = A.map((weight, at) => weight / (root[Math.floor(at / n)] * root[at % n]));
    return { n, A, p, root, normalized, edges };
  }

  /** F = D^{1/2} U. */
  function weighted(U, { root }) {
    return U.map((value, at) => value * root[at >> 1]);
  }

  /** U = D^{-1/2} F. */
  function raw(F, { root }) {
    return F.map((value, at) => value / root[at >> 1]);
  }

  /** A'_{xx'} = p_x p_x' exp(S_xx') / Q_x with S = U U^T / tau and Q_x = sum_x' p_x' exp(S_xx'). */
  function estimatedGraph(U, { n, p }, tau) {
    const estimated = new Float64Array(n * n);
    for (let i = 0; i < n; i += 1) {
      let top = -Infinity;
      for (let j = 0; j < n; j += 1) {
        estimated[i * n + j] = (U[2 * i] * U[2 * j] + U[2 * i + 1] * U[2 * j + 1]) / tau;
        top = Math.max(top, estimated[i * n + j]);
      }
      let sum = 0;
      for (let j = 0; j < n; j += 1) sum += estimated[i * n + j] = p[j] * Math.exp(estimated[i * n + j] - top);
      for (let j = 0; j < n; j += 1) estimated[i * n + j] *= p[i] / sum;
    }
    return estimated;
  }

  /** F after one step of gradient descent with step size alpha on (1 - mu) L_align + mu L_NCE. */
  function step(F, graph, { mu, alpha, tau }) {
    const { n, root, normalized } = graph;
    const estimated = mu > 0 ? estimatedGraph(raw(F, graph), graph, tau) : null;
    const pull = 2 * alpha * (1 - mu + mu / tau);
    const push = (2 * alpha * mu) / tau;
    const keep = 1 - 2 * alpha * (1 - mu);
    const next = F.map((value) => keep * value);
    for (let i = 0; i < n; i += 1) {
      for (let j = 0; j < n; j += 1) {
        let message = pull * normalized[i * n + j];
        if (estimated) message -= (push * (estimated[i * n + j] + estimated[j * n + i])) / (2 * root[i] * root[j]);
        next[2 * i] += message * F[2 * j];
        next[2 * i + 1] += message * F[2 * j + 1];
      }
    }
    return next;
  }

  /** Root of the p-weighted variance of the features, both columns together. */
  function spread(U, { n, p }) {
    const mean = [0, 0];
    for (let i = 0; i < n; i += 1) for (const c of [0, 1]) mean[c] += p[i] * U[2 * i + c];
    let variance = 0;
    for (let i = 0; i < n; i += 1) for (const c of [0, 1]) variance += p[i] * (U[2 * i + c] - mean[c]) ** 2;
    return Math.sqrt(variance);
  }

  /** KL(A || A') in nats, what the loss still lacks to its least conceivable value; no edge, no term. */
  function gap(U, graph, tau) {
    const estimated = estimatedGraph(U, graph, tau);
    return graph.A.reduce((sum, a, at) => (a > 0 ? sum + a * Math.log(a / estimated[at]) : sum), 0);
  }

  return { uniform, twoGaussians, uniformFeatures, neighbourGraph, weighted, raw, estimatedGraph, step, spread, gap };
})();
