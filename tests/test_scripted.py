"""The scripted engine: replies from a file, through the generator service and through `rl train` and `rl eval`."""

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from environments.records import StopReason
from rl.cli import main
from rl.generator import Generator
from rl.log.query import RunLog
from rl.prompt import ChatTokenizer, load_tokenizer
from rl.records import Completion, GenerateRequest, Sampling, WeightBucket, WeightSlice
from rl.scripted import ScriptedEngine, encode_script, read_script
from rl.tokenizer import save_tiny_tokenizer
from rl.weight_sync import DiscardedWeights, WeightSyncError, checksum
from tests.ring import make_tiny_model, metrics, rl, write_config

SCRIPT = {"a": ["first", "second"], "b": []}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tiny_tokenizer(folder)
    return load_tokenizer(folder)


def ask(task: str, turn: int, *, max_tokens: int = 50, prompt: int = 10, samples: int = 2) -> GenerateRequest:
    return GenerateRequest(
        key=f"{task}.{turn}",
        episodes=tuple(f"{task}-{i}" for i in range(samples)),
        prompt_ids_P=np.ones(prompt, np.int32),
        seeds=tuple(range(samples)),
        sampling=Sampling(max_tokens=max_tokens),
        task_id=task,
        turn=turn,
    )


def answers(tokenizer: ChatTokenizer, request: GenerateRequest, *, version: int = 0) -> tuple[Completion, ...]:
    engine = ScriptedEngine(SCRIPT, tokenizer=tokenizer, context_length=100)
    engine.version = version

    async def body() -> tuple[Completion, ...]:
        generator = Generator(engine, lockstep=False, receiver=DiscardedWeights())
        try:
            return await asyncio.wait_for(generator.generate(request), 20)
        finally:
            generator.close()

    return asyncio.run(body())


def test_replies_are_the_scripts_turn_by_turn_in_the_models_tokens(tokenizer: ChatTokenizer) -> None:
    for turn, text in enumerate(SCRIPT["a"]):
        for completion in answers(tokenizer, ask("a", turn), version=7):
            assert completion.token_ids_T.tolist() == [*tokenizer.encode(text), tokenizer.token_id("<|eot_id|>")]
            assert (completion.stop_reason, set(completion.versions_T.tolist())) == (StopReason.STOP_TOKEN, {7})
            assert completion.logprobs_T.tolist() == [0.0] * len(completion.token_ids_T)


@pytest.mark.parametrize(("task", "turn"), [("a", 2), ("b", 0), ("unknown", 0)])
def test_more_than_there_is_gets_an_empty_reply_that_says_so(tokenizer: ChatTokenizer, task: str, turn: int) -> None:
    (completion,) = answers(tokenizer, ask(task, turn, samples=1))
    assert (tokenizer.decode(completion.token_ids_T.tolist()), completion.stop_reason) == ("", StopReason.SCRIPT_END)


def test_limits_cut_a_reply_as_they_cut_a_models(tokenizer: ChatTokenizer) -> None:
    (short,) = answers(tokenizer, ask("a", 0, max_tokens=3, samples=1))
    assert (tokenizer.decode(short.token_ids_T.tolist()), short.stop_reason) == ("fir", StopReason.MAX_TOKENS)
    (full,) = answers(tokenizer, ask("a", 0, prompt=98, samples=1))
    assert (tokenizer.decode(full.token_ids_T.tolist()), full.stop_reason) == ("fi", StopReason.CONTEXT_FULL)
    with pytest.raises(ValueError, match="context_length is 100"):
        answers(tokenizer, ask("a", 0, prompt=100))


@pytest.mark.parametrize("text", ["caf\u00e9", "a <|eot_id|> b"])
def test_text_without_tokens_of_its_own_is_refused_by_task(tokenizer: ChatTokenizer, text: str) -> None:
    with pytest.raises(ValueError, match=r"task 'odd', reply 2"):
        encode_script({"odd": ["fine", text]}, tokenizer=tokenizer)


@pytest.mark.parametrize("content", ["[]", '{"a": "text"}', '{"a": [1]}', "{", None])
def test_a_file_that_is_no_script_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "script.json").write_text(content)
    with pytest.raises(ValueError, match=r"generator.script: .*script.json"):
        read_script(tmp_path / "script.json")


def _bucket(version: int) -> WeightBucket:
    slices = (WeightSlice(name="w", start=0, values=np.arange(8, dtype=np.uint8), count=2),)
    return WeightBucket(version=version, rank=0, index=0, last=True, dtype="float32", slices=slices, checksum=checksum(slices))


def test_weights_are_checked_and_dropped() -> None:
    sums = []
    for bucket in (_bucket(1), dataclasses.replace(_bucket(1), index=1)):
        receiver = DiscardedWeights()
        receiver.begin(1)
        receiver.apply(bucket)
        with pytest.raises(WeightSyncError, match="checksum"):
            receiver.apply(dataclasses.replace(bucket, checksum=bucket.checksum ^ 1))
        with pytest.raises(WeightSyncError, match="version 2"):
            receiver.apply(_bucket(2))
        sums.append(receiver.finish())
    assert len(set(sums)) == 2 and all(len(one) == 16 for one in sums)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


def scripted_run(folder: Path, *, model: Path, script: dict[str, list[str]], **rollout: Any) -> Path:
    """Two training questions and two held-out ones of the digits environment, whose replies a script gives."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"id": f"q{i}", "question": f"{i}?", "answer": str(i)}) + "\n" for i in range(4)))
    (folder / "script.json").write_text(json.dumps(script))
    return write_config(
        folder,
        model=model,
        run={"steps": 2},
        tasks={"digits": {"kind": "jsonl", "env": "digits", "path": str(rows), "heldout": 2}},
        generator={"engine": "scripted", "script": str(folder / "script.json")},
        rollout={"prompts_per_step": 2, "samples_per_prompt": 2, **rollout},
    )


@pytest.mark.timeout(300)
def test_two_policies_go_round_the_ring(model: Path, tmp_path: Path) -> None:
    """One that always passes in lockstep, one that never does asynchronously."""
    config = scripted_run(tmp_path / "right", model=model, script={f"q{i}": [f"is {i}"] for i in range(4)})
    rl("train", config)
    run = tmp_path / "right" / "runs" / "tiny"
    assert [(e.passed, e.graded) for e in metrics(run).evals] == [(2, 2), (2, 2)]
    with RunLog(run) as log:
        said = list(log.query("SELECT DISTINCT task_id, preview, policy_min = policy_max FROM rollouts ORDER BY 1").rows)
    assert said == [(f"q{i}", f"is {i}", True) for i in range(4)]
    output = rl("eval", scripted_run(tmp_path / "wrong", model=model, script={f"q{i}": ["no"] for i in range(4)}, max_staleness=2))
    assert "0/2" in output


def test_what_cannot_be_played_is_told_before_the_run(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, script, named in (
        ("missing", {"q0": ["1"], "q1": ["1"], "q2": ["1"]}, "q3"),
        ("odd", {"q0": ["1"], "q1": ["\u00e9"], "q2": [], "q3": []}, "task 'q1', reply 1"),
    ):
        config = scripted_run(tmp_path / name, model=model, script=script)
        assert main(["train", str(config), "--dry-run"]) == 2
        assert named in capsys.readouterr().err
        assert not (tmp_path / name / "runs").exists()
    assert main(["train", str(config), "--dry-run", "generator.engine=torch"]) == 2
    assert "generator.script" in capsys.readouterr().err
