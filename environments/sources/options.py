"""Checked reading of a task source's free-form `options` into a frozen dataclass."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_type_hints

from environments.lookup import unknown

OptionsT = TypeVar("OptionsT")


def read_options(cls: type[OptionsT], options: Mapping[str, Any], *, where: str) -> OptionsT:
    """Build `cls` from `options`; bounds come from `configs.schema.bounded` fields.

    `where` is the path in the configuration, for example `tasks.sums.options`. Raises ValueError that names the field
    for an unknown one, a wrong type or a value out of range.
    """
    specs = {spec.name: spec for spec in fields(cls)}  # type: ignore[arg-type]  # every options class is a dataclass
    types = get_type_hints(cls)
    options = dict(options)
    for key, value in options.items():
        if key not in specs:
            raise ValueError(f"{where}: {unknown('option', str(key), specs)}")
        if types[key] is float and type(value) is int:
            value = options[key] = float(value)
        # bool is a subclass of int, so isinstance would let `lines: true` pass
        if type(value) is not types[key]:
            raise ValueError(f"{where}.{key} is {value!r}; it must be of type {types[key].__name__}")
        low, high = specs[key].metadata.get("low"), specs[key].metadata.get("high")
        if (low is not None and value < low) or (high is not None and value > high):
            limits = [f">= {low}" if low is not None else "", f"<= {high}" if high is not None else ""]
            raise ValueError(f"{where}.{key} is {value}; it must be {' and '.join(filter(None, limits))}")
    return cls(**options)
