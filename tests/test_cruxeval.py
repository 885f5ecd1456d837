"""CRUXEval in all modes: the gold policy has every point, the empty one none, and what is wrong with a trace is told."""

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from configs.load import load_config
from configs.schema import Config
from environments.records import Problem
from environments.sources.build import build_tasks
from environments.traces.call_frame import call_arguments
from environments.traces.records import EventKind, TraceEvent
from rl.evaluate import EvalReport, evaluate_heldout
from rl.evaluate_model import every_problem
from rl.generator import Generator
from rl.prompt import ChatTokenizer, Renderer, load_tokenizer
from rl.records import Sampling
from rl.rollout import GroupJob, GroupOutcome, RolloutWorker
from rl.scripted import ScriptedEngine
from rl.tokenizer import save_tiny_tokenizer
from rl.weight_sync import DiscardedWeights

pytestmark = pytest.mark.timeout(120)
ROOT = Path(__file__).parent.parent
ROWS = (
    {"code": "def f(a, b=2):\n    c = a * b\n    return [c, a]", "input": "3", "output": "[6, 3]"},
    {"code": "def f(s, *rest):\n    t = s\n    for r in rest:\n        t += r\n    return t", "input": "'a', 'b', 'c'", "output": "'abc'"},
    {"code": "def f(d):\n    return {k: v for v, k in d.items()}", "input": "{1: 'x'}", "output": "{'x': 1}"},
)
MODES = [*(f"{what}_{mode}" for what in ("output", "input") for mode in ("direct", "reasoning", "trace")), "output_step", "next_frame"]


class Rollouts:
    """A worker with a scripted generator, in this process."""

    def __init__(self, config: Config, script: dict[str, list[str]], *, tokenizer: ChatTokenizer) -> None:
        engine = ScriptedEngine(script, tokenizer=tokenizer, context_length=config.model.context_length)
        self._generator = Generator(engine, lockstep=False, receiver=DiscardedWeights())
        self._worker = RolloutWorker(config, renderer=Renderer(tokenizer), generators=[self._generator], write_group=lambda group: None)

    async def expect(self, jobs: Sequence[GroupJob]) -> None:
        raise AssertionError("only strictly on-policy runs announce their jobs")

    async def run(self, job: GroupJob) -> GroupOutcome:
        return await self._worker.run_group(job)

    async def close(self) -> None:
        self._generator.close()
        await self._worker.close()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tiny_tokenizer(folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The shipped configuration on the rows above, with two samples a problem."""
    file = tmp_path_factory.mktemp("data") / "cruxeval.jsonl"
    file.write_text("".join(json.dumps({"id": f"sample_{number}", **row}) + "\n" for number, row in enumerate(ROWS)))
    overrides = [f"tasks.output_direct.path={file}", "evaluation.samples=2", "rollout.max_staleness=1"]
    return load_config([ROOT / "configs/cruxeval.yaml"], overrides)


@pytest.fixture(scope="module")
def problems(config: Config) -> dict[str, list[Problem]]:
    """By source."""
    found = every_problem(build_tasks(config))
    return {mode: [problem for problem in found if problem.source == mode] for mode in MODES}


def evaluate(config: Config, problems: Sequence[Problem], policy: Callable[[Problem], str], *, tokenizer: ChatTokenizer) -> EvalReport:
    async def run() -> EvalReport:
        script = {problem.task.id: [reply] for problem in problems if (reply := policy(problem))}
        rollouts = Rollouts(config, script, tokenizer=tokenizer)
        try:
            sampling = Sampling(max_tokens=config.sampling.max_tokens)
            return await evaluate_heldout(config, problems=problems, rollouts=rollouts, sampling=sampling, step=0, seed=0)
        finally:
            await rollouts.close()

    return asyncio.run(run())


def gold(problem: Problem) -> str:
    return str(problem.reference["solution"])


def test_every_mode_has_all_problems_and_asks_for_what_it_grades(problems: dict[str, list[Problem]]) -> None:
    assert {mode: len(found) for mode, found in problems.items()} == dict.fromkeys(MODES, 3)
    shown = {mode: found[0].task.prompt[-1].content for mode, found in problems.items()}
    assert "assert f(3) == ??" in shown["output_direct"] and "assert f(??) == [6, 3]" in shown["input_trace"]
    assert shown["output_trace"].endswith('<|call_sep|>{"a": "3", "b": "2"}<|action_sep|>def f(a, b=2):\n<|frame_sep|>')
    assert shown["output_step"] == shown["output_trace"] + "<|return_sep|>"
    assert all("[6, 3]" not in text for mode, text in shown.items() if mode.startswith("output"))
    assert shown["next_frame"].startswith(shown["output_trace"]) and "[6, 3]" not in shown["next_frame"]


@pytest.mark.parametrize("mode", MODES)
def test_gold_has_every_point_and_silence_none(
    mode: str, config: Config, problems: dict[str, list[Problem]], tokenizer: ChatTokenizer
) -> None:
    right = evaluate(config, problems[mode], gold, tokenizer=tokenizer).by_env[mode]
    assert (right.passed, right.graded, right.ungraded, right.details.failures) == (6, 6, 0, {})
    silent = evaluate(config, problems[mode], lambda problem: "", tokenizer=tokenizer).by_env[mode]
    assert (silent.passed, silent.graded, silent.ungraded) == (0, 6, 0)
    assert sum(silent.details.failures.values()) == 6
    if mode in ("output_trace", "output_step", "next_frame"):
        parts = right.to_json()["parts"]
        assert {name: parts[name]["mean"] for name in ("valid", "state", "action", "exact")} == dict.fromkeys(
            ("valid", "state", "action", "exact"), 1.0
        )
        assert silent.to_json()["parts"]["valid"]["mean"] == 0.0


def test_a_trace_counts_by_its_answer_and_its_faults_are_told(
    config: Config, problems: dict[str, list[Problem]], tokenizer: ChatTokenizer
) -> None:
    def damaged(problem: Problem) -> str:
        text = str(problem.reference["solution"])
        if problem.task.id == "sample_0":  # the state of one of three frames is wrong, the answer is right in another notation
            return text.replace('"c": "6"', '"c": "7"').replace('"[6, 3]"', '"[6,3]"')
        if problem.task.id == "sample_1":
            return text.replace("<|arg_sep|>", "")
        return text.replace("{'x': 1}", "{'x': True}")

    rate = evaluate(config, problems["output_trace"], damaged, tokenizer=tokenizer).by_env["output_trace"]
    assert {name: tally.passed for name, tally in rate.by_problem.items()} == {"sample_0": 2, "sample_1": 0, "sample_2": 0}
    assert rate.details.failures == {
        "character …: a frame must show one line of the source": 2,
        "the trace ends with … instead of …": 2,
    }
    parts = rate.details.parts
    assert {name: parts[name]["sample_0"].total / 2 for name in ("valid", "action", "exact")} == {"valid": 1.0, "action": 1.0, "exact": 0.0}
    assert parts["state"]["sample_0"].total / 2 == pytest.approx(1 / 3), "of a line, a line and the return, the first is right"
    assert parts["valid"]["sample_1"].total == 0.0 < parts["action"]["sample_1"].total, "the frames before the fault count"


def test_a_single_step_counts_by_its_value(config: Config, problems: dict[str, list[Problem]], tokenizer: ChatTokenizer) -> None:
    def other(problem: Problem) -> str:
        text = str(problem.reference["solution"])
        if problem.task.id == "sample_0":  # another line, another notation
            return "<|return_sep|>" + text.replace("return [c, a]", "c = a * b").replace('"[6, 3]"', '"[6,3]"')
        return text.replace("'abc'", "'ab'") if problem.task.id == "sample_1" else "<|line_sep|>{}" + text

    rate = evaluate(config, problems["output_step"], other, tokenizer=tokenizer).by_env["output_step"]
    assert {name: tally.passed for name, tally in rate.by_problem.items()} == {"sample_0": 2, "sample_1": 0, "sample_2": 0}
    means = {name: [found.total / 2 for found in rate.details.parts[name].values()] for name in ("valid", "action", "exact")}
    assert means == {"valid": [1.0, 1.0, 0.0], "action": [0.0, 1.0, 0.0], "exact": [0.0, 0.0, 0.0]}


def test_an_input_is_read_from_the_call_frame_and_run(config: Config, problems: dict[str, list[Problem]], tokenizer: ChatTokenizer) -> None:
    def other(problem: Problem) -> str:
        """Another input that is right, one that is wrong, and one that is no literal."""
        text = str(problem.reference["solution"])
        if problem.task.id == "sample_0":
            return text.replace('"b": "2"', '"b": "2.0"')
        return text.replace("('b', 'c')", "('bc',)") if problem.task.id == "sample_1" else text.replace("{1: 'x'}", "dict(x=1)")

    rate = evaluate(config, problems["input_trace"], other, tokenizer=tokenizer).by_env["input_trace"]
    assert {name: tally.passed for name, tally in rate.by_problem.items()} == {"sample_0": 0, "sample_1": 2, "sample_2": 0}
    assert any("shows the parameter … as …" in reason for reason in rate.details.failures)


def test_a_call_frame_must_show_what_its_entry_takes() -> None:
    source = "def f(a, /, *, b=1):\n    pass\n\ndef g(a, *more):\n    pass\n"

    def arguments(entry: str, line: str, **shown: str) -> str:
        return call_arguments(TraceEvent(kind=EventKind.CALL, line=line, locals=shown), source=source, entry=entry)

    assert arguments("g", "def g(a, *more):", more="(2, [3])", a="'x'") == "'x', 2, [3]"
    for entry, line, shown, error in (
        ("g", "def f(a, /, *, b=1):", {"a": "1"}, "no call of g"),
        ("f", "def f(a, /, *, b=1):", {"a": "1", "b": "1"}, "cannot be given by position"),
        ("g", "def g(a, *more):", {"a": "1"}, "does not show the parameter 'more'"),
        ("g", "def g(a, *more):", {"a": "1", "more": "[2]"}, "as no tuple"),
        ("g", "def g(a, *more):", {"a": "exit()", "more": "()"}, "as 'exit()': no literal"),
        ("h", "def h():", {}, "h is no function"),
    ):
        with pytest.raises(ValueError, match=error.replace("(", r"\(").replace(")", r"\)")):
            arguments(entry, line, **shown)
