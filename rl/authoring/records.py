"""What `rl env check` asks and answers: the subject of a check, the rules, findings and the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from environments.records import Problem
from environments.registry import EnvironmentFactory


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One breach of a rule."""

    rule: str
    text: str
    """Which episode did what, for a person."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The verdict of the suite."""

    env: str
    reward: str
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
            found = [finding.text for finding in self.findings if finding.rule == rule.name]
            result = "fails" if found else "skipped" if rule.name in self.skipped else "holds"
            rules.append({"rule": rule.name, "says": rule.says, "result": result, "findings": found, "fix": rule.fix if found else ""})
        return {"env": self.env, "reward": self.reward, "ok": self.ok, "rules": rules}

    def text(self) -> str:
        """For a person: a line a rule; a failing one with what was found and how to repair it."""
        lines = [f"environment {self.env}, reward {self.reward}"]
        for rule in self.to_json()["rules"]:
            note = f" ({self.skipped[rule['rule']]})" if rule["result"] == "skipped" else ""
            lines.append(f"  {rule['result']:<8} {rule['rule']:<15} {rule['says']}{note}")
            lines += [f"           - {found}" for found in rule["findings"]]
            if rule["fix"]:
                lines.append(f"           fix: {rule['fix']}")
        failing = sum(rule["result"] == "fails" for rule in self.to_json()["rules"])
        lines.append(f"{failing} of {len(RULES)} rules fail" if failing else "all rules hold")
        return "\n".join(lines)
