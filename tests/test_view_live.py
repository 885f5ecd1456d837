"""Pages that refresh themselves, in headless Chromium: what a refresh brings, what it leaves alone, and when there is none."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rl.log.metrics import MetricsWriter
from rl.log.runs import RunPaths
from rl.log.spans import SpanWriter
from rl.log.writer import RolloutWriter
from rl.records import Span
from tests.browser import Browser, missing
from tests.log_fakes import make_group, make_metrics
from tests.view_run import STEPS, at, make_run, serving

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "everything is there")

FIRST_ROW = "document.querySelector('tr[data-row]').dataset.row"
STATE = "document.getElementById('beat').textContent"
ESCAPE = "\ue00c"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as one:
        one.size(1280, 700)
        yield one


def write(root: Path, index: int, *, n: int = 4) -> None:
    """A group that comes before all others when the newest policy version does."""
    with RolloutWriter(root, run_id="live", attempt=1, writer=f"late-{index}", tokens=True) as writer:
        writer.write_group(make_group(index, version=index, n=n))


def wait(browser: Browser, script: str) -> None:
    """Until the script's value is true; the page looks for news at once and again, and not after its seconds.

    It still rests a hundred times as long as its answers took of the processor, some tenths of a second each on a busy machine.
    """
    browser.wait(f"document.dispatchEvent(new Event('visibilitychange')); return {script}")


def hide(browser: Browser, *, hidden: bool) -> None:
    """As when another tab comes to the front."""
    script = "Object.defineProperty(document, 'hidden', {value: arguments[0], configurable: true})"
    browser.run(f"{script}; document.dispatchEvent(new Event('visibilitychange'))", hidden)


def look_in_vain(browser: Browser, asked: str) -> int:
    """Requests so far, after a moment in which the page would have asked."""
    browser.run("document.dispatchEvent(new Event('visibilitychange'))")
    time.sleep(0.1)
    return int(browser.run(f"return {asked}"))


def test_a_list_grows_and_takes_nothing_away(tmp_path: Path, browser: Browser) -> None:
    root = make_run(tmp_path / "runs" / "live")
    browser.errors()
    with serving(tmp_path / "runs") as server:
        address = server.url + at("live", "rollouts", sort="dispatch_version")
        browser.open(address)
        browser.wait(f"return document.readyState === 'complete' && {STATE} === 'live'")
        browser.keys("jjj")
        row = "document.querySelector('tr.here')"
        name, top = browser.run(f"return [{row}.dataset.row, {row}.getBoundingClientRect().top]")
        write(root, 7, n=12)
        wait(browser, f"{FIRST_ROW} === '00000007-0'")
        assert browser.run(f"return {row}.dataset.row") == name
        assert browser.run(f"return {row}.contains(document.activeElement) && document.activeElement.matches('a.id')")
        assert abs(browser.run(f"return {row}.getBoundingClientRect().top") - top) < 1  # it stays where it is on the screen
        assert browser.run("return scrollY") > 100
        assert browser.run("return location.href") == address
        # The dearer the answer was, the longer the page waits: a hundredth of a core.
        told = "performance.getEntriesByType('resource').findLast((one) => one.name.includes('seen=') && one.responseStatus === 200)"
        dear = browser.run(f"return {told}.serverTiming[0].duration")
        seconds = browser.run("return Number(document.getElementById('beat').dataset.seconds)")
        assert abs(seconds - max(3, dear / 10)) <= 0.5

        write(root, 8, n=40)  # so many that the row would leave the page
        wait(browser, f"{STATE} === 'held'")
        assert browser.run(f"return [{FIRST_ROW}, {row}.dataset.row]") == ["00000007-0", name]
        browser.keys(ESCAPE)
        browser.run("scrollTo(0, 0)")
        wait(browser, f"{FIRST_ROW} === '00000008-0' && {STATE} === 'live'")
        assert browser.errors() == []


def test_a_list_rests_while_nobody_sees_it_or_someone_says_so(tmp_path: Path, browser: Browser) -> None:
    root = make_run(tmp_path / "runs" / "live")
    asked = "window.asked"
    with serving(tmp_path / "runs") as server:
        browser.open(server.url + at("live", "rollouts", sort="dispatch_version", status="ok"))
        browser.wait(f"return document.readyState === 'complete' && {STATE} === 'live'")
        browser.run("window.asked = 0; document.addEventListener('htmx:beforeRequest', () => window.asked++)")
        wait(browser, f"{asked} > 1")
        hide(browser, hidden=True)
        browser.wait(f"return {STATE} === 'paused'")
        before = browser.run(f"return {asked}")
        write(root, 7)
        assert all(look_in_vain(browser, asked) == before for _ in range(5))
        hide(browser, hidden=False)
        wait(browser, f"{FIRST_ROW} === '00000007-0' && {STATE} === 'live'")
        assert browser.run("return document.querySelectorAll('tr[data-row]').length") == 9  # the filter holds

        browser.keys("p")
        browser.wait(f"return {STATE} === 'paused'")
        before = browser.run(f"return {asked}")
        assert all(look_in_vain(browser, asked) == before for _ in range(5))
        browser.run("document.getElementById('beat').click()")
        browser.wait(f"return {STATE} === 'live' && {asked} > {before}")
    wait(browser, f"{STATE} === 'no answer'")


def test_the_list_of_runs_follows_them(tmp_path: Path, browser: Browser) -> None:
    roots = [make_run(tmp_path / "runs" / name) for name in ("one", "two")]
    with serving(tmp_path / "runs") as server:
        browser.open(server.url + "/")
        browser.errors()
        browser.wait("return document.querySelectorAll('.flags a, .flags .dim').length > 1 && !document.body.textContent.includes('…')")
        browser.keys("jj")
        with MetricsWriter(RunPaths(root=roots[0]).metrics, attempt=2, restored_step=STEPS) as metrics:
            metrics.step(make_metrics(STEPS + 1))
        wait(browser, f"document.querySelector('tr[data-row=one]').textContent.includes('{STEPS + 1} / 100')")
        assert browser.run("return document.activeElement.textContent") == "two"
        assert not browser.run("return document.body.textContent.includes('…')")  # flags stay in sight while they are counted again
        make_run(tmp_path / "runs" / "three")
        wait(browser, "document.querySelectorAll('tr[data-row]').length === 3")
        assert browser.errors() == []


def test_a_timeline_follows_the_newest_step_and_waits_for_who_looks_at_it(tmp_path: Path, browser: Browser) -> None:
    root = make_run(tmp_path / "runs" / "live")
    title = "document.querySelector('h1').textContent"
    browser.errors()
    with serving(tmp_path / "runs") as server:
        browser.open(server.url + at("live", "timeline"))
        browser.wait(f"return document.readyState === 'complete' && {STATE} === 'live' && {title} === 'Timeline of step 5'")
        browser.run("document.querySelector('.lanes .bar').focus()")
        with SpanWriter(root, attempt=1, actor="late") as spans:
            spans.record(Span(name="rollout", started=1020.0, ended=1023.0, version=5, train_step=6))
        wait(browser, f"{STATE} === 'held'")
        assert browser.run(f"return {title}") == "Timeline of step 5"
        browser.keys(ESCAPE)
        wait(browser, f"{title} === 'Timeline of step 6' && {STATE} === 'live'")
        assert browser.run("return document.title").startswith("Timeline of step 6")
        browser.run("document.querySelector('.lanes .bar').focus()")
        assert browser.run("return document.querySelector('.inspect').textContent") == "rollout, 3.0 s"
        assert browser.errors() == []
