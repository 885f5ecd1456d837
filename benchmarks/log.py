"""What the rollout log costs: tokens a second and core, bytes a token, and the share of a training step.

    python benchmarks/log.py [--groups 256] [--tokens 2048] [--rate 20000] [--log-chars 1000]
    python benchmarks/log.py --views [--rollouts 1000000]

Groups of 8 rollouts with real records (messages, parts, logprobs that differ in all bits) go through the rollout writer with all its
flag rules, and through the learner's writer, to files that are synced. A core's rate counts the processor time of all threads. The
share of a training step is that of a ring which trains on `--rate` tokens a second on this machine's cores: the processor time of the
log's threads and calls, divided by the step's. The machine's limits stand beside it: copying the same bytes in memory, and writing the
same files and syncing them without anything else.

`--views` makes a synthetic run instead and times every named view over it: all of its rows fetched, median of 5, milliseconds; beside
them the time to open the log and the least that a query can take, counting the rollouts' rewards. Prints one JSON line.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.machine import print_result
from environments.records import Message, Problem, StopReason, Task
from rewards.score import Score, ScorePart, ScoreStatus
from rl.log.flags import Flags
from rl.log.query import RunLog
from rl.log.synthetic import write_synthetic_run
from rl.log.views import VIEWS
from rl.log.writer import LearnerWriter, RolloutWriter
from rl.records import Completion, Rollout, RolloutGroup, SampleStats, Sampling, StepStats, TrainSample, Turn

GROUP, PROMPT = 8, 256
BATCH = 16
"""Groups a training step."""
WORDS = ("the", "sum", "of", "both", "sides", "is", "less", "than", "four", "so", "we", "return", "x", "+", "1", "and", "check", "it")


def make_group(index: int, *, tokens: int, log_chars: int, random: np.random.Generator) -> RolloutGroup:
    """8 rollouts of about `tokens` sampled tokens, four characters of text for each, and scores whose logs all differ."""
    task = Task(id=f"task-{index}", env="math", prompt=(Message(role="user", content="What is asked? " * 60),))
    rollouts = []
    for sample in range(GROUP):
        n = int(tokens * random.uniform(0.5, 1.5))
        text = " ".join(random.choice(WORDS, n)) + " \\boxed{4}"
        completion = Completion(
            token_ids_T=(random.zipf(1.3, n) % 100_000).astype(np.int32),
            logprobs_T=-random.exponential(0.4, n).astype(np.float32),
            versions_T=np.full(n, index // BATCH, np.int32),
            stop_reason=StopReason.STOP_TOKEN,
        )
        prompt_P = (random.zipf(1.3, PROMPT) % 100_000).astype(np.int32)
        turn = Turn(context_ids_P=prompt_P, completion=completion, text=text, started=1.0, ended=2.0)
        right = bool(random.random() < 0.5)
        rollouts.append(
            Rollout(
                rollout_id=f"{index:08d}-{sample}",
                sample_index=sample,
                seed=index * GROUP + sample,
                turns=(turn,),
                messages=(*task.prompt, Message(role="assistant", content=text)),
                score=Score(
                    reward=float(right),
                    status=ScoreStatus.OK if right else ScoreStatus.POLICY_FAIL,
                    parts={"math": ScorePart(value=float(right)), "box_format": ScorePart(value=1.0, weight=0.1)},
                    log=text[:log_chars],
                ),
                stop_reason=StopReason.DONE,
                timings={"generate": 1.0, "environment": 0.1, "score": 0.1},
            )
        )
    return RolloutGroup(
        group_id=f"{index:08d}",
        index=index,
        problem=Problem(task=task, reference={"answer": "4"}, source="sums"),
        split="train",
        dispatch_version=index // BATCH,
        rollouts=tuple(rollouts),
        sampling=Sampling(max_tokens=4096),
        scorer="math + 0.1*box_format",
    )


def trained(group: RolloutGroup) -> tuple[list[TrainSample], StepStats]:
    """What the learner saw of a group."""
    samples, stats = [], []
    for rollout in group.rollouts:
        (turn,) = rollout.turns
        n = len(turn.completion.token_ids_T)
        noise = np.float32(1e-3) * np.sin(np.arange(n, dtype=np.float32))
        samples.append(
            TrainSample(
                rollout_id=rollout.rollout_id,
                group_index=group.index,
                token_ids_T=np.concatenate([turn.context_ids_P, turn.completion.token_ids_T]),
                agent_mask_T=np.arange(PROMPT + n) >= PROMPT,
                behaviour_logprobs_T=np.concatenate([np.zeros(PROMPT, np.float32), turn.completion.logprobs_T]),
                versions_T=np.concatenate([np.full(PROMPT, -1, np.int32), turn.completion.versions_T]),
                advantage=0.5,
                prompt_len=PROMPT,
            )
        )
        stats.append(
            SampleStats(
                rollout_id=rollout.rollout_id,
                logprobs_T=turn.completion.logprobs_T + noise,
                entropies_T=(-0.7 * turn.completion.logprobs_T).astype(np.float16),
                n_clipped=3,
                kl=1e-5,
            )
        )
    total = sum(len(one.logprobs_T) for one in stats)
    rates = {"loss": 0.1, "grad_norm": 0.5, "learning_rate": 1e-6, "entropy": 0.7, "kl": 1e-5, "clip_fraction": 0.01}
    return samples, StepStats(**rates, n_tokens=total, seconds=1.0, samples=tuple(stats))


def measure(folder: Path, groups: list[RolloutGroup]) -> dict[str, float]:
    """Processor seconds of both writers, seconds in calls, and what was dropped."""
    steps = [
        (groups[first : first + BATCH], [trained(group) for group in groups[first : first + BATCH]])
        for first in range(0, len(groups), BATCH)
    ]
    calls = 0.0
    wall, processor = time.perf_counter(), time.process_time()
    with (
        RolloutWriter(folder, run_id="benchmark", attempt=1, writer="w0", tokens=True, flagger=Flags()) as rollouts,
        LearnerWriter(folder, attempt=1) as learner,
    ):
        for step, (batch, seen) in enumerate(steps, start=1):
            started = time.perf_counter()
            for group in batch:
                rollouts.write_group(group)
            samples = [sample for own, _ in seen for sample in own]
            learner.write_step(train_step=step, groups=batch, samples=samples, stats=[stats for _, stats in seen])
            calls += time.perf_counter() - started
            rollouts.flush()
            learner.flush()
        dropped = sum(rollouts.health.dropped.values())
    return {
        "processor": time.process_time() - processor,
        "wall": time.perf_counter() - wall,
        "calls": calls,
        "dropped": float(dropped),
    }


def limits(folder: Path, paths: list[Path]) -> dict[str, float]:
    """Bytes a second of a copy in memory, and of writing and syncing the same files again."""
    contents = [path.read_bytes() for path in paths]
    total = sum(map(len, contents))
    block = np.zeros(64 << 20, np.uint8)
    started = time.perf_counter()
    for _ in range(8):
        block.copy()
    copied = 8 * block.nbytes / (time.perf_counter() - started)
    folder.mkdir()
    started = time.perf_counter()
    for number, content in enumerate(contents):
        with (folder / str(number)).open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    return {"memory_copy_gb_per_s": copied / 1e9, "disk_mb_per_s": total / (time.perf_counter() - started) / 1e6}


def measure_views(folder: Path, *, rollouts: int) -> dict[str, float | dict[str, float]]:
    """Milliseconds: making the run, opening its log, and each named view."""
    started = time.perf_counter()
    write_synthetic_run(folder, rollouts=rollouts)
    made = time.perf_counter()
    with RunLog(folder) as log:
        opened = time.perf_counter()

        def median_ms(sql: str) -> float:
            took = []
            for _ in range(5):
                began = time.perf_counter()
                for _ in log.query(sql).rows:
                    pass
                took.append(time.perf_counter() - began)
            return round(1e3 * statistics.median(took), 1)

        views = {name: median_ms(f"FROM {name}") for name in VIEWS}
        least = median_ms("SELECT count(*), avg(reward) FROM rollouts")
    return {
        "made_s": round(made - started, 1),
        "open_ms": round(1e3 * (opened - made), 1),
        "views_ms": views,
        "slowest_ms": max(views.values()),
        "limit_one_column_ms": least,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--groups", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=2048, help="sampled tokens a rollout")
    parser.add_argument("--log-chars", type=int, default=1000, help="characters of each score's log")
    parser.add_argument("--rate", type=float, default=20_000.0, help="tokens a second that the ring trains on")
    parser.add_argument("--views", action="store_true", help="time the named views instead")
    parser.add_argument("--rollouts", type=int, default=1_000_000, help="of the synthetic run")
    args = parser.parse_args()
    if args.views:
        with tempfile.TemporaryDirectory() as name:
            print_result(benchmark="log_views", rollouts=args.rollouts, **measure_views(Path(name) / "run", rollouts=args.rollouts))
        return
    random = np.random.default_rng(0)
    groups = [make_group(index, tokens=args.tokens, log_chars=args.log_chars, random=random) for index in range(args.groups)]
    n_tokens = sum(PROMPT + rollout.n_sampled for group in groups for rollout in group.rollouts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure(folder / "warm", groups[:BATCH])
        found = measure(folder / "run", groups)
        files = [path for path in (folder / "run").rglob("*") if path.is_file()]
        n_bytes = sum(path.stat().st_size for path in files)
        of_tokens = sum(path.stat().st_size for path in files if "/tokens/" in str(path))
        machine = limits(folder / "plain", files)
    cores = os.cpu_count() or 1
    per_core = n_tokens / found["processor"]
    print_result(
        benchmark="log",
        tokens=n_tokens,
        tokens_per_s_and_core=round(per_core),
        tokens_per_s=round(n_tokens / found["wall"]),
        bytes_per_token=round(n_bytes / n_tokens, 3),
        bytes_per_token_of_tokens=round(of_tokens / n_tokens, 3),
        call_ms_per_group=round(1e3 * found["calls"] / args.groups, 3),
        step_cost_percent=round(100 * args.rate / per_core / cores, 3),
        at_tokens_per_s=args.rate,
        log_chars=args.log_chars,
        dropped=int(found["dropped"]),
        written_mb_per_s=round(n_bytes / found["wall"] / 1e6, 1),
        limit_disk_mb_per_s=round(machine["disk_mb_per_s"], 1),
        limit_memory_copy_gb_per_s=round(machine["memory_copy_gb_per_s"], 2),
        cores=cores,
    )


if __name__ == "__main__":
    main()
