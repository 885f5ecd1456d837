"""Messages between a pool's clients and its server: a JSON head and byte strings, no pickle.

Layout: the length of the head (4 bytes), the head, the byte strings; the head's `sizes` gives their lengths.
"""

import asyncio
import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from environments.sandbox.base import Execution, Guard, SandboxError, SandboxUnavailable, SessionEnded

_LENGTH = struct.Struct("=I")
_ERRORS: dict[str, type[Exception]] = {
    "unavailable": SandboxUnavailable,
    "failed": SandboxError,
    "value": ValueError,
    "ended": SessionEnded,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """`kind` says what it is, `values` and `parts` belong to the kind."""

    kind: str
    values: dict[str, Any]
    parts: tuple[bytes, ...] = ()


async def send(writer: asyncio.StreamWriter, message: Message) -> None:
    """Raises ConnectionError when the other side is gone."""
    head = {"kind": message.kind, "values": message.values, "sizes": [len(part) for part in message.parts]}
    text = json.dumps(head).encode()
    writer.writelines((_LENGTH.pack(len(text)), text, *message.parts))
    await writer.drain()


async def receive(reader: asyncio.StreamReader) -> Message:
    """Raises asyncio.IncompleteReadError (an EOFError) or ConnectionError when the other side is gone."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    head = json.loads(await reader.readexactly(length))
    parts = [await reader.readexactly(size) for size in head["sizes"]]
    return Message(kind=head["kind"], values=head["values"], parts=tuple(parts))


def execution_message(execution: Execution) -> Message:
    values = {spec.name: getattr(execution, spec.name) for spec in fields(execution) if spec.name not in ("stdout", "stderr")}
    return Message(kind="execution", values=values, parts=(execution.stdout, execution.stderr))


def read_execution(message: Message) -> Execution:
    stdout, stderr = message.parts
    return Execution(**{**message.values, "stdout": stdout, "stderr": stderr})


def guards_message(guards: Sequence[Guard]) -> Message:
    return Message(kind="guards", values={"guards": [asdict(guard) for guard in guards]})


def read_guards(message: Message) -> tuple[Guard, ...]:
    return tuple(Guard(**guard) for guard in message.values["guards"])


def error_message(error: BaseException) -> Message:
    """Errors of the sandbox keep their kind; anything else is a failure of the sandbox."""
    kind = next((name for name, known in _ERRORS.items() if type(error) is known), "failed")
    text = str(error) if kind != "failed" or isinstance(error, SandboxError) else f"{type(error).__name__}: {error}"
    return Message(kind="error", values={"error": kind, "text": text})


def raise_error(message: Message) -> None:
    """Raise what an error message stands for; nothing for other messages."""
    if message.kind == "error":
        raise _ERRORS[message.values["error"]](message.values["text"])
