"""Graders of predicted values: what a call returns (`trace_output`), and which arguments make it return a value (`trace_input`)."""

from dataclasses import replace

from environments.code_tests.compare import literal
from environments.code_tests.records import InputTest, Judging
from environments.fenced import ExtractionError, code_block
from environments.records import Episode, Problem
from environments.reply import THINK_END, final_part
from environments.traces.call_frame import call_arguments
from environments.traces.tasks import INPUT, OUTPUT, InputTask, OutputTask, ends_entry, frames_text, read_trace_task
from environments.traces.text import parse_frames
from rewards.code import FAIL_REWARD, CodeGrader, score_of
from rewards.code_output import CodeOutputGrader
from rewards.format import think_problem
from rewards.score import Score, ScoreStatus


class TraceOutputGrader:
    """+1 when the reply's only fenced block is the returned value, -1 otherwise.

    Values are compared as Python literals of equal types all the way down: 1 is neither 1.0 nor True, a tuple no list; the order of a dict
    or set does not matter. Without `reasoning` the reply is the block alone; with it there is exactly one `</think>` in front.
    """

    def __init__(self) -> None:
        self._answer = CodeOutputGrader()

    async def grade(self, problem: Problem, episode: Episode) -> Score:
        try:
            task = read_trace_task(OUTPUT, problem.reference)
        except ValueError as error:
            return ungradable(problem, str(error))
        assert isinstance(task, OutputTask), "of this environment"
        wrong = think_problem(episode.response) if task.reasoning else _direct_problem(episode.response)
        if wrong:
            return policy_fail(wrong)
        return await self._answer.grade(replace(problem, reference={"answer": task.answer, "compare": "value"}), episode)

    async def close(self) -> None:
        await self._answer.close()


class TraceInputGrader(CodeGrader):
    """+1 when the reply's only fenced block holds arguments for which the function returns the value, -1 otherwise.

    The arguments are positional literals. The function runs in the sandbox. With `frames` the reply is a whole trace of the call, and its
    first frame shows the arguments.
    """

    async def grade(self, problem: Problem, episode: Episode) -> Score:
        try:
            task = read_trace_task(INPUT, problem.reference)
        except ValueError as error:
            return ungradable(problem, str(error))
        assert isinstance(task, InputTask), "of this environment"
        try:
            said = _traced_input(task, episode.response) if task.frames else code_block(episode.response, languages=())
            arguments = literal_arguments(said)
        except (ExtractionError, ValueError) as error:
            return policy_fail(str(error))
        test = InputTest(code=task.code, entry=task.entry, output=task.output, known_input=task.known_input, judging=Judging())
        report = await self._shared(test, arguments)
        if report.broken:
            return ungradable(problem, report.broken, log=report.log)
        return score_of(report, partial_credit=False)


def _traced_input(task: InputTask, response: str) -> str:
    """The arguments that a trace begins with. Raises ValueError for one that is malformed or does not go to its end."""
    events, _ = parse_frames(frames_text(final_part(response)), source=task.code)
    if not ends_entry(events):
        raise ValueError("the frames do not go to the return of the entry")
    return call_arguments(events[0], source=task.code, entry=task.entry)


def literal_arguments(text: str) -> str:
    """Positional arguments, written anew from their values. Raises ValueError for anything else, whatever it would do when it ran."""
    try:
        values = literal(f"({text.strip().removesuffix(',')},\n)") if text.strip() else ()
        assert type(values) is tuple, "of a trailing comma"
        return ", ".join(map(repr, values))
    except (ValueError, RecursionError) as error:  # also of integers with too many digits
        raise ValueError(f"the input is no list of Python literals: {error}"[:300]) from None


def ungradable(problem: Problem, why: str, *, log: str = "") -> Score:
    """The problem's own fault."""
    return Score(reward=None, status=ScoreStatus.UNGRADABLE, reason=f"problem {problem.task.id}: {why}", log=log)


def policy_fail(why: str) -> Score:
    """A reply without an answer."""
    return Score(reward=FAIL_REWARD, status=ScoreStatus.POLICY_FAIL, reason=why)


def _direct_problem(response: str) -> str:
    """Why a reply is not the answer alone."""
    if THINK_END in response:
        return f"{THINK_END} in a reply that must be the answer alone"
    reply = response.strip()
    if not (reply.startswith("```") and reply.endswith("```")):
        return "the reply must be one fenced block and nothing else"
    return ""
