"""Runs inside the jail: a Python interpreter that forks each program into a box of its own. Standard library only.

Started as a script by `zygote.py`, which talks to it over the socket at fd 0. Three kinds of process come from here:

  launcher  builds the jail (a root of read-only binds, own namespaces, an own uid), forks the zygote, waits for it
  zygote    pid 1 of the jail: imports the preloaded modules, then clones one box after the other
  init      pid 1 of a box: fresh namespaces and tmpfs, no capabilities, filtered; forks the program and reaps

The zygote never reads a program: sources cross by a memory file that only the program's own process reads. So a fork of the
zygote holds nothing of an earlier program, and the program's process closes every descriptor but its own three.
"""

import atexit
import ctypes
import gc
import json
import os
import resource
import select
import signal
import site
import socket
import struct
import sys
import threading
import types
from importlib.util import decode_source
from typing import Any, NoReturn

libc = ctypes.PyDLL(None, use_errno=True)  # PyDLL keeps the interpreter lock: a clone must not return into a thread without it

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
BOX_NAMESPACES = NEWPID | NEWNS | NEWNET | NEWIPC | NEWUTS
SYS_CLONE, SYS_PIVOT_ROOT, SYS_CAPSET = {"x86_64": (56, 155, 126), "aarch64": (220, 41, 91)}[os.uname().machine]
SYS_MOUNT_SETATTR = 442
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 1, 2, 4, 8
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
CAPABILITY_VERSION = 0x20080522
BOX_ID = 1000
ROOT = "/sys"
"""Where the new root is put together, inside the jail's own mount namespace; nothing of it is bound."""
OVERHEAD_PROCESSES = 3
"""Launcher, zygote and init count against the same uid."""
INODES = 4096
MAIN = "/tmp/main.py"
STDLIB = (
    *("abc", "array", "ast", "base64", "bisect", "builtins", "calendar", "cmath", "collections", "copy", "csv", "dataclasses"),
    *("datetime", "decimal", "enum", "fractions", "functools", "hashlib", "heapq", "inspect", "io", "itertools", "json", "linecache"),
    *("math", "numbers", "operator", "pprint", "queue", "random", "re", "secrets", "statistics", "string", "textwrap", "threading"),
    *("time", "traceback", "types", "typing", "unittest", "uuid", "warnings", "zlib"),
)
"""What programs under test import most; a fork has it at once."""


def check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    words = [word.encode() if word else None for word in (source, target, kind)]
    check(libc.mount(*words, ctypes.c_ulong(flags), options.encode() or None), f"mount {target}")


def restrict(path: str, attributes: int, *, recursive: bool) -> None:
    """Set mount attributes (read-only and such) of a whole tree at once."""
    data = struct.pack("QQQQ", attributes, 0, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    check(libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, data, ctypes.c_size_t(len(data))), f"mount_setattr {path}")


def unshare(flags: int) -> None:
    check(libc.unshare(flags), "unshare")


# ---- launcher


def build_root(mounts: list[list[str]], devices: list[str]) -> None:
    """A root that holds the given mounts and nothing else, read-only; it becomes `/`."""
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", ROOT, "tmpfs", MS_NOSUID | MS_NODEV, "size=256k,mode=755")
    for kind, source, target in mounts:
        place = ROOT + target
        if kind == "link":
            os.makedirs(os.path.dirname(place), mode=0o755, exist_ok=True)
            os.symlink(source, place)
        elif kind == "hide":
            mount("tmpfs", place, "tmpfs", MS_NOSUID | MS_NODEV, "size=64k,mode=755")
        else:
            make_place(place, is_folder=os.path.isdir(source))
            mount(source, place, None, MS_BIND | MS_REC)
            restrict(place, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV, recursive=True)
    for kind, _, target in mounts:
        if kind == "hide":  # after the packages were put there
            restrict(ROOT + target, ATTR_RDONLY, recursive=False)
    for name in devices:
        make_place(f"{ROOT}/dev/{name}", is_folder=False)
        mount(f"/dev/{name}", f"{ROOT}/dev/{name}", None, MS_BIND)
        restrict(f"{ROOT}/dev/{name}", ATTR_NOSUID | ATTR_NOEXEC, recursive=False)
    for folder in ("/tmp", "/work"):
        os.makedirs(ROOT + folder, mode=0o755)
    restrict(ROOT, ATTR_RDONLY, recursive=False)
    os.chdir(ROOT)
    check(libc.syscall(SYS_PIVOT_ROOT, b".", b"."), "pivot_root")
    check(libc.umount2(b".", MNT_DETACH), "umount of the old root")
    os.chdir("/")


def make_place(path: str, *, is_folder: bool) -> None:
    os.makedirs(path if is_folder else os.path.dirname(path), mode=0o755, exist_ok=True)
    if not is_folder:
        with open(path, "x"):
            pass


def enter_jail(sock: socket.socket, config: dict[str, Any]) -> None:
    """Namespaces, root and uid of the jail. As root the root is built first: the uid below cannot reach every source."""
    rest = NEWPID | NEWNET | NEWIPC | NEWUTS
    if config["uid"] is None:
        unshare(NEWUSER | NEWNS)
        ask_for_id_map(sock)
        build_root(config["mounts"], config["devices"])
        unshare(rest)
        return
    unshare(NEWNS)
    build_root(config["mounts"], config["devices"])
    os.setgroups([])
    os.setresgid(config["uid"], config["uid"], config["uid"])
    os.setresuid(config["uid"], config["uid"], config["uid"])
    unshare(NEWUSER | NEWNS | rest)
    ask_for_id_map(sock)


def ask_for_id_map(sock: socket.socket) -> None:
    """The map of a user namespace is written from outside."""
    sock.send(b'{"state": "unshared"}')
    if sock.recv(16) != b"mapped":
        sys.exit(1)


def launch() -> None:
    sock = socket.socket(fileno=os.dup(0))
    config = json.loads(sock.recv(1 << 20))
    os.umask(0o022)
    try:
        enter_jail(sock, config)
    except OSError as error:
        sock.send(json.dumps({"state": "failed", "error": error.strerror or str(error)}).encode())
        sys.exit(1)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    zygote = os.fork()
    if zygote == 0:
        serve(sock, config)
    sock.close()
    os.closerange(0, 64)
    os.waitpid(zygote, 0)
    os._exit(0)


# ---- zygote


def serve(sock: socket.socket, config: dict[str, Any]) -> NoReturn:
    """Clone a box for each request, one at a time; the end of the socket is the end of everything."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    for capability in range(64):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    try:
        preload(config["preload"], environment=config["environment"])
    except BaseException as error:
        sock.send(json.dumps({"state": "failed", "error": f"preload: {type(error).__name__}: {error}"}).encode())
        os._exit(1)
    seccomp = bytes.fromhex(config["seccomp"])
    config.clear()  # paths of the host are no program's business
    gc.collect()
    gc.freeze()
    socket.send_fds(sock, [b'{"state": "ready"}'], [os.pidfd_open(os.getpid())])
    while True:
        message, fds, _, _ = socket.recv_fds(sock, 4096, 8)
        if not message:
            os._exit(0)
        request = json.loads(message)
        pid = libc.syscall(SYS_CLONE, BOX_NAMESPACES | signal.SIGCHLD, 0, 0, 0, 0)
        if pid == 0:
            sock.detach()
            init(request, fds, seccomp)
        for fd in fds:
            os.close(fd)
        if pid < 0:
            sock.send(json.dumps({"state": "failed", "error": f"clone: {os.strerror(ctypes.get_errno())}"}).encode())
            continue
        pidfd = os.pidfd_open(pid)
        socket.send_fds(sock, [b'{"state": "started"}'], [pidfd])
        watch = select.poll()
        watch.register(pidfd, select.POLLIN)
        watch.register(sock, select.POLLIN)
        if any(fd == sock.fileno() for fd, _ in watch.poll()):  # the server is gone: nothing else speaks while a box runs
            os._exit(0)
        _, status, usage = os.wait4(pid, 0)  # returns once the whole box is gone
        os.close(pidfd)
        ended = {"code": os.waitstatus_to_exitcode(status), "cpu": usage.ru_utime + usage.ru_stime, "peak_kb": usage.ru_maxrss}
        sock.send(json.dumps({"state": "ended", **ended}).encode())


def preload(names: list[str], *, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    site.main()  # not at the start: the host's own packages are none of the jail's
    for name in (*STDLIB, *names):
        __import__(name)
    if "numpy" in names:  # numpy imports this only when it is first used
        __import__("numpy.random")


# ---- init of a box


def init(request: dict[str, Any], fds: list[int], seccomp: bytes) -> NoReturn:
    """pid 1 of the box. Whatever fails before the program runs goes to the control socket: it is no verdict."""
    control = fds[4]
    try:
        os.setsid()
        if os.read(control, 1) != b"g":
            os._exit(1)
        check(libc.sethostname(b"box", 3), "sethostname")
        for folder in ("/tmp", "/work"):
            options = f"size={request['disk_bytes']},nr_inodes={INODES},mode=700,uid={BOX_ID},gid={BOX_ID}"
            mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, options)
        os.chdir("/work")
        drop_capabilities()
        filter_calls(seccomp)
        program = os.fork()
        if program == 0:
            source = prepare(request, fds)
            os.close(control)
            run(source)
    except BaseException as error:
        os.write(control, f"{type(error).__name__}: {error}"[:500].encode())
        os._exit(1)
    os.closerange(0, 256)
    while True:
        pid, status = os.wait()
        if pid == program:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def drop_capabilities() -> None:
    header, data = struct.pack("Ii", CAPABILITY_VERSION, 0), bytes(24)
    check(libc.syscall(SYS_CAPSET, header, data), "capset")


def filter_calls(seccomp: bytes) -> None:
    code = ctypes.create_string_buffer(seccomp, len(seccomp))
    program = struct.pack("HxxxxxxP", len(seccomp) // 8, ctypes.addressof(code))
    check(libc.prctl(PR_SET_SECCOMP, 2, program, 0, 0), "seccomp")


def prepare(request: dict[str, Any], fds: list[int]) -> bytes:
    """Descriptors, files and limits of the program's process; its source."""
    stdin, stdout, stderr, memory, control = fds
    for fd, target in ((stdin, 0), (stdout, 1), (stderr, 2)):
        os.dup2(fd, target)
    parts = read_parts(memory)
    source = parts.pop("")
    for name, content in parts.items():
        path = os.path.join("/work", name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "xb") as file:
            file.write(content)
        os.chmod(path, 0o444)
    with open(MAIN, "xb") as file:  # for the lines of a traceback
        file.write(source[: request["disk_bytes"] // 2])
    os.closerange(3, control)
    os.closerange(control + 1, 1 << 16)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, (soft, hard) in request["rlimits"].items():
        number = getattr(resource, name)
        ceiling = resource.getrlimit(number)[1]
        if ceiling != resource.RLIM_INFINITY:  # the host allows less than was asked for
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(number, (soft, hard))
    return source


def read_parts(fd: int) -> dict[str, bytes]:
    """`name: content` of a memory file: the length of a JSON list of names and sizes, that list, the contents."""
    with open(fd, "rb", closefd=False) as file:
        file.seek(0)
        (length,) = struct.unpack("=I", file.read(4))
        return {name: file.read(size) for name, size in json.loads(file.read(length))}


def run(source: bytes) -> NoReturn:
    """What an interpreter does with its main module, down to the exit handlers."""
    main = types.ModuleType("__main__")
    main.__dict__.update({"__builtins__": __builtins__, "__file__": MAIN, "__annotations__": {}})
    sys.modules["__main__"] = main
    sys.argv[:] = [MAIN]
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed(int.from_bytes(os.urandom(4), "little"))  # forks share the state; `random` reseeds itself
    code = 0
    try:
        exec(compile(decode_source(source), MAIN, "exec", dont_inherit=True), main.__dict__)
    except SystemExit as leave:
        code = exit_code(leave)
    except BaseException as error:
        show(error)
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for the program's threads, as an interpreter does
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        code = code or 120
    os._exit(code & 0xFF)


def exit_code(leave: SystemExit) -> int:
    if leave.code is None or isinstance(leave.code, int):
        return leave.code or 0
    try:
        print(leave.code, file=sys.stderr)
    except BaseException:
        return 1
    return 1


def show(error: BaseException) -> None:
    """The traceback, from the program's own first frame on."""
    trace = error.__traceback__.tb_next if error.__traceback__ is not None else None
    try:
        sys.stdout.flush()
        sys.excepthook(type(error), error.with_traceback(trace), trace)
    except BaseException:
        os.write(2, f"{type(error).__name__}\n".encode())


if __name__ == "__main__":
    launch()
