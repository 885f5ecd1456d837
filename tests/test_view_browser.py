"""The viewer's main paths in headless Chromium, at the widths of a desk and a phone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rl.log.metrics import EvalMetrics, MetricsWriter
from rl.log.runs import prepare_run
from rl.view.export import export_run
from tests.browser import Browser, missing
from tests.log_fakes import make_metrics
from tests.test_compare import make_run as make_compared
from tests.view_run import HOSTILE_RUN as RUN
from tests.view_run import Server, at, make_run, runs, server, serving

__all__ = ["runs", "server"]

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "everything is there")

DESK, PHONE = (1280, 900), (390, 844)
TAB, ENTER, END, HOME, LEFT, RIGHT, DOWN = "\ue004\ue007\ue010\ue011\ue012\ue014\ue015"
LOADED = "return document.readyState === 'complete' &&"  # only then does the page hear keys
FITS = "return document.querySelector('h1') !== null && document.documentElement.scrollWidth <= innerWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as one:
        yield one


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize(
    "path",
    [
        "/",
        at(RUN),
        at(RUN, "rollouts"),
        at(RUN, "rollout", id="00000000-0"),
        at(RUN, "rollout", id="00000001-0"),
        at(RUN, "contrast"),
        at(RUN, "group", id="00000000"),
        at(RUN, "tasks"),
        at(RUN, "task", id="task-0"),
        at(RUN, "service"),
        at(RUN, "sql", q="SELECT rollout_id, text FROM turns"),
        at(RUN, "timeline", step=3),
        at(RUN, "compare"),
    ],
)
def test_pages_fit_and_break_no_rule(server: Server, browser: Browser, path: str, size: tuple[int, int]) -> None:
    browser.size(*size)
    browser.errors()
    browser.open(server.url + path)
    assert browser.wait(FITS)
    assert browser.errors() == []  # nothing was refused by the content security policy, nothing failed


def test_a_phone_shows_the_columns_it_has_room_for(server: Server, browser: Browser) -> None:
    browser.size(*PHONE)
    for path in ("/", at(RUN, "rollouts"), at(RUN, "contrast"), at(RUN, "tasks")):
        browser.open(server.url + path)
        browser.wait("return document.querySelector('.scroll') !== null")
        assert browser.run("const s = document.querySelector('.scroll'); return s.scrollWidth <= s.clientWidth"), path
    browser.open(server.url + at(RUN, "rollout", id="00000002-0"))
    below = "document.querySelector('.facts').getBoundingClientRect().top - document.querySelector('.near').getBoundingClientRect().bottom"
    assert browser.run(f"return {below}") > 4
    first = "const top = (query) => document.querySelector(query).getBoundingClientRect().top; return top('.side') < top('.turns')"
    assert browser.run(first)  # why it got its reward comes before what may be 30,000 tokens


def test_a_run_that_starts_has_no_empty_curves(tmp_path: Path, browser: Browser) -> None:
    root = tmp_path / "runs" / "new"
    prepare_run(root)
    with MetricsWriter(root / "metrics.jsonl", attempt=1, restored_step=0) as metrics:
        metrics.evaluated(EvalMetrics(step=0, time=1.0, split="heldout", source="sums", passed=30, graded=40))
    browser.size(*DESK)
    with serving(tmp_path / "runs") as server:
        browser.open(server.url + at("new"))
        assert browser.wait("return [...document.querySelectorAll('.chart h2')].map((title) => title.textContent)") == ["Pass rate"]


def test_curves_are_drawn(server: Server, browser: Browser) -> None:
    browser.size(*DESK)
    browser.open(server.url + at(RUN))
    assert browser.wait("return document.querySelectorAll('.chart canvas').length") == 9
    assert browser.run("return document.querySelector('.chart .now').textContent.includes('step 45')")


def test_curves_are_read_by_keyboard(server: Server, browser: Browser) -> None:
    browser.size(*DESK)
    browser.open(server.url + at(RUN))
    browser.wait("return document.querySelectorAll('.chart canvas').length === 9")
    browser.run("document.querySelector('.chart').focus()")
    shown = "return [...document.querySelectorAll('.chart .now span')].map((now) => now.textContent)"
    browser.keys(LEFT + LEFT)
    assert set(browser.run(shown)) == {"step 43"}, "on all of them"
    browser.keys(HOME + RIGHT)
    assert set(browser.run(shown)) == {"step 2"}
    browser.keys("++" + END)
    assert browser.wait(shown)[0] == "step 5"  # the end of what is in sight: a quarter of all steps around step 2
    browser.keys("0" + END)
    assert browser.wait(shown)[0] == "step 45"
    assert browser.focused_label().startswith("Mean reward")


def test_the_keyboard_leads_everywhere(server: Server, browser: Browser) -> None:
    browser.size(*DESK)
    browser.open(server.url + at(RUN, "rollouts") + "?sort=rollout_id&up=1")
    browser.keys("?")
    assert browser.wait("return document.getElementById('help').open")
    browser.keys("?")
    browser.keys("jj")
    assert browser.run("return document.querySelector('tr.here').textContent.includes('00000000-1')")
    browser.press("\ue007", until=f"{LOADED} location.search.includes('id=00000000-1')")  # Enter
    browser.press("]", until=f"{LOADED} location.search.includes('id=00000000-2')")
    browser.press("[", until=f"{LOADED} location.search.includes('id=00000000-1')")
    browser.press("u", until=f"{LOADED} location.pathname.endsWith('/rollouts') && location.search.includes('sort=rollout_id')")
    browser.press("6", until=f"{LOADED} location.pathname.endsWith('/sql')")
    browser.keys("/")
    assert browser.run("return document.activeElement.name") == "q"


def test_the_timeline_leads_to_rollouts_and_other_steps(server: Server, browser: Browser) -> None:
    browser.size(*PHONE)
    browser.open(server.url + at(RUN, "timeline", step=3))
    bars = "document.querySelectorAll('.lane-bars rect')"
    assert browser.wait(f"return {bars}.length") == 11
    assert browser.run(f"return [...{bars}].every((bar) => bar.getBoundingClientRect().right <= innerWidth)")
    gap = "document.querySelector('.lead').getBoundingClientRect().top - document.querySelector('.near').getBoundingClientRect().bottom"
    assert browser.run(f"return {gap}") > 0  # nothing lies on the links
    assert browser.run("return document.querySelector('.tabs [aria-current]').getBoundingClientRect().right <= innerWidth")
    browser.press("[", until=f"{LOADED} location.search === '?step=2'")
    browser.press("7", until=f"{LOADED} location.pathname.endsWith('/timeline') && location.search === ''")
    browser.open(server.url + at(RUN, "timeline", step=3))
    browser.run("document.querySelector(`.lane-bars a[href$='00000002-0']`).dispatchEvent(new MouseEvent('click', {bubbles: true}))")
    browser.wait(f"{LOADED} location.search === '?id=00000002-0'")
    assert browser.wait("return document.querySelectorAll('.lane').length") == 3  # generate, score, the scale
    assert browser.run("return document.querySelector('.log').scrollHeight > document.querySelector('.log').clientHeight")


def tab_to_a_bar(browser: Browser) -> None:
    for _ in range(20):  # links of the frame come first
        browser.keys(TAB)
        if browser.run("return document.activeElement.matches('.bar')"):
            break


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_bars_of_a_timeline_are_reached_and_opened_by_keyboard(server: Server, browser: Browser, size: tuple[int, int]) -> None:
    browser.size(*size)
    browser.errors()
    browser.open(server.url + at(RUN, "timeline", step=3))
    browser.wait(f"{LOADED} document.querySelectorAll('.bar[tabindex]').length === 11")
    told = "return document.querySelector('.timeline .inspect').textContent"
    tab_to_a_bar(browser)
    assert browser.run(told) == browser.focused_label() == "rollout, 3.0 s"
    stroke = "const s = getComputedStyle(document.activeElement.querySelector('rect')); return [s.stroke !== 'none', s.strokeWidth]"
    assert browser.run(stroke) == [True, "2px"]  # the focus can be seen
    browser.keys(RIGHT)
    assert browser.run(told) == browser.focused_label() == "train, 800 ms"
    browser.keys(RIGHT + RIGHT)
    assert browser.run(told) == "sync, 200 ms", "the last of its row"
    browser.keys(DOWN)
    assert browser.focused_label() == "score, 400 ms, rollout 00000002-0"  # of the next row what is nearest in time
    browser.keys(DOWN + HOME)
    assert browser.focused_label() == "generate, 2.2 s, turn 0, rollout 00000002-2"
    browser.keys(TAB)
    assert browser.run("return document.activeElement.closest('.timeline')") is None, "one stop of Tab"
    tab_to_a_bar(browser)
    assert browser.focused_label().endswith("00000002-2"), "where the reader was"
    browser.press(ENTER, until=f"{LOADED} location.pathname.endsWith('/rollout') && location.search === '?id=00000002-2'")
    assert browser.errors() == []


def test_tokens_are_read_by_keyboard(server: Server, browser: Browser) -> None:
    browser.size(*DESK)
    browser.open(server.url + at(RUN, "rollout", id="00000002-0"))
    browser.wait(f"{LOADED} document.querySelectorAll('#heat span[id]').length > 0")
    browser.run("document.getElementById('heat').focus()")
    said = "return document.getElementById('inspect').textContent"
    browser.keys(RIGHT)
    assert browser.run(said).startswith('"2" · token 0 ')
    browser.keys(RIGHT + RIGHT + LEFT)
    assert browser.run(said).startswith('"+" · token 1 ')
    browser.keys(END)
    assert "logprob −5.0000" in browser.run(said)  # noqa: RUF001
    assert browser.run("return location.hash") == "#logprob.15"


def test_a_comparison_is_chosen_on_the_page(tmp_path: Path, browser: Browser) -> None:
    solved = {f"t{i}": [True] for i in range(20)}
    make_compared(tmp_path / "before", tokens=[100] * 4, evaluations={4: {task: [False] for task in solved}})
    make_compared(tmp_path / "after", tokens=[200] * 4, evaluations={2: solved})
    browser.size(*PHONE)
    with serving(tmp_path) as server:
        browser.open(server.url + at("before"))
        browser.press("8", until=f"{LOADED} location.pathname.endsWith('/compare')")
        browser.run("document.querySelector('select[name=with]').value = 'after'; document.querySelector('.filters button').click()")
        browser.wait(f"{LOADED} location.search === '?with=after&by=sampled' && document.querySelectorAll('.list tbody tr').length === 4")
        assert browser.wait(FITS)
        assert "Difference +1.000" in browser.run("return document.querySelector('main').textContent")
        assert browser.errors() == []


def test_the_theme_is_switched_and_kept(server: Server, browser: Browser) -> None:
    browser.open(server.url + "/")
    light = browser.run("return getComputedStyle(document.body).backgroundColor")
    browser.keys("t")
    dark = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert dark != light
    browser.open(server.url + at(RUN))
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == dark
    browser.keys("t")


def test_filters_change_the_list_and_the_address(server: Server, browser: Browser) -> None:
    browser.open(server.url + at(RUN, "rollouts"))
    script = (
        "const s = document.querySelector('select[name=status]'); s.value = 'infra'; s.dispatchEvent(new Event('change', {bubbles: true}))"
    )
    browser.run(script)
    browser.wait("return location.search === '?status=infra'")
    browser.wait("return document.querySelectorAll('tr[data-href]').length === 5")
    browser.run("history.back()")
    browser.wait("return location.search === '' && document.querySelectorAll('tr[data-href]').length === 20")


def test_tokens_are_coloured_by_each_channel(server: Server, browser: Browser) -> None:
    browser.size(*DESK)
    browser.open(server.url + at(RUN, "rollout", id="00000002-0"))
    browser.wait("return document.querySelectorAll('#heat span[id]').length > 0")
    text = browser.run("return [...document.querySelectorAll('#heat span[id]')].map((e) => e.textContent).join('')")
    assert text == "2+2?the sum is 4"
    seen = []
    for channel in ("entropy", "advantage", "mismatch", "version", "logprob"):
        browser.keys("c")
        browser.wait(f"return document.getElementById('heat').dataset.channel === '{channel}'")
        seen.append(browser.run("return [...document.querySelectorAll('#heat span[id]')].map((e) => e.className)"))
    entropy, advantage, _, version, logprob = seen
    assert set(entropy[4:]) == {"h4"}  # 0.75 nats of 3
    assert set(advantage[4:]) == {"h6"}  # 0.75 of 2
    assert set(logprob[:4]) == {"ctx"}
    assert set(version[4:]) == {"v0", "v1"}
    assert logprob[4] == "h0"
    assert logprob[-1] == "h13"  # 5 nats of 6
    browser.keys("x")
    assert "logprob −5.0000" in browser.run("return document.getElementById('inspect').textContent")  # noqa: RUF001
    browser.keys("cc")
    browser.keys("x")
    address = browser.wait("return location.hash.startsWith('#advantage.') && location.href")
    browser.open(server.url + "/")
    browser.open(address)  # what one looks at can be shared
    browser.wait("return document.querySelector('.picked') !== null")
    assert browser.run("return document.getElementById('heat').dataset.channel") == "advantage"
    browser.open(server.url + "/")
    browser.open(server.url + at(RUN, "rollout", id="00000002-0") + "#constructor.99999")
    assert browser.wait("return document.getElementById('heat').dataset.channel") == "logprob"
    assert browser.errors() == []


def test_a_live_page_grows_by_itself(tmp_path: Path, browser: Browser) -> None:
    root = make_run(tmp_path / "runs" / "live")
    with serving(tmp_path / "runs") as server:
        browser.open(server.url + at("live"))
        browser.wait("return document.querySelectorAll('.chart canvas').length === 9")
        with MetricsWriter(root / "metrics.jsonl", attempt=2, restored_step=45) as metrics:
            metrics.step(make_metrics(46))
        now = "document.querySelector('.chart .now').textContent"
        browser.wait(f"return {now}.includes('step 46')")
        browser.run("document.querySelector('.chart').focus()")
        browser.keys(HOME + END)
        assert browser.run(f"return {now}").endswith("step 46")  # the new step is in sight
        browser.keys(LEFT + LEFT + "+++" + END)
        assert browser.wait(f"return {now}").endswith("step 45")
        scrolled = browser.run("scrollTo(0, 200); return scrollY")
        with MetricsWriter(root / "metrics.jsonl", attempt=3, restored_step=46) as metrics:
            metrics.step(make_metrics(47))
        browser.wait(f"return {now}.includes('step 47')")  # the curves are drawn a moment after the rest
        assert browser.run("return [document.activeElement.className, scrollY]") == ["chart chart-single", scrolled]
        browser.keys(HOME + END)
        assert browser.run(f"return {now}").endswith("step 45")  # the part that was chosen stays
        assert browser.errors() == []


def test_the_bundle_opens_from_a_file(runs: Path, tmp_path: Path, browser: Browser) -> None:
    export_run(runs / RUN, out=tmp_path / "bundle", rollouts=8)
    browser.size(*DESK)
    browser.errors()
    browser.open((tmp_path / "bundle" / "index.html").as_uri())
    browser.wait("return document.querySelectorAll('.chart canvas').length === 9")
    browser.keys("2")
    browser.wait(f"{LOADED} location.pathname.endsWith('/rollouts.html')")
    browser.keys("j\ue007")
    browser.wait("return document.querySelectorAll('#heat span[id]').length > 0")
    assert browser.errors() == []
    picture = tmp_path / "page.png"
    browser.screenshot(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_policy_stops_what_slips_through(server: Server, browser: Browser) -> None:
    """If a text did become an element, its script would still not run; and these tests would hear of it."""
    browser.open(server.url + at(RUN))
    browser.errors()
    browser.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\"><b style=\"color:red\">x</b>')")
    browser.run("const s = document.createElement('script'); s.textContent = 'window.ran = 2'; document.body.append(s)")
    heard = browser.errors()
    assert browser.run("return window.ran") is None
    assert any("Content Security Policy" in message for message in heard)
