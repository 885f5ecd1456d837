"""The generator service: swaps between steps, lockstep rounds, failures that reach every waiter."""

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from rl.generator import Generator, GeneratorClosed
from rl.records import WeightBucket, WeightSlice
from rl.weight_sync import WeightSyncError, checksum
from tests.fakes import FakeEngine, make_request


def run(scenario: Callable[[FakeEngine, Generator], Awaitable[None]], *, lockstep: bool) -> None:
    async def body() -> None:
        engine = FakeEngine()
        generator = Generator(engine, lockstep=lockstep)
        try:
            await asyncio.wait_for(scenario(engine, generator), 30)
        finally:
            generator.close()

    asyncio.run(body())


def bucket(version: int, value: float) -> WeightBucket:
    data = np.full(4, value, np.float32).view(np.uint8)
    slices = (WeightSlice(name="weight", start=0, values=data, count=4),)
    return WeightBucket(version=version, rank=0, index=0, last=True, dtype="float32", slices=slices, checksum=checksum(slices))


async def swap(generator: Generator, version: int, value: float) -> str:
    await generator.begin_weights(version)
    await generator.load_bucket(bucket(version, value))
    return await generator.commit_weights(version)


def test_weights_swap_between_steps_without_dropping_requests() -> None:
    async def scenario(engine: FakeEngine, generator: Generator) -> None:
        request = asyncio.create_task(generator.generate(make_request("a", tokens=200_000)))
        while not engine.busy:
            await asyncio.sleep(0.001)
        await swap(generator, 7, 1.5)
        (completion,) = await request
        versions = completion.versions_T
        assert set(versions.tolist()) == {0, 7}
        assert (np.diff(versions) >= 0).all(), "once a token carries the new version, all later ones do"
        assert engine.weight.tolist() == [1.5] * 4

    run(scenario, lockstep=False)


def test_first_token_after_a_swap_carries_the_new_version() -> None:
    async def scenario(engine: FakeEngine, generator: Generator) -> None:
        await swap(generator, 3, 0.5)
        (completion,) = await generator.generate(make_request("a"))
        assert completion.versions_T.tolist() == [3, 3, 3]

    run(scenario, lockstep=False)


def test_a_damaged_bucket_is_refused_by_name() -> None:
    async def scenario(engine: FakeEngine, generator: Generator) -> None:
        await generator.begin_weights(1)
        good = bucket(1, 1.0)
        bad = WeightBucket(version=1, rank=0, index=0, last=True, dtype="float32", slices=good.slices, checksum=good.checksum + 1)
        with pytest.raises(WeightSyncError, match="checksum"):
            await generator.load_bucket(bad)

    run(scenario, lockstep=False)


def test_lockstep_waits_for_every_live_episode_and_sorts() -> None:
    async def scenario(engine: FakeEngine, generator: Generator) -> None:
        await generator.expect(["b-0", "a-0", "c-0"])
        requests = [asyncio.create_task(generator.generate(make_request(key))) for key in ("c", "a")]
        await asyncio.sleep(0.05)
        assert engine.submitted == [], "b has neither asked nor been released"
        requests.append(asyncio.create_task(generator.generate(make_request("b"))))
        await asyncio.gather(*requests)
        assert engine.submitted == ["a", "b", "c"]

    run(scenario, lockstep=True)


def test_lockstep_goes_on_when_the_missing_episode_is_released() -> None:
    async def scenario(engine: FakeEngine, generator: Generator) -> None:
        await generator.expect(["a-0", "b-0"])
        request = asyncio.create_task(generator.generate(make_request("a")))
        await asyncio.sleep(0.02)
        await generator.release(["b-0"])
        await request
        assert engine.submitted == ["a"]

    run(scenario, lockstep=True)


def test_an_impossible_request_fails_alone() -> None:
    async def scenario(engine: FakeEngine, generator: Generator) -> None:
        good = asyncio.create_task(generator.generate(make_request("a")))
        with pytest.raises(ValueError, match="more than 100"):
            await generator.generate(make_request("b", prompt=200))
        assert len(await good) == 1

    run(scenario, lockstep=False)


def test_an_engine_failure_reaches_every_waiter_and_later_callers() -> None:
    async def scenario(engine: FakeEngine, generator: Generator) -> None:
        def broken() -> None:
            raise RuntimeError("out of memory")

        engine.step = broken  # type: ignore[assignment,method-assign]
        with pytest.raises(GeneratorClosed, match="out of memory"):
            await generator.generate(make_request("a"))
        with pytest.raises(GeneratorClosed):
            await generator.generate(make_request("b"))

    run(scenario, lockstep=False)
