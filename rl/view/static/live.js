// The part of a page that looks for news by itself, #results or #live of the overview: when it asks, and what it leaves alone.
// It asks only while someone can see it, and so seldom that the server spends at most a hundredth of a core on it. A refresh takes
// nothing away: the row where the reader is stays where it is on the screen, and if it would leave the list, the list waits, as a
// timeline does while someone looks at its bars.
"use strict";

(() => {
  const SHARE = 0.01;
  const WHY = {
    live: "This page looks for news by itself. Pause it (p)",
    held: "The page waits, because it would take away where you are: a row, a bar, or text that is marked. Esc lets go of rows and bars",
    paused: "Paused. Look for news again (p)",
    "no answer": "The viewer does not answer: is rl view still running?",
  };
  const button = document.getElementById("beat");
  const livePart = () => document.querySelector("[data-live]");
  let paused = false;
  const opened = performance.now();
  let asked = opened;
  let spent = 0; // milliseconds of the server's processor time on all answers since the page was opened
  let cost = 0; // milliseconds of the server's processor time that the answer took
  let kept = null; // what the swap under way must put back

  function tell(state) {
    button.hidden = livePart() === null;
    if (button.dataset.state === state) return;
    button.dataset.state = state;
    button.title = WHY[state];
    button.firstElementChild.className = `status status-${state === "live" ? "live" : "other"}`;
    button.firstElementChild.textContent = state;
  }

  // An answer may come after the page has been paused.
  function answered() {
    if (!paused && !document.hidden) tell("live");
  }

  const isMarked = (part) => !getSelection().isCollapsed && part.contains(getSelection().anchorNode);
  const isLookedAt = (part) => isMarked(part) || part.querySelector(".lanes:hover") || document.activeElement.matches(".lanes .bar");

  const wait = (part) => Math.max(1000 * Number(part.dataset.live), cost / SHARE); // milliseconds
  // The first time comes soon, when the cost is not known yet; the second makes up for it.
  const due = (part) => Math.max(asked + wait(part), opened + (spent + cost) / SHARE);

  function beat() {
    const part = livePart();
    if (!part) tell("paused");
    else if (paused || document.hidden) tell("paused");
    else if (isLookedAt(part)) tell("held");
    else if (performance.now() >= due(part)) {
      asked = performance.now();
      htmx.trigger(part, "tick");
    } else if (button.dataset.state === "paused") tell("live");
  }

  function pause() {
    paused = !paused;
    if (!paused) asked = -Infinity;
    beat();
  }

  // The row where the reader is: the one that is picked, or else the first in sight once the beginning of the list is not.
  function anchor(part) {
    const rows = [...part.querySelectorAll("tr[data-row]")];
    const own = document.activeElement.closest("tr[data-row]") ?? part.querySelector("tr.here");
    if (own && part.contains(own)) return own;
    if (!rows.length || rows[0].getBoundingClientRect().top >= 0) return null;
    return rows.find((row) => row.getBoundingClientRect().bottom > 0) ?? rows.at(-1);
  }

  const rowCalled = (within, name) => [...within.querySelectorAll("tr[data-row]")].find((row) => row.dataset.row === name);

  document.addEventListener("htmx:beforeSwap", (event) => {
    const { target, elt, shouldSwap, serverResponse } = event.detail;
    kept = null;
    if (!shouldSwap || elt !== target || !target.matches("[data-live]")) return;
    const row = anchor(target);
    const isGone = row && !rowCalled(new DOMParser().parseFromString(serverResponse, "text/html"), row.dataset.row);
    if (isGone || isLookedAt(target)) {
      event.detail.shouldSwap = false;
      tell("held");
      return;
    }
    const focus = target.contains(document.activeElement) ? document.activeElement : null;
    kept = {
      row: row && { name: row.dataset.row, top: row.getBoundingClientRect().top, isPicked: row.classList.contains("here") },
      // Links of a row by their order, since their addresses hold the row's place in the list; all others by their address.
      focused: focus && row?.contains(focus) ? [...row.querySelectorAll("a")].indexOf(focus) : -1,
      address: focus?.getAttribute("href"),
    };
  });

  document.addEventListener("htmx:afterSwap", () => {
    if (!kept) return;
    const { row, focused, address } = kept;
    kept = null;
    const now = row && rowCalled(document, row.name);
    if (now) now.classList.toggle("here", row.isPicked);
    const links = [...document.querySelectorAll("#results a, #live a")];
    const focus = focused >= 0 ? now?.querySelectorAll("a")[focused] : address && links.find((link) => link.getAttribute("href") === address);
    focus?.focus({ preventScroll: true });
    if (now) scrollBy({ top: now.getBoundingClientRect().top - row.top, behavior: "instant" });
  });

  document.addEventListener("htmx:afterRequest", (event) => {
    const { xhr, requestConfig } = event.detail; // `elt` is another one once the part was replaced
    if (!requestConfig.elt.matches("[data-live]")) return;
    cost = Number(/cpu;dur=([\d.]+)/.exec(xhr.getResponseHeader("server-timing") ?? "")?.[1] ?? 0);
    spent += cost;
    button.dataset.seconds = String(Math.round(wait(requestConfig.elt) / 1000));
    if (xhr.status === 204) answered();
  });
  document.addEventListener("htmx:afterSettle", answered);
  document.addEventListener("htmx:sendError", () => tell("no answer"));
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) asked = -Infinity;
    beat();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "p" && !event.ctrlKey && !event.metaKey && !event.altKey && !event.target.closest?.("input, textarea, select")) pause();
  });
  button.addEventListener("click", pause);
  tell("live");
  setInterval(beat, 500);
})();
