"""`rl view`: serve the pages on this machine, or export them."""

import json
import socket
import sys
from pathlib import Path

import uvicorn

from rl.log.runs import RUNS, find_run
from rl.view.app import make_app
from rl.view.export import export_run
from rl.view.open_run import RunsFolder

HOST = "127.0.0.1"
"""Never another: logs hold what a model wrote and what it was graded by, and the viewer has no accounts."""
PORT = 8750


def view_command(run: str | None, *, runs_dir: Path | None, port: int | None, export: Path | None, rollouts: int, as_json: bool) -> int:
    """Serve `run`, or all runs in `runs_dir` (default: runs/), until Ctrl-C; or write a bundle of `run` to `export`.

    Raises ValueError for an unknown run, a port that is taken and an export folder that is not empty.
    """
    if export is not None:
        if run is None:
            raise ValueError("--export writes the pages of one run: name it, as in rl view RUN --export DIR")
        if port is not None:
            raise ValueError("--port is for the server: leave it out with --export")
        summary = export_run(find_run(run), out=export, rollouts=rollouts)
        print(json.dumps({"out": str(export), **summary}) if as_json else f"exported {summary['rollouts']} rollouts: {export}/index.html")
        return 0
    if run is not None and runs_dir is not None:
        raise ValueError(f"give a run or --dir, not both: {run} is looked up by path or under {RUNS}/")
    folder = RunsFolder(runs_dir or RUNS, only=run)
    if runs_dir is not None and not runs_dir.is_dir():
        raise ValueError(f"--dir {runs_dir}: there is no such folder")
    listener = _listen(port)
    url = f"http://{HOST}:{listener.getsockname()[1]}/"
    print(json.dumps({"url": url}) if as_json else f"{folder.place} at {url} (Ctrl-C ends)", flush=True)
    serve(folder, listener)
    return 0


def serve(folder: RunsFolder, listener: socket.socket) -> None:
    """Answer on a bound socket until the process is interrupted."""
    config = uvicorn.Config(make_app(folder), log_level="error", access_log=False, server_header=False, lifespan="off", ws="none")
    uvicorn.Server(config).run(sockets=[listener])


def _listen(port: int | None) -> socket.socket:
    """A loopback socket; without a wish the usual port, or any free one when that is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, PORT if port is None else port))
    except OSError as error:
        if port is not None:
            listener.close()
            raise ValueError(f"--port {port}: {error.strerror}; choose another, or leave it out for a free one") from error
        print(f"port {PORT} is taken; using a free one", file=sys.stderr)
        listener.bind((HOST, 0))
    listener.listen()  # from here on a browser that is told the address gets an answer, if only a moment later
    return listener
