"""Admission bound, order, and both doors of the buffer."""

from rl.buffer import Buffer
from tests.fakes import make_group


def make_buffer(*, batch: int = 2, staleness: int = 0, put=lambda group: None, get=lambda group, version: None) -> Buffer:
    return Buffer(batch_size=batch, max_staleness=staleness, put_door=put, get_door=get)


def test_admission_bound_counts_accepted_and_running() -> None:
    buffer = make_buffer(batch=2, staleness=1)
    assert buffer.room(running=0) == 4
    buffer.put(make_group(0))
    assert buffer.room(running=2) == 1
    assert buffer.room(running=3) == 0


def test_strictly_on_policy_admits_one_batch_a_version() -> None:
    buffer = make_buffer(batch=2, staleness=0)
    buffer.put(make_group(0))
    buffer.put(make_group(1))
    assert buffer.room(running=0) == 0
    groups, _ = buffer.take()
    assert [g.index for g in groups] == [0, 1]
    assert buffer.room(running=0) == 0, "the version has not moved yet"
    buffer.version += 1
    assert buffer.room(running=0) == 2


def test_take_gives_oldest_groups_first_and_nothing_before_a_full_batch() -> None:
    buffer = make_buffer(batch=2, staleness=2)
    buffer.put(make_group(5))
    assert buffer.take() == ((), ())
    buffer.put(make_group(1))
    buffer.put(make_group(3))
    groups, _ = buffer.take()
    assert [g.index for g in groups] == [1, 3]
    assert len(buffer) == 1


def test_rejection_at_put_gives_the_place_back() -> None:
    buffer = make_buffer(batch=1, put=lambda group: "zero_variance" if group.index == 0 else None)
    rejection = buffer.put(make_group(0))
    assert rejection is not None and rejection.reason == "zero_variance"
    assert buffer.room(running=0) == 1
    assert buffer.put(make_group(1)) is None
    assert buffer.room(running=0) == 0


def test_stale_groups_leave_at_get_and_are_replaced() -> None:
    buffer = make_buffer(batch=1, staleness=1, get=lambda group, version: "stale" if version - group.dispatch_version > 1 else None)
    buffer.put(make_group(0, version=0))
    buffer.version = 2
    groups, rejected = buffer.take()
    assert groups == () and [r.reason for r in rejected] == ["stale"]
    assert buffer.room(running=0) == 4


def test_state_round_trip_keeps_the_bound() -> None:
    buffer = make_buffer(batch=2, staleness=1)
    buffer.put(make_group(0))
    buffer.put(make_group(1))
    buffer.put(make_group(2))
    buffer.take()
    buffer.version += 1
    twin = make_buffer(batch=2, staleness=1)
    twin.restore(buffer.state())
    assert twin.room(running=1) == buffer.room(running=1) == 2
    assert len(twin) == 1 and twin.version == 1
