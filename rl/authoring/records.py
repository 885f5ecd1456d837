"""What `rl env check` asks and answers: the subject of a check, the rules, findings and the report."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from environments.records import Problem
from environments.registry import EnvironmentFactory

MAX_PROBLEMS = 200
MAX_TRIED = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What the command line says; every process of a check makes its own `Subject` of it."""

    target: str
    """A registered name, a dotted path, or a plugin file: `my_env.py` or `my_env.py:name`."""
    reward: str | None
    tasks: str | None
    """JSONL file of problems."""
    config: tuple[str, ...]
    """Configuration files whose task sources have the problems."""
    timeout: float
    """Seconds that one call of the environment or the grader may take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """An environment with a reward and problems to try it on."""

    env: str
    factory: EnvironmentFactory
    reward: str
    problems: tuple[Problem, ...]
    """At most 200: all are searched for their reference, and their reference solutions are graded."""

    @property
    def tried(self) -> tuple[Problem, ...]:
        """The few problems on which all other episodes are played."""
        return self.problems[:MAX_TRIED]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One rule of the suite."""

    name: str
    says: str
    fix: str


RULES = (
    Rule(
        name="picklable",
        says="the factory and the tasks can be pickled: they travel to other processes",
        fix="define the class or function at the top level of its module; keep only JSON values in the task's payload and reference",
    ),
    Rule(
        name="seeded",
        says="one task gets the same messages in every process",
        fix="draw random numbers from a generator that is seeded by task.id (random.Random(task.id)); sort sets before you print them",
    ),
    Rule(
        name="resets_cleanly",
        says="an episode is not changed by earlier ones",
        fix="keep the state of an episode in the instance, not in the class, the module or the task",
    ),
    Rule(
        name="gold_passes",
        says="the reference solution passes",
        fix="give each problem reference['solution'], the text of an ideal reply, and let the reward accept it",
    ),
    Rule(name="noop_fails", says="an empty reply fails", fix="let the reward fail a reply without an answer"),
    Rule(
        name="cheats_fail",
        says="known cheats fail",
        fix="let the reward accept the answer alone: one box or block, compared as a whole, never a word somewhere in the reply",
    ),
    Rule(
        name="hidden_data",
        says="the reference cannot be reached from the episode",
        fix="leave the reference to the reward: not in the prompt, the payload, the messages or the environment's attributes",
    ),
    Rule(
        name="closes",
        says="an episode leaves no open files, processes, threads or asyncio tasks",
        fix="release in close() what reset() and step() open; close() must work when reset() was never called",
    ),
    Rule(
        name="exceptions",
        says="no reply makes the environment or the reward raise or end the process",
        fix="answer a bad reply by a message, or end the episode; never run the reply in this process: use the sandbox",
    ),
    Rule(
        name="time_limits",
        says="every call ends in time",
        fix="put a limit on what a reply can cost (length, steps, seconds), and await slow work instead of blocking the event loop",
    ),
)
RULE_NAMES = tuple(rule.name for rule in RULES)


_MAX_LINES = 10
"""Findings of a rule that a person is shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One breach of a rule."""

    rule: str
    text: str
    """What was done, for a person. Equal texts of a rule are told once."""
    where: str = ""
    """Which episode did it."""
    fix: str = ""
    """How to repair this one, where the rule's own line would not help."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The verdict of the suite."""

    env: str
    reward: str
    n_problems: int
    findings: Sequence[Finding]
    skipped: Mapping[str, str]
    """Rules that could not be judged, and why."""

    @property
    def ok(self) -> bool:
        """Whether every rule holds."""
        return not self.findings

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        rules = []
        for rule in RULES:
            broken = [finding for finding in self.findings if finding.rule == rule.name]
            result = "fails" if broken else "skipped" if rule.name in self.skipped else "holds"
            fixes = dict.fromkeys(finding.fix or rule.fix for finding in broken)
            rules.append({"rule": rule.name, "says": rule.says, "result": result, "findings": _told(broken), "fix": "; ".join(fixes)})
        return {"env": self.env, "reward": self.reward, "ok": self.ok, "problems": self.problems(), "rules": rules}

    def problems(self) -> str:
        """How many were tried, for a person."""
        more = " or more" if self.n_problems == MAX_PROBLEMS else ""
        tried = min(self.n_problems, MAX_TRIED)
        return f"tried {tried} of {self.n_problems}{more} problems, and the reference solutions of {self.n_problems}"

    def text(self) -> str:
        """For a person: a line a rule; a failing one with what was found and how to repair it."""
        lines = [f"environment {self.env}, reward {self.reward}", self.problems()]
        for rule in self.to_json()["rules"]:
            note = f" ({self.skipped[rule['rule']]})" if rule["result"] == "skipped" else ""
            lines.append(f"  {rule['result']:<8} {rule['rule']:<15} {rule['says']}{note}")
            lines += [f"           - {found}" for found in rule["findings"][:_MAX_LINES]]
            if (more := len(rule["findings"]) - _MAX_LINES) > 0:
                lines.append(f"           - and {more} more; --json has them all")
            if rule["fix"]:
                lines.append(f"           fix: {rule['fix']}")
        failing = sum(rule["result"] == "fails" for rule in self.to_json()["rules"])
        lines.append(f"{failing} of {len(RULES)} rules fail" if failing else "all rules hold")
        return "\n".join(lines)


def _told(findings: Sequence[Finding]) -> list[str]:
    """Each text once, with the first episode in which it was seen, and in how many others."""
    first: dict[str, str] = {}
    count: Counter[str] = Counter()
    for finding in findings:
        first.setdefault(finding.text, f"{finding.where}: {finding.text}" if finding.where else finding.text)
        count[finding.text] += 1
    return [f"{line} (and {count[text] - 1} more)" if count[text] > 1 else line for text, line in first.items()]
