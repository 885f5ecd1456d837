"""The host's side of a run of tests: which test comes next, which answer counts, and what makes a run untrustworthy.

One order is open at a time; it carries a nonce that did not exist before, so an answer to a test that was not asked for yet, a second
answer, and bytes that somebody else writes are all noticed. Each line carries a code that binds it to its order and to all lines before
it. Between the tests stand controls: tests that must fail or be skipped. One
that passes says that verdicts are being forged.
"""

import asyncio
import contextlib
import json
import math
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from environments.containers.base import Container, ContainerError
from environments.swe.inside.suite_worker_channel import name_of, sealed
from environments.swe.records import Outcome, SuiteRequest, SuiteResult, TestOutcome

_LINE_BYTES = 1 << 16
_COVERAGE_LINE_BYTES, _COLLECTED_LINE_BYTES = 1 << 20, 1 << 25
_FLAGS = 100
_EXIT_SECONDS = 10.0
_AGAIN_SECONDS, _AGAIN = 2.0, 2
"""Tests that passed are run once more, to fail: only quick ones, and how many."""
_WORST_FIRST = ("missing", "error", "failed", "xpassed", "xfailed", "skipped", "passed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Flag:
    """One watched thing that code of the tree did."""

    event: str
    """Name of Python's audit event."""
    path: str
    """File of the code, relative to the work folder; or a name that is no file there."""


class _Over(Exception):
    """The run is over before its end."""

    def __init__(self, ended: str, reason: str) -> None:
        super().__init__(reason)
        self.ended, self.reason = ended, reason


class SuiteSession:
    """One run in one container. Single-use."""

    def __init__(self, container: Container, request: SuiteRequest, *, new_names: Collection[str] = ()) -> None:
        self._container, self._request, self._new_names = container, request, tuple(new_names)
        self._buffer = b""
        self._first_nonce = secrets.token_hex(16)
        self._key = secrets.token_bytes(32)
        self._flags: list[Flag] = []
        self._order: list[str] = []
        self._verdicts: dict[str, TestOutcome] = {}
        self._covered: dict[str, list[str]] = {}
        self._ended, self._reason, self._output, self._doing = "finished", "", "", "the collection of tests"

    @property
    def flags(self) -> tuple[Flag, ...]:
        return tuple(self._flags)

    async def run(self) -> None:
        """Hold the conversation to its end. Raises ContainerError when the engine fails."""
        try:
            async with asyncio.timeout(self._request.seconds):
                await self._converse()
        except TimeoutError:
            self._ended, self._reason = "timeout", f"no end after {self._request.seconds:g} s, in {self._doing}"
        except _Over as over:
            self._ended, self._reason = over.ended, over.reason

    def refuse(self, reason: str) -> None:
        """No test can be run on these changes."""
        self._ended, self._reason = "crashed", reason

    def result(self) -> SuiteResult:
        """What came of it; `seconds` is left to the caller."""
        ids = dict.fromkeys((*self._request.tests, *self._order))
        return SuiteResult(
            tests=tuple(self._verdicts.get(name) or TestOutcome(id=name, outcome=Outcome.MISSING) for name in ids),
            ended=self._ended,
            reason=self._reason,
            output=self._output,
            covered={name: tuple(tests) for name, tests in self._covered.items()},
        )

    async def _converse(self) -> None:
        tests = list(self._request.tests)
        start = {"key": self._key.hex(), "tests": tests, "new_names": list(self._new_names), "coverage": self._request.coverage}
        answer = await self._ask(start, nonce=self._first_nonce, most=_COLLECTED_LINE_BYTES)
        ids = _strings(answer, "collected")
        self._output = _text(answer, "errors")
        wanted = frozenset(tests)
        if wanted and not wanted.issuperset(ids):
            raise _Over("tampered", "tests came back that were not asked for")
        self._order = ids
        plan: list[tuple[int, str]] = [(index, "") for index in range(len(ids))]
        controls: dict[int, bool] = {}
        for skip in (False, True) if ids else ():
            position = secrets.choice(_gaps([ids[index] if index < len(ids) else None for index, _ in plan]))
            like = next(index for index, _ in (*plan[position:], *reversed(plan[:position])) if index < len(ids))
            made = await self._ask({"do": "control", "like": like, "skip": skip})
            plan.insert(position, (_integer(made, "index"), secrets.token_hex(8)))
            controls[plan[position][0]] = skip
        await self._run_plan(plan, ids=ids)
        again = [name for name, one in self._verdicts.items() if one.outcome is Outcome.PASSED and one.seconds < _AGAIN_SECONDS]
        chosen = secrets.SystemRandom().sample(again, min(_AGAIN, len(again)))
        await self._run_plan([(ids.index(name), secrets.token_hex(8)) for name in chosen], ids=ids)
        self._doing = "the end of the run"
        last = await self._ask({"do": "finish"})
        self._output = "\n".join(part for part in (self._output, _text(last, "output")) if part)
        if await self._container.read(1):
            raise _Over("tampered", "something was written to the channel of verdicts after the last test")

    async def _run_plan(self, plan: list[tuple[int, str]], *, ids: list[str]) -> None:
        """Run items in order; those with a text are controls and must not pass."""
        for at, (index, text) in enumerate(plan):
            following = plan[at + 1][0] if at + 1 < len(plan) else None
            name = ids[index] if index < len(ids) else "a control"
            self._doing = name
            answer = await self._ask({"do": "run", "run": index, "next": following, "text": text}, most=_COVERAGE_LINE_BYTES)
            outcome = _text(answer, "outcome")
            seconds = answer.get("seconds")
            if outcome not in _WORST_FIRST or type(seconds) is not float or not math.isfinite(seconds):
                raise _Over("tampered", f"a malformed verdict on {name}")
            if text:
                if outcome in ("passed", "xpassed"):
                    raise _Over("tampered", f"a test that must fail passed: verdicts are forged (after {name})")
                continue
            verdict = TestOutcome(id=name, outcome=Outcome(outcome), seconds=max(0.0, seconds), detail=_text(answer, "detail"))
            old = self._verdicts.get(name)
            if old is None or _WORST_FIRST.index(outcome) < _WORST_FIRST.index(old.outcome.value):
                self._verdicts[name] = verdict
            for function in _strings(answer, "covered") if self._request.coverage else ():
                self._covered.setdefault(function, []).append(name)

    async def _ask(self, order: Mapping[str, Any], *, nonce: str = "", most: int = _LINE_BYTES) -> dict[str, Any]:
        """The answer to one order."""
        order_line = json.dumps({**order, "nonce": (nonce := nonce or secrets.token_hex(16))}).encode()
        try:
            await self._container.write(order_line + b"\n")
        except ContainerError as error:
            raise await self._gone() from error
        while True:
            answer = self._opened(await self._line(most), order=name_of(order_line))
            if "flag" not in answer:
                break
            if len(self._flags) < _FLAGS:
                event, path = (*map(_clean, _strings(answer, "flag")), "", "")[:2]
                self._flags.append(Flag(event=event, path=path))
        if answer.get("nonce") != nonce:
            raise _Over("tampered", f"an answer that nobody asked for, in {self._doing}")
        if shadows := answer.get("shadows"):
            raise _Over("tampered", f"{_clean(shadows)} would be imported in place of an installed module")
        if broken := answer.get("broken"):
            self._output = _text(answer, "output")
            raise _Over("crashed", _clean(broken))
        if changed := answer.get("changed"):
            raise _Over("tampered", f"{_clean(changed)} was replaced, in {self._doing}")
        return answer

    def _opened(self, line: bytes, *, order: bytes) -> dict[str, Any]:
        """What a line says that the process of the tests wrote itself: in answer to `order`, or as news."""
        code, _, text = line.partition(b" ")
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            answer = None
        if isinstance(answer, dict):
            expected, following = sealed(self._key, line=text, order=b"" if "flag" in answer else order)
            if secrets.compare_digest(code, expected):
                self._key = following
                return answer
        raise _Over("tampered", f"an answer that nobody asked for, in {self._doing}")

    async def _line(self, most: int) -> bytes:
        while b"\n" not in self._buffer:
            if len(self._buffer) > most:
                raise _Over("output", f"an answer of more than {most} bytes, in {self._doing}")
            data = await self._container.read(1 << 16)
            if not data:
                raise await self._gone()
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    async def _gone(self) -> _Over:
        """Why the main process does not answer. Raises ContainerError when the engine does not either."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_EXIT_SECONDS):
                exit_ = await self._container.wait()
                tail = self._container.errors().decode(errors="replace").strip()[-500:]
                if exit_.out_of_memory:
                    return _Over("memory", f"the tests used more memory than the container has, in {self._doing}")
                return _Over("crashed", f"the process of the tests ended with code {exit_.code}, in {self._doing}{': ' * bool(tail)}{tail}")
        return _Over("crashed", f"the process of the tests closed its output and went on, in {self._doing}")


def _gaps(ids: list[str | None]) -> list[int]:
    """Positions at which another test of a module can stand without taking apart the fixtures of a class. None: a control."""

    def scope(index: int) -> str:
        name = ids[index] if 0 <= index < len(ids) else None
        head, _, _ = (name or "").partition("[")
        return head.rpartition("::")[0] if name else ""

    return [at for at in range(len(ids) + 1) if scope(at - 1) != scope(at) or "::" not in scope(at)]


def _strings(answer: Mapping[str, Any], key: str) -> list[str]:
    found = answer.get(key)
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise _Over("tampered", f"a malformed answer: {key}")
    return found


def _text(answer: Mapping[str, Any], key: str) -> str:
    found = answer.get(key, "")
    return _clean(found) if isinstance(found, str) else ""


def _clean(found: object) -> str:
    """Text of the container as it can be written anywhere: without half characters."""
    return str(found).encode("utf-8", "replace").decode()


def _integer(answer: Mapping[str, Any], key: str) -> int:
    found = answer.get(key)
    if type(found) is not int or found < 0:
        raise _Over("tampered", f"a malformed answer: {key}")
    return found
