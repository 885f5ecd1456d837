"""What stands before every page: only this machine's browser, only reading, nothing that a page of a rollout could start.

A page on the web may make a browser send requests to the loopback address, under a name that it rebinds (DNS rebinding)
or under ours. So the Host must be a loopback name, an Origin must be our own, and another site's page may at most link here.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """ASGI middleware. Any port is accepted in the Host, as a tunnel (`ssh -L`) may have another one at its near end."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        refusal = refused(scope["method"], {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]})
        if refusal is not None:
            status, reason = refusal
            body = reason.encode()
            headers = [*_encoded(HEADERS), (b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *((name, value) for name, value in _encoded(HEADERS) if name not in own)]
            await send(message)

        await self._app(scope, receive, with_headers)


def refused(method: str, headers: MutableMapping[str, str]) -> tuple[int, str] | None:
    """Status and reason when a request must not reach a page. Header names in small letters."""
    host = headers.get("host", "")
    if host_name(host) not in LOOPBACK_NAMES:
        return 403, "This viewer answers only to localhost. Open it by the address that rl view printed."
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
        return 403, "Another site's page may not read this viewer."
    if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
        return 403, "Another site's page may not read this viewer."
    if method not in ("GET", "HEAD"):
        return 405, "The viewer only reads: GET is the only method."
    return None


def host_name(host: str) -> str:
    """The name in a Host header, without the port; an IPv6 address keeps its brackets."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdecimal() else host).lower()


def _encoded(headers: MutableMapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]
