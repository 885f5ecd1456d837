"""Traces as text in CWM's format, written and read.

    <|begin_of_text|><|trace_context_start|>SOURCE<|frame_sep|>
    <|call_sep|>LOCALS<|action_sep|>LINE<|frame_sep|>
    <|line_sep|>LOCALS<|action_sep|>LINE<|frame_sep|>
    <|return_sep|><|action_sep|>LINE<|arg_sep|>VALUE<|frame_sep|>
    <|exception_sep|><|action_sep|>LINE<|arg_sep|>VALUE<|frame_sep|>
    <|end_of_text|>

without the line breaks shown here; LINE ends with a newline. LOCALS is JSON, name to repr; an unchanged value is `".."`, up to the last
call or return frame. VALUE is the JSON string of a repr. Source: facebookresearch/cwm at 7930e02, PROMPTING_GUIDE.md and demos/cwmdbg.py.

A program may hold the tokens as text. In JSON `<|` is then written `\\u003c|`; in SOURCE and LINE a token, or the entry mark, gets a
backslash behind its `<`, and one more where there are some already. Reading takes them off again.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from environments.traces.entry import MARK, source_lines
from environments.traces.records import EventKind, Trace, TraceEvent

BEGIN, CONTEXT, END = "<|begin_of_text|>", "<|trace_context_start|>", "<|end_of_text|>"
FRAME, ACTION, ARG = "<|frame_sep|>", "<|action_sep|>", "<|arg_sep|>"
EVENT_TOKENS = {
    EventKind.CALL: "<|call_sep|>",
    EventKind.LINE: "<|line_sep|>",
    EventKind.RETURN: "<|return_sep|>",
    EventKind.EXCEPTION: "<|exception_sep|>",
}
FRAME_TOKENS = (CONTEXT, FRAME, ACTION, ARG, *EVENT_TOKENS.values())
"""Those that have no meaning outside of traces."""
TOKENS = (BEGIN, END, *FRAME_TOKENS)
UNCHANGED = ".."
_KINDS = {token: kind for kind, token in EVENT_TOKENS.items()}
_TOKEN = re.compile("(" + "|".join(re.escape(token) for token in TOKENS) + ")")
_IN_TEXT = re.compile(r"<(\\*)(\|[A-Za-z0-9_]+\|>|< START_OF_TRACE)")
_ESCAPED = re.compile(r"<\\(\\*)(\|[A-Za-z0-9_]+\|>|< START_OF_TRACE)")


class TraceTextError(ValueError):
    """The text is no trace."""

    def __init__(self, reason: str, *, position: int) -> None:
        super().__init__(f"character {position}: {reason}")
        self.reason, self.position = reason, position
        """`position`: from 0, where the part begins that is wrong."""


def render_trace(trace: Trace) -> str:
    """The whole text. Raises ValueError for a local whose repr is `..`, which the format cannot say."""
    return "".join((render_context(trace.source, entry_line=trace.entry_line), *render_events(trace.events), END if trace.complete else ""))


def render_context(source: str, *, entry_line: int) -> str:
    """What stands before the frames: the prompt of a trace prediction."""
    lines = source.split("\n")
    before, line, after = lines[: entry_line - 1], lines[entry_line - 1], lines[entry_line:]
    marked = "\n".join((*map(escape, before), escape(line) + MARK, *map(escape, after)))
    return f"{BEGIN}{CONTEXT}{marked}{FRAME}"


def render_events(events: Sequence[TraceEvent]) -> Iterator[str]:
    """One frame an event. The first one is rendered as behind a call or return: with all its locals."""
    known: Mapping[str, str] = {}
    for event in events:
        yield render_event(event, known=known)
        known = known_after(event, known=known)


def render_event(event: TraceEvent, *, known: Mapping[str, str]) -> str:
    """`known`: the locals of the last frame that showed some, if no return came since; what is equal there is `..`."""
    head, line = EVENT_TOKENS[event.kind], escape(event.line)
    if event.locals is None:
        return f"{head}{ACTION}{line}\n{ARG}{_json(event.value)}{FRAME}"
    if UNCHANGED in event.locals.values():
        raise ValueError("a local's repr is '..', which stands for an unchanged value in a trace")
    if event.kind is EventKind.CALL:
        return f"{head}{_json(event.locals)}{ACTION}{line}\n{FRAME}"
    changes = {name: UNCHANGED if known.get(name) == text else text for name, text in event.locals.items()}
    return f"{head}{_json(changes)}{ACTION}{line}\n{FRAME}"


def escape(text: str) -> str:
    """Source text in which nothing reads as a token or as the entry mark."""
    return _IN_TEXT.sub(r"<\\\1\2", text) if "<" in text else text


def unescape(text: str) -> str:
    return _ESCAPED.sub(r"<\1\2", text) if "<\\" in text else text


def parse_trace(text: str) -> Trace:
    """The trace of a whole text; `<|begin_of_text|>` and `<|end_of_text|>` may be missing. Raises TraceTextError."""
    pieces = _Pieces(text)
    pieces.skip(BEGIN)
    pieces.expect(CONTEXT)
    start = pieces.position
    source, entry_line = _parse_source(pieces.text(), position=start)
    pieces.expect(FRAME)
    events, complete = _parse_frames(pieces, lines=source_lines(source))
    return Trace(source=source, entry_line=entry_line, events=events, complete=complete)


def parse_frames(text: str, *, source: str) -> tuple[tuple[TraceEvent, ...], bool]:
    """The frames that follow the context of `source`, and whether they end with `<|end_of_text|>`. Raises TraceTextError."""
    return _parse_frames(_Pieces(text), lines=source_lines(source))


def parse_event(text: str, *, known: Mapping[str, str]) -> TraceEvent:
    """The event of exactly one frame, such as a model's answer to "what comes next?". `known` is as in `render_event`.

    It has no line number and the depth 1. Raises TraceTextError.
    """
    pieces = _Pieces(text)
    token = pieces.token()
    kind = _KINDS.get(token)
    if kind is None:
        raise TraceTextError(f"a frame should begin here, not {token or 'the end of the text'}", position=0)
    line, shown, value = _parse_event(pieces, kind, {} if kind is EventKind.CALL else dict(known))
    rest = pieces.position
    if pieces.text() or pieces.token():
        raise TraceTextError("something stands behind the frame", position=rest)
    return TraceEvent(kind=kind, line=line, locals=shown, value=value)


def known_after(event: TraceEvent, *, known: Mapping[str, str]) -> Mapping[str, str]:
    """The locals that the frame behind `event` may write as `..`, where `known` were those of `event` itself."""
    if event.locals is not None:
        return event.locals
    return {} if event.kind is EventKind.RETURN else known


class _Pieces:
    """Tokens and the texts between them, one after the other; linear in the length of the text."""

    def __init__(self, text: str) -> None:
        self._pieces = _TOKEN.split(text)  # text, token, text, token, ..., text
        self._next = 0
        self.position = 0

    def text(self) -> str:
        """The text up to the next token."""
        return self._take() if self._next % 2 == 0 else ""

    def token(self) -> str:
        """The token that comes next; empty at the end. Text before it is an error."""
        if self._next % 2 == 0:
            if self._pieces[self._next]:
                raise TraceTextError(f"a token should stand here, not {self._pieces[self._next][:40]!r}", position=self.position)
            self._next += 1
        return self._take() if self._next < len(self._pieces) else ""

    def expect(self, *tokens: str) -> str:
        where = self.position
        found = self.token()
        if found not in tokens:
            raise TraceTextError(f"{' or '.join(tokens)} should stand here, not {found or 'the end of the text'}", position=where)
        return found

    def skip(self, token: str) -> None:
        if self._pieces[0] == "" and self._pieces[1:2] == [token]:
            self.token()

    def _take(self) -> str:
        piece = self._pieces[self._next]
        self._next += 1
        self.position += len(piece)
        return piece


def _parse_source(text: str, *, position: int) -> tuple[str, int]:
    """The source without its mark, and where the mark stood."""
    before, mark, after = text.partition(MARK)
    if not mark or (after and not after.startswith("\n")):
        raise TraceTextError(f"no line of the source ends with the entry mark {MARK.strip()!r}", position=position)
    return unescape(before + after), before.count("\n") + 1


def _parse_frames(pieces: _Pieces, *, lines: Sequence[str]) -> tuple[tuple[TraceEvent, ...], bool]:
    places: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        places[line] = 0 if line in places else number
    events: list[TraceEvent] = []
    known: dict[str, str] = {}
    depth = 0
    while True:
        where = pieces.position
        token = pieces.token()
        if token in ("", END):
            break
        kind = _KINDS.get(token)
        if kind is None:
            raise TraceTextError(f"a frame should begin here, not {token}", position=where)
        if kind is EventKind.CALL:
            depth, known = depth + 1, {}
        elif depth == 0:
            raise TraceTextError(f"a {kind} frame outside of any call", position=where)
        line, shown, value = _parse_event(pieces, kind, known)
        events.append(TraceEvent(kind=kind, line=line, locals=shown, value=value, line_no=places.get(line, 0), depth=depth))
        if kind is EventKind.RETURN:
            depth, known = depth - 1, {}
    if token == END:
        if depth:
            raise TraceTextError(f"the trace ends inside of {depth} calls", position=where)
        rest = pieces.position
        if pieces.text() or pieces.token():
            raise TraceTextError(f"something stands behind {END}", position=rest)
    return tuple(events), token == END


def _parse_event(pieces: _Pieces, kind: EventKind, known: dict[str, str]) -> tuple[str, dict[str, str] | None, str | None]:
    """Line, locals and value of the frame whose first token was taken; `known` is brought up to date."""
    shown, value = None, None
    if kind is EventKind.CALL or kind is EventKind.LINE:
        shown = _parse_locals(pieces, known)
    pieces.expect(ACTION)
    line = _parse_line(pieces)
    if shown is None:
        pieces.expect(ARG)
        value = _parse_value(pieces)
    pieces.expect(FRAME)
    return line, shown, value


def _parse_locals(pieces: _Pieces, known: dict[str, str]) -> dict[str, str]:
    """The locals of one frame, `..` replaced; `known` is brought up to date."""
    where = pieces.position
    shown = _load(pieces.text(), where=where)
    if type(shown) is not dict:
        raise TraceTextError("locals must be a JSON object of names and strings", position=where)
    for name, text in shown.items():
        if type(text) is not str:
            raise TraceTextError(f"local {name[:40]!r} must be a JSON string", position=where)
        if text == UNCHANGED:
            if name not in known:
                raise TraceTextError(f"local {name[:40]!r} is '..', but no frame since the last call or return shows it", position=where)
            shown[name] = known[name]
        else:
            known[name] = text
    return shown


def _parse_line(pieces: _Pieces) -> str:
    where = pieces.position
    line = pieces.text().removesuffix("\n").removesuffix(MARK)
    if "\n" in line:
        raise TraceTextError("a frame must show one line of the source", position=where)
    return unescape(line)


def _parse_value(pieces: _Pieces) -> str:
    where = pieces.position
    value = _load(pieces.text(), where=where)
    if type(value) is not str:
        raise TraceTextError("a value must be a JSON string", position=where)
    return value


def _load(text: str, *, where: int) -> Any:
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise TraceTextError(f"no JSON: {error}"[:200], position=where) from None


def _no_repeated_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found


def _refuse(text: str) -> Any:
    raise ValueError(f"{text[:40]} is no string")


_DECODER = json.JSONDecoder(object_pairs_hook=_no_repeated_names, parse_int=_refuse, parse_float=_refuse, parse_constant=_refuse)
"""Numbers are refused unread: many digits take quadratic time."""


def _json(value: Any) -> str:
    text = json.dumps(value)
    return text.replace("<|", "\\u003c|") if "<|" in text else text
