// Curves of a run: draws what #curve-data holds, and adds to it what a refresh brings.
"use strict";

(() => {
  const charts = new Map();
  const heightOf = (chart) => (isSingle(chart) ? 218 : 190); // a single curve has no legend, and the cards of a row are as high
  const isSingle = (chart) => chart.series.length < 2;
  let chosen = null; // the part of training that the reader looks at; null for all of it
  const STEPS = [1, 10, 100, 1e3, 1e4, 1e5, 1e6].flatMap((power) => [power, 2 * power, 5 * power]); // there is no step 2.5

  function color(name) {
    const probe = document.createElement("span");
    probe.style.color = `var(--${name})`;
    document.body.append(probe);
    const value = getComputedStyle(probe).color;
    probe.remove();
    return value;
  }

  const faded = (value, alpha) => value.replace(/^rgb\(([^)]+)\)$/, `rgba($1, ${alpha})`);

  const short = (value) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size >= 1e4) return new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(value);
    if (size !== 0 && size < 1e-3) return value.toExponential(1);
    return String(Number(value.toPrecision(3)));
  };

  function stackedRows(columns) {
    // uPlot draws the largest sum first, so that smaller ones lie on top of it.
    const sums = [];
    for (let i = columns.length - 1; i >= 0; i--) {
      const below = sums[0];
      sums.unshift(columns[i].map((value, row) => (value ?? 0) + (below ? below[row] : 0)));
    }
    return sums;
  }

  function smoothed(values) {
    // Centred mean over a thirtieth of the run: the trend that the noise of single steps hides.
    const reach = Math.max(1, Math.round(values.length / 60));
    return values.map((value, i) => {
      const near = values.slice(Math.max(0, i - reach), i + reach + 1).filter((other) => other !== null);
      return near.length ? near.reduce((a, b) => a + b, 0) / near.length : null;
    });
  }

  const isNoisy = (chart, x) => !chart.stacked && x.length >= 40;

  function trends(chart) {
    return (plot) => {
      plot.ctx.save();
      plot.ctx.lineWidth = 1.75 * devicePixelRatio;
      plot.ctx.lineJoin = "round";
      chart.series.forEach((series, index) => {
        if (!plot.series[index + 1].show) return;
        plot.ctx.strokeStyle = color(`s${index % 8}`);
        plot.ctx.beginPath();
        smoothed(series.values).forEach((value, i) => {
          if (value !== null) plot.ctx.lineTo(plot.valToPos(plot.data[0][i], "x", true), plot.valToPos(value, "y", true));
        });
        plot.ctx.save();
        plot.ctx.clip(new Path2D(`M${plot.bbox.left} ${plot.bbox.top}h${plot.bbox.width}v${plot.bbox.height}h${-plot.bbox.width}z`));
        plot.ctx.stroke();
        plot.ctx.restore();
      });
      plot.ctx.restore();
    };
  }

  function shownValues(chart, now) {
    // Values under the pointer, else the last ones: in the legend, and beside the title of a single curve.
    return (plot) => {
      const last = plot.data[0].length - 1;
      const at = plot.cursor.idx ?? last;
      if (plot.cursor.idx === null || plot.cursor.idx === undefined) plot.setLegend({ idx: last }, false);
      if (chart.series.length > 1 || last < 0) return;
      now.replaceChildren(short(chart.series[0].values[at]));
      const step = document.createElement("span");
      step.textContent = `step ${plot.data[0][at]}`;
      now.append(step);
    };
  }

  function heldOut(chart) {
    // Points of held-out evaluations with their intervals, drawn over the lines.
    return (plot) => {
      const scale = devicePixelRatio;
      plot.ctx.save();
      plot.ctx.lineWidth = 1.5 * scale;
      Object.entries(chart.points).forEach(([source, points]) => {
        const index = chart.series.findIndex((series) => series.label === source);
        if (index < 0 || !plot.series[index + 1].show) return;
        plot.ctx.strokeStyle = plot.ctx.fillStyle = color(`s${index % 8}`);
        for (const [step, rate, low, high] of points) {
          if (step < plot.scales.x.min || step > plot.scales.x.max) continue;
          const x = plot.valToPos(step, "x", true);
          plot.ctx.beginPath();
          plot.ctx.moveTo(x, plot.valToPos(low, "y", true));
          plot.ctx.lineTo(x, plot.valToPos(high, "y", true));
          plot.ctx.stroke();
          plot.ctx.beginPath();
          plot.ctx.arc(x, plot.valToPos(rate, "y", true), 3.2 * scale, 0, 2 * Math.PI);
          plot.ctx.fill();
        }
      });
      plot.ctx.restore();
    };
  }

  function options(chart, width, x, now) {
    const ink = color("dim");
    const grid = { stroke: faded(color("line"), 0.7), width: 1 };
    const axis = { stroke: ink, grid, ticks: { show: false }, font: "11px Inter, system-ui, sans-serif" };
    const points = Object.values(chart.points ?? {}).flat();
    const single = x.length < 2;
    const ends = [...x, ...points.map((point) => point[0])];
    const all = [Math.min(...ends, Infinity), Math.max(...ends, 1)];
    // Everything, evaluations before the first step included, unless the reader has chosen a part.
    const across = (plot, low, high) => {
      chosen = low === null || (low === x[0] && high === x.at(-1)) ? null : { min: low, max: high };
      return chosen ? [low, high] : all;
    };
    const y = chart.points ? { range: [0, 1] } : chart.stacked ? { range: (plot, low, high) => [0, high * 1.05 || 1] } : { range: (plot, low, high) => (low === high ? [Math.min(0, low), Math.max(1, high * 1.2)] : [low >= 0 ? 0 : low - 0.06 * (high - low), high + 0.06 * (high - low)]) };
    const noisy = isNoisy(chart, x);
    const inks = chart.series.map((series, index) => color(`s${index % 8}`));
    return {
      width,
      height: heightOf(chart),
      padding: [8, 16, 0, 0],
      cursor: { sync: { key: "steps" }, points: { size: 6, stroke: (plot, i) => inks[i - 1], fill: (plot, i) => inks[i - 1] }, drag: { x: true, y: false } },
      legend: { markers: { stroke: (plot, i) => inks[i - 1], fill: (plot, i) => inks[i - 1] } },
      scales: { x: { time: false, range: across }, y },
      axes: [{ ...axis, size: 26, incrs: STEPS }, { ...axis, size: 48, values: (plot, ticks) => ticks.map(short) }],
      series: [
        { label: "step" },
        ...chart.series.map((series, index) => {
          const stroke = noisy ? faded(inks[index], 0.28) : inks[index];
          return {
            spanGaps: true,
            label: series.label,
            stroke,
            width: chart.stacked ? 0 : noisy ? 1 : 1.5,
            fill: chart.stacked ? stroke : undefined,
            points: { show: single, size: 5 },
            value: (plot, value, column, row) => short(row === null || row === undefined ? value : chart.series[index].values[row]),
          };
        }),
      ],
      hooks: { draw: [...(noisy ? [trends(chart)] : []), ...(chart.points ? [heldOut(chart)] : [])], ready: [shownValues(chart, now)], setCursor: [shownValues(chart, now)] },
    };
  }

  const columns = (chart) => chart.series.map((series) => series.values);
  const plotted = (chart, x) => [x, ...(chart.stacked ? stackedRows(columns(chart)) : columns(chart))];

  let pointed = null; // the step that keys have led to

  // A curve that has the focus: arrow keys go through its steps, + and - look closer and wider, 0 at everything.
  function byKeyboard(card, plot, title) {
    const steps = plot.data[0];
    if (!steps.length) return;
    const moves = {
      ArrowLeft: (at) => at - 1,
      ArrowRight: (at) => at + 1,
      Home: () => steps.findIndex((step) => step >= plot.scales.x.min),
      End: () => steps.findLastIndex((step) => step <= plot.scales.x.max),
    };
    const point = (at) => {
      pointed = steps[Math.max(0, Math.min(steps.length - 1, at))];
      for (const { plot: one } of charts.values()) one.setCursor({ left: one.valToPos(pointed, "x"), top: one.over.clientHeight / 2 });
    };
    const here = () => (pointed === null ? steps.length - 1 : steps.findLastIndex((step) => step <= pointed));
    const look = (min, max) => {
      const within = { min: Math.max(steps[0], min), max: Math.min(steps.at(-1), max) };
      for (const { plot: one } of charts.values()) one.setScale("x", within);
      queueMicrotask(() => point(here())); // a scale is set in a microtask, too
    };
    const zoom = (by) => {
      const half = Math.max(1, ((plot.scales.x.max - plot.scales.x.min) * by) / 2);
      look(steps[here()] - half, steps[here()] + half);
    };
    card.tabIndex = 0;
    card.setAttribute("aria-label", `${title}: arrow keys go through the steps`);
    card.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const key = { "=": "+", "−": "-" }[event.key] ?? event.key;
      if (moves[key]) point(moves[key](here()));
      else if (key === "+" || key === "-") zoom(key === "+" ? 0.5 : 2);
      else if (key === "0") look(steps[0], steps.at(-1));
      else return;
      event.preventDefault();
    });
  }

  function build(data) {
    const place = document.getElementById("charts");
    const part = chosen;
    const focused = [...place.children].indexOf(document.activeElement);
    place.style.minHeight = `${place.clientHeight}px`; // or the page would be short for a moment, and lose its place
    for (const { plot } of charts.values()) plot.destroy();
    charts.clear();
    place.replaceChildren();
    for (const chart of data.x.length ? data.charts : data.charts.filter((one) => one.points)) {
      const card = document.createElement("section");
      const title = document.createElement("h2");
      const unit = document.createElement("p");
      const now = document.createElement("p");
      now.className = "now";
      card.className = `chart${isSingle(chart) ? " chart-single" : ""}${chart.key === "phases" && data.charts.length === 8 ? " chart-wide" : ""}`;
      unit.className = "unit";
      title.textContent = chart.title;
      unit.textContent = chart.unit;
      card.append(title, unit, now);
      place.append(card);
      const width = card.clientWidth - 24;
      const plot = new uPlot(options(chart, width, data.x, now), plotted(chart, data.x), card);
      byKeyboard(card, plot, chart.title);
      charts.set(chart.key, { plot, card, height: heightOf(chart) });
      if (part) plot.setScale("x", part);
    }
    place.style.minHeight = "";
    place.children[focused]?.focus({ preventScroll: true });
    current = data;
  }

  function extend(data) {
    // Only the steps after `from`; a chart with other series than before is drawn anew.
    const same = data.charts.length === current.charts.length && data.charts.every((chart, i) => chart.series.length === current.charts[i].series.length);
    const kept = current.x.filter((step) => step <= data.from).length;
    current.x = [...current.x.slice(0, kept), ...data.x];
    data.charts.forEach((chart, i) => {
      const old = current.charts[i];
      if (!same || !old) return;
      chart.series.forEach((series, j) => {
        series.values = old.series[j].values = [...old.series[j].values.slice(0, kept), ...series.values];
      });
      old.points = chart.points;
    });
    if (!same) {
      location.reload();
      return;
    }
    build(current);
  }

  let current = null;

  function read() {
    const holder = document.getElementById("curve-data");
    if (!holder || !document.getElementById("charts")) return;
    const data = JSON.parse(holder.content.textContent);
    if (!data.x.length && !data.charts.some((chart) => Object.values(chart.points ?? {}).some((points) => points.length))) return;
    if (current && data.from > 0) extend(data);
    else build(data);
  }

  read();
  document.addEventListener("htmx:afterSettle", read);
  document.addEventListener("themechange", () => current && build(current));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => current && build(current));
  addEventListener("resize", () => {
    for (const { plot, card, height } of charts.values()) plot.setSize({ width: card.clientWidth - 24, height });
  });
})();
