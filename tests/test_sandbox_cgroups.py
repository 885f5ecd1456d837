"""Control groups on this machine's own cgroup tree."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from environments.sandbox.cgroups import Controllers, Group

MIB = 1 << 20
HOLDER = "import sys\nkept = b'x' * int(sys.stdin.readline())\nprint('held', flush=True)\nsys.stdin.readline()"


@pytest.fixture
def group() -> Iterator[Group]:
    controllers = Controllers.find()
    if controllers.memory is None:
        pytest.skip(f"no memory control group here: {controllers.found}")
    made = controllers.group("test")
    yield made
    made.remove()


def test_what_dead_programs_still_occupy_is_not_the_next_ones_loss(group: Group) -> None:
    """A process that joined the group stands for kernel memory that is freed late."""
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdin is not None and holder.stdout is not None
    try:
        group.join(holder.pid)
        group.measure_base()
        group.limit(memory_bytes=64 * MIB, processes=8)
        first = group._set.copy()
        print(40 * MIB, file=holder.stdin, flush=True)
        assert holder.stdout.readline() == "held\n"
        group.limit(memory_bytes=64 * MIB, processes=8)
        name = next(name for name in first if name.startswith("memory."))
        assert group._set[name] - first[name] >= 36 * MIB
    finally:
        holder.kill()
        holder.communicate()
