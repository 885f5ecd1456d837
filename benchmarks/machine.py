"""What this machine can do at best, measured in the run that quotes it, and how a result is printed."""

import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch


def matmul_gflops(*, dtype: torch.dtype, size: int = 2048, seconds: float = 1.0) -> float:
    """Best rate of a square matrix product with the current number of threads, in GFLOP/s."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    best = 0.0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        a @ b
        best = max(best, 2 * size**3 / (time.perf_counter() - started) / 1e9)
    return best


def commit() -> str:
    """Short hash of the checkout, with a plus sign when files differ from it."""
    root = Path(__file__).parent.parent
    try:
        name = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + ("+" if dirty.strip() else "")


def processor() -> str:
    """The CPU's name as the kernel gives it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def print_result(**figures: Any) -> None:
    """One JSON line: the figures, and where and with what they were measured."""
    print(json.dumps({**figures, "machine": processor(), "torch": torch.__version__, "commit": commit()}))
