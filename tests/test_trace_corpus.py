"""Trace corpora from real programs: what is in and what is not, and that others can read the files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from environments.traces.text import parse_trace
from rl.cli import main
from rl.corpus import read_corpus
from rl.traces.alike import KeptTraces, frame_pairs, jaccard
from rl.traces.corpus_files import FORMS

pytestmark = pytest.mark.timeout(120)

SUM = "def f(n):\n    total = 0\n    for i in range(n):\n        total += i\n    return total\n"
PROGRAMS: tuple[Mapping[str, object], ...] = (
    {"id": "sum", "source": SUM, "entry": "f", "args": "[3]", "value": "3", "origin": "tests", "license": "MIT"},
    {"id": "sum, said otherwise", "source": f"# why\n{SUM}".replace("= 0\n", "=0\n\n"), "entry": "f", "args": "[ 3 ]"},
    {"id": "sum of more", "source": SUM, "entry": "f", "args": "[6]", "license": "| x"},
    {"id": "called by main", "source": f"{SUM}\n\ndef main():\n    return f(n=4)\n", "entry": "main"},
    {"id": "raises", "source": "def f(x):\n    return 1 / x\n", "entry": "f", "args": "[0]"},
    {"id": "raises, too", "source": "def f(x):\n    return 1 / x\n\ndef unused():\n    pass\n", "entry": "f", "args": "[0]"},
    {"id": "script", "source": "x = '<|frame_sep|>'\nprint(x)\n"},
    {"id": "wrong value", "source": SUM, "entry": "f", "args": "[2]", "value": "7"},
    {"id": "never ends", "source": "while True:\n    pass\n"},
    {"id": "no Python", "source": "def f(:\n"},
    {"id": "wrong arguments", "source": SUM, "entry": "f", "args": "[1, 2]"},
    {"id": "no entry", "source": "x = 1\n", "entry": "f"},
    {"id": "hard", "source": SUM, "entry": "f", "args": "[60]"},
)
LEFT_OUT = {
    "sum, said otherwise": "duplicate",
    "raises, too": "near_duplicate",
    "wrong value": "value",
    "never ends": "events",
    "no Python": "syntax_error",
    "wrong arguments": "empty",
    "no entry": "refused",
    "hard": "level",
}


def write_programs(folder: Path) -> Path:
    path = folder / "programs.jsonl"
    path.write_text("".join(json.dumps(program) + "\n" for program in PROGRAMS))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the programs above and three generated ones, half held out."""
    folder = tmp_path_factory.mktemp("corpus")
    levels = [word for level in ("trivial", "easy", "medium") for word in ("--level", level)]
    forms = [word for form in FORMS for word in ("--form", form)]
    words = ["trace-corpus", str(write_programs(folder)), "--generate", "easy:3", *levels, *forms, "--heldout", "0.5", "--events", "300"]
    assert main([*words, "--out", str(folder / "out")]) == 0
    assert main([*words, "--out", str(folder / "again")]) == 0
    return folder / "out"


def test_what_is_left_out_is_said(corpus: Path) -> None:
    left_out = read_lines(corpus / "left_out.jsonl")
    assert {row["id"]: row["reason"] for row in left_out} == LEFT_OUT
    assert next(row["detail"] for row in left_out if row["id"] == "wrong value") == "the trace ends with 1, the data has 7"
    counts = json.loads((corpus / "corpus.json").read_text())
    assert counts["read"] == 16 and sum(counts["rows"].values()) == 8 and counts["left_out"]["duplicate"] == 1
    assert counts["sources"][0]["file"] == "programs.jsonl" and counts["licenses"]["MIT"] == 1
    assert r"| \| x | 1 |" in (corpus / "README.md").read_text()


def test_a_program_is_on_one_side(corpus: Path) -> None:
    sides = {split: {row["id"]: row for row in read_lines(corpus / "jsonl" / f"trace-{split}.jsonl")} for split in ("train", "heldout")}
    together = {"sum", "sum of more", "called by main"}
    assert all(together <= side.keys() or not together & side.keys() for side in sides.values())
    hashes = [{row["program_hash"] for row in side.values()} for side in sides.values()]
    assert not hashes[0] & hashes[1] and all(hashes)


def test_rows_say_what_happened(corpus: Path) -> None:
    rows = {row["id"]: row for split in ("train", "heldout") for row in read_lines(corpus / "jsonl" / f"trace-{split}.jsonl")}
    row = rows["sum"]
    assert (row["value"], row["level"], row["iterations"], row["license"]) == ("3", "easy", 3, "MIT")
    trace = parse_trace(row["text"])
    assert trace.complete and trace.source == row["source"] and len(trace.events) == row["events"]
    assert (rows["raises"]["status"], rows["raises"]["value"]) == ("raised", None)
    assert rows["script"]["entry"] is None
    assert rows["easy-0"]["origin"].startswith("generated: seed 0")


def test_tasks_have_the_prompts_and_the_ideal_replies_of_their_environments(corpus: Path) -> None:
    rows = {
        form: {row["id"]: row for split in ("train", "heldout") for row in read_lines(corpus / "jsonl" / f"{form}-{split}.jsonl")}
        for form in FORMS
    }
    ((asked,), (answer,)) = (rows["trace_output"]["sum"][name] for name in ("prompt", "completion"))
    assert asked == {"role": "user", "content": f"{SUM}\nassert f(3) == ??"} and answer == {"role": "assistant", "content": "```\n3\n```"}
    full, whole = rows["trace_full"]["sum"], rows["trace"]["sum"]["text"]
    assert "<|begin_of_text|>" + full["prompt"][0]["content"] + full["completion"][0]["content"] + "<|end_of_text|>" == whole
    assert (
        rows["trace"].keys() - rows["trace_output"].keys()
        == {"raises", "script"}
        == rows["trace"].keys() - rows["trace_input"].keys() - {"called by main"}
    )


def test_a_corpus_repeats_and_other_programs_read_it(corpus: Path, tmp_path: Path) -> None:
    files = sorted(path.relative_to(corpus) for path in corpus.rglob("*.json*"))
    assert len(files) >= 6
    for file in files:
        assert (corpus / file).read_bytes() == (corpus.parent / "again" / file).read_bytes()
    for form in FORMS:
        loaded = load_dataset(str(corpus), form, cache_dir=str(tmp_path / "cache"))
        for split in ("train", "heldout"):
            lines = corpus / "jsonl" / f"{form}-{split}.jsonl"
            assert loaded[split].to_list() == read_lines(lines)
            learned = [row.completion for row in read_corpus([str(lines)])]
            assert learned == [row["text"] if "text" in row else row["completion"][0]["content"] for row in loaded[split]]


def test_nothing_is_left_of_what_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_programs(tmp_path)
    out = tmp_path / "out"
    for words, error in (
        ([], "nothing to trace"),
        (["mbpq:rows.jsonl"], "there is no file mbpq:rows.jsonl; forms are programs, humaneval, mbpp, cruxeval"),
        ([f"mbpp:{file}"], "programs.jsonl:1: field 'reference'"),
        ([str(file), "--level", "odd"], "--level: 'odd' is no level"),
        ([str(file), "--form", "poem"], "--form: unknown form of a corpus 'poem'"),
        ([str(file), "--heldout", "5"], "--heldout is 5.0"),
        (["--generate", "easy"], "--generate is 'easy'"),
        ([str(file), "--level", "extreme"], "no program of 13 is in: "),
    ):
        assert main(["trace-corpus", *words, "--out", str(out)]) == 2
        assert error in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_alike_means_most_pairs_of_frames_in_common() -> None:
    first = [f"frame {number}" for number in range(100)]
    near = [*first[:95], *(f"other {number}" for number in range(5))]
    far = [*first[:60], *(f"other {number}" for number in range(40))]
    assert jaccard(frame_pairs(first), frame_pairs(near)) == pytest.approx(94 / 104)
    kept = KeptTraces(similarity=0.8)
    assert [kept.add(frames) for frames in (first, near, far, [], ["frame 0"], ["frame 0"])] == [True, False, True, True, True, False]
    exact = KeptTraces(similarity=1.0)
    assert [exact.add(frames) for frames in (first, near, first)] == [True, True, False]
