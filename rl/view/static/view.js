// Keys, theme and help. Every page works without this file, but for keys.
"use strict";

(() => {
  const picked = () => document.querySelector("tr.here");

  function pick(step) {
    const rows = [...document.querySelectorAll("tr[data-href]")];
    if (!rows.length) return;
    const at = rows.indexOf(document.activeElement.closest("tr[data-href]") ?? picked());
    picked()?.classList.remove("here");
    const row = rows[Math.max(0, Math.min(rows.length - 1, at + step))];
    row.classList.add("here");
    const links = [...row.querySelectorAll("a")];
    (links.find((link) => link.getAttribute("href") === row.dataset.href) ?? links[0])?.focus({ preventScroll: true });
    row.scrollIntoView({ block: "nearest" });
  }

  function letGo() {
    picked()?.classList.remove("here");
    if (document.activeElement.closest("tr[data-href], .lanes .bar")) document.activeElement.blur();
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
      Enter: () => picked() && (location.href = picked().dataset.href),
      Escape: letGo,
      t: switchTheme,
      "?": toggleHelp,
      u: up,
      "/": () => document.querySelector("[data-search]")?.focus(),
    };
    if (event.key === "Enter" && event.target.closest?.("a, button, summary")) return;
    if (document.getElementById("help").open && event.key !== "?") return;
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
  document.addEventListener("submit", (event) => {
    for (const field of event.target.elements) if (field.name && !field.value) field.disabled = true;
  });
})();
