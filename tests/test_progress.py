"""What a person sees: lines without a terminal, a table with one, and library chatter in a file."""

import io
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from rl.log.metrics import EvalMetrics
from rl.progress import Progress, redirect_library_noise
from tests.log_fakes import make_metrics


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def plain() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=80), out


def terminal() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=True, width=140, height=50, _environ={"TERM": "xterm"}), out


def test_plain_output_is_one_line_a_step() -> None:
    console, out = plain()
    with Progress("quick", total_steps=5, console=console) as progress:
        progress.step(make_metrics(1))
        progress.step(make_metrics(2, reward_mean=float("nan"), drops={}))
        progress.evaluated(
            EvalMetrics(step=2, time=0.0, split="heldout", source="sums", passed=8, graded=10, ungraded=4, infra=2, ungradable=1)
        )
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    for expected in (
        "step 1/5",
        "reward 0.500",
        "sums=0.500",
        "code=0.250",
        "tokens/s 100",
        "stale 0.5/2",
        "rollout 3.0s",
        "zero_variance 1",
    ):
        assert expected in lines[0]
    assert "reward -" in lines[1] and "drops" not in lines[1]
    assert lines[2] == "heldout sums at step 2: 0.800 [0.490, 0.943] (8/10, 4 ungraded (infra 2, ungradable 1, prompt too long 1))"


def test_the_heartbeat_says_why_and_for_how_long_without_flooding() -> None:
    console, out = plain()
    clock = Clock()
    with Progress("quick", total_steps=5, console=console, clock=clock) as progress:
        for _ in range(70):
            progress.waiting("step 1 waits for rollouts: 3 of 16 groups")
            clock.now += 1
        progress.step(make_metrics(1))
        progress.waiting("step 2 waits for rollouts: 0 of 16 groups")
    lines = [line for line in out.getvalue().splitlines() if "waits" in line]
    assert lines == [
        "waiting 0 s: step 1 waits for rollouts: 3 of 16 groups",
        "waiting 30 s: step 1 waits for rollouts: 3 of 16 groups",
        "waiting 60 s: step 1 waits for rollouts: 3 of 16 groups",
        "waiting 0 s: step 2 waits for rollouts: 0 of 16 groups",
    ]


def test_a_terminal_gets_a_table_with_everything() -> None:
    console, out = terminal()
    with Progress("quick", total_steps=5, console=console) as progress:
        progress.step(make_metrics(1))
        progress.step(make_metrics(2))
        progress.evaluated(EvalMetrics(step=2, time=0.0, split="heldout", source="sums", passed=8, graded=10))
        progress.waiting("step 3 waits for rollouts")
        progress.say("the tasks are hard")
    shown = out.getvalue()
    for expected in (
        "step 2 of 5",
        "reward",
        "tokens/s",
        "train 0.8s",
        "zero_variance 2",
        "0.800 [0.490",
        "step 3 waits",
        "the tasks are hard",
    ):
        assert expected in shown


def test_names_cannot_drive_the_terminal() -> None:
    console, out = plain()
    with Progress("quick", total_steps=5, console=console) as progress:
        progress.step(make_metrics(1, pass_rate={"\x1b[2J[red]": 0.5}))
        progress.say("\x07")
    assert "\x1b" not in out.getvalue() and "\x07" not in out.getvalue()
    assert r"\x1b[2J[red]=0.500" in out.getvalue()


@pytest.fixture
def restored_loggers():
    """The loggers as they were."""
    names = ("ray", "DeepSpeed", "deepspeed", "transformers", "datasets", "huggingface_hub", "torch.distributed", "py.warnings")
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger, logger.__class__, list(logger.handlers), logger.propagate, logger.level) for logger in loggers]
    yield
    logging.captureWarnings(False)
    for logger, kind, handlers, propagate, level in before:
        logger.__class__, logger.handlers, logger.propagate = kind, handlers, propagate
        logger.setLevel(level)


def test_library_noise_goes_to_the_file(tmp_path: Path, restored_loggers: None, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "library.log"
    redirect_library_noise(path)
    redirect_library_noise(path)  # a second call must not double the lines
    late = logging.getLogger("DeepSpeed")
    late.setLevel(logging.WARNING)  # a learner in this process may have turned it down
    late.addHandler(logging.StreamHandler(sys.stdout))  # what its import does
    late.warning("zero stage %d", 3)
    logging.getLogger("transformers.modeling_utils").warning("some weights were not used")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("slow tokenizer", UserWarning, stacklevel=1)
        logging.captureWarnings(False)
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""
    text = path.read_text()
    assert text.count("zero stage 3") == 1
    assert text.count("some weights were not used") == 1


def test_real_imports_stay_quiet_and_their_messages_reach_the_file(tmp_path: Path) -> None:
    path = tmp_path / "library.log"
    code = (
        "import sys, pathlib, warnings\n"
        "from rl.progress import redirect_library_noise\n"
        "redirect_library_noise(pathlib.Path(sys.argv[1]))\n"
        "import transformers\n"
        "transformers.utils.logging.get_logger('transformers.test').warning('from transformers')\n"
        "warnings.warn('from python')\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert found.stdout == "" and found.stderr == ""
    assert "from transformers" in path.read_text() and "from python" in path.read_text()
