"""Reads what a box wrote (`box.py` has the form) as events. All of it is checked: the program in the box may have written it."""

from collections.abc import Sequence
from dataclasses import dataclass

from environments.traces.records import EventKind, TraceEvent, TraceLimits, TraceStatus
from environments.traces.text import UNCHANGED

_KINDS = {"c": EventKind.CALL, "l": EventKind.LINE, "r": EventKind.RETURN, "x": EventKind.EXCEPTION}
_STATUSES = {status.value: status for status in TraceStatus}
_MAX_SHOWN = 4_000_000
"""Locals of all events together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """The events of a box, and how it says that the program ended."""

    events: tuple[TraceEvent, ...]
    status: TraceStatus | None
    """None when the box ended without a word."""
    reason: str = ""
    value: str | None = None


class _Spoiled(Exception):
    """The record makes no sense."""


class _Limit(Exception):
    """The record goes on behind a limit."""

    def __init__(self, status: TraceStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def read_record(data: bytes, *, lines: Sequence[str], limits: TraceLimits, ended: bool) -> Record:
    """`ended`: the box ended by itself, so its record is whole; else the last part may be cut off, and is left out."""
    text = data.decode("utf-8", "replace")
    records = text.split("\x1e")
    if records.pop(0):
        return Record(events=(), status=TraceStatus.SPOILED, reason="the record does not begin as one")
    final = records.pop() if ended and records and records[-1].startswith("E") else None
    if final is None and not ended and records:
        records.pop()
    reader = _Reader(lines=lines, limits=limits)
    try:
        for record in records:
            reader.read(record)
        if final is None:
            return Record(events=tuple(reader.events), status=None)
        return _final(final, events=tuple(reader.events), limits=limits)
    except _Spoiled as error:
        return Record(events=tuple(reader.events), status=TraceStatus.SPOILED, reason=f"the program wrote into the record: {error}")
    except _Limit as limit:
        return Record(events=tuple(reader.events), status=limit.status, reason=str(limit))


class _Reader:
    """Follows the frames of the program, event by event."""

    def __init__(self, *, lines: Sequence[str], limits: TraceLimits) -> None:
        self.events: list[TraceEvent] = []
        self._lines, self._limits = lines, limits
        self._frames: list[dict[str, str]] = []
        self._names: set[str] = {".0"}
        self._shown = 0

    def read(self, record: str) -> None:
        head, *parts = record.removesuffix("\x1f").split("\x1f")
        kind = _KINDS.get(head[:1])
        if kind is None or not head[1:].isdecimal() or len(head) > 10:
            raise _Spoiled(f"no event is {head[:20]!r}")
        number = int(head[1:])
        if len(self.events) >= self._limits.events:
            raise _Limit(TraceStatus.EVENTS, f"more than {self._limits.events} events")
        if kind is EventKind.CALL:
            self._frames.append({})
        elif not self._frames:
            raise _Spoiled(f"a {kind} outside of any call")
        shown = value = None
        if kind is EventKind.CALL or kind is EventKind.LINE:
            shown = self._change(parts)
        elif len(parts) == 1:
            value = self._text(parts[0])
        else:
            raise _Spoiled(f"a {kind} without one value")
        line = self._lines[number - 1] if 0 < number <= len(self._lines) else ""
        self.events.append(TraceEvent(kind=kind, line=line, locals=shown, value=value, line_no=number, depth=len(self._frames)))
        if kind is EventKind.RETURN:
            self._frames.pop()

    def _change(self, parts: list[str]) -> dict[str, str]:
        frame = self._frames[-1]
        for part in parts:
            name, equals, text = part.partition("=")
            if name not in self._names:
                if not name.isidentifier():
                    raise _Spoiled(f"no local is called {name[:20]!r}")
                self._names.add(name)
            if equals:
                frame[name] = self._text(text)
            else:
                frame.pop(name, None)
        self._shown += len(frame)
        if self._shown > _MAX_SHOWN:
            raise _Limit(TraceStatus.BYTES, f"more than {_MAX_SHOWN} locals in all events")
        return frame.copy()

    def _text(self, text: str) -> str:
        if len(text) > self._limits.repr_chars + 3 or text == UNCHANGED or not text.isprintable():
            raise _Spoiled(f"no value is {text[:20]!r}")
        return text


def _final(record: str, *, events: tuple[TraceEvent, ...], limits: TraceLimits) -> Record:
    head, *parts = record.split("\x1f")
    status = _STATUSES.get(head[1:])
    if status is None or not parts or (len(parts) > 1 and (len(parts) != 3 or parts[1] != "returned")):
        raise _Spoiled("its last record")
    value = parts[2] if len(parts) == 3 else None
    if value is not None and (len(value) > limits.repr_chars + 3 or not value.isprintable()):
        raise _Spoiled("what the entry returned")
    reason = "".join(letter if letter.isprintable() else " " for letter in parts[0][: limits.repr_chars])
    return Record(events=events, status=status, reason=reason, value=value)
