"""Blobs go when no row needs them, and never before: beside live writers, kills and readers."""

import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from configs.schema import LogConfig
from rewards.score import Score, ScoreStatus
from rl.log import blob_sweep
from rl.log.blobs import BlobWriter, blob_files, blob_sizes
from rl.log.compact import Compactor, Retention
from rl.log.manifest import read_manifests
from rl.log.query import RunLog
from rl.log.show import show_command
from rl.log.tables import ROW_LOG_CHARS
from rl.log.upkeep import Upkeep
from rl.log.writer import RolloutWriter
from tests.log_fakes import make_group

ROOT = Path(__file__).parent.parent


def long(text: str) -> str:
    """A log that does not fit into the row."""
    return text.ljust(ROW_LOG_CHARS + 1)


def write_log(out: RolloutWriter, index: int, text: str, *, version: int = 0) -> None:
    """A group whose scores have the log `text`, on the disk."""
    group = make_group(index, version=version)
    score = Score(reward=0.0, status=ScoreStatus.POLICY_FAIL, log=long(text))
    out.write_group(replace(group, rollouts=tuple(replace(rollout, score=score) for rollout in group.rollouts)))
    out.flush()


def writer(run: Path, name: str = "w0") -> RolloutWriter:
    return RolloutWriter(run, run_id="r", attempt=1, writer=name, tokens=True)


def leave_orphan(run: Path, text: str) -> None:
    """What a writer leaves that was killed between its blob and its row, or in the middle of a blob."""
    blobs = BlobWriter(run / "log")
    with blobs.pinned():
        path = next(path for path in blob_files(run / "log") if path.suffix == ".zst")
        path.with_name("torn.zstabc.tmp").write_bytes(b"torn")
        blobs.keep(long(text))


def compact(run: Path, retention: Retention = Retention(), *, before: int | None = None) -> int:  # noqa: B008  # frozen
    with Compactor(run) as compactor:
        return compactor.run(retention, before=before, least_parts=1000).deleted


def logs(run: Path) -> list[str]:
    """The texts that the scores refer to; none may be missing."""
    with RunLog(run) as log:
        assert log.problems == ()
        references = [reference for (reference,) in log.query("SELECT DISTINCT log_ref FROM scores ORDER BY 1").rows]
        return sorted(log.blob(reference).decode().rstrip() for reference in references)


def kept(run: Path) -> int:
    return len(list(blob_files(run / "log")))


def test_what_no_row_refers_to_is_removed(tmp_path: Path) -> None:
    with writer(tmp_path) as out:
        write_log(out, 0, "first")
        write_log(out, 1, "second", version=1)
        leave_orphan(tmp_path, "nobody's")
        assert compact(tmp_path, before=1) == 0 and kept(tmp_path) == 4, "a pass beside the run reads no references"
        with RunLog(tmp_path):
            assert compact(tmp_path) == 0, "a reader has the log open"
        assert compact(tmp_path) == 2
        assert compact(tmp_path) == 0
    assert logs(tmp_path) == ["first", "second"] and kept(tmp_path) == 2


def test_a_blob_whose_row_is_on_its_way_survives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_sweep, "_WAIT_SECONDS", 0.1)
    with writer(tmp_path) as out:
        write_log(out, 0, "first")
        blobs = BlobWriter(tmp_path / "log")
        with blobs.pinned():
            blobs.keep(long("its row comes later"))
            assert compact(tmp_path) == 0 and kept(tmp_path) == 2
        with writer(tmp_path, "w1") as other:
            write_log(other, 1, "its row comes later")
        assert compact(tmp_path) == 0
    assert logs(tmp_path) == ["first", "its row comes later"]


def test_a_row_that_comes_while_the_sweep_looks_saves_its_blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = blob_sweep.unpinned
    with writer(tmp_path) as out:
        write_log(out, 0, "first")
        leave_orphan(tmp_path, "written again")

        @contextmanager
        def late(folder: Path, *, seconds: float) -> Iterator[bool]:
            write_log(out, 1, "written again")  # found on the disk, so it is not written again
            with real(folder, seconds=seconds) as alone:
                yield alone

        monkeypatch.setattr(blob_sweep, "unpinned", late)
        assert compact(tmp_path) == 1, "the torn one"
    assert logs(tmp_path) == ["first", "written again"]


def test_a_sweep_does_not_wait_for_a_moment_without_writers(tmp_path: Path) -> None:
    """Two writers of which one has always pinned: a lock that they share would never be free by itself."""
    with writer(tmp_path) as out:
        write_log(out, 0, "first")
        leave_orphan(tmp_path, "nobody's")
        stop = threading.Event()
        turns = [threading.Event(), threading.Event()]
        turns[0].set()

        def pin(mine: threading.Event, others: threading.Event) -> None:
            blobs = BlobWriter(tmp_path / "log")
            while not stop.is_set():
                with blobs.pinned():
                    others.set()
                    mine.clear()
                    mine.wait(0.2)

        threads = [threading.Thread(target=pin, args=(turns[i], turns[1 - i])) for i in range(2)]
        for thread in threads:
            thread.start()
        try:
            assert compact(tmp_path) == 2
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def test_blobs_of_old_versions_are_given_up_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with writer(tmp_path) as out:
        for index, (version, text) in enumerate([(0, "old"), (0, "both"), (1, "middle"), (2, "both"), (2, "new")]):
            write_log(out, index, text, version=version)
        with Compactor(tmp_path) as compactor:
            compactor.run(Retention(), before=2)  # versions 0 and 1 lie in one part now
        upkeep = Upkeep(tmp_path, LogConfig(keep_blobs_versions=2))
        upkeep.tick(version=2)
        upkeep.finish()
        assert upkeep.problem() == "" and kept(tmp_path) == 3
        compact(tmp_path, Retention(keep_blobs_versions=1), before=0)
    with RunLog(tmp_path) as log:
        found = list(log.query("SELECT rollout_id, log_ref FROM scores WHERE rollout_id LIKE '%-0' ORDER BY 1").rows)
        with pytest.raises(ValueError, match=r"there is no blob .*log.keep_blobs_versions or log.max_gb gave it up"):
            log.blob(found[0][1])
        assert [log.blob(reference).rstrip() for _, reference in (found[1], found[3], found[4])] == [b"both", b"both", b"new"]
    assert show_command(str(tmp_path), found[0][0], as_json=False) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "log.keep_blobs_versions or log.max_gb gave it up" in shown and "old" in shown, "the row still has its ends"


def test_blobs_count_towards_the_bound_and_are_given_up_last(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    texts = [random.Random(version).randbytes(100_000).hex() for version in range(4)]
    with writer(tmp_path) as out:
        for version, text in enumerate(texts):
            write_log(out, version, text, version=version)
        write_log(out, 4, texts[0], version=3)  # a young row needs the oldest blob
        leave_orphan(tmp_path, texts[3].upper())

        def parts() -> int:
            return sum(part.n_bytes for part in read_manifests(folder).sealed)

        def compacted(max_bytes: int) -> tuple[int, int]:
            """Rows of tokens and blobs that are left."""
            compact(tmp_path, Retention(max_bytes=max_bytes), before=0)
            with RunLog(tmp_path) as log:
                assert log.table("SELECT count(*) FROM rollouts").rows == ((10,),)
                return log.table("SELECT count(*) FROM tokens").rows[0][0], len(blob_sizes(folder))

        blob = max(blob_sizes(folder).values())
        whole = parts() + sum(blob_sizes(folder).values())
        assert compacted(whole) == (10, 5), "an orphan is left to the sweep when there is room"
        assert compacted(whole - 1) == (8, 5), "the oldest tokens make room"
        assert compacted(parts() + 4 * blob) == (0, 4), "tokens were not enough, and what no row needs goes before all else"
        assert compacted(parts() + 3 * blob) == (0, 3)
        with RunLog(tmp_path) as log:
            references = dict(log.table("SELECT DISTINCT dispatch_version, log_ref FROM scores WHERE rollout_id NOT LIKE '%4-_'").rows)
            assert [log.blob(references[version]).decode() for version in (0, 2, 3)] == [texts[0], texts[2], texts[3]]
            with pytest.raises(ValueError, match=r"there is no blob .*log.max_gb gave it up"):
                log.blob(references[1])
        upkeep = Upkeep(tmp_path, LogConfig(max_gb=2 * blob / 2**30))
        upkeep.tick(version=4)
        upkeep.finish()
        assert upkeep.problem() == ""
        assert parts() + sum(blob_sizes(folder).values()) <= 2 * blob


def test_nothing_is_removed_while_references_cannot_be_read(tmp_path: Path) -> None:
    with writer(tmp_path) as out:
        write_log(out, 0, "first")
        leave_orphan(tmp_path, "nobody's")
    part = next((tmp_path / "log" / "scores").rglob("*.parquet"))
    data = part.read_bytes()
    part.write_bytes(data[:-1])
    assert compact(tmp_path) == 0
    part.write_bytes(bytes(len(data)))
    assert compact(tmp_path) == 0 and kept(tmp_path) == 3
    part.write_bytes(data)
    assert compact(tmp_path) == 2


_KILLED_SWEEPS = """
import os, signal, sys
from pathlib import Path
from rl.log.compact import Compactor, Retention
real, run, left = Path.unlink, Path(sys.argv[1]), int(sys.argv[2])
def unlink(self, *arguments, **options):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *arguments, **options)
Path.unlink = unlink
with Compactor(run) as compactor:
    compactor.run(Retention(), least_parts=1000)
"""


def test_a_sweep_killed_in_the_middle_leaves_what_rows_need(tmp_path: Path) -> None:
    with writer(tmp_path / "run") as out:
        write_log(out, 0, "first")
        for text in "abc":
            leave_orphan(tmp_path / "run", text)
    files = kept(tmp_path / "run")
    for calls in (0, 2):
        run = tmp_path / str(calls)
        shutil.copytree(tmp_path / "run", run)
        killed = subprocess.run([sys.executable, "-c", _KILLED_SWEEPS, str(run), str(calls)], cwd=ROOT, check=False)
        assert killed.returncode == -signal.SIGKILL and logs(run) == ["first"] and kept(run) == files - calls
        assert compact(run) == files - 1 - calls and logs(run) == ["first"] and kept(run) == 1


_WRITER = """
import sys
from pathlib import Path
from tests.test_log_blobs import write_log, writer
with writer(Path(sys.argv[1]), sys.argv[2]) as out:
    for index in range(int(sys.argv[3]), 10**9, 2):
        write_log(out, index, f"log {index % 7}", version=index % 3)
        print(index, flush=True)
"""


def test_no_reference_dangles_after_sweeps_beside_writers_that_are_killed(tmp_path: Path) -> None:
    chance = random.Random(7)
    for attempt in range(2):
        command = [sys.executable, "-c", _WRITER, str(tmp_path)]
        writers = [
            subprocess.Popen([*command, f"w{attempt}{n}", str(1000 * attempt + n)], stdout=subprocess.PIPE, cwd=ROOT) for n in range(2)
        ]
        for process in writers:
            assert process.stdout is not None and process.stdout.readline()
        for _ in range(5):
            blobs = BlobWriter(tmp_path / "log")
            with blobs.pinned():
                blobs.keep(f"orphan {chance.random()}")
            compact(tmp_path)
        for process in writers:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    assert set(logs(tmp_path)) <= {f"log {n}" for n in range(7)}
    compact(tmp_path)
    assert kept(tmp_path) == len(logs(tmp_path))
