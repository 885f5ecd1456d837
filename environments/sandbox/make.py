"""Choose the sandbox of a process."""

from environments.sandbox.bubblewrap import Bubblewrap


def make_sandbox(*, slots: int = 0) -> Bubblewrap:
    """A sandbox for this machine; `slots` boxes at once, 0 means one a processor. Raises SandboxUnavailable."""
    return Bubblewrap(slots=slots)
