"""Trace predictions: which replies pass, what nearly right ones are worth, and the task sources."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from configs.schema import Config, ModelConfig, RunConfig, TaskConfig
from environments.records import Episode, Message, Problem, StopReason, Task
from environments.sources.build import build_source, build_tasks
from environments.traces.compare import LINE_WEIGHT, STATE_WEIGHT
from environments.traces.tasks import FULL, INPUT, NEXT_FRAME, OUTPUT, RETURN, TRACE_ENVS
from rewards.needs import check_needs
from rewards.registry import make_grader
from rewards.score import Score, ScoreStatus
from rl.authoring.gold import gold_reply

pytestmark = pytest.mark.timeout(120)

CODE = "def f(n):\n    m = n * 2\n    return m\n"
CALL = '<|call_sep|>{"n": "4"}<|action_sep|>def f(n):\n<|frame_sep|>'
FIRST = '<|line_sep|>{"n": ".."}<|action_sep|>    m = n * 2\n<|frame_sep|>'
SECOND = '<|line_sep|>{"n": "..", "m": "8"}<|action_sep|>    return m\n<|frame_sep|>'
LAST = '<|return_sep|><|action_sep|>    return m\n<|arg_sep|>"8"<|frame_sep|>'
NEXT = {"code": CODE, "shown": CALL + FIRST, "answer": SECOND}
WHOLE = {"code": CODE, "shown": CALL, "answer": FIRST + SECOND + LAST}


def grade(env: str, reference: dict[str, Any], *replies: str) -> list[Score]:
    problem = Problem(task=Task(id="t", env=env, prompt=()), reference=reference, source="s")

    async def run() -> list[Score]:
        grader = make_grader(env)
        try:
            return [await grader.grade(problem, episode(reply)) for reply in replies]
        finally:
            await grader.close()

    return asyncio.run(run())


def episode(reply: str) -> Episode:
    return Episode(messages=(Message(role="assistant", content=reply),), stop_reason=StopReason.DONE, n_sampled_tokens=1)


def block(text: str) -> str:
    return f"```\n{text}\n```"


def passes(env: str, reference: dict[str, Any], *replies: str) -> list[bool]:
    scores = grade(env, reference, *replies)
    assert all(score.reward == (1.0 if score.status is ScoreStatus.OK else -1.0) for score in scores)
    return [score.status is ScoreStatus.OK for score in scores]


SAME = {
    "[1, 2]": ("[1,2]", "[\n 1,\n 2]", "[0x1, 2]"),
    "{'a': 1, 'b': {2, 3}}": ("{'b': {3, 2}, 'a': 1}", '{"a": 1, "b": {2, 3}}'),
    "'it\\'s'": ('"it\'s"',),
    "0.0": ("-0.0", "0.00"),
    "12345678901234567890": ("12345678901234567890",),
}
OTHER = {
    "1": ("True", "1.0", "'1'", "2", "1 + 0", "(1,)", "[1]", "nan", "int(1)", "", "9" * 10_000, "((((" * 5000, "1; import os", "\x00"),
    "(1, 2)": ("[1, 2]", "1, 2, 3", "{1, 2}"),
    "[1, True]": ("[1, 1]", "[True, True]"),
    "0.5": ("nan", "1e999", "0.5000001"),
    "'<|eot_id|>'": ("<|eot_id|>", "'<|eot_id|> '"),
    "{1: 'a'}": ("{True: 'a'}", "{1.0: 'a'}", "{1: 'a', 2: 'b'}"),
}


@pytest.mark.parametrize("answer", SAME)
def test_outputs_are_compared_as_values(answer: str) -> None:
    assert all(passes(OUTPUT, {"answer": answer}, *map(block, SAME[answer])))


@pytest.mark.parametrize("answer", OTHER)
def test_other_values_and_types_fail(answer: str) -> None:
    assert not any(passes(OUTPUT, {"answer": answer}, *map(block, OTHER[answer])))


def test_an_output_is_one_block_with_or_without_a_thought_as_the_task_asks() -> None:
    right = block("8")
    direct = (right, f" {right}\n", "8", f"It is\n{right}", f"{right}\n{right}", f"<think>\n4 twice</think>\n{right}", CODE)
    assert passes(OUTPUT, {"answer": "8"}, *direct) == [True, True, False, False, False, False, False]
    thinking = (f"<think>\n4 twice\n</think>\nIt is\n{right}", right, f"a</think>b</think>{right}", f"{right}</think>")
    assert passes(OUTPUT, {"answer": "8", "reasoning": True}, *thinking) == [True, False, False, False]


def test_inputs_are_judged_by_running_the_function() -> None:
    reference = {
        "code": "def f(n):\n    return 0\n\ndef g(xs, k=1):\n    return sum(xs) * k\n",
        "entry": "g",
        "output": "6",
        "answer": "[6]",
    }
    right = ("[6]", "[1, 2, 3], 1", "[2], 3", "[3, 0], 2,", "{2: 1}, 3")
    assert all(passes(INPUT, reference, *map(block, right)))
    wrong = (
        "[1]",
        "[6], 'x'",
        "",
        "[6], k=1",
        "*[[6]]",
        "sum([6])",
        "[6]), print(6",
        "[6]][0",
        "[0x" + "f" * 15_000 + "]",
        "[" * 500,
        "1e999",
    )
    assert not any(passes(INPUT, reference, *map(block, wrong)))


def test_an_input_must_give_the_value_itself() -> None:
    same = {"code": "def f(x):\n    return x", "entry": "f", "output": "1", "answer": "1"}
    assert passes(INPUT, same, *map(block, ("1", "True", "1.0", "0, 1"))) == [True, False, False, False]


def test_the_next_frame_by_its_components() -> None:
    stray = SECOND.replace("return m", "m = n * 2")
    short = SECOND.replace(', "m": "8"', "")
    written_out = SECOND.replace('"n": ".."', '"n": "4"')
    replies = (SECOND, f"</think>\n{SECOND}", SECOND.removesuffix("<|frame_sep|>"), written_out)
    assert [score.reward for score in grade(NEXT_FRAME, NEXT, *replies)] == [1.0] * 4
    line, locals_, other_kind, nothing, two = grade(NEXT_FRAME, NEXT, stray, short, LAST, "", SECOND + LAST)
    assert line.reward == pytest.approx(1 - 2 * LINE_WEIGHT) and line.reason == "frame 1 of 1 has the wrong line"
    assert locals_.reward == pytest.approx(1 - STATE_WEIGHT) and locals_.parts["locals"].value == 0.5
    assert other_kind.reward == pytest.approx(-1 + 2 * LINE_WEIGHT)
    assert nothing.reward == two.reward == -1.0 and two.parts["valid"].value == 0.0
    assert "something stands behind the frame" in two.reason
    strict = grade(NEXT_FRAME, {**NEXT, "partial_credit": False}, stray, SECOND)
    assert [score.reward for score in strict] == [-1.0, 1.0]


def test_a_whole_trace_frame_by_frame() -> None:
    right = FIRST + SECOND + LAST
    wrong_value = right.replace('"8"<|frame', '"9"<|frame')
    replies = (right, right + "<|end_of_text|>", f"\n{right}\n", wrong_value, FIRST + SECOND, FIRST + "stuff", right + LAST, "", "stuff")
    *good, value, cut, broken, longer, nothing, stuff = grade(FULL, WHOLE, *replies)
    assert [score.status for score in good] == [ScoreStatus.OK] * 3
    assert value.reward == pytest.approx(-1 + 2 * (2 + 1 - STATE_WEIGHT) / 3) and value.parts["value"].value == 0.0
    assert value.parts["valid"].value == 1.0 and value.parts["frames"].value == pytest.approx(2 / 3)
    assert cut.reward == pytest.approx(-1 + 2 * 2 / 3) and cut.parts["valid"].value == 0.0 and "do not go to the return" in cut.reason
    assert broken.reward == pytest.approx(-1 + 2 * 1 / 3) and "a token should stand here" in broken.reason
    assert longer.reward == pytest.approx(-1 + 2 * 3 / 4) and longer.status is ScoreStatus.POLICY_FAIL
    assert nothing.reward == stuff.reward == -1.0


def test_the_return_frame_in_one_step() -> None:
    step = {"code": CODE, "shown": CALL, "answer": LAST}
    behind = LAST.removeprefix("<|return_sep|>")
    good = (behind, LAST, f" {behind}<|end_of_text|>", behind.removesuffix("<|frame_sep|>"), behind.replace("return m", "m = n * 2"))
    assert all(passes(RETURN, step, *good))
    bad = (
        "",
        "8",
        block("8"),
        FIRST,
        FIRST + SECOND + LAST,
        behind + LAST,
        behind.replace('"8"', '"8.0"'),
        behind.replace('"8"', "8"),
        CALL,
    )
    assert not any(passes(RETURN, step, *bad))
    right, line, value, none = grade(RETURN, step, good[0], good[-1], behind.replace("8", "9"), "stuff")
    parts = {name: [score.parts[name].value for score in (right, line, value, none)] for name in ("valid", "state", "action")}
    assert parts == {"valid": [1.0, 1.0, 1.0, 0.0], "state": [1.0, 1.0, 0.0, 0.0], "action": [1.0, 0.0, 1.0, 0.0]}
    assert value.reason == "the trace ends with '9' instead of '8'" and "should stand here" in none.reason


CHEATS = {
    "the prompt again": f"<|trace_context_start|>{CODE}<|frame_sep|>{CALL}",
    "another call of the entry": CALL + FIRST + SECOND + LAST,
    "an end that comes early": LAST,
    "frames without end": FIRST * 5000,
    "deep JSON": '<|line_sep|>{"n": ' + "[" * 100_000,
    "a huge number": '<|line_sep|>{"n": ' + "9" * 1_000_000 + "}<|action_sep|>    m = n * 2\n<|frame_sep|>",
    "escaped tokens": FIRST.replace("<|", "<\\|"),
    "an end in the middle": FIRST + "<|end_of_text|>" + SECOND + LAST,
    "unchanged by name alone": SECOND.replace('"8"', '".."'),
}


@pytest.mark.parametrize("name", CHEATS)
def test_cheats_on_frames_are_worth_little(name: str) -> None:
    (next_frame,), (whole,) = grade(NEXT_FRAME, NEXT, CHEATS[name]), grade(FULL, WHOLE, CHEATS[name])
    assert next_frame.status is whole.status is ScoreStatus.POLICY_FAIL
    assert max(next_frame.reward or 0, whole.reward or 0) < 0


@pytest.mark.parametrize(
    ("env", "reference", "says"),
    [
        (OUTPUT, {"answer": "<object>"}, "field 'answer' is '<object>', no literal"),
        (OUTPUT, {}, "field 'answer' is missing"),
        (OUTPUT, {"answer": "1", "reasoning": "yes"}, "field 'reasoning' is 'yes'"),
        (INPUT, {"code": CODE, "entry": "g()", "output": "1"}, "entry 'g()' is not defined"),
        (INPUT, {"code": "def f(:", "entry": "f", "output": "1"}, "field 'code' is no Python"),
        (INPUT, {"code": "def f(x): raise", "entry": "f"}, "field 'output' is missing"),
        (NEXT_FRAME, {**NEXT, "answer": SECOND + LAST}, "field 'answer' is no text of a frame"),
        (NEXT_FRAME, {**NEXT, "shown": "stuff"}, "field 'shown' is no text of frames"),
        (FULL, {**WHOLE, "answer": FIRST + SECOND}, "the trace was cut off"),
        (FULL, {**WHOLE, "complete": False}, "the trace was cut off"),
        (RETURN, {**WHOLE, "answer": SECOND}, "is the frame of a line event; it must be that of a return"),
    ],
)
def test_what_cannot_be_graded_is_no_fault_of_the_policy(env: str, reference: dict[str, Any], says: str) -> None:
    (score,) = grade(env, reference, block("1"))
    assert score.status is ScoreStatus.UNGRADABLE and says in score.reason
    with pytest.raises(ValueError, match=f"reward '{env}' cannot grade problem t: "):
        check_needs(env, Problem(task=Task(id="t", env=env, prompt=()), reference=reference, source="s"))


def source(env: str, path: Path | None = None, *, seed: int = 1, **options: Any) -> Any:
    config = TaskConfig(kind="traces", env=env, path=None if path is None else str(path), options=options)
    return build_source("x", config=config, seed=seed)


@pytest.mark.parametrize("env", TRACE_ENVS)
def test_generated_problems_are_solved_by_their_solutions_and_do_not_show_them(env: str) -> None:
    problems = [source(env, levels="trivial easy").problem(index) for index in range(8)]
    assert [problem.task.id.split("-")[0] for problem in problems[:3]] == ["trivial", "easy", "trivial"]
    assert problems[5] == source(env, levels="trivial easy").problem(5) != source(env, levels="trivial easy", seed=2).problem(5)
    for problem in problems:
        assert not problem.task.payload
        assert env in (OUTPUT, INPUT) or str(problem.reference["answer"]) not in problem.task.prompt[-1].content
        assert grade(env, dict(problem.reference), str(gold_reply(problem)))[0].status is ScoreStatus.OK


def test_questions_are_short_and_plain() -> None:
    (output,), (question,), (frame,) = (source(env, types="int").problem(3).task.prompt for env in (OUTPUT, INPUT, NEXT_FRAME))
    assert output.content.startswith("def f(") and output.content.splitlines()[-1].startswith("assert f(")
    assert output.content.endswith(" == ??") and "assert f(??) == " in question.content
    assert frame.content.startswith("<|trace_context_start|>def f(") and frame.content.endswith("<|frame_sep|>")
    thought = str(source(OUTPUT, reasoning=True).problem(0).reference["solution"])
    assert thought.startswith("<think>\n<|call_sep|>") and "<|frame_sep|>\n</think>\n```\n" in thought


PROGRAMS = [
    {"id": "double", "source": CODE, "entry": "f", "args": "[4]"},
    {"id": "raises", "source": "def f(x):\n    return 1 // x\n", "entry": "f", "args": "[0]"},
    {"id": "object", "source": "def f(x):\n    return object()\n", "entry": "f", "args": "[0]"},
    {"id": "script", "source": "x = 1\ny = 2\n"},
    {"id": "nothing", "source": "def f():\n    return 1\n", "entry": "f"},
    {"id": "generator", "source": "def f(n):\n    yield n\n", "entry": "f", "args": "[1]"},
    {"id": "endless", "source": "def f(x):\n    while True:\n        x += 1\n", "entry": "f", "args": "[0]"},
]


def rows(folder: Path, count: int = 7) -> Path:
    file = folder / "programs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in PROGRAMS[:count]))
    return file


LEFT_OUT = {
    OUTPUT: ["its entry raises", "it returns no literal", "it is a script", "ended with the status events"],
    INPUT: ["its entry raises", "it returns no literal", "it is a script", "ended with the status events", "takes no arguments"],
    NEXT_FRAME: ["ended with the status events"],
    FULL: ["ended with the status events"],
    RETURN: ["its entry raises", "it is a script", "ended with the status events", "returns more than once"],
}


@pytest.mark.parametrize("env", TRACE_ENVS)
def test_programs_of_a_file_are_recorded_and_those_without_a_task_counted(env: str, tmp_path: Path) -> None:
    found = source(env, rows(tmp_path))
    assert found.size == 7 - len(LEFT_OUT[env])
    assert all(any(part in reason for reason in found.left_out) for part in LEFT_OUT[env]) and len(found.left_out) == len(LEFT_OUT[env])
    problems = [found.problem(index) for index in range(found.size)]
    assert all(grade(env, dict(problem.reference), str(gold_reply(problem)))[0].status is ScoreStatus.OK for problem in problems)
    assert problems[0].task.id == "double"


def test_levels_and_lengths_are_filters(tmp_path: Path) -> None:
    file = rows(tmp_path, 5)
    assert source(FULL, file, levels="trivial").size + source(FULL, file, levels="easy medium hard").size == 5
    assert source(FULL, file, max_events=3).size < 5
    assert len(str(source(FULL, max_events=10).problem(0).reference["answer"]).split("<|frame_sep|>")) <= 10


def test_a_mixture_holds_problems_out(tmp_path: Path) -> None:
    tasks = {
        "made": TaskConfig(kind="traces", env=OUTPUT, heldout=20, options={"types": "int"}),
        "file": TaskConfig(kind="traces", env=FULL, path=str(rows(tmp_path, 3)), heldout=2),
    }
    mixture = build_tasks(Config(run=RunConfig(name="x"), model=ModelConfig(path="x"), tasks=tasks))
    heldout = {problem.task.prompt for problem in mixture.heldout()}
    assert len(heldout) == 22
    assert heldout.isdisjoint(mixture.at(index).task.prompt for index in range(60))


@pytest.mark.parametrize(
    ("env", "options", "says"),
    [
        ("math", {}, "tasks.x.env is 'math'; tasks of kind 'traces' are for trace_output"),
        (OUTPUT, {"level": "easy"}, "tasks.x.options: unknown option 'level'; did you mean 'levels'"),
        (OUTPUT, {"levels": "easy harder"}, "tasks.x.options.levels: 'harder' is no level of difficulty"),
        (OUTPUT, {"levels": "extreme"}, "tasks.x.options.level: unknown level 'extreme'"),
        (OUTPUT, {"form": "mbpp"}, "unknown option 'form'"),
        (FULL, {"reasoning": True}, "tasks.x.options.reasoning is for env=trace_output, and env is trace_full: take it out"),
        (RETURN, {"partial_credit": True}, "is for env=trace_next_frame and trace_full, and env is trace_return: take it out"),
        (FULL, {"max_events": 2}, "tasks.x.options.max_events is 2: hardly any program has so few"),
    ],
)
def test_options_that_lead_nowhere_are_refused(env: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as error:
        source(env, **options).problem(0)
    assert says in str(error.value)


def test_a_file_without_any_task_says_why(tmp_path: Path) -> None:
    file = tmp_path / "programs.jsonl"
    file.write_text('{"source": "x = 1\\n"}\n')
    with pytest.raises(ValueError, match=r"no program of .* makes a task of trace_output: 1 x it is a script"):
        source(OUTPUT, file)
    file.write_text('{"source": "x = 1\\n", "entry": "f"}\n')
    with pytest.raises(ValueError, match=r"tasks\.x\.path: program 000000: entry 'f' is not defined"):
        source(OUTPUT, file)
