"""The compiled part of the tracer: the same records as Python's, byte by byte, and no crash whatever the program does to it."""

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from environments.sandbox.base import Execution, Limits, Sandbox
from environments.sandbox.make import make_sandbox
from environments.traces import native, tracer
from environments.traces.records import Recording, TraceLimits, TraceStatus
from environments.traces.tracer import Program, record_trace
from tests.trace_attacks import ATTACKS
from tests.trace_odd import ABUSES, ODD

pytestmark = pytest.mark.timeout(120)
TIMED = ("sleeps", "one endless call", "prints 100 MB")
"""Attacks whose records end where the clock or the sandbox says."""
DEBUG_LAUNCH = tracer._LAUNCH.replace(b'"PYTHONHASHSEED"', b'"PYTHONMALLOC": "debug", "PYTHONHASHSEED"')
"""CPython fills what is freed and guards the ends of what is allocated."""


class Keeper:
    """A sandbox that keeps the last execution."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox, self.loop = sandbox, asyncio.new_event_loop()
        self.last: Execution | None = None

    async def run(self, source: bytes, *, files: Mapping[str, bytes] | None = None, limits: Limits | None = None) -> Execution:
        self.last = await self._sandbox.run(source, files=files, limits=limits)
        return self.last

    def record(self, source: str, *, limits: TraceLimits | None = None) -> tuple[Recording, bytes]:
        """A recording, and the record that it was read from."""
        recording = self.loop.run_until_complete(record_trace(Program(source=source, entry="f"), sandbox=self, limits=limits))  # type: ignore[arg-type]
        assert self.last is not None
        return recording, self.last.stdout

    def close(self) -> None:
        self.loop.run_until_complete(self._sandbox.close())
        self.loop.close()


@pytest.fixture(scope="module")
def keeper() -> Iterator[Keeper]:
    kept = Keeper(make_sandbox())
    yield kept
    kept.close()


KINDS = "import sys\ndef f():\n    return type(sys.gettrace()).__name__\n"
NOT_OK = {"code objects that were made": TraceStatus.SPOILED}
PROGRAMS = ODD | {name: attack.source for name, attack in ATTACKS.items() if name not in TIMED}


def test_the_compiled_tracer_is_used_where_it_can_be_built(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    assert keeper.record(KINDS)[0].value == "'Tracer'"
    monkeypatch.setattr(tracer, "native_files", dict)
    assert keeper.record(KINDS)[0].value == "'function'"
    name = next(iter(native.native_files())).replace("311", "312")  # of another Python
    monkeypatch.setattr(tracer, "native_files", lambda: {name: b"\x7fELF"})
    assert keeper.record(KINDS)[0].value == "'function'"


@pytest.mark.parametrize("name", PROGRAMS)
def test_records_are_the_same_to_the_byte(name: str, keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = ATTACKS[name].limits if name in ATTACKS else None
    with monkeypatch.context() as patch:
        patch.setattr(tracer, "_LAUNCH", DEBUG_LAUNCH)
        recording, record = keeper.record(PROGRAMS[name], limits=limits)
    monkeypatch.setattr(tracer, "native_files", dict)
    plain, expected = keeper.record(PROGRAMS[name], limits=limits)
    assert plain.status is (ATTACKS[name].status if name in ATTACKS else NOT_OK.get(name, TraceStatus.OK)), plain.reason
    assert (recording.status, recording.reason, record) == (plain.status, plain.reason, expected)


@pytest.mark.parametrize("name", ABUSES)
def test_abuse_of_the_compiled_functions_does_not_crash(name: str, keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracer, "_LAUNCH", DEBUG_LAUNCH)
    recording, record = keeper.record(ABUSES[name])
    assert record and recording.status not in (TraceStatus.ENDED, TraceStatus.TIMEOUT, TraceStatus.MEMORY), recording.reason


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"CXX": "no-such-compiler"}, "set CXX"),
        ({"CXX": "false"}, "cannot compile box_native.cpp"),
        ({"XDG_CACHE_HOME": "/proc/no"}, "XDG"),
    ],
)
def test_without_it_the_tracer_runs_in_python(
    environment: dict[str, str], message: str, keeper: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "_files", None)
    for name, value in ({"XDG_CACHE_HOME": str(tmp_path)} | environment).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        native.native_library()
    assert keeper.record(KINDS)[0].value == "'function'"
