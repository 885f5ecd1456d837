"""What a build of an image ends with: the modules of a run of tests are kept in it as one file (`inside/runner_modules.py`)."""

from collections.abc import Sequence
from pathlib import Path

SOURCE = (Path(__file__).parent.parent / "inside" / "runner_modules.py").read_text()


def keeping_modules(command: Sequence[str]) -> tuple[str, ...]:
    """A build step's command that then keeps the modules; the exit code is the command's own where that is not 0."""
    return ("bash", "-c", '"$@" && exec python3 -I -c "$0" write', SOURCE, *command)
