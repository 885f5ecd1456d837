"""A trace in sentences, by template: the same trace always gives the same text.

The program comes first, with line numbers; then a sentence for each line that ran, with what it changed, calls indented below their
callers; then what went in and what came out. A trace shows locals before each line, so what a line did is told when its frame is seen
again. Everything that a program can choose is shown safely: control characters as escapes, tokens of CWM's format with a backslash.
"""

import ast
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from environments.traces.entry import source_lines
from environments.traces.records import EventKind, Trace, TraceEvent
from environments.traces.text import escape
from rl.log.text import visible

_INDENT = "  "


@dataclass(kw_only=True, slots=True)
class _Frame:
    """A call that is open."""

    name: str
    shown: Mapping[str, str]
    """Its locals when they were seen last."""
    line: str = ""
    """The line that runs, as it is called in a sentence, until what it did is told."""
    raised: bool = False
    """Whether an exception is on its way out of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Names:
    """What the functions of a program are called."""

    entry_line: int
    first_lines: Mapping[int, str] = field(default_factory=dict)
    """First line of a function or class, decorators included: what is called there."""
    owners: Mapping[int, str] = field(default_factory=dict)
    """Any line of a function: its name."""
    yields: frozenset[int] = frozenset()
    """Lines with `yield` or `await`, where a return may be a pause."""


def describe_trace(trace: Trace) -> str:
    """The whole text; it ends with a newline."""
    source = source_lines(trace.source)
    width = len(str(len(source)))
    listing = (f"{number:>{width}} | {_safe(line)}".rstrip() for number, line in enumerate(source, start=1))
    return "\n".join([*listing, "", *_sentences(trace), "", _summary(trace)]) + "\n"


def _sentences(trace: Trace) -> Iterator[str]:
    names = _names_of(trace.source, entry_line=trace.entry_line)
    frames: list[_Frame] = []
    for event in trace.events:
        if event.kind is EventKind.CALL:
            if frames and frames[-1].line:
                yield f"{_INDENT * (len(frames) - 1)}{frames[-1].line} makes a call."
                frames[-1].line = ""
            frame, sentence = _open(event, names)
            yield _INDENT * len(frames) + sentence
            frames.append(frame)
            continue
        indent, frame = _INDENT * (len(frames) - 1), frames[-1]
        if event.kind is EventKind.LINE:
            yield from _effect(frame, event.locals or {}, indent=indent)
            frame.line, frame.raised = _line_name(event), False
        elif event.kind is EventKind.EXCEPTION:
            yield f"{indent}{frame.line or _line_name(event)}: raises {_safe(event.value or '')}."
            frame.line, frame.raised = "", True
        else:
            yield f"{indent}{_end(frame, event, names)}"
            frames.pop()
    if frames and frames[-1].line:
        yield f"{_INDENT * (len(frames) - 1)}{frames[-1].line} is reached."
    if not trace.complete:
        yield "The trace was cut off here."


def _open(event: TraceEvent, names: _Names) -> tuple[_Frame, str]:
    shown = event.locals or {}
    arguments = {name: text for name, text in shown.items() if name != ".0"}
    resumed = event.line_no in names.yields and event.line_no not in names.first_lines
    if ".0" in shown:
        name = f"the comprehension of line {event.line_no}"
    elif resumed:
        name = names.owners.get(event.line_no, "the generator")
    else:
        name = names.first_lines.get(event.line_no) or _unnamed(event, names)
    does = f"goes on at line {event.line_no}" if resumed else "starts"
    return _Frame(name=name, shown=shown), f"{_capital(name)} {does}{' with ' + _pairs(arguments) if arguments else ''}."


def _unnamed(event: TraceEvent, names: _Names) -> str:
    return "the program" if event.line_no == names.entry_line else f"the expression of line {event.line_no}"


def _effect(frame: _Frame, now: Mapping[str, str], *, indent: str) -> Iterator[str]:
    """What happened in a frame since it was seen last, told of the line that did it."""
    parts = [f"{_safe(name)} becomes {_safe(text)}" for name, text in now.items() if frame.shown.get(name) != text]
    parts += [f"{_safe(name)} is gone" for name in frame.shown if name not in now]
    if frame.line:
        yield f"{indent}{frame.line}: {_joined(parts) or 'nothing changes'}."
    elif parts:
        yield f"{indent}Back in {frame.name}: {_joined(parts)}."
    frame.shown = now


def _end(frame: _Frame, event: TraceEvent, names: _Names) -> str:
    value = _safe(event.value or "")
    if frame.raised and event.value == "None":
        return f"{_capital(frame.name)} ends with the exception."
    verb = "pauses with" if event.line_no in names.yields else "returns"
    return f"{frame.line}: {frame.name} {verb} {value}." if frame.line else f"{_capital(frame.name)} {verb} {value}."


def _summary(trace: Trace) -> str:
    """What went in and what came out, by the entry's first and last event."""
    if not trace.events:
        return "Nothing ran."
    shown = trace.events[0].locals or {}
    given = _pairs(shown) if shown else "nothing"
    if not trace.complete:
        return f"Input: {given}. Output: not known, the trace was cut off."
    last, before = trace.events[-1], trace.events[-2:-1]
    if before and before[0].kind is EventKind.EXCEPTION and last.value == "None":
        return f"Input: {given}. Output: the exception {_safe(before[0].value or '')}."
    return f"Input: {given}. Output: {_safe(last.value or '')}."


def _line_name(event: TraceEvent) -> str:
    number = f" {event.line_no}" if event.line_no else ""
    return f"Line{number}, `{_safe(event.line.strip())}`"


def _pairs(shown: Mapping[str, str]) -> str:
    return ", ".join(f"{_safe(name)} = {_safe(text)}" for name, text in shown.items())


def _joined(parts: list[str]) -> str:
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else "".join(parts)


def _capital(text: str) -> str:
    return "T" + text[1:] if text.startswith("the ") else text


def _safe(text: str) -> str:
    return visible(escape(text), one_line=True)


def _names_of(source: str, *, entry_line: int) -> _Names:
    """Names by line; only the entry where the source cannot be parsed, as in a text of a model."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _Names(entry_line=entry_line)
    first_lines: dict[int, str] = {}
    owners: dict[int, str] = {}
    yields: set[int] = set()
    for node in ast.walk(tree):  # from the outside in: the innermost function owns a line
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min((node.lineno, *(decorator.lineno for decorator in node.decorator_list)))
            first_lines[first] = node.name
            owners |= dict.fromkeys(range(first, (node.end_lineno or first) + 1), node.name)
        elif isinstance(node, ast.ClassDef):
            first_lines[min((node.lineno, *(decorator.lineno for decorator in node.decorator_list)))] = f"the body of class {node.name}"
        elif isinstance(node, ast.Yield | ast.YieldFrom | ast.Await):
            yields.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return _Names(entry_line=entry_line, first_lines=first_lines, owners=owners, yields=frozenset(yields))
