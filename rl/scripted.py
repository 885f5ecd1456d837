"""The scripted engine: its replies come from a file, whatever the weights are.

A script is a JSON object: task id -> the texts of the assistant's messages, turn by turn. Oracle, no-op and cheating policies go round
the whole ring this way. It keeps the engines' contract: the model's own token ids with the end token of its chat template, the limits
of `max_tokens` and of the context, a version on each token; logprobs are 0, since nothing is drawn. An episode that asks for more than
its script holds gets an empty reply that ends for `script_end`, and ends itself with that reason.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from environments.records import Message, StopReason
from environments.sources.mixture import Mixture
from rl.engines.request import FinishedSample
from rl.prompt import ChatTokenizer
from rl.records import Completion, GenerateRequest

if TYPE_CHECKING:
    import torch

Script = Mapping[str, Sequence[str]]
"""Task id -> replies by turn."""


class ScriptedEngine:
    """Answers every request at the next step."""

    version = 0

    def __init__(self, script: Script, *, tokenizer: ChatTokenizer, context_length: int) -> None:
        """Raises ValueError that names the task of a reply that the tokenizer cannot represent."""
        self._replies = encode_script(script, tokenizer=tokenizer)
        self._end = np.array([turn_end(tokenizer)], np.int32)
        self._context_length = context_length
        self._queue: list[GenerateRequest] = []

    @property
    def busy(self) -> bool:
        """Whether requests wait."""
        return bool(self._queue)

    def submit(self, request: GenerateRequest) -> None:
        """Take a request. Raises ValueError when its context is full already."""
        if len(request.prompt_ids_P) >= self._context_length:
            raise ValueError(
                f"request {request.key!r}: prompt_ids_P holds {len(request.prompt_ids_P)} tokens, and model.context_length is "
                f"{self._context_length}"
            )
        self._queue.append(request)

    def cancel(self, key: str) -> None:
        """Forget a request."""
        self._queue = [request for request in self._queue if request.key != key]

    def step(self) -> tuple[FinishedSample, ...]:
        """All samples of all requests."""
        queue, self._queue = self._queue, []
        return tuple(
            FinishedSample(key=request.key, index=index, completion=self._complete(request))
            for request in queue
            for index in range(len(request.seeds))
        )

    def parameters(self) -> "Mapping[str, torch.Tensor]":
        """It has none."""
        return {}

    def _complete(self, request: GenerateRequest) -> Completion:
        replies = self._replies.get(request.task_id, ())
        if request.turn >= len(replies):
            return self._completion(self._end, StopReason.SCRIPT_END)
        token_ids_T = np.concatenate([replies[request.turn], self._end])
        limit = min(request.sampling.max_tokens, self._context_length - len(request.prompt_ids_P))
        if len(token_ids_T) <= limit:
            return self._completion(token_ids_T, StopReason.STOP_TOKEN)
        reason = StopReason.MAX_TOKENS if limit == request.sampling.max_tokens else StopReason.CONTEXT_FULL
        return self._completion(token_ids_T[:limit], reason)

    def _completion(self, token_ids_T: np.ndarray, reason: StopReason) -> Completion:
        return Completion(
            token_ids_T=token_ids_T.copy(),
            logprobs_T=np.zeros(len(token_ids_T), np.float32),
            versions_T=np.full(len(token_ids_T), self.version, np.int32),
            stop_reason=reason,
        )


def read_script(path: str | Path) -> Script:
    """The script in a file. Raises ValueError that names the file, and the task where something is wrong with its replies."""
    try:
        script = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"generator.script: cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"generator.script: {path} is not JSON text in UTF-8: {error}") from error
    form = '{"task id": ["first reply", "second reply"]}'
    if not isinstance(script, dict):
        raise ValueError(f"generator.script: {path} holds a {type(script).__name__}; it must be an object such as {form}")
    for task, replies in script.items():
        if not isinstance(replies, list) or not all(isinstance(reply, str) for reply in replies):
            raise ValueError(f"generator.script: {path}: task {task!r}: must be a list of texts, as in {form}")
    return script


def check_script(path: str, mixture: Mixture) -> Script:
    """A script that has replies for every problem of the sources that can be counted. Raises ValueError as `read_script` does, and for
    a problem without replies."""
    script = read_script(path)
    for part in mixture.parts:
        for index in range(part.size or 0):
            task = part.source.problem(index).task.id
            if task not in script:
                raise ValueError(f"generator.script: {path} has no replies for {task!r} of tasks.{part.name}: add them, or [] for none")
    return script


def encode_script(script: Script, *, tokenizer: ChatTokenizer) -> dict[str, tuple[np.ndarray, ...]]:
    """The replies as token ids, without the end token. Raises ValueError that names the task of one that is not the text of its ids."""
    encoded = {}
    for task, replies in script.items():
        ids_of = [tokenizer.encode(reply) for reply in replies]
        for turn, (reply, ids) in enumerate(zip(replies, ids_of, strict=True)):
            if tokenizer.decode(ids) != reply:
                raise ValueError(
                    f"generator.script: task {task!r}, reply {turn + 1}: the model's tokenizer has no tokens for this text, so the "
                    f"environment would see another one: {_first_difference(reply, tokenizer.decode(ids))}"
                )
        encoded[task] = tuple(np.array(ids, np.int32) for ids in ids_of)
    return encoded


def turn_end(tokenizer: ChatTokenizer) -> int:
    """The token with which the chat template closes the assistant's turn. Raises ValueError when that is no stop token."""
    said = (Message(role="user", content="a"), Message(role="assistant", content="b"))
    ids = tokenizer.encode_chat(said, generation_prompt=False)
    end = next((token_id for token_id in reversed(ids) if token_id in tokenizer.stop_ids), None)
    if end is None:
        raise ValueError("the model's chat template closes no assistant turn with a stop token, so a scripted reply could not end")
    return end


def _first_difference(text: str, other: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    return f"{text[at : at + 20]!r} would be {other[at : at + 20]!r}"
