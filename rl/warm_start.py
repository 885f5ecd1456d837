"""The supervised stage before RL, through TRL's SFTTrainer, with the loss on the policy's own words only.

CWM is fine-tuned on demonstrations before RL in the same way. Examples are tokenized by the renderer of the RL stage, so the
policy meets the very same prompt ids in both; prompt ids get label -100. The only file that imports trl.
"""

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset, disable_progress_bars, enable_progress_bars
from datasets.utils import are_progress_bars_disabled
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from environments.records import Message
from rl.host_memory import keep_freed_memory
from rl.model import DTYPES, load_model, save_model
from rl.prompt import ChatTokenizer, load_tokenizer
from rl.records import TokenExample

_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True, slots=True)
class SftExample:
    """One demonstration."""

    prompt: tuple[Message, ...]
    answer: str
    """Text of the ideal reply, without special tokens; its end token is added."""


def tokenize_example(example: SftExample, *, tokenizer: ChatTokenizer) -> TokenExample:
    """Ids of prompt, answer and end token, with a mask that is 1 on answer and end token.

    Raises ValueError when the chat template renders the answered prompt differently from the prompt alone.
    """
    prompt_ids = tokenizer.encode_chat(example.prompt, generation_prompt=True)
    answered = (*example.prompt, Message(role="assistant", content=example.answer))
    ids = tokenizer.encode_chat(answered, generation_prompt=False)
    end = next((i for i in range(len(ids) - 1, -1, -1) if ids[i] in tokenizer.stop_ids), -1)
    if ids[: len(prompt_ids)] != prompt_ids or end < len(prompt_ids):
        raise ValueError("the model's chat template does not extend the prompt by the answer and an end token; it cannot be warm-started")
    mask = (*(0 for _ in prompt_ids), *(1 for _ in ids[len(prompt_ids) : end + 1]))
    return TokenExample(token_ids=tuple(ids[: end + 1]), mask=mask)


def warm_start(
    *,
    model_path: str | Path,
    examples: Sequence[SftExample | TokenExample],
    out: Path,
    steps: int,
    batch_size: int,
    learning_rate: float,
    warmup_steps: int,
    seed: int,
    dtype: str = "float32",
    shuffle: bool = True,
    note: Callable[[str], None] = lambda what: None,
) -> Path:
    """Train a checkpoint on demonstrations and write the result to `out`, a Hugging Face folder, complete or not at all.

    Examples are drawn in seeded random order, or as they stand when `shuffle` is false, as many epochs as `steps` batches need; the
    learning rate falls linearly after the warm-up. Weights are trained in float32 (in bfloat16 autocast when `dtype` says so) and saved in
    `dtype`. `note` hears of each step.
    """
    if not examples:
        raise ValueError("warm_start: no examples; the configured tasks must have reference solutions")
    keep_freed_memory()
    with tempfile.TemporaryDirectory(prefix="warm-start-") as scratch, _quiet(), _alone():
        trainer, tokenizer = make_trainer(
            model_path,
            examples=examples,
            scratch=Path(scratch),
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            warmup_steps=warmup_steps,
            seed=seed,
            dtype=dtype,
            shuffle=shuffle,
        )
        trainer.add_callback(_Steps(note, total=steps))
        trainer.train()
        note("saving the model")
        model = trainer.model
        assert isinstance(model, PreTrainedModel)
        torch.nn.Module.to(model, DTYPES[dtype])
        model.config.use_cache = True  # the trainer turned it off for itself
        save_model(model, tokenizer, out)
    return out


def make_trainer(
    model_path: str | Path,
    *,
    examples: Sequence[SftExample | TokenExample],
    scratch: Path,
    steps: int,
    batch_size: int,
    learning_rate: float,
    warmup_steps: int,
    seed: int,
    dtype: str,
    shuffle: bool = True,
) -> tuple[SFTTrainer, PreTrainedTokenizerBase]:
    """TRL's trainer over the tokenized examples, and the tokenizer to save beside the trained weights."""
    renderer_tokenizer = load_tokenizer(model_path)
    tokenized = [e if isinstance(e, TokenExample) else tokenize_example(e, tokenizer=renderer_tokenizer) for e in examples]
    data = Dataset.from_dict({"input_ids": [e.token_ids for e in tokenized], "completion_mask": [e.mask for e in tokenized]})
    tokenizer = AutoTokenizer.from_pretrained(model_path, local_files_only=True)
    config = SFTConfig(
        output_dir=str(scratch),
        max_steps=steps,
        per_device_train_batch_size=min(batch_size, len(examples)),
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        lr_scheduler_type="linear",
        completion_only_loss=True,
        max_length=None,
        bf16=dtype == "bfloat16",
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        data_seed=seed,
        train_sampling_strategy="random" if shuffle else "sequential",
        logging_steps=10,
        report_to="none",
        save_strategy="no",
        push_to_hub=False,
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )
    model = load_model(model_path, dtype="float32").train()
    trainer = SFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer)
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    return trainer, tokenizer


class _Steps(TrainerCallback):
    """Tells which step begins."""

    def __init__(self, note: Callable[[str], None], *, total: int) -> None:
        self._note, self._total = note, total

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Called by the trainer."""
        self._note(f"supervised step {state.global_step + 1} of {self._total}")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Hide what a launcher (torchrun, a scheduler) says about ranks: the libraries would wait for others, and this trainer has none."""
    kept = {name: os.environ.pop(name) for name in _LAUNCHER if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the progress bars and notices of transformers, datasets and trl for a while."""
    verbosity, bars_were_off = transformers.logging.get_verbosity(), are_progress_bars_disabled()
    noisy = [logging.getLogger(name) for name in ("trl", "accelerate", "datasets")]
    levels = [logger.level for logger in noisy]
    transformers.logging.set_verbosity_error()
    disable_progress_bars()
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)
        transformers.logging.set_verbosity(verbosity)
        if not bars_were_off:
            enable_progress_bars()
