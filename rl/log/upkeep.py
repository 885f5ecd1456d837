"""Compaction and retention beside a run, in a thread of the driver: training never waits for them."""

import threading
from pathlib import Path

from configs.schema import LogConfig
from rl.errors import RunFailed
from rl.log.compact import CompactionRuns, Compactor, Retention

_BEHIND = 8
"""Dispatch versions behind the newest that a live run's compaction leaves alone: they are still growing."""
_LEAST_PARTS = 64
"""Small parts of a dataset that are worth a pass while the run goes on."""


class Upkeep:
    """Looks after one log. What goes wrong is kept for `problem`, and tried again the next time."""

    def __init__(self, run_dir: Path, config: LogConfig) -> None:
        self._run_dir = run_dir
        self._retention = Retention(
            keep_tokens_versions=config.keep_tokens_versions,
            max_bytes=int(config.max_gb * 2**30),
            keep_blobs_versions=config.keep_blobs_versions,
        )
        self._problem = ""
        self._thread: threading.Thread | None = None

    def tick(self, *, version: int) -> None:
        """Start a pass over what is older than `version`, unless one is under way."""
        if self._thread is None or not self._thread.is_alive():
            arguments = {"before": version - _BEHIND, "least_parts": _LEAST_PARTS}
            self._thread = threading.Thread(target=self._pass, kwargs=arguments, name="log-upkeep", daemon=True)
            self._thread.start()

    def problem(self) -> str:
        """What went wrong since the last call; empty when nothing did."""
        problem, self._problem = self._problem, ""
        return problem

    def finish(self) -> None:
        """The last pass, over everything; all writers must be closed."""
        if self._thread is not None:
            self._thread.join()
        self._pass(before=None, least_parts=2)

    def _pass(self, *, before: int | None, least_parts: int) -> None:
        try:
            with Compactor(self._run_dir) as compactor:
                compactor.run(self._retention, before=before, least_parts=least_parts)
        except CompactionRuns:
            return
        except (RunFailed, OSError, ValueError) as error:
            self._problem = f"the log was not compacted: {error}"
