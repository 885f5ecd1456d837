"""Client of `rewards/math_worker.py`: warm processes that are killed when a comparison takes too long."""

import contextlib
from collections.abc import AsyncIterator
from typing import Literal

from rewards.warm_worker import DiedTwice, Stopwatch, TookTooLong, WarmPool, WarmWorker

Operation = Literal["check", "compare", "near", "opinion"]
Verdict = Literal["equal", "different", "bad_gold", "bad_answer", "too_slow"]
_PROCESSES = 2
"""One hostile answer does not hold up the others."""


class MathWorker:
    """math-verify in a process of its own, or in a pool of them."""

    def __init__(self, asked: WarmPool | WarmWorker) -> None:
        self._asked = asked

    async def verdict(
        self, operation: Operation, *, gold: str, answer: str = "", seconds: float, stopwatch: Stopwatch | None = None
    ) -> Verdict:
        """Ask about LaTeX expressions; `too_slow` after `seconds` of work. Raises RuntimeError when no process can be started."""
        request = {"op": operation, "gold": gold, "answer": answer}
        try:
            reply = await self._asked.ask(request, seconds=seconds, stopwatch=stopwatch)
        except (TookTooLong, DiedTwice):
            return "too_slow"
        verdict: Verdict = reply["verdict"]
        return verdict


class MathWorkers(MathWorker):
    """The pool of a grader."""

    def __init__(self) -> None:
        self._pool = WarmPool("rewards.math_worker", what="the math-verify worker", size=_PROCESSES)
        super().__init__(self._pool)

    @property
    def running(self) -> int:
        """How many processes are running."""
        return self._pool.running

    @property
    def idle(self) -> bool:
        """Whether one is free to answer at once."""
        return self._pool.idle

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[MathWorker]:
        """One process, while the others have nothing to do."""
        async with self._pool.alone() as worker:
            yield MathWorker(worker)

    async def warm_up(self) -> None:
        """Start a process if there is none. Raises RuntimeError when that fails."""
        await self._pool.warm_up()

    async def close(self) -> None:
        """End the processes."""
        await self._pool.close()
