"""A repository's files as records, read from a tar or from git without writing anything to this host's disk.

A source package is hostile data: names that leave the tree, links out of it, devices, and archives that swell beyond the limits are
refused. Byte code, version control and what earlier builds left behind are dropped.
"""

import hashlib
import io
import re
import subprocess
import tarfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from environments.swe.changes import check_changes
from environments.swe.inside.modes import LINK, SUBMODULE, mode_of
from environments.swe.records import TreeChange

MAX_BYTES, MAX_FILES = 256 << 20, 50_000
_DROPPED = re.compile(
    r"(?:.*/)?(?:__pycache__|\.git|\.hg|\.svn)(?:/.*)?|.*\.py[co]|(?:src/)?[^/]+\.egg-info(?:/.*)?|build/(?:lib|bdist)[^/]*/.*"
    r"|dist/[^/]+\.(?:whl|tar\.gz|zip|egg)|\.(?:tox|nox|venv|eggs|pytest_cache|mypy_cache)(?:/.*)?",
    re.DOTALL,
)
_GIT_SECONDS = 120


def read_source_package(data: bytes) -> tuple[TreeChange, ...]:
    """The files of a `.tar.gz` as they stand under its one top folder, sorted. Raises ValueError for what is damaged, too large
    or hostile."""
    found: dict[str, TreeChange] = {}
    size = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
            for member in tar:
                if member.isdir():
                    safe_name(member.name)
                    continue
                size += max(0, member.size)
                if size > MAX_BYTES or len(found) >= MAX_FILES:
                    raise ValueError(f"the source package unpacks to more than {MAX_BYTES >> 20} MiB or {MAX_FILES} files")
                found[safe_name(member.name)] = _read_member(tar, member, found)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"the source package is no readable .tar.gz: {error}") from error
    return _checked(_without_top(found).values())


def read_git_head(folder: Path) -> tuple[str, tuple[TreeChange, ...]]:
    """Commit and files of HEAD, whatever lies uncommitted; git's filters and attributes do not run. Raises ValueError."""
    commit = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD^{commit}").decode().strip()
    if below := _git(folder, "rev-parse", "--show-prefix").decode().strip():
        raise ValueError(f"{folder} is a folder inside a git repository ({below}); name the repository's own folder")
    listed = []
    for entry in filter(None, _git(folder, "ls-tree", "-r", "-z", "--full-tree", commit).split(b"\0")):
        about, _, path = entry.partition(b"\t")
        mode, _, name = about.split(b" ")
        if int(mode, 8) != SUBMODULE:
            listed.append((path, int(mode, 8), name))
    if len(listed) > MAX_FILES:
        raise ValueError(f"{folder} has {len(listed)} files; at most {MAX_FILES} are taken")
    blobs = _git(folder, "cat-file", "--batch", stdin=b"\n".join(name for _, _, name in listed) + b"\n")
    files, position = [], 0
    for path, bits, _ in listed:
        end = blobs.index(b"\n", position)
        size = int(blobs[position:end].split()[2])
        files.append(TreeChange(path=path, mode=bits, data=blobs[end + 1 : end + 1 + size]))
        position = end + size + 2
    return commit, _checked(files)


def safe_name(name: str) -> str:
    """The name without `.` parts. Raises ValueError for one that is absolute, has `..` or NUL in it, or is nothing."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise ValueError(f"the source package has a file that leaves its folder: {name!r}")
    return "/".join(parts)


def digest_of(tree: Iterable[TreeChange]) -> str:
    """SHA-256 of paths, modes and contents."""
    digest = hashlib.sha256()
    for change in tree:
        digest.update(b"%d %o %d\0" % (len(change.path), change.mode or 0, len(change.data)) + change.path + change.data)
    return digest.hexdigest()


def text_of(tree: Iterable[TreeChange], path: str) -> str:
    """A file's text; empty when there is none."""
    return next((change.data.decode(errors="replace") for change in tree if change.path == path.encode() and change.mode != LINK), "")


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo, found: dict[str, TreeChange]) -> TreeChange:
    name = safe_name(member.name)
    if not name:
        raise ValueError(f"the source package has a file without a name: {member.name!r}")
    path = name.encode(errors="surrogateescape")
    if member.issym():
        return TreeChange(path=path, mode=LINK, data=member.linkname.encode(errors="surrogateescape"))
    if member.islnk():  # a hard link: the content of an earlier member
        earlier = found.get(safe_name(member.linkname))
        if earlier is None or earlier.mode == LINK:
            raise ValueError(f"the source package has a hard link {name!r} to {member.linkname!r}, which is no file of it")
        return TreeChange(path=path, mode=earlier.mode, data=earlier.data)
    file = tar.extractfile(member) if member.isreg() and not member.issparse() else None
    if file is None:
        raise ValueError(f"the source package holds {name!r}, which is no plain file, folder or link")
    return TreeChange(path=path, mode=mode_of(member.mode), data=file.read())


def _without_top(found: dict[str, TreeChange]) -> dict[str, TreeChange]:
    tops = {name.partition("/")[0] for name in found}
    if len(tops) != 1 or any("/" not in name for name in found):
        raise ValueError("the source package does not have one top folder NAME-VERSION, as source packages do")
    return {name.partition("/")[2]: replace(change, path=change.path.partition(b"/")[2]) for name, change in found.items()}


def _checked(files: Iterable[TreeChange]) -> tuple[TreeChange, ...]:
    """Without what is dropped, sorted. Raises ValueError for links out of the tree and files below files or links."""
    kept = {change.path: change for change in files if not _DROPPED.fullmatch(change.path.decode(errors="surrogateescape"))}
    if sum(len(change.data) for change in kept.values()) > MAX_BYTES:
        raise ValueError(f"the source has more than {MAX_BYTES >> 20} MiB of files")
    if not kept:
        raise ValueError("the source holds no files")
    try:
        return check_changes(kept.values())
    except ValueError as error:
        raise ValueError(f"the source cannot be taken: {error}") from error


def _git(folder: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], input=stdin, capture_output=True, timeout=_GIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"git could not read {folder}: {error}") from error
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip() or "it has no commit"
        raise ValueError(f"{folder} is no git repository with a commit: {reason}")
    return done.stdout
