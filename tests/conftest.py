"""Environment of the test processes, set before torch is imported: few threads, no network, the CPU accelerator. Plugins that a
test loads are forgotten after it. Tests that need a container engine share one.

`make test` has two processes run tests. A file's tests stay in one process and in their order. Files whose tests start Ray are
together, and so are those that need a container engine: there is one engine. What looks at the whole machine, or at what takes longer
than half a second, is marked `alone`."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

RAY = {f"test_{name}.py" for name in ("docs", "env_new", "places", "planner", "ring", "score_status", "scripted", "trace_tiny", "vllm")}
GROUPS = ("ray", "containers")
"""They take longest, so they begin."""

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "5")  # Ray's own 15 leaves a run next to nothing beside other tests that compute
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: what a test starts would inherit it, and not hear Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests stay together, for `--dist loadgroup`."""
    with_engine = {item.path for item in items if "engine_of_session" in getattr(item, "fixturenames", ())}
    with_engine |= {item.path for item in items if item.path.name == "test_local_engine.py"}
    groups = {item: "ray" if item.path.name in RAY else "containers" if item.path in with_engine else item.path.name for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: GROUPS.index(groups[item]) if groups[item] in GROUPS else len(GROUPS))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test that is marked `alone` waits until no other one runs, and those that come after it wait for it."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    door, room = os.open(Path(__file__).parent, os.O_RDONLY), os.open(__file__, os.O_RDONLY)
    try:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        return (yield)
    finally:
        for lock in (door, room):
            fcntl.flock(lock, fcntl.LOCK_UN)  # said, since a process that the test has forked may hold on to it
            os.close(lock)


@pytest.fixture(scope="session")
def engine_of_session() -> Iterator[str]:
    """Address of a container engine for the whole session, set as DOCKER_HOST; skips with the reason where there is none."""
    from environments.containers.base import EngineUnavailable
    from tests.containers_host import running_engine

    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        try:
            address = stack.enter_context(running_engine())
        except EngineUnavailable as error:
            pytest.skip(str(error))
        patch.setenv("DOCKER_HOST", address)
        yield address


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that sleeps, for what is done to processes."""
    process = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()


@pytest.fixture(autouse=True)
def plugins_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same plugin may come from another folder in the next test; what a test module registers when it is imported stays."""
    import environments.registry
    import rewards.registry
    import rl.log.flags.base

    for registry in (environments.registry._environments, environments.registry._sources, rewards.registry._graders):
        monkeypatch.setattr(registry, "entries", dict(registry.entries))
        monkeypatch.setattr(registry, "_found", {})
    monkeypatch.setattr(rl.log.flags.base, "_rules", dict(rl.log.flags.base._rules))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("ring_plugin_"):
            del sys.modules[name]
