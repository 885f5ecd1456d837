"""Headless Chromium for tests and benchmarks, driven by chromedriver over its own HTTP protocol (W3C WebDriver)."""

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


def missing() -> str:
    """What must be installed first; empty when everything is there."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"no {' and '.join(absent)}: apt-get install chromium chromium-driver" if absent else ""


class Browser:
    """One window with a profile of its own."""

    def __init__(self, *, dark: bool = False) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="rl-chromium-")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._base = f"http://127.0.0.1:{port}"
        self._wait()
        flags = [*_FLAGS, f"--user-data-dir={self._profile.name}"]
        options = {"goog:chromeOptions": {"args": flags}, "goog:loggingPrefs": {"browser": "ALL"}}
        self._session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": options}})["sessionId"]
        self.theme(dark=dark)

    def open(self, url: str) -> None:
        """Go there and wait until the page has loaded."""
        self._command("POST", "url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that a script body returns."""
        return self._command("POST", "execute/sync", {"script": script, "args": list(arguments)})

    def run_async(self, script: str, *arguments: Any) -> Any:
        """What a script body hands to its last argument."""
        return self._command("POST", "execute/async", {"script": script, "args": list(arguments)})

    def wait(self, script: str, *, seconds: float = 120.0) -> Any:
        """Until the script body returns something true. On a busy machine a page may rest for a minute between two of its questions."""
        deadline = time.monotonic() + seconds
        while not (value := self.run(script)):
            if time.monotonic() > deadline:
                raise AssertionError(f"not true after {seconds} s: {script}\n{self.errors()}")
            time.sleep(0.03)
        return value

    def press(self, key: str, *, until: str) -> None:
        """Type a key, again while it has no effect: a page that was just opened may not have the focus yet."""
        for _ in range(3):
            self.keys(key)
            with contextlib.suppress(AssertionError):
                self.wait(until, seconds=6.0)
                return
        self.keys(key)
        self.wait(until)

    def keys(self, text: str) -> None:
        """Type on the page."""
        actions = [step for key in text for step in ({"type": "keyDown", "value": key}, {"type": "keyUp", "value": key})]
        self._command("POST", "actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def focused_label(self) -> str:
        """What a screen reader calls the element that has the focus."""
        element = self._command("GET", "element/active")
        return str(self._command("GET", f"element/{next(iter(element.values()))}/computedlabel"))

    def size(self, width: int, height: int, *, scale: int = 1) -> None:
        """Of the page, in CSS pixels; `scale` of the screen's make one of them."""
        self._devtools("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=width < 700)

    def theme(self, *, dark: bool) -> None:
        """What the system prefers."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._devtools("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path) -> None:
        """What the window shows, as PNG."""
        path.write_bytes(base64.b64decode(self._command("GET", "screenshot")))

    def errors(self) -> list[str]:
        """What the console complained about since the last call, refusals of the content security policy included."""
        entries = self._command("POST", "se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._call("DELETE", f"/session/{self._session}")
        finally:
            self._driver.terminate()
            self._driver.wait()
            self._profile.cleanup()

    def _devtools(self, command: str, **parameters: Any) -> None:
        self._command("POST", "goog/cdp/execute", {"cmd": command, "params": parameters})

    def _command(self, method: str, path: str, body: Any = None) -> Any:
        return self._call(method, f"/session/{self._session}/{path}", body)

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self._base + path, data=data, method=method, headers={"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def _wait(self) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                if self._call("GET", "/status")["ready"]:
                    return
            except OSError:
                time.sleep(0.05)
        raise AssertionError("chromedriver did not start within 20 s")
