"""The supervised stage: what carries loss, and that it learns."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from environments.records import Message
from rl.model import build_tiny_cwm, load_model, save_model
from rl.prompt import load_tokenizer
from rl.quickstart_base import slip
from rl.tokenizer import build_tiny_tokenizer
from rl.warm_start import SftExample, make_trainer, tokenize_example, warm_start
from tests.ring import ROOT

EXAMPLES = [
    SftExample(prompt=(Message(role="user", content=f"{letter}?"),), answer=letter.upper() * (1 + index % 3))
    for index, letter in enumerate("abcdefgh")
]


@pytest.fixture
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """A learner tested in this process leaves its rank in the environment."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("warm") / "blank"
    tokenizer = build_tiny_tokenizer()
    save_model(build_tiny_cwm(tokenizer, hidden=32, layers=2, heads=2, kv_heads=1), tokenizer, folder)
    return folder


def _answer_loss(folder: Path, example: SftExample) -> float:
    """Mean negative logprob of answer and end token, nats."""
    tokens = tokenize_example(example, tokenizer=load_tokenizer(folder))
    ids, mask = list(tokens.token_ids), tokens.mask
    with torch.no_grad():
        logprobs = load_model(folder, dtype="float32")(torch.tensor([ids])).logits[0].log_softmax(-1)
    positions = [i for i, in_answer in enumerate(mask) if in_answer]
    return -sum(float(logprobs[i - 1, ids[i]]) for i in positions) / len(positions)


@pytest.mark.usefixtures("no_launcher")
def test_prompt_tokens_carry_no_loss(blank: Path, tmp_path: Path) -> None:
    trainer, _ = make_trainer(
        blank, examples=EXAMPLES, scratch=tmp_path, steps=1, batch_size=8, learning_rate=1e-3, warmup_steps=0, seed=0, dtype="float32"
    )
    batch = next(iter(trainer.get_train_dataloader()))
    tokenizer = load_tokenizer(blank)
    learned = []
    for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        kept = [i for i, label in enumerate(labels) if label != -100]
        assert [labels[i] for i in kept] == [ids[i] for i in kept]
        assert ids[kept[-1]] == tokenizer.token_id("<|eot_id|>")
        learned.append(tokenizer.decode([ids[i] for i in kept]))
    assert sorted(learned) == sorted(example.answer for example in EXAMPLES)


@pytest.mark.usefixtures("no_launcher")
def test_examples_stay_in_their_order_when_asked(blank: Path, tmp_path: Path) -> None:
    trainer, _ = make_trainer(
        blank,
        examples=EXAMPLES,
        scratch=tmp_path,
        steps=4,
        batch_size=2,
        learning_rate=1e-3,
        warmup_steps=0,
        seed=0,
        dtype="float32",
        shuffle=False,
    )
    rows = [row for batch in trainer.get_train_dataloader() for row in batch["input_ids"].tolist()]
    tokenizer = load_tokenizer(blank)
    assert [tokenizer.decode(row) for row in rows] == [
        tokenizer.decode(tokenize_example(example, tokenizer=tokenizer).token_ids) for example in EXAMPLES
    ]


def test_an_example_is_the_prompt_of_the_rl_stage_and_its_answer(blank: Path) -> None:
    tokenizer = load_tokenizer(blank)
    example = tokenize_example(EXAMPLES[1], tokenizer=tokenizer)
    prompt = tokenizer.encode_chat(EXAMPLES[1].prompt, generation_prompt=True)
    assert example.token_ids == (*prompt, tokenizer.token_id("B"), tokenizer.token_id("B"), tokenizer.token_id("<|eot_id|>"))
    assert example.mask == (0,) * len(prompt) + (1,) * 3


def test_training_learns_repeats_and_leaves_only_the_checkpoint(blank: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = {"steps": 80, "batch_size": 8, "learning_rate": 1e-2, "warmup_steps": 5, "seed": 1}
    first, second = (
        warm_start(model_path=blank, examples=EXAMPLES, out=tmp_path / name, **settings)  # type: ignore[arg-type]
        for name in ("first", "second")
    )
    assert capfd.readouterr().out == ""
    before, after = (sum(_answer_loss(folder, example) for example in EXAMPLES) / len(EXAMPLES) for folder in (blank, first))
    assert before > 3.0
    assert after < 0.2
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


def test_bfloat16_checkpoints_are_saved_in_bfloat16(blank: Path, tmp_path: Path) -> None:
    out = warm_start(
        model_path=blank,
        examples=EXAMPLES,
        out=tmp_path / "out",
        steps=2,
        batch_size=4,
        learning_rate=1e-3,
        warmup_steps=1,
        seed=0,
        dtype="bfloat16",
    )
    assert (out / "model.safetensors").stat().st_size < 0.6 * (blank / "model.safetensors").stat().st_size
    assert load_tokenizer(out).stop_ids == load_tokenizer(blank).stop_ids


def test_ranks_of_a_launcher_are_not_waited_for(blank: Path, tmp_path: Path) -> None:
    """In a process of its own: the libraries read the environment once."""
    program = (
        "from environments.records import Message; from rl.warm_start import SftExample, warm_start; from pathlib import Path\n"
        "examples = [SftExample(prompt=(Message(role='user', content='a?'),), answer='A')]\n"
        f"warm_start(model_path={str(blank)!r}, examples=examples, out=Path({str(tmp_path / 'out')!r}), steps=1, batch_size=1, "
        "learning_rate=1e-3, warmup_steps=0, seed=0)\n"
    )
    environment = {**os.environ, "LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}
    made = subprocess.run([sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_no_examples_is_an_error(blank: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no examples"):
        warm_start(model_path=blank, examples=[], out=tmp_path / "out", steps=1, batch_size=1, learning_rate=1e-3, warmup_steps=0, seed=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("solution", ["\\boxed{-3}", "\\boxed{0}", "```\n31\n```", "```python\ndef f(x):\n    return x*3+2\n```"])
def test_a_slip_changes_one_number_and_keeps_the_form(solution: str) -> None:
    rng = random.Random(0)
    for _ in range(50):
        wrong = slip(solution, rng)
        assert wrong != solution
        assert "".join(c for c in wrong if not c.isdigit()) == "".join(c for c in solution if not c.isdigit())
    assert slip("no number", rng) == "no number"
