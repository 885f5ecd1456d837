"""A small repository in an image, a task made by breaking it, and attacks on the grading of that task."""

from dataclasses import dataclass
from textwrap import dedent

from environments.containers.base import Containers
from environments.swe.changes import to_tar
from environments.swe.images.kept_modules import keeping_modules
from environments.swe.images.rootfs import ensure_python_image
from environments.swe.records import Patch, RepoTask, TreeChange

IMAGE = "codeworld-rl-test:calc"
LIBRARY = dedent('''\
    """Sums."""

    import random


    class Money:
        """An amount."""

        def __init__(self, amount):
            self.amount = amount

        def __add__(self, other):
            return Money(self.amount + other.amount)

        def __eq__(self, other):
            return isinstance(other, Money) and self.amount == other.amount


    def add(a, b):
        return a + b


    def total(values):
        result = 0
        for value in values:
            result = add(result, value)
        return result


    def shuffled(values):
        return random.sample(values, len(values))
''')
BROKEN = LIBRARY.replace("self.amount + other.amount", "self.amount - other.amount").replace("result = 0", "result = 1")
TESTS = dedent('''\
    import unittest
    from unittest.mock import ANY

    import pytest

    from calc import Money, add, shuffled, total


    def test_total(three):
        assert total([1, 2]) == three


    @pytest.mark.parametrize("values", [[], [0]])
    def test_nothing(values):
        """Sums of nothing."""
        assert total(values) in (0, 0.0)


    def test_money():
        assert Money(1) + Money(2) == Money(3)


    def test_list():
        assert [total([5])] == [5]


    def test_add():
        assert add("a", "b") == "ab"
        assert add(0.1, 0.2) == pytest.approx(0.3)
        assert shuffled([1]) == [1] and {"x": ANY} == {"x": add(1, 1)}
        near = dict.fromkeys("abcdefghijklmnopqrstuvwxy")
        assert add("", "z") not in near and add("", "y") in near


    class TestOld(unittest.TestCase):
        def setUp(self):
            self.nothing = 0

        def test_total(self):
            self.assertEqual(total([2, 3]), 5)

        def test_add(self):
            self.assertEqual(add([1], [2]), [1, 2])
            self.assertIn(add(1, 1), [2])
''')
MORE_TESTS = dedent("""\
    import unittest

    import pytest
    import sumcheck

    from calc import Money, total
    from tests.checks import same


    def check(left, right):
        assert left == right


    def test_helper():
        check(total([4]), 4)


    def test_far_helper():
        same(total([4]), 4)


    def test_installed_helper():
        sumcheck.assert_same(total([7]), 7)


    def test_all():
        assert all(total([n]) == n for n in (1, 2))
        found = Money(1) + Money(3) == Money(4)
        assert found


    def test_raises():
        total([])
        with pytest.raises(ZeroDivisionError):
            1 / total([])


    class TestMore(unittest.TestCase):
        def test_variable(self):
            found = total([2, 2])
            self.assertEqual(found, 4)
            self.assertTrue(found == 4)

        def test_one(self):
            found = total([2, 2])
            self.assertEqual(found, 4)
""")
"""Ways to check that lead over functions which others could replace. `sumcheck` is installed in the image."""
FILES = {
    "calc.py": LIBRARY,
    "helpers/__init__.py": "",
    "tests/conftest.py": "import pytest\n\n\n@pytest.fixture\ndef three():\n    return 3\n",
    "tests/test_calc.py": TESTS,
    "tests/__init__.py": "",
    "tests/checks.py": "def same(left, right):\n    assert left == right\n",
    "tests/test_more.py": MORE_TESTS,
    "extra/test_beside.py": "import sumcheck\nfrom calc import total\n\ndef test_beside():\n    sumcheck.assert_same(total([7]), 7)\n",
    "pyproject.toml": '[project]\nname = "calc"\nversion = "1"\n\n[tool.pytest.ini_options]\naddopts = "-ra"\n',
}
FAIL_TO_PASS = tuple(
    f"tests/test_calc.py::{name}"
    for name in ("test_total", "test_nothing[values0]", "test_nothing[values1]", "test_money", "test_list", "TestOld::test_total")
)
PASS_TO_PASS = ("tests/test_calc.py::test_add", "tests/test_calc.py::TestOld::test_add")


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Changes by which a patch tries to pass without repairing anything."""

    name: str
    files: dict[str, str | None]
    """Path: text, None for deleted."""
    reason: str
    """What the verdict must say, in part."""
    tests: tuple[str, ...] = FAIL_TO_PASS
    """Those that it wants to pass."""

    def changes(self) -> tuple[TreeChange, ...]:
        return tuple(change(path, text) for path, text in self.files.items())


def change(path: str, text: str | bytes | None, *, mode: int = 0o100644) -> TreeChange:
    data = text.encode() if isinstance(text, str) else text
    return TreeChange(path=path.encode(), mode=None if data is None else mode, data=data or b"")


def make_task(*, gold: Patch, seconds: float = 60.0, tests: tuple[str, ...] = FAIL_TO_PASS) -> RepoTask:
    return RepoTask(
        id="calc-1",
        image=IMAGE,
        instruction="total and Money are wrong.",
        overlay=(change("calc.py", BROKEN),),
        gold=gold,
        fail_to_pass=tests,
        pass_to_pass=PASS_TO_PASS,
        test_seconds=seconds,
    )


async def make_image(containers: Containers) -> None:
    tree = [change(f"testbed/{path}", text) for path, text in FILES.items()]
    files = to_tar([*tree, change("opt/sumcheck.py", "def assert_same(left, right):\n    assert left == right\n")], folders=True)
    install = "import os, pytest, shutil; shutil.copy('/opt/sumcheck.py', os.path.dirname(os.path.dirname(pytest.__file__)))"
    base = await ensure_python_image(containers)
    made = await containers.build_step(
        base=base,
        image=IMAGE,
        command=keeping_modules(("/bin/sh", "-c", f'chown -R 1000:1000 /testbed && python3 -c "{install}"')),
        files=files,
        labels={},
        seconds=60.0,
    )
    assert made.exit_code == 0, made.errors
