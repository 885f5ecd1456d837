"""The gold patch of a mutant: the difference from the broken file back to the right one, made and applied by git."""

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from environments.swe.records import Patch, PatchError, TreeChange

_SECONDS = 60.0


def restoring_patch(*, broken: TreeChange, fixed: TreeChange) -> Patch:
    """As `git diff` in a tree that has `broken` writes it when the file becomes `fixed`."""
    with tempfile.TemporaryDirectory() as folder:
        for side, change in (("a", broken), ("b", fixed)):
            _write(Path(folder, side), change)
        # with folders of these names and no prefix, names come out as in a repository
        result = _git(["diff", "--no-index", "--no-prefix", "--full-index", "--binary", "--no-ext-diff", "--no-textconv", "a", "b"], folder)
    return Patch(data=result.stdout)


def patched(change: TreeChange, patch: Patch) -> TreeChange:
    """One file after a patch of it. Raises PatchError."""
    with tempfile.TemporaryDirectory() as folder:
        path = _write(Path(folder), change)
        result = _git(["apply", "--whitespace=nowarn", "-"], folder, stdin=patch.data)
        if result.returncode:
            raise PatchError(result.stderr.decode(errors="replace").strip())
        return TreeChange(path=change.path, mode=change.mode, data=path.read_bytes())


def patch_lines(patch: Patch) -> int:
    """Lines that a patch takes or brings."""
    return sum(line[:1] in (b"+", b"-") and line[:3] not in (b"+++", b"---") for line in patch.data.splitlines())


def _write(folder: Path, change: TreeChange) -> Path:
    assert change.mode is not None
    path = folder / os.fsdecode(change.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(change.data)
    path.chmod(change.mode & 0o777)
    return path


def _git(words: Sequence[str], folder: str, *, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """git on a folder that is no repository, without anybody's settings."""
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": folder,
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CEILING_DIRECTORIES": str(Path(folder).parent),
    }
    return subprocess.run(["git", *words], cwd=folder, env=environment, input=stdin, capture_output=True, timeout=_SECONDS)
