"""Mutations: each kind on small pieces of code, in the text alone; what does not change behaviour is left alone."""

import ast
import textwrap
from pathlib import Path
from typing import Any

import pytest

from environments.swe.factory.mutations import KINDS, Mutant, changes_meaning, check_kinds, functions, mutants, parses
from environments.swe.factory.source import Source
from environments.swe.factory.stubs import stubs

ROOT = Path(__file__).parent.parent


def all_of(code: str, *kinds: str, name: str = "f") -> list[Mutant]:
    source = Source.of("m.py", textwrap.dedent(code).encode())
    function = dict(functions(source))[name]
    return list(mutants(source, function, name=name, kinds=kinds or tuple(KINDS)))


def lines(code: str, kind: str) -> list[str]:
    """The body of a one-line function as each mutant of a kind has it."""
    found = all_of(f"def f(a, b):\n    {code}\n", kind)
    assert all(map(parses, found)), [one.data for one in found]
    return [one.data.decode().removeprefix("def f(a, b):\n").rstrip("\n").removeprefix("    ") for one in found]


@pytest.mark.parametrize(
    ("kind", "code", "wanted"),
    [
        ("arithmetic", "return a + b", ["return a - b", "return a * b"]),
        ("arithmetic", "return (a)  //  (b)", ["return (a)  *  (b)", "return (a)  /  (b)"]),
        ("arithmetic", "return a**b", ["return a*b"]),
        ("arithmetic", "return a & ~b", ["return a | ~b"]),
        ("arithmetic", "return a / 1", []),
        ("arithmetic", "return a + 0", ["return a * 0"]),
        ("arithmetic", "return 'x' + a", []),
        ("arithmetic", "return '%s' % a", []),
        ("augmented", "a += b", ["a -= b", "a *= b"]),
        ("augmented", "a.x[b]  <<=  2", ["a.x[b]  >>=  2"]),
        ("comparison", "return a < b == 3", ["return a <= b == 3", "return a > b == 3", "return a < b != 3"]),
        ("comparison", "return a is  not b", ["return a is b"]),
        ("comparison", "return a not in b", ["return a in b"]),
        ("comparison", "return a is None", ["return a is not None"]),
        ("boolean", "return a and (b) and a", ["return a or (b) and a", "return a and (b) or a"]),
        ("constant", "return a[1:] + 0", ["return a[2:] + 0", "return a[0:] + 0", "return a[1:] + 1"]),
        ("constant", "return True", ["return False"]),
        ("constant", "return 'text', 0xff, 1.5, None", []),
        ("condition", "return a if b else 0", ["return a if not b else 0"]),
        ("condition", "return a if a < b else 0", ["return a if not (a < b) else 0"]),
        ("condition", "while not a(): b()", ["while a(): b()"]),
        ("condition", "return [x for x in a if x > 1]", ["return [x for x in a if not (x > 1)]"]),
        ("argument_dropped", "return b(a, 2, x=3)", ["return b(2, x=3)", "return b(a, x=3)", "return b(a, 2)"]),
        ("argument_dropped", "return b((a),)", ["return b()"]),
        ("argument_dropped", "return b(*a, **a)", []),
        ("argument_dropped", "return sum(x for x in a)", []),
        ("argument_order", "return b(a, 2,  3)", ["return b(2, a,  3)", "return b(a, 3,  2)"]),
        ("argument_order", "return b(a, a)", []),
        ("variable", "return a.x", ["return b.x"]),
        ("statement_removed", "a.append(b); b()", ["pass; b()", "a.append(b); pass"]),
        ("statement_removed", "del a", ["pass"]),
        ("body_removed", "return a + b", ["pass"]),
        ("return_removed", "return a + b", ["return"]),
        ("return_removed", "return None", []),
    ],
)
def test_each_kind_edits_its_span_alone(kind: str, code: str, wanted: list[str]) -> None:
    assert lines(code, kind) == wanted


CODE = '''\
"""Module."""
from os import (  # system
    path,  # paths
    sep,
)
import re


class C:
    @property
    def f(self, one, two=1):
        """Docs 1 + 1."""
        # how it goes
        total: int = one   # first
        if one:  # check
            total += 1
            total = max(total, one)
        elif two > 2:
            return sep
        for item in one:
            total.add(item)
        log.debug("%d" % total)
        print(total, 1)
        if not total:
            raise KeyError(f"no {total + 1}" + str(1))
        def inner():
            return 99 + 98
        assert total, "total is " + str(5)
        return re.sub(total, one)
'''


def test_statements_go_with_their_lines_and_leave_the_rest() -> None:
    removed = {one.before.strip() for one in all_of(CODE, "statement_removed", name="C.f")}
    assert "total: int = one   # first" in removed
    assert "total += 1" in removed
    assert "total.add(item)" in removed
    assert not any(text.startswith(("log", "print", "def", "elif", "return", '"""')) for text in removed)
    (loop,) = (one for one in all_of(CODE, "statement_removed", name="C.f") if one.before.strip() == "total.add(item)")
    assert b"        for item in one:\n            pass\n        log" in loop.data, "the only statement of a block becomes pass"
    (first,) = (one for one in all_of(CODE, "statement_removed", name="C.f") if "# first" in one.before)
    assert first.data == CODE.encode().replace(b"        total: int = one   # first\n", b"")


def test_bodies_and_returns_go() -> None:
    bodies = [one.data.decode() for one in all_of(CODE, "body_removed", name="C.f")]
    assert bodies[0].endswith('"""Docs 1 + 1."""\n        # how it goes\n        pass\n')
    assert "        if one:  # check\n            pass\n        elif two > 2:\n" in bodies[1]
    assert len(bodies) == 2
    assert [(one.before.strip(), one.after) for one in all_of(CODE, "return_removed", name="C.f")] == [
        ("return re.sub(total, one)", "return"),
        ("return sep", "return"),
        ("return sep", "pass"),
    ]


def test_stand_ins_compute_nothing_and_leave_the_rest() -> None:
    head, tail = 'class C:\n    def f(self, a, b):\n        """Doc."""\n        ', "  # it\n\n\nx = 1\n"
    code = f"{head}@wraps\n        def g(): return a\n        return g{tail}"
    source = Source.of("m.py", code.encode())
    function = dict(functions(source))["C.f"]
    found = {stub.value: stub.data.decode() for stub in stubs(source, function)}
    assert [found[value] for value in ("True", "None", "its argument self", "its argument a")] == [
        f"{head}return {value}{tail}" for value in ("True", "None", "self", "a")
    ]
    assert len(found) == 6 and all(ast.parse(text) for text in found.values())
    line = Source.of("m.py", b"def f(): return 1\n")
    assert next(stubs(line, dict(functions(line))["f"])).data == b"def f(): return True\n"


def test_an_object_that_equals_everything_does() -> None:
    source = Source.of("m.py", b"def f(): return 1\n")
    [stub] = [one for one in stubs(source, dict(functions(source))["f"]) if one.value.startswith("an object")]
    names: dict[str, Any] = {}
    exec(stub.data, names)
    thing = names["f"]()
    assert thing == 5 and (thing != 5) is False and thing and 3 in thing and not list(thing) and thing.any(1) == thing


def test_imports_that_the_function_uses_go() -> None:
    found = [one.data.decode() for one in all_of(CODE, "import_removed", name="C.f")]
    assert found == [
        CODE.replace(",  # paths\n    sep,", ",  # paths\n    sep,".replace(",  # paths\n    sep", "")),
        CODE.replace("import re\n", ""),
    ]


def test_what_is_only_said_is_left_alone() -> None:
    touched = [
        one.source.data[: one.edit.start].decode().rpartition("\n")[2] + one.before
        for one in all_of(CODE, name="C.f")
        if one.kind not in ("statement_removed", "body_removed")
    ]
    assert "        total: int = one" in touched
    assert not [
        text
        for text in touched
        if any(word in text for word in ("Docs", "log.", "print", "no {", "KeyError", "99", "str(5", "str(1", "property"))
    ]


def test_variables_are_set_before_they_are_used() -> None:
    code = "def f(a):\n    b = a\n    c = [i for i in a]\n    return g(b, c)\n"
    assert [(one.before, one.after, one.data.count(b"\n")) for one in all_of(code, "variable")] == [
        ("a", "b", 4),
        ("b", "a", 4),
        ("b", "c", 4),
        ("c", "a", 4),
        ("c", "b", 4),
    ]


def test_operators_are_found_between_comments_and_lines() -> None:
    code = "def f(a, b):\n    return (\n        a  # a + b and c\n        + b  # - more\n        and  (b) \\\n  > 2)\n"
    assert [one.data.decode() for one in all_of(code, "arithmetic", "boolean", "comparison")] == [
        code.replace("        + b", "        - b"),
        code.replace("        + b", "        * b"),
        code.replace("        and  (b)", "        or  (b)"),
        code.replace("> 2", ">= 2"),
        code.replace("> 2", "< 2"),
    ]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_line_ends_and_wide_letters_do_not_move_the_edit(newline: str) -> None:
    code = newline.join(["# ünïcode 😀", "def f(a):", '    x = "é😀"; y = a + 1', "    g()", "    return y", ""])
    source = Source.of("m.py", code.encode())
    found = list(mutants(source, dict(functions(source))["f"], name="f", kinds=("arithmetic", "statement_removed")))
    texts = [one.data.decode() for one in found]
    assert code.replace("a + 1", "a - 1") in texts
    assert code.replace(f"    g(){newline}", "") in texts
    assert all(map(parses, found))


def test_mutants_of_real_code_are_small_and_of_every_kind() -> None:
    """On this project's own files: every mutant is one span, no text is made twice by a kind, nearly all parse."""
    seen: dict[str, int] = dict.fromkeys(KINDS, 0)
    checked = broken = 0
    for path in (ROOT / "rl/evaluate.py", ROOT / "rl/durable.py", ROOT / "rl/rollout.py", ROOT / "rl/advantage.py"):
        source = Source.of(path.name, path.read_bytes())
        for name, function in functions(source):
            for one in mutants(source, function, name=name, kinds=tuple(KINDS)):
                assert one.data == source.data[: one.edit.start] + one.edit.text + source.data[one.edit.end :]
                assert source.start(function) <= one.edit.start or one.kind == "import_removed"
                if one.kind not in ("body_removed", "statement_removed", "import_removed"):
                    assert one.before.count("\n") <= ast.unparse(function).count("\n") + 20
                seen[one.kind] += 1
                if sum(seen.values()) % 10 == 0:
                    checked, broken = checked + 1, broken + (not parses(one))
    assert all(seen.values()), seen
    assert checked > 50 and broken <= checked * 0.02, (broken, seen)


def test_the_same_file_gives_the_same_mutants() -> None:
    assert [(one.kind, one.edit) for one in all_of(CODE, name="C.f")] == [(one.kind, one.edit) for one in all_of(CODE, name="C.f")]


def test_an_edit_without_effect_is_seen() -> None:
    source = Source.of("m.py", b"def f(a):\n    return a\n")
    for text, changed in ((b"(a)", False), (b"a  # x", False), (b"b", True)):
        edit = source.replace(source.tree.body[0].body[0].value, text)  # type: ignore[attr-defined]
        assert changes_meaning(Mutant(source=source, function="f", line=1, kind="constant", edit=edit)) is changed


def test_only_utf8_python_is_read() -> None:
    for data, said in (
        (b"\xef\xbb\xbfx = 1\n", "byte order mark"),
        (b"# -*- coding: latin-1 -*-\nx = '\xe9'\n", "not in UTF-8"),
        (b"def f(:\n", "does not parse"),
        (b"x = '\xff'\n", "does not parse"),
        (b"\0", "does not parse"),
    ):
        with pytest.raises(ValueError, match=said):
            Source.of("m.py", data)


def test_kinds_are_checked() -> None:
    assert check_kinds(()) == tuple(KINDS)
    assert check_kinds(("constant",)) == ("constant",)
    with pytest.raises(ValueError, match="unknown mutation 'constants'; did you mean 'constant'"):
        check_kinds(("constants",))
