"""Speed of the viewer over a million rollouts: pages, named views, the token heatmap in Chromium, live refresh. One JSON line.

python -m benchmarks.view [--rollouts 1000000] [--folder DIR] [--parts PART ...]

The run is synthetic, with the real schema (`rl.log.synthetic`). A page's time is the server's answer to a whole request,
the median of five different ones a kind. The heatmap's time runs from the start of its script until the browser has painted:
`first` is the first screen, `all` every token coloured at once, `opened` counts from the click on a link until the first
screen. Live refresh is the server's processor time while one page is open and the run writes a step and a group every five seconds.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from benchmarks.machine import print_result
from rl.log.alive import Heartbeat
from rl.log.metrics import MetricsWriter, read_metrics
from rl.log.query import RunLog
from rl.log.runs import RunPaths
from rl.log.spans import SpanWriter
from rl.log.synthetic import write_synthetic_run
from rl.log.views import VIEWS
from rl.log.writer import RolloutWriter
from rl.records import Span
from tests.browser import Browser, missing
from tests.log_fakes import make_group, make_metrics

RUN, LIVE = "million", "live"
LIVE_SECONDS = 40.0
STEP_SECONDS = 5.0
PAGES = {
    "rollouts_filtered_sorted": [f"rollouts?env=code&status=ok&sort=reward&vmin={v}&vmax={v + 600}" for v in range(0, 250, 50)],
    "rollouts_newest": ["rollouts", "rollouts?page=2", "rollouts?page=3", "rollouts?split=train", "rollouts?status=infra"],
    "rollouts_text": [f"rollouts?text={word}" for word in ("answer", "box", "77", "subtract", "wrong")],
    "rollouts_messages": [f"rollouts?messages={word}" for word in ("duplicates", "attempt+77", "issue", "subtract", "wrong")],
    "rollouts_dropped": [f"rollouts?drop={reason}" for reason in ("stale", "infra", "ungradable", "zero_variance", "stale&env=code")],
    "contrast": ["contrast"] * 5,
    "tasks": ["tasks", "tasks?sort=hardest", "tasks?sort=gained", "tasks?sort=lost", "tasks?sort=easiest"],
    "service": ["service", "service?last=20"] * 3,
    "timeline": [f"timeline?step={step}" for step in range(100, 600, 100)],
}
LIVE_PAGES = {
    "overview": f"runs/{LIVE}",
    "rollouts": f"runs/{LIVE}/rollouts",
    "runs": "",
    "service": f"runs/{LIVE}/service",
    "task": f"runs/{LIVE}/task?id={{task}}",
    "timeline": f"runs/{LIVE}/timeline",
}
PARTS = ("pages", "views", "heatmap", *(f"live_{name}" for name in LIVE_PAGES))


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the viewer; see the docstring.")
    parser.add_argument("--rollouts", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="keep the synthetic run here and use it again")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="measure only these")
    args = parser.parse_args()
    if why := missing():
        raise SystemExit(why)
    with tempfile.TemporaryDirectory() as scratch:
        folder: Path = args.folder or Path(scratch)
        root = folder / RUN
        if not root.is_dir():
            write_synthetic_run(root, rollouts=args.rollouts)
        words = [sys.executable, "-m", "rl.cli", "view", "--dir", str(folder), "--json"]
        server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert server.stdout is not None
            base = json.loads(server.stdout.readline())["url"]
            figures = _measured(base, root, parts=args.parts, server=psutil.Process(server.pid))
        finally:
            server.terminate()
            server.wait()
            shutil.rmtree(folder / LIVE, ignore_errors=True)
    print_result(rollouts=args.rollouts, **figures)


def _measured(base: str, root: Path, *, parts: Sequence[str], server: psutil.Process) -> dict[str, Any]:
    url = f"{base}runs/{RUN}"
    figures: dict[str, Any] = {}
    with RunLog(root) as log:
        ((rollout, n),) = log.query("SELECT rollout_id, len(token_ids) FROM tokens ORDER BY 2 DESC LIMIT 1").rows
        tasks = [task for (task,) in log.query("SELECT task_id FROM rollouts GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 5").rows]
    if "pages" in parts:
        pages = {**PAGES, "task": [f"task?id={quote(task)}" for task in tasks], "rollout": [f"rollout?id={rollout}"] * 5}
        figures["page_s"] = {name: _median(url, ones) for name, ones in pages.items()}
    if "views" in parts:
        figures["named_view_s"] = {name: _median(url, [f"sql?q={quote(f'SELECT * FROM {name} LIMIT 100')}"] * 3) for name in VIEWS}
    if "heatmap" in parts:
        figures["heatmap"] = {"tokens": n, **_heatmap(f"{url}/rollout?id={rollout}")}
    live = {name: page.format(task=quote(tasks[0])) for name, page in LIVE_PAGES.items() if f"live_{name}" in parts}
    if live:
        figures["live_share_of_core"] = _live(base, shutil.copytree(root, root.with_name(LIVE)), live, server=server)
    return figures


def _median(url: str, pages: list[str]) -> float:
    """Seconds of a whole request, the first of a kind left out: it may open the log."""
    _get(f"{url}/{pages[0]}")
    return round(statistics.median(_get(f"{url}/{page}") for page in pages), 3)


def _get(url: str) -> float:
    begun = time.monotonic()
    with urllib.request.urlopen(url, timeout=120) as response:
        response.read()
    return time.monotonic() - begun


def _heatmap(url: str) -> dict[str, float]:
    """Seconds; medians of five openings."""
    first, opened, everything, switched = [], [], [], []
    with Browser() as browser:
        browser.size(1280, 900)
        for _ in range(5):
            browser.open(url)
            begun, took = browser.wait("const e = performance.getEntriesByName('heat-first')[0]; return e && [e.startTime, e.duration]")
            first.append(took)
            opened.append(begun + took)
            everything.append(browser.run_async(_AFTER.replace("ACTION", "heat.dispatchEvent(new Event('paint-all'))")))
            switched.append(browser.run_async(_AFTER.replace("ACTION", "document.querySelector('[data-channel=entropy]').click()")))
    times = {"opened_s": opened, "first_s": first, "all_s": everything, "switch_s": switched}
    return {name: round(statistics.median(values) / 1000, 3) for name, values in times.items()}


_AFTER = """
const done = arguments[0], heat = document.getElementById('heat'), begun = performance.now();
ACTION;
requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - begun)));
"""


def _live(base: str, root: Path, pages: Mapping[str, str], *, server: psutil.Process) -> dict[str, float]:
    """Share of one core that the server used while a page was open on a run that goes on, by page."""
    beat = Heartbeat(RunPaths(root=root).alive)
    last = read_metrics(RunPaths(root=root).metrics).steps[-1].step
    with (
        Browser() as browser,
        MetricsWriter(RunPaths(root=root).metrics, attempt=2, restored_step=last) as metrics,
        RolloutWriter(root, run_id=RUN, attempt=2, writer="live", tokens=True) as rollouts,
        SpanWriter(root, attempt=2, actor="loop") as spans,
    ):
        step = last + 1
        metrics.step(make_metrics(step, time=time.time()))
        shares = {}
        for name, page in pages.items():
            browser.open(base + page)
            browser.wait("return document.querySelector('[data-live]') !== null")
            time.sleep(STEP_SECONDS)
            before, begun = sum(server.cpu_times()[:2]), time.monotonic()
            while time.monotonic() < begun + LIVE_SECONDS:
                step += 1
                rollouts.write_group(make_group(10_000_000 + step, version=step - 1))
                metrics.step(make_metrics(step, time=time.time()))
                spans.record(Span(name="log", started=time.time() - STEP_SECONDS, ended=time.time(), version=step - 1, train_step=step))
                time.sleep(STEP_SECONDS)
            shares[name] = round((sum(server.cpu_times()[:2]) - before) / (time.monotonic() - begun), 4)
    beat.end("finished")
    return shares


if __name__ == "__main__":
    main()
