"""Compaction, retention, dropped records, damaged files, blobs, older logs: what is in the log stays in it, or is said to be gone."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from environments.records import Message
from rewards.score import Score, ScoreStatus
from rl.log.alive import Heartbeat, RunState, run_state
from rl.log.compact import Compacted, CompactionRuns, Compactor, Retention
from rl.log.health import log_health
from rl.log.list_runs import list_runs
from rl.log.manifest import read_manifests
from rl.log.metrics import MetricsWriter
from rl.log.query import RunLog, sql_command
from rl.log.queue import SealQueue
from rl.log.schema import DATASETS, SCHEMA_KEY, SCHEMA_VERSION
from rl.log.spans import SpanWriter
from rl.log.storage import LogWriteError
from rl.log.views import VIEWS
from rl.log.writer import LearnerWriter, RolloutWriter
from rl.records import Span
from tests.log_fakes import make_group, make_metrics, make_rollout, make_sample, make_stats, make_turn

OLD_LOG = Path(__file__).parent / "data" / "log_v1"


def rows(run: Path, sql: str) -> list[tuple]:
    with RunLog(run) as log:
        assert log.problems == ()
        return list(log.query(sql).rows)


def write_run(run: Path, *, groups: int = 12, versions: int = 4) -> None:
    """Small groups, one part for each; a learner row for each rollout."""
    with RolloutWriter(run, run_id="r", attempt=1, writer="w0", tokens=True) as out, LearnerWriter(run, attempt=1) as learner:
        for index in range(groups):
            group = make_group(index, version=index * versions // groups)
            out.write_group(group)
            out.flush()
            samples = [make_sample(rollout, group_index=index) for rollout in group.rollouts]
            learner.write_step(train_step=index + 1, groups=[group], samples=samples, stats=[make_stats(samples)])
            learner.flush()


def everything(run: Path) -> dict[str, list[tuple]]:
    with RunLog(run) as log:
        return {name: sorted(map(repr, log.query(f"SELECT * FROM {name}").rows)) for name in DATASETS}


def test_compaction_keeps_every_row_and_leaves_few_files(tmp_path: Path) -> None:
    write_run(tmp_path)
    before = everything(tmp_path)
    with Compactor(tmp_path) as compactor:
        done = compactor.run(Retention())
    assert done == Compacted(merged=60, written=5, retired=0, deleted=60)
    assert everything(tmp_path) == before
    assert len(list((tmp_path / "log").rglob("*.parquet"))) == 5
    with Compactor(tmp_path) as compactor:
        assert compactor.run(Retention()).merged == 0, "nothing is left to do"
    write_run(tmp_path / "other", groups=1, versions=1)
    shutil.copytree(tmp_path / "other" / "log", tmp_path / "log", dirs_exist_ok=True)  # the run goes on
    with Compactor(tmp_path) as compactor:
        compactor.run(Retention())
    assert rows(tmp_path, "SELECT count(*), count(DISTINCT dispatch_version) FROM rollouts") == [(24, 4)]


def test_compaction_leaves_young_versions_alone(tmp_path: Path) -> None:
    write_run(tmp_path)
    with Compactor(tmp_path) as compactor:
        compactor.run(Retention(), before=2)
    parts = [part for part in read_manifests(tmp_path / "log").sealed if part.dataset == "rollouts"]
    assert sorted((part.versions, part.compacted) for part in parts) == [((0, 1), True), *[((v, v), False) for v in (2, 2, 2, 3, 3, 3)]]


def test_an_open_log_stays_readable_while_it_is_compacted(tmp_path: Path) -> None:
    write_run(tmp_path)
    with RunLog(tmp_path) as log:
        with Compactor(tmp_path) as compactor:
            assert compactor.run(Retention()).deleted == 0
        assert list(log.query("SELECT count(*), sum(len(token_ids)) FROM tokens").rows) == [(24, 120)]
    with Compactor(tmp_path) as compactor:
        assert compactor.run(Retention()).deleted == 60
    assert rows(tmp_path, "SELECT count(*) FROM tokens") == [(24,)]


def test_two_compactions_exclude_each_other(tmp_path: Path) -> None:
    write_run(tmp_path, groups=1)
    with Compactor(tmp_path), pytest.raises(CompactionRuns, match="is being compacted already"):
        Compactor(tmp_path)


_KILLED_COMPACTIONS = """
import os, signal, sys
from pathlib import Path
from rl.log.compact import Compactor, Retention
def counted(real, left):
    def call(*arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    return call
for argument in sys.argv[2:]:
    run = Path(argument)
    if os.fork():  # no thread has been started yet
        os.wait()
        continue
    left = [int(run.name)]
    for name in ("write", "fsync"):
        setattr(os, name, counted(getattr(os, name), left))
    for name in ("rename", "unlink"):
        setattr(Path, name, counted(getattr(Path, name), left))
    with Compactor(run) as compactor:
        compactor.run(Retention(keep_tokens_versions=int(sys.argv[1])))
    os._exit(0)
"""


@pytest.mark.parametrize("keep", [0, 2])
def test_a_compaction_killed_at_any_call_loses_and_repeats_nothing(tmp_path: Path, keep: int) -> None:
    write_run(tmp_path / "run", groups=4)
    kept = {name: found for name, found in everything(tmp_path / "run").items() if name in ("rollouts", "turns", "scores")}
    runs = [tmp_path / str(calls) for calls in (0, 1, 2, 3, 5, 8, 12, 16, 20, 24, 28, 34, 45, 60)]
    for run in runs:
        shutil.copytree(tmp_path / "run", run)
    subprocess.run([sys.executable, "-c", _KILLED_COMPACTIONS, str(keep), *map(str, runs)], check=True, cwd=OLD_LOG.parents[2])
    for run in runs:
        for _ in range(2):  # as it was left, and after the next compaction
            with RunLog(run) as log:
                assert log.problems == ()
                found = {name: sorted(map(repr, log.query(f"SELECT * FROM {name}").rows)) for name in kept}
                assert found == kept
                assert next(log.query("SELECT count(*), count(DISTINCT rollout_id) FROM learner").rows) == (8, 8)
                assert next(log.query("SELECT count(*) = count(DISTINCT rollout_id), max(dispatch_version) FROM tokens").rows) == (True, 3)
            with Compactor(run) as compactor:
                compactor.run(Retention(keep_tokens_versions=keep))
        files = {path.resolve() for path in (run / "log").rglob("part-*")}
        assert files == {part.path.resolve() for part in read_manifests(run / "log").sealed}, "nothing is left over"


def test_retention_gives_up_tokens_and_arrays_of_old_versions_only(tmp_path: Path) -> None:
    write_run(tmp_path)
    narrow = "SELECT count(*), sum(advantage), sum(worst_index) FROM learner"
    before = rows(tmp_path, narrow)
    with Compactor(tmp_path) as compactor:
        assert compactor.run(Retention(keep_tokens_versions=1)).retired == 18
    assert rows(tmp_path, "SELECT DISTINCT dispatch_version FROM tokens") == [(3,)]
    assert rows(
        tmp_path, "SELECT count(learner_logprob), count(entropy), min(dispatch_version) FROM learner WHERE entropy IS NOT NULL"
    ) == [(6, 6, 3)]
    assert rows(tmp_path, narrow) == before
    assert rows(tmp_path, "SELECT count(*) FROM rollouts") == [(24,)]
    with RunLog(tmp_path) as log:
        assert {(part.dataset, part.versions[1] < 3) for part in log.retired} == {("tokens", True), ("learner", True)}
    with Compactor(tmp_path) as compactor:
        assert compactor.run(Retention(keep_tokens_versions=1)).retired == 0


def test_retention_by_size_takes_the_oldest_tokens_first(tmp_path: Path) -> None:
    write_run(tmp_path)
    sealed = read_manifests(tmp_path / "log").sealed
    total = sum(part.n_bytes for part in sealed)
    oldest = [part.n_bytes for part in sealed if part.dataset == "tokens" and part.versions[1] == 0]
    with Compactor(tmp_path) as compactor:
        assert compactor.run(Retention(max_bytes=total - sum(oldest) + 1), before=0).retired == len(oldest)
    assert rows(tmp_path, "SELECT min(dispatch_version), count(*) FROM tokens") == [(1, 18)]
    assert rows(tmp_path, "SELECT count(learner_logprob) FROM learner") == [(24,)]
    with Compactor(tmp_path) as compactor:
        compactor.run(Retention(max_bytes=1), before=0)
    assert rows(tmp_path, "SELECT count(*) FROM tokens") == [(0,)]
    assert rows(tmp_path, "SELECT count(learner_logprob), count(*) FROM learner") == [(0, 24)]


class Disk:
    """Seals when it is told to."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.sealing = threading.Event()
        self.sealed: list[str] = []

    def seal(self, items: list[str]) -> None:
        self.sealing.set()
        assert self.free.wait(60)
        self.sealed += items


def test_a_slow_disk_costs_optional_records_first_and_then_time() -> None:
    disk = Disk()
    queue: SealQueue[str] = SealQueue(seal=disk.seal, close=lambda: None, seconds=0.0, limit=100)
    queue.put("first", cost=40)
    assert disk.sealing.wait(60)
    assert not queue.spare(30, records={"tokens": 8}), "more than half would wait"
    queue.offer("span", cost=30, dataset="spans")
    queue.put("second", cost=50)
    late = threading.Thread(target=queue.put, args=("third",), kwargs={"cost": 50})
    late.start()
    time.sleep(0.05)
    assert late.is_alive(), "required records wait"
    assert queue.health.dropped == {"tokens": 8, "spans": 1} and queue.health.waits == 0
    disk.free.set()
    late.join()
    queue.close()
    assert disk.sealed == ["first", "second", "third"]
    assert queue.health.waits == 1 and queue.health.wait_seconds > 0


def test_a_disk_that_hangs_ends_every_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.log.queue._STUCK_SECONDS", 0.05)
    disk = Disk()
    queue: SealQueue[str] = SealQueue(seal=disk.seal, close=lambda: None, seconds=0.0, limit=100)
    queue.put("first", cost=90)
    for wait in (lambda: queue.put("second", cost=90), queue.flush, queue.close):
        with pytest.raises(LogWriteError, match="has taken nothing for 600 s: look at the file system"):
            wait()
    disk.free.set()


def test_dropped_tokens_are_counted_where_people_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.log.queue._MAX_WAITING", 40)
    disk = threading.Event()
    real = os.fsync
    out = RolloutWriter(tmp_path, run_id="r", attempt=1, writer="w0", tokens=True)
    monkeypatch.setattr(os, "fsync", lambda fd: (disk.wait(60), real(fd))[1])
    out._queue._limit = 40
    for index in range(3):
        out.write_group(make_group(index))
    disk.set()
    out.close()
    assert rows(tmp_path, "SELECT count(*) FROM rollouts") == [(6,)]
    kept = rows(tmp_path, "SELECT count(*) FROM tokens")[0][0]
    lost = 6 - kept
    assert lost > 0
    assert rows(tmp_path, "SELECT what, reason, n FROM drops") == [("log", "tokens", lost)]
    assert log_health(tmp_path / "log").dropped == {"tokens": lost}
    (summary,) = [run for run in list_runs(tmp_path.parent) if run.path == str(tmp_path)]
    assert summary.log_drops == {"tokens": lost}


def test_spans_cost_nothing_when_the_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    span = Span(name="train", started=1.0, ended=2.5, version=3, train_step=4)
    with SpanWriter(tmp_path, attempt=1, actor="loop") as out:
        out.record(span)
    assert rows(tmp_path, "SELECT actor, name, ended - started, train_step, dispatch_version FROM spans") == [("loop", "train", 1.5, 4, 3)]
    broken = SpanWriter(tmp_path, attempt=1, actor="w0")
    monkeypatch.setattr("rl.log.storage.write_file", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    broken.record(span)
    broken.close()
    broken.record(span)
    assert broken.health.dropped == {"spans": 1}


LONG = "".join(f"line {i}: \ud800 something was printed\n" for i in range(2_000))


def test_long_texts_are_kept_once_as_blobs(tmp_path: Path) -> None:
    score = Score(reward=0.0, status=ScoreStatus.POLICY_FAIL, log="FAILED test_x\n" * 1000)
    turns = [make_turn(context=[1], sampled=[2], text="<tool: sh>\nls\n</tool>"), make_turn(context=[3], sampled=[4], text="done")]
    messages = [
        Message(role="user", content=LONG),
        Message(role="assistant", content=turns[0].text),
        Message(role="tool", name="sh", content=LONG, exit_code=2),
        Message(role="assistant", content="done"),
    ]
    group = make_group(rollouts=[make_rollout(f"a-{i}", sample=i, turns=turns, messages=messages, score=score) for i in range(3)])
    with RolloutWriter(tmp_path, run_id="r", attempt=1, writer="w0", tokens=True) as out:
        out.write_group(group)
    assert len(list((tmp_path / "log" / "blobs" / "sha256").rglob("*.zst"))) == 2
    with RunLog(tmp_path) as log:
        tools = "SELECT role, tool, arguments, exit_code, text_chars, len(text) < 10000, policy_version FROM turns WHERE rollout_id = 'a-0'"
        assert list(log.query(tools + " ORDER BY message_index").rows) == [
            ("user", None, None, None, len(LONG), True, None),
            ("assistant", "sh", "ls", None, 21, True, 0),
            ("tool", "sh", None, 2, len(LONG), True, None),
            ("assistant", None, None, None, 4, True, 0),
        ]
        ((reference,),) = log.query("SELECT DISTINCT stdout_ref FROM turns WHERE stdout_ref IS NOT NULL").rows
        assert log.blob(reference).decode() == LONG.encode("utf-8", "backslashreplace").decode()
        ((text,),) = log.query("SELECT DISTINCT text FROM turns WHERE role = 'tool'").rows
        assert text.startswith("line 0: \\ud800 ") and "characters left out]\n" in text and text.endswith("was printed\n")
        ((scores, ends),) = log.query("SELECT DISTINCT log_ref, log FROM scores").rows
        assert log.blob(scores) == score.log.encode()
        assert ends.startswith("FAILED test_x\n") and "characters left out]" in ends and len(ends) < 4200
        for wrong in ("sha256:../../etc/passwd", "sha256:" + "0" * 64):
            with pytest.raises(ValueError):
                log.blob(wrong)
        path = next(path for path in (tmp_path / "log" / "blobs").rglob("*.zst") if path.stem == reference.removeprefix("sha256:"))
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(ValueError, match=r"damaged|cannot be read"):
            log.blob(reference)


@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 1.0])
def test_a_part_whose_bytes_rotted_is_named_and_left_out(tmp_path: Path, where: float, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, groups=4)
    part = sorted((tmp_path / "log" / "rollouts").rglob("*.parquet"))[1]
    data = bytearray(part.read_bytes())
    at = min(int(where * len(data)), len(data) - 64)
    data[at : at + 64] = b"\xff" * 64
    part.write_bytes(bytes(data))
    query = "SELECT count(DISTINCT group_id) AS n, max(rollouts) AS last FROM rollouts"
    assert sql_command(str(tmp_path), query, as_json=True) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["n"] == 3
    assert captured.err.startswith("left out: ") and part.name in captured.err


def test_files_carry_the_schema_version(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    write_run(tmp_path, groups=1)
    for path in (tmp_path / "log").rglob("*.parquet"):
        assert pq.read_schema(path).metadata[SCHEMA_KEY] == str(SCHEMA_VERSION).encode()


def test_a_log_of_the_first_schema_is_readable_by_every_view(tmp_path: Path) -> None:
    with RunLog(OLD_LOG) as old, RunLog(tmp_path) as empty:
        assert old.problems == ()
        for name in (*DATASETS, *VIEWS):
            shapes = [[row[:2] for row in log.query(f"DESCRIBE {name}").rows] for log in (old, empty)]
            assert shapes[0] == shapes[1]
        assert list(old.query("SELECT count(*), count(reward), count(env_version), count(flags) FROM rollouts").rows) == [(56, 56, 0, 0)]
        assert list(old.query("SELECT count(*), count(value), bool_and(live), count(scorer) FROM scores").rows) == [(56, 56, True, 0)]
        for name in ("contrast", "biography", "mismatch", "movers", "drops", "zero_variance"):
            assert list(old.query(f"FROM {name}").rows), name
    shutil.copytree(OLD_LOG, tmp_path / "copy")
    write_run(tmp_path / "copy", groups=3)  # the run was resumed by this version
    with Compactor(tmp_path / "copy") as compactor:
        compactor.run(Retention())
    assert rows(tmp_path / "copy", "SELECT count(*), count(max_tokens) FROM rollouts WHERE attempt = 1")[0][0] >= 56


def test_views_have_the_columns_that_are_documented(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        for name, view in VIEWS.items():
            assert log.query(f"FROM {name}").columns == tuple(view.columns), name


def test_views_answer_what_they_promise(tmp_path: Path) -> None:
    wrong = Score(reward=0.0, status=ScoreStatus.POLICY_FAIL)
    groups = [
        make_group(0, rollouts=[make_rollout("g0-0"), make_rollout("g0-1", sample=1, score=wrong)]),
        make_group(1, version=1),
        make_group(2, version=1, split="heldout"),
    ]
    samples = [make_sample(groups[0].rollouts[0], advantage=0.5), make_sample(groups[0].rollouts[1], advantage=-0.25)]
    with RolloutWriter(tmp_path, run_id="r", attempt=1, writer="w0", tokens=True) as out:
        for group in groups:
            out.write_group(group)
    with LearnerWriter(tmp_path, attempt=1) as learner:
        learner.write_step(train_step=1, groups=groups[:2], samples=samples, stats=[make_stats(samples)])
    with MetricsWriter(tmp_path / "metrics.jsonl", attempt=1, restored_step=0) as metrics:
        metrics.step(make_metrics(1, drops={"zero_variance": 2, "prompt_too_long": 3}))
    assert rows(tmp_path, "SELECT group_id, n, won, winner, loser FROM contrast") == [("00000000", 2, 1, "g0-0", "g0-1")]
    assert rows(tmp_path, "SELECT split, dispatch_version, n, won FROM biography WHERE task_id = 'task-2'") == [("heldout", 1, 2, 2)]
    assert rows(tmp_path, "SELECT rank, rollout_id, pull, share FROM movers") == [(1, "g0-0", 1.0, 2 / 3), (2, "g0-1", 0.5, 1 / 3)]
    assert rows(tmp_path, "SELECT train_step, what, reason, n, share FROM drops ORDER BY reason") == [
        (1, "group", "prompt_too_long", 3, None),
        (1, "rollout", "zero_variance", 2, 0.5),
    ]
    assert rows(tmp_path, "FROM zero_variance") == [(0, 1, 0, 0.0, 0, 0), (1, 1, 1, 1.0, 1, 0)]
    assert rows(tmp_path, "SELECT part, dispatch_version, n, mean FROM reward_parts") == [("answer", 0, 1, 1.0), ("answer", 1, 2, 1.0)]
    found = rows(tmp_path, "SELECT rollout_id, token_index, token_id, difference FROM mismatch ORDER BY 1")
    assert [(row[0], row[2]) for row in found] == [("g0-0", [7, 8][found[0][1]]), ("g0-1", [7, 8][found[1][1]])]
    assert found[0][3] == pytest.approx(1e-3, abs=1e-6)


def test_the_state_of_a_run_is_told_from_its_process(tmp_path: Path) -> None:
    path = tmp_path / "alive.json"
    assert run_state(path, all_steps_done=True) == (RunState.FINISHED, "")
    beat = Heartbeat(path)
    assert run_state(path, all_steps_done=False) == (RunState.LIVE, "")
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"process_started": values["process_started"] - 100}))  # another process has its id now
    assert run_state(path, all_steps_done=False) == (RunState.DIED, "")
    beat.end("RunFailed: the disk is full")
    assert run_state(path, all_steps_done=False) == (RunState.STOPPED, "RunFailed: the disk is full")
    path.write_text(json.dumps(values | {"host": "elsewhere"}))
    assert run_state(path, all_steps_done=False)[0] is RunState.LIVE, "it was touched just now"
    os.utime(path, (0, 0))
    assert run_state(path, all_steps_done=False)[0] is RunState.DIED


_KILLED_WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from rl.log.flags import Flags
from rl.log.writer import LearnerWriter, RolloutWriter
from rewards.score import Score, ScoreStatus
from tests.log_fakes import make_group, make_rollout, make_sample, make_stats
run = Path(sys.argv[1])
out = RolloutWriter(run, run_id="r", attempt=1, writer="w0", tokens=True, flagger=Flags())
learner = LearnerWriter(run, attempt=1)
for index in range(10**9):
    score = Score(reward=0.0, status=ScoreStatus.POLICY_FAIL, log=f"log of {index}\\n" * 500)
    group = make_group(index, version=index % 3)
    group = replace(group, rollouts=tuple(replace(rollout, score=score) for rollout in group.rollouts))
    out.write_group(group)
    samples = [make_sample(rollout, group_index=index) for rollout in group.rollouts]
    learner.write_step(train_step=index + 1, groups=[group], samples=samples, stats=[make_stats(samples)])
    out.flush()
    learner.flush()
    print(index + 1, flush=True)
"""


def test_a_writer_killed_at_random_moments_leaves_whole_groups_and_blobs(tmp_path: Path) -> None:
    chance = random.Random(5)
    for kill in range(4):
        run = tmp_path / str(kill)
        command = [sys.executable, "-c", _KILLED_WRITER, str(run)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=OLD_LOG.parents[2])
        assert process.stdout is not None
        first = int(process.stdout.readline())
        time.sleep(chance.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        flushed = max([first, *(int(line) for line in process.stdout.read().split("\n")[:-1] if line)])
        process.wait()
        with RunLog(run) as log:
            assert log.problems == ()
            n, groups = next(log.query("SELECT count(*), count(DISTINCT group_id) FROM rollouts").rows)
            assert n == 2 * groups and groups >= flushed
            for other in ("tokens", "scores"):
                assert next(log.query(f"SELECT count(*) FROM rollouts JOIN {other} USING (rollout_id)").rows) == (n,)
            assert next(log.query("SELECT count(*) >= ? FROM learner", (2 * flushed,)).rows) == (True,)
            for (reference,) in list(log.query("SELECT DISTINCT log_ref FROM scores").rows):
                assert log.blob(reference).startswith(b"log of ")


def test_scores_may_be_appended_later_and_the_live_one_stays_first(tmp_path: Path) -> None:
    import pyarrow as pa

    from rl.log.storage import PartWriter, Piece

    write_run(tmp_path, groups=1)
    (live,) = rows(tmp_path, "SELECT attempt, logged FROM scores WHERE rollout_id = '00000000-0'")
    row = {
        "rollout_id": "00000000-0",
        "attempt": live[0],
        "logged": live[1],
        "scorer": "stricter",
        "live": False,
        "value": 0.5,
        "status": "ok",
    }
    later = PartWriter(tmp_path / "log", writer="rescore", attempt=1)
    later.seal([Piece(dataset="scores", dispatch_version=0, table=pa.Table.from_pylist([row], schema=DATASETS["scores"]))])
    later.close()
    found = rows(tmp_path, "SELECT live, scorer, value FROM scores WHERE rollout_id = '00000000-0' ORDER BY live DESC, scored")
    assert found == [(True, None, 1.0), (False, "stricter", 0.5)]


def test_runs_are_listed_with_their_state(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_run(tmp_path / name, groups=2, versions=1)
        with MetricsWriter(tmp_path / name / "metrics.jsonl", attempt=1, restored_step=0) as metrics:
            metrics.step(replace(make_metrics(1), time=float(len(name))))
    (tmp_path / "second" / "config.yaml").write_text("run: {steps: 1}")
    beat = Heartbeat(tmp_path / "first" / "alive.json")
    found = list_runs(tmp_path)
    beat.end("finished")
    assert [(run.name, run.state, run.steps, run.steps_in_all, run.rollouts) for run in found] == [
        ("second", RunState.FINISHED, 1, 1, 4),
        ("first", RunState.LIVE, 1, None, 4),
    ]
    assert found[0].pass_rate == {"sums": 0.5, "code": 0.25}
