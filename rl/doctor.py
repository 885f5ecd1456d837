"""`rl doctor`: what this machine offers, and what to install where something is missing."""

import asyncio
import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table
from rich.text import Text

from configs.vllm import VllmConfig
from environments.containers.base import EngineUnavailable
from environments.sandbox.base import Guard, SandboxError, SandboxUnavailable
from environments.sandbox.make import make_sandbox
from environments.traces.native import native_library
from rl.engines.vllm_environment import check_vllm, interpreter
from rl.plan import available_cores
from rl.swe.engine import EngineFacts, describe_engine

DISTRIBUTION = "codeworld-rl"
PYTHON_WANTED = (3, 11)
GIB = 2**30
COLORS = {"on": "green", "off": "yellow", "unavailable": "red"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One thing that was looked at."""

    name: str
    state: Literal["on", "off", "unavailable"]
    """on: works. off: there, but not usable as it is. unavailable: not there."""
    required: bool
    """The quickstart needs it."""
    found: str
    """What was found: a version, a path, a size."""
    fix: str = ""
    """What to do about it; empty when on."""


def doctor_command(*, as_json: bool) -> int:
    """Print the state of the machine; 1 when something required is not on."""
    items = check_machine()
    failed = [item.name for item in items if item.required and item.state != "on"]
    if as_json:
        print(json.dumps({"ok": not failed, "items": [asdict(item) for item in items]}))
        return 1 if failed else 0
    table = Table("item", "state", "found", "what to do", box=None, pad_edge=False)
    for item in items:
        name = item.name if item.required else f"{item.name} (optional)"
        table.add_row(name, Text(item.state, style=COLORS[item.state]), Text(item.found), Text(item.fix))
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    console.print(f"missing: {', '.join(failed)}" if failed else "everything required is on", markup=False)
    return 1 if failed else 0


def check_machine(*, root: Path = Path(".")) -> list[Item]:
    """All checks. `root` is a folder on the disk where runs will be written."""
    return [
        check_python(),
        *check_packages(declared_requirements()),
        check_torch(),
        *check_build_tools(),
        check_tracer(),
        *check_sandbox(),
        check_docker(),
        check_vllm_engine(VllmConfig()),
        *check_room(root),
    ]


def check_python(version: tuple[int, int] = (sys.version_info.major, sys.version_info.minor)) -> Item:
    wanted = ".".join(map(str, PYTHON_WANTED))
    good = version >= PYTHON_WANTED
    return Item(
        name="python",
        state="on" if good else "off",
        required=True,
        found=platform.python_version() if version == sys.version_info[:2] else ".".join(map(str, version)),
        fix="" if good else f"install Python {wanted} or newer",
    )


def declared_requirements() -> list[str]:
    """What the installed project depends on, without its extras; empty when the project is not installed."""
    try:
        declared = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [text for text in declared if "extra ==" not in text]


def check_packages(requirements: Sequence[str]) -> Iterator[Item]:
    """One item a requirement (`name>=1,<2`), by the versions that are installed."""
    if not requirements:
        yield Item(name=DISTRIBUTION, state="unavailable", required=True, found="not installed", fix="make setup")
    for text in requirements:
        requirement = Requirement(text)
        install = f'pip install "{requirement.name}{requirement.specifier}"'
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Item(name=requirement.name, state="unavailable", required=True, found="not installed", fix=install)
            continue
        good = requirement.specifier.contains(version, prereleases=True)
        yield Item(
            name=requirement.name,
            state="on" if good else "off",
            required=True,
            found=version if good else f"{version}, but {requirement.specifier} is wanted",
            fix="" if good else install,
        )


def check_torch() -> Item:
    """Imports torch in a process of its own: a broken build may end the process, not only raise."""
    code = "import torch; print(torch.get_num_threads(), torch.backends.cpu.get_cpu_capability(), torch.cuda.device_count())"
    status, output = _run([sys.executable, "-c", code])
    if status != 0:
        return Item(name="torch import", state="off", required=True, found=output, fix="make setup")
    threads, capability, gpus = output.split()
    return Item(
        name="torch import",
        state="on",
        required=True,
        found=f"{threads} threads by default, {available_cores()} cores, {capability}, {gpus} GPUs",
    )


def check_build_tools(which: Callable[[str], str | None] = shutil.which) -> Iterator[Item]:
    """deepspeed compiles its CPU communication op with these."""
    beside_python = Path(sys.executable).parent / "ninja"
    yield _program("g++", which("g++"), fix="apt-get install g++")
    yield _program("ninja program", which("ninja") or (str(beside_python) if beside_python.is_file() else None), fix="pip install ninja")


def check_tracer() -> Item:
    """Compiles the tracer, once a machine."""
    try:
        library = native_library()
    except ValueError as error:
        found = "programs are traced in Python alone, which takes several times longer"
        return Item(name="compiled tracer", state="unavailable", required=False, found=found, fix=str(error))
    return Item(name="compiled tracer", state="on", required=False, found=str(library))


def check_sandbox() -> Iterator[Item]:
    """Runs a program in the sandbox (the tools may be there while the kernel or a container forbids user namespaces), then one
    item a guard."""
    try:
        guards = asyncio.run(_guards())
    except SandboxUnavailable as error:
        yield Item(name="sandbox", state="unavailable", required=True, found="does not start", fix=str(error))
        return
    yield Item(name="sandbox", state="on", required=True, found="runs a program")
    for guard in guards:
        yield Item(name=f"sandbox: {guard.name}", state=guard.state, required=False, found=guard.found, fix=guard.fix)


async def _guards() -> tuple[Guard, ...]:
    sandbox = make_sandbox(slots=1)
    try:
        return await sandbox.guards()
    finally:
        await sandbox.close()


def check_docker(look: Callable[[], EngineFacts] = describe_engine) -> Item:
    """The container engine: repository tasks need it, nothing of the quickstart does."""
    try:
        facts = look()
    except (SandboxError, ValueError) as error:
        installed = shutil.which("dockerd") is not None
        start = "as root: rl swe engine start; or set containers.host or DOCKER_HOST to an engine that runs"
        return Item(
            name="docker",
            state="off" if installed else "unavailable",
            required=False,
            found="no engine answers" if isinstance(error, EngineUnavailable) else str(error),
            fix=start if installed else f"apt-get install docker.io; then {start}",
        )
    found = (
        f"server {facts.version} at {facts.address}, runtimes {', '.join(facts.runtimes)} (default {facts.default_runtime}), "
        f"{facts.storage}, cgroup version {facts.cgroup_version}, {'seccomp' if facts.seccomp else 'no seccomp'}"
    )
    fixes = [] if facts.seccomp else ["use a kernel and an engine with seccomp: containers get no system-call filter here"]
    fixes += [f"the engine lacks {', '.join(facts.missing_limits)}: enable these control groups" for _ in facts.missing_limits[:1]]
    return Item(name="docker", state="off" if fixes else "on", required=False, found=found, fix="; ".join(fixes))


def check_vllm_engine(settings: VllmConfig) -> Item:
    """The environment of `generator.engine=vllm`; the torch engine needs none."""
    try:
        found = f"{check_vllm(settings)} at {interpreter(settings)}"
    except ValueError as error:
        return Item(name="vllm", state="unavailable", required=False, found="no environment for generator.engine=vllm", fix=str(error))
    return Item(name="vllm", state="on", required=False, found=found)


def check_room(root: Path) -> Iterator[Item]:
    """Free disk, memory and shared memory."""
    yield _room("disk", shutil.disk_usage(root).free, wanted=2 * GIB, required=True, fix="free some space, or set run.dir to another disk")
    yield _room("memory", psutil.virtual_memory().available, wanted=6 * GIB, required=True, fix="end other programs")
    shared = Path("/dev/shm")
    if shared.is_dir():
        # Ray falls back to files in /tmp when shared memory is small: slower, but it works.
        free = shutil.disk_usage(shared).free
        yield _room("/dev/shm", free, wanted=GIB, required=False, fix="in a container: docker run --shm-size=2g")
    else:
        yield Item(name="/dev/shm", state="unavailable", required=False, found="not mounted", fix="mount -t tmpfs tmpfs /dev/shm")


def _program(name: str, path: str | None, *, fix: str) -> Item:
    if path is None:
        return Item(name=name, state="unavailable", required=True, found="not found", fix=fix)
    return Item(name=name, state="on", required=True, found=path)


def _room(name: str, free: int, *, wanted: int, required: bool, fix: str) -> Item:
    good = free >= wanted
    found = f"{free / GIB:.1f} GiB free" + ("" if good else f", {wanted / GIB:.0f} GiB wanted")
    return Item(name=name, state="on" if good else "off", required=required, found=found, fix="" if good else fix)


def _run(command: Sequence[str]) -> tuple[int, str]:
    """Exit status and the last line of output; a program that does not end within a minute counts as failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    lines = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip().splitlines()
    return done.returncode, lines[-1] if lines else f"exit status {done.returncode}"
