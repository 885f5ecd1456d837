"""What the rooms that add commands to `rl` share."""

import argparse
from collections.abc import Callable
from typing import Any

AddCommand = Callable[[Any, str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
"""Adds one command: to these commands, by this name, running this, described so."""
RUN_HELP = "run folder, or its name under runs/"
