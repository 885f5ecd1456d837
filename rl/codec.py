"""Records to JSON and back, exactly: the checkpoint keeps rollouts without pickle.

Handles the project's frozen dataclasses, numpy arrays (raw bytes in base64, so floats survive bit for bit), enums,
tuples, mappings, optionals and plain JSON values. Types come from the annotations: a file cannot name a class.
"""

import base64
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

Json = Any


def encode(value: Any) -> Json:
    """A JSON value for a record."""
    if is_dataclass(value) and not isinstance(value, type):
        return {spec.name: encode(getattr(value, spec.name)) for spec in fields(value)}
    if isinstance(value, np.ndarray):
        return {"dtype": str(value.dtype), "shape": list(value.shape), "data": base64.b64encode(value.tobytes()).decode()}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    return value


def _has_default(spec: Field[Any]) -> bool:
    return spec.default is not MISSING or spec.default_factory is not MISSING


def decode(kind: Any, value: Json) -> Any:
    """The record of type `kind` that `encode` made. Raises ValueError when the value does not fit the type."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        kind = next(option for option in get_args(kind) if option is not type(None))
        origin = get_origin(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        try:
            # A record of an older version lacks the fields that were added since; those have defaults.
            present = [spec.name for spec in fields(kind) if spec.name in value or not _has_default(spec)]
            return kind(**{name: decode(hints[name], value[name]) for name in present})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a {kind.__name__}: {error}") from error
    if kind is np.ndarray:
        # A copy: frombuffer gives a read-only view.
        return np.frombuffer(base64.b64decode(value["data"]), dtype=value["dtype"]).reshape(value["shape"]).copy()
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    if origin is tuple:
        item_kind = get_args(kind)[0]
        return tuple(decode(item_kind, item) for item in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        item_kind = get_args(kind)[1]
        return {key: decode(item_kind, item) for key, item in value.items()}
    return value
