// Keys, theme, help, and the heartbeat of live parts. Every page works without this file, but for keys and refresh.
"use strict";

(() => {
  const rowsOf = () => [...document.querySelectorAll("tr[data-href]")];
  let here = -1;

  function pick(step) {
    const rows = rowsOf();
    if (!rows.length) return;
    rows[here]?.classList.remove("here");
    here = Math.max(0, Math.min(rows.length - 1, here + step));
    rows[here].classList.add("here");
    rows[here].scrollIntoView({ block: "nearest" });
  }

  function switchTheme() {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try {
      localStorage.setItem("rl-theme", root.dataset.theme);
    } catch {
      // the choice then lasts as long as the page
    }
    document.dispatchEvent(new Event("themechange"));
  }

  function toggleHelp() {
    const help = document.getElementById("help");
    if (help.open) help.close();
    else help.showModal();
  }

  function follow(key) {
    const link = document.querySelector(`a[data-key="${CSS.escape(key)}"]`);
    if (link) link.click();
    return Boolean(link);
  }

  function up() {
    if (follow("u")) return;
    const crumbs = [...document.querySelectorAll(".crumbs a")];
    const target = crumbs.reverse().find((link) => link.href !== location.href.split("?")[0]);
    if (target) target.click();
  }

  function onKey(event) {
    if (event.target instanceof HTMLTextAreaElement && event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.target.form.requestSubmit();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target instanceof Element && event.target.closest("input, textarea, select")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const actions = {
      j: () => pick(1),
      k: () => pick(-1),
      Enter: () => rowsOf()[here] && (location.href = rowsOf()[here].dataset.href),
      t: switchTheme,
      "?": toggleHelp,
      u: up,
      "/": () => document.querySelector("[data-search]")?.focus(),
    };
    if (event.key === "Enter" && event.target.closest?.("a, button, summary")) return;
    if (actions[event.key]) {
      event.preventDefault();
      actions[event.key]();
    } else if (/^[1-9r[\]]$/.test(event.key) && follow(event.key)) {
      event.preventDefault();
    }
  }

  document.addEventListener("keydown", onKey);
  document.addEventListener("click", (event) => {
    const row = event.target.closest?.("tr[data-href]");
    if (!row || event.target.closest("a, button, input") || String(getSelection())) return;
    location.href = row.dataset.href;
  });
  document.getElementById("theme").addEventListener("click", switchTheme);
  document.getElementById("help-open").addEventListener("click", toggleHelp);

  document.querySelector(".tabs [aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" }); // a phone does not show all

  // Filters that are empty stay out of the address.
  document.addEventListener("htmx:configRequest", (event) => {
    for (const [name, value] of [...event.detail.formData.entries()]) if (value === "") event.detail.formData.delete(name);
  });
  document.addEventListener("htmx:afterSwap", () => {
    here = -1;
  });
  document.addEventListener("submit", (event) => {
    for (const field of event.target.elements) if (field.name && !field.value) field.disabled = true;
  });

  // Live parts are asked for only while someone can see them.
  function beat() {
    const live = document.querySelector("[data-live]");
    if (live && !document.hidden && window.htmx) window.htmx.trigger(live, "tick");
  }
  const first = document.querySelector("[data-live]");
  if (first) setInterval(beat, 1000 * Number(first.dataset.live));
})();
