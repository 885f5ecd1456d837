"""Run against run: settings, versions of what played and graded, pass rates at equal tokens, flags, drops."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rl.history.equal_tokens import Reached, read_reached, read_spent
from rl.log.text import shorten, visible
from rl.statistics import Estimate, PairedDifference, Tally, paired_bootstrap, pass_rate
from rl.view.open_run import OpenRun

_OWN_SETTINGS = ("run.name", "run.dir")
"""They say which run it is, not how it was made."""
_VERSIONS = {
    "environment": "env || ' ' || env_version",
    "image": "task_id || ' ' || image_digest",
    "scorer": "source || ': ' || scorer || ' ' || scorer_hash",
    "tokenizer": "tokenizer_hash",
    "chat template": "template_hash",
}
_MANY = 1_000_000
_VALUE_CHARS, _VALUES_SHOWN = 60, 5

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceDiff:
    """A task source in both runs."""

    source: str
    split: str
    tallies: tuple[Tally, Tally]
    """Over all tasks."""
    rates: tuple[Estimate, Estimate]
    paired: PairedDifference
    """Pass rates of the tasks that both runs have graded: B's - A's."""

    @staticmethod
    def of(source: str, *, split: str, a: Mapping[str, Tally], b: Mapping[str, Tally]) -> "SourceDiff":
        """By task."""
        none = Tally(passed=0, graded=0)
        return SourceDiff(
            source=source,
            split=split,
            tallies=(sum(a.values(), none), sum(b.values(), none)),
            rates=(pass_rate(tuple(a.values())), pass_rate(tuple(b.values()))),
            paired=paired_bootstrap(*({task: tally.rate for task, tally in own.items()} for own in (a, b))),
        )

    def to_json(self) -> Json:
        """Plain values."""
        runs = [{**asdict(tally), **_rate_json(rate)} for tally, rate in zip(self.tallies, self.rates, strict=True)]
        return {"source": self.source, "split": self.split, "runs": runs, "paired": asdict(self.paired)}

    def lines(self) -> list[str]:
        """For a person."""
        sides = [f"{letter} {_rate_text(*own)}" for letter, own in zip("AB", zip(self.tallies, self.rates, strict=True), strict=True)]
        return [f"  {self.source}, {self.split}: {', '.join(sides)}", f"    {self._paired()}"]

    def _paired(self) -> str:
        paired = self.paired
        if not paired.problems:
            return "no task was graded in both"
        if paired.problems == 1:
            return f"B - A of the one task graded in both: {paired.difference:+.3f}, too few for an interval"
        told = f"B - A over the {paired.problems} tasks graded in both: {paired.difference:+.3f}"
        return f"{told} [{paired.low:+.3f}, {paired.high:+.3f}], p {paired.p_value:.3g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunDiff:
    """Two runs."""

    runs: tuple[str, str]
    settings: Mapping[str, tuple[Any, Any]]
    """Those that differ; None where a run has none of that name."""
    versions: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
    """What only the one and only the other has, of the kinds that differ."""
    tokens: tuple[int, int]
    """Sampled in training."""
    reached: tuple[Reached, Reached]
    sources: tuple[SourceDiff, ...]
    flags: Mapping[str, tuple[int, int]]
    """Rollouts that carry a flag."""
    drops: Mapping[str, tuple[int, int]]
    """Rollouts and groups that were not trained on, by reason."""
    rollouts: tuple[int, int]
    notes: tuple[str, ...]

    @property
    def budget(self) -> int:
        """Tokens at which pass rates are compared."""
        return min(self.tokens)

    def to_json(self) -> Json:
        """Plain values."""
        return {
            "runs": list(self.runs),
            "settings": {name: list(values) for name, values in self.settings.items()},
            "versions": {name: [list(own) for own in values] for name, values in self.versions.items()},
            "tokens": list(self.tokens),
            "at_tokens": self.budget,
            "policy_versions": [dict(reached.versions) for reached in self.reached],
            "sources": [source.to_json() for source in self.sources],
            "rollouts": list(self.rollouts),
            "flags": {name: list(counts) for name, counts in self.flags.items()},
            "drops": {name: list(counts) for name, counts in self.drops.items()},
            "notes": list(self.notes),
        }

    def text(self) -> str:
        """For a person."""
        lines = [f"A: {self.runs[0]}", f"B: {self.runs[1]}", *(f"note: {note}" for note in self.notes)]
        lines.append(f"settings: {len(self.settings)} differ" if self.settings else "settings: the same")
        lines += [f"  {name}: A {_value(a)}, B {_value(b)}" for name, (a, b) in self.settings.items()]
        lines.append("versions:" if self.versions else "versions: the same environments, images, scorers, tokenizer and chat template")
        lines += [f"  {name}: only A {_values(a)}; only B {_values(b)}" for name, (a, b) in self.versions.items()]
        lines.append(f"pass rates at {self.budget} sampled tokens (A has {self.tokens[0]}, B {self.tokens[1]}); {self._windows()}")
        lines += [line for source in self.sources for line in source.lines()]
        for what, counts in (("flags", self.flags), ("drops", self.drops)):
            lines.append(f"{what}:" if counts else f"{what}: none")
            lines += [f"  {name}: A {self._share(a, 0)}, B {self._share(b, 1)}" for name, (a, b) in counts.items()]
        return visible("\n".join(lines))

    def _windows(self) -> str:
        told = []
        for letter, reached in zip("AB", self.reached, strict=True):
            for split, window in reached.versions.items():
                if window is not None:
                    versions = f"version {window[0]}" if window[0] == window[1] else f"versions {window[0]} to {window[1]}"
                    told.append(f"{letter} {split} {versions}")
        return ", ".join(told)

    def _share(self, count: int, run: int) -> str:
        return f"{count} ({count / self.rollouts[run]:.1%})" if self.rollouts[run] else str(count)


def diff_runs(a: OpenRun, b: OpenRun) -> RunDiff:
    """Compare two runs; either may be live. Raises QueryError."""
    spent = (read_spent(a), read_spent(b))
    tokens = (spent[0].total, spent[1].total)
    reached = tuple(read_reached(run, own, budget=min(tokens)) for run, own in zip((a, b), spent, strict=True))
    configs = [run.config() for run in (a, b)]
    notes = [
        f"{run.name} has no readable config.yaml: its settings are unknown" for run, own in zip((a, b), configs, strict=True) if not own
    ]
    notes += [f"left out of {run.name}: {problem}" for run in (a, b) for problem in run.problems]
    settings = tuple(flat(config) for config in configs)
    names = [name for name in dict.fromkeys([*settings[0], *settings[1]]) if name not in _OWN_SETTINGS]
    return RunDiff(
        runs=(str(a.root), str(b.root)),
        settings={name: _two(own.get(name) for own in settings) for name in names if settings[0].get(name) != settings[1].get(name)}
        if all(configs)
        else {},
        versions=_versions(a, b),
        tokens=tokens,
        reached=(reached[0], reached[1]),
        sources=_sources(reached[0], reached[1]),
        flags=_counts(a, b, "SELECT name, count AS n FROM flags WHERE level = 'rollout'"),
        drops=_counts(a, b, "SELECT reason AS name, sum(n)::BIGINT AS n FROM drops WHERE what <> 'log' GROUP BY reason"),
        rollouts=_two(run.rows("SELECT count(*) AS n FROM rollouts")[0]["n"] for run in (a, b)),
        notes=tuple(notes),
    )


def flat(settings: Mapping[str, Any], *, prefix: str = "") -> Json:
    """Nested settings by dotted names."""
    found: Json = {}
    for name, value in settings.items():
        found |= flat(value, prefix=f"{prefix}{name}.") if isinstance(value, Mapping) and value else {f"{prefix}{name}": value}
    return found


def _versions(a: OpenRun, b: OpenRun) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    found = {}
    for name, expression in _VERSIONS.items():
        sql = f"SELECT DISTINCT {expression} AS v FROM rollouts WHERE {expression} IS NOT NULL ORDER BY v"
        own = [[str(row["v"]) for row in run.rows(sql, limit=_MANY)] for run in (a, b)]
        only = _two(tuple(v for v in mine if v not in set(others)) for mine, others in ((own[0], own[1]), (own[1], own[0])))
        if any(only):
            found[name] = only
    return found


def _sources(a: Reached, b: Reached) -> tuple[SourceDiff, ...]:
    keys = sorted({*a.tasks, *b.tasks}, key=lambda key: (key[1] == "train", key[0]))
    return tuple(SourceDiff.of(key[0], split=key[1], a=a.tasks.get(key, {}), b=b.tasks.get(key, {})) for key in keys)


def _counts(a: OpenRun, b: OpenRun, sql: str) -> dict[str, tuple[int, int]]:
    counted = [{str(row["name"]): int(row["n"]) for row in run.rows(sql, limit=_MANY)} for run in (a, b)]
    return {name: _two(own.get(name, 0) for own in counted) for name in sorted({*counted[0], *counted[1]})}


def _two(values: Any) -> tuple[Any, Any]:
    first, second = values
    return first, second


def _rate_json(rate: Estimate) -> Json:
    return {"pass_rate": rate.value, "interval_95": [rate.low, rate.high], "tasks": rate.problems}


def _rate_text(tally: Tally, rate: Estimate) -> str:
    if not tally.graded:
        return "none graded"
    return f"{tally.passed}/{tally.graded} = {rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}]"


def _value(value: Any) -> str:
    return "unset" if value is None else shorten(str(value), _VALUE_CHARS)


def _values(values: tuple[str, ...]) -> str:
    more = f" and {len(values) - _VALUES_SHOWN} more" if len(values) > _VALUES_SHOWN else ""
    return (", ".join(shorten(value, 2 * _VALUE_CHARS) for value in values[:_VALUES_SHOWN]) or "nothing") + more
