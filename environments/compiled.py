"""Compiles C++ sources once a machine. The libraries are kept in the user's cache folder, under names made of the sources, the compiler,
its flags and what else the caller says."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path


def compiled_library(source: Path, *, flags: Sequence[str], headers: Sequence[Path] = (), identity: bytes = b"") -> Path:
    """Path of the shared library of `source`, which includes `headers`; compiles it when it is not in the cache (some seconds).

    Raises ValueError when there is no compiler, it fails, or the cache cannot be written.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise ValueError(f"{source.name} must be compiled, and there is no C++ compiler: apt-get install g++, or set CXX")
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    texts = (path.read_bytes() for path in (source, *headers))
    name = hashlib.sha256(b"\0".join([*texts, " ".join(flags).encode(), version, identity])).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "codeworld-rl"
    target = folder / f"{source.stem}-{name}.so"
    if target.is_file():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = Path(scratch) / target.name
            done = subprocess.run([compiler, *flags, str(source), "-o", str(built)], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[0]
                raise ValueError(f"{compiler} cannot compile {source.name}: {last}; set CXX to GCC 12 or newer")
            built.replace(target)  # whole or not at all, whoever else compiles at the same time
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error}): set XDG_CACHE_HOME to a writable folder") from error
    return target
