"""Another socket of an engine, that can go away: an engine that is stopped in the middle."""

import contextlib
import socket
import threading


class Proxy:
    """Goes away by `cut`, and before a request that holds `at`."""

    def __init__(self, path: str, target: str, *, at: bytes = b"") -> None:
        self.path, self._target, self._at, self._open = path, target, at, list[socket.socket]()
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(path)
        self._server.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()

    def cut(self) -> None:
        for end in (self._server, *self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here = self._server.accept()[0]
                there = socket.socket(socket.AF_UNIX)
                there.connect(self._target)
                self._open += (here, there)
                for pair in ((here, there), (there, here)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if self._at and self._at in data:
                    self.cut()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
