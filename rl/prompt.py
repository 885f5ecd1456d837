"""Messages to token ids and back: the only place where a chat template is applied.

Imports neither torch nor transformers, so that a rollout worker stays small: the checkpoint's `tokenizer.json` is run by the
`tokenizers` library and its chat template by a sandboxed jinja2, the way transformers does it. Token in, token out: ids that
the policy sampled are never made again from text; `render_continuation` only gives the ids that follow them.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from environments.records import Message
from environments.traces.text import FRAME_TOKENS

TURN_END_TOKENS = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end_of_text|>")
"""End tokens by text: stop tokens wherever the vocabulary has them as special tokens, besides those that the checkpoint lists."""
_MARK = re.compile("\ue000([0-9]+)\ue001")
"""Stands for the text of a special token inside a message while the template is applied."""


class PrefixBroken(Exception):
    """The chat template would rewrite earlier turns, so sampled tokens cannot be continued: start a new sample."""


class ChatTokenizer:
    """A checkpoint's tokenizer and chat template."""

    def __init__(self, backend: Tokenizer, *, template: str, special_texts: Mapping[str, str], end_ids: Sequence[int] = ()) -> None:
        """`special_texts` are the template's variables such as bos_token; `end_ids` are the checkpoint's own end tokens."""
        self._backend = backend
        self._template = _environment().from_string(template)
        self._variables = dict(special_texts)
        special = {int(index): token.content for index, token in backend.get_added_tokens_decoder().items() if token.special}
        self._special = tuple(text for text in special.values() if text not in FRAME_TOKENS)
        self._in_traces = {index: text for index, text in special.items() if text in FRAME_TOKENS}
        """Special tokens that are a part of messages: those of execution traces, where the vocabulary has them. They forge no turn."""
        named = (*TURN_END_TOKENS, special_texts.get("eos_token", ""))
        found = (backend.token_to_id(text) for text in named if text in special.values())
        self.stop_ids = tuple(sorted({*end_ids, *(token_id for token_id in found if token_id is not None)}))
        """Every id that ends a completion, ascending."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @property
    def largest_id(self) -> int:
        """Largest id that text or the template may become, or that ends a completion."""
        return max(*self._backend.get_vocab(with_added_tokens=True).values(), *self.stop_ids)

    def token_id(self, text: str) -> int:
        """Id of one token by its text; ValueError when there is no such token."""
        found = self._backend.token_to_id(text)
        if found is None:
            raise ValueError(f"sampling.stop_tokens: {text!r} is not a token of this model's tokenizer; name a single token")
        return int(found)

    def encode_chat(self, messages: Sequence[Message], *, generation_prompt: bool) -> list[int]:
        """Ids of the templated messages. Text of a special token inside a message stays text, so that it cannot forge a turn, but for the
        tokens of execution traces."""
        text = self._apply_template(messages, generation_prompt=generation_prompt)
        shown = [message for message in messages if message.role != "tool"]
        if len(shown) < len(messages) and text == self._apply_template(shown, generation_prompt=generation_prompt):
            raise ValueError("the model's chat template leaves out messages of role tool: the policy would never see what a tool said")
        pieces = _MARK.split(text)
        ids: list[int] = []
        for index, piece in enumerate(pieces):
            ids += self.encode(piece) if index % 2 == 0 else self._encode_literal(self._special[int(piece)])
        return ids

    def _apply_template(self, messages: Sequence[Message], *, generation_prompt: bool) -> str:
        rows = [self._row(message) for message in messages]
        try:
            return self._template.render(messages=rows, add_generation_prompt=generation_prompt, **self._variables)
        except TemplateError as error:
            raise ValueError(f"the model's chat template refuses messages with roles {[m.role for m in messages]}: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; special tokens in it become their ids, none are added."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens, but for those of execution traces."""
        pieces: list[str] = []
        start = 0
        for position, index in enumerate(ids):
            if index in self._in_traces:
                pieces += [self._plain(ids[start:position]), self._in_traces[index]]
                start = position + 1
        return "".join((*pieces, self._plain(ids[start:])))

    def _plain(self, ids: Sequence[int]) -> str:
        return str(self._backend.decode(list(ids), skip_special_tokens=True)) if ids else ""

    def _encode_literal(self, text: str) -> list[int]:
        """Ids of a special token's text as ordinary characters."""
        return list(self._literal_backend.encode(text, add_special_tokens=False).ids)

    @cached_property
    def _literal_backend(self) -> Tokenizer:
        backend = Tokenizer.from_str(self._backend.to_str())
        backend.encode_special_tokens = True
        return backend

    def _row(self, message: Message) -> dict[str, str]:
        content = _MARK.sub("", message.content)
        for index, special in enumerate(self._special):
            content = content.replace(special, f"\ue000{index}\ue001")
        row = {"role": message.role, "content": content}
        return row if message.name is None else row | {"name": message.name}


class Renderer:
    """Renders conversations for one model."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self.stop_ids = tokenizer.stop_ids

    def render_prompt(self, messages: Sequence[Message]) -> np.ndarray:
        """int32[P]: the conversation, followed by the header of the assistant's next turn."""
        return np.asarray(self._tokenizer.encode_chat(messages, generation_prompt=True), np.int32)

    def render_continuation(self, messages: Sequence[Message], *, after: Sequence[Message], closed: bool = True) -> np.ndarray:
        """int32[P]: the ids that follow the sampled tokens of the last message of `after`, up to the next assistant header.

        `closed` says whether those sampled tokens ended with a stop token; if not (the completion was cut off), the ids start
        with the template's own. Raises PrefixBroken when the longer conversation is not an extension of the shorter one.
        """
        if not after or after[-1].role != "assistant":
            raise ValueError("after: the conversation before a continuation must end with the assistant's message")
        before = self._tokenizer.encode_chat(after, generation_prompt=False)
        whole = self._tokenizer.encode_chat((*after, *messages), generation_prompt=True)
        if whole[: len(before)] != before:
            raise PrefixBroken("the chat template rewrites earlier turns when messages are added")
        end = next((i for i in range(len(before) - 1, -1, -1) if before[i] in self.stop_ids), None)
        opened = len(self._tokenizer.encode_chat(after[:-1], generation_prompt=False))
        if end is None or end < opened:
            raise PrefixBroken("the chat template closes no assistant turn with a stop token")
        return np.asarray(whole[end + 1 if closed else end :], np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of ids, as `ChatTokenizer.decode`."""
        return self._tokenizer.decode([int(token_id) for token_id in ids])


def load_tokenizer(path: str | Path) -> ChatTokenizer:
    """The tokenizer of a checkpoint folder.

    Raises ValueError when the folder lacks `tokenizer.json` or a chat template.
    """
    folder = Path(path)
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"model.path {folder}: no tokenizer.json in it; save the model's fast tokenizer beside its weights")
    settings = _json(folder / "tokenizer_config.json")
    template = _chat_template(folder)
    if template is None:
        raise ValueError(
            f"model.path {folder}: its tokenizer has no chat template; add chat_template.jinja, or use an instruction-tuned model"
        )
    try:
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises bare Exception on a malformed file
        raise ValueError(f"model.path {folder}: tokenizer.json cannot be read ({error})") from error
    backend.no_truncation()
    backend.no_padding()
    special_texts = {
        key: _token_text(value) for key, value in settings.items() if key.endswith("_token") and value and not isinstance(value, bool)
    }
    return ChatTokenizer(backend, template=template, special_texts=special_texts, end_ids=checkpoint_end_ids(folder))


def tokenizer_hashes(path: str | Path) -> tuple[str, str]:
    """16 hexadecimal digits each of a checkpoint's tokenizer and of its chat template."""
    folder = Path(path)
    contents = (folder / "tokenizer.json").read_bytes(), (_chat_template(folder) or "").encode()
    tokenizer, template = (hashlib.sha256(content).hexdigest()[:16] for content in contents)
    return tokenizer, template


def checkpoint_end_ids(folder: Path) -> tuple[int, ...]:
    """End tokens that a checkpoint lists in generation_config.json and config.json (CWM lists three), ascending."""
    ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        listed = _json(folder / name).get("eos_token_id")
        ids.update(listed if isinstance(listed, list) else [] if listed is None else [listed])
    return tuple(sorted(ids))


def _chat_template(folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    template = file.read_text(encoding="utf-8") if file.is_file() else _json(folder / "tokenizer_config.json").get("chat_template")
    return template if isinstance(template, str) else None


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"model.path {file.parent}: {file.name} is not valid JSON ({error})") from error
    return value if isinstance(value, dict) else {}


def _token_text(value: Any) -> str:
    """Older checkpoints store a special token as an object with its settings."""
    return str(value["content"] if isinstance(value, dict) else value)


def _environment() -> ImmutableSandboxedEnvironment:
    """The template environment that Hugging Face chat templates are written for."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _raise_exception(message: str) -> None:
    raise TemplateError(message)
