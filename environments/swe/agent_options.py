"""What a task's payload may say about the agent's environment."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from environments.records import Json
from environments.swe.tool_format import FORMATS, ToolFormat

ToolDocs = Literal["full", "short", "none"]
_RANGES: Mapping[str, tuple[float, float]] = {
    "command_seconds": (0.1, 86400.0),
    "observation_chars": (200, 1_000_000),
    "edit_context": (0, 100),
    "submit_mb": (1, 64),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentOptions:
    """Options of one episode. Each is a field of `Task.payload`."""

    folder: Path
    """Of the task."""
    tool_format: ToolFormat = "cwm"
    """How tool calls are written."""
    tool_docs: ToolDocs = "full"
    """How much the system message says about the tools; `none` for a policy that knows them."""
    command_seconds: float = 120.0
    """Deadline of one bash command. CWM's is 120 s."""
    observation_chars: int = 32768
    """Of one observation, without the budget block; the middle of a longer one is left out."""
    edit_context: int = 4
    """Lines around a change that edit shows; 0: it shows none."""
    submit_mb: int = 64
    """Changed files of a work folder that can be submitted, together, MiB; no patch of more is taken."""

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; it must be between {low:g} and {high:g}")

    @staticmethod
    def read(payload: Mapping[str, Json]) -> "AgentOptions":
        """From a payload. Raises ValueError naming the field."""
        known = [spec.name for spec in fields(AgentOptions)]
        if unknown := sorted(set(payload) - set(known)):
            raise ValueError(f"payload.{unknown[0]} is no option of the environment swe; options: {', '.join(known)}")
        folder = payload.get("folder")
        if not isinstance(folder, str) or not folder:
            raise ValueError(f"payload.folder is {folder!r}; it must name the folder of the task")
        for name, choices in (("tool_format", FORMATS), ("tool_docs", get_args(ToolDocs))):
            if name in payload and payload[name] not in choices:
                raise ValueError(f"payload.{name} is {payload[name]!r:.60}; use one of {', '.join(choices)}")
        for name in _RANGES:
            value = payload.get(name, 0)
            whole = name != "command_seconds"
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                raise ValueError(f"payload.{name} is {value!r:.60}; it must be a {'whole ' if whole else ''}number")
        try:
            return AgentOptions(**{**payload, "folder": Path(folder)})
        except ValueError as error:
            raise ValueError(f"payload.{error}") from None
