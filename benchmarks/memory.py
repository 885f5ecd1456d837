"""Peak memory of a whole run: every process that it starts, sampled twice a second.

    python benchmarks/memory.py [CONFIG] [KEY=VALUE ...]     (default: configs/quickstart.yaml)

Prints one JSON line: the peak of the sum of resident set sizes (pages shared between processes count once for each), and
of the proportional set sizes (shared pages are divided among those who share them: what the run really takes).
"""

import subprocess
import sys
import time
from pathlib import Path

import psutil


def sample(root: psutil.Process) -> tuple[float, float, dict[str, float]]:
    """Resident and proportional MiB of a process and all below it now, and resident MiB by process name."""
    resident = proportional = 0.0
    by_name: dict[str, float] = {}
    for process in (root, *root.children(recursive=True)):
        try:
            memory = process.memory_full_info()
            name = (process.cmdline() or ["?"])[0].rsplit("/", 1)[-1]
        except psutil.Error:
            continue
        resident += memory.rss / 2**20
        proportional += memory.pss / 2**20
        by_name[name] = by_name.get(name, 0.0) + memory.rss / 2**20
    return resident, proportional, by_name


def main() -> None:
    """Run `rl train` and watch it."""
    words = sys.argv[1:] or ["configs/quickstart.yaml"]
    started = time.monotonic()
    command = [sys.executable, "-m", "rl.cli", "train", *words, "--clean"]
    child = subprocess.Popen(command, stdout=sys.stderr)
    root = psutil.Process(child.pid)
    peak, peak_proportional, largest = 0.0, 0.0, dict[str, float]()
    while child.poll() is None:
        try:
            resident, proportional, by_name = sample(root)
        except psutil.Error:
            break
        peak_proportional = max(peak_proportional, proportional)
        if resident > peak:
            peak, largest = resident, by_name
        time.sleep(0.5)
    from benchmarks.machine import print_result

    print_result(
        benchmark="memory",
        command=" ".join(["rl train", *words]),
        exit_status=child.wait(),
        seconds=round(time.monotonic() - started, 1),
        peak_rss_mib=round(peak),
        peak_pss_mib=round(peak_proportional),
        largest_rss_mib={name: round(value) for name, value in sorted(largest.items(), key=lambda item: -item[1])[:5]},
    )
    sys.exit(child.returncode)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main()
