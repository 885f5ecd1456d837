"""Rows of `rl grade`'s form that `rl env check` tries the built-in environments on, each with the solution that must pass."""

from collections.abc import Mapping, Sequence
from typing import Any

_SUM = {"id": "sum", "prompt": "What is 17 + 25?", "answer": "42", "solution": "17 + 25 = \\boxed{42}"}
_HALF = {"id": "half", "prompt": "What is 3 divided by 8?", "answer": "3/8", "solution": "It is \\boxed{\\frac{3}{8}}."}
_ADD = {
    "id": "add",
    "prompt": "Write add(a, b), the sum.",
    "entry_point": "add",
    "tests": [{"args": [1, 2], "expected": 3}, {"args": [-5, 9], "expected": 4}],
    "solution": "```python\ndef add(a, b):\n    return a + b\n```",
}
_LAST = {
    "id": "last",
    "prompt": "Write last(xs), the last item.",
    "entry_point": "last",
    "tests": [{"args": [[1, 2]], "expected": 2}, {"args": [["a"]], "expected": "a"}],
    "solution": "```python\ndef last(xs):\n    return xs[-1]\n```",
}
_DOUBLE = "def f(n):\n    m = n * 2\n    return m\n"
_FRAMES = (
    '<|call_sep|>{"n": "4"}<|action_sep|>def f(n):\n<|frame_sep|>',
    '<|line_sep|>{"n": ".."}<|action_sep|>    m = n * 2\n<|frame_sep|>',
    '<|line_sep|>{"n": "..", "m": "8"}<|action_sep|>    return m\n<|frame_sep|>',
    '<|return_sep|><|action_sep|>    return m\n<|arg_sep|>"8"<|frame_sep|>',
)
_CONTEXT = "<|trace_context_start|>def f(n):  # << START_OF_TRACE\n    m = n * 2\n    return m\n<|frame_sep|>"

BUILTIN_ROWS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "math": (_SUM, _HALF),
    "math_python": (_SUM, _HALF),
    "code_output": (
        {"id": "print", "prompt": "print(6 * 7)", "answer": "42", "solution": "```\n42\n```"},
        {"id": "loop", "prompt": "for i in (3, 5): print(i)", "answer": "3\n5", "solution": "```\n3\n5\n```"},
    ),
    "code": (_ADD, _LAST),
    "code_attempts": (
        {**_ADD, "public_tests": [{"args": [2, 2], "expected": 4}]},
        {**_LAST, "public_tests": [{"args": [[5]], "expected": 5}]},
    ),
    "code_stdio": (
        {
            "id": "sum",
            "prompt": "Read two numbers and print their sum.",
            "tests": [{"stdin": "1 2\n", "stdout": "3\n"}, {"stdin": "40 2\n", "stdout": "42\n"}],
            "solution": "```python\na, b = map(int, input().split())\nprint(a + b)\n```",
        },
    ),
    "code_puzzle": (
        {
            "id": "square",
            "prompt": "Write sol() so that sat(sol()) is True.",
            "context": "def sat(x: int):\n    return x * x == 1369 and x > 0",
            "solution": "```python\ndef sol():\n    return 37\n```",
        },
    ),
    "code_class": (
        {
            "id": "counter",
            "prompt": "Write a class Tally with add(n) and total().",
            "class_name": "Tally",
            "tests": "import unittest\n\nclass TestTally(unittest.TestCase):\n    def test_total(self):\n        tally = Tally()\n"
            "        tally.add(3)\n        tally.add(4)\n        self.assertEqual(tally.total(), 7)\n",
            "solution": "```python\nclass Tally:\n    def __init__(self):\n        self.n = 0\n    def add(self, n):\n        self.n += n\n"
            "    def total(self):\n        return self.n\n```",
        },
    ),
    "code_input": (
        {
            "id": "minus",
            "prompt": "Which call of f returns 93?",
            "code": "def f(x):\n    return x * 3 - 6",
            "output": "93",
            "answer": "33",
            "solution": "```\n33\n```",
        },
    ),
    "trace_output": (
        {"id": "double", "prompt": f"{_DOUBLE}\nassert f(4) == ??", "answer": "8", "solution": "```\n8\n```"},
        {
            "id": "thought",
            "prompt": "def f(xs):\n    return xs[::-1]\n\nassert f([1, 2]) == ??",
            "answer": "[2, 1]",
            "reasoning": True,
            "solution": "<think>\nThe list is turned round.\n</think>\n```\n[2, 1]\n```",
        },
    ),
    "trace_input": (
        {
            "id": "undouble",
            "prompt": f"{_DOUBLE}\nassert f(??) == 22",
            "code": _DOUBLE,
            "entry": "f",
            "output": "22",
            "answer": "11",
            "solution": "```\n11\n```",
        },
    ),
    "trace_next_frame": (
        {
            "id": "line",
            "prompt": _CONTEXT + "".join(_FRAMES[:2]),
            "code": _DOUBLE,
            "shown": "".join(_FRAMES[:2]),
            "answer": _FRAMES[2],
            "solution": _FRAMES[2],
        },
        {
            "id": "return",
            "prompt": _CONTEXT + "".join(_FRAMES[:3]),
            "code": _DOUBLE,
            "shown": "".join(_FRAMES[:3]),
            "answer": _FRAMES[3],
            "partial_credit": False,
        },
    ),
    "trace_full": (
        {
            "id": "double",
            "prompt": _CONTEXT + _FRAMES[0],
            "code": _DOUBLE,
            "shown": _FRAMES[0],
            "answer": "".join(_FRAMES[1:]),
            "solution": "".join(_FRAMES[1:]) + "<|end_of_text|>",
        },
    ),
    "trace_return": (
        {
            "id": "double",
            "prompt": _CONTEXT + _FRAMES[0] + "<|return_sep|>",
            "code": _DOUBLE,
            "shown": _FRAMES[0],
            "answer": _FRAMES[-1],
            "solution": _FRAMES[-1].removeprefix("<|return_sep|>"),
        },
    ),
    "trace_debugger": (
        {
            "id": "forward",
            "prompt": "Say where the debugger stands after the action.",
            "code": _DOUBLE,
            "entry": "f",
            "args": "[4]",
            "turns": 3,
            "actions": "forward",
            "walk": 3,
            "replies": list(_FRAMES[1:]),
        },
        {
            "id": "back",
            "prompt": "Say where the debugger stands after the action.",
            "code": _DOUBLE,
            "entry": "f",
            "args": "[4]",
            "turns": 2,
            "actions": "reverse",
            "walk": 4,
            "replies": [_FRAMES[2].replace("..", "4"), _FRAMES[0]],
        },
    ),
}
"""By environment."""
