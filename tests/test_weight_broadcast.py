"""Weights by broadcast: real gloo on loopback, a thread for each process; what fails stops all, and goes through the object store."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch

from rl.errors import BroadcastFailed, PartDied
from rl.generator import Generator
from rl.generator_pool import GeneratorPool
from rl.learner_group import LearnerGroup
from rl.records import WeightBucket
from rl.weight_broadcast import WeightBroadcast
from rl.weight_frame import decode, encode
from rl.weight_groups import WeightGroups
from rl.weight_listener import WeightListener
from rl.weight_sender import WeightSender
from rl.weight_store import Place, open_store, stop_group, why_stopped
from rl.weight_sync import BaseMissing, Piece, WeightReceiver, WeightSyncError
from tests.fakes import FakeEngine, FakeHealth, FakePart
from tests.test_crew import Stage, play, until
from tests.test_weight_delta import Ranks, bits, empty, take


class Group:
    """Everybody of one group, in threads of this process."""

    def __init__(self, *, senders: int, generators: int, timeout: float = 20.0) -> None:
        self.store = open_store("127.0.0.1")
        self.place = Place(
            group=1,
            backend="gloo",
            host="127.0.0.1",
            port=self.store.port,
            rank=0,
            senders=senders,
            size=senders + generators,
            timeout=timeout,
        )
        self.notes: dict[int, str] = {}
        self._pool = ThreadPoolExecutor(senders + generators)

    def meet(self, ranks: Sequence[int]) -> "list[Future[WeightBroadcast]]":
        return [self._pool.submit(self._meet, rank) for rank in ranks]

    def _meet(self, rank: int) -> WeightBroadcast:
        place = replace(self.place, rank=rank)
        return WeightBroadcast(place, address="127.0.0.1", note=lambda what: self.notes.__setitem__(rank, what))

    def all(self) -> list[WeightBroadcast]:
        return [future.result() for future in self.meet(range(self.place.size))]

    def do(self, work: Callable[..., object], *arguments: object) -> "Future[object]":
        return self._pool.submit(work, *arguments)


def hear_all(ear: WeightBroadcast, receiver: WeightReceiver, *, senders: int, version: int, base: int | None) -> str:
    receiver.begin(version, base=base)
    for root in range(senders):
        last = False
        while not last:
            frame, last = ear.hear(root)
            receiver.apply(decode(frame))
    return receiver.finish()


@pytest.mark.parametrize("senders", [1, 2])
def test_whole_versions_and_deltas_arrive_as_out_of_the_object_store(senders: int) -> None:
    source = Ranks(ranks=senders)
    group = Group(senders=senders, generators=2)
    members = group.all()
    heard = [empty() for _ in range(2)]
    stored, store_receiver = empty()
    for version in range(6):
        source.move()
        buckets = source.send(version, delta=version not in (0, 3))
        base = buckets[0].base
        sends = [group.do(members[rank].send_in_turn, [one for one in buckets if one.rank == rank]) for rank in range(senders)]
        sums = [
            group.do(lambda i=i, v=version, b=base: hear_all(members[senders + i], heard[i][1], senders=senders, version=v, base=b))
            for i in range(2)
        ]
        expected = take(store_receiver, buckets)
        assert [one.result(20) for one in sums] == [expected] * 2
        assert [one.result(20) for one in sends] == [None] * senders
    assert bits(heard[0][0]) == bits(heard[1][0]) == bits(stored) == bits(source.weights)
    listening = {one.laddr.ip for one in psutil.Process().net_connections("inet") if one.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
    for member in members:
        member.leave()


@pytest.mark.parametrize("delta", [False, True])
def test_a_frame_is_the_bucket_and_nothing_else_is_a_frame(delta: bool) -> None:
    source = Ranks(ranks=1)
    buckets = source.send(0, delta=False)
    if delta:
        source.move()
        buckets = source.send(1, delta=True)
    for bucket in buckets:
        frame = encode(bucket, room=lambda nbytes: np.zeros(nbytes, dtype=np.uint8))
        assert as_told(decode(frame)) == as_told(bucket)
        for damaged in (frame[:-1], frame[8:], frame[:4], np.zeros(64, dtype=np.uint8)):
            with pytest.raises(WeightSyncError, match="are no bucket of weights"):
                decode(damaged)


def as_told(bucket: WeightBucket) -> object:
    slices = [
        (one.name, one.start, one.count, one.digest, one.values.tobytes(), None if one.gaps is None else one.gaps.tobytes())
        for one in bucket.slices
    ]
    return repr(replace(bucket, slices=())), slices


def test_one_that_is_lost_in_the_middle_stops_all_others_long_before_the_deadline() -> None:
    source = Ranks(ranks=2)
    group = Group(senders=2, generators=2, timeout=600.0)
    members = group.all()
    buckets = source.send(0, delta=False)
    sends = [group.do(members[rank].send_in_turn, [one for one in buckets if one.rank == rank]) for rank in range(2)]
    other = group.do(lambda: [members[2].hear(root) for root in [0] * 100])
    members[3].hear(0)
    members[3].leave()
    stop_group(group.store, 1, "generator-1 was lost")
    for future in (*sends, other):
        with pytest.raises(BroadcastFailed):
            future.result(20)
    assert why_stopped(group.store, 1)
    with pytest.raises(BroadcastFailed, match="has left group 1"):
        members[2].hear(0)


def test_one_that_says_nothing_is_waited_for_until_the_deadline_and_named() -> None:
    source = Ranks(ranks=1)
    group = Group(senders=1, generators=2, timeout=0.5)
    members = group.all()
    heard = group.do(members[2].hear, 0)
    with pytest.raises(BroadcastFailed):
        heard.result(20)
    assert group.notes[2] == "waits for learner rank 0 in a broadcast of group 1"
    assert why_stopped(group.store, 1).startswith("process 2 of 3 waits for learner rank 0")
    with pytest.raises(BroadcastFailed):
        for _ in range(1000):  # what one has sent may lie in the network for a while
            members[0].send_in_turn(source.send(0, delta=False))


def test_a_group_without_one_of_its_members_is_not_made() -> None:
    group = Group(senders=1, generators=2, timeout=1.0)
    for future in group.meet([0, 1]):
        with pytest.raises(BroadcastFailed, match=r"waits for all 3 processes of group 1|could not meet the others"):
            future.result(30)
    late = Group(senders=1, generators=1, timeout=600.0)
    (waits,) = late.meet([0])
    stop_group(late.store, 1, "generator-0 was lost")
    with pytest.raises(BroadcastFailed, match="generator-0 was lost"):
        waits.result(20)


class Broadcasting:
    """A pool over fake generators and one fake rank, which broadcasts; `wrong[version]` is what comes of it."""

    def __init__(self, wrong: dict[int, Exception], *, hang: bool = False) -> None:
        """`hang`: a broadcast has no end."""
        self.places: list[Place] = []
        self.heard: list[tuple[int, bool]] = []
        self.dropped: set[str] = set()
        """Generators that must lose a bucket."""

        def hear(version: int, base: int | None, lose_first: bool) -> object:
            self.heard.append((version, lose_first))
            if hang:
                return asyncio.Event().wait()
            if version in wrong:
                raise wrong[version]
            return f"sum {version}"

        def broadcast(version: int, *buckets: str) -> object:
            if hang:
                return asyncio.Event().wait()
            assert buckets == (f"bucket of {version}",)
            return str(wrong.get(version, "")) if isinstance(wrong.get(version), BroadcastFailed) else ""

        def publish(version: int, delta: bool) -> tuple[list[str], int]:
            return [f"bucket of {version}"], 1

        self.stage = Stage(meet=lambda place: None, take_broadcast=hear, commit_weights=lambda version: f"sum {version}")
        self.rank = FakePart("learner-0.a", {"meet": self._meet, "broadcast": broadcast, "publish": publish})
        self.learner = LearnerGroup([self.rank], health=FakeHealth(), timeout=20.0, part_timeout=60.0, deltas=False)
        groups = WeightGroups(self.learner, address="127.0.0.1", backend="gloo", timeout=5.0, say=self.stage.said.append)
        self.pool = GeneratorPool(
            self.stage.crew, slots=2, lockstep=False, timeout=5.0, faults=self, say=self.stage.said.append, groups=groups
        )

    def _meet(self, place: Place) -> str:
        self.places.append(place)
        return ""

    def drop_weights(self, part: str) -> bool:
        if part not in self.dropped:
            return False
        self.dropped.remove(part)
        return True

    async def next(self, version: int) -> int:
        """Publish and load a version; how many broadcasts of it failed."""
        loaded = await self.pool.load(await self.learner.publish(version))
        assert loaded.checksum == f"sum {version}"
        return loaded.broadcasts_failed

    def read(self, version: int) -> list[str]:
        """Which processes have read the version out of the object store."""
        return [part.name for part in self.stage.made if ("load_bucket", f"bucket of {version}") in part.calls]


def test_a_version_whose_broadcast_fails_goes_through_the_object_store_and_another_group_is_made() -> None:
    async def scenario() -> None:
        run = Broadcasting({2: BroadcastFailed("process 1 of 3 was cut off")})
        await run.stage.crew.begin()
        assert [await run.next(version) for version in (0, 1, 2, 3)] == [0, 0, 1, 0]
        assert [(place.group, place.size) for place in run.places] == [(1, 3), (2, 3)]
        assert run.read(2) == ["generator-0.0", "generator-1.1"] and not run.read(1) and not run.read(3)
        (said,) = [said for said in run.stage.said if "broadcast" in said]
        assert "the broadcast of version 2 failed: process 1 of 3 was cut off; the version goes through the object store" in said
        await run.stage.crew.close()

    play(scenario)


def test_a_generator_that_joins_is_seeded_and_is_in_the_group_of_the_next_version() -> None:
    async def scenario() -> None:
        run = Broadcasting({})
        await run.stage.crew.begin()
        await run.next(0)
        run.stage.made[0].kill()
        await until(lambda: run.stage.serving() == ["generator-0.2", "generator-1.1"])
        assert run.read(0) == ["generator-0.2"], "the others had it by broadcast"
        assert await run.next(1) == 0
        assert [place.group for place in run.places] == [1, 2] and run.read(1) == []
        assert run.heard == [(0, False)] * 2 + [(1, False)] * 2
        await run.stage.crew.close()

    play(scenario)


def test_groups_that_fail_again_and_again_are_given_up_until_the_generators_change() -> None:
    async def scenario() -> None:
        run = Broadcasting({version: BroadcastFailed("a firewall") for version in range(4)})
        await run.stage.crew.begin()
        assert [await run.next(version) for version in range(5)] == [1, 1, 1, 0, 0]
        assert len(run.places) == 3 and run.read(4)
        assert "after 3 in a row no other is tried with these generators" in run.stage.said[-1]
        run.stage.made[0].kill()
        await until(lambda: run.stage.serving() == ["generator-0.2", "generator-1.1"])
        assert await run.next(5) == 0
        assert len(run.places) == 4 and not run.read(5)
        await run.stage.crew.close()

    play(scenario)


def test_a_generator_that_got_a_broadcast_wrong_gets_it_again_from_the_object_store_alone() -> None:
    async def scenario() -> None:
        run = Broadcasting({0: WeightSyncError("element 0 of parameter w was not received")})
        run.dropped = {"generator-1"}
        await run.stage.crew.begin()
        assert await run.next(0) == 0
        assert run.heard == [(0, False), (0, True)], "what goes astray on purpose does so in a broadcast too"
        assert run.read(0) == ["generator-0.0", "generator-1.1"]
        assert sum("got the weights of version 0 wrong and gets them again" in said for said in run.stage.said) == 2
        await run.stage.crew.close()

    play(scenario)


def test_a_rank_that_dies_in_a_broadcast_ends_the_run_by_its_name() -> None:
    async def scenario() -> None:
        run = Broadcasting({}, hang=True)
        await run.stage.crew.begin()
        loading = asyncio.create_task(run.next(0))
        await until(lambda: len(run.heard) == 2)
        run.rank.kill()
        with pytest.raises(PartDied, match="learner rank 0 died during broadcast"):
            await loading
        await run.stage.crew.close()

    play(scenario)


def test_a_listener_hears_a_version_to_its_end_whatever_is_wrong_with_it() -> None:
    group = Group(senders=1, generators=1)
    engine = FakeEngine()
    generator = Generator(engine, lockstep=False)
    listener = WeightListener(generator, address="127.0.0.1")
    sender = WeightSender(rank=0, dtype="float32", bucket_bytes=8, deltas=True)
    weights = torch.arange(4.0)

    async def scenario() -> None:
        (meets,) = group.meet([0])
        await listener.meet(replace(group.place, rank=1))
        rank = meets.result()

        async def ship(version: int, *, delta: bool, base: int | None, lose_first: bool = False) -> str:
            pieces = [Piece(name="weight", start=0, values=weights)]
            buckets = list((sender.delta if delta else sender.whole)(pieces, version=version))
            sends = group.do(rank.send_in_turn, buckets)
            try:
                return await listener.take(version, base, lose_first=lose_first)
            finally:
                assert await asyncio.to_thread(sends.result, 20) is None, "the sender notices nothing"

        await ship(0, delta=False, base=None)
        assert engine.version == 0 and engine.weight.tolist() == weights.tolist()
        with pytest.raises(WeightSyncError, match="element 0 of parameter weight was not received"):
            await ship(1, delta=False, base=None, lose_first=True)
        weights[2] = 7.0
        with pytest.raises(BaseMissing, match="version 2 is told against version 1, and this generator holds no version"):
            await ship(2, delta=True, base=1)
        assert engine.version == 0
        await ship(3, delta=False, base=None)
        assert engine.version == 3 and engine.weight.tolist() == [0.0, 1.0, 7.0, 3.0]

    asyncio.run(asyncio.wait_for(scenario(), 60))
    generator.close()
