"""Tests in source form: what crosses between the box of the tests and that of the candidate, and what the tests can do with it."""

from typing import Any

import pytest

from rewards.score import Score, ScoreStatus
from tests.code_grading import SHORT, grade_code, grade_codes, grade_pairs
from tests.hostile_code import FORGE

QUEUE = """
class Queue:
    limit = 3
    def __init__(self, items=()):
        self.items = list(items)
        self._secret = {'n': 1}
        self.made = []
    def push(self, item):
        if len(self.items) >= self.limit: raise OverflowError('full', self.limit)
        self.items.append(item)
        return self
    def pop(self): return self.items.pop(0)
    def copy(self): return Queue(self.items)
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
    def __getitem__(self, n): return self.items[n]
    def __str__(self): return f'Queue({self.items})'
    @staticmethod
    def of(*items): return Queue(items)
    @classmethod
    def name(cls): return cls.__name__
"""


def asserts(tests: str, code: str, **settings: Any) -> Score:
    return grade_code({"tests": tests, **SHORT, **settings}, code)


def unittests(body: str, code: str = QUEUE, *, name: str = "Queue", **settings: Any) -> Score:
    lines = "\n".join("        " + line for line in body.strip().split("\n"))
    tests = f"import unittest\nclass Test{name}(unittest.TestCase):\n    def test_it(self):\n{lines}\n"
    return grade_code({"class_name": name, "tests": tests, **SHORT, **settings}, code, env="code_class")


@pytest.mark.parametrize(
    "value",
    [
        "None", "True", "-0.0", "10 ** 40", "-(10 ** 5000)", "float('inf')", "1 + 2j", "'é\\n\\ud800'", "b'\\x00\\xff'",
        "range(3, 9, 2)", "int", "[1, (2, {3, 4}), frozenset({5}), {(6,): [7], 'k': None}]", "[[]] * 3", "{}", "set()", "()",
    ],
)  # fmt: skip
def test_values_cross_both_ways_as_they_are(value: str) -> None:
    """The candidate gives back what it gets; the test compares type and content."""
    tests = f"value = {value}\nback = same(value)\nassert type(back) is type(value) and repr(back) == repr(value)"
    tests += "\nassert described(value) == repr(value)"
    code = "import sys\nsys.set_int_max_str_digits(0)\ndef same(x): return x\ndef described(x): return repr(x)"
    assert asserts("import sys\nsys.set_int_max_str_digits(0)\n" + tests, code).status is ScoreStatus.OK


def test_dicts_of_the_standard_library_cross_as_what_they_equal() -> None:
    code = "import collections as c\ndef count(x): return c.Counter(x), c.defaultdict(int, a=1), c.OrderedDict(b=2)"
    assert asserts("assert count('aab') == ({'a': 2, 'b': 1}, {'a': 1}, {'b': 2})", code).status is ScoreStatus.OK


def test_objects_of_the_candidate_can_be_passed_on_and_not_be_asked() -> None:
    code = (
        "class Node:\n    def __init__(self, v): self.v, self.next = v, None\ndef total(n): return 0 if n is None else n.v + total(n.next)"
    )
    tests = "a = Node(1)\na.next = Node(2)\na.next.next = Node(3)\nassert total(a) == 6\nassert total(a.next) == 5"
    assert asserts(tests, code).status is ScoreStatus.OK
    for asked in (
        "a.v == 1",
        "list(a) == [1]",
        "len(a) == 1",
        "a[0] == 1",
        "a",
        "not a",
        "a.method() == 1",
        "str(a) == 'x'",
        "a == 1",
        "a < 2",
    ):
        lying = code + "\n    # never reached\nNode.method = Node.__len__ = lambda self: 1\nNode.__getitem__ = lambda self, n: 1"
        lying += "\nNode.__bool__ = Node.__lt__ = Node.__eq__ = lambda *args: True\nNode.__iter__ = lambda self: iter([1])"
        lying += "\nNode.__str__ = lambda self: 'x'"
        score = asserts(f"a = Node(1)\nassert {asked}\nassert total(a) == 1", lying)
        assert score.status is ScoreStatus.POLICY_FAIL, asked


def test_helpers_and_imports_of_the_tests_are_the_datas_own() -> None:
    """The response's own `poly`, `math` and `isclose` do not reach the test."""
    reference = "import math\nfrom math import isclose\ndef poly(x): return x * x - 2\ndef root(): return 2 ** 0.5"
    tests = "assert abs(poly(root())) < 1e-9\nassert isclose(root(), math.sqrt(2))"
    fake = "class math: sqrt = isclose = lambda *a: True\nisclose = poly = abs = lambda *a: 0\ndef root(): return 9"
    settings = {"entry_point": "root", "reference": reference}
    assert asserts(tests, "def root(): return 2 ** 0.5", **settings).status is ScoreStatus.OK
    assert asserts(tests, fake, **settings).status is ScoreStatus.POLICY_FAIL


def test_context_stands_before_a_whole_program_and_before_the_rest_of_a_function() -> None:
    context = "from typing import List\n\ndef helper(x):\n    return x + 1\n\ndef f(xs: List[int]) -> int:\n    '''The sum, plus one.'''\n"
    tests = "assert f([1, 2]) == 4\nassert helper(1) == 2"
    whole, rest = "def f(xs: List[int]): return helper(sum(xs))", "    return helper(sum(xs))"
    scores = grade_codes({"entry_point": "f", "context": context, "tests": tests, **SHORT}, [whole, rest, "pass", "    return 0"])
    assert [score.status.value for score in scores] == ["ok", "ok", "policy_fail", "policy_fail"]


def test_exceptions_cross_by_their_nearest_builtin_class() -> None:
    tests = """
def raised(n):
    try: f(n)
    except Exception as error: return type(error).__name__, error.args
for n, expected in enumerate([('KeyError', ('k',)), ('ValueError', ('no', 1)), ('ZeroDivisionError', ('division by zero',))]):
    assert raised(n) == expected
assert raised(3)[0] == 'CandidateError' and raised(4)[0] == 'CandidateError'
"""
    code = """
class Mine(ValueError): pass
def f(n):
    if n == 0: raise KeyError('k')
    if n == 1: raise Mine('no', 1)
    if n == 3: raise SystemExit(0)
    if n == 4: raise StopIteration
    return 1 / 0
"""
    assert asserts(tests, code).status is ScoreStatus.OK


def test_stop_iteration_does_not_end_a_loop_of_the_test() -> None:
    code = "def f(n): raise StopIteration"
    assert asserts("assert all(map(f, [1, 2]))", code).status is ScoreStatus.POLICY_FAIL
    assert asserts("assert list(map(f, [1, 2])) == []", code).status is ScoreStatus.POLICY_FAIL


def test_arguments_stay_as_they_were_unless_mutation_is_asked_for() -> None:
    code = "def order(xs):\n    xs.sort()\n    xs[0].append({})\n    return xs"
    kept = "xs = [[2], [1]]\ninner = xs[1]\norder(xs)\nassert xs == [[2], [1]]"
    seen = "xs = [[2], [1]]\norder(xs)\nassert xs == [[1, {}], [2]]"
    in_place = "x = {'a': [1]}\ninner = x['a']\ngrow(x)\nassert x == {'a': [1, 2], 'b': 3} and inner is x['a'] and inner == [1, 2]"
    assert asserts(kept, code).status is ScoreStatus.OK
    assert asserts(kept, code, mutated_arguments=True).status is ScoreStatus.POLICY_FAIL
    assert asserts(seen, code, mutated_arguments=True).status is ScoreStatus.OK
    grow = "def grow(x):\n    x['a'].append(2)\n    x['b'] = 3"
    assert asserts(in_place, grow, mutated_arguments=True).status is ScoreStatus.OK
    cleared = "def f(xs):\n    xs.clear()\n    return []"
    assert asserts("xs = [3, 1]\nassert f(xs) == sorted(xs)", cleared).status is ScoreStatus.POLICY_FAIL


@pytest.mark.parametrize(
    ("tests", "code"),
    [
        ("print('x' * 100)\nassert f(1) == 1", "import os\ndef f(n):\n    print('y' * 100); os.write(1, b'z'); return n"),
        ("import sys, os\nos.write(1, b'{\"verdict\": 1}')\nsys.__stdout__.write('no')\nassert f(1) == 1", "def f(n): return n"),
        ("if True:\n    for n in range(300):\n        assert f(n) == n", "def f(n): return n"),
        ("if f(1) == 1:\n    assert f(2) == 2\nelse:\n    assert False", "def f(n): return n"),
        ("assert f(b=2, a=1) == [1, 2]", "def f(a, b): return [a, b]"),
        ("assert f(2)(3) == 5", "def f(a): return lambda b: a + b"),
    ],
    ids=["prints", "writes to its stdout", "a loop", "a branch", "keywords", "a closure"],
)
def test_what_tests_may_do(tests: str, code: str) -> None:
    assert asserts(tests, code).status is ScoreStatus.OK


def test_one_false_assert_of_a_loop_fails_and_later_ones_cannot_mend_it() -> None:
    score = asserts("for n in range(9):\n    assert f(n) != 4", "def f(n): return n", partial_credit=True)
    assert (score.reward, score.parts["tests"].value) == (-1.0, 0.0)


def test_a_response_that_leads_the_tests_past_their_asserts_fails() -> None:
    score = asserts("for item in f():\n    assert item > 0", "def f(): return []")
    assert (score.status, score.reason) == (ScoreStatus.POLICY_FAIL, "a test failed: the tests ended without an assert")


def test_inherited_test_methods_count() -> None:
    tests = "import unittest\nclass A(unittest.TestCase):\n    n = 1\n    def test_a(self): self.assertEqual(Queue([self.n]).pop(), 1)"
    reference = {"class_name": "Queue", "tests": tests + "\nclass B(A): pass", **SHORT}
    assert grade_code(reference, QUEUE, env="code_class").status is ScoreStatus.OK
    reference = {"class_name": "Queue", "tests": tests + "\nclass B(A): n = 2", **SHORT}
    assert grade_code(reference, QUEUE, env="code_class").status is ScoreStatus.POLICY_FAIL


def test_random_numbers_start_from_the_same_seed() -> None:
    code = "import random\nfirst = random.random()\ndef f(): return first"
    assert asserts("import random\nassert f() == random.random()", code).status is ScoreStatus.OK


def test_classes_are_tested_through_the_relay() -> None:
    score = unittests("""
queue = Queue([1])
self.assertEqual(queue.push(2).items, [1, 2])
self.assertIs(queue.push(3), queue)
with self.assertRaises(OverflowError) as caught:
    queue.push(4)
self.assertEqual(caught.exception.args, ('full', 3))
self.assertEqual((len(queue), list(queue), queue[0], str(queue)), (3, [1, 2, 3], 1, 'Queue([1, 2, 3])'))
self.assertEqual(Queue.limit, 3)
self.assertEqual(Queue.of(5, 6).pop(), 5)
self.assertEqual(Queue.name(), 'Queue')
self.assertIsNot(queue.copy(), queue)
self.assertEqual(queue._secret, {'n': 1})
self.assertFalse(hasattr(queue, 'missing'))
queue.items = [9]
queue.items.append(8)
self.assertEqual(queue.pop(), 9)
self.assertEqual(queue.items, [8])
queue.made.append(len)
self.assertIs(queue.made[0], len)
""")
    assert score.status is ScoreStatus.OK, score.reason


def test_files_that_one_side_writes_are_seen_by_the_other() -> None:
    code = """
import os
class Store:
    def __init__(self, path): self.path = path
    def save(self, text):
        with open(self.path, 'w') as file: file.write(text)
    def load(self):
        with open(self.path) as file: return file.read()
    def exists(self): return os.path.exists(self.path)
"""
    body = """
import os
store = Store('data.txt')
store.save('one')
with open('data.txt') as file:
    self.assertEqual(file.read(), 'one')
with open('data.txt', 'w') as file:
    file.write('two')
self.assertEqual(store.load(), 'two')
os.remove('data.txt')
self.assertFalse(store.exists())
"""
    assert unittests(body, code, name="Store").status is ScoreStatus.OK
    lying = code.replace("file.write(text)", "pass").replace("return file.read()", "return 'two'")
    assert unittests(body, lying, name="Store").status is ScoreStatus.POLICY_FAIL
    for planted in ("os.symlink('/tmp/main.py', 'data.txt')", "os.mkfifo('data.txt')", "os.mkdir('data.txt')"):
        hostile = code.replace("with open(self.path, 'w') as file: file.write(text)", planted)
        assert unittests(body, hostile, name="Store").status is ScoreStatus.POLICY_FAIL


POP = "\n    def __init__(self, *a): pass\n    def pop(self): return "
HOSTILE_CLASSES = {
    "skips": "import unittest\nclass Queue:\n    def __init__(self, *a): raise unittest.SkipTest('no')",
    "equals everything": "class Queue:" + POP + "self\n    __eq__ = lambda *a: True\n    __getattr__ = __call__ = lambda *a: Queue()",
    "is a test": "import unittest\nclass Queue(unittest.TestCase):\n    def pop(self): return 1",
    "patches unittest": "import unittest\nunittest.TestCase.assertEqual = lambda *a: None\nclass Queue:" + POP + "0",
    "leaves": "import os\nclass Queue:\n    def __init__(self, *a): os._exit(0)",
    "raises SystemExit": "class Queue:\n    def __init__(self, *a): raise SystemExit(0)",
    "raises KeyboardInterrupt": "class Queue:\n    def __init__(self, *a): raise KeyboardInterrupt",
    "hangs": "class Queue:\n    def __init__(self, *a):\n        while True: pass",
    "forged verdict": FORGE + "class Queue:" + POP + "forge({'verdict': {'complete': True, 'passed': 1, 'failures': []}, 'nonce': ''})",
    "forged files": FORGE + "class Queue:" + POP + "forge({'value': None, 'files': {'/work/../etc/x': '00', '/tmp/main.py': None}})",
    "str subclass": "class S(str):\n    __eq__ = lambda *a: True\n    __hash__ = str.__hash__\nclass Queue:" + POP + "S()",
    "empty": "class Queue: pass",
    "None": "class Queue:" + POP + "None",
    "no class": "Queue = 3",
}


def test_hostile_classes_fail() -> None:
    body = "        queue = Queue([1, 2])\n        self.assertEqual(queue.pop(), 1)\n        self.assertEqual([queue.pop()], [2])\n"
    tests = f"import unittest, os\nclass TestQueue(unittest.TestCase):\n    def test_a(self):\n{body}    def test_b(self):\n{body}"
    reference = {"class_name": "Queue", "tests": tests, **SHORT}
    codes = [*HOSTILE_CLASSES.values(), QUEUE]
    for name, score in zip([*HOSTILE_CLASSES, ""], grade_codes(reference, codes, env="code_class"), strict=True):
        assert score.status is (ScoreStatus.POLICY_FAIL if name else ScoreStatus.OK), (name, score)


def test_skipped_and_expectedly_failing_tests_do_not_pass() -> None:
    tests = "import unittest\nclass T(unittest.TestCase):\n    @unittest.skip('x')\n    def test_a(self): Queue()"
    tests += "\n    def test_b(self): Queue()"
    score = grade_code({"class_name": "Queue", "tests": tests, **SHORT}, QUEUE, env="code_class")
    assert (score.status, "was skipped" in score.reason) == (ScoreStatus.POLICY_FAIL, True)


PUZZLE = {
    "context": "def sat(x: List[int], n=3):\n    return len(x) == n and sum(x) == 6 and x.count(2) == 1",
    "ans_type": "List[int]",
    **SHORT,
}
PUZZLE_CHEATS = {
    "an object that answers": "class A(list):\n    __len__ = lambda s: 3\n    count = lambda s, x: 1\ndef sol(): return A([6])",
    "its own sat": "def sat(*a): return True\ndef sol(): return []",
    "sat through f_globals": "import sys\nsys._getframe(0).f_globals['sat'] = lambda *a: True\ndef sol(): return []",
    "always equal": "class E:\n    __eq__ = lambda *a: True\ndef sol(): return E()",
    "another type": "def sol(): return (1, 2, 3)",
    "bools": "def sol(): return [True, 2, 3]",
    "floats": "def sol(): return [1.0, 2.0, 3.0]",
    "no answer": "def sol(): pass",
    "leaves": "import os\nos._exit(0)",
    "empty": "",
}  # fmt: skip


def test_puzzles_judge_the_value_in_another_box() -> None:
    right = {
        "plain": "def sol(): return [1, 2, 3]",
        "searches": "def sol():\n    return next([a, 2, 4 - a] for a in range(9) if sat([a, 2, 4 - a]))",
    }
    for code in right.values():
        assert grade_code(PUZZLE, code, env="code_puzzle").status is ScoreStatus.OK
    for name, score in zip(PUZZLE_CHEATS, grade_codes(PUZZLE, list(PUZZLE_CHEATS.values()), env="code_puzzle"), strict=True):
        assert score.status is ScoreStatus.POLICY_FAIL, name


INPUT = {"code": "def f(xs):\n    return sorted(xs)[::-1]", "output": "[3, 1]", "answer": "[1, 3]", **SHORT}
INPUT_CHEATS = {
    "another list": "[1, 2]",
    "replaces f": "(globals().update(f=lambda *a: [3, 1]), [1])[1]",
    "looks for f": "[o for o in __import__('gc').get_objects() if getattr(o, '__name__', '') == 'f'] or [0]",
    "leaves": "__import__('os')._exit(0)",
    "a lying list": "type('L', (list,), {'__iter__': lambda s: iter([3, 1])})()",
    "always equal": "[type('E', (), {'__eq__': lambda *a: True, '__lt__': lambda *a: False})()] * 2",
    "closes the call": "[1]), f([1, 3]",
    "the output": "f",
    "forged": FORGE.strip().replace("\n", ";"),
    "empty": "",
    "hangs": "(lambda f: f(f))(lambda f: [0 for _ in iter(int, 1)])",
    "deep": "[" * 5000,
}  # fmt: skip


def test_predicted_inputs_cross_as_values() -> None:
    pairs = [(INPUT, f"```\n{text}\n```") for text in ("[1, 3]", "[3, 1]", "xs=[3, 1]", "list(range(1, 4, 2))", *INPUT_CHEATS.values())]
    scores = grade_pairs(pairs, env="code_input")
    assert [score.status.value for score in scores[:4]] == ["ok"] * 4
    for name, score in zip(INPUT_CHEATS, scores[4:], strict=True):
        assert score.status is ScoreStatus.POLICY_FAIL, (name, score)


def test_the_datas_own_input_is_right_even_where_it_is_no_value() -> None:
    reference = {"code": "def f(g): return g(1)", "output": "2", "answer": "lambda x: x + 1", **SHORT}
    right, same_idea = grade_pairs([(reference, f"```\n{text}\n```") for text in ("lambda x: x + 1", "lambda y: y + 1")], env="code_input")
    assert (right.status, same_idea.status) == (ScoreStatus.OK, ScoreStatus.POLICY_FAIL)
