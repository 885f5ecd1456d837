"""Writes one random Python program: a function `f` of typed arguments, at most with helpers, and the arguments of a call.

Every program ends and raises nothing, whatever is drawn: loops run over ranges, over strings and lists that their bodies leave alone, or
count a variable down that nothing else sets; recursion counts down; divisors and indexes cannot fail. Where lines repeat, strings and
lists grow by one literal at a time, and numbers by factors of at most 3, so that nothing becomes large.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

INT, STR, LIST, DICT = "int", "str", "list", "dict"
TYPES = (INT, STR, LIST, DICT)
_NAMES = {INT: "abcmnpquvw", STR: "stro", LIST: ("xs", "ys", "zs"), DICT: ("d", "counts")}
_COUNTERS = "ijk"
_WORDS = ("ab", "red", "cat", "sun", "hello", "tree", "abca", "moon", "book")
_LETTERS = "abcdeorst"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a program may contain."""

    statements: tuple[int, int]
    """Least and most statements of the entry, those of its blocks not counted."""
    block: int
    """Most statements of a block."""
    nesting: int
    """Blocks in one another; 0 for straight lines."""
    loops: int
    """Most loops, written, not run."""
    turns: tuple[int, int]
    """Least and most turns of a loop over a range."""
    helpers: int
    """Most functions beside the entry, at least one when the shape asks for any."""
    terms: int
    """Operators of an expression at most."""
    tuples: bool
    """Whether the entry may return several values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgramText:
    """A program, and the call that is traced."""

    source: str
    args: str
    other_args: tuple[str, ...]
    """Of other calls: a program that gives the same for all of them asks for nothing."""


@dataclass(kw_only=True)
class _Helper:
    name: str
    takes: tuple[str, ...]
    """Types of its arguments; for the first of a recursive one a small number."""
    gives: str
    counts_down: bool


@dataclass(kw_only=True)
class _Scope:
    """Names that may be used here, with their types."""

    names: dict[str, str]
    fixed: set[str] = field(default_factory=set)
    """Names that may be read only: what a loop runs over, or counts."""
    depth: int = 0
    repeats: bool = False
    """Whether these lines may run more than once."""
    in_loop: bool = False


class Writer:
    """Draws one program."""

    def __init__(self, rng: random.Random, *, shape: Shape, types: Sequence[str], max_value: int) -> None:
        self._rng, self._shape, self._types, self._max = rng, shape, tuple(types), max_value
        self._loops = shape.loops
        self._helpers: list[_Helper] = []
        self._lines: list[str] = []
        self._taken: set[str] = set()

    def program(self) -> ProgramText:
        if self._shape.helpers:
            for name in ("g", "h")[: self._rng.randint(1, self._shape.helpers)]:
                self._helper(name)
        self._taken = set()
        params = [self._fresh(kind) for kind in self._rng.choices(self._types, k=self._rng.randint(1, 2))]
        names = {name: kind for name, kind in params}
        self._lines.append(f"def f({', '.join(names)}):")
        scope = _Scope(names=dict(names))
        last = [name for name, _ in params][-1]
        for _ in range(self._rng.randint(*self._shape.statements)):
            last = self._statement(scope, 1) or last
        self._lines.append(f"    return {self._returned(scope, last)}")
        args, *others = (f"[{', '.join(repr(self._argument(kind)) for kind in names.values())}]" for _ in range(4))
        return ProgramText(source="\n".join(self._lines) + "\n", args=args, other_args=tuple(others))

    def _argument(self, kind: str) -> object:
        rng = self._rng
        if kind == INT:
            return rng.randint(-self._max // 3, self._max)
        if kind == STR:
            return rng.choice(_WORDS)
        if kind == LIST:
            return [rng.randint(0, self._max) for _ in range(rng.randint(2, 4))]
        return {rng.choice(_LETTERS): rng.randint(0, self._max) for _ in range(rng.randint(1, 3))}

    def _returned(self, scope: _Scope, last: str) -> str:
        others = [name for name in scope.names if name != last]
        if self._shape.tuples and others and self._rng.random() < 0.35:
            return f"({last}, {self._rng.choice(others)})"
        kind = scope.names[last]
        if kind == INT and self._rng.random() < 0.4:
            return self._binary(scope, last)
        return last

    def _fresh(self, kind: str) -> tuple[str, str]:
        """A name that nothing has yet; the last one of its type again where all are taken."""
        name = next((name for name in _NAMES[kind] if name not in self._taken), "")
        if not name:
            return _NAMES[kind][-1], kind
        self._taken.add(name)
        return name, kind

    # Statements

    def _statement(self, scope: _Scope, indent: int) -> str:
        """Write one; the name of a variable of this scope that it sets, or the empty string."""
        rng = self._rng
        kinds = ["assign", "assign", "change", "change"]
        if scope.depth < self._shape.nesting:
            kinds += ["if"] * (1 if scope.depth else 2) + ["loop"] * (4 if self._loops else 0)
        kind = rng.choice(kinds)
        if kind == "if":
            return self._branch(scope, indent)
        if kind == "loop":
            return self._loop(scope, indent)
        if kind == "change":
            return self._change(scope, indent)
        return self._assign(scope, indent)

    def _put(self, indent: int, text: str) -> None:
        self._lines.append("    " * indent + text)

    def _assign(self, scope: _Scope, indent: int) -> str:
        """Set a new variable, or an old one to something that is made of it."""
        if scope.depth or self._rng.random() < 0.3:
            settable = [name for name, kind in scope.names.items() if name not in scope.fixed and kind != DICT]
            if not settable:
                return self._change(scope, indent)
            name = self._rng.choice(settable)
            kind = scope.names[name]
            self._put(indent, f"{name} = {self._expression(scope, kind, of=name)}")
            return name
        name, kind = self._fresh(self._rng.choice(self._types))
        if name in scope.names:
            return self._change(scope, indent)
        self._put(indent, f"{name} = {self._expression(scope, kind)}")
        scope.names[name] = kind
        return name

    def _change(self, scope: _Scope, indent: int) -> str:
        """Change a variable in place."""
        rng = self._rng
        settable = [name for name in scope.names if name not in scope.fixed]
        if not settable:
            self._put(indent, "pass")
            return ""
        name = rng.choice(settable)
        kind = scope.names[name]
        if kind == INT:
            operator = rng.choice(("+=", "+=", "-=", "*="))
            operand = str(rng.randint(2, 3)) if operator == "*=" else self._term(scope, INT, avoid=name)
            self._put(indent, f"{name} {operator} {operand}")
        elif kind == STR:
            self._put(indent, f"{name} += {self._letter(scope)}")
        elif kind == LIST:
            self._put(indent, f"{name}.append({self._term(scope, INT)})")
        else:
            key = self._letter(scope)
            value = rng.choice((f"{name}.get({key}, 0) + {self._literal()}", self._term(scope, INT)))
            self._put(indent, f"{name}[{key}] = {value}")
        return name

    def _block(self, scope: _Scope, indent: int) -> str:
        """Write 1 to `block` statements; a name that they set."""
        found = ""
        for _ in range(self._rng.randint(1, self._shape.block)):
            found = self._statement(scope, indent) or found
        return found

    def _branch(self, scope: _Scope, indent: int) -> str:
        self._put(indent, f"if {self._condition(scope)}:")
        found = self._block(self._inner(scope), indent + 1)
        choice = self._rng.random()
        if scope.in_loop and choice < 0.2:
            self._put(indent + 1, self._rng.choice(("continue", "break")))
        elif choice < 0.7:
            self._put(indent, "else:")
            found = self._block(self._inner(scope), indent + 1) or found
        return found if found in scope.names else ""

    def _loop(self, scope: _Scope, indent: int) -> str:
        self._loops -= 1
        rng = self._rng
        inner = self._inner(scope)
        inner.repeats = inner.in_loop = True
        texts = [name for name, kind in scope.names.items() if kind == STR]
        lists = [name for name, kind in scope.names.items() if kind == LIST]
        turns = rng.randint(*self._shape.turns)
        settable = len(scope.names.keys() - scope.fixed)  # a body needs something to set beside what it runs over
        forms = [*(["text"] if texts else []), *(["list"] if lists else [])] if settable > 1 else []
        form = rng.choice(["range", "while", *forms])
        counter = _COUNTERS[min(scope.depth, 2)]
        if form == "while":
            start = rng.choice((str(turns), *(f"len({name})" for name in texts + lists)))
            name, _ = self._fresh(INT)
            if name in scope.names:  # all names are taken: it may be one that a loop around counts
                form = "range"
            else:
                self._put(indent, f"{name} = {start}")
                self._put(indent, f"while {name} > 0:")
                self._put(indent + 1, f"{name} -= {rng.choice((1, 1, 2))}")
                inner.names[name] = INT
                inner.fixed.add(name)
        if form == "range":
            bounds = rng.choice((str(turns), f"1, {turns + 1}"))
            self._put(indent, f"for {counter} in range({bounds}):")
            inner.names[counter] = INT
            inner.fixed.add(counter)
        elif form != "while":
            over = rng.choice(texts if form == "text" else lists)
            item = ("ch", STR) if form == "text" else ("x", INT)
            name = item[0] + str(scope.depth or "")
            self._put(indent, f"for {name} in {over}:")
            inner.names[name] = item[1]
            inner.fixed |= {name, over}
        found = self._block(inner, indent + 1)
        return found if found in scope.names else ""

    def _inner(self, scope: _Scope) -> _Scope:
        """The scope of a block: what it defines is not seen behind it."""
        return _Scope(names=dict(scope.names), fixed=set(scope.fixed), depth=scope.depth + 1, repeats=scope.repeats, in_loop=scope.in_loop)

    # Helpers

    def _helper(self, name: str) -> None:
        rng = self._rng
        self._taken = set()
        gives = rng.choice([kind for kind in self._types if kind != DICT] or [INT])
        if rng.random() < 0.5:
            step = {INT: f"{rng.choice(('n', self._literal()))} + ", STR: "", LIST: ""}[gives]
            end = {INT: self._literal(), STR: repr(rng.choice(_LETTERS)), LIST: "[]"}[gives]
            tail = {INT: "", STR: f" + {rng.choice((repr(rng.choice(_LETTERS)), 'str(n)'))}", LIST: " + [n]"}[gives]
            self._lines += [f"def {name}(n):", "    if n <= 0:", f"        return {end}", f"    return {step}{name}(n - 1){tail}"]
            self._helpers.append(_Helper(name=name, takes=(INT,), gives=gives, counts_down=True))
        else:
            params = dict(self._fresh(kind) for kind in [gives, *rng.choices(self._types, k=rng.randint(0, 1))])
            self._lines.append(f"def {name}({', '.join(params)}):")
            scope = _Scope(names=dict(params), fixed={n for n, kind in params.items() if kind in (LIST, DICT)}, repeats=True)
            if rng.random() < 0.6:
                self._put(1, f"if {self._condition(scope)}:")
                self._put(2, f"return {self._expression(scope, gives)}")
            self._put(1, f"return {self._expression(scope, gives)}")
            self._helpers.append(_Helper(name=name, takes=tuple(params.values()), gives=gives, counts_down=False))
        self._lines.append("")

    def _call(self, scope: _Scope, kind: str, *, of: str) -> str | None:
        """A call of a helper that gives `kind`, with `of` among its arguments where a name is given; None where there is none."""
        fitting = [
            helper
            for helper in self._helpers
            if helper.gives == kind and (not of or (scope.names[of] in helper.takes and not (helper.counts_down and scope.repeats)))
        ]
        if not fitting:
            return None
        helper = self._rng.choice(fitting)
        if helper.counts_down:
            number = of or self._variable(scope, INT)
            return f"{helper.name}({number} % {self._rng.randint(3, 5)})" if number else f"{helper.name}({self._rng.randint(2, 4)})"
        terms = [self._term(scope, taken) for taken in helper.takes]
        if of:
            terms[helper.takes.index(scope.names[of])] = of
        return f"{helper.name}({', '.join(terms)})"

    # Expressions

    def _expression(self, scope: _Scope, kind: str, *, of: str = "") -> str:
        """One that uses `of`, where a name is given."""
        rng = self._rng
        if rng.random() < 0.35 and (call := self._call(scope, kind, of=of)):
            return call
        if kind == INT:
            left = of or self._variable(scope, INT)
            return self._binary(scope, left) if left and (of or rng.random() < 0.7) else self._measure(scope)
        if kind == DICT:
            return f"{{{rng.choice(_LETTERS)!r}: {self._term(scope, INT)}, {rng.choice(_LETTERS)!r}: {self._term(scope, INT)}}}"
        name = of or self._variable(scope, kind)
        if kind == STR:
            if name is None or (not of and rng.random() < 0.2):
                return f"str({self._term(scope, INT)})" if self._variable(scope, INT) else repr(rng.choice(_WORDS))
            return rng.choice(self._strings_of(scope, name))
        if name is None or (not of and rng.random() < 0.3):
            return f"[{', '.join(self._term(scope, INT) for _ in range(rng.randint(2, 3)))}]"
        return rng.choice([f"{name}[::-1]", f"sorted({name})", f"{name}[1:]", f"{name}[:2]", f"{name} + [{self._term(scope, INT)}]"])

    def _strings_of(self, scope: _Scope, name: str) -> list[str]:
        rng = self._rng
        cut = rng.randint(1, 3)
        forms = [f"{name}[::-1]", f"{name}.upper()", f"{name}[{cut}:]", f"{name}[:{cut}]", f"{name} + {self._letter(scope)}"]
        forms.append(f"{name}.replace({rng.choice(_LETTERS)!r}, {rng.choice(_LETTERS)!r})")
        return forms if scope.repeats else [*forms, f"{name} * 2", f"{name} + {self._term(scope, STR)}"]

    def _binary(self, scope: _Scope, left: str) -> str:
        """A number from the term `left` and at most `terms` operators."""
        rng = self._rng
        text = left
        for number in range(rng.randint(1, self._shape.terms)):
            operator = rng.choice("++--*%/" if number == 0 else "+-")
            if operator == "*":
                text += f" * {rng.randint(2, 3)}" if scope.repeats else f" * {self._term(scope, INT)}"
            elif operator in "%/":
                text += f" {'//' if operator == '/' else '%'} {rng.randint(2, 7)}"
            else:
                text += f" {operator} {self._term(scope, INT, avoid=left)}"
        return text

    def _measure(self, scope: _Scope) -> str:
        """A number that a container, a string or two numbers have."""
        rng = self._rng
        number = self._variable(scope, INT)
        forms = [f"{rng.choice(('max', 'min'))}({number}, {self._term(scope, INT, avoid=number)})", f"abs({number})"] if number else []
        for name, kind in scope.names.items():
            if kind == STR:
                forms += [f"len({name})", f"{name}.count({rng.choice(_LETTERS)!r})"]
            elif kind == LIST:
                forms += [f"len({name})", f"sum({name})", f"sum({name}[:2])"]
            elif kind == DICT:
                forms += [f"len({name})", f"{name}.get({rng.choice(_LETTERS)!r}, {self._literal()})"]
        return rng.choice(forms) if forms else self._literal()

    def _condition(self, scope: _Scope) -> str:
        rng = self._rng
        forms = []
        for name, kind in scope.names.items():
            if kind == INT:
                forms += [f"{name} {rng.choice(('>', '<', '>=', '=='))} {self._term(scope, INT, avoid=name)}", f"{name} % 2 == 0"]
            elif kind == STR:
                forms += [f"{rng.choice(_LETTERS)!r} in {name}", f"len({name}) > {rng.randint(1, 4)}"]
            elif kind == LIST:
                forms += [f"{self._term(scope, INT)} in {name}", f"len({name}) > {rng.randint(1, 4)}"]
            else:
                forms += [f"{rng.choice(_LETTERS)!r} in {name}"]
        if self._shape.terms > 1 and len(forms) > 1 and rng.random() < 0.2:
            return rng.choice((" and ", " or ")).join(rng.sample(forms, 2))
        return rng.choice(forms)

    def _variable(self, scope: _Scope, kind: str) -> str | None:
        found = [name for name, other in scope.names.items() if other == kind]
        # the newest ones more often: then the lines of a program build on one another
        return self._rng.choice(found[-2:] + found) if found else None

    def _term(self, scope: _Scope, kind: str, *, avoid: str = "") -> str:
        """A variable or a literal."""
        name = self._variable(scope, kind)
        if name is not None and name != avoid and self._rng.random() < 0.6:
            return name
        if kind == INT:
            return self._literal()
        if kind == STR:
            return name or repr(self._rng.choice(_WORDS))
        if kind == LIST:
            return name or f"[{self._literal()}, {self._literal()}]"
        return name or f"{{{self._rng.choice(_LETTERS)!r}: {self._literal()}}}"

    def _letter(self, scope: _Scope) -> str:
        """A string of one letter: a literal, or what a loop over a string is at."""
        letters = [name for name in scope.fixed if name.startswith("ch")]
        return self._rng.choice([*sorted(letters) * 2, repr(self._rng.choice(_LETTERS))])

    def _literal(self) -> str:
        return str(self._rng.randint(1, self._max))
