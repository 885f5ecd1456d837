"""Synthetic runs with the real schema, for benchmarks and demonstrations: a million rollouts in about a minute.

Rows are drawn column by column and go through the real storage as compacted parts, the way a finished run lies on disk: tasks of three
sources with difficulties of their own, a policy that gets better and longer-winded, groups of 8, drops, flags, and tokens for a few
rollouts of the newest versions, the first of which has 32,768 of them. Everything follows from the seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rl.log.columns import lists
from rl.log.metrics import EvalMetrics, MetricsWriter, RunFlag, StepMetrics
from rl.log.runs import RunPaths, prepare_run
from rl.log.schema import DATASETS, PARTITION
from rl.log.storage import PartWriter, Piece
from rl.log.synthetic_text import FLAG_REASONS, SOURCES, messages, previews

GROUP = 8
_STEPS = 1000
_CHUNK = 250_000
"""Rollouts a part."""
_TASKS = 20_000
_LONGEST = 32_768
"""Sampled tokens."""
_START = 1.75e9
_STEP_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Draw:
    """R rollouts of some steps, in the order of their groups."""

    ids_R: pa.Array
    groups_R: pa.Array
    index_R: np.ndarray
    """int64[R]: group index."""
    sample_R: np.ndarray
    version_R: np.ndarray
    task_R: np.ndarray
    source_R: np.ndarray
    """Index into SOURCES."""
    status_R: np.ndarray
    """0 ok, 1 policy_fail, 2 infra, 3 ungradable."""
    tokens_R: np.ndarray
    """Sampled tokens."""
    answer_R: np.ndarray
    """bool[R]: the answer is right."""
    format_R: np.ndarray
    turns_R: np.ndarray
    random: np.random.Generator

    @property
    def reward_R(self) -> np.ndarray:
        """float64[R]; only where graded."""
        return self.answer_R + 0.1 * self.format_R

    @property
    def graded_R(self) -> np.ndarray:
        """bool[R]"""
        return self.status_R < 2

    def __len__(self) -> int:
        return len(self.index_R)


def write_synthetic_run(root: Path, *, rollouts: int = 1_000_000, token_rollouts: int = 64, seed: int = 0) -> Path:
    """Make a run of about `rollouts` rollouts (whole groups and steps) at `root`; returns `root`.

    `token_rollouts` of the newest have tokens and learner arrays. Raises ValueError when the folder is taken.
    """
    if rollouts < GROUP:
        raise ValueError(f"rollouts is {rollouts}; a synthetic run has at least one group of {GROUP}")
    identity = prepare_run(root)
    groups = rollouts // GROUP
    per_step = -(-groups // _STEPS)
    steps = groups // per_step
    random = np.random.default_rng(seed)
    difficulty = random.normal(0.0, 1.5, _TASKS)
    writer = PartWriter(RunPaths(root=root).log, writer="synthetic", attempt=1)
    stride = max(1, _CHUNK // (per_step * GROUP))
    for first in range(0, steps, stride):
        last = min(first + stride, steps)
        draw = _draw(random, steps=steps, first=first, last=last, per_step=per_step, difficulty=difficulty)
        with_tokens = min(token_rollouts, len(draw)) if last == steps else 0
        if with_tokens:
            draw.tokens_R[-with_tokens] = _LONGEST
        tables = _tables(draw, run_id=identity.run_id, with_tokens=with_tokens)
        pieces = [
            Piece(dataset=name, dispatch_version=-1, table=table, versions=(first, last - 1))
            for name, table in tables.items()
            if len(table)
        ]
        writer.seal(pieces, groups=pc.unique(draw.groups_R).to_pylist())
    writer.close()
    _write_metrics(root, steps=steps, rollouts_a_step=per_step * GROUP)
    return root


def _draw(random: np.random.Generator, *, steps: int, first: int, last: int, per_step: int, difficulty: np.ndarray) -> Draw:
    index_G = np.arange(first * per_step, last * per_step)
    task_G = random.integers(0, _TASKS, len(index_G))
    index_R = np.repeat(index_G, GROUP)
    sample_R = np.tile(np.arange(GROUP), len(index_G))
    version_R = index_R // per_step
    task_R = np.repeat(task_G, GROUP)
    skill_R = -1.0 + 2.5 * version_R / max(1, steps)
    answer_R = random.random(len(index_R)) < 1.0 / (1.0 + np.exp(difficulty[task_R] - skill_R))
    other = random.random(len(index_R))
    status_R = np.select([other < 0.008, other < 0.01, answer_R], [2, 3, 0], 1)
    source_R = task_R % len(SOURCES)
    mean_R = np.array([source.tokens for source in SOURCES])[source_R] * (1.0 + version_R / max(1, steps))
    turns_R = np.where(source_R == len(SOURCES) - 1, 3, 1)
    groups_R = pc.utf8_lpad(pa.array(index_R).cast(pa.string()), 8, "0")
    return Draw(
        ids_R=pc.binary_join_element_wise(groups_R, pa.array(sample_R).cast(pa.string()), "-"),
        groups_R=groups_R,
        index_R=index_R,
        sample_R=sample_R,
        version_R=version_R,
        task_R=task_R,
        source_R=source_R,
        status_R=status_R,
        tokens_R=np.clip(random.lognormal(0.0, 0.6, len(index_R)) * mean_R, 16, _LONGEST).astype(np.int64),
        answer_R=answer_R,
        format_R=random.random(len(index_R)) < 0.9,
        turns_R=turns_R,
        random=random,
    )


def _tables(draw: Draw, *, run_id: str, with_tokens: int) -> dict[str, pa.Table]:
    return {
        "rollouts": _table("rollouts", _rollouts(draw, run_id=run_id), draw),
        "turns": _turns(draw),
        "scores": _table("scores", _scores(draw), draw),
        "learner": _table("learner", _learner(draw, with_arrays=with_tokens), draw),
        "tokens": _tokens(draw, count=with_tokens),
        "spans": _spans(draw),
    }


def _table(dataset: str, columns: dict[str, Any], draw: Draw) -> pa.Table:
    """The columns that are given, others null, and the partition's."""
    schema = DATASETS[dataset].append(pa.field(PARTITION, pa.int64()))
    n = len(draw)
    shared = {"attempt": np.ones(n, np.int32), "logged": _times(draw), "rollout_id": draw.ids_R, PARTITION: draw.version_R}
    given = {**shared, **columns}
    arrays = [pa.array(given[f.name]).cast(f.type) if f.name in given else pa.nulls(n, f.type) for f in schema]
    return pa.table(arrays, schema=schema)


def _times(draw: Draw) -> np.ndarray:
    return _START + _STEP_SECONDS * draw.version_R + draw.index_R % 61


def _chosen(names: Sequence[str], at: np.ndarray) -> pa.Array:
    return pa.array(list(names)).take(pa.array(at))


def _constant(value: str, n: int) -> pa.Array:
    return pa.array([value]).take(pa.array(np.zeros(n, np.int64)))


def _graded(draw: Draw, values_R: np.ndarray) -> pa.Array:
    return pa.array(values_R, mask=~draw.graded_R)


def _parts(draw: Draw) -> pa.Array:
    """`answer` and `format` of every graded rollout."""
    n_R = np.where(draw.graded_R, 2, 0)
    values = np.stack([draw.answer_R, draw.format_R], axis=1)[draw.graded_R].astype(np.float64).reshape(-1)
    weights = np.tile([1.0, 0.1], len(values) // 2)
    items = pa.StructArray.from_arrays(
        [pa.array(values), pa.array(weights), _constant("", len(values))], fields=list(DATASETS["rollouts"].field("parts").type.item_type)
    )
    offsets = np.concatenate([[0], np.cumsum(n_R)]).astype(np.int32)
    names = pa.array(["answer", "format"]).take(pa.array(np.tile([0, 1], len(values) // 2)))
    return pa.MapArray.from_arrays(pa.array(offsets), names, items)


def _timings(draw: Draw) -> pa.Array:
    n = len(draw)
    seconds = np.stack([draw.tokens_R / 800.0, 0.2 * draw.turns_R, np.full(n, 0.4)], axis=1).reshape(-1)
    names = pa.array(["generate", "environment", "score"]).take(pa.array(np.tile([0, 1, 2], n)))
    return pa.MapArray.from_arrays(pa.array(np.arange(0, 3 * n + 1, 3, dtype=np.int32)), names, pa.array(seconds))


def _rollouts(draw: Draw, *, run_id: str) -> dict[str, Any]:
    n, random = len(draw), draw.random
    tasks = pc.binary_join_element_wise(_chosen([s.name for s in SOURCES], draw.source_R), pa.array(draw.task_R).cast(pa.string()), "-")
    status = _chosen(["ok", "policy_fail", "infra", "ungradable"], draw.status_R)
    flagged = random.random(n) < 0.015 * (1.0 + draw.version_R / (draw.version_R[-1] + 1))
    offsets = pa.array(np.concatenate([[0], np.cumsum(flagged)]).astype(np.int32))
    which = random.integers(0, len(FLAG_REASONS), int(flagged.sum()))
    flags = _chosen(list(FLAG_REASONS), which)
    cut = random.random(n) < 0.02
    started = _times(draw) - draw.tokens_R / 800.0
    return {
        "run_id": _constant(run_id, n),
        "group_id": draw.groups_R,
        "group_index": draw.index_R,
        "sample_index": draw.sample_R,
        "seed": pa.array(random.integers(0, 2**63, n)).cast(pa.string()),
        "task_id": tasks,
        "task_hash": pc.utf8_lpad(pa.array(draw.task_R).cast(pa.string()), 16, "0"),
        "source": _chosen([s.name for s in SOURCES], draw.source_R),
        "env": _chosen([s.env for s in SOURCES], draw.source_R),
        "env_version": _constant("codeworld-rl 0.1.0", n),
        "split": _constant("train", n),
        "policy_min": draw.version_R,
        "policy_max": draw.version_R + (draw.tokens_R > 4000),
        "status": status,
        "stop_reason": pc.if_else(pc.equal(status, "infra"), "error", pc.if_else(pa.array(cut), "max_tokens", "done")),
        "error_type": pc.if_else(pc.equal(status, "infra"), "SandboxError", ""),
        "n_turns": draw.turns_R,
        "prompt_tokens": 120 + draw.task_R % 400,
        "sampled_tokens": draw.tokens_R,
        "env_tokens": (draw.turns_R - 1) * 200,
        "reward": _graded(draw, draw.reward_R),
        "parts": _parts(draw),
        "reason": pc.if_else(pc.equal(status, "ok"), "the answer is right", "expected another answer"),
        "scorer": _chosen([f"{s.env} + 0.1*box_format" for s in SOURCES], draw.source_R),
        "scorer_hash": _chosen(["5d1f0c7e2a9b4e66", "90c2aa17be35f001", "e7740b1c5d2f8a93"], draw.source_R),
        "temperature": np.ones(n),
        "top_p": np.ones(n),
        "top_k": np.zeros(n, np.int32),
        "max_tokens": np.full(n, _LONGEST),
        "tokenizer_hash": _constant("0f3a6b1f2c9d7e58", n),
        "template_hash": _constant("b8d41c0a9e6f2735", n),
        "flags": pa.ListArray.from_arrays(offsets, flags),
        "flag_reasons": pa.MapArray.from_arrays(offsets, flags, _chosen(list(FLAG_REASONS.values()), which)),
        "timings": _timings(draw),
        "started": started,
        "ended": _times(draw),
        "preview": previews(draw.source_R, task=draw.task_R, right=draw.answer_R, sample=draw.sample_R),
    }


def _scores(draw: Draw) -> dict[str, Any]:
    return {
        "group_id": draw.groups_R,
        "scorer": _chosen([f"{s.env} + 0.1*box_format" for s in SOURCES], draw.source_R),
        "scorer_hash": _chosen(["5d1f0c7e2a9b4e66", "90c2aa17be35f001", "e7740b1c5d2f8a93"], draw.source_R),
        "live": np.ones(len(draw), bool),
        "scored": _times(draw),
        "value": _graded(draw, draw.reward_R),
        "status": _chosen(["ok", "policy_fail", "infra", "ungradable"], draw.status_R),
        "components": _parts(draw),
        "reason": _constant("", len(draw)),
    }


def _learner(draw: Draw, *, with_arrays: int) -> dict[str, Any]:
    """Advantages are centred on the group; groups of equal rewards are left out."""
    n, random = len(draw), draw.random
    reward_GS = np.where(draw.graded_R, draw.reward_R, np.nan).reshape(-1, GROUP)
    mean_G = np.nansum(reward_GS, axis=1) / np.maximum(1, np.isfinite(reward_GS).sum(axis=1))
    flat_G = (
        np.nan_to_num(np.nanmax(np.nan_to_num(reward_GS, nan=-1e9), axis=1) - np.nanmin(np.nan_to_num(reward_GS, nan=1e9), axis=1)) <= 0
    )
    stale_R = np.repeat(random.random(len(mean_G)) < 0.01, GROUP)
    flat_R = np.repeat(flat_G, GROUP)
    left_R = stale_R | flat_R | ~draw.graded_R
    reasons = np.select([stale_R, draw.status_R == 2, draw.status_R == 3], [0, 1, 2], 3)
    advantage = draw.reward_R - np.repeat(mean_G, GROUP)
    behaviour = -random.exponential(0.4, n).astype(np.float32)
    arrays_R = (np.arange(n) >= n - with_arrays) & ~left_R
    padded: list[np.ndarray | None] = [None] * n
    for i in np.flatnonzero(arrays_R):
        sampled = _logprobs(draw, int(i))
        padded[i] = sampled + random.laplace(0.0, 1e-3, len(sampled)).astype(np.float32)
    return {
        "group_id": draw.groups_R,
        "train_step": draw.version_R + 1,
        "admitted": ~left_R,
        "drop_reason": pa.array(_chosen(["stale", "infra", "ungradable", "zero_variance"], reasons).to_numpy(False), mask=~left_R),
        "advantage": pa.array(advantage, mask=left_R),
        "n_tokens": pa.array(draw.tokens_R, mask=left_R),
        "n_clipped": pa.array(random.poisson(2.0, n), mask=left_R),
        "n_masked": pa.array(np.zeros(n, np.int64), mask=left_R),
        "staleness_mean": pa.array((draw.tokens_R > 4000) * 0.5, mask=left_R),
        "staleness_max": pa.array((draw.tokens_R > 4000).astype(np.int64), mask=left_R),
        "kl": pa.array(random.lognormal(-11.0, 1.0, n), mask=left_R),
        "worst_index": pa.array(random.integers(0, draw.tokens_R), mask=left_R),
        "worst_token": pa.array(random.integers(0, 128_000, n), mask=left_R),
        "worst_behaviour": pa.array(behaviour, mask=left_R),
        "worst_learner": pa.array(behaviour + random.laplace(0, 0.02, n).astype(np.float32), mask=left_R),
        "learner_logprob": lists(padded, np.float32),
        "entropy": lists([None if one is None else -0.7 * one for one in padded], np.float16),
    }


def _logprobs(draw: Draw, i: int) -> np.ndarray:
    """float32[N]: of the rollout's sampled tokens, the same whenever they are asked for."""
    return -np.random.default_rng(int(draw.index_R[i] * GROUP + draw.sample_R[i])).exponential(0.4, draw.tokens_R[i]).astype(np.float32)


def _tokens(draw: Draw, *, count: int) -> pa.Table:
    """Of the last `count` rollouts."""
    schema = DATASETS["tokens"].append(pa.field(PARTITION, pa.int64()))
    rows = []
    for i in range(len(draw) - count, len(draw)):
        n_prompt, n = int(120 + draw.task_R[i] % 400), int(draw.tokens_R[i])
        rows.append(
            {
                "rollout_id": draw.ids_R[i].as_py(),
                "attempt": 1,
                "logged": float(_START + _STEP_SECONDS * draw.version_R[i] + draw.index_R[i] % 61),
                "token_ids": draw.random.integers(0, 128_000, n_prompt + n),
                "segments": [{"start": 0, "len": n_prompt, "kind": "context"}, {"start": n_prompt, "len": n, "kind": "sampled"}],
                "behaviour_logprob": _logprobs(draw, i),
                "logprob_kind": "raw",
                "version_segments": [{"start": 0, "version": int(draw.version_R[i])}],
                PARTITION: int(draw.version_R[i]),
            }
        )
    return pa.Table.from_pylist(rows, schema=schema)


def _turns(draw: Draw) -> pa.Table:
    """The prompt and the reply; two tool calls and their outputs between them for the source that has tools."""
    schema = DATASETS["turns"].append(pa.field(PARTITION, pa.int64()))
    n_R = np.where(draw.turns_R > 1, 6, 2)
    of_M = np.repeat(np.arange(len(draw)), n_R)
    message_M = np.arange(len(of_M)) - np.repeat(np.cumsum(n_R) - n_R, n_R)
    columns = messages(
        message_M,
        n_M=n_R[of_M],
        source_M=draw.source_R[of_M],
        task_M=draw.task_R[of_M],
        right_M=draw.answer_R[of_M],
        tokens_M=draw.tokens_R[of_M],
    )
    rows = pa.array(of_M)
    given = {
        **columns,
        "rollout_id": draw.ids_R.take(rows),
        "attempt": np.ones(len(of_M), np.int32),
        "logged": _times(draw)[of_M],
        "message_index": message_M,
        PARTITION: draw.version_R[of_M],
    }
    arrays = [pa.array(given[f.name]).cast(f.type) if f.name in given else pa.nulls(len(of_M), f.type) for f in schema]
    return pa.table(arrays, schema=schema)


def _spans(draw: Draw) -> pa.Table:
    """Phases of the loop, one row each a step."""
    schema = DATASETS["spans"].append(pa.field(PARTITION, pa.int64()))
    phases = ("rollout", "train", "sync", "log")
    ends = np.cumsum([0.0, 40.0, 16.0, 3.0, 0.5])
    version_P = np.repeat(np.unique(draw.version_R), len(phases))
    phase_P = np.tile(np.arange(len(phases)), len(version_P) // len(phases))
    n = len(version_P)
    given = {
        "attempt": np.ones(n, np.int32),
        "actor": _constant("loop", n),
        "name": _chosen(phases, phase_P),
        "started": _START + _STEP_SECONDS * version_P + ends[phase_P],
        "ended": _START + _STEP_SECONDS * version_P + ends[phase_P + 1],
        "train_step": version_P + 1,
        PARTITION: version_P,
    }
    arrays = [pa.array(given[f.name]).cast(f.type) if f.name in given else pa.nulls(n, f.type) for f in schema]
    return pa.table(arrays, schema=schema)


def _write_metrics(root: Path, *, steps: int, rollouts_a_step: int) -> None:
    path = RunPaths(root=root).metrics
    random = np.random.default_rng(1)
    with MetricsWriter(path, attempt=1, restored_step=0) as out:
        for step in range(1, steps + 1):
            done = step / steps
            rates = {source.name: float(np.clip(0.25 + 0.4 * done + random.normal(0, 0.02), 0, 1)) for source in SOURCES}
            out.step(_step(step, done=done, rates=rates, rollouts=rollouts_a_step, noise=float(random.normal(0, 0.02))))
            if step % 100 == 0:
                for name, rate in rates.items():
                    passed = int(np.clip(rate - 0.05, 0, 1) * 200)
                    time = _START + _STEP_SECONDS * step
                    out.evaluated(EvalMetrics(step=step, time=time, split="heldout", source=name, passed=passed, graded=200))
        out.flagged(RunFlag(name="entropy_jump", step=steps, time=_START + _STEP_SECONDS * steps, reason="a synthetic flag of the run"))


def _step(step: int, *, done: float, rates: dict[str, float], rollouts: int, noise: float) -> StepMetrics:
    length = 600.0 * (1 + done) * (1 + noise)
    return StepMetrics(
        step=step,
        version=step - 1,
        time=_START + _STEP_SECONDS * step,
        seconds=_STEP_SECONDS * (1 + noise),
        reward_mean=sum(rates.values()) / len(rates),
        pass_rate=rates,
        response_length=length,
        entropy=1.1 - 0.6 * done + noise,
        kl=2e-5 * (1 + abs(noise)),
        clip_fraction=0.01 * (1 + noise),
        grad_norm=0.4 * (1 + noise),
        learning_rate=1e-6,
        loss=0.01 * noise,
        staleness_mean=0.4,
        staleness_max=2,
        tokens=int(length * rollouts),
        tokens_per_s=length * rollouts / _STEP_SECONDS,
        phases={"rollout": 40.0, "train": 16.0, "sync": 3.0, "log": 0.5},
        drops={"zero_variance": rollouts // 3, "infra": rollouts // 125},
        groups_trained=2 * rollouts // (3 * GROUP),
        groups_skipped=rollouts // (3 * GROUP),
    )
