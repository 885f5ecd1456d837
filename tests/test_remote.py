"""Calls of another process: what Ray wraps is unwrapped, and what it calls gone is gone."""

import asyncio
import types
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from rl.errors import PartGone, PartUnreachable
from rl.remote import Remote


def answer(error: BaseException | None, *, timeout: float | None = None) -> Any:
    async def reply(*arguments: Any) -> Any:
        if error is not None:
            raise error
        await asyncio.sleep(30)

    actor = types.SimpleNamespace(generate=types.SimpleNamespace(remote=reply))
    return asyncio.run(Remote(actor, name="generator-0.a").call("generate", None, timeout=timeout))


def test_a_generators_error_arrives_without_rays_wrapping() -> None:
    wrapped = RayTaskError("generate", "a long report", ValueError("the prompt has 12 tokens")).as_instanceof_cause()
    with pytest.raises(ValueError) as caught:
        answer(wrapped)
    assert (type(caught.value), str(caught.value)) == (ValueError, "the prompt has 12 tokens")


def test_its_own_timeout_is_not_taken_for_the_calls() -> None:
    wrapped = RayTaskError("generate", "a long report", TimeoutError("the environment")).as_instanceof_cause()
    with pytest.raises(TimeoutError, match="the environment"):
        answer(wrapped, timeout=20)


def test_the_dead_the_silent_and_the_unreachable_are_told_apart() -> None:
    with pytest.raises(PartGone, match=r"generator-0\.a is gone"):
        answer(ActorDiedError())
    with pytest.raises(PartUnreachable):
        answer(ActorUnavailableError("the connection broke", None))
    with pytest.raises(PartGone, match="did not answer generate within 0 s"):
        answer(None, timeout=0.05)
