"""What a session shows: two columns for people, with the differences marked, or JSON. What the model wrote drives no terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from environments.traces.records import TraceEvent
from rl.debug.session import View
from rl.log.text import shorten, visible
from rl.traces.show import event_json

_CHARS = 400
"""Of one value or text on the screen."""
_DIFFERENT = "!="


def view_json(view: View) -> dict[str, Any]:
    """Everything of a view."""
    match = view.match
    return {
        "command": view.command,
        "real": {**(event_json(view.real) if view.real else {"event": None}), "note": view.real_note},
        "model": {
            **(event_json(view.model) if view.model else {"event": None}),
            "note": view.model_note,
            "written": [prediction.text for prediction in view.predictions],
        },
        "match": match
        and {
            "event": match.event,
            "line": match.line,
            "locals": match.locals,
            "value": match.value,
            "exact": match.exact,
            "reward": match.reward,
        },
        "breakpoints": list(view.breakpoints),
        "message": view.message,
    }


def print_view(view: View, *, console: Console) -> None:
    """For people."""
    console.print(Text(f"> {visible(view.command, one_line=True)}", style="bold"))
    if view.message:
        console.print(Text(visible(view.message)))
    if view.real is not None or view.model is not None:
        console.print(_table(view))
    if view.real_note:
        console.print(Text(f"Python: {_short(view.real_note)}", style="yellow"))
    if view.model_note:
        console.print(Text(f"model: {_short(view.model_note)}", style="yellow"))
    if view.model is None and view.predictions and view.predictions[-1].text:
        console.print(Text(f"it wrote: {_short(view.predictions[-1].text)}", style="red"))
    if view.match is not None:
        console.print(_verdict(view))


def _table(view: View) -> Table:
    table = Table("", "", "Python", "model", box=None, pad_edge=False)
    real, model = _cells(view.real), _cells(view.model)
    for name in (*real, *(name for name in model if name not in real)):
        left, right = real.get(name), model.get(name)
        different = view.match is not None and left != right
        if name == "event" and view.real is not None:
            left = f"{left} {view.real.line_no}"
        cells = (_DIFFERENT if different else "", name, left if left is not None else "", right if right is not None else "")
        table.add_row(*(Text(_short(cell), style="bold red" if different else "") for cell in cells))
    return table


def _cells(event: TraceEvent | None) -> Mapping[str, str]:
    if event is None:
        return {}
    shown = {f"  {name}": text for name, text in (event.locals or {}).items()}
    value = {} if event.value is None else {"value": event.value}
    return {"event": str(event.kind), "line": event.line, **shown, **value}


def _verdict(view: View) -> Text:
    match = view.match
    assert match is not None
    if match.exact:
        return Text("equal", style="green")
    parts = (("event", match.event), ("line", match.line), ("locals", match.locals), ("value", match.value))
    told = ", ".join(f"{name} {float(share):.0%}" for name, share in parts if share is not None)
    return Text(f"different: {told} right", style="red")


def _short(text: str) -> str:
    return visible(shorten(text, _CHARS), one_line=True)
