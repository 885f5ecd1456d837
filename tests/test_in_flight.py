"""Groups between admission and the buffer."""

from rl.buffer import Buffer
from rl.in_flight import InFlight
from rl.planner.stand_in import job_of
from rl.rollout import GroupJob, GroupOutcome


def jobs(count: int) -> list[GroupJob]:
    return [job_of(index, text="1+1=", samples=2, tokens=1) for index in range(count)]


def started(*, lockstep: bool) -> tuple[InFlight, list[GroupJob]]:
    buffer = Buffer(batch_size=3, max_staleness=0 if lockstep else 1, put_door=lambda group: None, get_door=lambda group, version: None)
    in_flight, given = InFlight(buffer, lockstep=lockstep), jobs(3)
    for job in given:
        in_flight.start(job)
    return in_flight, given


def land(in_flight: InFlight, job: GroupJob) -> list[int]:
    return [outcome.job.index for outcome in in_flight.land(GroupOutcome(job=job, group=None, dropped="prompt_too_long"))]


def test_a_wave_is_offered_whole_and_in_order() -> None:
    in_flight, (first, second, third) = started(lockstep=True)
    assert land(in_flight, second) == land(in_flight, third) == []
    assert in_flight.room == 0 and in_flight.landed == 2 and in_flight.running == ("00000000",)
    assert in_flight.unfinished() == [first, second, third]
    assert land(in_flight, first) == [0, 1, 2]
    assert in_flight.room == 3 and not in_flight.unfinished()


def test_asynchronous_groups_are_offered_as_they_land() -> None:
    in_flight, (first, second, third) = started(lockstep=False)
    assert in_flight.room == 3
    assert land(in_flight, second) == [1]
    assert in_flight.room == 4 and in_flight.unfinished() == [first, third]
