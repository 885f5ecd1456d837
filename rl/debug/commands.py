"""The words of a debugging session."""

from dataclasses import dataclass

from environments.lookup import unknown

NAMES = {
    "step into": ("into", "step", "s"),
    "step over": ("over", "next", "n"),
    "step out": ("out", "return", "r"),
    "continue": ("c",),
    "back": (),
    "breakpoint": ("break", "b"),
    "edit": ("e",),
    "sync": (),
    "help": ("h", "?"),
    "quit": ("q",),
}
"""Names of the commands, and other words for them."""
HELP = """step into          to the next event
step over          to the next event of the same call
step out           to the return of the call
continue           to the next breakpoint, or to the end
back               undo the last step or edit
breakpoint LINE    set a breakpoint, or take it away
edit NAME VALUE    set a local to a Python literal, for the model and for the program
sync               let the model go on from the real trace
help, quit"""
_WORDS = {word: name for name, words in NAMES.items() for word in (name, *words)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """One command."""

    name: str
    """A key of NAMES."""
    line_no: int = 0
    """Of a breakpoint, from 1."""
    local: str = ""
    """Of an edit: the name, and the value, a Python literal."""
    value: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.name, str(self.line_no or ""), self.local, self.value)))


def read_command(text: str) -> Command | None:
    """The command of a line; None for an empty line and for a comment. Raises ValueError that says what is wrong."""
    words = text.split()
    if not words or words[0].startswith("#"):
        return None
    two = " ".join(words[:2])
    name = _WORDS.get(two) or _WORDS.get(words[0])
    if name is None:
        raise ValueError(unknown("command", words[0], NAMES))
    rest = words[2:] if two in _WORDS else words[1:]
    if name == "breakpoint":
        if len(rest) != 1 or not rest[0].isdecimal() or int(rest[0]) < 1:
            raise ValueError(f"breakpoint {' '.join(rest)!r}: give the number of a line, as in breakpoint 3")
        return Command(name=name, line_no=int(rest[0]))
    if name == "edit":
        local, _, value = text.strip().partition(words[0])[2].strip().partition(" ")
        value = value.strip().removeprefix("= ").strip()
        if not local.isidentifier() or not value:
            raise ValueError("edit needs a name and a Python literal, as in edit total 10")
        return Command(name=name, local=local, value=value)
    if rest:
        raise ValueError(f"{name} takes nothing behind it, not {' '.join(rest)!r}")
    return Command(name=name)
