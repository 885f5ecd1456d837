"""rl rescore: another reward over the rollouts of a run, on runs with real episodes and graders."""

import json
import os
import shutil
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from environments.records import StopReason
from environments.sources.build import build_tasks
from rewards.score import Score, ScoreStatus
from rl.cli import main
from rl.history.appended import ScoreAppender, Scorer
from rl.log.compact import Compactor, Retention
from rl.log.query import RunLog
from rl.log.runs import RunPaths
from rl.log.writer import RolloutWriter
from tests.history_run import SUMS, config_for, make_run, settings_as_found, write_sums
from tests.log_fakes import make_group, make_rollout
from tests.ring import ROOT

__all__ = ["settings_as_found"]
PLUGIN = """
import os
from pathlib import Path

from rewards.registry import reward
from rewards.score import Score, ScoreStatus


@reward("talks")
def talks(problem, response):
    return Score(reward=1.0, status=ScoreStatus.OK, log="a line\\n" * 5000)


@reward("terse")
def terse(problem, response):
    return 1.0 if len(response) < 12 else -1.0


@reward("flaky")
def flaky(problem, response):
    mark = Path(os.environ["FLAKY"])
    if mark.exists():
        raise OSError("the judge is away")
    return 1.0


@reward("once")
def once(problem, response):
    mark = Path(os.environ["FLAKY"]) / str(hash((problem.task.id, response)))
    if not mark.exists():
        mark.mkdir()
        raise OSError("the first time always fails")
    return 1.0
"""


def reply(episode: str, turn: int) -> str:
    """Two of four right: a short and a long one; of the wrong ones the first is short."""
    group, _, sample = episode.partition("-")
    answer = 2 * ORDER[int(group)]
    return (rf"\boxed{{{answer}}}", rf"That makes \boxed{{{answer}}}, surely.", r"\boxed{99}", r"I should say \boxed{98}.")[int(sample)]


ORDER: list[int] = []


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rescore")
    (folder / "plugin.py").write_text(PLUGIN)
    root = folder / "runs" / "sums"
    root.parent.mkdir()
    config = config_for(
        root, tasks={"sums": {"kind": "jsonl", "env": "math", "path": str(write_sums(folder))}}, objective={"name": "dr_grpo"}
    )
    ORDER[:] = [int(build_tasks(config).at(index).task.id.removeprefix("sum-")) for index in range(4)]
    make_run(root, config, reply)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run's folder, in which a test may do anything; its tasks are the original's."""
    shutil.copytree(made / "runs", tmp_path / "runs")
    shutil.copy(made / "plugin.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rescore(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0, run: str = "sums") -> dict[str, Any]:
    assert main(["rescore", run, "--plugin", "plugin.py", "--json", *words]) == status
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def rows(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    with RunLog(folder / "runs" / "sums") as log:
        assert not log.problems
        return list(log.query(sql).rows)


def test_a_new_reward_is_appended_and_what_it_changes_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {path: path.read_bytes() for path in (folder / "runs").rglob("*") if path.is_file()}
    report = rescore(capsys, "--reward", "terse", "--name", "short")
    assert (report["scorer"], report["scored"], report["scored_earlier"], report["failed"]) == ("short", 16, 0, {})
    (source,) = report["sources"]
    assert (source["source"], source["split"], source["n"]) == ("sums", "train", 16)
    assert (source["before"]["passed"], source["before"]["pass_rate"], source["before"]["mean"]) == (8, 0.5, 0.0)
    assert (source["after"]["passed"], source["after"]["graded"]) == (8, 16)
    # By Dr. GRPO's rule the long right answer loses what the short wrong one gains; the other two keep their signs.
    assert (report["groups_compared"], report["groups_incomplete"], len(report["groups"])) == (4, 0, 4)
    for group in report["groups"]:
        flips = {one["rollout_id"][-1]: one["flips"] for one in group["rollouts"]}
        assert flips == {"0": False, "1": True, "2": True, "3": False}
        assert [one["before"]["advantage"] for one in group["rollouts"]] == [1.0, 1.0, -1.0, -1.0]
        assert [one["after"]["advantage"] for one in group["rollouts"]] == [1.0, -1.0, 1.0, -1.0]
    assert all(path.read_bytes() == data for path, data in files.items()), "what was there is never rewritten"
    scored = rows(folder, "SELECT live, scorer, count(*), sum(value), count(DISTINCT scorer_hash) FROM scores GROUP BY ALL ORDER BY live")
    assert scored == [(False, "short", 16, 0.0, 1), (True, "math", 16, 0.0, 1)]


def test_the_advantages_before_are_those_that_were_trained_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = rescore(capsys, "--reward", "terse")
    trained = dict(rows(folder, "SELECT rollout_id, advantage FROM learner WHERE admitted"))
    told = {one["rollout_id"]: one["before"]["advantage"] for group in report["groups"] for one in group["rollouts"]}
    assert told == trained and len(told) == 16


def test_a_baseline_of_the_batch_needs_the_whole_batch(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "runs" / "batches"
    root.parent.mkdir()
    task = {"kind": "jsonl", "env": "math", "path": str(made / "sums.jsonl")}
    make_run(root, config_for(root, tasks={"sums": task}, objective={"name": "reinforce_pp"}), reply, batch=2)
    words = ("rescore", str(root), "--plugin", str(made / "plugin.py"), "--reward", "terse", "--json")
    for where, compared, incomplete in (("group_index = 0", 0, 1), ("group_index < 3", 2, 1), ("true", 4, 0)):
        assert main([*words, "--where", where]) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["groups_compared"], report["groups_incomplete"]) == (compared, incomplete)
    with RunLog(root) as log:
        trained = dict(log.query("SELECT rollout_id, advantage FROM learner WHERE admitted").rows)
    assert {one["rollout_id"]: one["before"]["advantage"] for group in report["groups"] for one in group["rollouts"]} == trained


def test_long_outcomes_are_in_memory_a_few_at_a_time(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same report, whatever is read at once."""
    root = tmp_path / "runs" / "long"
    root.parent.mkdir()
    config = config_for(root, tasks={"sums": {"kind": "jsonl", "env": "math", "path": str(made / "sums.jsonl")}})
    groups = make_run(root, config, reply, batch=2)
    with RolloutWriter(root, run_id="r", attempt=1, writer="w1", tokens=False) as writer:
        for group in groups:  # the same once more, with a megabyte from the environment
            rollouts = [replace(rollout, outcome={"printed": rollout.rollout_id * 100_000}) for rollout in group.rollouts]
            writer.write_group(replace(group, rollouts=tuple(rollouts)))
    shutil.copytree(root, tmp_path / "runs" / "other")
    words = ("--plugin", str(made / "plugin.py"), "--reward", "terse", "--json")
    assert main(["rescore", str(tmp_path / "runs" / "other"), *words]) == 0
    whole = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # two are graded at a time
    monkeypatch.setattr("rl.history.rescore._CHUNK", 2)
    monkeypatch.setattr("rl.history.rescore._ROWS_AT_ONCE", 3)
    monkeypatch.setattr("rl.history.signs._GROUPS_AT_ONCE", 1)
    monkeypatch.setattr("rl.history.problems._KNOWN", 1)
    tracemalloc.start()
    assert main(["rescore", str(root), *words]) == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert {**json.loads(capsys.readouterr().out), "run": whole["run"]} == whole and whole["scored"] == 16 and whole["groups"]
    assert peak < 12 * 2**20, "sixteen outcomes are 17 MB of JSON, and as much again when they are read"


def test_only_what_is_missing_is_scored(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = rescore(capsys, "--reward", "terse", "--where", "group_index < 2 AND sample_index > 0 -- by hand")
    assert (first["scored"], first["groups_compared"], first["groups_incomplete"]) == (6, 0, 2)
    with Compactor(folder / "runs" / "sums") as compactor:
        assert compactor.run(Retention()).merged > 0
    second = rescore(capsys, "--reward", "terse")
    assert (second["scored"], second["scored_earlier"], second["groups_compared"]) == (10, 6, 4)
    third = rescore(capsys, "--reward", "terse")
    assert (third["scored"], third["scored_earlier"], third["groups"]) == (0, 16, second["groups"])
    assert rows(folder, "SELECT count(*), count(DISTINCT rollout_id) FROM scores WHERE NOT live") == [(16, 16)]


def test_another_reward_of_the_same_name_is_another_scorer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hashes = {rescore(capsys, "--reward", reward, "--name", "mine")["scorer_hash"] for reward in ("terse", "math + 0.5*terse")}
    assert len(hashes) == 2
    counted = rows(folder, "SELECT scorer_hash, count(*) FROM scores WHERE scorer = 'mine' GROUP BY ALL")
    assert {row[0] for row in counted} == hashes and [row[1] for row in counted] == [16, 16]
    parts = rows(folder, "SELECT DISTINCT components['terse'].weight FROM scores WHERE map_contains(components, 'math')")
    assert parts == [(0.5,)]


def test_infrastructure_is_tried_again_and_never_a_score(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = folder / "mark"
    monkeypatch.setenv("FLAKY", str(mark))
    mark.mkdir()
    report = rescore(capsys, "--reward", "flaky", status=1)
    assert (report["scored"], report["failed"], report["sources"]) == (0, {"OSError: the judge is away": 16}, [])
    assert rows(folder, "SELECT count(*) FROM scores WHERE NOT live") == [(0,)]
    assert rescore(capsys, "--reward", "once")["scored"] == 16, "each fails once and is asked again"
    shutil.rmtree(mark)
    assert rescore(capsys, "--reward", "flaky")["scored"] == 16


def test_a_run_that_goes_on_meanwhile_keeps_both(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A worker writes groups and a compactor merges parts while scores are appended."""
    root = folder / "runs" / "sums"
    stop = threading.Event()

    def go_on() -> None:
        with RolloutWriter(root, run_id="r", attempt=1, writer="w1", tokens=True) as writer:
            index = 100
            while not stop.is_set():
                writer.write_group(make_group(index, version=50))
                writer.flush()
                with Compactor(root) as compactor:
                    compactor.run(Retention())
                index += 1

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        report = rescore(capsys, "--reward", "terse", "--where", "source = 'sums' AND dispatch_version < 50")
    finally:
        stop.set()
        thread.join()
    assert report["scored"] == 16
    assert rows(folder, "SELECT count(*) FROM scores WHERE NOT live") == [(16,)]


def test_two_at_a_time_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ScoreAppender(folder / "runs" / "sums", Scorer(name="a", hash="b")):
        assert main(["rescore", "sums", "--reward", "math"]) == 2
    assert "is being rescored already" in capsys.readouterr().err


def test_a_long_log_of_the_scorer_is_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rescore(capsys, "--reward", "talks", "--where", "sample_index = 0")
    with Compactor(folder / "runs" / "sums") as compactor:
        compactor.run(Retention())
    with RunLog(folder / "runs" / "sums") as log:
        ((reference, count),) = log.query("SELECT log_ref, count(*) FROM scores WHERE scorer = 'talks' GROUP BY ALL").rows
        assert count == 4 and log.blob(reference) == b"a line\n" * 5000


def test_a_person_reads_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rescore", "sums", "--reward", "terse", "--plugin", "plugin.py"]) == 0
    said = capsys.readouterr().out
    assert "before 8/16 = 0.500 [" in said and "4 of 4 groups change sign, 8 rollouts flip" in said
    assert "00000000-1   +1.0000 (1) ->  -1.0000 (-1)  flips" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere", "--reward", "math"), "'nowhere' is not a run"),
        (("sums", "--reward", "maths"), "did you mean 'math'?"),
        (("sums", "--reward", "math +"), "a name is missing"),
        (("sums", "--reward", "code"), "reward 'code' cannot grade problem sum-"),
        (("sums", "--reward", "swe"), "the run's tasks lack the field 'folder'"),
        (("sums", "--reward", "math", "--where", "no_such = 1"), "no_such"),
        (("sums", "--reward", "math", "--where", "reward > 7"), "no rollout of runs/sums is selected by --where 'reward > 7'"),
        (("sums", "--reward", "math", "--plugin", "gone.py"), "--plugin: no file gone.py"),
    ],
)
def test_wrong_input_is_told(folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str) -> None:
    assert main(["rescore", *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and not captured.out
    assert rows(folder, "SELECT count(*) FROM scores WHERE NOT live") == [(0,)]


def test_changed_tasks_are_an_error_that_names_them(made: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = RunPaths(root=folder / "runs" / "sums").config
    path.write_text(path.read_text().replace(str(made / "sums.jsonl"), str(folder / "sums.jsonl")))
    write_sums(folder, [*SUMS, {"id": "more", "question": "1", "answer": "1"}])
    assert rescore(capsys, "--reward", "math", "--where", "sample_index = 0")["scored"] == 4, "rows that came later change nothing"
    for changed, message in (
        ([{**SUMS[0], "answer": "7"}, *SUMS[1:]], "task 'sum-0' of rollout "),
        (SUMS[1:], "is no longer in tasks.sums ("),
        ([{**row, "id": f"{row['id']}x"} for row in SUMS], "is no longer in tasks.sums ("),
    ):
        write_sums(folder, changed)
        assert main(["rescore", "sums", "--reward", "math"]) == 2
        said = capsys.readouterr().err
        assert message in said and f"{folder}/sums.jsonl" in said, said
    os.unlink(folder / "sums.jsonl")
    assert main(["rescore", "sums", "--reward", "math"]) == 2
    assert "the run's tasks cannot be read again: tasks.sums.path" in capsys.readouterr().err


def test_what_a_log_no_longer_has_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(ROOT / "tests/data/log_v1", folder / "runs" / "old")
    assert main(["rescore", "old", "--reward", "math"]) == 2
    assert "schema 1" in capsys.readouterr().err
    RunPaths(root=folder / "runs" / "sums").config.unlink()
    assert main(["rescore", "sums", "--reward", "math"]) == 2
    assert "has no config.yaml" in capsys.readouterr().err


def test_episodes_without_an_end_are_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder / "runs" / "sums"
    broken = make_rollout("00000009-0", score=Score(reward=None, status=ScoreStatus.INFRA, reason="gone"), stop_reason=StopReason.ERROR)
    with RolloutWriter(root, run_id="r", attempt=1, writer="w1", tokens=True) as writer:
        writer.write_group(make_group(9, rollouts=[broken]))
    report = rescore(capsys, "--reward", "terse")
    assert report["scored"] == 16 and report["left_out"] == {"the infrastructure cut the episode off": 1}
