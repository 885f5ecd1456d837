"""A generator replica in time: continuous batching over slots, one prefill a request, pauses for weights, rounds in lockstep.

Its own clock counts decode steps: a sequence that samples n tokens ends n - 1 steps after its prefill. Between two events the number of
running sequences is constant and so is the time of a step.
"""

import asyncio
import heapq
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from configs.schema import Config
from rl.planner.cores import Cores, Thread
from rl.planner.costs import Costs
from rl.planner.shape import ModelShape

_SLACK = 1e-6
"""Decode steps: rounding of the clock."""


class ReplicaSetup(Protocol):
    """What a replica needs to know; see `rl.planner.simulate.Setup`."""

    @property
    def config(self) -> Config: ...
    @property
    def shape(self) -> ModelShape: ...
    @property
    def costs(self) -> Costs: ...
    @property
    def generator_threads(self) -> int: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled:
    """What became of one sample of a request."""

    segments: tuple[tuple[int, int], ...]
    """Policy version and how many tokens it sampled, in order."""

    @property
    def tokens(self) -> int:
        """Of all versions."""
        return sum(count for _, count in self.segments)


@dataclass(kw_only=True, slots=True)
class _Request:
    episodes: tuple[str, ...]
    prompt: int
    fresh: int
    sampled: Sequence[int]
    future: "asyncio.Future[list[Sampled]]"
    started: int = 0
    done: dict[int, Sampled] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class _Row:
    request: _Request
    sample: int
    start: float
    positions: float


class Replica:
    """One replica on the running event loop's clock."""

    def __init__(self, setup: ReplicaSetup, *, cores: Cores, lockstep: bool) -> None:
        self._costs, self._shape = setup.costs, setup.shape
        self._cores, self._threads, self._counted = cores, setup.generator_threads, False
        self._messages = Thread(cores)
        self._kinds = tuple(Counter(setup.shape.windows).items())
        self._slots, self._lockstep = setup.config.generator.slots, lockstep
        self._queue: deque[_Request] = deque()
        self._waiting: list[_Request] = []
        self._live: set[str] = set()
        self._rows: list[tuple[float, int, _Row]] = []
        """Heap by the decode step in which they end."""
        self._serial = 0
        self._positions = 0.0
        self._clock = 0.0
        self._since = 0.0
        self._debt = 0.0
        """Seconds of work that holds up all rows: prefills, and the first step with new weights."""
        self._paused = False
        self._swaps: list[float] = []
        """Clock of each weight swap after the first."""
        self._versions = [0]
        self._timer: asyncio.TimerHandle | None = None
        self.busy_seconds = self.sequence_seconds = 0.0
        self.peak_positions = 0.0
        self.peak_sequences = 0
        cores.join(self)

    async def generate(self, episodes: tuple[str, ...], *, prompt: int, fresh: int, sampled: Sequence[int]) -> list[Sampled]:
        """Sample a completion for each episode. `prompt`: tokens of the context; `fresh`: those to prefill."""
        await self._messages.work(self._costs.group.generator)
        request = _Request(
            episodes=episodes, prompt=prompt, fresh=fresh, sampled=sampled, future=asyncio.get_running_loop().create_future()
        )
        if self._lockstep:
            self._waiting.append(request)
            self._start_round()
        else:
            self._submit([request])
        completions = await request.future
        await self._messages.work(self._costs.group.generator)
        return completions

    def expect(self, episodes: Sequence[str]) -> None:
        """Lockstep: see Generator.expect."""
        self._live.update(episodes)

    def release(self, episodes: Sequence[str]) -> None:
        """Lockstep: see Generator.release."""
        self._live.difference_update(episodes)
        self._start_round()

    async def swap(self, version: int) -> None:
        """Take a version over between two decode steps; tokens from here on are sampled by it."""
        self.catch_up()
        self._paused = True
        self.go_on()
        await self._cores.work(self._costs.load)
        self.catch_up()
        self._debt += self._costs.refresh
        self._paused = False
        if version:
            self._swaps.append(self._clock)
            self._versions.append(version)
        self.go_on()

    def _start_round(self) -> None:
        asked = {episode for request in self._waiting for episode in request.episodes}
        if self._waiting and not self._rows and not self._queue and self._live <= asked:
            ready, self._waiting = sorted(self._waiting, key=lambda request: request.episodes), []
            self._submit(ready)

    def _submit(self, requests: Sequence[_Request]) -> None:
        self.catch_up()
        self._queue.extend(requests)
        self._admit()
        self.go_on()

    @property
    def _computes(self) -> bool:
        return bool(self._rows) and not self._paused

    def _step_seconds(self) -> float:
        return self._costs.decode.seconds(sequences=len(self._rows), positions=self._positions)

    def catch_up(self) -> None:
        """Bring the clock up to now."""
        now = asyncio.get_running_loop().time()
        elapsed, self._since = now - self._since, now
        if not self._computes or elapsed <= 0:
            return
        self.busy_seconds += elapsed
        self.sequence_seconds += elapsed * len(self._rows)
        work = elapsed * self._cores.speed
        paid = min(self._debt, work)
        self._debt -= paid
        self._clock += (work - paid) / self._step_seconds()

    def _admit(self) -> None:
        """Start queued samples while slots are free; their prefills hold up everything that runs."""
        tokens, pairs, prompts = 0, 0.0, 0
        while self._queue and len(self._rows) < self._slots:
            request = self._queue[0]
            if request.started == 0:
                tokens, prompts = tokens + request.fresh, prompts + 1
                pairs += self._shape.attended(request.prompt) - self._shape.attended(request.prompt - request.fresh)
            sample, request.started = request.started, request.started + 1
            if request.started == len(request.sampled):
                self._queue.popleft()
            positions = self._seen(request.prompt + request.sampled[sample] / 2)
            row = _Row(request=request, sample=sample, start=self._clock, positions=positions)
            self._serial += 1
            heapq.heappush(self._rows, (self._clock + request.sampled[sample] - 1, self._serial, row))
            self._positions += positions
        self.peak_sequences = max(self.peak_sequences, len(self._rows))
        self.peak_positions = max(self.peak_positions, self._positions)
        if prompts:
            self._debt += self._costs.prefill.seconds(tokens=tokens, pairs=pairs, responses=prompts)

    def _seen(self, tokens: float) -> float:
        return sum(count * (tokens if window is None else min(tokens, window)) for window, count in self._kinds)

    def go_on(self) -> None:
        """See to it that the next rows end when they are done."""
        if self._computes != self._counted:
            self._counted = self._computes
            self._cores.use(self._threads if self._counted else -self._threads)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._computes:
            left = self._debt + max(0.0, self._rows[0][0] - self._clock) * self._step_seconds()
            self._timer = asyncio.get_running_loop().call_later(left / self._cores.speed, self._end_rows)

    def _end_rows(self) -> None:
        self._timer = None
        self.catch_up()
        while self._rows and self._rows[0][0] <= self._clock + _SLACK:
            _, _, row = heapq.heappop(self._rows)
            self._positions -= row.positions
            request = row.request
            request.done[row.sample] = Sampled(segments=self._segments(row.start, request.sampled[row.sample]))
            if len(request.done) == len(request.sampled) and not request.future.done():
                request.future.set_result([request.done[i] for i in range(len(request.done))])
        if not self._rows:
            self._positions = 0.0
        self._admit()
        self.go_on()
        if self._lockstep:
            self._start_round()

    def _segments(self, start: float, tokens: int) -> tuple[tuple[int, int], ...]:
        """Token j is drawn at step `start` + j."""
        first = bisect_left(self._swaps, start - _SLACK)
        segments, drawn = [], 0
        for i in range(first, len(self._swaps)):
            before = min(tokens, int(self._swaps[i] - start + _SLACK) + 1)
            if self._swaps[i] <= start + _SLACK and drawn == 0:
                before = 0
            if before > drawn:
                segments.append((self._versions[i], before - drawn))
                drawn = before
            if drawn == tokens:
                break
        if drawn < tokens:
            segments.append((self._versions[-1] if first < len(self._swaps) else self._versions[first], tokens - drawn))
        return tuple(segments)
