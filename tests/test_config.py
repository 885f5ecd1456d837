"""Configuration: layers, overrides, messages, round trip."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from configs.load import dump_config, load_config
from configs.schema import Config, FilterConfig, LearnerConfig, ModelConfig, RunConfig, TaskConfig

BASE = """
run: {name: demo, steps: 12}
model: {path: some/model}
tasks:
  arith: {kind: reasoning_gym, env: math}
"""
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(text: str, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write_file


def test_minimal_file_gets_the_class_defaults(write: Write) -> None:
    config = load_config([write(BASE)])
    assert config == Config(
        run=RunConfig(name="demo", steps=12),
        model=ModelConfig(path="some/model"),
        tasks={"arith": TaskConfig(kind="reasoning_gym", env="math")},
    )


def test_later_layers_win_and_keep_what_they_do_not_mention(write: Write) -> None:
    first = write(BASE)
    second = write("run: {steps: 30}\ntasks: {arith: {limit: 5}, more: {kind: programs, env: code}}\n", "second.yaml")
    config = load_config([first, second], ["run.steps=40", "tasks.arith.limit=10", "learner.betas=[0.8,0.9]", "objective.clip_low=null"])
    assert (config.run.name, config.run.steps) == ("demo", 40)
    assert (config.tasks["arith"].kind, config.tasks["arith"].limit) == ("reasoning_gym", 10)
    assert list(config.tasks) == ["arith", "more"]
    assert config.learner.betas == (0.8, 0.9)
    assert config.objective.clip_low is None


def test_defaults_lie_below_their_file_and_are_applied_once(write: Write) -> None:
    write(BASE + "sampling: {max_tokens: 1, top_k: 1}\n", "shared/base.yaml")
    write("defaults: [base.yaml]\nsampling: {max_tokens: 2}\n", "shared/left.yaml")
    write("defaults: [base.yaml]\nsampling: {top_k: 2}\n", "shared/right.yaml")
    config = load_config([write("defaults: [shared/left.yaml, shared/right.yaml]\nrun: {steps: 3}\n")])
    # Were base.yaml applied again below right.yaml, it would undo left.yaml.
    assert (config.sampling.max_tokens, config.sampling.top_k, config.run.steps) == (2, 2, 3)


def test_interpolations_see_the_final_values(write: Write) -> None:
    config = load_config([write(BASE + "warm_start: {steps: '${run.steps}'}\n")], ["run.steps=77"])
    assert config.warm_start.steps == 77


def test_text_overrides_stay_as_typed(write: Write) -> None:
    config = load_config(
        [write(BASE)], ["tasks.arith.prompt={question} = ?", "run.name=007", "tasks.arith.system=yes", "tasks.arith.id_field=1e3"]
    )
    task = config.tasks["arith"]
    assert (task.prompt, config.run.name, task.system, task.id_field) == ("{question} = ?", "007", "yes", "1e3")


def test_configuration_is_frozen(write: Write) -> None:
    config = load_config([write(BASE)])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.run.steps = 3  # type: ignore[misc]  # the point of the test


HOSTILE_TEXT = [
    "${run.name}",
    "\\${x}",
    "\\\\${x",
    "${",
    "a\\",
    "null",
    "3",
    "true",
    "a: b",
    "# no comment",
    "\n two\n lines ",
    "'",
    "é✓",
    "",
]


@pytest.mark.parametrize("text", HOSTILE_TEXT)
def test_dump_loads_back_equal(write: Write, text: str) -> None:
    task = TaskConfig(
        kind="reasoning_gym", env="math", prompt=text, system=text, options={"names": [text, 1, None], "range": {"low": -1.5}}
    )
    config = Config(
        run=RunConfig(name="demo", plugins=("a.py", "b")),
        model=ModelConfig(path="m"),
        tasks={"first": task, "second": TaskConfig(kind="jsonl", env="code", path="data/x.jsonl", weight=0.5)},
        learner=LearnerConfig(learning_rate=3e-7, zero_stage=2, betas=(0.0, 0.999)),
        filters=FilterConfig(zero_variance="resample", min_solve_rate=0.1),
    )
    assert load_config([write(dump_config(config))]) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.stepz=5", r"override 'run\.stepz=5': unknown key run\.stepz; did you mean run\.steps\?"),
        ("rnu.steps=5", r"unknown key rnu; did you mean run\?"),
        ("run.temperature=3", r"unknown key run\.temperature; did you mean sampling\.temperature\?"),
        ("steps=3", r"unknown key steps; did you mean run\.steps\?"),
        ("foo=3", r"unknown key foo; valid names: run, model, tasks"),
        ("tasks.arith.knd=x", r"unknown key tasks\.arith\.knd; did you mean tasks\.arith\.kind\?"),
        ("run.steps=abc", r"run\.steps is 'abc'; it must be a whole number"),
        ("run.steps=1.5", r"run\.steps is 1\.5; it must be a whole number"),
        ("run.steps=true", r"run\.steps is True; it must be a whole number"),
        ("run=5", r"run is 5; it must be a section, a mapping of name, dir"),
        ("tasks.arith=5", r"tasks\.arith is 5; it must be a section"),
        ("tasks.arith.options=3", r"tasks\.arith\.options is 3; it must be a mapping"),
        ("objective.clip_low=x", r"objective\.clip_low is 'x'; it must be a number or null"),
        ("evaluation.enabled=maybe", r"evaluation\.enabled is 'maybe'; it must be true or false"),
        ("objective.name=ppo", r"objective\.name is 'ppo'; it must be one of cwm, grpo, dr_grpo"),
        ("learner.zero_stage=4", r"learner\.zero_stage is 4; it must be one of 1, 2, 3"),
        ("generator.dtype=fp8", r"generator\.dtype is 'fp8'; it must be one of float32, bfloat16 or null"),
        ("learner.betas=[0.9]", r"learner\.betas is \[0\.9\]; it must be a list of 2, each a number"),
        ("learner.betas=[a,0.9]", r"learner\.betas is \['a', 0\.9\]; it must be a list of 2, each a number"),
        ("learner.betas=[0.9,1.0]", r"learner\.betas is \(0\.9, 1\.0\); it must be two numbers >= 0 and < 1"),
        ("run.plugins=a", r"run\.plugins is 'a'; it must be a list, each item text"),
        ("run.plugins=[1]", r"run\.plugins is \[1\]; it must be a list, each item text"),
        ("filters.min_solve_rate=2", r"^filters\.min_solve_rate is 2\.0; it must be >= 0\.0 and <= 1\.0$"),
        ("filters.min_solve_rate=.nan", r"^filters\.min_solve_rate is nan; it must be a finite number >= 0\.0"),
        ("evaluation.every=-1", r"^evaluation\.every is -1; it must be >= 0$"),
        ("warm_start.steps=-1", r"^warm_start\.steps is -1; it must be >= 0$"),
        ("tasks.arith.weight=0", r"^tasks\.arith\.weight is 0\.0; it must be > 0$"),
        ("tasks.arith.kind=jsonl", r"^tasks\.arith\.path is not set; kind=jsonl needs the file: set tasks\.arith\.path$"),
        ("tasks.arith.kind=hf", r"^tasks\.arith\.path is not set; kind=hf"),
        ("tasks.arith.kind=plugin", r"^tasks\.arith\.path is not set; kind=plugin"),
        ("tasks.new.kind=programs", r"no value for tasks\.new\.env: write it in a YAML file or add tasks\.new\.env=VALUE"),
        ("run.name=../x", r"run\.name is '\.\./x'; it must be a plain folder name"),
        ("run.name=", r"run\.name is ''; it must be a plain folder name"),
        ("cluster.most_workers=0.5", r"cluster\.most_workers is 0\.5; it must be a whole number"),
        (
            "cluster.most_generators=2",
            r"cluster\.most_generators is 2, more than generator\.replicas=1, and rollout\.max_staleness is 0: the number",
        ),
        ("cluster.learner_resources.GPU=1", r"cluster\.learner_resources\.GPU: set cluster\.gpus=true"),
        ("cluster.worker_resources.CPU=1", r"cluster\.worker_resources\.CPU: .* set run\.threads"),
        ("cluster.worker_resources.sandbox=0", r"cluster\.worker_resources\.sandbox is 0\.0; it must be > 0"),
        ("cluster.part_timeout=1", r"cluster\.part_timeout is 1\.0; it must be >= 10"),
        ("rollout.samples_per_prompt=1", r"rollout\.samples_per_prompt is 1, but objective\.name=cwm .* at least 2 samples"),
        ("learner.optimizer_steps_per_batch=17", r"learner\.optimizer_steps_per_batch is 17, more than the 16 prompts"),
        ("run.steps", r"override 'run\.steps' is not of the form section\.name=value"),
        ("run..steps=3", r"override 'run\.\.steps=3' is not of the form"),
        ("run.steps=[1,", r"override 'run\.steps=\[1,': the value is not valid YAML"),
        ("tasks.arith.prompt=a ${ b", r"tasks\.arith\.prompt is 'a \$\{ b', not a valid interpolation; write \\\$\{ for a plain"),
        ("run.steps=${run.nam}", r"^run\.steps: Interpolation key 'run\.nam' not found$"),
        ("run.steps=${run.name}", r"^run\.steps: .*'demo'.* could not be converted to Integer$"),
    ],
)
def test_a_bad_override_says_what_and_how(write: Write, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_config([write(BASE)], [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run:\n  nmae: x\n", r"run\.yaml: unknown key run\.nmae; did you mean run\.name\?"),
        ("run:\n  steps: ten\n", r"run\.yaml: run\.steps is 'ten'; it must be a whole number"),
        ("run:\n  dir: true\n", r"run\.yaml: run\.dir is True; it must be text"),
        ("run:\n", r"run\.yaml: run is None; it must be a section"),
        ("run:\n  steps: 1\n  steps: 2\n", r"run\.yaml, line 3, column 3: malformed YAML: found duplicate key steps"),
        ("run: [1\nmodel: 3", r"run\.yaml, line 2, column \d+: malformed YAML"),
        ("- run\n- model\n", r"run\.yaml: must be a YAML mapping of sections .* not a"),
        ("42: 3\n", r"run\.yaml: unknown key 42; valid names: run, model"),
        ("defaults: base.yaml\n", r"run\.yaml: defaults is 'base\.yaml'; it must be a list"),
        ("defaults: [run.yaml]\n", r"run\.yaml: defaults form a cycle: run\.yaml -> run\.yaml"),
        ("defaults: [nowhere.yaml]\n", r"configuration file .*nowhere\.yaml does not exist"),
        ("tasks: {a.b: {kind: programs, env: code}}\n", r"run\.yaml: tasks has the name 'a\.b'; it must be text without a dot"),
        ("", r"no value for model\.path, run\.name: write it in a YAML file or add model\.path=VALUE run\.name=VALUE"),
        ("run: {name: x}\nmodel: {path: y}\n", r"tasks is empty; name at least one task source"),
    ],
)
def test_a_bad_file_is_named_in_one_line(write: Write, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_config([write(text)])
    assert "\n" not in str(caught.value)


def test_cycle_through_two_files(write: Write) -> None:
    write("defaults: [run.yaml]\n", "other.yaml")
    with pytest.raises(ValueError, match=r"cycle: run\.yaml -> other\.yaml -> run\.yaml"):
        load_config([write("defaults: [other.yaml]\n")])


def test_missing_file_suggests_the_nearest(write: Write, tmp_path: Path) -> None:
    write(BASE, "quickstart.yaml")
    with pytest.raises(ValueError, match=r"quikstart\.yaml does not exist; did you mean .*quickstart\.yaml\?"):
        load_config([tmp_path / "quikstart.yaml"])


def test_binary_file(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ValueError, match=r"model\.yaml: cannot be read as a YAML mapping"):
        load_config([tmp_path / "model.yaml"])


def test_refused_value_is_found_among_good_ones(write: Write) -> None:
    with pytest.raises(ValueError, match=r"run\.yaml: learner\.grad_clip is 'lots'; it must be a number"):
        load_config([write(BASE + "learner: {ranks: 2, grad_clip: lots, eps: 1e-9}\nsampling: {top_k: 5}\n")])


def test_every_bounded_number_refuses_nan() -> None:
    sections = [hint for hint in Config.__dataclass_fields__.values()]
    checked = 0
    for section in sections:
        for spec in dataclasses.fields(section.type) if dataclasses.is_dataclass(section.type) else ():
            if "low" in spec.metadata and (spec.type is float or float in get_args(spec.type)):
                with pytest.raises(ValueError, match=spec.name):
                    section.type(**{spec.name: math.nan})  # type: ignore[operator]  # a dataclass, see above
                checked += 1
    assert checked > 15


SHIPPED = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configurations_load(path: Path, write: Write) -> None:
    config = load_config([path])
    assert load_config([write(dump_config(config))]) == config


def test_quickstart_is_shipped() -> None:
    assert "quickstart" in [path.stem for path in SHIPPED]


def test_ranks_that_share_sequences_must_divide_the_ranks() -> None:
    with pytest.raises(ValueError, match=r"learner\.sequence_parallel is 2, which does not divide learner\.ranks=3"):
        LearnerConfig(ranks=3, sequence_parallel=2)


@pytest.mark.parametrize(("name", "ranks", "replicas"), [("cwm_32b", 64, 48), ("cwm_32b_small", 8, 2)])
def test_the_configurations_of_the_32b_model_are_whole(name: str, ranks: int, replicas: int) -> None:
    config = load_config([Path(__file__).parent.parent / "configs" / f"{name}.yaml"])
    assert (config.run.name, config.learner.ranks, config.generator.replicas) == (name, ranks, replicas)
    assert config.cluster.gpus and config.vllm.tensor_parallel_size == 4
    published = (
        *(config.model.context_length, config.model.max_prompt_tokens, config.sampling.max_tokens, config.rollout.max_turns),
        *(config.objective.clip_low, config.objective.clip_high, config.objective.length_norm, config.objective.kl_coef),
        *(task.weight for task in config.tasks.values()),
    )
    assert published == (131072, 8192, 65536, 128, 0.2, 0.25, 131072, 0.0, 40, 40, 20)
    assert config.learner.micro_batch_tokens >= config.model.context_length, "a rollout of the whole context fits a micro-batch"
