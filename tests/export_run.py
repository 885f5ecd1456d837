"""A small run with what exports must carry: hostile and huge texts, tools, a long output, a restart, rollouts without a reward."""

from dataclasses import replace
from pathlib import Path

import yaml

from environments.records import Message, StopReason
from rewards.score import Score, ScorePart, ScoreStatus
from rl.log.runs import RunPaths, prepare_run
from rl.log.spans import SpanWriter
from rl.log.text import storable
from rl.log.writer import LearnerWriter, RolloutWriter
from rl.records import Rollout, RolloutGroup, Span
from tests.log_fakes import make_group, make_rollout, make_sample, make_stats, make_turn

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202egnp.exe\x00\x7f\u200b\u05e9 \"q\" 'q' {{7*7}} \\u0000 \ud800 \U0001f600\r\n\t"
CALL = '<tool: bash>\nls -la; echo "\x1b[2J"\n</tool>'
LONG = "line of output\x07\n" * 3000
BIG = "B" * 10_000_000 + "\x00END"
KEPT = storable(HOSTILE)
"""As the log keeps it: the lone surrogate is an escape, everything else is what it was."""


def make_export_run(root: Path) -> Path:
    """Group 0 has tools, 1 a huge turn and two rollouts without a reward, 2 is held out."""
    identity = prepare_run(root)
    groups = [_tools(), _huge(), make_group(2, version=1, split="heldout")]
    with RolloutWriter(root, run_id=identity.run_id, attempt=1, writer="w0", tokens=True) as writer:
        for group in groups:
            writer.write_group(group)
            writer.flush()
    with LearnerWriter(root, attempt=1) as learner:
        samples = [make_sample(one, group_index=1, advantage=0.75) for one in groups[1].rollouts[:1]]
        learner.write_step(train_step=1, groups=groups[:2], samples=samples, stats=[make_stats(samples)])
    with SpanWriter(root, attempt=1, actor="worker-0") as spans:
        for rollout_id, start in (("00000000-0", 10.0), ("00000000-1", 10.5), ("00000001-0", 14.0)):
            group_id = rollout_id.partition("-")[0]
            for name, begin, end in (("generate", 0.0, 1.0), ("environment", 1.0, 1.25), ("generate", 1.25, 2.0), ("score", 2.0, 2.0)):
                moment = {"started": start + begin, "ended": start + end}
                spans.record(Span(name=name, version=0, group_id=group_id, rollout_id=rollout_id, turn=0, **moment))
    with SpanWriter(root, attempt=1, actor="loop") as spans:
        spans.record(Span(name="train", started=20.0, ended=21.0, version=0, train_step=1))
    RunPaths(root=root).config.write_text(yaml.safe_dump({"model": {"path": "models/tiny-coder"}}))
    return root


def _tools() -> RolloutGroup:
    """Two turns with a tool between them, and one whose second turn renders the conversation anew."""
    messages = [
        Message(role="system", content="Be brief."),
        Message(role="user", content=HOSTILE),
        Message(role="assistant", content=CALL),
        Message(role="tool", name="bash", content=LONG, exit_code=3),
        Message(role="assistant", content=f"done {HOSTILE}"),
    ]
    turns = [
        make_turn(context=[1, 2, 3], sampled=[7, 8], text=CALL),
        make_turn(context=[4], sampled=[9, 10, 11], version=1, text=f"done {HOSTILE}"),
    ]
    score = Score(
        reward=0.1,
        status=ScoreStatus.POLICY_FAIL,
        parts={"answer": ScorePart(value=0.0, reason=HOSTILE), "format": ScorePart(value=1.0, weight=0.1)},
        reason=f"reason {HOSTILE}",
        log=f"test log {HOSTILE}",
    )
    first = make_rollout("00000000-0", turns=turns, messages=messages, score=score, outcome={"patch": HOSTILE})
    restarted = [turns[0], replace(make_turn(context=[1, 2, 3, 7, 5], sampled=[9], text="done"), restarts=True)]
    second = make_rollout("00000000-1", sample=1, turns=restarted, messages=[*messages[:4], Message(role="assistant", content="done")])
    return make_group(0, rollouts=[first, second])


def _huge() -> RolloutGroup:
    huge = make_rollout("00000001-0", turns=[make_turn(context=[1], sampled=[5, 6], text=BIG)])
    failed = Rollout(
        rollout_id="00000001-1",
        sample_index=1,
        seed=1,
        turns=(),
        messages=(),
        score=Score(reward=None, status=ScoreStatus.INFRA, reason="the sandbox did not answer"),
        stop_reason=StopReason.ERROR,
        error_type="SandboxError",
        timings={},
    )
    broken = Score(reward=None, status=ScoreStatus.UNGRADABLE, reason="the task has no test")
    return make_group(1, version=1, rollouts=[huge, failed, make_rollout("00000001-2", sample=2, score=broken)])
