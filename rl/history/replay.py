"""`rl replay`: a rollout's recorded actions in a fresh environment; what comes back is compared turn by turn, and so is the score.

The policy's part is the log's: no model runs. The environment is told the budgets of the recording, not of the replay, so what it says
about them is not a difference.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from configs.schema import Config
from environments.protocol import Budgeted
from environments.records import Budget, Episode, Json, Message, Problem, StepResult, StopReason
from environments.registry import environment_version, make_environment
from environments.sandbox.base import SandboxUnavailable
from rewards.score import Score, ScoreStatus
from rl.errors import RunFailed
from rl.grade import grade_with_retries
from rl.graders import Graders
from rl.history.observations import Compared, compare, unified
from rl.history.problems import RunProblems, check_image, run_config
from rl.history.recorded import Row, Said, check_schema, find_row, read_messages
from rl.log.query import RunLog, json_line
from rl.log.runs import find_run
from rl.log.text import shorten, visible

OPENING = "opening"
_DIFFS_SHOWN, _DIFF_LINES = 5, 60
_CUT = (StopReason.MAX_TOKENS, StopReason.CONTEXT_FULL, StopReason.SCRIPT_END)
_SAID_CHARS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """A rollout as it was played."""

    row: Row
    opening: tuple[Said, ...]
    turns: tuple[Said, ...]
    """What the policy said."""
    answers: tuple[tuple[Said, ...], ...]
    """What it was shown after each turn."""
    restarts: tuple[int, ...]
    """Positions in the token stream at which the conversation was rendered anew."""

    @property
    def ended(self) -> StopReason:
        """Why the episode ended."""
        return StopReason(self.row.stop_reason)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One turn, played again."""

    turn: str
    """Number from 0, or `opening`."""
    said: str
    compared: Compared


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """A rollout, played again."""

    row: Row
    steps: tuple[Step, ...]
    not_played: int
    """Recorded actions behind the one that ended the replay."""
    outcome: Compared
    score: Score | None
    """None where the recorded episode was not graded."""
    score_same: bool
    notes: tuple[str, ...]

    @property
    def first_divergence(self) -> str | None:
        """Turn of the first difference: its number, `opening`, `outcome` or `score`."""
        for step in self.steps:
            if step.compared.verdict == "diverged":
                return step.turn
        return "outcome" if self.outcome.verdict == "diverged" else None if self.score_same else "score"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        row, score = self.row, self.score
        return {
            "rollout_id": row.rollout_id,
            "task_id": row.task_id,
            "env": row.env,
            "same": self.first_divergence is None,
            "first_divergence": self.first_divergence,
            "turns": [{"turn": step.turn, "said": step.said, **asdict(step.compared)} for step in self.steps],
            "not_played": self.not_played,
            "outcome": asdict(self.outcome),
            "score": {
                "same": self.score_same,
                "recorded": {"reward": row.reward, "status": row.status, "reason": row.reason},
                "replayed": score and {"reward": score.reward, "status": score.status.value, "reason": score.reason},
            },
            "notes": list(self.notes),
        }

    def text(self) -> str:
        """For a person."""
        row = self.row
        lines = [f"rollout {row.rollout_id}, task {row.task_id} ({row.env})", *(f"note: {note}" for note in self.notes)]
        shown = 0
        for step in self.steps:
            compared = step.compared
            said = f"  {shorten(visible(step.said, one_line=True), _SAID_CHARS)}" if step.said else ""
            rules = f" ({', '.join(compared.rules)})" if compared.rules else ""
            mark = "DIVERGED" if compared.verdict == "diverged" else compared.verdict.replace("_", " ")
            lines.append(f"turn {step.turn}: {mark}{rules}" + (f": {compared.why}" if compared.why else "") + said)
            if compared.diff and shown < _DIFFS_SHOWN:
                shown += 1
                lines += _indented(compared.diff)
        if self.not_played:
            lines.append(f"not played: {self.not_played} further recorded actions")
        if self.outcome.verdict == "diverged":
            lines += [f"outcome: DIVERGED: {self.outcome.why}", *_indented(self.outcome.diff)]
        lines.append(self._score_line())
        return visible("\n".join([*lines, self._verdict()]))

    def _verdict(self) -> str:
        first = self.first_divergence
        if first is not None:
            return f"first divergence: {_place(first)}"
        unknown = (
            sum(step.compared.verdict == "unknown" for step in self.steps) + (self.outcome.verdict == "unknown") + (self.score is None)
        )
        return f"same, as far as the log goes ({unknown} not compared)" if unknown else "same: every observation, the outcome and the score"

    def _score_line(self) -> str:
        recorded = f"{_reward(self.row.reward)} {self.row.status}"
        if self.score is None:
            return f"score: not compared; recorded {recorded}: {self.row.reason}"
        now = f"{_reward(self.score.reward)} {self.score.status.value}"
        if self.score_same:
            return f"score: same, {now}: {self.score.reason}"
        return f"score: DIVERGED\n  recorded {recorded}: {self.row.reason}\n  replayed {now}: {self.score.reason}"


def replay_command(run: str, rollout: str, *, exact: bool, as_json: bool) -> int:
    """Exit status: 0 the same, 1 diverged. Raises ValueError for an unknown run or rollout and for a log or task that no longer has what
    is needed, RunFailed when the environment or the grader fails by infrastructure."""
    root = find_run(run)
    with RunLog(root) as log:
        row = find_row(log, rollout)
        check_schema(root)
        recording = read_recording(log, row)
    config = run_config(root)
    problem = RunProblems(config).of(row)
    replay = asyncio.run(play_again(config, recording, problem, exact=exact))
    print(json_line(replay.to_json()) if as_json else replay.text())
    return 0 if replay.first_divergence is None else 1


def read_recording(log: RunLog, row: Row) -> Recording:
    """A rollout's messages, parted by its turns. Raises ValueError for one in which the policy said nothing."""
    messages = read_messages(log, [row])[row.rollout_id]
    spoken = [index for index, said in enumerate(messages) if said.turn is not None]
    if not spoken:
        raise ValueError(f"rollout {row.rollout_id} has no turn to play again ({row.stop_reason} {row.error_type or ''})".rstrip())
    sql = "SELECT segments FROM tokens WHERE rollout_id = ? AND dispatch_version = ?"
    segments = next(iter(log.query(sql, (row.rollout_id, row.dispatch_version)).rows), ((),))[0]
    return Recording(
        row=row,
        opening=messages[: spoken[0]],
        turns=tuple(messages[index] for index in spoken),
        answers=tuple(messages[start + 1 : end] for start, end in zip(spoken, [*spoken[1:], len(messages)], strict=True)),
        restarts=tuple(int(segment["start"]) for segment in segments if segment["kind"] == "restart"),
    )


async def play_again(config: Config, recording: Recording, problem: Problem, *, exact: bool) -> Replay:
    """Play the recorded actions until they or the episode are over, then grade. Raises RunFailed."""
    notes = await _notes(recording, problem)
    environment = make_environment(problem.task)
    messages: list[Message] = []
    steps: list[Step] = []
    result = StepResult(done=False)
    try:
        try:
            opening = await environment.reset()
            messages += opening
            steps.append(Step(turn=OPENING, said="", compared=compare(recording.opening, opening, exact=exact)))
            for number, said in enumerate(recording.turns):
                if isinstance(environment, Budgeted):
                    environment.note_budget(_budget(config, recording, number))
                action = Message(role="assistant", content=said.message.content)
                result = await environment.step(action)
                messages += [action, *(() if result.done else result.messages)]
                steps.append(Step(turn=str(number), said=said.message.content, compared=_compared(recording, number, result, exact=exact)))
                if result.done:
                    break
        finally:
            await environment.close()
    except SandboxUnavailable:
        raise
    except Exception as error:
        raise RunFailed(f"the environment failed after {max(0, len(steps) - 1)} turns: {type(error).__name__}: {error}") from error
    not_played = len(recording.turns) - (len(steps) - 1)
    stop_reason = _stop_reason(recording, result, played=len(steps) - 1)
    episode = Episode(
        messages=tuple(messages),
        stop_reason=stop_reason,
        n_sampled_tokens=recording.row.sampled_tokens,
        outcome=result.outcome,
        policy_version=recording.row.dispatch_version,
    )
    score = await _score(config, recording.row, problem, episode)
    return Replay(
        row=recording.row,
        steps=tuple(steps),
        not_played=not_played,
        outcome=_outcome(recording.row, result.outcome),
        score=score,
        score_same=score is None or (score.reward, score.status.value) == (recording.row.reward, recording.row.status),
        notes=tuple(notes),
    )


def _compared(recording: Recording, number: int, result: StepResult, *, exact: bool) -> Compared:
    last = number == len(recording.turns) - 1
    answer, ended = recording.answers[number], recording.ended
    if not last:
        if result.done:
            return Compared(verdict="diverged", why="the episode ends here, and the recorded one went on")
        return compare(answer, result.messages, exact=exact)
    if ended in (StopReason.DONE, StopReason.MAX_TOKENS) and not result.done:
        return Compared(verdict="diverged", why="the recorded episode ended here, and this one goes on")
    if ended in (StopReason.MAX_TURNS, StopReason.MAX_SECONDS) and result.done:
        return Compared(verdict="diverged", why="the episode ends here, and the recorded one was cut off by a limit")
    if result.done:
        return Compared(verdict="same")
    if answer:  # it came before the context was full
        return compare(answer, result.messages, exact=exact)
    return Compared(verdict="unknown", why=f"the recorded episode was cut off here ({ended.value}), so the log has no answer")


def _stop_reason(recording: Recording, result: StepResult, *, played: int) -> StopReason:
    """As a rollout worker would name it."""
    if not result.done:
        return recording.ended
    finish = recording.turns[played - 1].finish_reason
    cut = StopReason(finish) if finish else StopReason.STOP_TOKEN
    return cut if cut in _CUT else result.stop_reason or StopReason.DONE


def _budget(config: Config, recording: Recording, number: int) -> Budget:
    """What was left after a turn when it was recorded."""
    said, limits = recording.turns[number], config.rollout
    end = said.token_end or 0
    start = max((at for at in recording.restarts if at <= (said.token_start or 0)), default=0)
    spent = max(0.0, (said.ended or 0.0) - (recording.turns[0].started or 0.0))
    return Budget(
        turns=limits.max_turns - (number + 1),
        tokens=config.model.context_length - (end - start),
        seconds=max(0.0, limits.max_seconds - spent),
        seconds_in_all=limits.max_seconds,
    )


def _outcome(row: Row, outcome: Mapping[str, Json]) -> Compared:
    if not row.finished:
        return Compared(verdict="unknown", why="the recorded episode has none")
    then, now = (json.dumps(dict(value), indent=1, sort_keys=True).replace("\\n", "\n") for value in (row.read_outcome(), outcome))
    if then == now:
        return Compared(verdict="same")
    return Compared(verdict="diverged", why="the environment hands over something else", diff=unified(then, now))


async def _score(config: Config, row: Row, problem: Problem, episode: Episode) -> Score | None:
    """By the reward of the run; None where the recorded episode has no verdict to compare with."""
    if not row.finished or row.status == ScoreStatus.INFRA.value:
        return None
    graders = Graders(config.tasks)
    try:
        score = await grade_with_retries(graders.of(problem), problem, episode)
    finally:
        await graders.close()
    if score.status is ScoreStatus.INFRA:
        raise RunFailed(f"the replay could not be graded: {score.reason}")
    return score


async def _notes(recording: Recording, problem: Problem) -> list[str]:
    """What is another than at the time of the recording, and so may be why something differs."""
    row, notes = recording.row, []
    if row.env_version and (now := environment_version(row.env)) != row.env_version:
        notes.append(f"the environment is {now} now, and was {row.env_version}")
    if "folder" in problem.reference:
        try:
            await check_image(problem, row)
        except SandboxUnavailable:
            raise
        except ValueError as error:
            notes.append(str(error))
    if not row.finished:
        notes.append(f"infrastructure cut the recorded episode off ({row.error_type}), so its end is not compared")
    return notes


def _indented(diff: str) -> list[str]:
    lines = diff.split("\n")
    more = [f"    ({len(lines) - _DIFF_LINES} more lines: --json has them)"] if len(lines) > _DIFF_LINES else []
    return [*(f"    {line}" for line in lines[:_DIFF_LINES]), *more]


def _place(first: str) -> str:
    return f"turn {first}" if first.isdecimal() else f"the {first}"


def _reward(reward: float | None) -> str:
    return "none" if reward is None else f"{reward:g}"
