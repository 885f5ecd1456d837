"""Reads what a box wrote (`box.py` has the form) as events. All of it is checked: the program in the box may have written it."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from environments.traces.box_values import Text, int_text
from environments.traces.forms import NoForm, read_form
from environments.traces.records import WHOLE, EventKind, TraceEvent, TraceLimits, TraceStatus
from environments.traces.text import UNCHANGED

_KINDS = {1: EventKind.CALL, 2: EventKind.RETURN, 3: EventKind.EXCEPTION}
_STATUSES = {status.value: status for status in TraceStatus}
_MAX_SHOWN = 4_000_000
"""Locals of all events together."""
_MAX_CACHED = 20_000


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


def read_record(data: bytes, *, lines: Sequence[str], first_line: int, limits: TraceLimits) -> Record:
    """A batch that was cut off, as by the death of its box, is left out. `first_line`: of a script; Python has its call on line 0."""
    reader = _Reader(lines=lines, first_line=first_line, limits=limits)
    try:
        for batch in _batches(data):
            if reader.final is not None:
                raise _Spoiled("it goes on behind its end")
            reader.read(batch)
    except (_Spoiled, NoForm) as error:
        reason = _printable(f"the program wrote into the record: {error}", limits=limits)
        return Record(events=tuple(reader.events), status=TraceStatus.SPOILED, reason=reason)
    except _Limit as limit:
        return Record(events=tuple(reader.events), status=limit.status, reason=str(limit))
    return reader.final or Record(events=tuple(reader.events), status=None)


def _batches(data: bytes) -> Iterator[list[Any]]:
    at = 0
    while at + 4 <= len(data):
        (size,) = struct.unpack_from("<I", data, at)
        if at + 4 + size > len(data):
            return
        batch = read_form(data[at + 4 : at + 4 + size])
        if type(batch) is not list:
            raise _Spoiled("a batch that is no list")
        yield batch
        at += 4 + size


class _Reader:
    """Follows the frames of the program, event by event."""

    def __init__(self, *, lines: Sequence[str], first_line: int, limits: TraceLimits) -> None:
        self.events: list[TraceEvent] = []
        self.final: Record | None = None
        self._lines, self._first_line, self._limits = lines, first_line, limits
        self._frames: list[dict[str, str]] = []
        self._names: set[str] = {".0"}
        self._texts: dict[Any, str] = {}
        self._shown = 0

    def read(self, batch: list[Any]) -> None:
        if len(batch) == 1 and type(batch[0]) is tuple:
            self._end(batch[0])
            return
        at, size = 0, len(batch)
        while at < size:
            head = batch[at]
            if type(head) is not int:
                raise _Spoiled("an event that is no number")
            kind = EventKind.LINE if head >= 0 else _KINDS.get(-head & 3)
            if kind is None or (kind is not EventKind.CALL and not self._frames):
                raise _Spoiled(f"event {head} outside of any call")
            if len(self.events) >= self._limits.events:
                raise _Limit(TraceStatus.EVENTS, f"more than {self._limits.events} events")
            at += 1
            shown = value = None
            if kind is EventKind.LINE or kind is EventKind.CALL:
                if kind is EventKind.CALL:
                    self._frames.append({})
                at = self._change(batch, at)
                shown = self._frames[-1].copy()
            elif at < size:
                value = self._text(batch[at])
                at += 1
            else:
                raise _Spoiled("an event without its value")
            self._add(kind, head if head > 0 else -head >> 2, shown, value)

    def _add(self, kind: EventKind, number: int, shown: dict[str, str] | None, value: str | None) -> None:
        if not number:  # an instruction without a line, such as what raises again behind `except*`
            number = self._first_line if kind is EventKind.CALL or not self.events else self.events[-1].line_no
        line = self._lines[number - 1] if 0 < number <= len(self._lines) else ""
        self.events.append(TraceEvent(kind=kind, line=line, locals=shown, value=value, line_no=number, depth=len(self._frames)))
        if kind is EventKind.RETURN:
            self._frames.pop()

    def _change(self, batch: list[Any], at: int) -> int:
        """Take the changes from `at` on over into the innermost frame; where they end."""
        frame = self._frames[-1]
        while at < len(batch) and type(batch[at]) is str:
            name = batch[at]
            if name not in self._names:
                if not name.isidentifier():
                    raise _Spoiled(f"no local is called {name[:20]!r}")
                self._names.add(name)
            if at + 1 == len(batch):
                raise _Spoiled("a local without a value")
            if batch[at + 1] is ...:
                frame.pop(name, None)
            else:
                frame[name] = self._text(batch[at + 1])
            at += 2
        self._shown += len(frame)
        if self._shown > _MAX_SHOWN:
            raise _Limit(TraceStatus.BYTES, f"more than {_MAX_SHOWN} locals in all events")
        return at

    def _text(self, written: Any) -> str:
        """The text of what `Shown` gave. Large ones are kept: a frame shows the same value again and again."""
        kind = type(written)
        if kind is int:
            return int_text(written)
        if kind is bytes or kind is str or kind is tuple:
            try:
                text = self._texts.get(written)
            except TypeError:
                raise _Spoiled("a value of no known form") from None
            if text is None:
                if len(self._texts) >= _MAX_CACHED:
                    self._texts.clear()
                text = self._texts[written] = self._make_text(written)
            return text
        if written is None or kind is float or kind is bool:
            return repr(written)
        raise _Spoiled("a value of no known form")

    def _make_text(self, written: Any) -> str:
        chars = self._limits.repr_chars
        if type(written) is bytes:
            text = _plain_text(written, chars=chars)
        elif type(written) is str:
            text = Text.of(written, chars=chars)
        elif len(written) == 1 and type(written[0]) is str:
            text = written[0]
        elif len(written) == 3 and type(written[0]) is str and type(written[1]) is bool and type(written[2]) is bytes:
            text = _object_text(written[0], written[2], is_dataclass=written[1], chars=chars)
        else:
            raise _Spoiled("a value of no known form")
        if len(text) > chars + 3 or text == UNCHANGED or not text.isprintable():
            raise _Spoiled(f"no value is {text[:20]!r}")
        return text

    def _end(self, final: tuple[Any, ...]) -> None:
        if len(final) != 3 or final[0] not in _STATUSES or type(final[1]) is not str or type(final[2]) not in (str, type(None)):
            raise _Spoiled("its end")
        value = None if final[2] is None else self._text((final[2],))
        reason = _printable(final[1], limits=self._limits)
        status = _STATUSES[final[0]]
        if status in WHOLE and self._frames:
            status, reason = TraceStatus.UNTRACED, "frames of the program were not followed to their ends"
        self.final = Record(events=tuple(self.events), status=status, reason=reason, value=value)


def _plain_text(form: bytes, *, chars: int) -> str:
    try:
        return Text.of(read_form(form), chars=chars)
    except NoForm:  # a value of built-in type that is no plain one, such as a code object in a list
        return "<...>"


def _object_text(name: str, form: bytes, *, is_dataclass: bool, chars: int) -> str:
    """An instance with plain attributes, as `Text` writes one."""
    try:
        own = read_form(form)
    except NoForm:
        own = None
    if type(own) is not dict:
        return f"<{name}>"
    attributes = [(key, item) for key, item in own.items() if type(key) is str and key.isidentifier()]
    return Text.of_instance(name, attributes, is_dataclass=is_dataclass, chars=chars)


def _printable(text: str, *, limits: TraceLimits) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text[: limits.repr_chars])
