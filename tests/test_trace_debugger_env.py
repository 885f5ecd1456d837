"""Episodes of the debugger with the real sandbox: what is shown, and what answers are worth."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.schema import TaskConfig
from environments.records import Episode, Message, Problem, StepResult, StopReason, Task
from environments.sandbox.make import make_sandbox
from environments.sources.base import ProblemSource
from environments.sources.build import build_source
from environments.traces.debugger.environment import TraceDebugger
from environments.traces.debugger.machine import Action, ActionKind, Machine
from environments.traces.debugger.task import INSTRUCTIONS, LIMITS, DebuggerTask, gold_replies, turn_text
from environments.traces.debugger.walk import Step, draw_walk
from environments.traces.text import EVENT_TOKENS
from environments.traces.tracer import record_trace
from rewards.score import Score, ScoreStatus
from rewards.trace_debugger import TraceDebuggerGrader

pytestmark = pytest.mark.timeout(120)

SOURCE = "def half(n):\n    return n // 2\n\ndef f(n):\n    m = half(n)\n    return m + 1\n"
PROMPT = Message(role="user", content="Debug.")


def problem(actions: Sequence[str] = ("all",), *, turns: int = 4, source: str = SOURCE, args: str = "[5]") -> Problem:
    payload = {"code": source, "entry": "f", "args": args, "turns": turns, "actions": " ".join(actions)}
    return Problem(task=Task(id="p", env="trace_debugger", prompt=(PROMPT,), payload=payload), reference={}, source="test")


def right(one: Problem) -> list[str]:
    return gold_replies(*asyncio.run(walk_of(one)))


async def walk_of(one: Problem) -> tuple[Machine, tuple[Step, ...]]:
    asked, sandbox = DebuggerTask.of(one.task), make_sandbox()
    try:
        return asked.walk(await record_trace(asked.program, sandbox=sandbox, limits=LIMITS))
    finally:
        await sandbox.close()


def play(one: Problem, answers: Sequence[str]) -> tuple[Score, tuple[Message, ...], StepResult]:
    """An episode with these answers."""

    async def run() -> tuple[Score, tuple[Message, ...], StepResult]:
        environment, grader = TraceDebugger(one.task), TraceDebuggerGrader()
        try:
            messages = list(await environment.reset())
            for text in answers:
                messages.append(Message(role="assistant", content=text))
                result = await environment.step(messages[-1])
                messages += result.messages
            episode = Episode(messages=tuple(messages), stop_reason=StopReason.DONE, n_sampled_tokens=0, outcome=result.outcome)
            return await grader.grade(one, episode), tuple(messages), result
        finally:
            await environment.close()
            await grader.close()

    return asyncio.run(run())


def test_right_answers_pass_turn_by_turn() -> None:
    score, messages, last = play(problem(turns=6), right(problem(turns=6)))
    assert (score.status, score.reward) == (ScoreStatus.OK, 1.0)
    assert [message.role for message in messages] == ["user", "assistant"] * 6 and last.done and last.stop_reason is StopReason.DONE
    assert messages[0].content.startswith("Debug.\n<|trace_context_start|>def half(n):") and "Action: " in messages[2].content
    assert {name: part.value for name, part in score.parts.items()} == dict.fromkeys(score.parts, 1.0)
    assert sum(part.weight for part in score.parts.values()) == pytest.approx(1.0)


def test_a_state_is_shown_with_its_callers_and_all_values() -> None:
    machine, _ = asyncio.run(walk_of(problem()))
    into, breakpoint = Action(kind=ActionKind.STEP_INTO), Action(kind=ActionKind.BREAKPOINT, line_no=6)
    assert turn_text(machine, Step(at=3, action=into, to=4)) == (
        'State:\n<|line_sep|>{"n": "5"}<|action_sep|>    m = half(n)\n<|frame_sep|>'
        '<|line_sep|>{"n": "5"}<|action_sep|>    return n // 2\n<|frame_sep|>\nAction: step_into'
    )
    assert turn_text(machine, Step(at=0, action=breakpoint, to=5)).endswith("def f(n):\n<|frame_sep|>\nAction: breakpoint 6 (return m + 1)")


def test_partly_right_answers_are_worth_their_components() -> None:
    (true,) = right(problem(["continue"]))
    assert true.endswith('<|arg_sep|>"3"<|frame_sep|>')
    for answer, reward, reason in (
        (true.replace('"3"', '"4"'), 0.0, "turn 1 (continue) is wrong in value"),
        (true.replace("m + 1", "m"), 0.4, "is wrong in line"),
        (true.replace(EVENT_TOKENS["return"], EVENT_TOKENS["exception"]), 0.6, "is wrong in event"),
        ("I think it returns 3", -1.0, "nothing right, or is no frame"),
        ("", -1.0, "nothing right, or is no frame"),
    ):
        score, _, _ = play(problem(["continue"]), [answer])
        assert (score.status, score.reward) == (ScoreStatus.POLICY_FAIL, pytest.approx(reward)), answer
        assert reason in score.reason and "expected:\n  <|return_sep|>" in score.log
    score, _, _ = play(problem(["continue"]), [f"Let me see.</think>\n{true}\n"])
    assert score.status is ScoreStatus.OK


def test_turns_without_an_answer_count_as_wrong() -> None:
    score, _, last = play(problem(turns=4), right(problem(turns=4))[:1])
    assert not last.done
    assert (score.status, score.reward, score.parts["exact"].value) == (ScoreStatus.POLICY_FAIL, pytest.approx(-0.5), 0.25)
    assert score.reason == "1 of 4 answers are right; turn 2 was not answered"


def test_another_input_of_a_call_is_judged_by_running_it() -> None:
    payload = problem(["reverse_continue"], turns=1).task.payload
    tasks = (Task(id="p", env="trace_debugger", prompt=(PROMPT,), payload={**payload, "walk": walk}) for walk in range(100))
    machine, _ = asyncio.run(walk_of(problem()))
    last = len(machine.events) - 1  # the value is known there
    at_the_end = next(
        task
        for task in tasks
        if draw_walk(machine, kinds=DebuggerTask.of(task).kinds, turns=1, seed=str(task.payload["walk"]))[0].at == last
    )
    one = Problem(task=at_the_end, reference={}, source="test")
    for shown, status in (('"5"', ScoreStatus.OK), ('"4"', ScoreStatus.OK), ('"6"', ScoreStatus.POLICY_FAIL)):
        score, _, _ = play(one, [right(one)[0].replace('"5"', shown)])
        assert score.status is status, shown


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def f(n):\n    import os\n    os._exit(0)\n", "cannot be debugged (ended)"),
        ("def f(n:\n", "cannot be debugged (syntax_error)"),
        ("def g():\n    pass\n", "entry 'f' is not defined"),
        ("import random\ndef f(n):\n    return random.random()\n", "does not repeat itself"),
    ],
)
def test_programs_that_cannot_be_debugged_are_not_graded(source: str, reason: str) -> None:
    score, _, _ = play(problem(["step_into"], source=source), [""] * 4)
    assert (score.status, score.reward) == (ScoreStatus.UNGRADABLE, None) and reason in score.reason


def source(options: dict[str, Any], *, path: Path | None = None) -> ProblemSource:
    config = TaskConfig(kind="traces", env="trace_debugger", path=str(path) if path else None, options=options)
    return build_source("steps", config=config, seed=3)


def test_generated_programs_are_walked_and_their_replies_pass() -> None:
    made = source({"levels": "easy", "turns": 5, "actions": "all"})
    problems = [made.problem(index) for index in range(4)]
    assert problems == [source({"levels": "easy", "turns": 5, "actions": "all"}).problem(index) for index in range(4)]
    assert problems[0].task.prompt[0].content == INSTRUCTIONS
    for one in problems:
        score, _, last = play(one, one.reference["replies"])
        assert (score.status, last.done, len(one.reference["replies"])) == (ScoreStatus.OK, True, 5), score.reason


def test_programs_of_a_file_are_walked_several_times(tmp_path: Path) -> None:
    rows = ({"id": "half", "source": SOURCE, "entry": "f", "args": "[5]"}, {"id": "bad", "source": "def f(:\n", "entry": "f"})
    (tmp_path / "programs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = source({"walks": 3, "turns": 2, "actions": "reverse_into reverse_return"}, path=tmp_path / "programs.jsonl")
    assert made.size == 3
    problems = [made.problem(index) for index in range(3)]
    assert [one.task.id for one in problems] == ["half", "half/1", "half/2"]
    assert len({one.task.payload["walk"] for one in problems}) == 3
    score, _, _ = play(problems[2], problems[2].reference["replies"])
    assert score.status is ScoreStatus.OK


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"actions": "step_intoo"}, "tasks.steps.options.actions: unknown action 'step_intoo'; did you mean 'step_into'"),
        ({"actions": ""}, "unknown action ''"),
        ({"turns": 0}, "tasks.steps.options.turns is 0; it must be >= 1"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        source(options)
    with pytest.raises(ValueError, match="is for env=trace_debugger, and env is trace_full: take it out"):
        build_source("steps", config=TaskConfig(kind="traces", env="trace_full", options=options), seed=3)


def test_a_wrong_payload_is_named() -> None:
    for change, reason in (
        ({"code": ""}, "field 'code'"),
        ({"args": "[f]"}, "no Python literal"),
        ({"turns": "4"}, "field 'turns' is '4'"),
    ):
        with pytest.raises(ValueError, match=reason):
            TraceDebugger(replace(problem().task, payload={**problem().task.payload, **change}))
