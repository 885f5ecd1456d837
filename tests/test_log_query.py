"""`rl sql`, `rl show` and `rl plot` on real files: answers, refusals, hostile text."""

import json
import re
from pathlib import Path

import matplotlib.image
import pytest

from environments.records import Message
from rewards.score import Score, ScorePart, ScoreStatus
from rl.log.metrics import EvalMetrics, MetricsWriter
from rl.log.plot import plot_command
from rl.log.query import QueryError, RunLog, json_line, sql_command
from rl.log.runs import prepare_run
from rl.log.show import show_command
from rl.log.text import visible
from rl.log.writer import LearnerWriter, RolloutWriter
from tests.log_fakes import make_group, make_metrics, make_rollout, make_sample, make_stats, make_turn

HOSTILE = "fine\x1b]0;owned\x07\x1b[2J\u202egnp.exe\r[bold]not markup[/bold]\x9b31m"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two steps of a run; rollout `g1-0` is hostile."""
    root = tmp_path / "it's a [run]*"
    prepare_run(root)
    hostile = make_rollout(
        "g1-0",
        turns=[make_turn(context=[1], sampled=[5, 6, 7], text=HOSTILE)],
        outcome={"patch": HOSTILE + "-" * 5000 + "the end"},
        score=Score(
            reward=0.0,
            status=ScoreStatus.POLICY_FAIL,
            reason=HOSTILE,
            parts={"answer": ScorePart(value=0.0, reason=HOSTILE)},
            log=f"printed: {HOSTILE}\n" + "-" * 300_000 + "\nthe last test",
        ),
    )
    groups = [make_group(0), make_group(1, version=1, rollouts=[hostile, make_rollout("g1-1", sample=1)])]
    samples = [make_sample(rollout, advantage=-0.5) for rollout in groups[1].rollouts]
    with RolloutWriter(root, run_id="r", attempt=1, writer="w0", tokens=True) as out:
        for group in groups:
            out.write_group(group)
    with LearnerWriter(root, attempt=1) as learner:
        learner.write_step(train_step=2, groups=groups, samples=samples, stats=[make_stats(samples)])
    with MetricsWriter(root / "metrics.jsonl", attempt=1, restored_step=0) as metrics:
        for step in range(1, 12):
            metrics.step(make_metrics(step, loss=float("inf") if step == 1 else 0.1))
        for step in (0, 11):
            metrics.evaluated(EvalMetrics(step=step, time=0.0, split="heldout", source="sums", passed=3 + step, graded=20))
    return root


def test_sql_prints_json_lines(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sql_command(str(run), "SELECT env, count(*) AS n, avg(reward) AS reward FROM rollouts GROUP BY ALL;", as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == {"env": "math", "n": 4, "reward": 0.75}


def test_sql_prints_a_table_that_hostile_text_cannot_drive(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sql_command(str(run), "SELECT rollout_id, text FROM turns WHERE rollout_id = 'g1-0' AND role = 'assistant'", as_json=False) == 0
    out = capsys.readouterr().out
    assert r"fine\x1b]0;owned\x07" in out
    assert "[bold]not markup[/bold]" in out
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out)


@pytest.mark.parametrize(
    "query",
    [
        "COPY rollouts TO '{dir}/stolen.parquet'",
        "EXPLAIN ANALYZE COPY rollouts TO '{dir}/stolen.parquet'",
        "SELECT * FROM query('COPY rollouts TO ''{dir}/stolen.parquet''')",
        "WITH x AS (COPY rollouts TO '{dir}/stolen.parquet') SELECT 1",
        "COPY rollouts TO '{part}'",
        "SELECT 1; COPY rollouts TO '{dir}/stolen.parquet'",
        "EXPORT DATABASE '{dir}/stolen.parquet'",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM read_parquet('{dir}/**/*.parquet')",
        "SELECT * FROM read_text('{part}/../../../../metrics.jsonl')",
        "ATTACH '{dir}/stolen.parquet'",
        "SET enable_external_access = true",
        "RESET lock_configuration",
        "PRAGMA enable_profiling = 'json'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "CREATE TABLE x AS SELECT 1",
        "DROP VIEW rollouts",
        "DELETE FROM metrics",
        "SELECT getenv('HOME')",
        "SELECT * FROM run",  # a Python variable of the caller
        "",
        "SELEC 1",
        "SELECT nothing FROM rollouts",
        "SELECT * FROM rollouts WHERE rollout_id = ?",
        "SELECT '\ud800'",
    ],
)
def test_queries_that_would_write_or_read_elsewhere_are_refused(run: Path, query: str, capsys: pytest.CaptureFixture[str]) -> None:
    part = next((run / "log" / "rollouts").rglob("*.parquet"))
    before = part.read_bytes()
    places = {"dir": str(run.parent).replace("'", "''"), "part": str(part).replace("'", "''")}
    assert sql_command(str(run), query.format(**places), as_json=True) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.strip()
    assert "Traceback" not in captured.err and "root:" not in captured.err
    assert not (run.parent / "stolen.parquet").exists()
    assert part.read_bytes() == before


@pytest.mark.parametrize("query", ["FROM metrics", "DESCRIBE tokens", "SHOW TABLES", "SUMMARIZE rollouts", "WITH x AS (FROM evals) FROM x"])
def test_other_ways_to_ask_are_fine(run: Path, query: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sql_command(str(run), query, as_json=True) == 0
    assert capsys.readouterr().out


def test_the_questions_of_the_documentation_are_one_query_each(run: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "logs.md").read_text()
    queries = re.findall(r'rl sql quickstart "(.+?)"', text, flags=re.DOTALL)
    assert len(queries) >= 8
    with RunLog(run) as log:
        for query in queries:
            assert log.query(query).columns


@pytest.mark.parametrize("exists", ["nothing", "manifest"])
def test_a_run_without_rollouts_has_empty_views(tmp_path: Path, exists: str) -> None:
    if exists == "manifest":
        RolloutWriter(tmp_path, run_id="r", attempt=1, writer="w0", tokens=True).close()
    with RunLog(tmp_path) as log:
        for view in ("rollouts", "turns", "tokens", "learner", "metrics", "evals", "attempts"):
            result = log.query(f"SELECT * FROM {view}")
            assert list(result.rows) == []
            assert len(result.columns) >= 3
        assert list(log.query("SELECT dispatch_version, parts['answer'].value FROM rollouts WHERE reward > 0").rows) == []


def test_empty_and_full_views_have_the_same_columns(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with RunLog(run) as full, RunLog(tmp_path / "empty") as empty:
        for view in ("rollouts", "turns", "tokens", "learner", "metrics", "evals"):
            shapes = [[row[:2] for row in log.query(f"DESCRIBE {view}").rows] for log in (full, empty)]
            assert shapes[0] == shapes[1]


def test_metrics_and_evals_are_queryable(run: Path) -> None:
    with RunLog(run) as log:
        assert list(log.query("SELECT step, pass_rate['code'], phases['train'], drops['zero_variance'] FROM metrics LIMIT 1").rows) == [
            (1, 0.25, 0.8, 1)
        ]
        assert list(log.query("SELECT step, pass_rate, graded, low < pass_rate FROM evals ORDER BY step").rows) == [
            (0, 0.15, 20, True),
            (11, 0.7, 20, True),
        ]


def test_json_is_strict_whatever_the_values(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = (
        "SELECT 'NaN'::DOUBLE AS a, ['inf'::FLOAT, 1] AS b, 1.5::DECIMAL(5,2) AS c, DATE '2026-01-02' AS d, '\\xAA'::BLOB AS e, "
        "MAP {1: '-inf'::DOUBLE} AS f, 170141183460469231731687303715884105727::HUGEINT AS g, 1 AS a"
    )
    assert sql_command(str(run), query, as_json=True) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found == {"a": None, "b": [None, 1.0], "c": 1.5, "d": "2026-01-02", "e": "aa", "f": {"1": None}, "g": 2**127 - 1, "a_2": 1}


def test_a_long_table_is_cut_with_a_word(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sql_command(str(run), "SELECT * FROM range(5000)", as_json=False) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1001
    assert "first 1000 rows" in captured.err


def test_show_prints_one_rollout_safely(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show_command(str(run), "g1-0", as_json=False) == 0
    out = capsys.readouterr().out
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out)
    assert "[bold]not markup[/bold]" in out
    for expected in ("policy_fail", "trained in step 2", "-0.5000", "least likely of 3", "2+2?", '{"patch":'):
        assert expected in out
    assert "the end" not in out, "an outcome is shortened"
    assert r"printed: fine\x1b]0;owned" in out and "more characters: see --json" in out and "the last test" not in out


def test_show_as_json_has_everything(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show_command(str(run), "g1-0", as_json=True) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["messages"][1]["text"] == HOSTILE
    assert found["tokens"]["token_ids"] == [1, 5, 6, 7]
    assert found["learner"][0]["advantage"] == -0.5
    (score,) = found["scores"]
    assert score["live"] and score["log"].startswith(f"printed: {HOSTILE}\n") and score["log"].endswith("---\nthe last test")
    assert len(score["log"]) < 262_144 + 100 and "characters left out]" in score["log"], "a log has a largest size"
    assert [other["rollout_id"] for other in found["group"]] == ["g1-0", "g1-1"]


def test_show_says_why_a_rollout_was_not_trained_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show_command(str(run), "00000000-1", as_json=False) == 0
    assert "step 2 did not train on it: zero_variance" in capsys.readouterr().out


def test_show_names_the_nearest_ids(run: Path) -> None:
    with pytest.raises(ValueError, match="nearest ids are g1-0"):
        show_command(str(run), "g1-00", as_json=False)
    with pytest.raises(ValueError, match="nearest ids"):
        show_command(str(run), "' OR 1=1 --", as_json=False)


def test_show_without_tokens_and_learner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = make_rollout(
        "a-0", turns=[], score=Score(reward=None, status=ScoreStatus.INFRA, reason="sandbox"), messages=[Message(role="user", content="")]
    )
    with RolloutWriter(tmp_path, run_id="r", attempt=1, writer="w0", tokens=False) as out:
        out.write_group(make_group(rollouts=[failed]))
    assert show_command(str(tmp_path), "a-0", as_json=False) == 0
    out = capsys.readouterr().out
    assert "not in the log" in out and "not seen by the learner" in out and "infra" in out


def test_unknown_runs_are_user_errors(tmp_path: Path) -> None:
    for command in (lambda r: sql_command(r, "SELECT 1", as_json=False), lambda r: show_command(r, "x", as_json=True)):
        with pytest.raises(ValueError, match="is not a run"):
            command(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="is not a run"):
        plot_command("", out=None, as_json=False)


def test_plot_draws_a_picture(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plot_command(str(run), out=None, as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(run / "curves.png"), "steps": 11, "evals": 2}
    picture = matplotlib.image.imread(run / "curves.png")
    assert picture.shape[0] > 800 and picture.shape[1] > 1200
    assert len({tuple(pixel) for pixel in picture[::7, ::7, :3].reshape(-1, 3).round(1)}) > 8  # not a blank page


def test_plot_of_hostile_names_nan_and_single_steps(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path / "metrics.jsonl", attempt=1, restored_step=0) as out:
        nan = float("nan")
        out.step(
            make_metrics(1, reward_mean=nan, pass_rate={"$x^": nan, "_hidden": 0.5}, entropy=nan, kl=nan, staleness_mean=nan, phases={})
        )
    assert plot_command(str(tmp_path), out=tmp_path / "x.png", as_json=False) == 0
    assert (tmp_path / "x.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="choose another --out"):
        plot_command(str(tmp_path), out=tmp_path / "missing" / "x.png", as_json=False)


def test_plot_writes_png_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.jpg: the picture is a PNG file"):
        plot_command(str(tmp_path), out=tmp_path / "x.jpg", as_json=False)


def test_plot_without_steps_is_a_user_error(tmp_path: Path) -> None:
    prepare_run(tmp_path / "fresh")
    with pytest.raises(ValueError, match="no training step has finished"):
        plot_command(str(tmp_path / "fresh"), out=None, as_json=False)


def test_visible_keeps_text_and_escapes_what_a_terminal_acts_on() -> None:
    assert visible("naïve 数学 ∑\n\tok") == "naïve 数学 ∑\n\tok"
    assert visible("a\nb", one_line=True) == r"a\nb"
    assert visible("\x1b[31m\u200b\u2028\ue000\ud800\r") == r"\x1b[31m\u200b\u2028\ue000\ud800\r"


def test_a_query_is_consistent_while_the_run_goes_on(run: Path) -> None:
    with RunLog(run) as log:
        with RolloutWriter(run, run_id="r", attempt=1, writer="w9", tokens=True) as out:
            out.write_group(make_group(50))
        assert list(log.query("SELECT count(*) FROM rollouts").rows) == [(4,)]
    with RunLog(run) as log:
        assert list(log.query("SELECT count(*) FROM rollouts").rows) == [(6,)]
        with pytest.raises(QueryError):
            log.query("UPDATE metrics SET step = 1")
    assert json_line({"x": float("nan")}) == '{"x": null}'
