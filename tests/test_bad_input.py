"""Wrong input to `rl train`: one clear line, a non-zero exit status, nothing half-written."""

import json
from pathlib import Path

import pytest
import yaml

from configs.load import dump_config, load_config
from rl.cli import main
from rl.log.runs import prepare_run
from tests.ring import ROOT, make_tiny_model, write_config

Change = dict[str, dict[str, object]]
BREAKERS = "tests.data.rule_breakers"
DIGITS = {"kind": "programs", "env": "digits", "options": {"kind": "addition"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """Run `rl train`, which must refuse; the line it says."""
    assert main(["train", *map(str, words)]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("rl train: ") and "\n" not in line and "Traceback" not in line
    return line


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rollout": {"prompts_per_stepp": 3}}, ["rollout.prompts_per_stepp", "rollout.prompts_per_step"]),
        ({"run": {"steps": "many"}}, ["run.steps", "many"]),
        ({"rollout": {"samples_per_prompt": 1}}, ["samples_per_prompt", "group"]),
        ({"sampling": {"top_p": 0}}, ["sampling.top_p", "0"]),
        ({"sampling": {"stop_tokens": ["two tokens"]}}, ["sampling.stop_tokens", "two tokens"]),
        ({"tasks": {"digits": {"kind": "programs", "env": "digitz", "options": {"kind": "addition"}}}}, ["digitz", "digits"]),
        ({"tasks": {"digits": {**DIGITS, "reward": "digits + 0*math"}}}, ["tasks.digits.reward", "position 10", "weight of 0"]),
        ({"tasks": {"digits": {**DIGITS, "reward": "no_such_pkg:reward"}}}, ["tasks.digits.reward", "cannot import no_such_pkg"]),
        ({"tasks": {"digits": {**DIGITS, "env": "no_such_pkg:Env", "reward": "math"}}}, ["tasks.digits.env", "cannot import no_such_pkg"]),
        ({"tasks": {"digits": {**DIGITS, "env": "my_pkg:Env"}}}, ["tasks.digits", "reward is not set", "my_pkg:my_reward"]),
        ({"tasks": {"rows": {"kind": "jsonl", "env": "math", "path": "missing.jsonl"}}}, ["missing.jsonl"]),
        ({"tasks": {"rows": {"kind": "jsonl", "env": "math"}}}, ["path"]),
        ({"run": {"plugins": ["no_such_plugin.py"]}}, ["no_such_plugin.py"]),
        ({"tasks": {"digits": {**DIGITS, "reward": "digits + 0.5*code"}}}, ["tasks.digits.reward: reward 'code'", "'tests'"]),
        ({"tasks": {"digits": {**DIGITS, "env": "math", "reward": "code_stdio"}}}, ["tasks.digits.reward: reward 'code_stdio'", "'tests'"]),
        *(
            ({"tasks": {"digits": {**DIGITS, "env": env, "reward": "math"}}}, ["tasks.digits.env", f"environment '{env}'", *says])
            for env, says in (
                (f"{BREAKERS}:adds", ["is no environment", "(task) -> object with async reset, step, close"]),
                ("json:dumps", ["cannot be made for problem", "TypeError", "(task) -> object with async reset, step, close"]),
                ("builtins:repr", ["is no environment", "it made a str without reset, step, close"]),
                (f"{BREAKERS}:SyncStep", ["`step` of SyncStep must be `async def`"]),
                (f"{BREAKERS}:NeedsMore", ["cannot be made for problem", "KeyError: 'level'"]),
            )
        ),
    ],
)
def test_a_wrong_setting_is_named(
    change: Change, named: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, write_config(tmp_path, model=model, **change))
    assert all(word in line for word in named), line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", ["empty.jsonl"]),
        ('{"question": "1+1", "answer": "2"}\n{"question": ', ["empty.jsonl:2"]),
        ('{"question": "1+1"}\n', ["empty.jsonl:1", "answer"]),
    ],
)
def test_malformed_data_is_named_by_file_line_and_field(
    text: str, named: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "empty.jsonl"
    data.write_text(text)
    line = refused(capsys, write_config(tmp_path, model=model, tasks={"rows": {"kind": "jsonl", "env": "math", "path": str(data)}}))
    assert all(word in line for word in named), line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"env": "digits", "reward": "math"}, ["tasks.rows.reward: reward 'math'", "no 'answer'", "set tasks.rows.answer_field"]),
        ({"env": "digits", "reward": "trl:accuracy_reward"}, ["no 'solution'", "solution, for example '\\boxed{{{answer}}}'"]),
        ({"env": "digits", "options": {"foo": 1}}, ["tasks.rows.options", "unknown option 'foo'"]),
        ({"env": "math", "answer_field": "question", "options": {"foo": 1}}, ["tasks.rows.options", "unknown option 'foo'"]),
        ({"env": "code", "options": {"attempts": 2}}, ["tasks.rows.options.attempts is for env=code_attempts"]),
        ({"env": "code", "options": {"foo": 1}}, ["tasks.rows.options", "unknown option 'foo'"]),
    ],
)
def test_rows_have_what_their_reward_needs(
    change: dict[str, object], named: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"question": "1+1"}\n')
    line = refused(capsys, write_config(tmp_path, model=model, tasks={"rows": {"kind": "jsonl", "path": str(data), **change}}))
    assert all(word in line for word in named), line
    assert not (tmp_path / "runs").exists()


def test_a_missing_model_is_named(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, write_config(tmp_path, model=model), "model.path=no/such/model")
    assert "no/such/model" in line
    assert not (tmp_path / "runs").exists()


def test_everything_that_is_missing_is_named_behind_settings_and_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(ROOT / "configs" / "cwm_32b.yaml"), "--dry-run"]) == 2
    printed = capsys.readouterr()
    assert "context_length: 131072" in printed.out and "# learner    64 ranks" in printed.out
    (line,) = printed.err.splitlines()
    assert line.startswith("rl train: missing: ") and line.count("missing") == 1
    for key in ("model.path models/cwm", "tasks.swe.path", "tasks.competitive.path", "tasks.math.path"):
        assert key in line


def test_a_context_without_room_for_a_reply_is_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, write_config(tmp_path, model=model), "model.context_length=48")
    assert "model.context_length is 48" in line and "model.max_prompt_tokens=48" in line


def test_an_unsupported_architecture_is_named(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in model.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**settings, "model_type": "mamba"}))
    line = refused(capsys, write_config(tmp_path, model=other))
    assert "mamba" in line and "cwm" in line


def test_a_run_folder_that_cannot_be_made_is_named(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "run.dir /proc/x: cannot write the folder of the run" in refused(capsys, write_config(tmp_path, model=model), "run.dir=/proc/x")


def test_a_resume_with_other_settings_names_them_before_it_starts(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = write_config(tmp_path, model=model), tmp_path / "runs" / "tiny"
    prepare_run(run)
    before = (run / "run.json").read_text()
    (run / "config.yaml").write_text(dump_config(load_config([config])))
    line = refused(capsys, config, "--resume", "sampling.max_tokens=5", "run.steps=9", "rollout.samples_per_prompt=2")
    assert "sampling.max_tokens is 5 and was 6" in line and "rollout.samples_per_prompt is 2 and was 4" in line
    assert "steps" not in line and (run / "run.json").read_text() == before


def test_a_taken_run_name_needs_resume_or_clean(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, model=model)
    prepare_run(tmp_path / "runs" / "tiny")
    line = refused(capsys, config)
    assert "--resume" in line and "--clean" in line


def test_there_must_be_something_to_resume(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, write_config(tmp_path, model=model), "--resume")
    assert "--resume" in line
    assert not (tmp_path / "runs").exists()


def test_a_config_that_is_not_yaml_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("run: {name: x\n")
    assert "broken.yaml" in refused(capsys, path)
    path.write_text(yaml.safe_dump(["not", "a", "mapping"]))
    assert "broken.yaml" in refused(capsys, path)
