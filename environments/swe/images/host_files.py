"""What the base image takes from this host: programs, the shared libraries that they need, and the standard library.

Only files of the host's own system folders and of the running interpreter are looked at; `ldd` loads what it is asked about, so it is
never asked about anything else.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

SYSTEM_FOLDERS = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin")
_COREUTILS = (
    "arch b2sum base32 base64 basename cat chmod chown cksum comm cp csplit cut date dd df dir dirname du echo env expand expr factor "
    "false fmt fold groups head hostid id install join link ln logname ls md5sum mkdir mkfifo mktemp mv nice nl nohup nproc numfmt od "
    "paste pathchk pr printenv printf ptx pwd readlink realpath rm rmdir seq sha1sum sha224sum sha256sum sha384sum sha512sum shred shuf "
    "sleep sort split stat stdbuf stty sum sync tac tail tee test timeout touch tr true truncate tsort tty uname unexpand uniq unlink "
    "users vdir wc who whoami yes ["
)
_OTHERS = "bash git grep egrep fgrep sed awk find xargs diff cmp diff3 patch tar gzip bzip2 xz tree hostname make"
TOOLS = tuple(f"{_COREUTILS} {_OTHERS}".split())
"""Taken from the host as they are where it has them. BusyBox, where it is installed, stands in for what is missing."""
REQUIRED = ("bash", "git", "env", "ls", "cat", "cp", "rm", "mkdir", "grep", "sed", "find", "tar")
_NOT_COPIED = ("site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "turtledemo", "__pycache__", "EXTERNALLY-MANAGED")
_INTERPRETERS = ("/usr/bin/python3", "/usr/local/bin/python3")


def find_program(name: str) -> Path | None:
    """A machine-code program of the system folders; scripts are not taken, they need what is not there."""
    for folder in SYSTEM_FOLDERS:
        path = Path(folder, name)
        if path.is_file() and is_elf(path):
            return path.resolve()
    return None


def is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def image_prefix() -> str:
    """Where the interpreter goes: a distribution's own stays in /usr, which it is patched for; any other one moves to /usr/local."""
    return "/usr" if sys.base_prefix == "/usr" else "/usr/local"


def site_packages() -> str:
    """The folder of the image in which its interpreter looks for packages."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    debian = image_prefix() == "/usr" and Path("/usr/lib/python3/dist-packages").is_dir()
    return f"/usr/local/lib/{version}/dist-packages" if debian else f"{image_prefix()}/lib/{version}/site-packages"


def base_interpreter() -> Path:
    """The program that a virtual environment's python leads to."""
    return Path(getattr(sys, "_base_executable", "") or sys.executable).resolve()


def copy_programs(root: Path) -> list[Path]:
    """Put the tools into `root`; what was copied. Raises ValueError naming those that this host lacks and that must be there."""
    copied = []
    busybox = find_program("busybox")
    applets: set[str] = set()
    if busybox is not None and not libraries_of([busybox]):
        shutil.copyfile(busybox, root / "usr/bin/busybox")
        listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
        applets = {name for name in listed if re.fullmatch(r"[\w\[.+-]+", name)} - {"busybox"}
    for name in dict.fromkeys((*TOOLS, *sorted(applets))):
        if name in TOOLS and (program := find_program(name)) is not None:
            shutil.copyfile(program, root / "usr/bin" / name)
            copied.append(program)
        elif name in applets:
            (root / "usr/bin" / name).symlink_to("busybox")
    missing = [name for name in REQUIRED if not os.path.lexists(root / "usr/bin" / name)]
    if missing:
        raise ValueError(f"this host has no {', '.join(missing)} in {':'.join(SYSTEM_FOLDERS)}; install them to make an image from it")
    if not os.path.lexists(root / "usr/bin/sh"):
        (root / "usr/bin/sh").symlink_to("bash")
    for path in (root / "usr/bin").iterdir():
        if not path.is_symlink():
            path.chmod(0o755)
    core = root / "usr/lib/git-core"
    core.mkdir(parents=True)
    (core / "git").symlink_to("/usr/bin/git")
    (root / "usr/share/git-core/templates").mkdir(parents=True)
    return copied


def copy_python(root: Path) -> list[Path]:
    """Put the interpreter and its standard library into `root`; the machine-code files, as they are on the host."""
    interpreter, prefix = base_interpreter(), root / image_prefix().lstrip("/")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = Path(os.__file__).resolve().parent
    (prefix / "bin").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(interpreter, prefix / "bin" / version)
    (prefix / "bin" / version).chmod(0o755)
    for name in ("python3", "python"):
        (prefix / "bin" / name).unlink(missing_ok=True)
        (prefix / "bin" / name).symlink_to(version)
        if prefix != root / "usr":  # scripts that begin with #!/usr/bin/python3
            (root / "usr/bin" / name).symlink_to(f"../local/bin/{version}")

    def left_out(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if name in _NOT_COPIED or name.startswith(("config-", "_tkinter."))]

    target = prefix / "lib" / version
    shutil.copytree(library, target, ignore=left_out, symlinks=False, ignore_dangling_symlinks=True)
    for path in target.glob("_sysconfigdata*.py"):  # where this host built it says nothing in the image
        path.write_text(path.read_text().replace(sys.base_prefix, image_prefix()))
    return [interpreter, *(path for path in sorted((library / "lib-dynload").glob("*.so")) if not path.name.startswith("_tkinter."))]


def libraries_of(programs: Iterable[Path]) -> set[Path]:
    """Shared libraries and loaders that these programs of the host need, by `ldd`; empty for static ones."""
    names = [str(path) for path in programs]
    told = subprocess.run(["ldd", *names], capture_output=True, text=True, env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}).stdout
    return {Path(found) for found in re.findall(r"(?:=> |^\t)(/\S+) \(0x", told, re.M)}


def copy_libraries(root: Path, libraries: Iterable[Path]) -> None:
    """Those of the system keep their place; those from elsewhere (an interpreter in a home folder) go beside libc, where the loader
    always looks."""
    found = sorted(libraries)
    beside = next((path.parent for path in found if path.name == "libc.so.6"), Path("/usr/lib"))
    for library in found:
        system = str(library).startswith(("/lib", "/usr/lib"))
        target = root / str(library if system else beside / library.name).lstrip("/")
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(library, target)
            target.chmod(0o755)
