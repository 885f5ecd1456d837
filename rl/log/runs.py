"""A run's folder: what lies where, how it is found by name, how it is created, resumed and removed.

```
runs/<name>/
  run.json          who this is: run id and number of the attempt; marks the folder as a run
  config.yaml       the resolved configuration
  metrics.jsonl     one line a training step and evaluation
  alive.json        process of the newest attempt, and how it ended
  status.json       what each part does, and what it did last
  log/              rollouts/ turns/ tokens/ learner/ scores/ spans/, each dispatch_version=<v>/part-*.parquet or compacted/part-*.parquet;
                    blobs/sha256/; manifest-*.jsonl
  checkpoints/      step-<n>/
  library.log       what libraries had to say
```
"""

import difflib
import json
import os
import secrets
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

RUNS = Path("runs")
"""Default place of runs, as in `run.dir`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPaths:
    """Where things lie in a run's folder."""

    root: Path

    @property
    def identity(self) -> Path:
        """Marks the folder as a run."""
        return self.root / "run.json"

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One line a training step and evaluation."""
        return self.root / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """The Parquet datasets and their manifests."""
        return self.root / "log"

    @property
    def alive(self) -> Path:
        """Process and end of the newest attempt."""
        return self.root / "alive.json"

    @property
    def status(self) -> Path:
        """What every part does, and what it did last."""
        return self.root / "status.json"

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint."""
        return self.root / "checkpoints"

    @property
    def library_log(self) -> Path:
        """Messages of libraries."""
        return self.root / "library.log"

    @property
    def curves(self) -> Path:
        """Where `rl plot` draws by default."""
        return self.root / "curves.png"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunIdentity:
    """Which run this is, and how often it was started."""

    run_id: str
    attempt: int
    """1 for a fresh run, one more with every resume."""


def prepare_run(root: Path, *, resume: bool = False, clean: bool = False) -> RunIdentity:
    """Create the folder of a run, or go on in an existing one. Nothing is touched when this raises.

    Raises ValueError when the name is taken and neither is asked for, when there is nothing to resume, and when `clean`
    would remove a folder that is not a run.
    """
    if resume and clean:
        raise ValueError("--resume and --clean exclude each other: the one goes on with the run, the other removes it")
    paths = RunPaths(root=root)
    known = _identity(paths)
    if resume:
        if known is None:
            raise ValueError(f"there is no run to resume at {root}: start it without --resume" + _suggestion(root.name, root.parent))
        return _written(RunIdentity(run_id=known.run_id, attempt=known.attempt + 1), paths)
    if root.is_symlink() or (root.exists() and not root.is_dir()):
        raise ValueError(f"{root} is not a folder: choose another run.name or run.dir")
    if root.exists() and any(root.iterdir()):
        if not clean:
            raise ValueError(f"the run {root} exists: go on with it by --resume, remove it by --clean, or choose another run.name")
        if known is None:
            raise ValueError(
                f"{root} has no valid run.json, so it does not look like a run; --clean will not remove it: choose another run.name"
            )
        shutil.rmtree(root)
    (root / "log").mkdir(parents=True, exist_ok=True)
    return _written(RunIdentity(run_id=f"{root.name}-{secrets.token_hex(4)}", attempt=1), paths)


def find_run(name_or_path: str) -> Path:
    """The folder of a run given by path, or by its name under `runs/`. Raises ValueError with the nearest names."""
    candidates = [Path(name_or_path), RUNS / name_or_path] if name_or_path else []
    for root in candidates:
        if looks_like_run(root):
            return root
    found = f"{name_or_path!r} is not a run: there is no run.json, metrics.jsonl or log in {' or '.join(map(str, candidates)) or 'it'}"
    near = Path(name_or_path).parent if len(Path(name_or_path).parts) > 1 else RUNS
    raise ValueError(found + _suggestion(Path(name_or_path).name, near))


def looks_like_run(root: Path) -> bool:
    """Whether a folder is that of a run."""
    paths = RunPaths(root=root)
    return paths.identity.is_file() or paths.metrics.is_file() or any(paths.log.glob("manifest-*.jsonl"))


def _suggestion(name: str, folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if looks_like_run(path)) if folder.is_dir() else []
    if not names:
        return f"; there are no runs in {folder}/"
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    return f"; did you mean {' or '.join(near)}?" if near else f"; runs in {folder}/: {', '.join(names[:8])}"


def _identity(paths: RunPaths) -> RunIdentity | None:
    """None when there is no readable `run.json`."""
    try:
        values = json.loads(paths.identity.read_text())
        return RunIdentity(run_id=str(values["run_id"]), attempt=int(values["attempt"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _written(identity: RunIdentity, paths: RunPaths) -> RunIdentity:
    temporary = paths.identity.with_name("run.json.tmp")
    with temporary.open("w") as stream:
        stream.write(json.dumps(asdict(identity)) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(paths.identity)
    return identity
