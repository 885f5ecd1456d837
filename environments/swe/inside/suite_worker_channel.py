"""The channel of verdicts between the process of the tests and the host.

Each line to the host starts with a code that only who has the key can make; the key comes with the first order, before any code of the
repository runs. A code covers the line and the order that it answers, and each line changes the key in a way that cannot be undone: who
holds the descriptors can neither answer, nor change, leave out or repeat a line, and who finds the key has first been told of, in a line
that cannot be taken back. Standard library only, Python 3.8.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import tempfile
from threading import Lock
from typing import Any

from environments.swe.inside.json_text import to_json

_OUTPUT_BYTES = 4000
_read, _write, _exit, _getpid = os.read, os.write, os._exit, os.getpid


class Channel:
    """Lines of JSON to and from the host, on descriptors that programs started by the tests do not inherit."""

    def __init__(self) -> None:
        self._in, self._out = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64 + secrets.randbelow(900)) for fd in (0, 1))
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        with tempfile.TemporaryFile() as file:
            self.printed = os.dup(file.fileno())
        os.dup2(self.printed, 1)
        os.dup2(self.printed, 2)
        self._buffer, self._lock, self._pid = b"", Lock(), os.getpid()
        self._key = self._order = b""
        """The order is kept by its name: the first one has the key in it."""

    def receive(self) -> Any:
        """The next order; ends the process when there is none."""
        while b"\n" not in self._buffer:
            data = _read(self._in, 1 << 16)
            if not data:
                _exit(0)
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        order, self._order = json.loads(line), name_of(line)
        if not self._key:
            self._key = bytes.fromhex(order.pop("key"))
        return order

    def send(self, answer: dict[str, Any]) -> None:
        """Answer the order; only from the process that the host started."""
        self._send(answer, self._order)

    def tell(self, news: dict[str, Any]) -> None:
        """Say something that is no answer."""
        self._send(news, b"")

    def _send(self, answer: dict[str, Any], order: bytes) -> None:
        if _getpid() != self._pid:
            _exit(1)
        line = to_json(answer).encode()
        with self._lock:
            code, self._key = sealed(self._key, line=line, order=order)
            data = code + b" " + line + b"\n"
            while data:
                data = data[_write(self._out, data) :]

    def last_output(self) -> str:
        """The last of what was printed beside pytest's own capturing."""
        size = os.fstat(self.printed).st_size
        return os.pread(self.printed, _OUTPUT_BYTES, max(0, size - _OUTPUT_BYTES)).decode(errors="replace")


def name_of(order: bytes) -> bytes:
    """What an order is called where a line answers it."""
    return _blake2b(order, digest_size=32).digest()


def sealed(key: bytes, *, line: bytes, order: bytes) -> tuple[bytes, bytes]:
    """The code of a line that answers the order of that name (empty: none), and the key that comes after `key`."""
    digest = _blake2b(b"%d " % len(order) + order + line, key=key).digest()
    return digest[:32].hex().encode(), digest[32:]


try:
    from _blake2 import blake2b as _blake2b
except ImportError:
    from hashlib import blake2b as _blake2b
