"""The generator service: runs an engine in a thread of its own and answers requests from many rollout workers.

It consumes `GenerateRequest`s, waits for the engine, and unblocks rollouts. Weight updates happen between two decode
steps: running samples keep their KV cache and go on with the new weights. In lockstep mode (strictly on-policy runs) it
waits until every live episode has asked for its next turn and starts them in key order, so that batch composition, and
with it every bit of the result, does not depend on how many workers there are or on who asked first.

It does not know about Ray, tasks or rewards.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import torch

from rl.records import Completion, GenerateRequest, WeightBucket
from rl.weight_sync import DiscardedWeights, WeightReceiver


class FinishedSample(Protocol):
    """One finished sample of a request."""

    @property
    def key(self) -> str: ...
    @property
    def index(self) -> int: ...
    @property
    def completion(self) -> Completion: ...


class Engine(Protocol):
    """What the service needs from an inference engine; see `rl/engines`."""

    version: int

    @property
    def busy(self) -> bool: ...
    def submit(self, request: GenerateRequest) -> None: ...
    def cancel(self, key: str) -> None: ...
    def step(self) -> Sequence[FinishedSample]: ...
    def parameters(self) -> Mapping[str, torch.Tensor]: ...


class GeneratorClosed(RuntimeError):
    """The generator was closed, or its engine failed; `__cause__` says why."""


@dataclass(kw_only=True, slots=True)
class _Pending:
    request: GenerateRequest
    future: "Future[tuple[Completion, ...]]"
    done: dict[int, Completion]


class Generator:
    """One replica. Methods may be called from any thread or event loop; the engine is touched by its own thread only."""

    def __init__(self, engine: Engine, *, lockstep: bool, receiver: DiscardedWeights | None = None) -> None:
        """`receiver` takes the weights of an engine that has none; otherwise they go into the engine's parameters."""
        self._engine = engine
        self._receiver = receiver or WeightReceiver(engine.parameters())
        self._lockstep = lockstep
        self._wake = threading.Condition()
        self._waiting: dict[str, _Pending] = {}
        self._running: dict[str, _Pending] = {}
        self._live: set[str] = set()
        self._commands: list[tuple[Callable[[], object], Future[object]]] = []
        self._paused = False
        self._closed = False
        self._failure: BaseException | None = None
        self._described = ("", time.time())
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    async def generate(self, request: GenerateRequest) -> tuple[Completion, ...]:
        """Sample every seed of the request; a request with the key of an earlier one replaces it."""
        pending = _Pending(request=request, future=Future(), done={})
        with self._wake:
            self._check_open()
            self._waiting[request.key] = pending
            self._wake.notify()
        return await asyncio.wrap_future(pending.future)

    async def expect(self, episodes: Sequence[str]) -> None:
        """Lockstep: these episodes will ask for tokens until they are released."""
        with self._wake:
            self._live.update(episodes)

    async def release(self, episodes: Sequence[str]) -> None:
        """Lockstep: these episodes will not ask again."""
        with self._wake:
            self._live.difference_update(episodes)
            self._wake.notify()

    async def begin_weights(self, version: int, *, base: int | None = None) -> None:
        """Pause decoding between two steps and get ready for the buckets of `version`.

        Several versions may follow each other before one commit. Raises BaseMissing when the weights are not those of version `base`.
        """

        def begin() -> None:
            self._paused = True
            self._receiver.begin(version, base=base)

        await self._on_engine_thread(begin)

    async def load_bucket(self, bucket: WeightBucket) -> None:
        """Write one bucket in place. Raises WeightSyncError on a wrong checksum, version or parameter."""
        await self._on_engine_thread(lambda: self._receiver.apply(bucket))

    async def commit_weights(self, version: int) -> str:
        """Check that every element was received once, tag later tokens with `version`, resume decoding.

        Returns the checksum of the version.
        """

        def commit() -> str:
            checksum = self._receiver.finish()
            self._engine.version = version
            self._paused = False
            return checksum

        return str(await self._on_engine_thread(commit))

    def describe(self) -> tuple[str, float]:
        """What it does or waits for, and since when (Unix seconds). Reads without a lock: it may be a step behind."""
        if self._closed:
            what = f"has stopped: {self._failure!r}" if self._failure else "is closed"
        elif self._paused:
            what = "takes in weights"
        elif self._running:
            what = f"samples {len(self._running)} requests, {len(self._waiting)} more wait"
        elif self._waiting:
            missing = sorted(self._live - {episode for pending in self._waiting.values() for episode in pending.request.episodes})
            what = f"{len(self._waiting)} requests wait until {len(missing)} live episodes ask too: {', '.join(missing[:3])}"
        else:
            what = "waits for requests"
        kind = what.split()[0] if not self._waiting or self._running else what
        if kind != self._described[0]:
            self._described = (kind, time.time())
        return what, self._described[1]

    def close(self) -> None:
        """End the engine thread; pending requests fail with GeneratorClosed."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(timeout=30)

    async def _on_engine_thread(self, command: Callable[[], object]) -> object:
        future: Future[object] = Future()
        with self._wake:
            self._check_open()
            self._commands.append((command, future))
            self._wake.notify()
        return await asyncio.wrap_future(future)

    def _check_open(self) -> None:
        if self._closed:
            raise GeneratorClosed("the generator is closed") from self._failure

    def _work(self) -> None:
        try:
            while True:
                with self._wake:
                    self._wake.wait_for(self._has_work)
                    if self._closed:
                        break
                    commands, self._commands = self._commands, []
                    self._admit()
                self._run_commands(commands)
                if self._engine.busy and not self._paused:
                    self._finish(self._engine.step())
        except BaseException as error:
            self._failure = error
        finally:
            self._fail_everything()

    def _has_work(self) -> bool:
        if self._closed or self._commands:
            return True
        return not self._paused and (self._engine.busy or self._round_ready())

    def _round_ready(self) -> bool:
        """Whether waiting requests may start now."""
        if not self._waiting:
            return False
        if not self._lockstep:
            return True
        asked = {episode for pending in self._waiting.values() for episode in pending.request.episodes}
        return not self._running and self._live <= asked

    def _admit(self) -> None:
        if self._paused or not self._round_ready():
            return
        waiting, self._waiting = self._waiting, {}
        for key in sorted(waiting):
            replaced = self._running.pop(key, None)
            if replaced is not None:
                self._engine.cancel(key)
                replaced.future.cancel()
            pending = waiting[key]
            try:
                self._engine.submit(pending.request)
            except ValueError as error:
                pending.future.set_exception(error)
            else:
                self._running[key] = pending

    def _run_commands(self, commands: list[tuple[Callable[[], object], "Future[object]"]]) -> None:
        for command, future in commands:
            try:
                future.set_result(command())
            except Exception as error:
                future.set_exception(error)

    def _finish(self, finished: Sequence[FinishedSample]) -> None:
        for sample in finished:
            pending = self._running[sample.key]
            pending.done[sample.index] = sample.completion
            if len(pending.done) == len(pending.request.seeds):
                del self._running[sample.key]
                with contextlib.suppress(asyncio.InvalidStateError):
                    pending.future.set_result(tuple(pending.done[i] for i in range(len(pending.done))))

    def _fail_everything(self) -> None:
        with self._wake:
            self._closed = True
            error = GeneratorClosed(f"the generator stopped: {self._failure!r}" if self._failure else "the generator is closed")
            error.__cause__ = self._failure
            futures: list[Future[tuple[Completion, ...]]] = [p.future for p in (*self._waiting.values(), *self._running.values())]
            for future in futures:
                if not future.done():
                    future.set_exception(error)
            for _, command in self._commands:
                command.set_exception(error)
            self._waiting, self._running, self._commands = {}, {}, []
