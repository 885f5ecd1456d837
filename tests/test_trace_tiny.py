"""The example of a small model that learns from traces: what it is trained on, and its run."""

from itertools import islice
from pathlib import Path

import pytest

from configs.load import load_config
from configs.schema import Config
from environments.records import Problem
from environments.sources.build import build_tasks
from environments.traces.tasks import FULL, OUTPUT
from environments.traces.text import FRAME_TOKENS
from examples.trace_tiny_base import CONFIG, examples, make_base, save_blank, structure, warm_start_data
from rl.prompt import ChatTokenizer
from tests.ring import metrics, rl

SMALL = ("tasks.output.heldout=4", "tasks.trace.heldout=4")


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config([CONFIG], SMALL)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return save_blank(tmp_path_factory.mktemp("blank") / "model", seed=0)


def test_both_kinds_of_examples_are_about_the_same_programs(config: Config, tokenizer: ChatTokenizer) -> None:
    pairs = zip(*(examples(config, env, tokenizer=tokenizer, seed=0) for env in (OUTPUT, FULL)), strict=True)
    for output, trace in islice(pairs, 20):
        asked, traced = (tokenizer.decode(example.token_ids) for example in (output, trace))
        source, value = asked.split("\nassert ")[0].split("def ")[1], asked.split("```\n")[1].split("\n```")[0]
        assert f"def {source.splitlines()[0]}  # << START_OF_TRACE\n{source.split(chr(10), 1)[1]}" in traced
        assert traced.endswith(f'<|arg_sep|>"{value}"<|frame_sep|>')
        assert [tokenizer.token_id(token) in trace.token_ids for token in FRAME_TOKENS if "exception" not in token] == [True] * 7


def test_no_program_is_like_one_that_is_held_out(config: Config, tokenizer: ChatTokenizer) -> None:
    heldout = build_tasks(config).heldout()
    by_task = [[problem.task.id for problem in heldout if problem.source == name] for name in ("output", "trace")]
    assert by_task[0] == by_task[1] and len(by_task[0]) == 4
    known = {structure(problem) for problem in heldout}
    # the numbers of a program do not make it another one
    assert structure(Problem(task=heldout[0].task, reference={"code": "a = 12"}, source="output")) == "a = 0"
    shown = [tokenizer.decode(example.token_ids) for example in islice(examples(config, OUTPUT, tokenizer=tokenizer, seed=0), 300)]
    assert not any(structure(problem) in known for problem in map(_as_problem, shown))


def _as_problem(shown: str) -> Problem:
    code = "def " + shown.split("\nassert ")[0].split("def ")[1]
    return Problem(task=None, reference={"code": code}, source="")  # type: ignore[arg-type]  # only the code is looked at


def test_both_arms_are_trained_on_as_many_tokens(config: Config, tokenizer: ChatTokenizer) -> None:
    with_traces, without = (
        warm_start_data(config, tokenizer=tokenizer, seed=0, tokens=20_000, outputs_only=only) for only in (False, True)
    )
    assert without.n_traces == 0 and with_traces.n_traces > 50 and without.n_outputs > 1.9 * with_traces.n_outputs
    for data in (with_traces, without):
        assert 18_000 < data.n_tokens <= 20_000 and len({len(batch) for batch in data.batches}) == 1
        assert 12 <= len(data.batches) <= 13


@pytest.mark.timeout(300)
def test_the_run_goes_from_nothing_to_a_trained_model(config: Config, tmp_path: Path) -> None:
    base = tmp_path / "base"
    make_base(base, config=config, seed=0, tokens=8000)
    small = (*SMALL, "rollout.prompts_per_step=2", "rollout.samples_per_prompt=2", "evaluation.samples=1", "sampling.max_tokens=24")
    rl("train", CONFIG, f"model.path={base}", f"run.dir={tmp_path}", "run.steps=1", "generator.slots=16", *small)
    run = metrics(tmp_path / "trace_tiny")
    assert [step.step for step in run.steps] == [1] and {rate.graded for rate in run.evals} == {4}
