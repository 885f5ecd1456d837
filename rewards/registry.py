"""Graders by name. A plugin registers its own with `@grader` (a class or factory) or `@reward` (a plain function).

What `tasks.*.reward` may say: a registered name, a name that an installed distribution offers in the entry-point group
`codeworld_rl.rewards`, a dotted path `package.module:Name`, `trl:NAME` for a reward of `trl.rewards`, or a mix of those with weights
(`rewards/mix.py`).
"""

from collections.abc import Callable
from typing import TypeVar

from environments.provenance import source_hash
from environments.registry import Registry
from rewards.code import CodeAttemptsGrader, CodeClassGrader, CodeGrader, CodeInputGrader, CodePuzzleGrader, CodeStdioGrader
from rewards.code_output import CodeOutputGrader
from rewards.cwm import cwm_code, cwm_math
from rewards.format import LengthGrader, box_format, code_format, think_format
from rewards.functions import GraderFactory, grader_factory, reward_factory
from rewards.math import MathGrader
from rewards.mix import MixGrader, parse_mix
from rewards.score import Grader
from rewards.swe import CwmSweGrader, SweGrader
from rewards.trace_answer import TraceAnswerGrader, TraceReturnGrader
from rewards.trace_debugger import TraceDebuggerGrader
from rewards.trace_frames import TraceFullGrader, TraceNextFrameGrader
from rewards.trace_values import TraceInputGrader, TraceOutputGrader
from rewards.trl_named import PREFIX, TrlNamedGrader

REWARD_GROUP = "codeworld_rl.rewards"
"""Entry-point group of installed distributions."""
_TRL = "trl.rewards"
Factory = TypeVar("Factory", bound=GraderFactory)
Reward = TypeVar("Reward", bound=Callable[..., object])

_graders: Registry[GraderFactory] = Registry("reward", group=REWARD_GROUP, accept=grader_factory)


def grader(name: str) -> Callable[[Factory], Factory]:
    """Register a Grader class, or a function that makes one, under `name`.

    Raises ValueError when another one has that name; importing the same definition twice is fine.
    """

    def register(factory: Factory) -> Factory:
        entry: GraderFactory = factory
        _graders.add(name, entry)
        return factory

    return register


def reward(name: str) -> Callable[[Reward], Reward]:
    """Register a function as a grader: `(problem, response) -> float | Score`, or one of TRL's shape (`rewards/trl_functions.py`).

    The former runs in the event loop, so it should be quick, or `async`. A number > 0 counts as passed, any other as failed; an
    exception is an infrastructure failure and gives no reward.
    """

    def register(function: Reward) -> Reward:
        _graders.add(name, reward_factory(function, name))
        return function

    return register


def make_grader(spec: str) -> Grader:
    """A new grader for what `tasks.*.reward` says. Raises ValueError for a name, path or mix that is wrong."""
    terms = parse_mix(spec)
    graders = [_make_one(term.name) for term in terms]
    if len(terms) == 1 and terms[0].weight == 1.0:
        return graders[0]
    return MixGrader(terms, graders)


def grader_hash(spec: str) -> str:
    """16 hexadecimal digits over a reward's name and the source of what it names. Raises ValueError as `make_grader`."""
    names = [term.name for term in parse_mix(spec)]
    modules = [_TRL if name.startswith(PREFIX) else str(getattr(_graders.find(name), "__module__", "")) for name in names]
    return source_hash(*modules, name=spec)


def known_graders() -> tuple[str, ...]:
    """All names, sorted; those of installed distributions are not imported for it."""
    return _graders.names()


def _make_one(name: str) -> Grader:
    if name.startswith(PREFIX):
        return TrlNamedGrader(name.removeprefix(PREFIX))
    return _graders.find(name)()


grader("math")(MathGrader)
grader("math_python")(MathGrader)
for _code_grader in (CodeGrader, CodeAttemptsGrader, CodeStdioGrader, CodePuzzleGrader, CodeClassGrader, CodeInputGrader):
    grader(_code_grader.env)(_code_grader)
grader("code_output")(CodeOutputGrader)
grader("trace_output")(TraceOutputGrader)
grader("trace_input")(TraceInputGrader)
grader("trace_next_frame")(TraceNextFrameGrader)
grader("trace_full")(TraceFullGrader)
grader("trace_return")(TraceReturnGrader)
grader("trace_answer")(TraceAnswerGrader)
grader("cwm_math")(cwm_math)
grader("cwm_code")(cwm_code)
grader("swe")(SweGrader)
grader("cwm_swe")(CwmSweGrader)
grader("trace_debugger")(TraceDebuggerGrader)
grader("length")(LengthGrader)
reward("think_format")(think_format)
reward("box_format")(box_format)
reward("code_format")(code_format)
