"""The viewer by HTTP: every page, what it makes of hostile texts, damaged files and foreign requests."""

import re
import signal
import urllib.request
from pathlib import Path

import pytest

from rewards.score import Score, ScorePart, ScoreStatus
from rl.history.appended import ScoreAppender, Scorer
from rl.history.recorded import find_row
from rl.log.metrics import EvalMetrics, MetricsWriter
from rl.log.query import QueryError, RunLog
from rl.log.runs import RunPaths
from rl.view.command import view_command
from rl.view.export import export_run
from rl.view.guard import CONTENT_SECURITY_POLICY
from rl.view.open_run import OpenRun
from tests.log_fakes import make_metrics
from tests.ring import ROOT, finish, start
from tests.view_run import HOSTILE, HOSTILE_RUN, STEPS, Server, at, make_run, runs, server, serving

__all__ = ["runs", "server"]

FIRST = "00000000-0"


PAGES = [
    "/",
    at(HOSTILE_RUN),
    at(HOSTILE_RUN, "rollouts"),
    at(HOSTILE_RUN, "rollout", id=FIRST),
    at(HOSTILE_RUN, "contrast"),
    at(HOSTILE_RUN, "group", id="00000000"),
    at(HOSTILE_RUN, "tasks"),
    at(HOSTILE_RUN, "task", id="task-0"),
    at(HOSTILE_RUN, "service"),
    at(HOSTILE_RUN, "flags"),
    at(HOSTILE_RUN, "timeline", step=3),
    at(HOSTILE_RUN, "timeline"),
    at(HOSTILE_RUN, "compare", **{"with": HOSTILE_RUN}),
    at(HOSTILE_RUN, "sql", q="SELECT rollout_id, text FROM turns"),
]


@pytest.mark.parametrize("path", PAGES)
def test_pages_are_safe_whatever_the_model_wrote(server: Server, path: str) -> None:
    answer = server.get(path)
    assert answer.status == 200, answer.text[-2000:]
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert "alert(1)</script>" not in answer.text.lower()
    assert "<run>" not in answer.text
    assert not re.search(r"<script(?![^>]* src=)", answer.text), "a script without a file"
    assert not re.search(r"\son\w+=|\sstyle=|javascript:", re.sub(r"&[^;]+;", "", answer.text))
    assert not re.search(r"https?://(?!www\.w3\.org)", answer.text), "something from elsewhere"
    assert not set(answer.text) & {"\x1b", "\x00", "\u202e", "\u200b"}
    assert "49" not in re.findall(r"text&#39; (\S+)", answer.text), "a template ran"


def test_hostile_text_can_be_read(server: Server) -> None:
    page = server.page(at(HOSTILE_RUN, "rollout", id=FIRST))
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    for escape in ("\\x1b", "\\u202e", "\\x00", "\\u200b"):
        assert f'<span class="unseen">{escape}</span>' in page
    assert "\u05e9\u05dc\u05d5\u05dd" in page
    assert "test_sum PASSED" in page  # the log of the tests


def test_a_message_of_ten_megabytes_is_cut_and_can_be_downloaded(server: Server) -> None:
    page = server.page(at(HOSTILE_RUN, "rollout", id="00000001-0"))
    assert len(page) < 300_000
    links = [re.sub("&amp;", "&", link) for link in re.findall(r'href="([^"]+(?:/text|/blob)\?[^"]+)"', page)]
    assert links
    sizes = []
    for link in links:
        whole = server.get(link)
        assert whole.status == 200
        assert whole.headers["content-type"] == "text/plain; charset=utf-8"
        assert whole.headers["x-content-type-options"] == "nosniff"
        assert whole.headers["content-disposition"].startswith("attachment")
        sizes.append((len(whole.text), whole.text[-6:]))
    assert (10_000_006, "<b>END") in sizes


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost"}, 200),
        ({"host": "[::1]:8750"}, 200),
        ({"host": "127.0.0.1:9999"}, 200),  # the near end of a tunnel
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example:8750"}, 403),
        ({"host": "localhost@evil.example"}, 403),
        ({"host": ""}, 403),
        ({"host": "localhost", "origin": "http://localhost"}, 200),
        ({"host": "localhost", "origin": "http://localhost:3000"}, 403),
        ({"host": "localhost", "origin": "http://evil.example"}, 403),
        ({"host": "localhost", "origin": "null"}, 403),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"}, 403),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}, 200),
    ],
)
def test_only_this_machine_may_ask(server: Server, headers: dict[str, str], status: int) -> None:
    for path in ("/", at(HOSTILE_RUN, "rollouts"), "/static/view.js"):
        assert server.get(path, **headers).status == status


def test_nothing_but_reading(server: Server) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        answer = server.get(at(HOSTILE_RUN, "sql"), method=method)
        assert answer.status == 405
        assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert server.get("/", method="HEAD").status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/runs/..",
        "/runs/../../etc",
        "/runs/..%2f..%2fetc",
        "/runs/%2e%2e/rollouts",
        "/runs/%2Fetc/rollouts",
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/%2e%2e/cli.py",
        "/static//etc/passwd",
        at(HOSTILE_RUN, "blob", ref="sha256:../../../config.yaml"),
        at(HOSTILE_RUN, "blob", ref="../config.yaml"),
        at(HOSTILE_RUN, "text", id=FIRST, message="../0"),
        at(HOSTILE_RUN, "text", id=FIRST, message="99"),
        at(HOSTILE_RUN, "rollout", id="../../config.yaml"),
        at(HOSTILE_RUN, "../../config.yaml"),
        at(HOSTILE_RUN, "nothing"),
        at("other"),
    ],
)
def test_no_path_leads_out(server: Server, path: str) -> None:
    answer = server.get(path)
    assert answer.status == 404
    assert "root:" not in answer.text
    assert "import" not in answer.text


def test_contrast_marks_the_token_where_they_part(server: Server) -> None:
    assert '<a class="id" href="' + at(HOSTILE_RUN, "group", id="00000002").replace("&", "&amp;") in server.page(
        at(HOSTILE_RUN, "contrast")
    )
    page = server.page(at(HOSTILE_RUN, "group", id="00000002"))
    common = re.findall(r'<span class="common">([^<]*)</span>', page)
    marks = re.findall(r"<mark[^>]*>([^<]*)</mark>", page)
    assert common == ["the sum ", "the sum "]
    assert marks == ["i", "w"]  # `is 4` against `was 5`
    assert re.search(r"What was asked</summary>.*2\+2\?", page, re.S)


def test_biography_goes_through_the_versions(server: Server) -> None:
    page = server.page(at(HOSTILE_RUN, "task", id="task-3"))
    assert "2+2?" in page
    assert re.search(r'<td class="n">3</td>', page)
    assert '1<span class="dim"> / 3</span>' in page


def test_service_names_what_failed_and_what_was_slow(server: Server) -> None:
    page = server.page(at(HOSTILE_RUN, "service"))
    assert "TimeoutError" in page
    assert "the sandbox did not answer" in page
    slow = page[page.index("Slowest grades") :]
    assert re.findall(r'class="id" href="[^"]+">([^<]+)<', slow)[:2] == ["00000000-3", "00000001-3"]


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM glob('/*')",
        "COPY rollouts TO '/tmp/stolen.csv'",
        "ATTACH '/tmp/other.db'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "CREATE TABLE t AS SELECT 1",
        "SELECT 1; SELECT 2",
        "SELECT 1) ; DROP VIEW rollouts; SELECT (1",
        "SELECT * FROM run",
        "DELETE FROM metrics",
        "SELEC",
    ],
)
def test_the_sql_box_only_reads_the_log(server: Server, query: str) -> None:
    page = server.page(at(HOSTILE_RUN, "sql", q=query))
    assert '<pre class="text problem">' in page
    assert "root:" not in page
    assert server.page(at(HOSTILE_RUN, "rollouts")).count('<a class="id"') == 20


def test_the_sql_box_says_what_it_takes(server: Server) -> None:
    for query in ("SELECT 1; SELECT 2", "INSTALL httpfs", "DELETE FROM metrics"):
        assert "give exactly one SELECT" in server.page(at(HOSTILE_RUN, "sql", q=query))
    assert "LINE 1: SELEC" in server.page(at(HOSTILE_RUN, "sql", q="SELEC"))  # as it was typed


def test_the_sql_box_links_and_cuts(server: Server) -> None:
    page = server.page(at(HOSTILE_RUN, "sql", q="SELECT rollout_id, group_id, task_id, reward FROM rollouts ORDER BY 1 -- newest;"))
    assert f'<a class="id" href="{at(HOSTILE_RUN, "rollout", id=FIRST)}">{FIRST}</a>' in page
    assert "20 rows" in page
    many = server.page(at(HOSTILE_RUN, "sql", q="SELECT i, repeat('x', 1000000) AS wide FROM range(100000) AS r(i)"))
    assert "the first of more" in many
    assert len(many) < 400_000


def test_rows_of_named_views_lead_to_what_they_name(server: Server) -> None:
    contrast = server.page(at(HOSTILE_RUN, "sql", q="SELECT * FROM contrast"))
    assert f'<tr data-href="{at(HOSTILE_RUN, "group", id="00000000")}">' in contrast
    assert f'href="{at(HOSTILE_RUN, "rollout", id="00000000-1")}">00000000-1</a>' in contrast, "the loser"
    examples = server.page(at(HOSTILE_RUN, "sql", q="SELECT ['00000003-0', 'step 3', 'h000004s0-000001-2'] AS examples"))
    assert f'<tr data-href="{at(HOSTILE_RUN, "rollout", id="00000003-0")}">' in examples
    assert 'id=h000004s0-000001-2">h000004s0-000001-2</a>' in examples
    plain = server.page(at(HOSTILE_RUN, "sql", q="SELECT NULL AS rollout_id, '2026-11-25' AS day, 12345678 AS n"))
    assert "data-href" not in plain and "rollout?" not in plain


def test_an_appended_score_stands_with_its_parts_and_log(tmp_path: Path) -> None:
    root = make_run(tmp_path / "runs" / "again")
    with RunLog(root) as log:
        row = find_row(log, "00000002-0")
    part = ScorePart(value=0.25, weight=2.0, reason=f"brevity of {HOSTILE}")
    score = Score(reward=0.5, status=ScoreStatus.OK, parts={"short": part}, reason="long", log="counted 12 words")
    with ScoreAppender(root, Scorer(name="brevity", hash="1")) as appender:
        appender.add(row, score)
    with serving(tmp_path / "runs") as viewer:
        page = viewer.page(at("again", "rollout", id="00000002-0"))
    assert "<h2>Log of brevity</h2>" in page and "counted 12 words" in page and "<h2>Log of the grader</h2>" in page
    assert re.search(r'short<div class="dim">brevity of .*?<td class="n">0.25</td><td class="n">2</td>', page, re.S)
    assert "<script>alert" not in page


def test_a_query_ends_in_time(runs: Path) -> None:
    with RunLog(runs / HOSTILE_RUN) as log, pytest.raises(QueryError, match=r"longer than 0\.2 s"):
        log.fetch("SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE a.range * b.range % 7 = 3", limit=1, timeout=0.2)


def test_a_live_page_is_told_only_what_is_new(tmp_path: Path) -> None:
    root = make_run(tmp_path / "runs" / "live")
    with serving(tmp_path / "runs") as server:
        mark = re.search(r"seen=([\d.]+)&", server.page(at("live")))[1]
        assert server.get(at("live", "live", seen=mark, state="live")).status == 204
        with MetricsWriter(RunPaths(root=root).metrics, attempt=2, restored_step=STEPS) as metrics:
            metrics.step(make_metrics(STEPS + 1))
        resumed = server.page(at("live", "live", seen=mark, state="live"))
        assert "&#34;from&#34;:0" in resumed  # another attempt may have taken steps back: everything is drawn anew
        mark = re.search(r"seen=([\d.]+)&", resumed)[1]
        with MetricsWriter(RunPaths(root=root).metrics, attempt=2, restored_step=STEPS + 1) as metrics:
            metrics.step(make_metrics(STEPS + 2))
        assert f'<span class="fact">{STEPS + 2}</span>' in server.page(at("live", "live", seen=mark, state="live"))


def test_the_newest_timeline_is_one_that_has_spans(server: Server) -> None:
    """Spans are written a little later than the metrics of their step."""
    page = server.page(at(HOSTILE_RUN, "timeline"))
    assert "Timeline of step 5<" in page
    assert page.count('class="bar"') > 5


def test_pass_at_k_is_told_of_each_source(tmp_path: Path) -> None:
    root = make_run(tmp_path / "runs" / "live")
    with MetricsWriter(RunPaths(root=root).metrics, attempt=2, restored_step=STEPS) as metrics:
        for source, high in (("code", 0.75), ("sums", 0.875)):
            at_k = {"2": 0.5, "4": high}
            metrics.evaluated(EvalMetrics(step=STEPS, time=1.0, split="heldout", source=source, passed=30, graded=40, pass_at=at_k))
    with serving(tmp_path / "runs") as server:
        page = server.page(at("live"))
    assert "pass@4 75.0%" in page and "pass@4 87.5%" in page
    assert "pass@2" not in page  # the largest k alone


def test_damaged_and_missing_parts_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    root = make_run(tmp_path / "runs" / "hurt")
    parts = sorted((root / "log" / "rollouts").rglob("*.parquet"))
    data = bytearray(parts[0].read_bytes())
    data[4 : len(data) - 4] = bytes(len(data) - 8)  # the same size, no footer to read
    parts[0].write_bytes(data)
    parts[1].unlink()
    middle = bytearray(parts[2].read_bytes())
    middle[4:400] = bytes(396)  # a good footer over bad pages
    parts[2].write_bytes(middle)
    with serving(tmp_path / "runs") as server:
        for page in ("rollouts", "rollout?id=00000004-0", "contrast", "tasks", "service", "sql?q=FROM+rollouts"):
            text = server.page(f"{at('hurt')}/{page}")
        text = server.page(at("hurt", "rollouts"))
        assert all(part.name in text for part in parts[:3])
        assert len(re.findall(r'<a class="id"', text)) == 8
        (root / "metrics.jsonl").write_text('{"kind": "step"}\n')
        assert "hurt" in server.page("/")
        named = server.get(at("hurt"))
        assert named.status == 400
        assert "metrics.jsonl" in named.text


def test_a_run_without_anything_says_what_to_expect(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    with serving(folder) as server:
        assert "rl train configs/quickstart.yaml" in server.page("/")
        (folder / "new" / "log").mkdir(parents=True)
        (folder / "new" / "run.json").write_text('{"run_id": "new-1", "attempt": 1}')
        assert "No curves yet" in server.page(at("new"))
        assert "No rollouts yet" in server.page(at("new", "rollouts"))
        for page in ("contrast", "tasks", "service", "sql"):
            assert 'class="empty"' in server.page(at("new", page)) or page == "sql"


def test_export_opens_without_a_server(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    counts = export_run(runs / HOSTILE_RUN, out=out, rollouts=6)
    assert counts["rollouts"] == 14  # the newest six, and those that the learner left out
    pages = sorted(out.glob("*.html"))
    assert {"index.html", "rollouts.html", "contrast.html", "service.html"} <= {page.name for page in pages}
    for page in pages:
        text = page.read_text()
        for target in re.findall(r'(?:href|src)="([^"]+)"', text):
            assert target.startswith("#") or (out / target.partition("#")[0]).is_file(), f"{page.name}: {target}"
        assert "hx-get" not in text
        assert '<form method="get"' not in text
    rollouts = (out / "rollouts.html").read_text()
    assert len(re.findall(r"<tr data-row=", rollouts)) == 6
    dropped = re.search(r'<a href="(dropped-\d+\.html)"[^>]*>infra</a>', rollouts)[1]
    assert set(re.findall(r'<tr data-row="([^"]+)"', (out / dropped).read_text())) == {f"0000000{group}-3" for group in range(5)}
    assert "See them" not in (out / "index.html").read_text()  # a filter that a bundle has no page for is no link
    with pytest.raises(ValueError, match="not an empty folder"):
        export_run(runs / HOSTILE_RUN, out=out, rollouts=6)


def test_the_command_serves_loopback_until_it_is_stopped(runs: Path) -> None:
    process = start("view", "--dir", runs, "--json")
    assert process.stdout is not None
    line = process.stdout.readline()
    while '"url"' not in line and line:
        line = process.stdout.readline()
    url = re.search(r'"url": "(http://127\.0\.0\.1:\d+/)"', line)
    assert url, line
    with urllib.request.urlopen(url[1], timeout=30) as response:
        assert b"odd &amp; &lt;run&gt;" in response.read()
    process.send_signal(signal.SIGINT)
    finish(process, status=130)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": None, "export": Path("x")}, "name it"),
        ({"run": "nothing"}, "not a run"),
        ({"run": None, "runs_dir": Path("missing-folder")}, "no such folder"),
        ({"run": "a", "runs_dir": Path("b")}, "not both"),
    ],
)
def test_wrong_words_are_refused(changes: dict[str, object], message: str) -> None:
    words = {"run": None, "runs_dir": None, "port": None, "export": None, "rollouts": 5, "as_json": False, **changes}
    with pytest.raises(ValueError, match=message):
        view_command(words.pop("run"), **words)  # type: ignore[arg-type]


def test_nothing_is_fetched_from_elsewhere() -> None:
    """Scripts, styles and templates name no other host; vendored files keep their licences beside them."""
    static = ROOT / "rl" / "view" / "static"
    own = [*static.glob("*.*"), *(ROOT / "rl" / "view" / "templates").glob("*.html")]
    for path in own:
        assert not re.search(r"https?://(?!www\.w3\.org)", path.read_text()), path.name
    assert {path.name for path in (static / "vendor").iterdir()} == {
        "htmx.min.js",
        "htmx.LICENSE",
        "uPlot.min.js",
        "uPlot.min.css",
        "uPlot.LICENSE",
    }


def test_a_run_is_followed_not_read_again(runs: Path) -> None:
    run = OpenRun("one", runs / HOSTILE_RUN)
    assert run.metrics() is run.metrics()
    assert run.state().word == "live"
    assert len(run.metrics().steps) == STEPS
