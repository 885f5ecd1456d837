"""Spares pytest work whose outcome is known. Standard library and pytest only, Python 3.8."""

from __future__ import annotations

import types
from typing import Any

from environments.swe.inside.suite_worker_guard import hidden


def scan_fixtures_once() -> None:
    """Have pytest look for fixtures in its own plugins among their fixtures, not among all of their thousands of names.

    Without effect on versions that do not mark fixtures by a class of their own.
    """
    import _pytest.fixtures as fixtures

    kind: Any = getattr(fixtures, "FixtureFunctionDefinition", None)
    manager: Any = fixtures.FixtureManager
    old = manager.parsefactories
    if kind is None:
        return

    def slim(holder: Any) -> Any:
        if type(holder) is not types.ModuleType or not holder.__name__.startswith("_pytest."):
            return holder
        found = types.ModuleType(holder.__name__)
        vars(found).update({name: value for name, value in vars(holder).items() if type(value) is kind})
        return found

    def parsefactories(self: Any, *arguments: Any, **named: Any) -> None:
        if "holder" in named:
            named["holder"] = slim(named["holder"])
        old(self, *map(slim, arguments), **named)

    manager.parsefactories = hidden(parsefactories)
