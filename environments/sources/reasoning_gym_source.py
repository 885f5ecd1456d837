"""Procedural problems of the reasoning-gym library: one of its data sets, or several mixed by weight.

Options: `{dataset: chain_sum, min_terms: 2}` or `{datasets: [{dataset: chain_sum, weight: 2.0}, {dataset: gcd}]}`; every
other key is an argument of the data set. Data sets that check answers by code of their own and give no single answer are
refused, because the environments here compare with a reference.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from configs.schema import TaskConfig
from environments.lookup import unknown
from environments.records import Json, Problem
from environments.sources.base import random_stream
from environments.sources.rows import RowMapper

FAR = 2**30 + 1
"""An index that only an unbounded data set can serve."""


@dataclass(frozen=True, kw_only=True)
class Component:
    """One reasoning-gym data set of a source."""

    dataset: str
    weight: float
    rows: Any
    """The library's ProceduralDataset: row i is made from (its seed + i)."""
    size: int | None
    """Set for the few data sets that prepare a fixed number of rows."""


class ReasoningGymSource:
    """Problem `index` comes from a data set chosen by (seed, index) and is that data set's row `index`."""

    def __init__(self, name: str, *, config: TaskConfig, seed: int) -> None:
        """Raises ValueError for an unknown data set or argument, or one without a reference answer."""
        where = f"tasks.{name}.options"
        listed = _component_options(config.options, where=where)
        self._name = name
        self._seed = seed
        self._components = tuple(
            _component(options, where=w, seed=int(random_stream("reasoning_gym", seed, name, i).integers(2**30)))
            for i, (w, options) in enumerate(listed)
        )
        weights = np.array([component.weight for component in self._components])
        self._thresholds = np.cumsum(weights / weights.sum())[:-1]
        self._mapper = RowMapper.of(name, config=config, generated=True)
        self._env = config.env

    @property
    def size(self) -> int | None:
        """None, unless the source is a single data set with a fixed number of rows."""
        return self._components[0].size if len(self._components) == 1 else None

    def problem(self, index: int) -> Problem:
        """Raises ValueError when the library gives no answer for this row."""
        component = self._components[self._choose(index)]
        position = index if component.size is None else index % component.size
        entry = component.rows[position]
        row: dict[str, Json] = {"id": f"{component.dataset}-{index}", "question": entry["question"], "answer": entry["answer"]}
        if self._env == "math" and entry["answer"] is not None:
            row["solution"] = f"\\boxed{{{entry['answer']}}}"
        return self._mapper.problem(row, where=f"tasks.{self._name}: reasoning-gym {component.dataset} row {position}", default_id="")

    def _choose(self, index: int) -> int:
        if len(self._components) == 1:
            return 0
        draw = random_stream("reasoning_gym choice", self._seed, self._name, index).random()
        return int(np.searchsorted(self._thresholds, draw, side="right"))


def _component_options(options: Mapping[str, Any], *, where: str) -> list[tuple[str, Mapping[str, Any]]]:
    if "datasets" not in options:
        return [(where, options)]
    listed = options["datasets"]
    others = sorted(set(options) - {"datasets"})
    if others:
        raise ValueError(f"{where}: move {', '.join(others)} into the entries of {where}.datasets")
    if not isinstance(listed, list | tuple) or not listed or not all(isinstance(entry, Mapping) for entry in listed):
        raise ValueError(f"{where}.datasets must be a list of {{dataset: name, ...}} with at least one entry")
    return [(f"{where}.datasets[{i}]", entry) for i, entry in enumerate(listed)]


def _component(options: Mapping[str, Any], *, where: str, seed: int) -> Component:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    name, weight = options.get("dataset"), options.get("weight", 1.0)
    if not isinstance(name, str):
        raise ValueError(f"{where}.dataset is {name!r}; name a reasoning-gym data set, for example chain_sum")
    if name not in DATASETS:
        raise ValueError(f"{where}.dataset: {unknown('reasoning-gym data set', name, DATASETS)}")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise ValueError(f"{where}.weight is {weight!r}; it must be a number above 0")
    arguments = {key: value for key, value in options.items() if key not in ("dataset", "weight")}
    accepted = {spec.name for spec in fields(DATASETS[name][1])}
    for key in arguments:
        if key not in accepted:
            raise ValueError(f"{where}: {unknown(f'argument of {name}', key, accepted)}")
    try:
        rows = reasoning_gym.create_dataset(name, **{"seed": seed, **arguments})
        first = rows[0]
    except Exception as error:  # each data set checks its arguments its own way, mostly by assert
        raise ValueError(f"{where}: {name} refuses {arguments}: {type(error).__name__}: {error}") from error
    if not isinstance(first["answer"], str) or not first["answer"]:
        raise ValueError(f"{where}: {name} has no single reference answer to compare with; choose another data set")
    return Component(dataset=name, weight=float(weight), rows=rows, size=_fixed_size(rows, arguments, where=where))


def _fixed_size(rows: Any, arguments: Mapping[str, Any], *, where: str) -> int | None:
    if "size" in arguments:
        return len(rows)
    try:
        rows[FAR]
    except IndexError:
        raise ValueError(f"{where}: this data set prepares a fixed number of rows; say how many by {where}.size") from None
    return None
