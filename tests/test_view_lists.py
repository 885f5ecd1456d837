"""Lists of the viewer by HTTP: filters, order, places, and what a page that refreshes itself is sent."""

import html
import re
from dataclasses import replace
from pathlib import Path

import pytest

from rl.log.metrics import MetricsWriter
from rl.log.runs import RunPaths, prepare_run
from rl.log.spans import SpanWriter
from rl.log.writer import LearnerWriter, RolloutWriter
from rl.records import Span
from tests.log_fakes import make_group, make_metrics, make_sample, make_stats
from tests.view_run import HOSTILE_RUN, STEPS, Server, at, make_run, runs, server, serving

__all__ = ["runs", "server"]

FIRST = "00000000-0"


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("status=infra&vmax=1", {"00000000-3", "00000001-3"}),
        ("status=ok&vmin=3", {"00000003-0", "00000004-0"}),
        ("rmin=0.5&vmax=0", {FIRST}),
        ("rmax=-0.1&vmin=4", {"00000004-1", "00000004-2"}),
        ("task=task-2&status=ok", {"00000002-0"}),
        ("text=NO+IDEA&vmax=0", {"00000000-2"}),
        ("messages=Was+5&vmax=0", {"00000000-1"}),
        ("text=%25", set()),
        ("text='+OR+1%3D1+--", set()),
        ("split=heldout", set()),
        ("drop=infra&vmax=1", {"00000000-3", "00000001-3"}),
        ("drop=left_out&vmin=4", {"00000004-2"}),
        ("drop=stale", set()),
    ],
)
def test_filters(server: Server, query: str, ids: set[str]) -> None:
    page = server.page(at(HOSTILE_RUN, "rollouts") + "?" + query)
    assert set(re.findall(r'<a class="id"[^>]*>([^<]+)</a>', page)) == ids
    assert ids or "No rollout matches" in page


def test_what_the_learner_did_can_be_chosen_and_is_told(server: Server) -> None:
    page = server.page(at(HOSTILE_RUN, "rollouts"))
    select = re.search(r'<select name="drop">(.*?)</select>', page)[1]
    assert re.findall(r'value="([^"]*)"', select) == ["", "infra", "left_out"]
    row = re.compile(r'<tr data-row="(00000003-\d)".*?</tr>', re.S)
    rows = {match[1]: match[0] for match in row.finditer(page)}
    assert "+0.750" in rows["00000003-0"] and "infra" not in rows["00000003-0"]
    assert "left_out" in rows["00000003-2"]
    chosen = server.page(at(HOSTILE_RUN, "rollouts", drop="left_out"))
    assert "<strong>5</strong> rollouts" in chosen
    assert '<option value="left_out" selected>' in chosen
    assert "drop=left_out" in re.search(r'href="\?([^"]*sort=reward[^"]*)"', chosen)[1]  # another order keeps the filter
    # 20 groups were dropped at the door of the buffer, 20 gave the learner no gradient
    assert f'href="{at(HOSTILE_RUN, "rollouts", drop="zero_variance")}">zero_variance</a> <span class="n">40</span>' in server.page(
        at(HOSTILE_RUN)
    )


def test_a_single_drop_reason_can_be_chosen(tmp_path: Path) -> None:
    """One source is no choice, but one reason is: most rollouts have none."""
    root = tmp_path / "runs" / "one"
    prepare_run(root)
    group = make_group()
    with RolloutWriter(root, run_id="one", attempt=1, writer="w0", tokens=True) as writer:
        writer.write_group(group)
    with LearnerWriter(root, attempt=1) as learner:
        samples = [make_sample(group.rollouts[0])]
        learner.write_step(train_step=1, groups=[group], samples=samples, stats=[make_stats(samples)])
    with serving(tmp_path / "runs") as viewer:
        page = viewer.page(at("one", "rollouts"))
    assert '<select name="source">' not in page
    assert re.findall(r'value="([^"]*)"', re.search(r'<select name="drop">(.*?)</select>', page)[1]) == ["", "left_out"]


def test_samples_come_in_their_order_and_every_order_has_all_rollouts(tmp_path: Path) -> None:
    root = make_run(tmp_path / "runs" / "wide")
    with RolloutWriter(root, run_id="wide", attempt=1, writer="w1", tokens=True) as writer:
        writer.write_group(make_group(7, version=7, n=40))
    with serving(tmp_path / "runs") as viewer:
        newest = viewer.page(at("wide", "rollouts", task="task-7"))
        assert re.findall(r'<a class="id"[^>]*>00000007-(\d+)</a>', newest) == [str(i) for i in range(40)]
        by_advantage = viewer.page(at("wide", "rollouts", sort="advantage"))
        assert len(re.findall(r'<a class="id"', by_advantage)) == 50
        assert "<strong>60</strong>" in by_advantage
        second = viewer.page(at("wide", "rollouts") + "?sort=reward&page=2")
        one = viewer.page(re.search(r'<a class="id" href="([^"]+)"', second)[1].replace("&amp;", "&"))
        assert f'href="{at("wide", "rollouts")}?sort=reward&amp;page=2" data-key="u"' in one  # back to where it stands
        assert "<strong>60</strong>" in viewer.page(at("wide", "rollouts") + "?page=9")  # beyond the end the number is still told


def test_neighbours_are_right_when_the_list_has_moved(server: Server) -> None:
    """In a run that goes on, the newest rollouts push the others down."""
    page = server.page(at(HOSTILE_RUN, "rollout", id="00000002-1", list="sort=rollout_id&up=1", at=2))
    for side, rollout_id, place in (("prev", "00000002-0", 8), ("next", "00000002-2", 10)):
        href = re.search(rf'href="([^"]+)" rel="{side}"', page)[1].replace("&amp;", "&")
        assert f"id={rollout_id}&" in href and f"at={place}&" in href
    alone = server.page(at(HOSTILE_RUN, "rollout", id="00000002-1", list="status=infra", at=0))
    assert "id=00000002-2" in re.search(r'href="([^"]+)" rel="next"', alone)[1]  # not of that list: its group leads on


def test_order_and_place_are_in_the_address(server: Server) -> None:
    page = server.page(at(HOSTILE_RUN, "rollouts") + "?sort=rollout_id&up=1")
    links = [link.replace("&amp;", "&") for link in re.findall(r'<a class="id" href="([^"]+)"', page)]
    assert len(links) == 20
    third = server.page(links[2])
    hrefs = {side: re.search(rf'href="([^"]+)" rel="{side}"', third)[1].replace("&amp;", "&") for side in ("prev", "next")}
    assert "id=00000000-1" in hrefs["prev"]
    assert "id=00000000-3" in hrefs["next"]
    over_the_edge = server.page(hrefs["next"])
    assert "id=00000001-0" in re.search(r'href="([^"]+)" rel="next"', over_the_edge)[1]  # the list goes on where the group ends


@pytest.mark.parametrize("query", ["vmin=soon", "rmax=high", "page=0", "page=nan", "sort=reward;drop", "list=vmin%3Dx&at=1&id=" + FIRST])
def test_a_wrong_address_is_explained(server: Server, query: str) -> None:
    answer = server.get(at(HOSTILE_RUN, "rollout" if "list" in query else "rollouts") + "?" + query)
    assert answer.status == 400
    assert query.split("=")[0].replace("list", "vmin") in answer.text


@pytest.mark.parametrize("address", ["service?last=0", "service?last=-1", "timeline?step=-1", "tasks?sort=up"])
def test_a_wrong_choice_is_named(server: Server, address: str) -> None:
    answer = server.get(at(HOSTILE_RUN, address.split("?")[0]) + "?" + address.split("?")[1])
    assert answer.status == 400 and address.split("?")[1] in answer.text


@pytest.mark.parametrize("page", ["rollouts", "contrast", "tasks"])
def test_a_list_is_sent_again_only_when_it_has_changed(tmp_path: Path, page: str) -> None:
    root = make_run(tmp_path / "runs" / "live")
    with serving(tmp_path / "runs") as server:
        filters = {"rollouts": "status=ok&sort=reward", "contrast": "", "tasks": "text=task&sort=hardest"}[page]
        refresh = re.search(r'id="results" data-live="3" hx-get="([^"]+)"', server.page(f"{at('live', page)}?{filters}"))[1].replace(
            "&amp;", "&"
        )
        assert all(word in refresh for word in filters.split("&"))
        same = server.get(refresh)
        assert (same.status, same.text) == (204, "")
        assert float(same.headers["server-timing"].removeprefix("cpu;dur=")) >= 0
        process = Path(root / "alive.json")
        process.write_text(process.read_text().replace('"ended": ""', '"ended": "finished"'))
        last = server.page(refresh)
        assert 'id="results"' in last and "data-live" not in last  # the run has ended: nothing more to look for


def test_only_the_first_page_of_a_list_refreshes_itself(server: Server) -> None:
    assert 'data-live="3"' in server.page(at(HOSTILE_RUN, "rollouts"))
    assert "data-live" not in server.page(at(HOSTILE_RUN, "rollouts") + "?page=2")  # it would show other rollouts with every group


def test_the_list_of_runs_follows_them(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    for name in ("b-live", "a-live"):
        make_run(folder / name)
    ended = make_run(folder / "c-ended")
    alive = ended / "alive.json"
    alive.write_text(alive.read_text().replace('"ended": ""', '"ended": "interrupted"'))
    with serving(folder) as server:
        page = server.page("/")
        names = re.findall(r'<tr data-row="([^"]+)"', page)
        assert names == ["a-live", "b-live", "c-ended"]
        refresh = re.search(r'hx-get="(/\?seen=\w+)"', page)[1]
        assert server.get(refresh).status == 204
        assert page.count('/flags"') == 3
        for name in names:
            server.page(at(name, "flags"))
        with MetricsWriter(RunPaths(root=folder / "b-live").metrics, attempt=2, restored_step=STEPS) as metrics:
            metrics.step(make_metrics(STEPS + 1))
        page = server.page(refresh)
        assert re.findall(r'<tr data-row="([^"]+)"', page) == names  # those that go on keep their places
        assert f'<td class="n">{STEPS + 1}<' in page
        assert page.count('/flags"') == 0  # counted a moment ago
        assert page.count(">none</span>") == 0 or "…" not in page


def test_pages_that_look_for_news_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.view.open_run._REOPEN_SECONDS", 0.0)
    root = make_run(tmp_path / "runs" / "live")
    with serving(tmp_path / "runs") as server:

        def refresh(path: str) -> str:
            return html.unescape(re.search(r'id="results" data-live="3" hx-get="([^"]+)"', server.page(path))[1])

        service, last, task = (
            refresh(at("live", "service")),
            refresh(at("live", "service", last=20)),
            refresh(at("live", "task", id="task-0")),
        )
        newest, fifth = refresh(at("live", "timeline")), refresh(at("live", "timeline", step=5))
        assert [server.get(url).status for url in (service, last, task, newest, fifth)] == [204] * 5
        group = make_group(7, version=7, n=4)
        again = replace(group.problem, task=replace(group.problem.task, id="task-0"))
        with RolloutWriter(root, run_id="live", attempt=1, writer="late", tokens=True) as writer:
            writer.write_group(replace(group, problem=again))
        with SpanWriter(root, attempt=1, actor="late") as spans:
            spans.record(Span(name="rollout", started=1020.0, ended=1023.0, version=5, train_step=6))
        assert all('<td class="n">24</td>' in server.page(url) for url in (service, last))
        assert server.page(task).count('<tr data-row="') == 2
        assert "<h1>Timeline of step 6</h1>" in server.page(newest)
        stays = server.page(fifth)
        assert "<h1>Timeline of step 5</h1>" in stays and 'data-key="]">next' in stays
        assert "data-live" not in stays and "data-live" not in server.page(at("live", "timeline", step=4))  # they are over
        alive = root / "alive.json"
        alive.write_text(alive.read_text().replace('"ended": ""', '"ended": "interrupted"'))
        assert not any("data-live" in server.page(at("live", page)) for page in ("service", "timeline"))
        assert "data-live" not in server.page(task)
