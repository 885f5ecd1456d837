"""What all engines check of a request, and where its samples end."""

from collections.abc import Container
from dataclasses import dataclass

from environments.records import StopReason
from rl.records import Completion, GenerateRequest


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FinishedSample:
    """One finished sample of a request."""

    key: str
    index: int
    """Position in the request's seeds."""
    completion: Completion


def check_request(request: GenerateRequest, *, in_use: Container[str], vocab: int, context_length: int) -> None:
    """Raise ValueError when a request cannot be served as it is. `in_use`: keys of the requests that are being served."""
    key, sampling = request.key, request.sampling
    prompt_P = request.prompt_ids_P
    if key in in_use:
        raise ValueError(f"request key {key!r} is in use; cancel that request or choose another key")
    if not 1 <= len(prompt_P) < context_length:
        raise ValueError(
            f"request {key!r}: prompt_ids_P holds {len(prompt_P)} tokens; with context_length {context_length} it must hold "
            f"1 to {context_length - 1}: drop longer prompts or raise model.context_length"
        )
    if prompt_P.min() < 0 or prompt_P.max() >= vocab:
        raise ValueError(f"request {key!r}: prompt_ids_P holds ids outside 0..{vocab - 1}: check the tokenizer")
    if not request.seeds:
        raise ValueError(f"request {key!r}: seeds is empty; give one seed a sample")
    for name, valid in (
        ("max_tokens", sampling.max_tokens >= 1),
        ("temperature", sampling.temperature >= 0),
        ("top_p", 0 < sampling.top_p <= 1),
        ("top_k", sampling.top_k >= 0),
    ):
        if not valid:
            wanted = "max_tokens >= 1, temperature >= 0, 0 < top_p <= 1, top_k >= 0"
            raise ValueError(f"request {key!r}: sampling.{name} is {getattr(sampling, name)}; use {wanted}")


def token_limit(request: GenerateRequest, *, context_length: int) -> int:
    """Most tokens to sample: max_tokens, or what the context has room for."""
    return min(request.sampling.max_tokens, context_length - len(request.prompt_ids_P))


def end_reason(*, stopped: bool, count: int, max_tokens: int) -> StopReason:
    """Why a sample of `count` tokens has ended: `stopped` by a stop token, else at max_tokens or with a full context."""
    if stopped:
        return StopReason.STOP_TOKEN
    return StopReason.MAX_TOKENS if count == max_tokens else StopReason.CONTEXT_FULL
