"""The pictures of docs/images: whole pages of the viewer in headless Chromium, two pixels for each of CSS.

python -m benchmarks.pictures [--dir runs] [--out docs/images]

Both runs that they show must be there: `rl train configs/quickstart.yaml` and `rl train configs/swe_short.yaml`.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rl.log.query import RunLog
from tests.browser import Browser, missing

_WIDTH = 1280
_NEARLY_WON = """SELECT group_id, loser FROM contrast WHERE env = 'code' AND n - won BETWEEN 1 AND 3
ORDER BY dispatch_version DESC, group_index DESC LIMIT 1"""
"""A late group of the quickstart of which few rollouts have lost."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One file."""

    name: str
    page: str
    ready: str
    """A selector of what is painted last."""
    dark: bool = False
    keys: str = ""
    """Typed before the picture is taken."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Pictures for the documents; see the docstring.")
    parser.add_argument("--dir", type=Path, default=Path("runs"), help="folder with the runs quickstart and swe_short")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    args = parser.parse_args()
    if why := missing():
        raise SystemExit(why)
    words = [sys.executable, "-m", "rl.cli", "view", "--dir", str(args.dir), "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server, Browser() as browser:
        try:
            assert server.stdout is not None
            url = json.loads(server.stdout.readline())["url"]
            for picture in _pictures(args.dir / "quickstart"):
                browser.size(_WIDTH, _WIDTH, scale=2)
                browser.theme(dark=picture.dark)
                browser.open(f"{url}runs/{picture.page}")
                browser.wait(f"return document.querySelector({picture.ready!r}) !== null")
                browser.size(_WIDTH, browser.run("return document.body.scrollHeight"), scale=2)
                browser.keys(picture.keys)
                browser.run_async("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
                browser.screenshot(args.out / f"{picture.name}.png")
        finally:
            server.terminate()


def _pictures(quickstart: Path) -> list[Picture]:
    with RunLog(quickstart) as log:
        ((group, loser),) = log.query(_NEARLY_WON).rows
    drawing = ".lane-bars .bar"
    return [
        Picture(name="viewer-overview", page="quickstart", ready=".chart-wide canvas"),
        Picture(name="viewer-rollout", page=f"quickstart/rollout?id={loser}", ready=drawing, dark=True, keys="x"),
        Picture(name="viewer-contrast", page=f"quickstart/group?id={group}", ready=".pane mark"),
        Picture(name="viewer-timeline", page="swe_short/timeline?step=3", ready=drawing),
    ]


if __name__ == "__main__":
    main()
