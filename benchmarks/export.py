"""Speed of `rl export`, and three questions asked of this log and of Inspect Scout on the same rollouts. One JSON line.

python -m benchmarks.export [--rollouts 20000] [--scout PYTHON]

The run is synthetic, with the real schema. Rows a second and peak memory are those of the whole command, its start included. A question's
time is that of one command from start to answer, the median of three: `rl sql` on the run's log, or the Python of Scout's environment with
a script of benchmarks/scout_questions.py on the exported database, whose index was made before; `start` is a command that asks nothing.
Both must give the same answer. The viewers are asked over HTTP for a filtered list, newest first, and for one rollout: the median of five,
after one that is not counted.
"""

import argparse
import base64
import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.machine import print_result
from rl.export.command import FORMATS
from rl.log.query import RunLog
from rl.log.synthetic import write_synthetic_run

RL = [sys.executable, "-m", "rl.cli"]
MEASURED = """import re, sys
from rl.cli import main
status = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
sys.exit(status)"""
"""A command of rl, and then its peak memory in KiB."""
QUESTIONS = {
    "one_in_eight": "SELECT group_id FROM contrast WHERE won = 1 AND n = 8",
    "why_this_reward": "SELECT reward, parts, worst_index FROM rollouts JOIN learner USING (rollout_id) WHERE rollout_id = '{rollout}'",
    "pass_rates": """SELECT env, dispatch_version // 100, avg((status = 'ok')::INT) FROM rollouts
    WHERE reward IS NOT NULL GROUP BY 1, 2 ORDER BY 1, 2""",
}
EVERY_TOKEN = """SELECT i, abs(behaviour_logprob[i] - learner_logprob[i]) FROM tokens JOIN learner USING (rollout_id),
    range(1, len(learner_logprob) + 1) AS r(i) WHERE rollout_id = '{rollout}' ORDER BY 2 DESC LIMIT 20"""
"""The second half of the second question: all tokens, of which Scout has the worst only."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of exports; see the docstring.")
    parser.add_argument("--rollouts", type=int, default=20_000)
    parser.add_argument("--scout", type=Path, default=Path(".venv-scout/bin/python"), help="Python of an environment with inspect_scout")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run = write_synthetic_run(folder / "runs" / "mine", rollouts=args.rollouts)
        figures = {name: _exported(run, name, folder / name) for name in FORMATS}
        asked = _asked(run, folder / "scout", python=args.scout) if args.scout.exists() else None
        print_result(benchmark="export", rollouts=args.rollouts, formats=figures, questions=asked)


def _exported(run: Path, to: str, out: Path) -> dict[str, float]:
    begun = time.monotonic()
    words = ["export", str(run), "--to", to, "--out", str(out), "--json"]
    done = subprocess.run([sys.executable, "-c", MEASURED, *words], check=True, capture_output=True, text=True)
    seconds = time.monotonic() - begun
    said, peak = map(json.loads, done.stdout.splitlines())
    n = said["records"]["spans"] if to == "perfetto" else said["rollouts"]["taken"]
    size = sum(path.stat().st_size for path in ([out] if out.is_file() else out.rglob("*")) if path.is_file())
    return {
        "rows": n,
        "seconds": round(seconds, 2),
        "rows_per_s": round(n / seconds),
        "mb": round(size / 1e6, 1),
        "peak_mb": round(peak / 1024),
    }


def _asked(run: Path, database: Path, *, python: Path) -> dict[str, Any]:
    begun = time.monotonic()
    subprocess.run([python.with_name("scout"), "db", "index", database], check=True, capture_output=True)
    found: dict[str, Any] = {"scout_index_s": round(time.monotonic() - begun, 2)}
    nothing = [[*RL, "sql", str(run), "SELECT 1"], [str(python), "-c", "import inspect_scout"]]
    found["start"] = dict(zip(("rl_s", "scout_s"), (_timed(words)[0] for words in nothing), strict=True))
    with RunLog(run) as log:
        ((rollout,),) = log.query("SELECT rollout_id FROM learner WHERE learner_logprob IS NOT NULL ORDER BY n_tokens DESC LIMIT 1").rows
    script = Path(__file__).with_name("scout_questions.py")
    for name, sql in QUESTIONS.items():
        ours, answer = _timed([*RL, "sql", str(run), sql.format(rollout=rollout), "--json"])
        theirs, other = _timed([str(python), str(script), str(database), name, rollout])
        assert _answer(name, answer) == json.loads(other), name
        body = re.search(rf"^async def {name}\(.*?(?=^async def)", script.read_text(), re.M | re.S)
        assert body is not None
        lines = len(body[0].strip().splitlines()) - 1
        found[name] = {"rl_s": ours, "scout_s": theirs, "rl_commands": 1, "scout_commands": 1, "scout_script_lines": lines}
    found["every_token"] = {"rl_s": _timed([*RL, "sql", str(run), EVERY_TOKEN.format(rollout=rollout), "--json"])[0], "scout_s": None}
    with RunLog(run) as log:
        ((uid,),) = log.query("SELECT run_id || '-' || rollout_id FROM rollouts WHERE rollout_id = ?", (rollout,)).rows
    found["viewers"] = {**_our_viewer(run, rollout=rollout), **_scout_viewer(database, python=python, uid=uid)}
    return found


def _timed(words: list[str]) -> tuple[float, str]:
    """Seconds of a command, the median of three, and what it printed."""
    times, said = [], ""
    for _ in range(3):
        begun = time.monotonic()
        said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        times.append(time.monotonic() - begun)
    return round(statistics.median(times), 2), said


def _answer(name: str, printed: str) -> Any:
    """What `rl sql` printed, as the scripts for Scout give it."""
    rows = [json.loads(line) for line in printed.splitlines()]
    if name == "one_in_eight":
        return sorted(row["group_id"] for row in rows)
    if name == "pass_rates":
        return [[*list(row.values())[:2], round(list(row.values())[2], 6)] for row in rows]
    (row,) = rows
    parts = {part: values["value"] * values["weight"] for part, values in row["parts"].items()}
    return {"reward": row["reward"], "parts": parts, "worst": [row["worst_index"]]}


def _our_viewer(run: Path, *, rollout: str) -> dict[str, float]:
    with _serving([*RL, "view", "--dir", str(run.parent), "--json"], port=0) as (process, _):
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        pages = {"rl_list_s": "rollouts?env=swe", "rl_rollout_s": f"rollout?id={rollout}"}
        return {name: _answers(lambda page=page: urllib.request.urlopen(f"{url}runs/{run.name}/{page}")) for name, page in pages.items()}


def _scout_viewer(database: Path, *, python: Path, uid: str) -> dict[str, float]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    words = [str(python.with_name("scout")), "view", "-T", str(database), "--no-browser", "--port", str(port)]
    begun = time.monotonic()
    with _serving(words, port=port) as (_, ready):
        place = base64.urlsafe_b64encode(str(database).encode()).decode().rstrip("=")
        url = f"http://127.0.0.1:{port}/api/v2/transcripts/{place}"
        chosen = {"is_compound": False, "left": "agent", "operator": "=", "right": "swe"}
        order = {"column": "date", "direction": "DESC"}
        body = {"filter": chosen, "order_by": order, "pagination": {"limit": 100, "cursor": None, "direction": "forward"}}
        head = {"Content-Type": "application/json"}
        listed = urllib.request.Request(url, data=json.dumps(body).encode(), headers=head)
        return {
            "scout_start_s": round(ready - begun, 2),
            "scout_list_s": _answers(lambda: urllib.request.urlopen(listed)),
            "scout_rollout_s": _answers(lambda: urllib.request.urlopen(f"{url}/{uid}/messages-events")),
        }


@contextlib.contextmanager
def _serving(words: list[str], *, port: int) -> Iterator[tuple["subprocess.Popen[str]", float]]:
    """A server, and when it answered on `port`; it says its own where that is 0."""
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "HOME": home}
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
        try:
            deadline = time.monotonic() + 60
            while port and time.monotonic() < deadline:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                time.sleep(0.05)
            yield process, time.monotonic()
        finally:
            process.terminate()
            process.communicate()


def _answers(ask: Callable[[], Any]) -> float:
    times = []
    for _ in range(6):
        begun = time.monotonic()
        with ask() as response:
            response.read()
        times.append(time.monotonic() - begun)
    return round(statistics.median(times[1:]), 3)


if __name__ == "__main__":
    main()
