"""Environment of the test processes, set before torch is imported: few threads, no network, the CPU accelerator. Plugins that a
test loads are forgotten after it. Tests that need a container engine share one."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: what a test starts would inherit it, and not hear Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
