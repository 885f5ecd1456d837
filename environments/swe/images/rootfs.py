"""A base image from this host's Python, without a registry: the interpreter, pytest and pip, bash, git and the usual small tools.

The root file system is put together in a temporary folder from files of this host (`host_files.py`) and from wheels that pip unpacks
there; no code of a package runs. It becomes an image under a reference that names a digest of what it is made from, so it is built once
for each engine and used by all. Nothing of the host's configuration, users or names goes in.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from environments.containers.base import AGENT_UID, TESTER_UID, ContainerError, Containers, ImageMissing
from environments.swe.images import host_files
from environments.swe.images.host_files import image_prefix, site_packages
from environments.swe.records import WORK_DIR

PACKAGES = ("pip>=24", "setuptools>=77,<81", "wheel>=0.45", "pytest>=9,<10")
"""What the image's interpreter has besides the standard library. setuptools 81 has no pkg_resources, which older packages import."""
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
}
_ETC = {
    "passwd": f"root:x:0:0:root:/root:/bin/bash\nagent:x:{AGENT_UID}:{AGENT_UID}:agent:/home/agent:/bin/bash\n"
    f"tester:x:{TESTER_UID}:{TESTER_UID}:tester:/home/tester:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    "group": f"root:x:0:\nagent:x:{AGENT_UID}:\ntester:x:{TESTER_UID}:\nnogroup:x:65534:\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "gitconfig": "[user]\n\tname = agent\n\temail = agent@localhost\n[safe]\n\tdirectory = *\n[init]\n\tdefaultBranch = main\n",
    "os-release": 'NAME="codeworld-rl"\nID=codeworld-rl\n',
}
_OWNERS = {WORK_DIR.lstrip("/"): AGENT_UID, "home/agent": AGENT_UID, "home/tester": TESTER_UID}
_SYSTEM_FOLDERS = ("usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "usr/local/bin", "etc", "proc", "sys", "dev", "run", "root", "var")
_OPEN_FOLDERS = ("tmp", "var/tmp")
_MTIME = 1_577_836_800
"""Of all files: 2020; zip archives cannot hold what is older than 1980."""
_PIP_SECONDS = 300


async def ensure_python_image(containers: Containers) -> str:
    """Reference of the base image, which is built first where the engine has none (a few seconds).

    Raises ValueError when this host lacks a needed program or pip cannot get the packages, and the engine's errors.
    """
    image = python_image_reference()
    with contextlib.suppress(ImageMissing):
        await containers.image_id(image)
        return image
    with await asyncio.to_thread(_only_builder):
        with contextlib.suppress(ImageMissing):  # another process has built it meanwhile
            await containers.image_id(image)
            return image
        with tempfile.TemporaryDirectory(prefix="codeworld-rl-image-") as folder:
            tar = Path(folder, "rootfs.tar")
            await asyncio.to_thread(make_root_tar, tar)
            await containers.import_image(
                str(tar), image=image, environment=ENVIRONMENT, work_dir=WORK_DIR, labels={"codeworld-rl.base": "1"}
            )
    return image


def python_image_reference() -> str:
    """`codeworld-rl/python:3.11-<digest of what it is made from>`."""
    digest = hashlib.sha256(repr((sys.version, image_prefix(), PACKAGES, sorted(ENVIRONMENT.items()))).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        if source.name in ("rootfs.py", "host_files.py"):
            digest.update(source.read_bytes())
    for program in (host_files.base_interpreter(), *filter(None, map(host_files.find_program, ("bash", "git", "busybox", "ls")))):
        status = program.stat()
        digest.update(f"{program} {status.st_size} {status.st_mtime_ns}\n".encode())
    return f"codeworld-rl/python:{sys.version_info.major}.{sys.version_info.minor}-{digest.hexdigest()[:12]}"


def make_root_tar(target: Path) -> None:
    """Write the root file system as a tar. Raises ValueError."""
    with tempfile.TemporaryDirectory(prefix="codeworld-rl-root-") as folder:
        root = Path(folder)
        _make_folders(root)
        pip = _start_pip(root)
        try:
            programs = [*host_files.copy_programs(root), *host_files.copy_python(root)]
            host_files.copy_libraries(root, host_files.libraries_of(programs))
            _copy_data(root)
            output, _ = pip.communicate(timeout=_PIP_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ValueError(f"pip did not get {', '.join(PACKAGES)} for the base image within {_PIP_SECONDS} s") from error
        finally:
            pip.kill()
            pip.wait()
        if pip.returncode:
            last = (output.strip().splitlines() or ["it printed nothing"])[-1]
            raise ValueError(f"pip could not get {', '.join(PACKAGES)} for the base image: {last}")
        _fix_scripts(root)
        _strip(root)
        _compile(root)
        _make_loader_cache(root)
        with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as tar:
            tar.add(root, arcname=".", filter=_owned)


def _make_folders(root: Path) -> None:
    root.chmod(0o755)
    for name in (*_SYSTEM_FOLDERS, *_OWNERS, *_OPEN_FOLDERS):
        (root / name).mkdir(parents=True)
    for name in _OPEN_FOLDERS:
        (root / name).chmod(0o1777)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    for name, text in _ETC.items():
        (root / "etc" / name).write_text(text)


def _start_pip(root: Path) -> subprocess.Popen[str]:
    """Unpack the packages' wheels into the image's site-packages; it runs beside the copying."""
    target = root / site_packages().lstrip("/")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--only-binary", ":all:", "--no-warn-conflicts"]
    command += ["--target", str(target), *PACKAGES]
    environment = {**os.environ, "PIP_ROOT_USER_ACTION": "ignore", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _copy_data(root: Path) -> None:
    """Time zones and the UTF-8 locale, which many test suites expect."""
    zones = Path("/usr/share/zoneinfo")
    if zones.is_dir():
        shutil.copytree(
            zones, root / "usr/share/zoneinfo", ignore=shutil.ignore_patterns("right", "posix", "localtime", "posixrules"), symlinks=True
        )
    for locale in Path("/usr/lib/locale").glob("C.[uU][tT][fF]*8"):
        shutil.copytree(locale, root / "usr/lib/locale" / locale.name)


def _fix_scripts(root: Path) -> None:
    """pip left the programs of the packages in `bin` of the target, with this host's interpreter in their first line."""
    programs = root / site_packages().lstrip("/") / "bin"
    for script in sorted(programs.iterdir()):
        _, _, rest = script.read_text().partition("\n")
        target = root / "usr/local/bin" / script.name
        target.write_text(f"#!{image_prefix()}/bin/python3\n{rest}")
        target.chmod(0o755)
    shutil.rmtree(programs)


def _strip(root: Path) -> None:
    """Leave out debug information, where this host can; half of the interpreter's size."""
    strip = host_files.find_program("strip")
    if strip is not None:
        files = [str(path) for path in (root / "usr").rglob("*") if path.is_file() and not path.is_symlink() and ".so" in path.suffixes]
        subprocess.run([strip, "--strip-unneeded", *files], capture_output=True)  # what it does not understand stays as it is


def _compile(root: Path) -> None:
    """Byte code that is valid whatever the clock of the source files: it is never checked, the image's root is read-only."""
    command = [
        sys.executable,
        "-I",
        "-m",
        "compileall",
        "-q",
        "-j",
        "0",
        "--invalidation-mode",
        "unchecked-hash",
        "-s",
        str(root),
        "-p",
        "/",
    ]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    folders = [root / image_prefix().lstrip("/") / "lib" / version, root / site_packages().lstrip("/")]
    subprocess.run([*command, *map(str, folders)], capture_output=True)  # examples of wrong syntax in a package are no error


def _make_loader_cache(root: Path) -> None:
    """`ld.so.cache` shortens each program's start. Only root can make it for another root; without it the loader searches."""
    ldconfig = host_files.find_program("ldconfig")
    folders = sorted({f"/{path.parent.relative_to(root)}" for path in (root / "usr/lib").rglob("lib*.so*")})
    (root / "etc/ld.so.conf").write_text("\n".join(folders) + "\n")
    if ldconfig is not None and os.geteuid() == 0:
        subprocess.run([ldconfig, "-r", str(root)], capture_output=True)
        shutil.rmtree(root / "var/cache/ldconfig", ignore_errors=True)


def _owned(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = _OWNERS.get(member.name.removeprefix("./"), 0)
    member.uname = member.gname = ""
    member.mode |= 0o755 if member.isdir() else 0o644  # whatever the umask here
    member.mtime = _MTIME
    return member


def _only_builder() -> contextlib.AbstractContextManager[object]:
    """Processes of one user that need the image at the same time wait for the first."""
    folder = Path(tempfile.gettempdir(), f"codeworld-rl-{os.geteuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.geteuid():
        raise ContainerError(f"{folder} belongs to another user")
    file = (folder / "python-image.lock").open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    return contextlib.closing(file)
