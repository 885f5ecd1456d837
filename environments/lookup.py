"""Objects that are named, not registered: by dotted path (`package.module:Name`), or by an installed distribution's entry point."""

import difflib
import importlib
from collections.abc import Iterable
from importlib import metadata
from typing import Any


def unknown(what: str, name: str, known: Iterable[str]) -> ValueError:
    """An error for a name that is not among `known`: says the nearest one and lists them all."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    suggestion = f"did you mean {near[0]!r}? " if near else ""
    return ValueError(f"unknown {what} {name!r}; {suggestion}known: {', '.join(choices) or 'none'}")


def is_dotted(name: str) -> bool:
    """Whether `name` is a dotted path: registered names have no colon."""
    return ":" in name


def load_dotted(path: str, *, what: str) -> Any:
    """The object at `package.module:Name`. Raises ValueError that says which half of the path is wrong."""
    module_name, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        raise ValueError(f"{what} {path!r} is not a dotted path: write package.module:Name")
    try:
        found = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        hint = "; install its package, or start rl in the folder that holds it" if isinstance(error, ModuleNotFoundError) else ""
        raise ValueError(f"{what} {path!r}: cannot import {module_name}: {type(error).__name__}: {error}{hint}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name in dir(found) if not name.startswith("_")]
            raise ValueError(f"{what} {path!r}: {unknown(f'name in {module_name}', part, public)}")
        found = getattr(found, part)
    return found


def entry_point_names(group: str) -> set[str]:
    """Names that installed distributions offer in `group`; nothing is imported."""
    return {point.name for point in metadata.entry_points(group=group)}


def load_entry_point(name: str, *, group: str, what: str) -> Any:
    """The object that an installed distribution offers as `name`; None when none does.

    Raises ValueError that names the distribution when two offer the name or the object cannot be imported.
    """
    points = list(metadata.entry_points(group=group, name=name))
    if not points:
        return None
    if len(points) > 1:
        raise ValueError(f"{what} {name!r} is offered by {' and by '.join(map(origin, points))}: uninstall one, or use a dotted path")
    try:
        return points[0].load()
    except (Exception, SystemExit) as error:
        raise ValueError(f"{what} {name!r} of {origin(points[0])} cannot be loaded: {type(error).__name__}: {error}") from error


def origin(point: metadata.EntryPoint) -> str:
    """Where an entry point comes from, for a person."""
    distribution = f"distribution {point.dist.name} {point.dist.version}" if point.dist else "an unnamed distribution"
    return f"{distribution} ({point.name} = {point.value})"
