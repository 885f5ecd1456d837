// Bars of a timeline by keyboard: the drawing is one stop of Tab, the arrow keys move within it, and a line tells what a bar was.
"use strict";

(() => {
  function guide(timeline) {
    const about = timeline.querySelector(".inspect");

    // Rows of the drawing from top to bottom, each with its bars in time.
    const rows = [];
    const rowOf = new Map();
    timeline.querySelectorAll(".lane-bars").forEach((lane) => {
      const own = new Map();
      for (const bar of lane.querySelectorAll(".bar")) {
        const y = Number(bar.lastElementChild.getAttribute("y"));
        if (!own.has(y)) own.set(y, []);
        own.get(y).push(bar);
      }
      for (const [, bars] of [...own].sort(([a], [b]) => a - b)) {
        for (const bar of bars) rowOf.set(bar, rows.length);
        rows.push(bars);
      }
    });

    const middle = (bar) => {
      const rect = bar.lastElementChild;
      return Number(rect.getAttribute("x")) + Number(rect.getAttribute("width")) / 2;
    };
    const nearest = (bars, to) => bars.reduce((best, bar) => (Math.abs(middle(bar) - middle(to)) < Math.abs(middle(best) - middle(to)) ? bar : best));

    const moves = {
      ArrowLeft: (row, i) => row[i - 1],
      ArrowRight: (row, i) => row[i + 1],
      ArrowUp: (row, i, at) => rows[at - 1] && nearest(rows[at - 1], row[i]),
      ArrowDown: (row, i, at) => rows[at + 1] && nearest(rows[at + 1], row[i]),
      Home: (row) => row[0],
      End: (row) => row.at(-1),
    };

    const tell = (bar) => (about.textContent = bar.firstElementChild.textContent);

    timeline.addEventListener("keydown", (event) => {
      const bar = event.target.closest(".bar");
      if (!bar || !moves[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      const at = rowOf.get(bar);
      moves[event.key](rows[at], rows[at].indexOf(bar), at)?.focus();
    });
    timeline.addEventListener("focusin", (event) => {
      const bar = event.target.closest(".bar");
      if (!bar) return;
      timeline.querySelector('.bar[tabindex="0"]').setAttribute("tabindex", "-1");
      bar.setAttribute("tabindex", "0");
      tell(bar);
    });
    timeline.addEventListener("pointerover", (event) => {
      const bar = event.target.closest(".bar");
      if (bar) tell(bar);
    });
  }

  const begin = () => document.querySelectorAll(".timeline").forEach(guide);
  begin();
  document.addEventListener("htmx:afterSwap", begin); // another drawing is there
})();
