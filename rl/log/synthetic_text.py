"""What the messages of synthetic runs say; column by column, so that millions are made in seconds."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticSource:
    """One task source."""

    name: str
    env: str
    tokens: float
    """Sampled tokens of a rollout, about."""
    question: str
    reply: str


SOURCES = (
    SyntheticSource(
        name="algebra",
        env="math",
        tokens=500.0,
        question="Solve for x and put the result in a box; problem number ",
        reply="<think>Subtract on both sides, then divide.</think>\nSo x is \\boxed{42}. Attempt ",
    ),
    SyntheticSource(
        name="functions",
        env="code",
        tokens=700.0,
        question="Write a Python function `solve(numbers)` that returns their sum without duplicates; problem number ",
        reply="<think>A set removes duplicates.</think>\n```python\ndef solve(numbers):\n    return sum(set(numbers))\n```\nAttempt ",
    ),
    SyntheticSource(
        name="repository",
        env="swe",
        tokens=1500.0,
        question="The parser drops the last line of a file without a line break. Find and repair it; issue number ",
        reply="The loop ended one line early; `read_lines` keeps it now, and the tests pass. Attempt ",
    ),
)
_CALL = "I look at the code first.\n<tool: bash>\ngrep -rn read_lines src tests\n</tool>"
_OUTPUT = "src/parser.py:41:def read_lines(stream):\ntests/test_parser.py:12:    assert list(read_lines(text)) == ['a', 'b']\n"
FLAG_REASONS = {
    "repetition": "a passage of 64 characters is repeated 9 times",
    "truncated_think": "the reply ends inside its reasoning",
    "tests_edited": "the patch changes tests/test_parser.py",
    "exit_or_skip_trick": "the code calls sys.exit(0) before the tests",
    "length_jump": "4210 sampled tokens; the running mean is 702",
}
"""Name of a flag: why it was raised."""


def previews(source_R: np.ndarray, *, task: np.ndarray, right: np.ndarray, sample: np.ndarray) -> pa.Array:
    """string[R]: beginnings of the replies."""
    replies = pa.array([source.reply for source in SOURCES]).take(pa.array(source_R))
    verdict = pa.array(["is wrong", "is right"]).take(pa.array(right.astype(np.int64)))
    number = pa.array(task * 8 + sample).cast(pa.string())
    return pc.binary_join_element_wise(replies, number, " ", verdict, "")


def messages(
    message_M: np.ndarray, *, n_M: np.ndarray, source_M: np.ndarray, task_M: np.ndarray, right_M: np.ndarray, tokens_M: np.ndarray
) -> dict[str, Any]:
    """Columns of `turns` for M messages: the prompt, then calls and outputs in turn, and the reply at the end."""
    said = message_M % 2 == 1
    last = message_M == n_M - 1
    turn_M = message_M // 2
    questions = pc.binary_join_element_wise(
        pa.array([source.question for source in SOURCES]).take(pa.array(source_M)), pa.array(task_M).cast(pa.string()), ""
    )
    replies = previews(source_M, task=task_M, right=right_M, sample=turn_M)
    call, output = (pa.array([text]).take(pa.array(np.zeros(len(message_M), np.int64))) for text in (_CALL, _OUTPUT))
    spoken = pc.if_else(pa.array(last), replies, call)
    text = pc.if_else(pa.array(said), spoken, pc.if_else(pa.array(message_M == 0), questions, output))
    shown_role = np.where(message_M == 0, 0, 2)
    tools = said & ~last
    share = tokens_M // np.maximum(1, n_M // 2)
    start = 120 + task_M % 400 + turn_M * (share + 200)
    return {
        "role": pa.array(["user", "assistant", "tool"]).take(pa.array(np.where(said, 1, shown_role))),
        "text": text,
        "text_chars": pc.utf8_length(text),
        "tool": pa.array(np.where(tools | (shown_role == 2) & ~said, "bash", ""), mask=~(tools | (shown_role == 2) & ~said)),
        "arguments": pa.array(np.where(tools, "grep -rn read_lines src tests", ""), mask=~tools),
        "exit_code": pa.array(np.zeros(len(said), np.int32), mask=said | (message_M == 0)),
        "turn": pa.array(turn_M, mask=~said),
        "token_start": pa.array(start, mask=~said),
        "token_end": pa.array(start + share, mask=~said),
        "finish_reason": pa.array(np.where(said, "stop_token", ""), mask=~said),
    }
