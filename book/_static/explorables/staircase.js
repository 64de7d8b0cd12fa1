// The closed form behind the staircase: pure functions of numbers, no page. It is the aligned trajectory of
// companion/theory/stepwise.py, written down a second time and tested against it: with c(0) = gamma alpha^2,
//   log(c / (1 - c)) = log(c(0) / (1 - c(0))) + 8 gamma t .
// Everywhere gamma > 0, alpha > 0 and gamma alpha^2 < 1. Logarithms throughout: no time and no start overflows.
"use strict";

globalThis.companionStaircase = (() => {
  /** 1 / (1 + exp(-x)), to full relative precision on both sides. */
  function sigmoid(x) {
    return x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x));
  }

  /** log(c / (1 - c)) of a mode with eigenvalue gamma, started at scale alpha, at time t. */
  function logit(gamma, alpha, t) {
    return Math.log(gamma) + 2 * Math.log(alpha) - Math.log1p(-gamma * (alpha * alpha)) + 8 * gamma * t;
  }

  /** Eigenvalue c(t) of the embedding's cross-correlation. */
  function eigenvalue(gamma, alpha, t) {
    return sigmoid(logit(gamma, alpha, t));
  }

  /** Singular value s(t) of the encoder, c = gamma s^2. */
  function singularValue(gamma, alpha, t) {
    return Math.sqrt(eigenvalue(gamma, alpha, t) / gamma);
  }

  /** Time at which c = 1/2. */
  function criticalTime(gamma, alpha) {
    return -logit(gamma, alpha, 0) / (8 * gamma);
  }

  /** How long c takes from 10 % to 90 %; no start changes it. */
  function riseTime(gamma) {
    return Math.log(81) / (8 * gamma);
  }

  /** The loss, the sum of (1 - c)^2 over the modes. */
  function lossStaircase(gammas, alpha, t) {
    return gammas.reduce((sum, gamma) => sum + sigmoid(-logit(gamma, alpha, t)) ** 2, 0);
  }

  /** Eigenvalues 1, ratio, ratio^2, ... of as many modes. */
  function spectrum(ratio, modes) {
    return Array.from({ length: modes }, (_, j) => ratio ** j);
  }

  /** The modes, in decreasing order, grouped into the steps one sees: where two rises overlap, they make one step. */
  function visibleSteps(gammas, alpha) {
    const steps = [];
    let end = -Infinity;
    gammas.forEach((gamma, j) => {
      const time = criticalTime(gamma, alpha);
      const half = riseTime(gamma) / 2;
      if (time - half < end) steps[steps.length - 1].push(j);
      else steps.push([j]);
      end = Math.max(end, time + half);
    });
    return steps;
  }

  return { eigenvalue, singularValue, criticalTime, riseTime, lossStaircase, spectrum, visibleSteps };
})();
