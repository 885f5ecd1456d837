"""Prepare a repository inside a container: say what Python there is, ask the build backend for metadata, install in place, clean up.

    about                       one JSON object about the interpreter
    metadata FOLDER WHEELS      build backend's metadata of the source in FOLDER, as JSON
    install PLAN.json           as root: put the source at its place, install it there in editable form with its dependencies
    strip FOLDER                as root: remove version control and byte code, give the folder to its owner

Wheels come from a folder; there is no network. The last line of standard output is the answer; what went wrong stands on standard error.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from typing import Any

BUILD_TOOLS = "/tmp/codeworld-build-tools"
OWNER = 1000
_PIP = {
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_INPUT": "1",
    "PIP_ROOT_USER_ACTION": "ignore",
    "PIP_BREAK_SYSTEM_PACKAGES": "1",
    "PIP_NO_CACHE_DIR": "1",
    "PIP_CONFIG_FILE": os.devnull,
}


def about() -> dict[str, Any]:
    version, implementation = sys.version_info, sys.implementation.version
    try:
        import pip

        has_pip = pip.__version__
    except ImportError:
        has_pip = ""
    libc, libc_version = platform.libc_ver()
    return {
        "bash": shutil.which("bash") or "",
        "pip": has_pip,
        "libc": libc,
        "libc_version": libc_version,
        "markers": {
            "implementation_name": sys.implementation.name,
            "implementation_version": f"{implementation.major}.{implementation.minor}.{implementation.micro}",
            "os_name": os.name,
            "platform_machine": platform.machine(),
            "platform_python_implementation": platform.python_implementation(),
            "platform_release": platform.release(),
            "platform_system": platform.system(),
            "platform_version": platform.version(),
            "python_full_version": f"{version.major}.{version.minor}.{version.micro}",
            "python_version": f"{version.major}.{version.minor}",
            "sys_platform": sys.platform,
        },
    }


def metadata(folder: str, wheels: str, build: list[str], variables: dict[str, str]) -> dict[str, Any]:
    _install_build_tools(wheels, build)
    report = "/tmp/codeworld-report.json"
    _pip(["--dry-run", "--ignore-installed", "--no-deps", "--report", report, folder], wheels, variables)
    with open(report) as file:
        found = json.load(file)["install"][0]["metadata"]
    return {"name": found["name"], "requires": found.get("requires_dist", [])}


def install(plan: dict[str, Any]) -> dict[str, Any]:
    """Everything that changes the image; the plan is `environments/swe/images/build.py`'s."""
    work, wheels = plan["work_dir"], plan["wheels"]
    if os.path.isdir(work):  # the image that this is built on may carry a copy of its own
        for name in os.listdir(work):
            _remove(os.path.join(work, name))
    os.makedirs(work, exist_ok=True)
    for name in os.listdir(plan["tree"]):
        shutil.move(os.path.join(plan["tree"], name), os.path.join(work, name))
    known = set(os.listdir(work))
    if plan["requirements"]:
        _pip(plan["requirements"], wheels, {})
    if plan["is_distribution"]:
        _install_build_tools(wheels, plan["build"])
        try:
            _pip(["--no-deps", "--editable", work], wheels, plan["variables"])
        except RuntimeError as error:
            print(f"no editable install, a path file instead: {error}", file=sys.stderr)
            _install_without_code(work, wheels, plan["variables"])
    else:
        _add_path(work, plan["name"])
    for name in {"build", "dist"} - known:
        _remove(os.path.join(work, name))
    for pattern in ("*.egg-info", "src/*.egg-info"):
        for path in glob.glob(os.path.join(work, pattern)):
            _remove(path)
    strip(work)
    copies = _copies_of(work)
    if copies:
        raise RuntimeError("the image would hold a second copy of the repository's code: " + ", ".join(copies[:3]))
    for path in (BUILD_TOOLS, plan["folder"], os.path.expanduser("~/.cache")):
        _remove(path)
    return {}


def strip(folder: str) -> dict[str, Any]:
    """No version control, no byte code, all of it the owner's."""
    if not os.path.isdir(folder):
        raise RuntimeError("there is no folder " + folder)
    for parent, folders, files in os.walk(folder):
        for name in list(folders):
            if name in ("__pycache__", ".git", ".pytest_cache"):
                _remove(os.path.join(parent, name))
                folders.remove(name)
        for name in files:
            if name.endswith((".pyc", ".pyo")) or name == ".git":
                os.unlink(os.path.join(parent, name))
            else:
                os.chown(os.path.join(parent, name), OWNER, OWNER, follow_symlinks=False)
        for name in folders:
            os.chown(os.path.join(parent, name), OWNER, OWNER, follow_symlinks=False)
    os.chown(folder, OWNER, OWNER)
    return {}


def _install_build_tools(wheels: str, build: list[str]) -> None:
    if build:
        _pip(["--target", BUILD_TOOLS, *build], wheels, {})


def _pip(arguments: list[str], wheels: str, variables: dict[str, str]) -> None:
    """pip install, with the build tools importable; the last lines of its output when it fails."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-build-isolation", "--find-links", wheels]
    environment = dict(os.environ, PYTHONPATH=BUILD_TOOLS, **_PIP, **variables)
    done = subprocess.run(command + arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = [line for line in done.stdout.decode(errors="replace").splitlines() if line.strip()]
        raise RuntimeError("pip install failed: " + "\n".join(lines[-12:]))


def _install_without_code(work: str, wheels: str, variables: dict[str, str]) -> None:
    """For build backends without editable installs: the wheel's metadata and commands stay, its code goes."""
    built = "/tmp/codeworld-wheel"
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    command += ["--wheel-dir", built, work]
    environment = dict(os.environ, PYTHONPATH=BUILD_TOOLS, **_PIP, **variables)
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    wheel = next(iter(glob.glob(built + "/*.whl")), None)
    if wheel is None:
        raise RuntimeError("the repository cannot be built: " + done.stdout.decode(errors="replace").strip()[-1500:])
    _pip(["--no-deps", "--ignore-installed", wheel], wheels, {})
    site = sysconfig.get_path("purelib")
    for folder in {site, sysconfig.get_path("platlib")}:
        for name in zipfile.ZipFile(wheel).namelist():
            if ".dist-info/" not in name and ".data/" not in name:
                _remove(os.path.join(folder, name))
    top = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    for name in top:
        path = os.path.join(site, name)
        if os.path.isdir(path) and not any(files for _, _, files in os.walk(path) if any(not one.endswith(".pyc") for one in files)):
            _remove(path)
    _remove(built)
    _add_path(work, os.path.basename(wheel).partition("-")[0])


def _add_path(work: str, name: str) -> None:
    folders = [os.path.join(work, "src")] if os.path.isdir(os.path.join(work, "src")) else []
    with open(os.path.join(sysconfig.get_path("purelib"), f"_codeworld_{name}.pth"), "w") as file:
        file.write("\n".join([*folders, work]) + "\n")


def _copies_of(work: str) -> list[str]:
    """Installed modules that stand in the repository too, under the same name and byte for byte."""
    found = []
    for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for parent, _, files in os.walk(folder):
            for name in files:
                path = os.path.join(parent, name)
                own = [os.path.join(work, below, os.path.relpath(path, folder)) for below in ("", "src", "lib")]
                if name.endswith(".py") and os.path.isfile(path) and os.path.getsize(path):
                    found += [path for one in own if os.path.isfile(one) and _digest(one) == _digest(path)]
    return sorted(found)


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).digest()


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def main(arguments: list[str]) -> int:
    command, rest = arguments[0], arguments[1:]
    try:
        if command == "about":
            answer = about()
        elif command == "metadata":
            answer = metadata(rest[0], rest[1], **json.loads(rest[2]))
        elif command == "install":
            with open(rest[0]) as file:
                answer = install(json.load(file))
        else:
            answer = strip(rest[0])
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
