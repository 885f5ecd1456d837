"""What every component of the configuration is made of: frozen fields with ranges, checked when it is built."""

import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar


def bounded(default: Any, *, low: float | None = None, high: float | None = None, above: float | None = None) -> Any:
    """A dataclass field whose value must satisfy low <= value <= high and value > above, and be finite."""
    return field(default=default, metadata={"low": low, "high": high, "above": above})


def check_bounds(config: "Checked") -> None:
    """Raise ValueError that names the section, the field, the value and the allowed range."""
    for spec in fields(config):
        value = getattr(config, spec.name)
        if value is None or "low" not in spec.metadata:
            continue
        low, high, above = (spec.metadata[key] for key in ("low", "high", "above"))
        inside = (
            math.isfinite(value) and (low is None or value >= low) and (high is None or value <= high) and (above is None or value > above)
        )
        if not inside:
            signs = ((">=", low), (">", above), ("<=", high))
            wanted = " and ".join(f"{sign} {limit}" for sign, limit in signs if limit is not None)
            number = "" if math.isfinite(value) else "a finite number "
            raise ValueError(f"{config.section}.{spec.name} is {value}; it must be {number}{wanted}")


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Base of every component: checks ranges when it is built."""

    section: ClassVar[str] = "config"
    """Where the component stands in the configuration, for error messages."""

    def __post_init__(self) -> None:
        check_bounds(self)
