"""The tree that an agent starts from, held on the host as a bare git repository: what was changed, and what a patch changes.

One repository an image in the cache folder (`$XDG_CACHE_HOME/codeworld-rl/trees`), one commit an overlay in it. Repositories are made
beside their place and moved there whole, so that any number of processes may ask for the same one. Patches and agents' trees are looked
at in scratch repositories that borrow its objects.
"""

import asyncio
import contextlib
import hashlib
import marshal
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from weakref import WeakKeyDictionary

from environments.containers.base import Containers
from environments.swe.changes import check_path
from environments.swe.git import GitError, git, make_repository, scratch_folder, scratch_repository
from environments.swe.inside.droppings import is_dropping
from environments.swe.inside.modes import FILE, LINK, PROGRAM
from environments.swe.links import check_links
from environments.swe.records import Patch, PatchError, RepoTask, TreeChange
from environments.swe.staging import File, as_files
from environments.swe.text_patch import binary_ids
from environments.swe.tree_tar import import_stream, read_tree, shown

MOST_PATCH_BYTES = 8 << 20
MOST_PATCH_FILES = 500
MOST_FILE_BYTES = 32 << 20
MOST_CHANGED_BYTES = 64 << 20
"""Of all files that a patch leaves changed, together."""
_APPLY_BYTES = 1 << 30
"""Memory of git while it applies a patch, of which a few bytes can stand for a file of any size."""
MOST_FOLDERS = 2000
"""Above all changed files: each takes an inode, of which a container has few."""
_MOST_REPOSITORIES, _MOST_CACHE_BYTES, _KEPT_SECONDS = 64, 16 << 30, 3600.0
"""In the cache: further ones go, the longest unused first, but none that was used within the hour."""
_MOST_KEPT = 512
"""Files that were made of single commits, in a repository: two a task."""
_FORMAT = "2"
_HEAD_BYTES = 16
"""About an object, before its content."""
_MOST_KNOWN = 64
_building: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Lock]] = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """What git was asked of a commit once."""

    tree: str
    """Id."""
    listing: bytes


_known: dict[tuple[Path, str], _Known] = {}
"""The last that were asked for."""


class BaseTree:
    """The base of one task. Methods may be called at the same time."""

    def __init__(self, repository: Path, *, image_id: str, commit: str, overlay: Sequence[TreeChange]) -> None:
        self._repository, self._commit, self._overlay = repository, commit, tuple(overlay)
        self.image_id = image_id
        """Of the task's image."""

    @classmethod
    async def of(cls, task: RepoTask, containers: Containers) -> Self:
        """The base of a task, made at the first call for its image and overlay. Raises ImageMissing, ContainerError, GitError."""
        image_id = await containers.image_id(task.image)
        key = hashlib.sha256(f"{_FORMAT}\0{image_id}\0{task.work_dir}".encode()).hexdigest()[:32]
        repository = _cache() / f"{key}.git"
        lock = _building.setdefault(asyncio.get_running_loop(), {}).setdefault(key, asyncio.Lock())
        async with lock:
            if not repository.exists():
                await _make(repository, await containers.image_tree(task.image, task.work_dir))
                await asyncio.to_thread(_prune)
            os.utime(repository)
            commit = await _commit(repository, task.overlay)
        return cls(repository, image_id=image_id, commit=commit, overlay=task.overlay)

    async def listing(self) -> bytes:
        """All files and links, as git's ls-tree gives them."""
        return (await self._known()).listing

    async def paths(self) -> frozenset[bytes]:
        """All files and links."""
        return frozenset(line.partition(b"\t")[2] for line in (await self.listing()).split(b"\0")) - {b""}

    async def contents(self, paths: Collection[bytes]) -> dict[bytes, bytes]:
        """Content of those of the paths that the base has."""
        wanted = sorted(set(paths) & await self.paths())
        listed = await self.listing()
        ids = {path: head.split(b" ")[2] for head, _, path in (line.partition(b"\t") for line in listed.split(b"\0") if line)}
        blobs = await _blobs(self._repository, [ids[path] for path in wanted])
        return dict(zip(wanted, blobs, strict=True))

    async def agent_files(self) -> list[File]:
        """What the agent's work folder has over the image's: the overlay, and a `.git` with one commit and nothing else."""
        return [*as_files(self._overlay), *marshal.loads(await self._kept("agent", self._pack_git_folder))]

    async def _known(self) -> _Known:
        key = (self._repository, self._commit)
        if key not in _known:
            tree = (await git(self._repository, "rev-parse", f"{self._commit}^{{tree}}")).decode().strip()
            _known[key] = _Known(tree=tree, listing=await git(self._repository, "ls-tree", "-r", "-z", self._commit))
            while len(_known) > _MOST_KNOWN:
                del _known[next(iter(_known))]
        return _known[key]

    async def _kept(self, kind: str, make: Callable[[], Awaitable[bytes]]) -> bytes:
        """What was made of this commit before, by whomever; else made now and kept. Others may write, read, remove it meanwhile."""
        path = self._repository / f"{kind}-{self._commit}"
        try:
            return await asyncio.to_thread(path.read_bytes)
        except FileNotFoundError:
            data = await make()
        scratch = path.with_name(f"{path.name}.{os.getpid()}-{time.monotonic_ns()}")
        await asyncio.to_thread(scratch.write_bytes, data)
        scratch.replace(path)
        await asyncio.to_thread(_prune_kept, self._repository)
        return data

    async def diff(self, changes: Sequence[TreeChange]) -> Patch:
        """The patch of what an agent did to the base, without the droppings of tools. Raises PatchError naming the limit."""
        tracked = await self.paths()
        kept = [change for change in changes if change.path in tracked or not is_dropping(change.path)]
        for change in kept:
            if len(change.data) > MOST_FILE_BYTES:
                raise PatchError(f"file {shown(change.path)} is larger than {MOST_FILE_BYTES >> 20} MiB")
        return await self.patch_of(kept)

    async def patch_of(self, changes: Sequence[TreeChange]) -> Patch:
        """The patch that makes these changes to the base. Raises PatchError naming the limit."""
        if len(changes) > MOST_PATCH_FILES:
            raise PatchError(f"{len(changes)} files are changed; the limit is {MOST_PATCH_FILES}")
        if not changes:
            return Patch(data=b"")
        stream = import_stream(changes, ref="refs/heads/agent", tree=(await self._known()).tree)
        async with scratch_repository(self._repository) as scratch:
            await git(scratch, "fast-import", "--quiet", "--done", stdin=stream)
            sides = (self._commit, "refs/heads/agent")
            options = ("--binary", "--full-index", "--no-renames", "--no-color", "--no-ext-diff", "--no-textconv", "--unified=3")
            data = await git(scratch, "diff-tree", "-r", "-p", *options, *sides, most_bytes=MOST_PATCH_BYTES)
        return Patch(data=data)

    async def apply(self, patch: Patch) -> tuple[TreeChange, ...]:
        """What a patch changes. Raises PatchError for one that does not apply, is too large, or goes where it may not."""
        if len(patch.data) > MOST_PATCH_BYTES:
            raise PatchError(f"the patch has {len(patch.data)} bytes; the limit is {MOST_PATCH_BYTES}")
        async with scratch_repository(self._repository) as scratch:
            (scratch / "index").write_bytes(await self._kept("index", self._make_index))
            try:
                await git(scratch, "apply", "--cached", "--whitespace=nowarn", "-p1", "-", stdin=patch.data, memory_bytes=_APPLY_BYTES)
            except GitError as error:
                told = str(error).partition(" (allow with")[0]  # an option of git's that no command here has
                raise PatchError(f"the patch does not apply: {told}") from error
            await self._refuse_borrowed(patch)
            raw = await git(scratch, "diff-index", "--cached", "--raw", "-z", "--full-index", "--no-renames", self._commit)
            changed = _parse_raw(raw)
            blobs = await _blobs(scratch, [blob for _, mode, blob in changed if mode is not None], most_bytes=MOST_CHANGED_BYTES)
            data = iter(blobs)
            changes = tuple(TreeChange(path=path, mode=mode, data=b"" if mode is None else next(data)) for path, mode, _ in changed)
            if any(change.mode == LINK for change in changes):
                links = await _links(scratch)
                await asyncio.to_thread(lambda: check_links(changes, links=links))
        return changes

    async def _refuse_borrowed(self, patch: Patch) -> None:
        """A binary section may name its new content and leave it out, where git has it: the unbroken file is here, but not in the base."""
        named = binary_ids(patch.data)
        if not named:
            return
        known = {line[12:52] for line in (await self.listing()).split(b"\0")}
        asked = b"".join(one + b"\n" for one in sorted(named - known))
        found = await git(self._repository, "cat-file", "--batch-check=%(objectname)", stdin=asked)
        if any(not line.endswith(b" missing") for line in found.splitlines()):
            raise PatchError("the patch does not apply: a binary section names content that is not in the tree")

    async def new_names(self, changes: Sequence[TreeChange]) -> tuple[str, ...]:
        """For each added file the highest path above it, or its own, that the base does not have."""
        known = set(await self.paths())
        for path in tuple(known):
            while b"/" in path and (path := path.rpartition(b"/")[0]) not in known:
                known.add(path)
        found = set()
        for change in changes:
            parts = change.path.split(b"/")
            prefixes = (b"/".join(parts[:count]) for count in range(1, len(parts) + 1))
            if change.mode is not None and (first := next((one for one in prefixes if one not in known), None)):
                found.add(first.decode("utf-8", "surrogateescape"))
        return tuple(sorted(found))

    async def _make_index(self) -> bytes:
        async with scratch_repository(self._repository) as scratch:
            await git(scratch, "read-tree", self._commit)
            return (scratch / "index").read_bytes()

    async def _pack_git_folder(self) -> bytes:
        pack = await git(self._repository, "pack-objects", "--revs", "--stdout", "-q", stdin=f"{self._commit}\n".encode())
        with scratch_folder() as folder:
            repository = folder / ".git"
            make_repository(repository)
            await git(repository, "index-pack", "--stdin", stdin=pack)
            (repository / "refs" / "heads" / "main").write_text(f"{self._commit}\n")
            await git(repository, "read-tree", self._commit)
            (repository / "config").write_text(_AGENT_CONFIG)
            return marshal.dumps(await asyncio.to_thread(_read_folder, folder))


_AGENT_CONFIG = """[core]
\trepositoryformatversion = 0
\tfilemode = true
\tbare = false
[user]
\tname = agent
\temail = agent@localhost
"""


def _read_folder(folder: Path) -> list[File]:
    """All that is below a folder, folders before what is in them."""
    found: list[File] = []
    for path in sorted(folder.rglob("*")):
        mode = path.stat().st_mode
        found.append((os.fsencode(path.relative_to(folder)), mode, None, path.read_bytes() if path.is_file() else b""))
    return found


async def _make(repository: Path, tar: bytes) -> None:
    """Import an image's tree; beside its place, then moved."""
    repository.parent.mkdir(parents=True, exist_ok=True)
    stream = await asyncio.to_thread(lambda: import_stream(read_tree(tar), ref="refs/heads/image"))
    with scratch_folder(repository.parent) as scratch:
        make_repository(scratch / "new")
        await git(scratch / "new", "fast-import", "--quiet", "--done", stdin=stream)
        try:
            (scratch / "new").rename(repository)
        except OSError:
            if not repository.exists():  # else another process was first
                raise


async def _commit(repository: Path, overlay: Sequence[TreeChange]) -> str:
    """The commit of an overlay on the image's tree; made once."""
    digest = hashlib.sha256(repr([(one.path, one.mode, one.data) for one in sorted(overlay, key=lambda one: one.path)]).encode())
    ref = f"refs/trees/{digest.hexdigest()}"
    place = repository / ref
    if not place.exists():
        tree = (await git(repository, "rev-parse", "refs/heads/image^{tree}")).decode().strip()
        await git(repository, "fast-import", "--quiet", "--done", "--force", stdin=import_stream(overlay, ref=ref, tree=tree))
    return place.read_text().strip()


def _parse_raw(raw: bytes) -> list[tuple[bytes, int | None, bytes]]:
    """Path, mode and blob of each changed file. Raises PatchError for paths and modes that are not allowed."""
    fields = raw.split(b"\0")
    found: list[tuple[bytes, int | None, bytes]] = []
    for head, path in zip(fields[::2], fields[1::2], strict=False):
        _, new_mode, _, blob, kind = head.lstrip(b":").split(b" ")
        try:
            check_path(path)
        except ValueError as error:
            raise PatchError(f"the patch goes out of the tree: {shown(str(error).encode())}") from None
        mode = None if kind == b"D" else int(new_mode, 8)
        if mode not in (None, FILE, PROGRAM, LINK):
            raise PatchError(f"the patch makes {shown(path)} a submodule; only files and symbolic links are taken")
        found.append((path, mode, blob))
    if len(found) > MOST_PATCH_FILES:
        raise PatchError(f"the patch changes {len(found)} files; the limit is {MOST_PATCH_FILES}")
    folders = {parent for path, mode, _ in found if mode is not None for parent in _parents(path)}
    if len(folders) > MOST_FOLDERS:
        raise PatchError(f"the changed files are in {len(folders)} folders; the limit is {MOST_FOLDERS}")
    return found


def _parents(path: bytes) -> list[bytes]:
    return [path[:at] for at, byte in enumerate(path) if byte == 0x2F]


async def _blobs(repository: Path, ids: Sequence[bytes], *, most_bytes: int | None = None) -> list[bytes]:
    """Contents by object id. Raises PatchError when they are more: a compressed patch can hold far more than its own size."""
    if not ids:
        return []
    try:
        most = None if most_bytes is None else most_bytes + _HEAD_BYTES * len(ids)
        data = await git(repository, "cat-file", "--batch=%(objectsize)", stdin=b"".join(one + b"\n" for one in ids), most_bytes=most)
    except PatchError:
        raise PatchError(f"the changed files have too many bytes; the limit is {most_bytes}") from None
    found, at = [], 0
    for _ in ids:
        end = data.index(b"\n", at)
        size = int(data[at:end])
        found.append(data[end + 1 : end + 1 + size])
        at = end + 1 + size + 1
    return found


async def _links(repository: Path) -> Mapping[bytes, bytes]:
    """All symbolic links of the index and their targets."""
    listed = await git(repository, "ls-files", "--stage", "-z")
    heads = [line.partition(b"\t") for line in listed.split(b"\0") if line.startswith(b"%o " % LINK)]
    targets = await _blobs(repository, [head.split(b" ")[1] for head, _, _ in heads])
    return {path: target for (_, _, path), target in zip(heads, targets, strict=True)}


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "codeworld-rl" / "trees"


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _bytes_below(folder: Path) -> int:
    total = 0
    for above, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(above, name)).st_size
    return total


def _prune() -> None:
    """Keep the cache bounded, and remove what processes that were killed left in it."""
    unused = time.time() - _KEPT_SECONDS
    for path in _cache().glob("tree-*"):
        if _used(path) < unused:
            shutil.rmtree(path, ignore_errors=True)
    found = sorted(_cache().glob("*.git"), key=_used)
    sizes = [_bytes_below(path) for path in found]
    for at, path in enumerate(found):
        if len(found) - at <= _MOST_REPOSITORIES and sum(sizes[at:]) <= _MOST_CACHE_BYTES:
            return
        if _used(path) < unused:
            shutil.rmtree(path, ignore_errors=True)


def _prune_kept(repository: Path) -> None:
    """Of what is made of single commits only the newest stay, and what is younger than an hour. All of it can be made again."""
    aged: list[tuple[float, Path]] = []
    for kind in ("agent", "index"):
        for path in repository.glob(f"{kind}-*"):
            with contextlib.suppress(FileNotFoundError):
                aged.append((path.stat().st_mtime, path))
    for changed, path in sorted(aged)[:-_MOST_KEPT]:
        if time.time() - changed > _KEPT_SECONDS:
            path.unlink(missing_ok=True)
