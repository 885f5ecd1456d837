"""The worker processes of the math grader: killed, replaced, shared fairly; nobody's wait is another one's mistake."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from environments.records import Episode, Message, Problem, StopReason, Task
from rewards.math import MathGrader
from rewards.math_client import MathWorkers
from rewards.score import Score, ScoreStatus
from rewards.warm_worker import TookTooLong, WarmPool, WarmWorker

SLOW = {"op": "compare", "gold": "x+1", "answer": "9^{9^{9}}"}


async def grade(grader: MathGrader, gold: str, answer: str) -> Score:
    problem = Problem(task=Task(id="t", env="math", prompt=()), reference={"answer": gold}, source="test")
    message = Message(role="assistant", content=f"\\boxed{{{answer}}}")
    return await grader.grade(problem, Episode(messages=(message,), stop_reason=StopReason.DONE, n_sampled_tokens=1))


def pool_of(workers: MathWorkers) -> WarmPool:
    return workers._pool


def process(workers: MathWorkers) -> asyncio.subprocess.Process:
    (running,) = [worker._process for worker in pool_of(workers)._workers if worker._process]
    return running


def test_a_slow_comparison_is_killed_and_the_next_one_works() -> None:
    async def main() -> tuple[str, ...]:
        workers = MathWorkers()
        first = await workers.verdict("compare", gold="x+1", answer="1+x", seconds=60)
        slow = await workers.verdict("compare", gold="x+1", answer="9^{9^{9}}", seconds=2)
        assert workers.running == 0
        after = await workers.verdict("compare", gold="x+1", answer="x+2", seconds=60)
        await workers.close()
        return first, slow, after

    verdicts: list[tuple[str, ...]] = []
    thread = threading.Thread(target=lambda: verdicts.append(asyncio.run(main())))  # where alarm signals do not work
    thread.start()
    thread.join()
    assert verdicts == [("equal", "too_slow", "different")]


def test_a_worker_that_dies_is_replaced() -> None:
    async def main() -> str:
        workers = MathWorkers()
        await workers.warm_up()
        process(workers).kill()
        verdict = await workers.verdict("compare", gold="x+1", answer="1+x", seconds=60)
        await workers.close()
        return verdict

    assert asyncio.run(main()) == "equal"


def test_a_cancelled_comparison_leaves_no_stale_verdict() -> None:
    async def main() -> str:
        workers = MathWorkers()
        await workers.warm_up()
        question = asyncio.create_task(workers.verdict("compare", gold="x+1", answer="1+x", seconds=60))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        question.cancel()
        await asyncio.gather(question, return_exceptions=True)
        verdict = await workers.verdict("compare", gold="x+1", answer="x+2", seconds=60)
        await workers.close()
        return verdict

    assert asyncio.run(main()) == "different"


def test_the_wait_for_a_free_worker_does_not_count_against_an_answer() -> None:
    limit = 2.0

    async def main() -> Score:
        grader = MathGrader(timeout_seconds=limit)
        await grade(grader, r"(\sqrt{2}, x+1)", r"(\sqrt{2}, 1+x)")
        async with pool_of(grader._workers).alone():
            waiting = asyncio.create_task(grade(grader, r"(\sqrt{2}, x+1)", r"(2^{1/2}, x+2-1)"))
            await asyncio.sleep(limit + 0.2)
            assert not waiting.done()
        score = await waiting
        await grader.close()
        return score

    assert asyncio.run(main()).reward == 1.0


def test_one_hostile_answer_holds_up_nobody() -> None:
    async def main() -> Score:
        grader = MathGrader()
        await grader._workers.warm_up()
        pool = pool_of(grader._workers)
        hostile = asyncio.create_task(pool.ask(SLOW, seconds=60))
        while pool.idle:
            await asyncio.sleep(0)
        score = await grade(grader, "x+1", "1+x")
        assert not hostile.done() and pool.running == 2
        hostile.cancel()
        await asyncio.gather(hostile, return_exceptions=True)
        await grader.close()
        return score

    assert asyncio.run(main()).reward == 1.0


class ScriptedAsk:
    """Stands in for WarmWorker.ask: notes each question; the first checks of a reference are too slow, one answer takes its time."""

    def __init__(self, *, slow_checks: int) -> None:
        self.slow_checks = slow_checks
        self.asked: list[str] = []
        self.go_on = asyncio.Event()

    async def __call__(self, request: dict[str, Any], **more: Any) -> dict[str, Any]:
        self.asked.append(f"{request['op']} {request['gold']}")
        if request["op"] == "check" and request["gold"] == "x+1" and self.slow_checks:
            self.slow_checks -= 1
            raise TookTooLong
        if request["answer"] == "slow":
            await self.go_on.wait()
            self.asked.append("slow answer done")
        return {"verdict": "equal"}


def scripted(monkeypatch: pytest.MonkeyPatch, *, slow_checks: int) -> ScriptedAsk:
    ask = ScriptedAsk(slow_checks=slow_checks)
    monkeypatch.setattr(WarmWorker, "ask", lambda self, request, **more: ask(request, **more))
    monkeypatch.setattr(WarmWorker, "running", True)
    return ask


def test_a_slow_reference_is_checked_again_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> tuple[list[str], Score]:
        ask = scripted(monkeypatch, slow_checks=1)
        grader = MathGrader()
        busy = asyncio.create_task(grader._workers.verdict("compare", gold="y", answer="slow", seconds=60))
        graded = asyncio.create_task(grade(grader, "x+1", "1+x"))
        while "check x+1" not in ask.asked:
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        assert ask.asked == ["compare y", "check x+1"], "the second check waits until the other worker has nothing to do"
        ask.go_on.set()
        score = await graded
        await busy
        return ask.asked, score

    asked, score = asyncio.run(main())
    assert asked == ["compare y", "check x+1", "slow answer done", "check x+1", "compare x+1", "opinion x+1"]
    assert score.reward == 1.0


def test_a_reference_that_is_slow_twice_is_ungradable_and_asked_about_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> tuple[list[str], list[Score]]:
        ask = scripted(monkeypatch, slow_checks=2)
        grader = MathGrader()
        together = await asyncio.gather(*(grade(grader, "x+1", "1+x") for _ in range(4)))
        return ask.asked, [*together, await grade(grader, "x+1", "1+x")]

    asked, scores = asyncio.run(main())
    assert asked == ["check x+1"] * 2
    assert {score.status for score in scores} == {ScoreStatus.UNGRADABLE} and "too long" in scores[0].reason


def test_a_reference_is_checked_once_for_all_who_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> tuple[list[str], list[Score]]:
        ask = scripted(monkeypatch, slow_checks=0)
        grader = MathGrader()
        return ask.asked, await asyncio.gather(*(grade(grader, "x+1", "1+x") for _ in range(8)))

    asked, scores = asyncio.run(main())
    assert asked.count("check x+1") == 1 and {score.reward for score in scores} == {1.0}


def test_questions_are_taken_in_order_and_alone_means_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> list[str]:
        ask = scripted(monkeypatch, slow_checks=0)
        pool = WarmPool("rewards.math_worker", what="test", size=2)

        async def asks(name: str) -> None:
            await pool.ask({"op": "compare", "gold": name, "answer": "slow" if name == "first" else ""}, seconds=1)

        async def alone() -> None:
            async with pool.alone() as worker:
                await worker.ask({"op": "compare", "gold": "alone", "answer": ""}, seconds=1)

        tasks = [asyncio.create_task(one) for one in (asks("first"), alone(), asks("second"), alone(), asks("third"))]
        for _ in range(100):
            await asyncio.sleep(0)
        assert "compare alone" not in ask.asked
        ask.go_on.set()
        await asyncio.gather(*tasks)
        assert not pool._slots.locked() and len(pool._free) == 2
        return ask.asked

    asked = asyncio.run(main())
    assert sorted(asked) == ["compare alone", "compare alone", "compare first", "compare second", "compare third", "slow answer done"]


def test_closing_ends_the_workers() -> None:
    async def main() -> list[int]:
        grader = MathGrader()
        await asyncio.gather(*(grade(grader, f"x+{n}", f"{n}+x") for n in range(4)))
        pids = [worker._process.pid for worker in pool_of(grader._workers)._workers if worker._process]
        await grader.close()
        return pids

    pids = asyncio.run(main())
    assert len(pids) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in pids)
