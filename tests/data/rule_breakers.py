"""Environments and rewards that break one rule of `rl env check` each; `Adder` and `adds` break none."""

import asyncio
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from environments.records import Message, Problem, StepResult, StopReason, Task
from environments.single_turn import SingleTurn

ANSWERS = {"a": "15", "b": "42"}
DONE = StepResult(done=True, stop_reason=StopReason.DONE)


def problems(**payload: Any) -> list[Problem]:
    questions = {"a": "7+8=", "b": "21+21="}
    return [
        Problem(
            task=Task(id=key, env="adder", prompt=(Message(role="user", content=text),), payload=payload),
            reference={"answer": ANSWERS[key], "solution": f"It is <{ANSWERS[key]}>"},
            source="examples",
        )
        for key, text in questions.items()
    ]


def adds(problem: Problem, response: str) -> float:
    found = re.fullmatch(r"It is <(\d{1,9})>", response)
    return 1.0 if found and found[1] == problem.reference["answer"] else -1.0


class Adder(SingleTurn):
    """Asks once more when the reply has no answer."""

    asked = False

    @staticmethod
    def examples() -> list[Problem]:
        return problems()

    async def step(self, action: Message) -> StepResult:
        if self.asked or "<" in action.content:
            return DONE
        self.asked = True
        return StepResult(done=False, messages=(Message(role="user", content="Say: It is <number>"),))


def _local() -> Callable[[Task], Adder]:
    class Local(Adder):
        pass

    return Local


unpicklable = _local()


class Random(Adder):
    async def reset(self) -> tuple[Message, ...]:
        return (*self.task.prompt, Message(role="user", content=f"Hint {random.random()}"))


class Hashed(Adder):
    """Set order is another in each process."""

    async def reset(self) -> tuple[Message, ...]:
        return (*self.task.prompt, Message(role="user", content=" ".join({"plus", "minus", "times", "over", "of", "and"})))


class Remembers(Adder):
    episodes = 0

    async def reset(self) -> tuple[Message, ...]:
        Remembers.episodes += 1
        return (*self.task.prompt, Message(role="user", content=f"Episode {self.episodes}"))


class NoSolution(Adder):
    @staticmethod
    def examples() -> list[Problem]:
        return [Problem(task=one.task, reference={"answer": one.reference["answer"]}, source=one.source) for one in problems()]


def too_strict(problem: Problem, response: str) -> float:
    return 1.0 if response == problem.reference["answer"] else -1.0


def likes_silence(problem: Problem, response: str) -> float:
    return 1.0 if response == "" else adds(problem, response)


def looks_anywhere(problem: Problem, response: str) -> float:
    return 1.0 if problem.reference["answer"] in response else -1.0


class Payload(Adder):
    @staticmethod
    def examples() -> list[Problem]:
        return [
            Problem(
                task=Task(id=one.task.id, env="adder", prompt=one.task.prompt, payload={"answer": one.reference["answer"]}),
                reference=one.reference,
                source=one.source,
            )
            for one in problems()
        ]


class Holds(Adder):
    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.memory = {"wanted": [ANSWERS[task.id]]}


class Tells(Adder):
    async def step(self, action: Message) -> StepResult:
        result = await super().step(action)
        if result.done:
            return result
        return StepResult(done=False, messages=(*result.messages, Message(role="user", content=f"(It is {ANSWERS[self.task.id]}.)")))


class LeavesFiles(Adder):
    opened: list[Any] = []  # noqa: RUF012

    async def reset(self) -> tuple[Message, ...]:
        self.opened.append(open(os.devnull))  # noqa: SIM115
        return self.task.prompt


class LeavesProcesses(Adder):
    async def reset(self) -> tuple[Message, ...]:
        subprocess.Popen(["sleep", "30"])
        return self.task.prompt


class LeavesThreads(Adder):
    async def reset(self) -> tuple[Message, ...]:
        threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
        return self.task.prompt


class LeavesTasks(Adder):
    kept: list[Any] = []  # noqa: RUF012

    async def reset(self) -> tuple[Message, ...]:
        self.kept.append(asyncio.create_task(asyncio.sleep(30)))
        return self.task.prompt


class CloseNeedsReset(Adder):
    async def reset(self) -> tuple[Message, ...]:
        self.started = True
        return self.task.prompt

    async def close(self) -> None:
        assert self.started


class Raises(Adder):
    async def step(self, action: Message) -> StepResult:
        assert len(action.content) < 1000, "too long"
        return await super().step(action)


class Exits(Adder):
    async def step(self, action: Message) -> StepResult:
        if "raise SystemExit" in action.content:
            sys.exit(0)
        return await super().step(action)


def executes(problem: Problem, response: str) -> float:
    """What nobody should do."""
    code = re.fullmatch(r"```python\n(.*)\n```", response, re.DOTALL)
    if code and "os._exit" in code[1]:
        exec(code[1])
    return adds(problem, response)


class Waits(Adder):
    async def step(self, action: Message) -> StepResult:
        if "\x00" in action.content:
            await asyncio.sleep(60)
        return await super().step(action)


def blocks(problem: Problem, response: str) -> float:
    if "\x00" in response:
        time.sleep(60)
    return adds(problem, response)


class SyncStep(Adder):
    def step(self, action: Message) -> StepResult:  # type: ignore[override]
        return DONE


class NeedsMore(Adder):
    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.level = task.payload["level"]


class StepSaysNothing(Adder):
    async def step(self, action: Message) -> StepResult:
        return None  # type: ignore[return-value]


class ResetSaysNothing(Adder):
    async def reset(self) -> tuple[Message, ...]:
        return None  # type: ignore[return-value]


class AlwaysBlocks(Adder):
    async def step(self, action: Message) -> StepResult:
        time.sleep(60)
        return DONE


class AlwaysWaits(Adder):
    async def step(self, action: Message) -> StepResult:
        await asyncio.sleep(60)
        return DONE


class ShowsShort(Adder):
    """The answers, of two digits, stand in every prompt."""

    @staticmethod
    def examples() -> list[Problem]:
        return [_asked(one, text=f"{one.task.prompt[0].content} (the answer is {one.reference['answer']})") for one in problems()]


class ManyChoices(Adder):
    """Every prompt shows all answers that there are: that tells nothing."""

    @staticmethod
    def examples() -> list[Problem]:
        return [_asked(one, text=f"{one.task.prompt[0].content} Is it 15 or 42?") for one in problems()]


class ShortPayload(Adder):
    @staticmethod
    def examples() -> list[Problem]:
        return [
            Problem(
                task=Task(id=one.task.id, env="adder", prompt=one.task.prompt, payload={"hint": one.reference["answer"]}),
                reference=one.reference,
                source=one.source,
            )
            for one in problems()
        ]


def _asked(one: Problem, *, text: str) -> Problem:
    task = Task(id=one.task.id, env="adder", prompt=(Message(role="user", content=text),))
    return Problem(task=task, reference=one.reference, source=one.source)


class OneWrong(Adder):
    """The last of six solutions is wrong."""

    @staticmethod
    def examples() -> list[Problem]:
        made = []
        for number in range(6):
            task = Task(id=str(number), env="adder", prompt=(Message(role="user", content=f"{number}+40="),))
            told = number + 40 + (number == 5)
            made.append(Problem(task=task, reference={"answer": str(number + 40), "solution": f"It is <{told}>"}, source="examples"))
        return made


def tells_nothing(problem: Problem, response: str) -> float:
    return None  # type: ignore[return-value]


def tells_text(problem: Problem, response: str) -> float:
    return "good"  # type: ignore[return-value]
