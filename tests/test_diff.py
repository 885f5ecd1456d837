"""rl diff: two rollouts, one task across versions, two runs."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from rl.cli import main
from rl.log.compact import Compactor, Retention
from rl.log.compare import compare_runs
from rl.log.query import RunLog
from tests.history_run import SUMS, config_for, make_run, write_sums
from tests.ring import ROOT
from tests.test_compare import make_run as make_compared
from tests.view_run import HOSTILE_RUN
from tests.view_run import make_run as make_hostile_run


def sums_run(root: Path, reply: Callable[[str, int], str], *, rows: Any = SUMS[:1], groups: int = 3, **sections: Any) -> Path:
    root.parent.mkdir(parents=True, exist_ok=True)
    path = write_sums(root.parent, rows)
    make_run(root, config_for(root, tasks={"sums": {"kind": "jsonl", "env": "math", "path": str(path)}}, **sections), reply, groups=groups)
    return root


def reply(episode: str, turn: int) -> str:
    """One task; a version later the policy counts aloud for longer."""
    group, _, sample = episode.partition("-")
    counted = " ".join(map(str, range(1, 2 + int(group))))
    return rf"Counting {counted}: " + (r"\boxed{0}" if sample in "01" else r"no \boxed{9}")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sums_run(tmp_path_factory.mktemp("diff") / "runs" / "one", reply)


def diff(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    assert main(["diff", *map(str, words), "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def said(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert main(["diff", *map(str, words)]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text and "\u202e" not in text
    return text


def test_a_winner_and_a_loser_part_at_a_token(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = diff(capsys, run, "00000001-0", "00000001-2")
    first = report["first_difference"]
    left, right = first["sides"]
    assert report["same_task"] and first["by"] == "tokens" and report["messages_in_common"] == 1
    assert left["before"] == right["before"] and left["before"].endswith("Counting 1 2: ")
    assert left["at"] + left["after"] == r"\boxed{0}" + left["after"][left["after"].index("}") + 1 :]
    assert (right["at"] + right["after"]).startswith(r"no \boxed{9}")
    with RunLog(run) as log:
        sql = "SELECT token_ids[s.start + 1 : s.start + s.len], behaviour_logprob FROM (SELECT *, unnest(segments) AS s FROM tokens) "
        sql += "WHERE s.kind = 'sampled' AND rollout_id IN ('00000001-0', '00000001-2') ORDER BY rollout_id"
        rows = list(log.query(sql).rows)
    at = first["tokens_in_common"]
    assert rows[0][0][:at] == rows[1][0][:at] and rows[0][0][at] != rows[1][0][at]
    assert [left["logprob"], right["logprob"]] == [rows[0][1][at], rows[1][1][at]]
    assert [[message["role"] for message in one["messages"]] for one in report["rollouts"]] == [["user", "assistant"]] * 2


def test_two_rollouts_for_a_person(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, run, "00000001-0", "00000001-2")
    assert "A: 00000001-0  ok, reward 1, version 1" in text and "B: 00000001-2  policy_fail, reward -1" in text
    assert "tokens in common" in text and "logprob 0.0000" in text and "1 message in common" in text
    assert "the policy said the same in both" in said(capsys, run, "00000001-0", "00000001-1")


def test_without_tokens_texts_are_compared(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lean = tmp_path / "lean"
    shutil.copytree(run, lean)
    with Compactor(lean) as compactor:
        compactor.run(Retention(keep_tokens_versions=1))
    report = diff(capsys, lean, "00000001-0", "00000001-2")
    assert report["first_difference"]["by"] == "text" and report["first_difference"]["tokens_in_common"] is None
    assert report["first_difference"]["sides"][0]["at"] == "\\"
    assert "tokens are not in the log: texts are compared" in said(capsys, lean, "00000001-0", "00000001-2")
    assert [version["first_difference"]["by"] for version in diff(capsys, lean, "--task", "sum-0")["versions"][1:]] == ["text", "text"]


def test_hostile_text_drives_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = make_hostile_run(tmp_path / "runs" / HOSTILE_RUN)
    assert "\\x1b[31m\\u202egnp.exe" in said(capsys, hostile, "00000000-0", "00000000-1")
    said(capsys, hostile, "00000001-0", "00000001-1")  # ten million characters of one turn
    said(capsys, hostile, "--task", "task-0")
    said(capsys, hostile, hostile)


def test_a_task_across_versions(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    versions = diff(capsys, run, "--task", "sum-0")["versions"]
    assert [(one["version"], one["passed"], one["graded"], one["pass_rate"]) for one in versions] == [(v, 2, 4, 0.5) for v in range(3)]
    assert versions[0]["first_difference"] is None
    lengths = [one["sampled_tokens"] for one in versions]
    assert lengths == sorted(lengths) and lengths[0] < lengths[2]
    for version, before in ((1, "Counting 1"), (2, "Counting 1 2")):
        left, right = versions[version]["first_difference"]["sides"]
        assert left["before"] == right["before"] == before
        assert (left["rollout_id"][:8], right["rollout_id"][:8]) == (f"{version - 1:08d}", f"{version:08d}")
        assert left["at"][0] == ":" and right["at"][0] == " "
    text = said(capsys, run, "--task", "sum-0")
    assert "task sum-0, 3 policy versions" in text and "version 2: 2/4 passed [" in text


def test_two_runs(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The other one is right more often, goes on for longer, has another setting, another grader and no flags."""
    other = sums_run(
        run.parent / "two", lambda episode, turn: r"\boxed{0}" + "!" * (episode[-1] == "3") * 3, groups=6, learner={"learning_rate": 0.5}
    )
    report = diff(capsys, run, other)
    assert report["settings"] == {"learner.learning_rate": [1e-6, 0.5]}
    assert report["versions"] == {} and report["at_tokens"] == min(report["tokens"]) and report["tokens"][0] != report["tokens"][1]
    (source,) = report["sources"]
    assert (source["source"], source["split"]) == ("sums", "train")
    assert source["runs"][0]["pass_rate"] == 0.5 and source["runs"][1]["pass_rate"] == 1.0
    assert source["paired"]["difference"] == 0.5 and source["paired"]["problems"] == 1
    assert report["drops"] == {"zero_variance": [0, 24]}
    by_trained = diff(capsys, run, other, "--by", "trained")  # the other one had nothing to learn from
    assert (by_trained["by"], by_trained["at_tokens"], by_trained["tokens"][1]) == ("trained", 0, 0) and by_trained["tokens"][0] > 0
    assert by_trained["sources"] == [] and report["by"] == "sampled"
    text = said(capsys, run, other)
    assert "settings: 1 differ\n  learner.learning_rate: A 1e-06, B 0.5" in text and "zero_variance: A 0 (0.0%), B 24 (100.0%)" in text
    assert "B - A of the one task graded in both: +0.500, too few for an interval" in text
    assert "held out: neither run has an evaluation of held-out problems" in text
    assert "settings: the same\nversions: the same" in said(capsys, run, run)


def test_two_runs_are_paired_by_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Eight tasks, one a version, of which the one run solves none; those at the end of the tokens count."""
    rows = [{"id": f"t{n}", "question": f"{n}?", "answer": str(n % 2)} for n in range(8)]
    runs = [sums_run(tmp_path / "runs" / answer, lambda episode, turn, a=answer: rf"\boxed{{{a}}}", rows=rows, groups=8) for answer in "71"]
    (source,) = diff(capsys, *runs)["sources"]
    paired, policy = source["paired"], diff(capsys, *runs)["policy_versions"]
    first, last = policy[0]["train"]
    assert policy[0] == policy[1] and paired["problems"] == last - first + 1 < 8 and paired["first"] == 0.0
    assert source["runs"][1]["graded"] == 4 * paired["problems"] and paired["difference"] == source["runs"][1]["pass_rate"]
    assert "B - A over the" in said(capsys, *runs)


def test_held_out_problems_are_told_as_the_viewer_tells_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        make_compared(tmp_path / f"run{i}", tokens=[100 * (1 + i)] * 4, evaluations={2: {f"t{n}": [n % (3 - i) == 0] for n in range(20)}})
        for i in range(2)
    ]
    report = diff(capsys, *runs)
    with RunLog(runs[0]) as one, RunLog(runs[1]) as other:
        found = compare_runs(one, other, names=("run0", "run1")).sources[0]
    assert report["policy_versions"] == [{"train": [3, 3], "heldout": [2, 2]}, {"train": [1, 1], "heldout": [2, 2]}]
    assert report["sources"][0]["split"] == "heldout"
    assert report["sources"][0]["paired"] == {**asdict(found.difference), "changed": 0}
    assert report["sources"][0]["runs"][1]["pass_rate"] == found.second.value == 0.5
    assert "A train version 3, A heldout version 2, B train version 1, B heldout version 2" in said(capsys, *runs)


def test_two_runs_differ_in_what_graded(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "runs" / "long"
    root.parent.mkdir()
    task = {"kind": "jsonl", "env": "math", "reward": "cwm_math", "path": str(write_sums(root.parent, SUMS[:1]))}
    make_run(root, config_for(root, tasks={"sums": task}), reply, groups=1)
    report = diff(capsys, run, root)
    (only_a,), (only_b,) = report["versions"]["scorer"]
    assert only_a.startswith("sums: math ") and only_b.startswith("sums: cwm_math ")
    assert report["settings"]["tasks.sums.reward"] == [None, "cwm_math"]


def test_an_older_log_and_a_run_without_settings_are_compared_as_far_as_they_go(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "tests/data/log_v1", tmp_path / "old")
    report = diff(capsys, run, tmp_path / "old")
    assert report["notes"] == ["old has no readable config.yaml: its settings are unknown"] and report["settings"] == {}
    assert {source["source"] for source in report["sources"]} >= {"sums"}
    assert "note: old has no readable config.yaml" in said(capsys, run, tmp_path / "old")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing to compare"),
        (("a", "b", "c"), "nothing to compare"),
        (("00000001-0", "0000001-9"), "there is no rollout '0000001-9' in this run; the nearest ids are 00000001-0"),
        (("--task", "sum-9"), "was played on a task 'sum-9'; the nearest ids are sum-0"),
        (("x", "--task", "sum-0"), "is too much"),
        (("00000001-0", "00000001-2", "--by", "trained"), "--by trained says by which tokens two runs are compared"),
        (("--task", "sum-0", "--by", "sampled"), "--by sampled says by which tokens two runs are compared"),
        (("elsewhere",), "'elsewhere' is not a run"),
    ],
)
def test_wrong_input_is_told(run: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str) -> None:
    assert main(["diff", str(run), *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and not captured.out
