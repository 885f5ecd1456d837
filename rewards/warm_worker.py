"""A warm process that answers questions and is killed when one takes too long: for libraries that a hostile reply can make hang.

The process is `python -m MODULE ARGUMENTS`. It writes one line when it is ready, then answers each JSON line with a JSON line.
"""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_START_SECONDS = 120.0
_ROOT = Path(__file__).resolve().parents[1]


class TookTooLong(Exception):
    """The question was not answered in time; the process was killed."""


class DiedTwice(Exception):
    """The process died of the question, and its successor too."""


@dataclass(kw_only=True, slots=True)
class Stopwatch:
    """Seconds that processes have worked on questions; neither the wait for a free process nor its start counts."""

    seconds: float = 0.0


class WarmWorker:
    """One process, started on first use, one question at a time. One instance serves one event loop; any thread may run that loop."""

    def __init__(self, module: str, *arguments: str, what: str) -> None:
        """`what`: the worker's name in errors."""
        self._command = (sys.executable, "-P", "-m", module, *arguments)
        self._what = what
        self._lock = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def running(self) -> bool:
        """Whether the process has been started and has not been killed since."""
        return self._process is not None

    @property
    def idle(self) -> bool:
        """Running, and free to answer at once."""
        return self.running and not self._lock.locked()

    async def ask(self, request: dict[str, Any], *, seconds: float, stopwatch: Stopwatch | None = None) -> dict[str, Any]:
        """The answer. `seconds` and `stopwatch` are of the process at work, not of the wait for it.

        Raises TookTooLong, DiedTwice, and RuntimeError when no process can be started.
        """
        line = json.dumps(request).encode() + b"\n"
        watch = stopwatch or Stopwatch()
        async with self._lock:
            try:
                # A worker can die of a hostile reply or of something else: only a second death is the reply's doing.
                answer = await self._request(line, seconds, watch) or await self._request(line, seconds, watch)
            except BaseException:
                await self._kill()
                raise
        if answer is None:
            raise DiedTwice(f"{self._what} died twice of one question")
        return answer

    async def warm_up(self) -> None:
        """Start the process if there is none. Raises RuntimeError when that fails."""
        async with self._lock:
            if self._process is None:
                try:
                    await self._start()
                except BaseException:
                    await self._kill()
                    raise

    async def close(self) -> None:
        """End the process."""
        async with self._lock:
            await self._kill()

    async def _request(self, line: bytes, seconds: float, stopwatch: Stopwatch) -> dict[str, Any] | None:
        """One attempt; None when the process died."""
        process = self._process or await self._start()
        assert process.stdin is not None and process.stdout is not None
        started = time.perf_counter()
        try:
            async with asyncio.timeout(seconds):
                process.stdin.write(line)
                await process.stdin.drain()
                if answer := await process.stdout.readline():
                    return json.loads(answer)
        except TimeoutError:
            raise TookTooLong(f"it took more than {seconds:g} s") from None
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            stopwatch.seconds += time.perf_counter() - started
        await self._kill()
        return None

    async def _start(self) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        environment = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, start_new_session=True
        )
        assert process.stdout is not None and process.stderr is not None
        try:
            async with asyncio.timeout(_START_SECONDS):
                ready = await process.stdout.readline()
                detail = b"" if ready else await process.stderr.read()
        except TimeoutError:
            ready, detail = b"", f"no answer within {_START_SECONDS:.0f} s".encode()
        if not ready:
            await self._kill()
            last = detail.decode(errors="replace").strip().rpartition("\n")[2]
            raise RuntimeError(f"{self._what} did not start: {last or 'no message'}")
        return process

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class WarmPool:
    """Some processes of one module, each started when the others are busy. Questions are taken in the order in which they come."""

    def __init__(self, module: str, *arguments: str, what: str, size: int) -> None:
        """`size`: the largest number of processes."""
        self._workers = [WarmWorker(module, *arguments, what=what) for _ in range(size)]
        self._free = list(self._workers)
        self._slots = asyncio.Semaphore(size)
        self._exclusive = asyncio.Lock()

    @property
    def running(self) -> int:
        """How many processes are running."""
        return sum(worker.running for worker in self._workers)

    @property
    def idle(self) -> bool:
        """Whether a running process is free to answer at once."""
        return not self._slots.locked() and any(worker.idle for worker in self._free)

    async def ask(self, request: dict[str, Any], *, seconds: float, stopwatch: Stopwatch | None = None) -> dict[str, Any]:
        """As WarmWorker.ask, by the first process that is free."""
        async with self._slots, self._one() as worker:
            return await worker.ask(request, seconds=seconds, stopwatch=stopwatch)

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[WarmWorker]:
        """One process, while the others have nothing to do."""
        async with self._exclusive, contextlib.AsyncExitStack() as stack:
            for _ in self._workers:
                await stack.enter_async_context(self._slots)
            yield await stack.enter_async_context(self._one())

    async def warm_up(self) -> None:
        """Start a process if there is none. Raises RuntimeError when that fails."""
        if not self.running:
            async with self._slots, self._one() as worker:
                await worker.warm_up()

    async def close(self) -> None:
        """End the processes."""
        await asyncio.gather(*(worker.close() for worker in self._workers))

    @contextlib.asynccontextmanager
    async def _one(self) -> AsyncIterator[WarmWorker]:
        """A free process, a running one where there is one. The caller holds a slot, so one is free."""
        worker = next((worker for worker in self._free if worker.running), self._free[0])
        self._free.remove(worker)
        try:
            yield worker
        finally:
            self._free.append(worker)
