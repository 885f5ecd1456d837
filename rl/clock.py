"""Where the time of a step goes, and what the loop is at."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rl.records import Span


@dataclass(kw_only=True)
class Clock:
    """Seconds by phase of the current step."""

    record: Callable[[Span], None]
    phases: dict[str, float] = field(default_factory=dict)
    doing: str = "starts"
    """The phase under way."""
    since: float = field(default_factory=time.time)
    """Unix seconds at which it began."""
    event: str = ""
    """The last phase that is over."""
    event_at: float = 0.0

    @contextlib.contextmanager
    def phase(self, name: str, *, step: int) -> Iterator[None]:
        """`step` is the training step, 1-based, that the phase belongs to."""
        started = time.monotonic()
        self.doing, self.since = f"step {step}: {name}", time.time()
        try:
            yield
        finally:
            seconds, now = time.monotonic() - started, time.time()
            self.phases[name] = self.phases.get(name, 0.0) + seconds
            self.event, self.event_at = self.doing, now
            self.doing, self.since = f"step {step}: between two phases", now
            self.record(Span(name=name, started=now - seconds, ended=now, version=step - 1, train_step=step))

    def take(self) -> dict[str, float]:
        """The seconds so far, from which the next step begins at nothing."""
        taken, self.phases = self.phases, {}
        return taken
