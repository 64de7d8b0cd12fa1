// Small repairs that a page does on itself, in the reader's browser, without a network.
"use strict";

// Search shows excerpts by fetching pages, which browsers forbid under file://: there, list titles only.
if (window.location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

// A formula in the text that is wider than its paragraph scrolls in its own box.
function boxWideFormulas() {
  for (const formula of document.querySelectorAll('.bd-article mjx-container:not([display="true"])')) {
    formula.classList.remove("wide-inline");
    const svg = formula.querySelector("svg");
    const block = formula.closest("p, li, td, th, dd, dt, figcaption, h1, h2, h3");
    if (svg && block && svg.getBoundingClientRect().width > block.clientWidth) formula.classList.add("wide-inline");
  }
}

// What scrolls sideways can be reached with the keyboard.
function makeScrollable() {
  for (const box of document.querySelectorAll(".bd-article .pst-scrollable-table-container, .bd-article div.math")) {
    if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}

function settle() {
  boxWideFormulas();
  makeScrollable();
}

document.addEventListener("DOMContentLoaded", () => {
  for (const link of document.querySelectorAll('a[href*="_sources/"]')) link.setAttribute("download", "");
  const ready = window.MathJax && window.MathJax.startup && window.MathJax.startup.promise;
  Promise.resolve(ready).then(settle);
  document.addEventListener("toggle", settle, true);
  let timer = 0;
  window.addEventListener("resize", () => {
    window.clearTimeout(timer);
    timer = window.setTimeout(settle, 150);
  });
});
