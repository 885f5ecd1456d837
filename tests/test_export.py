"""`rl export`: each format read back by its own library, and the command's refusals."""

import base64
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, load_dataset
from google.protobuf import json_format
from nat.atif import Trajectory
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status, TracesData
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import error_attributes, service_attributes
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

from rl.cli import main
from rl.export import atif, source
from rl.export.source import Source
from rl.log.query import RunLog
from rl.log.synthetic import write_synthetic_run
from rl.log.writer import RolloutWriter
from tests.export_run import BIG, CALL, HOSTILE, KEPT, LONG, make_export_run
from tests.log_fakes import make_group
from tests.ring import ROOT

SCOUT_PYTHON = ROOT / ".venv-scout" / "bin" / "python"
UNGRADED = ["00000001-1", "00000001-2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_export_run(tmp_path_factory.mktemp("export") / "mine")


def exported(run: Path, to: str, out: Path, *words: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["export", str(run), "--to", to, "--out", str(out), "--json", *words]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


# --- Inspect Scout --------------------------------------------------------------------------------------------------

SCOUT_SCHEMA = json.loads((ROOT / "tests/data/scout_schema.json").read_text())
"""What inspect_scout 0.6.1 publishes: the transcript's record in Avro, and the JSON schema of a list of messages."""
AVRO_TYPES = {"string": "large_string", "long": "int64", "double": "double", "boolean": "bool"}


def test_scout_files_follow_the_published_schema(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = exported(run, "scout", tmp_path / "scout", capsys=capsys)
    assert said["records"] == {"transcripts": 7, "messages": 18, "files": 1}
    assert said["rollouts"]["by_status"] == {"infra": 1, "ok": 4, "policy_fail": 1, "ungradable": 1}
    (path,) = (tmp_path / "scout").iterdir()
    assert path.suffix == ".parquet"
    table = pq.read_table(path)
    wanted = {field["name"]: field["type"] for field in SCOUT_SCHEMA["transcript"]["fields"]}
    types = {name: AVRO_TYPES[kind if isinstance(kind, str) else kind[1]] for name, kind in wanted.items()}
    # All of them: Scout's viewer fails without `events`, which the schema calls optional.
    assert {field.name: str(field.type) for field in table.schema if field.name in types} == types
    assert not any(table[name].null_count for name, kind in wanted.items() if isinstance(kind, str))
    for messages in table["messages"].to_pylist():
        jsonschema.validate(json.loads(messages), SCOUT_SCHEMA["messages"])
    ids = table["transcript_id"].to_pylist()
    assert len(set(ids)) == len(ids) == 7
    rows = {row["rollout_id"]: row for row in table.to_pylist()}
    assert [id for id, row in rows.items() if row["score"] is None and row["success"] is None and row["error"]] == UNGRADED
    assert [message["content"] for message in json.loads(rows["00000000-0"]["messages"])] == ["Be brief.", KEPT, CALL, LONG, f"done {KEPT}"]
    assert rows["00000001-0"]["train_step"] == 1 and rows["00000001-0"]["advantage"] == 0.75
    assert not any(row["trust_content"] for row in rows.values())


def by_scout(*words: str | Path, home: Path) -> Any:
    """What a script prints that is run in Inspect Scout's own environment."""
    assert SCOUT_PYTHON.exists(), "make scout-check installs Inspect Scout and runs these tests"
    command = [str(word) for word in (SCOUT_PYTHON, *words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=home, env={**os.environ, "HOME": str(home)})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.scout
def test_the_schema_that_the_files_are_held_against_is_what_scout_publishes(tmp_path: Path) -> None:
    renew = ".venv-scout/bin/python tests/scout_schema.py > tests/data/scout_schema.json"
    assert by_scout(ROOT / "tests" / "scout_schema.py", home=tmp_path) == SCOUT_SCHEMA, renew


@pytest.mark.scout
def test_scout_itself_reads_the_transcripts(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported(run, "scout", tmp_path / "scout", capsys=capsys)
    read = by_scout(ROOT / "tests" / "scout_reader.py", tmp_path / "scout", home=tmp_path)
    assert (read["errors"], read["infra"], read["viewed"]) == ([], 1, 7)
    found = {one["metadata"]["rollout_id"]: one for one in read["transcripts"]}
    assert len(found) == 7
    tools = found["00000000-0"]
    assert [one["text"] for one in tools["messages"]] == ["Be brief.", KEPT, CALL, LONG, f"done {KEPT}"]
    assert [one["role"] for one in tools["messages"]] == ["system", "user", "assistant", "tool", "assistant"]
    (call,) = tools["messages"][2]["calls"]
    assert (call["function"], call["arguments"]) == ("bash", {"input": 'ls -la; echo "\x1b[2J"'})
    assert (tools["model"], tools["score"], tools["success"], tools["total_tokens"]) == ("tiny-coder", "0.1", False, 9)
    assert tools["metadata"]["reward_parts"]["answer"]["reason"] == KEPT
    assert found["00000001-0"]["messages"][1]["text"] == BIG
    assert found["00000001-1"]["messages"] == [] and found["00000001-1"]["success"] is None


# --- ATIF -----------------------------------------------------------------------------------------------------------


def trajectories(path: Path) -> dict[str, Trajectory]:
    found = [Trajectory.model_validate_json(line) for line in path.read_bytes().splitlines()]
    return {one.extra["rollout_id"]: one for one in found if one.extra}


def test_atif_carries_texts_tokens_and_logprobs(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = exported(run, "atif", tmp_path / "a.jsonl", capsys=capsys)
    assert said["records"] == {"trajectories": 7, "steps": 17, "completion_tokens": 16}
    found = trajectories(tmp_path / "a.jsonl")
    assert {one.schema_version for one in found.values()} == {"ATIF-v1.7"}
    tools = found["00000000-0"]
    assert [step.source for step in tools.steps] == ["system", "user", "agent", "agent"]
    assert [step.message for step in tools.steps] == ["Be brief.", KEPT, CALL, f"done {KEPT}"]
    call = tools.steps[2]
    assert call.tool_calls and call.observation
    assert call.tool_calls[0].function_name == "bash" and call.tool_calls[0].arguments == {"input": 'ls -la; echo "\x1b[2J"'}
    (result,) = call.observation.results
    assert (result.content, result.source_call_id, result.extra) == (
        LONG,
        call.tool_calls[0].tool_call_id,
        {"tool": "bash", "exit_code": 3},
    )
    first, last = call.metrics, tools.steps[3].metrics
    assert first and last and first.logprobs and last.logprobs and last.extra
    assert (first.prompt_token_ids, first.completion_token_ids) == ([1, 2, 3], [7, 8])
    assert (last.prompt_token_ids, last.completion_token_ids) == ([1, 2, 3, 7, 8, 4], [9, 10, 11])
    with RunLog(run) as log:
        ((logged,),) = log.query("SELECT behaviour_logprob FROM tokens WHERE rollout_id = '00000000-0'").rows
    assert [*first.logprobs, *last.logprobs] == logged
    assert last.extra["policy_versions"] == [{"start": 0, "version": 1}]
    assert tools.final_metrics and tools.final_metrics.total_completion_tokens == 5
    assert found["00000001-0"].steps[-1].message == BIG


def test_atif_prompts_start_anew_where_the_conversation_did(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported(run, "atif", tmp_path / "a.jsonl", "--where", "rollout_id = '00000000-1'", capsys=capsys)
    (one,) = trajectories(tmp_path / "a.jsonl").values()
    metrics = one.steps[-1].metrics
    assert metrics and metrics.prompt_token_ids == [1, 2, 3, 7, 5] and metrics.completion_token_ids == [9]


def test_atif_marks_what_has_no_reward(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported(run, "atif", tmp_path / "a.jsonl", capsys=capsys)
    found = trajectories(tmp_path / "a.jsonl")
    assert [id for id, one in found.items() if one.extra and not one.extra["graded"]] == UNGRADED
    failed = found["00000001-1"]
    assert failed.extra and "reward" not in failed.extra and failed.extra["status"] == "infra"
    assert failed.steps[0].message == "infra: the sandbox did not answer" and failed.notes


# --- Hugging Face ---------------------------------------------------------------------------------------------------


def test_hf_dataset_loads(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = exported(run, "hf", tmp_path / "hf", capsys=capsys)
    assert said["records"] == {"rows": 7, "completion_tokens": 22, "files": 2}
    loaded = load_dataset(str(tmp_path / "hf"), cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded, DatasetDict) and {name: len(split) for name, split in loaded.items()} == {"train": 5, "heldout": 2}
    rows = {row["rollout_id"]: row for row in loaded["train"]}
    tools = rows["00000000-0"]
    assert [(m["role"], m["content"]) for m in tools["prompt"]] == [("system", "Be brief."), ("user", KEPT)]
    assert [m["content"] for m in tools["completion"]] == [CALL, LONG, f"done {KEPT}"]
    assert (tools["prompt_ids"], tools["completion_ids"]) == ([1, 2, 3], [7, 8, 4, 9, 10, 11])
    assert tools["completion_mask"] == [1, 1, 0, 1, 1, 1]
    assert tools["policy_versions"] == [0, 0, -1, 1, 1, 1]
    assert [value is None for value in tools["logprobs"]] == [False, False, True, False, False, False]
    assert tools["logprobs"][0] == pytest.approx(-0.1) and tools["logprobs"][-1] == pytest.approx(-1.0)
    assert rows["00000000-1"]["restarts"] == [2]
    assert [id for id, row in rows.items() if row["reward"] is None] == UNGRADED
    huge = rows["00000001-0"]
    assert huge["completion"][0]["content"] == BIG
    assert (huge["train_step"], huge["advantage"], huge["entropies"]) == (1, 0.75, [0.75, 0.75])
    assert huge["learner_logprobs"] == pytest.approx([value + 1e-3 for value in huge["logprobs"]], abs=1e-6)
    assert rows["00000001-1"]["completion_ids"] == []
    card = (tmp_path / "hf" / "README.md").read_text()
    documented = re.findall(r"^\| ([\w, ]+) \| ", card.partition("| columns |")[2], re.M)
    assert {name for names in documented for name in names.split(", ")} <= set(loaded["train"].column_names)


# --- OpenTelemetry --------------------------------------------------------------------------------------------------


def otlp_lines(path: Path) -> Iterator[TracesData]:
    """Lines by OpenTelemetry's protobuf. OTLP/JSON writes ids in hexadecimal, protobuf's own JSON in base64."""
    hexadecimal = re.compile(r'"(traceId|spanId|parentSpanId)":"([0-9a-f]+)"')
    for line in path.read_text(encoding="ascii").splitlines():
        fixed = hexadecimal.sub(lambda m: f'"{m[1]}":"{base64.b64encode(bytes.fromhex(m[2])).decode()}"', line)
        yield json_format.Parse(fixed, TracesData())


def attributes_of(node: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in node.attributes}


def test_otel_spans_parse_and_use_the_conventions_names(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = exported(run, "otel", tmp_path / "o.jsonl", capsys=capsys)
    assert said["records"] == {"traces": 7, "spans": 17}
    spans: dict[str, list[Span]] = defaultdict(list)
    known = {
        value
        for module in (gen_ai_attributes, error_attributes, service_attributes)
        for name, value in vars(module).items()
        if name.isupper()
    }
    for data in otlp_lines(tmp_path / "o.jsonl"):
        for resource in data.resource_spans:
            assert attributes_of(resource.resource)["service.name"] == "codeworld-rl"
            for span in resource.scope_spans[0].spans:
                assert len(span.trace_id) == 16 and len(span.span_id) == 8
                assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano
                names = [one.key for holder in (span, *span.events) for one in holder.attributes]
                assert len(set(names)) == len(names)
                assert [name for name in names if not name.startswith("codeworld_rl.") and name not in known] == []
                spans[span.trace_id.hex()].append(span)
    assert len(spans) == 7
    by_id = {attributes_of(trace[0])["codeworld_rl.rollout_id"]: trace for trace in spans.values()}
    trace = by_id["00000000-0"]
    assert [span.name for span in trace] == ["invoke_agent math", "chat tiny-coder", "execute_tool bash", "chat tiny-coder"]
    assert all(span.parent_span_id == trace[0].span_id for span in trace[1:]) and not trace[0].parent_span_id
    operations = {one.value for one in gen_ai_attributes.GenAiOperationNameValues}
    assert {attributes_of(span)["gen_ai.operation.name"] for spans in by_id.values() for span in spans} <= operations
    tool = attributes_of(trace[2])
    assert tool["gen_ai.tool.call.result"] == LONG and tool["codeworld_rl.exit_code"] == 3
    asked = json.loads(attributes_of(trace[1])["gen_ai.input.messages"])
    assert [part["content"] for message in asked for part in message["parts"]] == ["Be brief.", KEPT]
    (evaluation,) = trace[0].events
    assert attributes_of(evaluation)["gen_ai.evaluation.score.value"] == 0.1
    (answer,) = json.loads(attributes_of(by_id["00000001-0"][1])["gen_ai.output.messages"])
    assert answer["parts"][0]["content"] == BIG
    failed = [id for id, one in by_id.items() if one[0].status.code == Status.STATUS_CODE_ERROR]
    assert failed == UNGRADED
    assert attributes_of(by_id["00000001-1"][0])["error.type"] == "SandboxError"


# --- Perfetto -------------------------------------------------------------------------------------------------------


def test_perfetto_trace_parses_and_its_spans_do_not_overlap(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = exported(run, "perfetto", tmp_path / "p.pftrace", capsys=capsys)
    assert said["records"] == {"spans": 13, "not_selected": 0, "ends_before_it_begins": 0, "actors": 2, "tracks": 3}
    trace = Trace.FromString((tmp_path / "p.pftrace").read_bytes())
    tracks = {p.track_descriptor.uuid: p.track_descriptor for p in trace.packet if p.HasField("track_descriptor")}
    processes = {uuid: track.process.process_name for uuid, track in tracks.items() if track.HasField("process")}
    assert sorted(processes.values()) == ["loop", "worker-0"]
    events = [packet for packet in trace.packet if packet.HasField("track_event")]
    open_slices: dict[int, list[str]] = defaultdict(list)
    begun: dict[str, set[int]] = defaultdict(set)
    for packet in sorted(events, key=lambda packet: packet.timestamp):
        event = packet.track_event
        assert tracks[event.track_uuid].parent_uuid in processes
        if event.type == TrackEvent.TYPE_SLICE_BEGIN:
            assert open_slices[event.track_uuid] == []
            open_slices[event.track_uuid].append(event.name)
            notes = {note.name: note.string_value for note in event.debug_annotations}
            begun[notes.get("rollout_id", "")].add(event.track_uuid)
        else:
            open_slices[event.track_uuid].pop()
    assert not any(open_slices.values())
    assert {id: len(uuids) for id, uuids in begun.items()} == {"00000000-0": 1, "00000000-1": 1, "00000001-0": 1, "": 1}
    assert begun["00000000-0"] != begun["00000000-1"], "they ran at the same time"
    assert min(packet.timestamp for packet in events) == 10 * 10**9


def test_perfetto_takes_the_spans_of_the_selected_rollouts(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = exported(run, "perfetto", tmp_path / "p.pftrace", "--where", "group_index = 1", capsys=capsys)
    assert (said["records"]["spans"], said["records"]["not_selected"]) == (4 + 1, 8)


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "atiff"], "unknown export format 'atiff'; did you mean 'atif'? known: atif, hf, otel, perfetto, scout"),
        (["--to", "atif", "--where", "reward >"], "--where 'reward >' is no condition on rollouts: Parser Error"),
        (["--to", "atif", "--where", "rewards > 0"], 'Referenced column "rewards" not found'),
        (["--to", "atif", "--where", "true); SELECT (1"], "is no condition on rollouts"),
        (["--to", "atif", "--where", "task_id::INT > 0"], "Could not convert string 'task-"),  # whichever DuckDB meets first
        (["--to", "atif", "--where", "\ud800"], "is no condition on rollouts"),
        (["--to", "atif", "--where", "reward > 7"], "--where 'reward > 7' selects none of the 7 rollouts"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(
    words: list[str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--out", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_run_and_a_taken_path_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run.with_name("mein")), "--to", "atif", "--out", str(tmp_path / "out")]) == 2
    assert "did you mean mine?" in capsys.readouterr().err
    (tmp_path / "taken").write_text("precious")
    assert main(["export", str(run), "--to", "hf", "--out", str(tmp_path / "taken")]) == 2
    assert "taken exists: choose another path" in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "precious"
    assert main(["export", str(run), "--to", "hf", "--out", str(tmp_path / "no" / "hf")]) == 2
    assert f"there is no folder {tmp_path / 'no'}" in capsys.readouterr().err


def test_a_missing_library_is_named_with_its_extra(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "rl.export.perfetto", raising=False)
    monkeypatch.setitem(sys.modules, "perfetto.trace_builder.proto_builder", None)
    assert main(["export", str(run), "--to", "perfetto", "--out", str(tmp_path / "p")]) == 2
    assert "--to perfetto needs the package perfetto: pip install 'codeworld-rl[export]'" in capsys.readouterr().err


def test_a_failure_half_way_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter([None, None])

    def full(value: Any) -> str:
        if next(calls, "full") == "full":
            raise OSError(28, "No space left on device")
        return json.dumps(value)

    monkeypatch.setattr(atif, "encoded", full)
    assert main(["export", str(run), "--to", "atif", "--out", str(tmp_path / "a.jsonl")]) == 2
    assert list(tmp_path.iterdir()) == []


def test_rollouts_come_once_and_in_order_whatever_is_in_memory_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_synthetic_run(tmp_path / "run", rollouts=400, token_rollouts=4)
    monkeypatch.setattr(source, "_RANGE_ROLLOUTS", 50)
    monkeypatch.setattr(source, "_CHUNK_ROLLOUTS", 7)
    said = exported(run, "atif", tmp_path / "a.jsonl", "--where", "env <> 'swe' -- single turns", capsys=capsys)
    with RunLog(run) as log:
        wanted = [id for (id,) in log.query("SELECT rollout_id FROM rollouts WHERE env <> 'swe' ORDER BY rollout_id").rows]
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["extra"]["rollout_id"] for line in lines] == wanted
    assert said["rollouts"]["taken"] == said["records"]["trajectories"] == len(wanted) < said["rollouts"]["in_log"]
    without = sum(line["extra"]["tokens"] == "not in the log" for line in lines)
    assert said["without_tokens"] == without > 0


def test_a_live_run_gives_what_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RolloutWriter(tmp_path / "live", run_id="live-1", attempt=1, writer="w0", tokens=True) as writer:
        assert main(["export", str(tmp_path / "live"), "--to", "atif", "--out", str(tmp_path / "a")]) == 2
        assert "has no rollouts yet" in capsys.readouterr().err
        for index in range(2):
            writer.write_group(make_group(index))
            writer.flush()
            said = exported(tmp_path / "live", "atif", tmp_path / f"{index}.jsonl", capsys=capsys)
            assert said["rollouts"]["taken"] == 2 * (index + 1)


def test_a_text_that_the_log_has_lost_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_export_run(tmp_path / "run")
    with RunLog(run) as log:
        ((reference,),) = log.query("SELECT DISTINCT stdout_ref FROM turns WHERE stdout_ref IS NOT NULL").rows
    (blob,) = (run / "log" / "blobs").rglob(f"{reference.removeprefix('sha256:')}.zst")
    blob.unlink()
    assert main(["export", str(run), "--to", "hf", "--out", str(tmp_path / "hf")]) == 0
    assert "shortened, because the log has lost the blob of the whole text: 2 messages" in capsys.readouterr().out
    rows = Dataset.from_parquet(str(tmp_path / "hf" / "data" / "train-*.parquet"), cache_dir=str(tmp_path / "cache"))
    assert isinstance(rows, Dataset) and sum(rows["messages_cut"]) == 2


def test_rollouts_that_a_damaged_file_takes_along_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_CHUNK_ROLLOUTS", 1)
    run = make_export_run(tmp_path / "run")
    with RunLog(run) as log:
        taken = Source(log, root=run, where=None)
        rollouts = taken.rollouts(tokens=False)
        first = next(rollouts)
        part = next((run / "log" / "rollouts" / "dispatch_version=1").glob("part-*"))
        part.write_bytes(bytes(part.stat().st_size))
        rest = list(rollouts)
        assert taken.in_log == 1 + len(rest) + taken.lost and taken.lost > 0
        assert first.row.rollout_id == "00000000-0" and log.problems


def test_hostile_texts_are_hostile() -> None:
    assert "\x00" in KEPT and "\x1b" in KEPT and "\u202e" in KEPT and "\ud800" in HOSTILE
