"""Run against run: settings, versions of what played and graded, pass rates at equal tokens, flags, drops."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rl.log.compare import Reached, RunComparison, SourceComparison, TokenCount, compare_runs
from rl.log.text import shorten, visible
from rl.statistics import Estimate, Tally
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
class RunDiff:
    """Two runs."""

    runs: tuple[str, str]
    settings: Mapping[str, tuple[Any, Any]]
    """Those that differ; None where a run has none of that name."""
    versions: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
    """What only the one and only the other has, of the kinds that differ."""
    compared: RunComparison
    """At equal tokens."""
    flags: Mapping[str, tuple[int, int]]
    """Rollouts that carry a flag."""
    drops: Mapping[str, tuple[int, int]]
    """Rollouts and groups that were not trained on, by reason."""
    rollouts: tuple[int, int]
    notes: tuple[str, ...]

    def to_json(self) -> Json:
        """Plain values."""
        return {
            "runs": list(self.runs),
            "settings": {name: list(values) for name, values in self.settings.items()},
            "versions": {name: [list(own) for own in values] for name, values in self.versions.items()},
            "by": self.compared.by.value,
            "tokens": [side.total_tokens for side in self._sides],
            "at_tokens": self.compared.tokens,
            "policy_versions": [
                {"train": side.training, "heldout": None if side.evaluated is None else (side.evaluated, side.evaluated)}
                for side in self._sides
            ],
            "sources": [_source_json(source) for source in self.compared.sources],
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
        compared = self.compared
        totals = ", ".join(f"{side} {one.total_tokens}" for side, one in zip(("A has", "B"), self._sides, strict=True))
        lines.append(f"pass rates at {compared.tokens} {compared.by.value} tokens ({totals}); {self._windows()}".removesuffix("; "))
        lines += [line for source in compared.sources for line in _source_lines(source)]
        lines += [f"  held out: {compared.no_heldout}"] if compared.no_heldout else []
        for what, counts in (("flags", self.flags), ("drops", self.drops)):
            lines.append(f"{what}:" if counts else f"{what}: none")
            lines += [f"  {name}: A {self._share(a, 0)}, B {self._share(b, 1)}" for name, (a, b) in counts.items()]
        return visible("\n".join(lines))

    @property
    def _sides(self) -> tuple[Reached, Reached]:
        return self.compared.first, self.compared.second

    def _windows(self) -> str:
        told = []
        for letter, side in zip("AB", self._sides, strict=True):
            if side.training is not None:
                first, last = side.training
                told.append(f"{letter} train " + (f"version {first}" if first == last else f"versions {first} to {last}"))
            if side.evaluated is not None:
                told.append(f"{letter} heldout version {side.evaluated}")
        return ", ".join(told)

    def _share(self, count: int, run: int) -> str:
        return f"{count} ({count / self.rollouts[run]:.1%})" if self.rollouts[run] else str(count)


def diff_runs(a: OpenRun, b: OpenRun, *, by: TokenCount = TokenCount.SAMPLED) -> RunDiff:
    """Compare two runs; either may be live. Raises QueryError."""
    compared = compare_runs(a.log(), b.log(), names=(a.name, b.name), by=by)
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
        compared=compared,
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


def _counts(a: OpenRun, b: OpenRun, sql: str) -> dict[str, tuple[int, int]]:
    counted = [{str(row["name"]): int(row["n"]) for row in run.rows(sql, limit=_MANY)} for run in (a, b)]
    return {name: _two(own.get(name, 0) for own in counted) for name in sorted({*counted[0], *counted[1]})}


def _two(values: Any) -> tuple[Any, Any]:
    first, second = values
    return first, second


def _source_json(one: SourceComparison) -> Json:
    rates = zip(one.tallies, (one.first, one.second), strict=True)
    runs = [{**asdict(tally), **_rate_json(rate)} for tally, rate in rates]
    return {"source": one.source, "split": one.split, "runs": runs, "paired": {**asdict(one.difference), "changed": one.changed}}


def _source_lines(one: SourceComparison) -> list[str]:
    rates = zip("AB", one.tallies, (one.first, one.second), strict=True)
    sides = [f"{letter} {_rate_text(tally, rate)}" for letter, tally, rate in rates]
    return [f"  {one.source}, {one.split}: {', '.join(sides)}", f"    {_paired_text(one)}"]


def _paired_text(one: SourceComparison) -> str:
    paired = one.difference
    if not paired.problems:
        return "no task was graded in both"
    changed = f"; {one.changed} of them with another content in the two runs" if one.changed else ""
    if paired.problems == 1:
        return f"B - A of the one task graded in both: {paired.difference:+.3f}, too few for an interval{changed}"
    told = f"B - A over the {paired.problems} tasks graded in both: {paired.difference:+.3f}"
    return f"{told} [{paired.low:+.3f}, {paired.high:+.3f}], p {paired.p_value:.3g}{changed}"


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
