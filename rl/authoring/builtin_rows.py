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
}
"""By environment."""
