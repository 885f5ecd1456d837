"""The timeline for ui.perfetto.dev: Perfetto's own protobuf trace, written by its library a packet at a time.

The only file that imports perfetto. An actor is a process of the trace; its rollouts share as many tracks as ran at once, so that spans
of one track never overlap. Times are unix nanoseconds.
"""

from dataclasses import dataclass, field
from pathlib import Path

from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import BUILTIN_CLOCK_BOOTTIME, BUILTIN_CLOCK_REALTIME, TracePacket, TrackEvent
from perfetto.trace_builder.proto_builder import StreamingTraceProtoBuilder

from rl.export.encode import nano
from rl.export.records import LoggedSpan
from rl.export.source import Source

_SEQUENCE = 1
_ATTRIBUTES = ("rollout_id", "group_id", "turn", "train_step", "dispatch_version", "attempt")


@dataclass(kw_only=True, slots=True)
class _Lane:
    """One track of an actor."""

    track: int
    taken_until: float
    """End of the rollout that has it."""
    span_until: float = float("-inf")
    """End of its last span."""


@dataclass(kw_only=True, slots=True)
class _Actor:
    """One process of the trace."""

    track: int
    lanes: list[_Lane] = field(default_factory=list)
    unit: tuple[int, str] | None = None
    """The rollout, with its attempt, that `lane` was taken for."""
    lane: _Lane | None = None


def export(source: Source, out: Path) -> dict[str, int]:
    """Write the file `out`; how many of what it holds. A span that ends before it begins is drawn without a length, and counted."""
    counts = {"spans": 0, "not_selected": source.n_spans(), "ends_before_it_begins": 0}
    with out.open("xb") as stream:
        trace = _Trace(StreamingTraceProtoBuilder(stream))
        for span in source.spans():
            trace.add(span)
            counts["spans"] += 1
            counts["not_selected"] -= 1
            counts["ends_before_it_begins"] += span.ended < span.started
    return {**counts, "actors": trace.n_actors, "tracks": trace.n_tracks - trace.n_actors}


class _Trace:
    """A trace under way; spans come by actor, and those of a rollout follow each other."""

    def __init__(self, builder: StreamingTraceProtoBuilder) -> None:
        self._builder = builder
        self._actors: dict[str, _Actor] = {}
        self.n_tracks = 0

    @property
    def n_actors(self) -> int:
        """Processes so far."""
        return len(self._actors)

    def add(self, span: LoggedSpan) -> None:
        """Write one span, and its track when it is the first there."""
        if not self._actors:
            self._set_clock(span.started)
        lane = self._lane(self._actor(span.actor), span)
        ended = max(span.started, span.ended)
        lane.span_until = ended
        begin = self._packet(span.started)
        event = begin.track_event
        event.type, event.track_uuid, event.name = TrackEvent.TYPE_SLICE_BEGIN, lane.track, span.name
        event.categories.append("loop" if span.rollout_id is None else "rollout")
        for name in _ATTRIBUTES:
            value = getattr(span, name)
            if value is not None:
                note = event.debug_annotations.add(name=name)
                if isinstance(value, str):
                    note.string_value = value
                else:
                    note.int_value = value
        self._builder.write_packet(begin)
        end = self._packet(ended)
        end.track_event.type, end.track_event.track_uuid = TrackEvent.TYPE_SLICE_END, lane.track
        self._builder.write_packet(end)

    def _actor(self, name: str) -> _Actor:
        if name not in self._actors:
            packet = self._builder.create_packet()
            track = self._new_track(packet)
            packet.track_descriptor.process.pid = len(self._actors) + 1
            packet.track_descriptor.process.process_name = name
            self._builder.write_packet(packet)
            self._actors[name] = _Actor(track=track)
        return self._actors[name]

    def _lane(self, actor: _Actor, span: LoggedSpan) -> _Lane:
        """The track of the span's rollout; another one when the span overlaps what is there."""
        unit = None if span.rollout_id is None else (span.attempt, span.rollout_id)
        if unit is not None and unit == actor.unit and actor.lane is not None and actor.lane.span_until <= span.started:
            return actor.lane
        free = (lane for lane in actor.lanes if max(lane.taken_until, lane.span_until) <= span.started)
        lane = next(free, None) or self._new_lane(actor)
        lane.taken_until = span.last
        actor.unit, actor.lane = unit, lane
        return lane

    def _new_lane(self, actor: _Actor) -> _Lane:
        packet = self._builder.create_packet()
        lane = _Lane(track=self._new_track(packet), taken_until=float("-inf"))
        packet.track_descriptor.parent_uuid = actor.track
        actor.lanes.append(lane)
        packet.track_descriptor.name = f"track {len(actor.lanes)}"
        self._builder.write_packet(packet)
        return lane

    def _new_track(self, packet: TracePacket) -> int:
        self.n_tracks += 1
        packet.trusted_packet_sequence_id = _SEQUENCE
        packet.track_descriptor.uuid = self.n_tracks
        return self.n_tracks

    def _set_clock(self, seconds: float) -> None:
        """The trace's clock is the wall clock."""
        packet = self._packet(seconds)
        for clock in (BUILTIN_CLOCK_BOOTTIME, BUILTIN_CLOCK_REALTIME):
            packet.clock_snapshot.clocks.add(clock_id=clock, timestamp=nano(seconds))
        self._builder.write_packet(packet)

    def _packet(self, seconds: float) -> TracePacket:
        packet = self._builder.create_packet()
        packet.timestamp, packet.trusted_packet_sequence_id = nano(seconds), _SEQUENCE
        return packet
