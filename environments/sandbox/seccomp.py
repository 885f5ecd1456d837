"""The system-call filter of the boxes: a deny-list in classic BPF, assembled here.

What it refuses is what a program under test never needs and what has opened kernels before: mounts and namespaces, tracing and
reading other processes, kernel modules, bpf, io_uring, keys, performance counters, userfaultfd, file handles, sockets other than
AF_UNIX (vsock and netlink too), System V and message-queue memory, memory files, typing into a terminal,
limits of other processes (a box's init could be ended by one), and making the host write its disks. A foreign system-call
table ends the process. Refused calls return an error, so programs that only probe for them go on.

Sources: seccomp(2), the kernel's unistd tables of x86-64 and arm64, include/uapi/linux/{audit,filter,seccomp,sched}.h.
"""

import errno
import platform
import struct
from collections.abc import Sequence
from typing import Any

from environments.sandbox.base import SandboxUnavailable

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x4000_0000
_DENIED = {
    "x86_64": {
        **{"mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308, "ptrace": 101},
        **{"process_vm_readv": 310, "process_vm_writev": 311, "kexec_load": 246, "kexec_file_load": 320, "init_module": 175},
        **{"finit_module": 313, "delete_module": 176, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "keyctl": 250},
        **{"add_key": 248, "request_key": 249, "open_by_handle_at": 304, "name_to_handle_at": 303, "swapon": 167, "swapoff": 168},
        **{"reboot": 169, "settimeofday": 164, "clock_settime": 227, "clock_adjtime": 305, "adjtimex": 159, "acct": 163},
        **{"quotactl": 179, "syslog": 103, "lookup_dcookie": 212, "iopl": 172, "ioperm": 173, "modify_ldt": 154, "move_pages": 279},
        **{"mbind": 237, "migrate_pages": 256, "set_mempolicy": 238, "fanotify_init": 300, "fanotify_mark": 301, "kcmp": 312},
        **{"vhangup": 153, "personality": 135, "nfsservctl": 180, "uselib": 134, "ustat": 136, "sysfs": 139, "sethostname": 170},
        **{"setdomainname": 171, "memfd_create": 319, "shmget": 29, "msgget": 68, "semget": 64, "mq_open": 240},
        **{"sync": 162, "syncfs": 306},
    },
    "aarch64": {
        **{"mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "unshare": 97, "setns": 268, "ptrace": 117},
        **{"process_vm_readv": 270, "process_vm_writev": 271, "kexec_load": 104, "kexec_file_load": 294, "init_module": 105},
        **{"finit_module": 273, "delete_module": 106, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282, "keyctl": 219},
        **{"add_key": 217, "request_key": 218, "open_by_handle_at": 265, "name_to_handle_at": 264, "swapon": 224, "swapoff": 225},
        **{"reboot": 142, "settimeofday": 170, "clock_settime": 112, "clock_adjtime": 266, "adjtimex": 171, "acct": 89},
        **{"quotactl": 60, "syslog": 116, "lookup_dcookie": 18, "move_pages": 239, "mbind": 235, "migrate_pages": 238},
        **{"set_mempolicy": 237, "fanotify_init": 262, "fanotify_mark": 263, "kcmp": 272, "vhangup": 58, "personality": 92},
        **{"nfsservctl": 42, "sethostname": 161, "setdomainname": 162, "memfd_create": 279, "shmget": 194, "msgget": 186},
        **{"semget": 190, "mq_open": 180, "sync": 81, "syncfs": 267},
    },
}
_DENIED_EVERYWHERE = {
    **{"open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_getfd": 438},
    **{"process_madvise": 440, "mount_setattr": 442, "quotactl_fd": 443, "memfd_secret": 447, "set_mempolicy_home_node": 450},
    **{"cachestat": 451, "statmount": 457, "listmount": 458, "open_tree_attr": 467},
}
"""Newer calls have one number on all architectures."""
_ABSENT = {"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "clone3": 435}
"""These answer ENOSYS: libraries then fall back, clone3 to clone, whose flags a filter can see."""
_CONDITIONAL = {
    "x86_64": {"clone": 56, "socket": 41, "ioctl": 16, "prlimit64": 302},
    "aarch64": {"clone": 220, "socket": 198, "ioctl": 29, "prlimit64": 261},
}
_NEW_NAMESPACES = 0x7E02_0000
_AF_UNIX = 1
_ONLY_UNIX: tuple[dict[str, Any], ...] = ({"index": 0, "value": _AF_UNIX, "op": "SCMP_CMP_NE"},)
_ONLY_UNIX_AND_IP: tuple[dict[str, Any], ...] = (
    *({"index": 0, "value": family, "op": "SCMP_CMP_EQ"} for family in (0, 3, 4, 5, 6, 7, 8, 9)),
    {"index": 0, "value": 10, "op": "SCMP_CMP_GT"},
)
"""Refuses all families but 1 (Unix), 2 (IPv4) and 10 (IPv6). A rule cannot name an argument twice, and several rules are alternatives."""
_TERMINAL_INPUT = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX."""

_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NR_OFFSET, _ARCH_OFFSET, _ARGS_OFFSET = 0, 4, 16
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF_0000, 0x8000_0000, 0x0005_0000


def seccomp_filter(machine: str = platform.machine()) -> bytes:
    """The filter as an array of `struct sock_filter`. Raises SandboxUnavailable on a processor it was not written for."""
    if machine not in _AUDIT_ARCH:
        raise SandboxUnavailable(f"the sandbox's system-call filter knows x86_64 and aarch64, not {machine}: use sandbox.kind: docker")
    refuse, allow = _return(_ERRNO | errno.EPERM), _return(_ALLOW)
    program = [
        _op(_LOAD, _ARCH_OFFSET),
        _op(_JUMP_EQUAL, _AUDIT_ARCH[machine], jump_true=1),
        _return(_KILL_PROCESS),
        _op(_LOAD, _NR_OFFSET),
    ]
    if machine == "x86_64":
        program += [_op(_JUMP_GREATER_EQUAL, _X32_BIT, jump_false=1), _return(_KILL_PROCESS)]
    for number in (*_DENIED[machine].values(), *_DENIED_EVERYWHERE.values()):
        program += _for_call(number, [refuse])
    for number in _ABSENT.values():
        program += _for_call(number, [_return(_ERRNO | errno.ENOSYS)])
    special = _CONDITIONAL[machine]
    program += _for_call(special["clone"], [_argument(0), _op(_JUMP_ANY_BIT, _NEW_NAMESPACES, jump_false=1), refuse, allow])
    not_unix = _return(_ERRNO | errno.EACCES)
    program += _for_call(special["socket"], [_argument(0), _op(_JUMP_EQUAL, _AF_UNIX, jump_false=1), allow, not_unix])
    typing = [word for request in _TERMINAL_INPUT for word in (_op(_JUMP_EQUAL, request, jump_false=1), refuse)]
    program += _for_call(special["ioctl"], [_argument(1), *typing, allow])
    program += _for_call(special["prlimit64"], [_argument(0), _op(_JUMP_EQUAL, 0, jump_false=1), allow, refuse])
    return b"".join((*program, allow))


def docker_profile(*, loopback: bool = False) -> dict[str, Any]:
    """The same rules as a seccomp profile of Docker, which knows system calls by name. `loopback`: sockets of IPv4 and IPv6 are let
    through, for containers with a network of their own that holds nothing but the loopback device."""

    def rule(names: Sequence[str], error: int, *conditions: dict[str, Any]) -> dict[str, Any]:
        return {"names": list(names), "action": "SCMP_ACT_ERRNO", "errnoRet": error, "args": list(conditions)}

    names = sorted({name for table in _DENIED.values() for name in table} | set(_DENIED_EVERYWHERE))
    namespaces = [1 << bit for bit in range(32) if _NEW_NAMESPACES >> bit & 1]
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            rule(names, errno.EPERM),
            rule(list(_ABSENT), errno.ENOSYS),
            *(rule(["clone"], errno.EPERM, {"index": 0, "value": bit, "valueTwo": bit, "op": "SCMP_CMP_MASKED_EQ"}) for bit in namespaces),
            *(rule(["socket"], errno.EACCES, condition) for condition in (_ONLY_UNIX_AND_IP if loopback else _ONLY_UNIX)),
            *(rule(["ioctl"], errno.EPERM, {"index": 1, "value": request, "op": "SCMP_CMP_EQ"}) for request in _TERMINAL_INPUT),
            rule(["prlimit64"], errno.EPERM, {"index": 0, "value": 0, "op": "SCMP_CMP_NE"}),
        ],
    }


def _op(code: int, value: int, *, jump_true: int = 0, jump_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, jump_true, jump_false, value)


def _return(value: int) -> bytes:
    return _op(_RETURN, value)


def _argument(index: int) -> bytes:
    """Load the low half of an argument (both architectures are little-endian)."""
    return _op(_LOAD, _ARGS_OFFSET + 8 * index)


def _for_call(number: int, body: Sequence[bytes]) -> list[bytes]:
    """`body` for this system call, which must return; the next instruction for all others."""
    return [_op(_JUMP_EQUAL, number, jump_false=len(body)), *body]
