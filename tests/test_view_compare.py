"""The viewer's timeline and its comparison of two runs."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rl.log.compare import compare_runs
from rl.log.metrics import Metrics
from rl.log.query import RunLog
from rl.log.runs import prepare_run
from rl.log.spans import SpanWriter
from rl.records import Span
from rl.view.export import export_run
from rl.view.open_run import OpenRun
from rl.view.timeline import drawn, step_timeline
from tests.test_compare import make_run as make_compared
from tests.view_run import HOSTILE_RUN, Server, at, runs, server, serving

__all__ = ["runs", "server"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Server]]:
    folder = tmp_path_factory.mktemp("pair")
    poor, good = {f"t{i}": [False, i % 4 == 0] for i in range(40)}, {f"t{i}": [True, None] for i in range(40)}
    make_compared(folder / "before", tokens=[100] * 4, evaluations={4: poor})
    make_compared(folder / "after", tokens=[200] * 4, evaluations={2: good})
    make_compared(folder / "other", tokens=[200] * 4, evaluations={0: good}, source="words")
    with serving(folder) as one:
        yield folder, one


def test_the_comparison_shows_the_figures_of_the_function(pair: tuple[Path, Server]) -> None:
    folder, viewer = pair
    page = viewer.page(at("before", "compare", **{"with": "after"}))
    with RunLog(folder / "before") as one, RunLog(folder / "after") as other:
        found = compare_runs(one, other, names=("before", "after"))
    held, trained = found.sources
    gap = held.difference
    assert f"Both runs reached {found.tokens} sampled tokens" in page
    assert "training: version 3<" in page and "training: version 1<" in page and "sums, training</h2>" in page
    assert f"{100 * trained.first.value:.1f}%" in page.partition("sums, training</h2>")[2]
    assert f"Difference +{gap.difference:.3f}, 95% interval +{gap.low:.3f} to +{gap.high:.3f}" in page
    assert "over 40 problems" in page
    assert re.search(r"after</td><td class=\"n\">100.0%.*?<td class=\"n wide\">40</td></tr>", page), "ungraded samples are told"


def test_runs_that_cannot_be_compared_say_why_on_the_page(pair: tuple[Path, Server]) -> None:
    _, viewer = pair
    assert "no held-out task source in common" in viewer.page(at("before", "compare", **{"with": "other", "by": "trained"}))
    assert viewer.get(at("before", "compare", **{"with": "../../etc"})).status == 404
    assert viewer.get(at("before", "compare", by="hours")).status == 400
    assert "Choose another run" in viewer.page(at("before", "compare"))


def test_the_timeline_of_a_step_has_a_lane_an_actor_and_the_loop_on_top(server: Server) -> None:
    page = server.page(at(HOSTILE_RUN, "timeline", step=3))
    lanes = re.findall(r'aria-label="([^"]*): (\d+) spans"', page)
    assert [count for _, count in lanes] == ["3", "8"]
    assert lanes[0][0] == "loop"
    assert "rollout, 3.0 s" in page and "rollout 00000002-0" in page and "rollout 00000003-0" not in page
    assert "No spans of this step" in server.page(at(HOSTILE_RUN, "timeline", step=40))
    assert server.get(at(HOSTILE_RUN, "timeline", step="x")).status == 400


def test_the_rollout_page_draws_its_own_spans(server: Server) -> None:
    page = server.page(at(HOSTILE_RUN, "rollout", id="00000002-1"))
    assert [name for name, _ in re.findall(r'aria-label="([^"]*): (\d+) spans"', page)] == ["generate", "score"]
    assert at(HOSTILE_RUN, "timeline", step=3).replace("&", "&amp;") in page


def test_the_export_has_timelines(runs: Path, tmp_path: Path) -> None:
    export_run(runs / HOSTILE_RUN, out=tmp_path / "bundle", rollouts=20)
    index = (tmp_path / "bundle" / "index.html").read_text()
    assert 'href="timeline-00001.html"' in index
    assert "Timeline of step 45" in (tmp_path / "bundle" / "timeline-00001.html").read_text()
    assert "generate: 1 spans" in (tmp_path / "bundle" / "rollout-00001.html").read_text()


def test_what_runs_at_once_lies_in_rows_and_what_has_no_room_is_counted() -> None:
    spans = [{"actor": "w0", "name": "generate", "started": 0.0, "ended": 10.0, "rollout_id": f"r{i}", "turn": 0} for i in range(70)] + [
        {"actor": "w0", "name": "score", "started": 10.0, "ended": 20.0, "rollout_id": "r0", "turn": None}
    ]
    drawing = drawn(spans, begun=0.0, ended=20.0, lane="actor", first="loop")
    (lane,) = drawing.lanes
    assert (lane.rows, len(lane.bars), drawing.left_out) == (64, 65, 6)
    assert (lane.bars[0].x, lane.bars[0].width) == (0.0, 500.0)
    assert (lane.bars[-1].row, lane.bars[-1].x, lane.bars[-1].width) == (0, 500.0, 500.0)
    assert drawing.names[0] == ("generate", 700.0, 0)


def test_the_longest_spans_of_a_step_are_drawn_and_the_others_counted(tmp_path: Path) -> None:
    prepare_run(tmp_path / "busy")
    with SpanWriter(tmp_path / "busy", attempt=1, actor="loop") as loop, SpanWriter(tmp_path / "busy", attempt=1, actor="w0") as worker:
        loop.record(Span(name="rollout", started=0.0, ended=100.0, version=0, train_step=1))
        for index in range(3100):
            worker.record(Span(name="score", started=index / 32, ended=(index + 0.5) / 32, version=0))
    drawing = step_timeline(OpenRun("busy", tmp_path / "busy"), 1, Metrics())
    assert drawing is not None
    assert (drawing.lanes[0].name, sum(len(lane.bars) for lane in drawing.lanes), drawing.left_out) == ("loop", 3000, 101)
