"""Helpers of the end-to-end tests: a tiny untrained model, a task it can learn, and `rl train` in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from rl.log.metrics import Metrics, read_metrics

ROOT = Path(__file__).parent.parent
DEADLINE = 240.0


def make_tiny_model(folder: Path, **sizes: int) -> Path:
    """An untrained CWM of about 0.1 M parameters with the tiny tokenizer."""
    from rl.model import build_tiny_cwm, save_model
    from rl.tokenizer import save_tiny_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = save_tiny_tokenizer(folder)
    save_model(build_tiny_cwm(tokenizer, seed=0, **{"hidden": 48, "layers": 2, "heads": 3, "kv_heads": 1, **sizes}), tokenizer, folder)
    return folder


def write_config(folder: Path, *, model: Path, **sections: dict[str, object]) -> Path:
    """A small run on the digits task; `sections` are merged over it."""
    config: dict[str, dict[str, object]] = {
        "run": {"name": "tiny", "dir": str(folder / "runs"), "steps": 6, "plugins": [str(ROOT / "tests/data/digits_plugin.py")]},
        "model": {"path": str(model), "dtype": "float32", "context_length": 64, "max_prompt_tokens": 48},
        "tasks": {"digits": {"kind": "programs", "env": "digits", "heldout": 8, "options": {"kind": "addition"}}},
        "sampling": {"max_tokens": 6},
        "generator": {"slots": 32},
        "rollout": {"prompts_per_step": 4, "samples_per_prompt": 4, "timeout": 120},
        "learner": {"learning_rate": 1e-2},
        "checkpoint": {"every": 2},
    }
    for name, values in sections.items():
        config[name] = {**config.get(name, {}), **values}
    path = folder / "config.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config))
    return path


def start(*words: str | Path, delay: float = 0.0, until: Path | None = None) -> subprocess.Popen[str]:
    """Start `rl ...`; its session is its own, so that it can be signalled alone. `delay`: seconds a digits episode takes, until the
    file `until` is there."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DIGITS_DELAY": str(delay), "DIGITS_UNTIL": str(until or "")}
    return subprocess.Popen(
        [sys.executable, "-m", "rl.cli", *map(str, words)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], *, status: int = 0) -> str:
    """Wait for the process, check its exit status, return what it printed."""
    try:
        output, _ = process.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
        raise AssertionError(f"no end after {DEADLINE} s:\n{output}") from None
    assert process.returncode == status, f"exit {process.returncode}, expected {status}:\n{output}"
    return output


def rl(*words: str | Path, status: int = 0) -> str:
    """Run `rl ...` to its end."""
    return finish(start(*words), status=status)


def metrics(run: Path) -> Metrics:
    """What the run has recorded so far."""
    return read_metrics(run / "metrics.jsonl")


def wait_for_step(process: subprocess.Popen[str], run: Path, step: int) -> None:
    """Until the run has recorded this training step."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        done = metrics(run).steps if (run / "metrics.jsonl").exists() else ()
        if done and done[-1].step >= step:
            return
        if process.poll() is not None:
            raise AssertionError(f"the run ended before step {step}:\n{process.communicate()[0]}")
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"step {step} did not come within {DEADLINE} s:\n{process.communicate()[0]}")


def model_bytes(run: Path) -> bytes:
    """The exported weights, bit for bit."""
    return b"".join(path.read_bytes() for path in sorted((run / "model").glob("*.safetensors")))


def command_line(pid: int) -> str:
    """What the process calls itself; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def descendants(parent: int) -> list[int]:
    """All processes below `parent`."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                above = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            children.setdefault(above, []).append(int(folder.name))
    found, todo = [], [parent]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def actor_pids(driver: int, name: str) -> list[int]:
    """Ray actor processes of a driver by class name."""
    return [pid for pid in descendants(driver) if command_line(pid).startswith(f"ray::{name}")]
