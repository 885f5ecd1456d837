"""Faults that a run must do to itself, because nobody can from outside: `rl chaos` leaves a request in the run's folder."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

FOLDER = "chaos"
"""Of the run's folder."""
_DROP_WEIGHTS = "drop-weights-"


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultRequests:
    """Of one run. Each is done once."""

    run_dir: Path

    def drop_weights(self, part: str) -> bool:
        """Whether a bucket of the next weights for this part must go astray."""
        try:
            self._path(part).unlink()
        except OSError:
            return False
        return True

    def ask_to_drop_weights(self, part: str) -> None:
        """Leave the request."""
        self._path(part).parent.mkdir(exist_ok=True)
        self._path(part).touch()

    def withdraw(self) -> int:
        """Take back what has not been done; how many requests that were."""
        found = list((self.run_dir / FOLDER).glob(f"{_DROP_WEIGHTS}*"))
        for path in found:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        return len(found)

    def _path(self, part: str) -> Path:
        return self.run_dir / FOLDER / f"{_DROP_WEIGHTS}{part}"
