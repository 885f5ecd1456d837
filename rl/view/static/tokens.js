// The token heatmap. All text is there at once, in blocks that the browser lays out only when they come into view;
// a block gets its coloured spans then, too. Colours are classes: there is no style attribute a token.
"use strict";

(() => {
  const BLOCK = 1000;
  const SHADES = 15;
  const holder = document.getElementById("token-data");
  const heat = document.getElementById("heat");
  if (!holder || !heat) return;
  const begun = performance.now();
  const data = JSON.parse(holder.content.textContent);

  function decoded(text, Kind) {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    return new Kind(bytes.buffer);
  }

  const ids = decoded(data.ids, Int32Array);
  const n = ids.length;
  const sampled = new Int32Array(n).fill(-1); // index into the channels, by position
  const starts = new Map(); // position where a segment begins: its kind
  {
    let count = 0;
    for (const [start, length, kind] of data.segments) {
      starts.set(start, kind);
      if (kind === "sampled") for (let i = start; i < start + length; i++) sampled[i] = count++;
    }
  }
  const channels = Object.fromEntries(Object.entries(data.channels).map(([name, text]) => [name, decoded(text, Float32Array)]));
  const versions = new Int32Array(channels.logprob.length);
  data.versions.forEach(([start, version], i) => versions.fill(version, start, data.versions[i + 1]?.[0] ?? versions.length));
  const oldest = versions.length ? versions.reduce((a, b) => Math.min(a, b)) : 0;
  const newest = versions.length ? versions.reduce((a, b) => Math.max(a, b)) : 0;

  const mismatch = (i) => (channels.learner ? Math.abs(channels.logprob[i] - channels.learner[i]) : NaN);
  const shade = (share) => Math.min(SHADES, Math.round(Math.max(0, share) * SHADES));

  const views = {
    logprob: { about: "how surprised the policy was by its own token", low: "0", high: "−6 nats", value: (i) => channels.logprob[i], rank: (i) => -channels.logprob[i], name: (i) => `h${shade(-channels.logprob[i] / 6)}` },
    entropy: { about: "how open the choice was, by the learner", low: "0", high: "3 nats", missing: !channels.entropy, value: (i) => channels.entropy[i], rank: (i) => channels.entropy[i], name: (i) => `h${shade(channels.entropy[i] / 3)}` },
    advantage: {
      about: "which way the learner pushed, the same for all tokens of a rollout", low: "−2", high: "+2", missing: data.advantage === null || data.advantage === undefined,
      value: () => data.advantage, rank: () => Math.abs(data.advantage), name: () => `${data.advantage < 0 ? "n" : "h"}${shade(Math.abs(data.advantage) / 2)}`,
    },
    mismatch: { about: "|behaviour − learner| logprob: zero when generator and learner agree", low: "10⁻⁵", high: "1 nat", missing: !channels.learner, value: mismatch, rank: mismatch, name: (i) => `h${shade((Math.log10(mismatch(i) + 1e-12) + 5) / 5)}` },
    version: { about: `policy version that sampled it: ${oldest}${newest > oldest ? ` to ${newest}` : ""}`, low: "", high: "", value: (i) => versions[i], rank: (i) => versions[i], name: (i) => `v${(versions[i] - oldest) % 8}` },
  };

  const show = (position) => {
    if (!data.pieces) return `${ids[position]} `;
    const piece = data.pieces[position];
    return piece.includes("\n") ? piece.replaceAll("\n", "↵\n") : piece;
  };
  const escape = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

  let channel = "logprob";
  const blocks = [];

  function textOf(from, to) {
    let text = "";
    for (let i = from; i < to; i++) text += show(i);
    return text;
  }

  function color(block) {
    if (block.painted === channel) return;
    const view = views[channel];
    let html = "";
    for (let i = block.from; i < block.to; i++) {
      const kind = starts.get(i);
      if (kind === "restart" || (kind && kind !== "sampled" && i > 0)) html += `<span class="break">\n⟨${kind === "restart" ? "conversation rendered anew" : "not sampled"}⟩\n</span>`;
      const own = sampled[i];
      html += `<span id="t${i}" class="${own < 0 ? "ctx" : view.name(own)}">${escape(show(i))}</span>`;
    }
    block.element.innerHTML = html;
    block.painted = channel;
  }

  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const block = blocks[Number(entry.target.dataset.block)];
      block.near = entry.isIntersecting;
      if (block.near) color(block);
    }
  }, { rootMargin: "1200px" });

  const fragment = document.createDocumentFragment();
  for (let from = 0; from < n; from += BLOCK) {
    const element = document.createElement("div");
    const to = Math.min(n, from + BLOCK);
    element.className = "block";
    element.dataset.block = String(blocks.length);
    element.textContent = textOf(from, to);
    fragment.append(element);
    blocks.push({ element, from, to, painted: "", near: false });
  }
  heat.append(fragment);
  for (const block of blocks) seen.observe(block.element);

  function choose(name) {
    if (views[name].missing) return;
    channel = name;
    heat.dataset.channel = name;
    for (const button of document.querySelectorAll(".segmented button")) button.setAttribute("aria-pressed", String(button.dataset.channel === name));
    document.getElementById("heat-about").textContent = views[name].about;
    document.getElementById("legend-low").textContent = views[name].low;
    document.getElementById("legend-high").textContent = views[name].high;
    for (const block of blocks) if (block.near) color(block);
  }

  // The address holds what is looked at, as `#entropy` or `#entropy.40`.
  const keep = (position) => location.replace(`#${channel}${position === undefined ? "" : `.${position}`}`);

  function goTo(position) {
    color(blocks[Math.floor(position / BLOCK)]);
    document.getElementById(`t${position}`).scrollIntoView({ block: "nearest" });
    inspect(position);
  }

  let at = -1; // the token that the line below tells of

  function inspect(position) {
    at = position;
    document.querySelector(".picked")?.classList.remove("picked");
    document.getElementById(`t${position}`)?.classList.add("picked");
    const own = sampled[position];
    const facts = [["token", position], ["id", ids[position]]];
    const fixed = (value, digits) => (value === undefined || Number.isNaN(value) ? "–" : value.toFixed(digits).replace("-", "−"));
    if (own >= 0) {
      facts.push(["logprob", fixed(channels.logprob[own], 4)]);
      if (channels.learner) facts.push(["learner", fixed(channels.learner[own], 4)], ["mismatch", mismatch(own).toExponential(1)]);
      if (channels.entropy) facts.push(["entropy", fixed(channels.entropy[own], 3)]);
      if (!views.advantage.missing) facts.push(["advantage", fixed(data.advantage, 3)]);
      facts.push(["version", versions[own]]);
    } else facts.push(["", "not sampled"]);
    const line = document.getElementById("inspect");
    line.replaceChildren();
    const code = document.createElement("code");
    code.textContent = data.pieces ? JSON.stringify(data.pieces[position]) : String(ids[position]);
    line.append(code);
    for (const [name, value] of facts) {
      const bold = document.createElement("b");
      bold.textContent = String(value);
      line.append(` · ${name}${name ? " " : ""}`, bold);
    }
  }

  let order = null;
  let turn = -1;
  function nextOutstanding() {
    if (order?.channel !== channel) {
      const all = [...sampled.keys()].filter((i) => sampled[i] >= 0);
      order = { channel, all: all.sort((a, b) => views[channel].rank(sampled[b]) - views[channel].rank(sampled[a])).slice(0, 50) };
      turn = -1;
    }
    if (!order.all.length) return;
    turn = (turn + 1) % order.all.length;
    goTo(order.all[turn]);
    keep(order.all[turn]);
  }

  const moves = { ArrowLeft: () => Math.max(0, at - 1), ArrowRight: () => Math.min(n - 1, at + 1), Home: () => 0, End: () => n - 1 };
  heat.addEventListener("keydown", (event) => {
    if (!moves[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    goTo(moves[event.key]());
    keep(at);
  });
  heat.addEventListener("pointerover", (event) => {
    if (event.target.id?.startsWith("t")) inspect(Number(event.target.id.slice(1)));
  });
  heat.addEventListener("click", (event) => {
    if (event.target.id?.startsWith("t")) keep(Number(event.target.id.slice(1)));
  });
  for (const button of document.querySelectorAll(".segmented button")) {
    button.disabled = Boolean(views[button.dataset.channel].missing);
    button.addEventListener("click", () => {
      choose(button.dataset.channel);
      keep();
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, textarea, select")) return;
    if (event.key === "c") {
      const names = Object.keys(views).filter((name) => !views[name].missing);
      choose(names[(names.indexOf(channel) + 1) % names.length]);
      keep();
    } else if (event.key === "x") nextOutstanding();
  });
  const [asked, token] = location.hash.slice(1).split(".");
  choose(Object.hasOwn(views, asked) && !views[asked].missing ? asked : channel);
  if (/^\d+$/.test(token) && Number(token) < n) goTo(Number(token));
  // For benchmarks/view.py: when the first screen was there, and a way to paint everything.
  requestAnimationFrame(() => requestAnimationFrame(() => performance.measure("heat-first", { start: begun, end: performance.now() })));
  heat.addEventListener("paint-all", () => blocks.forEach(color));
})();
