"""Corpora for the supervised stage: JSON lines of the shapes that TRL knows, read as tokens with a mask of what is learned.

| a row has | what is learned |
|---|---|
| `text` | all of it: raw text with the model's special tokens, for mid-training |
| `prompt`, `completion`: texts | the completion, raw text behind the raw prompt |
| `prompt`, `completion`: messages | the completion's one message and its end token, in the model's chat template |

Other fields are left alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from environments.records import Json, Message, Role
from environments.sources.base import random_stream
from environments.sources.jsonl import read_rows
from rl.prompt import ChatTokenizer
from rl.records import TokenExample

_FIELD = "warm_start.corpus"
_ROLES = get_args(Role)


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusExamples:
    """What a supervised stage gets of its corpora."""

    examples: tuple[TokenExample, ...]
    too_long: int
    """Rows of more tokens than the context has."""
    n_rows: int
    """Rows of all files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusRow:
    """One row."""

    prompt: tuple[Message, ...] | str
    """Not learned: messages, or raw text, which may be empty."""
    completion: str
    """Text of the assistant's message, or raw text."""


def corpus_examples(paths: Sequence[str], *, tokenizer: ChatTokenizer, n_examples: int, context_length: int, seed: int) -> CorpusExamples:
    """`n_examples` rows drawn by `seed` from all files together, or all of them. Raises ValueError as `read_corpus`, and when none fits."""
    rows = list(read_corpus(paths))
    chosen = random_stream("corpus", seed).permutation(len(rows))[:n_examples]
    made = [_tokenized(rows[int(index)], tokenizer) for index in chosen]
    fitting = tuple(example for example in made if len(example.token_ids) <= context_length)
    if not fitting:
        raise ValueError(f"{_FIELD}: none of {len(made)} rows has at most model.context_length={context_length} tokens: make it larger")
    return CorpusExamples(examples=fitting, too_long=len(made) - len(fitting), n_rows=len(rows))


def read_corpus(paths: Sequence[str]) -> Iterator[CorpusRow]:
    """The rows of all files. Raises ValueError that names file, line and field of one that is of no known shape, and a file without any."""
    for path in paths:
        empty = True
        for line, row in read_rows(Path(path).expanduser(), field=_FIELD):
            empty = False
            yield _row(row, where=f"{path}:{line}")
        if empty:
            raise ValueError(f"{_FIELD}: {path} has no rows")


def _row(row: Mapping[str, Json], *, where: str) -> CorpusRow:
    text, prompt, completion = row.get("text"), row.get("prompt"), row.get("completion")
    if prompt is None and completion is None:
        if not isinstance(text, str) or not text:
            raise ValueError(f"{where}: field 'text' is {text!r}; a row needs a text, or prompt and completion")
        return CorpusRow(prompt="", completion=text)
    if isinstance(prompt, str) and isinstance(completion, str) and completion:
        return CorpusRow(prompt=prompt, completion=completion)
    said, answer = _messages(prompt), _messages(completion)
    if not said or len(answer) != 1 or answer[0].role != "assistant":
        raise ValueError(
            f"{where}: prompt and completion must be two texts, or two lists of messages with role and content, one message of the "
            "assistant in the completion"
        )
    return CorpusRow(prompt=said, completion=answer[0].content)


def _messages(value: Json) -> tuple[Message, ...]:
    """Empty for what is no list of messages."""
    if not isinstance(value, list):
        return ()
    for item in value:
        if not isinstance(item, dict) or item.get("role") not in _ROLES or not isinstance(item.get("content"), str):
            return ()
    return tuple(Message(role=item["role"], content=item["content"]) for item in value)


def _tokenized(row: CorpusRow, tokenizer: ChatTokenizer) -> TokenExample:
    from rl.warm_start import SftExample, tokenize_example  # only now: TRL costs seconds and hundreds of megabytes

    if not isinstance(row.prompt, str):
        return tokenize_example(SftExample(prompt=row.prompt, answer=row.completion), tokenizer=tokenizer)
    prompt, completion = tokenizer.encode(row.prompt), tokenizer.encode(row.completion)
    return TokenExample(token_ids=(*prompt, *completion), mask=(*(0 for _ in prompt), *(1 for _ in completion)))
