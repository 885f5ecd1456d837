"""Repository tasks round the whole ring: scripted policies, warm start and `rl env check`, in real containers."""

import asyncio
import json
import random
import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.load import load_config
from environments.containers.make import make_containers, use_containers
from environments.sources.swe_tasks import SweSource
from environments.swe.factory.gold import restoring_patch
from environments.swe.folder import read_task, write_task
from environments.swe.images.rootfs import ensure_python_image
from environments.swe.records import Patch, TreeChange
from environments.swe.tool_bodies import Edit
from environments.swe.tool_format import parse_call
from examples.short_functions import write_repositories
from examples.short_functions_base import demonstrations, episode, save_blank, unused_functions
from rl.authoring.records import RULE_NAMES
from rl.cli import main
from rl.demonstrations import play_demonstrations
from rl.log.query import RunLog
from rl.prompt import load_tokenizer
from rl.records import Sampling
from tests.containers_host import engine
from tests.history_run import settings_as_found
from tests.ring import make_tiny_model, metrics, rl, write_config
from tests.test_swe_source import make_task

__all__ = ["engine", "settings_as_found"]
pytestmark = pytest.mark.timeout(400)
TEST = "from sums import add\n\n\ndef test_add():\n    assert add({a}, {b}) == {c}\n"


@pytest.fixture(scope="module")
def tasks(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tasks that differ in their tests."""
    image = asyncio.run(_image())
    root = tmp_path_factory.mktemp("repair") / "tasks"
    for number in range(1, 5):
        test = TEST.format(a=number, b=number + 1, c=2 * number + 1).encode()
        changes = (TreeChange(path=b"test_sums.py", mode=0o100644, data=test),)
        write_task(make_task(f"sums-{number}", image=image, test_changes=changes, test_seconds=60.0), root / f"sums-{number}")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


async def _image() -> str:
    containers = make_containers()
    try:
        return await ensure_python_image(containers)
    finally:
        await containers.close()


def config_for(folder: Path, *, engine: str, model: Path, tasks: Path, **sections: Mapping[str, Any]) -> Path:
    """A run on the tasks, two of them held out."""
    path = write_config(
        folder,
        model=model,
        run={"steps": 1},
        model_={},
        containers={"host": engine, "memory_mb": 256, "disk_mb": 16},
        rollout={"prompts_per_step": 2, "samples_per_prompt": 2, "max_turns": 4},
        sampling={"max_tokens": 300},
        **sections,
    )
    config = yaml.safe_load(path.read_text())
    del config["model_"]
    config["model"] |= {"context_length": 2048, "max_prompt_tokens": 512}
    options = {"tool_docs": "none"}
    config["tasks"] = {"repair": {"kind": "swe", "env": "swe", "path": str(tasks), "heldout": 2, "options": options}}
    path.write_text(yaml.safe_dump(config))
    return path


def scripted(folder: Path, policy: str, *, tasks: Path) -> dict[str, str]:
    script = folder / f"{policy}.json"
    folder.mkdir(parents=True, exist_ok=True)
    assert main(["swe", "script", str(tasks), "--policy", policy, "--out", str(script)]) == 0
    return {"engine": "scripted", "script": str(script)}


def test_the_oracle_passes_every_task_and_doing_nothing_none(
    engine: str, model: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The oracle strictly on-policy with `rl train`, doing nothing asynchronously. What was played can be graded and played again."""
    folder = tmp_path / "oracle"
    rl("train", config_for(folder, engine=engine, model=model, tasks=tasks, generator=scripted(folder, "oracle", tasks=tasks)))
    run = folder / "runs" / "tiny"
    assert [(e.passed, e.graded) for e in metrics(run).evals] == [(2, 2), (2, 2)]
    with RunLog(run) as log:
        rows = list(log.query("SELECT status, stop_reason, n_turns, outcome FROM rollouts").rows)
        facts = list(log.query("SELECT image_digest, len(sandbox_refs), log FROM rollouts JOIN scores USING (rollout_id)").rows)
        messages = [text for (text,) in log.query("SELECT text FROM turns WHERE turn IS NULL").rows]
    assert {row[:3] for row in rows} == {("ok", "done", 2)}
    assert all("+    return a + b" in json.loads(row[3])["patch"] for row in rows)
    assert len(facts) == len(rows) and all(digest.startswith("sha256:") and containers == 1 for digest, containers, _ in facts)
    assert all(text.startswith("verdict: passed: all ") and "passed test_sums.py::test_add (" in text for _, _, text in facts)
    assert not any("test_add" in message for message in messages), "the policy is shown nothing of the hidden tests"
    capsys.readouterr()
    assert main(["rescore", str(run), "--reward", "cwm_swe", "--json"]) == 0
    rescored = json.loads(capsys.readouterr().out)
    assert rescored["scored"] == len(rows) and [source["after"]["pass_rate"] for source in rescored["sources"]] == [1.0, 1.0]
    assert main(["replay", str(run), "00000000-1"]) == 0
    folder = tmp_path / "noop"
    noop = config_for(folder, engine=engine, model=model, tasks=tasks, generator=scripted(folder, "noop", tasks=tasks))
    rl("train", noop, "rollout.max_staleness=1")
    assert [(e.passed, e.graded) for e in metrics(folder / "runs" / "tiny").evals] == [(0, 2), (0, 2)]
    with RunLog(folder / "runs" / "tiny") as log:
        assert {row for row in log.query("SELECT status, stop_reason, outcome FROM rollouts").rows} == {("policy_fail", "script_end", None)}


def test_a_warm_start_plays_the_gold_patches(engine: str, model: Path, tasks: Path, tmp_path: Path) -> None:
    warm = {"steps": 2, "batch_size": 2, "n_examples": 2}
    output = rl("train", config_for(tmp_path, engine=engine, model=model, tasks=tasks, warm_start=warm))
    assert "playing 2 demonstrations" in output and "2 supervised steps on 2 examples" in output
    assert "left out" not in output


def test_the_episodes_of_the_short_base_are_those_of_the_oracle(engine: str, tasks: Path, tmp_path: Path) -> None:
    """Token for token, as far as a model could see a difference."""
    rng = random.Random(0)
    write_repositories(tmp_path / "short", repositories=1, modules=2, seed=0)
    made = list(islice(demonstrations(unused_functions(tmp_path / "short", rng), rng), 3))
    image = read_task(tasks / "sums-1").image
    for number, example in enumerate(made):
        edit = Edit.read(parse_call(example.answer, tool_format="cwm").body)
        source = example.prompt[0].content.split("\n", 2)[2]
        call = re.search(r"(f\(.*\)) gives .*, not (.*)", example.prompt[0].content)
        assert call
        broken, fixed, test = (
            TreeChange(path=path.encode(), mode=0o100644, data=text.encode())
            for path, text in (
                (edit.path, source),
                (edit.path, source.replace(edit.search, edit.replace)),
                ("test_f.py", f"from {edit.path[:-3]} import f\n\n\ndef test_f():\n    assert {call[1]} == {call[2]}\n"),
            )
        )
        task = make_task(
            f"short-{number}",
            image=image,
            instruction=example.prompt[0].content,
            overlay=(broken,),
            gold=restoring_patch(broken=broken, fixed=fixed),
            fail_to_pass=("test_f.py::test_f",),
            test_changes=(test,),
            test_seconds=60.0,
        )
        write_task(task, tmp_path / "tasks" / task.id)
    save_blank(tmp_path / "model")
    config = load_config(["configs/swe_short.yaml"], [f"tasks.repair.path={tmp_path / 'tasks'}", f"containers.host={engine}"])
    use_containers(config.containers)
    tokenizer = load_tokenizer(tmp_path / "model")
    found = SweSource("repair", config=config.tasks["repair"])
    problems = [found.problem(number) for number in range(3)]
    played = asyncio.run(play_demonstrations(config, problems, tokenizer=tokenizer, sampling=Sampling(max_tokens=40), say=print))
    assert not played.dropped
    assert list(played.examples) == [episode(example, tokenizer) for example in made]


def test_the_environment_holds_the_rules_of_all_environments(
    engine: str, model: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["env", "check", "swe", "--config", str(config_for(tmp_path, engine=engine, model=model, tasks=tasks)), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert [rule["rule"] for rule in report["rules"]] == list(RULE_NAMES)
    assert status == 0 and [rule["result"] for rule in report["rules"]] == ["holds"] * len(RULE_NAMES), report


def test_a_missing_image_is_told_before_the_run(engine: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "tasks"
    for number in range(3):
        write_task(make_task(f"sums-{number}", image="codeworld-rl-test:none", gold=Patch(data=b"")), root / f"sums-{number}")
    assert main(["train", str(config_for(tmp_path, engine=engine, model=model, tasks=root)), "--dry-run"]) != 0
    said = capsys.readouterr().err
    assert "tasks.repair: task sums-0: " in said and "codeworld-rl-test:none" in said
