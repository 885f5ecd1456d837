"""What rollout workers see of a generator in another process."""

import asyncio
import types
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from rl.placement import RemoteGenerator


def test_a_generators_error_arrives_without_rays_wrapping() -> None:
    async def fail(request: Any) -> None:
        raise RayTaskError("generate", "a long report", ValueError("the prompt has 12 tokens")).as_instanceof_cause()

    actor = types.SimpleNamespace(generate=types.SimpleNamespace(remote=fail))
    with pytest.raises(ValueError) as caught:
        asyncio.run(RemoteGenerator(actor).generate(None))  # type: ignore[arg-type]
    assert (type(caught.value), str(caught.value)) == (ValueError, "the prompt has 12 tokens")
