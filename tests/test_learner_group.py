"""Learner ranks that die, freeze or hang, on fake processes: the run ends and names the one to blame."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import rl.learner_group
from rl.errors import PartDied
from rl.learner_group import LearnerGroup
from tests.fakes import FakeHealth, FakePart


def act(
    during: Callable[[list[FakePart], FakeHealth], None], *, timeout: float = 20.0, ranks: int = 2, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """A training step that no rank finishes, and what happens to it."""
    monkeypatch.setattr(rl.learner_group, "_LOOK_SECONDS", 0.02)

    async def body() -> Any:
        parts = [FakePart(f"learner-{rank}.a", {"train_step": lambda batch: asyncio.Event().wait()}) for rank in range(ranks)]
        health = FakeHealth()
        group = LearnerGroup(parts, health=health, timeout=timeout, part_timeout=60.0, deltas=False)
        step = asyncio.create_task(group.train_step([[]] * ranks))
        while not all(part.calls for part in parts):
            await asyncio.sleep(0.001)
        during(parts, health)
        return await asyncio.wait_for(step, 20)

    return asyncio.run(body())


def test_a_frozen_rank_is_named_while_the_others_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def freeze(parts: list[FakePart], health: FakeHealth) -> None:
        health.silent["learner-1"] = 61.0

    with pytest.raises(
        PartDied, match=r"learner rank 1 has given no sign of life for 61 s .* during train_step.*status of learner-1.*--resume"
    ):
        act(freeze, monkeypatch=monkeypatch)


def test_a_dead_rank_is_named_with_its_last_status(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PartDied, match=r"learner rank 0 died during train_step: .*Its last status: status of learner-0"):
        act(lambda parts, health: parts[0].kill(), monkeypatch=monkeypatch)


def test_a_call_past_its_deadline_tells_what_every_rank_does(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PartDied, match=r"did not finish train_step.*rank 0: status of learner-0; rank 1: status of learner-1.*oldest"):
        act(lambda parts, health: None, timeout=0.1, monkeypatch=monkeypatch)


def test_what_a_rank_raises_is_raised_at_once() -> None:
    async def body() -> None:
        def broken(folder: Any) -> None:
            raise ValueError("the checkpoint is damaged")

        parts = [FakePart("learner-0.a", {"load": broken}), FakePart("learner-1.a", {"load": lambda folder: asyncio.Event().wait()})]
        await LearnerGroup(parts, health=FakeHealth(), timeout=20.0, part_timeout=60.0, deltas=False).load(None)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="the checkpoint is damaged"):
        asyncio.run(asyncio.wait_for(body(), 20))
