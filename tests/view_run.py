"""A small run with everything the viewer shows, hostile texts included, and the viewer's server over it."""

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import psutil
import pytest
import uvicorn
import yaml

from environments.records import Message, StopReason
from rewards.score import Score, ScorePart, ScoreStatus
from rl.log.alive import Alive
from rl.log.metrics import EvalMetrics, MetricsWriter, RunFlag
from rl.log.runs import RunPaths, prepare_run
from rl.log.spans import SpanWriter
from rl.log.writer import LearnerWriter, RolloutWriter
from rl.records import Completion, Rollout, Span, Turn
from rl.tokenizer import save_tiny_tokenizer
from rl.view.app import make_app
from rl.view.open_run import RunsFolder
from tests.log_fakes import make_group, make_metrics, make_sample, make_stats

HOSTILE = (
    "<script>alert(1)</script></template></textarea>\x1b[31m\u202egnp.exe\x00\u200b\u05e9\u05dc\u05d5\u05dd & \"quoted\" 'text' {{ 7*7 }}"
)
BIG = "A" * 10_000_000 + "<b>END"
STEPS = 45
HOSTILE_RUN = "odd & <run>"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One response of the server."""

    status: int
    headers: dict[str, str]
    text: str


class Server:
    """The viewer on a free loopback port."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str, *, method: str = "GET", **headers: str) -> Answer:
        """`path` goes to the server as it is; underscores in header names stand for hyphens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_host="host" in headers)
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            connection.endheaders()
            response = connection.getresponse()
            body = response.read().decode()
            return Answer(status=response.status, headers={k.lower(): v for k, v in response.getheaders()}, text=body)
        finally:
            connection.close()

    def page(self, path: str) -> str:
        """The text of a page that must be there."""
        answer = self.get(path)
        assert answer.status == 200, f"{path}: {answer.status}\n{answer.text[-2000:]}"
        return answer.text


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Serve the runs of a folder from a thread."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    config = uvicorn.Config(make_app(RunsFolder(folder)), log_level="critical", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield Server(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def make_run(root: Path) -> Path:
    """Five groups of four: a hostile text, a big one, a contrast, one without tokens to speak of, an infrastructure failure."""
    identity = prepare_run(root)
    tokenizer = save_tiny_tokenizer(root / "model")

    def rollout(group: int, sample: int, *, text: str, won: bool, infra: bool = False, tool: str = "") -> Rollout:
        ids = tokenizer.encode(text[:500], add_special_tokens=False) or [7]
        completion = Completion(
            token_ids_T=np.asarray(ids, np.int32),
            logprobs_T=-np.linspace(0.01, 5.0, len(ids)).astype(np.float32),
            versions_T=np.asarray([group] * (len(ids) // 2) + [group + 1] * (len(ids) - len(ids) // 2), np.int32),
            stop_reason=StopReason.STOP_TOKEN,
        )
        context = np.asarray(tokenizer.encode("2+2?", add_special_tokens=False), np.int32)
        turn = Turn(context_ids_P=context, completion=completion, text=text, started=100.0, ended=101.5)
        if infra:
            score = Score(reward=None, status=ScoreStatus.INFRA, reason="the sandbox did not answer")
        else:
            part = ScorePart(value=1.0 if won else 0.0, reason=f"part of {HOSTILE}")
            status = ScoreStatus.OK if won else ScoreStatus.POLICY_FAIL
            log = f"test_sum PASSED {HOSTILE}\n" + "a line of a long log\n" * 300 if won else "test_sum FAILED"
            score = Score(reward=1.0 if won else -0.5, status=status, parts={"answer": part}, reason=f"reason {HOSTILE}", log=log)
        said = [Message(role="user", content="2+2?"), Message(role="assistant", content=text)]
        return Rollout(
            rollout_id=f"{group:08d}-{sample}",
            sample_index=sample,
            seed=sample,
            turns=(turn,),
            messages=(*said, *([Message(role="tool", name="python", content=tool)] if tool else [])),
            score=score,
            stop_reason=StopReason.ERROR if infra else StopReason.DONE,
            error_type="TimeoutError" if infra else None,
            timings={"generate": 1.5, "score": 0.25 * (sample + 1)},
        )

    texts = {0: HOSTILE, 1: BIG, 2: "the sum is 4"}
    groups = [
        make_group(
            index,
            version=index,
            rollouts=[
                rollout(index, 0, text=texts.get(index, "the sum is 4"), won=True, tool=HOSTILE if index == 0 else ""),
                rollout(index, 1, text="the sum was 5", won=False),
                rollout(index, 2, text="no idea", won=False),
                rollout(index, 3, text="", won=False, infra=True),
            ],
        )
        for index in range(5)
    ]
    with RolloutWriter(root, run_id=identity.run_id, attempt=1, writer="w0", tokens=True) as writer:
        for group in groups:
            writer.write_group(group)
            writer.flush()
    with LearnerWriter(root, attempt=1) as learner:
        for step, group in enumerate(groups, start=1):
            samples = [make_sample(one, group_index=group.index, advantage=0.75) for one in group.rollouts[:2]]
            learner.write_step(train_step=step, groups=[group], samples=samples, stats=[make_stats(samples)])
    with SpanWriter(root, attempt=1, actor="loop") as loop, SpanWriter(root, attempt=1, actor="worker-0") as worker:
        for step in range(1, 6):
            begun = 1000.0 + 4 * (step - 1)
            for name, start, end in (("rollout", 0.0, 3.0), ("train", 3.0, 3.8), ("sync", 3.8, 4.0)):
                loop.record(Span(name=name, started=begun + start, ended=begun + end, version=step - 1, train_step=step))
            for sample in range(4):
                own = {"version": step - 1, "group_id": f"{step - 1:08d}", "rollout_id": f"{step - 1:08d}-{sample}"}
                worker.record(Span(name="generate", started=begun, ended=begun + 2 + 0.1 * sample, turn=0, **own))
                worker.record(Span(name="score", started=begun + 2.5, ended=begun + 2.9, **own))
    with MetricsWriter(RunPaths(root=root).metrics, attempt=1, restored_step=0) as metrics:
        for step in range(1, STEPS + 1):
            metrics.step(make_metrics(step, version=step - 1))
        metrics.evaluated(EvalMetrics(step=STEPS, time=1045.0, split="heldout", source="sums", passed=30, graded=40))
        metrics.flagged(RunFlag(step=STEPS, time=1045.0, name="entropy_jump", reason="entropy doubled"))
    process = psutil.Process()
    alive = Alive(host=socket.gethostname(), pid=process.pid, process_started=process.create_time(), started=process.create_time())
    RunPaths(root=root).alive.write_text(json.dumps(asdict(alive)))
    settings = {"run": {"name": root.name, "steps": 100}, "model": {"path": str(root / "model")}}
    RunPaths(root=root).config.write_text(yaml.safe_dump(settings))
    return root


def at(run: str, page: str = "", **query: object) -> str:
    """The path of a page."""
    words = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in query.items())
    return f"/runs/{quote(run, safe='')}" + (f"/{page}" if page else "") + (f"?{words}" if words else "")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("view") / "runs"
    make_run(folder / HOSTILE_RUN)
    return folder


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[Server]:
    with serving(runs) as one:
        yield one
