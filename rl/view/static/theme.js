// Runs before the page is painted, so that a chosen theme does not flash. Without a choice the system's own holds.
"use strict";
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("rl-theme");
  } catch {
    // storage may be switched off; the system's theme holds then
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
