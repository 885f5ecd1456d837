"""Records survive JSON bit for bit."""

import json

import numpy as np
import pytest

from rl.buffer import BufferState
from rl.codec import decode, encode
from tests.fakes import make_group


def test_groups_round_trip_exactly() -> None:
    state = BufferState(accepted=7, version=3, groups=(make_group(0, rewards=(1.0, None, -1.0)), make_group(1)))
    state.groups[0].rollouts[0].turns[0].completion.logprobs_T[0] = np.float32(-1e-7)
    again = decode(BufferState, json.loads(json.dumps(encode(state))))
    assert (again.accepted, again.version) == (7, 3)
    before, after = state.groups[0].rollouts[0], again.groups[0].rollouts[0]
    assert after.turns[0].completion.logprobs_T.tobytes() == before.turns[0].completion.logprobs_T.tobytes()
    assert after.turns[0].context_ids_P.dtype == np.int32
    assert after.score == before.score and after.messages == before.messages and after.stop_reason is before.stop_reason
    assert again.groups[0].rollouts[1].score.reward is None
    assert again.groups[0].problem == state.groups[0].problem


def test_a_missing_field_is_named() -> None:
    value = encode(BufferState(accepted=1, version=0, groups=()))
    del value["version"]
    with pytest.raises(ValueError, match=r"BufferState.*version"):
        decode(BufferState, value)
