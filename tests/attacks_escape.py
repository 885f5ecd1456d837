"""Hostile programs that try to get out of their box, or to learn what only the host knows."""

from tests.attacks import CALL, READ, Attack, denied

ESCAPES: dict[str, Attack] = {
    # network
    "network": denied("""\
import socket
for address in (('127.0.0.1', PORT), ('169.254.169.254', 80), ('8.8.8.8', 53), ('localhost', PORT)):
    try:
        socket.create_connection(address, timeout=1)
        print('GOT', address)
    except OSError: pass"""),
    "datagrams": denied("""\
import socket
for family in (2, 10):
    try:
        socket.socket(family, 2).sendto(b'x', ('8.8.8.8' if family == 2 else '::1', 53))
        print('GOT')
    except OSError: pass"""),
    "raw, netlink, packet and vsock": denied("""\
import socket
for family, kind in ((2, 3), (16, 3), (17, 3), (40, 1), (38, 5), (21, 5)):
    try:
        socket.socket(family, kind)
        print('GOT', family)
    except OSError: pass"""),
    "abstract unix socket": denied("""\
import socket
try:
    socket.socket(socket.AF_UNIX).connect('\\0ABSTRACT')
    print('GOT')
except OSError: pass"""),
    "unix sockets of services": denied("""\
import socket
for path in ('/var/run/docker.sock', '/run/docker.sock', '/run/dbus/system_bus_socket', 'UNIX_PATH', 'POOL'):
    try:
        socket.socket(socket.AF_UNIX).connect(path)
        print('GOT', path)
    except OSError: pass"""),
    # what the host knows
    "environment": denied("""\
import os
print(dict(os.environ), os.environb)"""),
    "memory of the server": denied("""\
import gc, sys
found = [str(o) for o in gc.get_objects() if isinstance(o, (dict, list)) and 'SECRET' in str(type(o))]
print(found)
f = sys._getframe()
while f is not None:
    print(sorted(f.f_globals), sorted(map(repr, f.f_locals.values()))[:50])
    f = f.f_back"""),
    "environ and cmdline of others": denied(
        READ
        + """\
for pid in ('1', '2', 'self', 'HOSTPID'):
    for name in ('environ', 'cmdline', 'maps', 'root/etc/shadow', 'mem'):
        read(f'/proc/{pid}/{name}')"""
    ),
    "/proc/1/root": denied("""\
import os
for path in ('/proc/1/root', '/proc/self/root', '/proc/1/cwd'):
    try: print('GOT', os.listdir(path))
    except OSError: pass"""),
    "files of the host": denied(
        READ
        + """\
for path in ('HOSTFILE', '/etc/passwd', '/etc/shadow', '/root/.bashrc', 'CHECKOUT', '/sys/kernel/notes'):
    read(path)"""
    ),
    "up from the root": denied("""\
import os
for _ in range(20): os.chdir('..')
print(os.getcwd(), os.listdir('/'))
if set(os.listdir('/')) & {'home', 'srv', 'mnt', 'boot', 'var', 'sys', 'proc'}: print('GOT')"""),
    "host name": denied("""\
import os
print('GOT' if os.uname().nodename == 'HOSTNAME' else 'other')"""),
    "leaked descriptors": denied("""\
import os
for fd in range(3, 65536):
    try:
        os.fstat(fd)
        print('GOT', fd)
    except OSError: pass"""),
    "descriptors of the harness": denied("""\
import os
for fd in range(3):
    try: print(fd, os.get_terminal_size(fd), 'GOT')
    except OSError: pass
try: print('GOT', os.read(1, 1))
except OSError: pass"""),
    # privileges
    "setuid": denied(
        CALL
        + """\
for number in (105, 106, 117, 119): call(number, 0, 0, 0)
print(os.getuid())
if os.getuid() == 0: print('GOT')"""
    ),
    "setuid program": denied("""\
import os, subprocess
for path in ('/usr/bin/su', '/usr/bin/sudo', '/usr/bin/passwd', '/usr/bin/mount'):
    try: done = subprocess.run([path, '-c', 'id'] if path.endswith('su') else [path], capture_output=True, timeout=2)
    except (OSError, subprocess.TimeoutExpired): continue
    if b'uid=0' in done.stdout: print('GOT', done)"""),
    "own setuid file": denied("""\
import os
open('/work/s', 'w').close()
try:
    os.chown('/work/s', 0, 0)
    print('GOT')
except OSError: pass"""),
    "device node": denied("""\
import os, stat
try:
    os.mknod('/work/d', 0o600 | stat.S_IFBLK, os.makedev(254, 0))
    print('GOT')
except OSError: pass"""),
    "nested user namespace": denied(CALL + "call(272, 0x10000000); call(272, 0x10020000); call(56, 0x10000011, 0, 0, 0, 0)"),
    "clone3": Attack(program=CALL + "call(435, ctypes.create_string_buffer(88), 88)", prints="ENOSYS"),
    "setns": denied(CALL + "call(308, 0, 0); call(308, 0, 0x10000000)"),
    "mounts": denied(
        CALL
        + """\
call(165, b'tmpfs', b'/work', b'tmpfs', 0, None); call(166, b'/work', 2); call(155, b'/', b'/work'); call(161, b'/work')
call(428, -100, b'/', 1); call(430, b'tmpfs', 0); call(429, -1, b'', -1, b'', 4); call(442, -100, b'/', 0, 0, 0)"""
    ),
    "ptrace of init": denied(
        CALL + "call(101, 16, 1, 0, 0); call(101, 0x4206, 1, 0, 0); call(310, 1, 0, 0, 0, 0, 0); call(311, 1, 0, 0, 0, 0, 0)"
    ),
    "io_uring": Attack(program=CALL + "call(425, 8, ctypes.create_string_buffer(120))", prints="ENOSYS"),
    "keyctl": denied(CALL + "call(250, 0, -3, 1); call(248, b'user', b'x', b'y', 1, -3); call(249, b'user', b'x', None, -3)"),
    "bpf": denied(CALL + "call(321, 0, ctypes.create_string_buffer(128), 128)"),
    "perf, userfaultfd and handles": denied(
        CALL
        + """\
call(298, ctypes.create_string_buffer(128), 0, -1, -1, 0); call(323, 0); call(304, -1, None, 0)
call(303, -100, b'/', ctypes.create_string_buffer(160), ctypes.byref(ctypes.c_int()), 0)"""
    ),
    "kernel modules and clocks": denied(
        CALL
        + """\
call(175, None, 0, b''); call(313, 0, b'', 0); call(246, 0, 0, 0, 0); call(169, 0, 0, 0, 0)
call(227, 0, ctypes.create_string_buffer(16)); call(170, b'x', 1); call(103, 3, ctypes.create_string_buffer(64), 64)
call(162); call(306, 0)"""
    ),
    "x32 system calls": Attack(
        program=CALL
        + """\
import sys
sys.stdout.flush()
call(0x40000000 + 39)""",
        killed_by=frozenset({None}),
    ),
    "typing into the terminal": denied("""\
import fcntl, os
for fd in (0, 1, 2):
    for request in (0x5412, 0x541C):
        try:
            fcntl.ioctl(fd, request, b'x')
            print('GOT')
        except OSError: pass
try:
    os.open('/dev/tty', os.O_RDWR)
    print('GOT')
except OSError: pass"""),
    "filter undone": denied(
        CALL
        + """\
call(157, 22, 0, 0, 0, 0); call(157, 38, 0, 0, 0, 0); call(317, 0, 0, 0)
print(libc.prctl(21))
if libc.prctl(21) == 0: print('GOT')"""
    ),
    # what the host reads
    "links and pipes planted": denied("""\
import os
for name in ('main.py', 'out', 'verdict'):
    os.symlink('/etc/passwd', '/work/' + name + '.l')
    os.mkfifo('/work/' + name)
try: os.remove('/tmp/main.py')
except OSError: pass"""),
    "invalid UTF-8 out": Attack(
        program="""\
import os
os.write(1, b'end\\xff\\x00\\xfe')
os.write(2, b'\\xff')""",
        prints="end",
    ),
    "forged end": Attack(
        program="""\
import os
os.write(1, b'end')
os._exit(0)""",
        prints="end",
    ),
}
