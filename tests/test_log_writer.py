"""The log on disk: what is flushed is readable whatever happens next, and nothing torn ever is."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from environments.records import Message
from rewards.score import Score, ScoreStatus
from rl.cli import main
from rl.log.manifest import read_manifests
from rl.log.metrics import EvalMetrics, MetricsWriter, read_metrics, summarize_step
from rl.log.query import QueryError, RunLog
from rl.log.runs import RunPaths, find_run, prepare_run
from rl.log.storage import LogWriteError
from rl.log.writer import LearnerWriter, RolloutWriter
from tests.log_fakes import make_group, make_metrics, make_rollout, make_sample, make_stats, make_turn


def writer(run: Path, *, name: str = "w0", attempt: int = 1, tokens: bool = True) -> RolloutWriter:
    return RolloutWriter(run, run_id="r", attempt=attempt, writer=name, tokens=tokens)


def rows(run: Path, sql: str) -> list[tuple]:
    with RunLog(run) as log:
        return list(log.query(sql).rows)


def test_a_rollout_comes_back_with_every_column(tmp_path: Path) -> None:
    with writer(tmp_path) as out:
        out.write_group(make_group(3, version=5))
    found = rows(
        tmp_path,
        "SELECT rollout_id, dispatch_version, attempt, group_index, seed, source, env, reward, parts['answer'].reason, "
        "timings['generate'], prompt_tokens, sampled_tokens, env_tokens, policy_min, preview, status FROM rollouts ORDER BY 1",
    )
    assert found[0] == ("00000003-0", 5, 1, 3, str(2**64 - 1), "sums", "math", 1.0, "4 is 4", 1.5, 3, 2, 0, 0, "4", "ok")
    assert len(found) == 2
    assert rows(tmp_path, "SELECT role, text, turn, token_start, token_end, finish_reason FROM turns WHERE rollout_id = '00000003-0'") == [
        ("user", "2+2?", None, None, None, None),
        ("assistant", "4", 0, 3, 5, "stop_token"),
    ]


def test_an_outcome_is_kept_as_json(tmp_path: Path) -> None:
    patch = {"patch": "--- a/x\n+\ud800 \x00"}
    with writer(tmp_path) as out:
        out.write_group(make_group(rollouts=[make_rollout("a-0", outcome=patch), make_rollout("a-1", sample=1)]))
    (with_one, without) = rows(tmp_path, "SELECT outcome FROM rollouts ORDER BY rollout_id")
    assert json.loads(with_one[0]) == patch and without == (None,)


def test_a_token_array_of_32k_values_round_trips_exactly(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    n = 32_768
    turn = make_turn(context=random.integers(0, 150_000, 700), sampled=random.integers(0, 150_000, n))
    turn.completion.logprobs_T[:] = -random.exponential(size=n).astype(np.float32)
    turn.completion.versions_T[n // 2 :] = 9
    with writer(tmp_path) as out:
        out.write_group(make_group(rollouts=[make_rollout("a-0", turns=[turn])]))
    ids, segments, logprobs, versions = rows(tmp_path, "SELECT token_ids, segments, behaviour_logprob, version_segments FROM tokens")[0]
    assert ids == [*turn.context_ids_P.tolist(), *turn.completion.token_ids_T.tolist()]
    assert np.array_equal(np.array(logprobs, np.float32), turn.completion.logprobs_T)
    assert segments == [{"start": 0, "len": 700, "kind": "context"}, {"start": 700, "len": n, "kind": "sampled"}]
    assert versions == [{"start": 0, "version": 0}, {"start": n // 2, "version": 9}]


def test_multi_turn_messages_find_their_turns(tmp_path: Path) -> None:
    turns = [make_turn(context=[1, 2], sampled=[3], text="call"), make_turn(context=[4], sampled=[5, 6], text="answer")]
    messages = [
        Message(role="user", content="example"),
        Message(role="assistant", content="call"),  # few-shot: the policy never said it
        Message(role="user", content="task"),
        Message(role="assistant", content="call"),
        Message(role="tool", content="result", name="sh"),
    ]
    with writer(tmp_path) as out:
        out.write_group(make_group(rollouts=[make_rollout("a-0", turns=turns, messages=messages)]))
    found = rows(tmp_path, "SELECT role, text, turn, token_start, token_end FROM turns ORDER BY message_index")
    assert found == [
        ("user", "example", None, None, None),
        ("assistant", "call", None, None, None),
        ("user", "task", None, None, None),
        ("assistant", "call", 0, 2, 3),
        ("tool", "result", None, None, None),
        ("assistant", "answer", 1, 4, 6),  # the environment failed before it became a message
    ]


def test_a_rollout_that_failed_before_its_first_token_is_logged(tmp_path: Path) -> None:
    failed = make_rollout("a-0", turns=[], score=Score(reward=None, status=ScoreStatus.INFRA, reason="sandbox did not start"))
    with writer(tmp_path) as out:
        out.write_group(make_group(rollouts=[failed]))
    assert rows(tmp_path, "SELECT reward, status, n_turns, policy_min, started FROM rollouts") == [(None, "infra", 0, -1, None)]
    assert rows(tmp_path, "SELECT token_ids, behaviour_logprob FROM tokens") == [([], [])]


def test_text_that_is_not_valid_unicode_is_kept_readable(tmp_path: Path) -> None:
    with writer(tmp_path) as out:
        out.write_group(make_group(rollouts=[make_rollout("a-0", turns=[make_turn(context=[1], sampled=[2], text="\ud800\x00ok")])]))
    assert rows(tmp_path, "SELECT text FROM turns WHERE role = 'assistant'") == [("\\ud800\x00ok",)]


def test_tokens_can_be_left_out(tmp_path: Path) -> None:
    with writer(tmp_path, tokens=False) as out:
        out.write_group(make_group())
    assert rows(tmp_path, "SELECT (SELECT count(*) FROM tokens), (SELECT count(*) FROM rollouts)") == [(0, 2)]


ROOT = Path(__file__).parents[1]
_KILLED = """
import sys
from pathlib import Path
from rl.log.writer import RolloutWriter
from tests.log_fakes import make_group
out = RolloutWriter(Path(sys.argv[1]), run_id="r", attempt=1, writer="w0", tokens=True)
for index in range(10**9):
    out.write_group(make_group(index, version=index % 3))
    if index % 5 == 4:
        out.flush()
        print(index + 1, flush=True)
"""


def test_kill_9_loses_no_flushed_group_and_leaves_nothing_torn(tmp_path: Path) -> None:
    for kill in range(3):
        run = tmp_path / str(kill)
        process = subprocess.Popen([sys.executable, "-c", _KILLED, str(run)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert process.stdout is not None
        flushed = 0
        for line in process.stdout:
            flushed = int(line)
            if flushed >= 5 * (kill + 2):
                process.send_signal(signal.SIGKILL)
                break
        flushed = max([flushed, *(int(line) for line in process.stdout.read().split())])
        process.wait()
        with RunLog(run) as log:
            assert log.problems == ()
            counts = next(log.query("SELECT count(*), count(DISTINCT group_id), sum(sampled_tokens) FROM rollouts").rows)
            assert counts[1] >= flushed
            assert counts[0] == 2 * counts[1]
            whole = "SELECT count(*) FROM rollouts r JOIN tokens t USING (rollout_id) JOIN turns m USING (rollout_id) WHERE m.role = 'user'"
            assert next(log.query(whole).rows) == (counts[0],)
            kept = {row[0] for row in log.query("SELECT DISTINCT group_index FROM rollouts").rows}
        assert set(range(flushed)) <= kept


def test_readers_ignore_what_no_manifest_lists_and_torn_lines(tmp_path: Path) -> None:
    with writer(tmp_path) as out:
        out.write_group(make_group())
    part = next((tmp_path / "log" / "rollouts").rglob("*.parquet"))
    part.with_name("part-x-000001.parquet.tmp").write_bytes(b"PAR1 torn")
    part.with_name("part-x-000002.parquet").write_bytes(b"PAR1 renamed, never listed")
    manifest = next((tmp_path / "log").glob("manifest-*"))
    line = manifest.read_bytes()
    manifest.write_bytes(line + line[: len(line) // 2])
    assert rows(tmp_path, "SELECT count(*) FROM rollouts") == [(2,)]


def test_a_manifest_cannot_point_outside_the_log(tmp_path: Path) -> None:
    outside = tmp_path / "secret.parquet"
    outside.write_bytes(b"x")
    (tmp_path / "log").mkdir()
    for path in ("../secret.parquet", str(outside)):
        entry = {"dataset": "rollouts", "path": path, "bytes": 1, "rows": 1}
        (tmp_path / "log" / "manifest-evil.jsonl").write_text(json.dumps({"parts": [entry], "groups": []}) + "\n")
        assert read_manifests(tmp_path / "log").sealed == ()


def test_a_damaged_part_is_left_out_and_named(tmp_path: Path) -> None:
    with writer(tmp_path) as out:
        out.write_group(make_group(0))
        out.flush()
        out.write_group(make_group(1, version=1))
    damaged = next((tmp_path / "log/rollouts/dispatch_version=1").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-7])
    with RunLog(tmp_path) as log:
        assert list(log.query("SELECT DISTINCT group_index FROM rollouts").rows) == [(0,)]
        assert len(log.problems) == 1
        assert damaged.name in log.problems[0]


def test_a_part_that_shows_its_damage_after_the_first_rows_is_left_out_of_tables_and_named_to_streams(tmp_path: Path) -> None:
    sql = "SELECT group_index, unnest(range(100000)) AS n FROM rollouts"
    with writer(tmp_path) as out:
        for version in range(16):
            out.write_group(make_group(version, version=version))
            out.flush()
    damaged = next((tmp_path / "log/rollouts/dispatch_version=15").iterdir())
    with RunLog(tmp_path) as log:
        under_way = log.query(sql).rows
        next(under_way)
        damaged.write_bytes(bytes(damaged.stat().st_size))
        with pytest.raises(QueryError, match=rf"{damaged.name} is damaged.*move it away"):
            list(under_way)
        page = log.table(sql)
        assert Counter(row[0] for row in page.rows) == dict.fromkeys(range(15), 2 * 100000)
        assert page.columns == ("group_index", "n") and damaged.name in log.problems[0]
    damaged.unlink()
    with RunLog(tmp_path) as log:
        assert log.table("SELECT count(*) FROM rollouts").rows == ((30,),)
        assert damaged.name in log.problems[0]


def test_two_writers_and_a_live_reader_do_not_disturb_each_other(tmp_path: Path) -> None:
    def work(name: str, first: int) -> None:
        with writer(tmp_path, name=name) as out:
            for index in range(first, first + 20):
                out.write_group(make_group(index, version=index % 2))
                out.flush()

    threads = [threading.Thread(target=work, args=(f"w{i}", 100 * i)) for i in range(2)]
    for thread in threads:
        thread.start()
    seen = [0]
    while any(thread.is_alive() for thread in threads):
        found = rows(tmp_path, "SELECT count(*), count(t.rollout_id) FROM rollouts r LEFT JOIN tokens t USING (rollout_id)")[0]
        assert found[0] == found[1]  # a group is visible in all datasets or in none
        seen.append(found[0])
    assert seen == sorted(seen)
    assert rows(tmp_path, "SELECT count(*), count(DISTINCT rollout_id) FROM rollouts") == [(80, 80)]


def test_a_restarted_worker_of_the_same_name_keeps_off_the_first_ones_files(tmp_path: Path) -> None:
    first, second = writer(tmp_path), writer(tmp_path)
    first.write_group(make_group(0))
    second.write_group(make_group(1))
    first.close()
    second.close()
    assert rows(tmp_path, "SELECT DISTINCT group_index FROM rollouts ORDER BY 1") == [(0,), (1,)]


def test_the_last_attempt_wins_in_every_dataset(tmp_path: Path) -> None:
    for attempt, text in ((2, "new"), (1, "old")):  # in any order on disk
        group = make_group(rollouts=[make_rollout("a-0", turns=[make_turn(context=[1], sampled=[attempt] * attempt, text=text)])])
        with writer(tmp_path, attempt=attempt) as out:
            out.write_group(group)
    with writer(tmp_path, attempt=1) as out:
        out.write_group(make_group(7))
    assert rows(tmp_path, "SELECT attempt, sampled_tokens FROM rollouts WHERE rollout_id = 'a-0'") == [(2, 2)]
    assert rows(tmp_path, "SELECT text FROM turns WHERE rollout_id = 'a-0' AND role = 'assistant'") == [("new",)]
    assert rows(tmp_path, "SELECT token_ids FROM tokens WHERE rollout_id = 'a-0'") == [([1, 2, 2],)]
    assert rows(tmp_path, "SELECT count(*) FROM rollouts") == [(3,)]


def test_a_group_collected_twice_in_one_attempt_counts_once(tmp_path: Path) -> None:
    for name in ("w0", "w1"):  # w0 logged the group and died before it delivered it
        with writer(tmp_path, name=name) as out:
            out.write_group(make_group())
    assert rows(tmp_path, "SELECT count(*) FROM rollouts") == [(2,)]
    assert rows(tmp_path, "SELECT count(*) FROM tokens") == [(2,)]
    assert rows(tmp_path, "SELECT count(*) FROM turns") == [(4,)]


def test_learner_rows_account_for_every_rollout(tmp_path: Path) -> None:
    infra = Score(reward=None, status=ScoreStatus.INFRA, reason="x")
    trained = make_group(0, version=1, rollouts=[make_rollout("g0-0"), make_rollout("g0-1", sample=1, score=infra)])
    flat, stale = make_group(1, version=2), make_group(2, version=0)
    samples = [make_sample(trained.rollouts[0], advantage=-0.25)]
    with LearnerWriter(tmp_path, attempt=1) as out:
        out.write_step(train_step=3, groups=[trained, flat], samples=samples, stats=[make_stats(samples)], rejected=[(stale, "stale")])
    found = rows(tmp_path, "SELECT rollout_id, admitted, drop_reason, dispatch_version, train_step FROM learner ORDER BY group_id, 1")
    assert found == [
        ("g0-0", True, None, 1, 3),
        ("g0-1", False, "infra", 1, 3),
        ("00000001-0", False, "zero_variance", 2, 3),
        ("00000001-1", False, "zero_variance", 2, 3),
        ("00000002-0", False, "stale", 0, 3),
        ("00000002-1", False, "stale", 0, 3),
    ]
    columns = "advantage, n_tokens, n_clipped, staleness_mean, staleness_max, kl, learner_logprob, entropy"
    values = rows(tmp_path, f"SELECT {columns} FROM learner WHERE admitted")[0]
    assert values[:6] == (-0.25, 2, 1, 2.0, 2, 1e-5)  # sampled by version 0, trained on version 2
    assert np.array_equal(np.array(values[6], np.float32), make_stats(samples).samples[0].logprobs_T)
    assert values[7] == [0.75, 0.75]


def test_a_rollout_of_several_samples_is_one_learner_row(tmp_path: Path) -> None:
    group = make_group(0, version=1, rollouts=[make_rollout("g0-0")])
    first = make_sample(group.rollouts[0])
    samples = [first, replace(first, part=1, behaviour_logprobs_T=first.behaviour_logprobs_T - np.float32(1))]
    stats = make_stats([samples[1], samples[0]])  # trained in another order
    stats = replace(stats, samples=(replace(stats.samples[0], kl=4.0, n_clipped=2), replace(stats.samples[1], kl=2.0)))
    with LearnerWriter(tmp_path, attempt=1) as out:
        out.write_step(train_step=3, groups=[group], samples=samples, stats=[stats], rejected=[])
    (row,) = rows(tmp_path, "SELECT n_tokens, n_clipped, kl, learner_logprob FROM learner")
    assert row[:3] == (4, 3, 3.0)
    expected = np.concatenate([stats.samples[1].logprobs_T, stats.samples[0].logprobs_T])
    assert np.array_equal(np.array(row[3], np.float32), expected)


def test_learner_rows_beyond_the_restored_step_are_superseded(tmp_path: Path) -> None:
    for attempt, restored, steps in ((1, 0, (1, 2, 3)), (2, 1, (2,))):
        with MetricsWriter(tmp_path / "metrics.jsonl", attempt=attempt, restored_step=restored):
            pass
        with LearnerWriter(tmp_path, attempt=attempt) as out:
            for step in steps:
                out.write_step(train_step=step, groups=[make_group(10 * attempt + step)], samples=[], stats=[])
    assert rows(tmp_path, "SELECT DISTINCT attempt, train_step FROM learner ORDER BY 1, 2") == [(1, 1), (2, 2)]


def check_disk_full(run: Path, out: RolloutWriter, *, n_before: int) -> None:
    with pytest.raises(LogWriteError, match=r"no space left.*log.tokens=false"):
        for index in range(100, 1000):
            out.write_group(make_group(index, n=64))
            out.flush()
    with pytest.raises(LogWriteError, match="no space left"):
        out.write_group(make_group(5))
    assert not list((run / "log").rglob("*.tmp"))
    listed = {part.path for part in read_manifests(run / "log").sealed}
    assert set((run / "log").rglob("*.parquet")) == listed
    assert rows(run, "SELECT count(*) FROM rollouts WHERE group_index < 100") == [(n_before,)]


@pytest.mark.parametrize("victim", ["part", "manifest"])
def test_disk_full_is_one_clear_error_and_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str) -> None:
    out = writer(tmp_path)
    out.write_group(make_group(0))
    out.flush()
    real = os.write

    def full(fd: int, data: bytes) -> int:
        target = os.readlink(f"/proc/self/fd/{fd}")
        if (victim == "part" and "/turns/" in target) or (victim == "manifest" and "manifest-" in target):
            real(fd, bytes(data)[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(os, "write", full)
    check_disk_full(tmp_path, out, n_before=2)


def test_a_full_file_system(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs; the simulated disk above covers the same ground")
    try:
        out = writer(tmp_path)
        out.write_group(make_group(0))
        out.flush()
        check_disk_full(tmp_path, out, n_before=2)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_closed_writer_refuses_and_close_is_idempotent(tmp_path: Path) -> None:
    out = writer(tmp_path)
    out.close()
    out.close()
    with pytest.raises(LogWriteError, match="closed"):
        out.write_group(make_group())


def test_metrics_round_trip_with_nan(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path, attempt=1, restored_step=0) as out:
        out.step(make_metrics(1, loss=float("nan"), pass_rate={"sums": float("nan")}))
        out.step(make_metrics(2))
        out.evaluated(EvalMetrics(step=2, time=5.0, split="heldout", source="sums", passed=8, graded=10))
    found = read_metrics(path)
    assert found.steps[1] == make_metrics(2)
    assert np.isnan(found.steps[0].loss) and np.isnan(found.steps[0].pass_rate["sums"])
    assert found.evals[0].interval == pytest.approx((0.4901, 0.9433), abs=1e-4)
    assert all(json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines())


def test_metrics_beyond_the_restored_step_are_superseded_and_torn_lines_skipped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path, attempt=1, restored_step=0) as out:
        for step in (1, 2, 3):
            out.step(make_metrics(step, loss=1.0))
            out.evaluated(EvalMetrics(step=step, time=0.0, split="heldout", source="sums", passed=1, graded=2))
    with path.open("a") as stream:
        stream.write('{"kind": "step", "step": 4, "ver')  # killed here
    with MetricsWriter(path, attempt=2, restored_step=1) as out:
        out.step(make_metrics(2, loss=2.0))
    found = read_metrics(path)
    assert [(m.step, m.loss) for m in found.steps] == [(1, 1.0), (2, 2.0)]
    assert [e.step for e in found.evals] == [1]
    assert [(a.attempt, a.restored_step) for a in found.attempts] == [(1, 0), (2, 1)]


def test_summary_of_a_step_leaves_ungraded_rollouts_out_of_the_mean() -> None:
    wrong = Score(reward=0.0, status=ScoreStatus.POLICY_FAIL)
    infra = Score(reward=None, status=ScoreStatus.INFRA)
    rollouts = [make_rollout(f"a-{i}", sample=i, score=score) for i, score in enumerate((None, wrong, infra))]
    samples = [make_sample(rollouts[0]), make_sample(rollouts[1])]
    groups = [make_group(0, rollouts=rollouts), make_group(1)]
    found = summarize_step(
        4, groups=groups, samples=samples, stats=make_stats(samples), seconds=2.0, phases={"train": 1.0}, drops={"stale": 2}
    )
    assert found.reward_mean == pytest.approx(3 / 4)
    assert found.pass_rate == {"sums": pytest.approx(3 / 4)}
    assert (found.staleness_mean, found.staleness_max, found.tokens, found.tokens_per_s) == (3.0, 3, 10, 5.0)
    assert (found.groups_trained, found.groups_skipped, found.entropy) == (1, 1, 0.75)
    nothing = summarize_step(4, groups=[], samples=[], stats=None, seconds=1.0, phases={}, drops={})
    assert np.isnan(nothing.reward_mean) and np.isnan(nothing.loss)


def test_run_folders_are_created_resumed_and_cleaned_by_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = Path("runs/quick")
    first = prepare_run(root)
    assert first.attempt == 1
    with pytest.raises(ValueError, match=r"--resume.*--clean"):
        prepare_run(root)
    assert prepare_run(root, resume=True) == type(first)(run_id=first.run_id, attempt=2)
    RunPaths(root=root).config.write_text("x: 1")
    assert prepare_run(root, clean=True).run_id != first.run_id
    assert not RunPaths(root=root).config.exists()
    assert find_run("quick") == root and find_run("runs/quick") == root
    with pytest.raises(ValueError, match="did you mean quick"):
        find_run("quack")
    with pytest.raises(ValueError, match="no run to resume"):
        prepare_run(Path("runs/other"), resume=True)
    with pytest.raises(ValueError, match="exclude each other"):
        prepare_run(root, resume=True, clean=True)


def test_clean_removes_nothing_that_is_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="does not look like a run"):
        prepare_run(tmp_path, clean=True)
    assert (tmp_path / "thesis.tex").exists()
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(tmp_path)
    with pytest.raises(ValueError, match="not a folder"):
        prepare_run(link, clean=True)


@pytest.mark.parametrize("line", ['{"kind": "step", "step": 4}', '{"kind": "attempt", "attempt": 2, "time": 1.0, "restored_step": "x"}'])
def test_a_line_of_another_program_in_the_metrics_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str) -> None:
    prepare_run(tmp_path / "run")
    with MetricsWriter(RunPaths(root=tmp_path / "run").metrics, attempt=1, restored_step=0) as out:
        out.step(make_metrics(1))
    with RunPaths(root=tmp_path / "run").metrics.open("a") as out:
        out.write(line + "\n")
    assert main(["sql", str(tmp_path / "run"), "SELECT 1"]) == 2
    assert "metrics.jsonl holds a line that is no metrics record" in capsys.readouterr().err
