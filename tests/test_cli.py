"""The console command: routing, messages, exit statuses."""

import json
import os
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from configs.load import load_config
from rl.cli import main
from rl.errors import PartDied, RunFailed

ROOT = Path(__file__).parent.parent
CONFIG = """
run: {name: demo}
model: {path: a/model}
tasks: {t: {kind: programs, env: math, options: {kind: addition}}}
"""


def make_files(folder: Path) -> None:
    """The configuration, and what the checks before a run look at."""
    (folder / "run.yaml").write_text(CONFIG)
    (folder / "a").mkdir()
    (folder / "a/model").symlink_to(ROOT / "configs/base/tiny-cwm")


@pytest.fixture
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    make_files(tmp_path)
    return "run.yaml"


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, **functions: Any) -> None:
    """Put a module in the place of one that a command imports lazily: the command line is tested without starting a run."""
    fake = types.ModuleType(module)
    for name, function in functions.items():
        setattr(fake, name, function)
    monkeypatch.setitem(sys.modules, module, fake)


def rl(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "rl.cli", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def test_dry_run_prints_a_configuration_that_loads_back_and_writes_nothing(config_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", config_file, "--dry-run", "run.steps=7", "learner.betas=[0.5,0.6]"]) == 0
    text = capsys.readouterr().out
    assert sorted(os.listdir()) == ["a", config_file]
    Path("resolved.yaml").write_text(text)
    assert load_config([Path("resolved.yaml")]) == load_config([Path(config_file)], ["run.steps=7", "learner.betas=[0.5,0.6]"])
    assert "# batch      16 prompts a step x 8 samples a prompt = 128 rollouts" in text


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("model.path=nowhere/model", "model.path nowhere/model: no such folder"),
        ("model.path=package:nothing", "model.path package:nothing: unknown"),
        ("tasks.t.reward=maths", "tasks.t.reward: unknown reward 'maths'"),
        ("tasks.t.reward=code", "tasks.t.reward: reward 'code' cannot grade"),
        ("tasks.t.env=json:dumps tasks.t.reward=math", "tasks.t.env: environment 'json:dumps' cannot be made"),
        ("tasks.t.options={kind: addition, foo: 1}", "unknown option 'foo'"),
        ("tasks.more={kind: jsonl, env: math, path: none.jsonl}", "tasks.more.path: cannot read none.jsonl"),
    ],
)
def test_dry_run_checks_data_rewards_and_model(word: str, says: str, config_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = word.split(" ") if "{" not in word else [word]
    assert main(["train", config_file, "--dry-run", *words]) == 2
    captured = capsys.readouterr()
    assert says in captured.err and captured.err.count("\n") == 1
    assert captured.out.startswith("run:\n"), "settings and plan are printed before what is wrong"


def test_dry_run_is_light(tmp_path: Path) -> None:
    make_files(tmp_path)
    code = (
        "import sys\nfrom rl.cli import main\nassert main(['train', 'run.yaml', '--dry-run']) == 0\n"
        "heavy = {'torch', 'ray', 'deepspeed', 'transformers', 'trl'} & set(sys.modules)\nsys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_dry_run_as_json(config_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", config_file, "--json", "--dry-run", "rollout.prompts_per_step=4"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["config"]["run"]["name"] == "demo"
    assert (printed["plan"]["prompts_per_step"], printed["plan"]["rollouts_per_step"]) == (4, 32)


@pytest.mark.parametrize(
    ("words", "resume", "clean"),
    [(["--resume"], True, False), (["--clean", "run.steps=3"], False, True), (["run.steps=3"], False, False)],
)
def test_train_routes_options(words: list[str], resume: bool, clean: bool, config_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def train(config: Any, *, resume: bool, clean: bool) -> int:
        calls.append((config.run.steps, resume, clean))
        return 130

    stand_in(monkeypatch, "rl.train", train=train)
    assert main(["train", config_file, *words]) == 130
    assert calls == [(3 if "run.steps=3" in words else 100, resume, clean)]


def test_train_json_keeps_stdout_for_the_result(
    config_file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(config: Any, *, resume: bool, clean: bool) -> int:
        print("step 1")
        return 0

    stand_in(monkeypatch, "rl.train", train=train)
    assert main(["train", config_file, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"run": "runs/demo", "exit_status": 0}
    assert captured.err == "step 1\n"


def test_eval_routes_options_and_prints(config_file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass
    class Report:
        seeds: tuple[int, ...]
        model: Path | None
        samples: int | None
        all_problems: bool

        def to_json(self) -> dict[str, Any]:
            return {"seeds": list(self.seeds), "model": str(self.model), "samples": self.samples, "all": self.all_problems}

        def table(self) -> str:
            return "the table"

    def evaluate_command(
        config: Any, *, model_path: Path | None, samples: int | None, seeds: tuple[int, ...], all_problems: bool
    ) -> Report:
        return Report(seeds, model_path, samples, all_problems)

    stand_in(monkeypatch, "rl.evaluate_model", evaluate_command=evaluate_command)
    assert main(["eval", config_file, "--json", "--model", "out/model", "--samples", "4", "--all", "--seeds", "0,1,2", "run.seed=9"]) == 0
    assert json.loads(capsys.readouterr().out) == {"seeds": [0, 1, 2], "model": "out/model", "samples": 4, "all": True}
    assert main(["eval", config_file, "run.seed=9"]) == 0
    assert capsys.readouterr().out == "the table\n"


def test_log_commands_route_their_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    stand_in(monkeypatch, "rl.log.query", sql_command=lambda run, query, *, as_json: calls.append((run, query, as_json)) or 0)
    stand_in(monkeypatch, "rl.log.show", show_command=lambda run, rollout, *, as_json: calls.append((run, rollout, as_json)) or 0)
    stand_in(monkeypatch, "rl.log.plot", plot_command=lambda run, *, out, as_json: calls.append((run, out, as_json)) or 0)
    assert main(["sql", "demo", "SELECT 1", "--json"]) == main(["show", "demo", "r-1"]) == main(["plot", "demo", "--out", "a.png"]) == 0
    assert calls == [("demo", "SELECT 1", True), ("demo", "r-1", False), ("demo", Path("a.png"), False)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "run.yaml", "run.stepz=3"], "rl train: override 'run.stepz=3': unknown key run.stepz; did you mean run.steps?"),
        (["train", "rum.yaml"], "rl train: configuration file rum.yaml does not exist; did you mean run.yaml?"),
        (["train", "run.yaml", "steps"], "rl train: configuration file steps does not exist"),
        (
            ["eval", "run.yaml", "learner.zero_stage=9"],
            "rl eval: override 'learner.zero_stage=9': learner.zero_stage is 9; it must be one of 1, 2, 3",
        ),
    ],
)
def test_user_errors_are_one_line_and_status_2(
    words: list[str], message: str, config_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", message + "\n")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("data.jsonl, line 3:\n  no field"), 2, "rl train: data.jsonl, line 3: no field"),
        (FileNotFoundError(2, "No such file or directory", "x"), 2, "rl train: [Errno 2] No such file or directory: 'x'"),
        (OSError(28, "No space left on device"), 2, "rl train: [Errno 28] No space left on device"),
        (PartDied("learner rank 0 died"), 1, "rl train: learner rank 0 died"),
        (RunFailed("loss is nan"), 1, "rl train: loss is nan"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_of_a_run(
    error: BaseException, status: int, line: str, config_file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(config: Any, *, resume: bool, clean: bool) -> int:
        raise error

    stand_in(monkeypatch, "rl.train", train=train)
    assert main(["train", config_file]) == status
    assert capsys.readouterr().err.strip() == line


def test_a_defect_keeps_its_traceback(config_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(config: Any, *, resume: bool, clean: bool) -> int:
        raise KeyError("defect")

    stand_in(monkeypatch, "rl.train", train=train)
    with pytest.raises(KeyError, match="defect"):
        main(["train", config_file])
    monkeypatch.setenv("RL_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unknown key"):
        main(["train", config_file, "x.y=1"])


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["fly"],
        ["train"],
        ["train", "run.yaml", "--resume", "--clean"],
        ["train", "run.yaml", "--dry-rum"],
        ["eval", "run.yaml", "--samples", "0"],
        ["eval", "run.yaml", "--seeds", "1,b"],
        ["sql", "demo"],
        ["sql", "demo", "SELECT 1", "extra"],
    ],
)
def test_wrong_usage(words: list[str], config_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "eval", "sql", "show", "plot", "doctor"])
def test_every_command_has_help_and_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_in_a_real_process(tmp_path: Path) -> None:
    make_files(tmp_path)
    good = rl("train", "run.yaml", "--dry-run", cwd=tmp_path)
    assert (good.returncode, good.stderr) == (0, "")
    bad = rl("train", "run.yaml", "run.steps=0", cwd=tmp_path)
    assert (bad.returncode, bad.stdout, bad.stderr) == (2, "", "rl train: run.steps is 0; it must be >= 1\n")
    told = rl("train", "run.yaml", "run.steps=0", cwd=tmp_path, RL_TRACEBACK="1")
    assert told.returncode == 1
    assert "Traceback" in told.stderr
    assert sorted(os.listdir(tmp_path)) == ["a", "run.yaml"]


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    make_files(tmp_path)
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "rl.cli", "train", "run.yaml", "--dry-run"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
