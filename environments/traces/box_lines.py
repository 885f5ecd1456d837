"""What the lines of a code object can change, read from its instructions. Imported in the box of the tracer: standard library only."""

import dis
from typing import Any

READS, CHANGES = 1, 2
"""Effects of a line on what its locals refer to: 0 none, READS changes at most what changes when it is read (a defaultdict), CHANGES
may change any container."""
_NO_EFFECT = frozenset(
    (
        *("RESUME", "NOP", "CACHE", "PRECALL", "KW_NAMES", "PUSH_NULL", "COPY", "SWAP", "POP_TOP", "EXTENDED_ARG", "MAKE_CELL"),
        *(
            "COPY_FREE_VARS",
            "LOAD_CONST",
            "LOAD_FAST",
            "LOAD_GLOBAL",
            "LOAD_DEREF",
            "LOAD_CLOSURE",
            "LOAD_NAME",
            "LOAD_ATTR",
            "LOAD_METHOD",
        ),
        *("STORE_FAST", "STORE_DEREF", "DELETE_FAST", "RETURN_VALUE", "COMPARE_OP", "IS_OP", "CONTAINS_OP", "FORMAT_VALUE", "BUILD_STRING"),
        *("BUILD_LIST", "BUILD_TUPLE", "BUILD_MAP", "BUILD_SET", "BUILD_SLICE", "BUILD_CONST_KEY_MAP", "LIST_TO_TUPLE", "MAKE_FUNCTION"),
        *("UNARY_NOT", "UNARY_NEGATIVE", "UNARY_POSITIVE", "UNARY_INVERT", "GET_ITER", "FOR_ITER", "UNPACK_SEQUENCE", "RERAISE"),
        *("LIST_APPEND", "SET_ADD", "MAP_ADD", "RAISE_VARARGS", "PUSH_EXC_INFO", "POP_EXCEPT", "CHECK_EXC_MATCH", "LOAD_ASSERTION_ERROR"),
    )
)
"""Of built-in values alone; code of the program that they call is seen as a call."""
Line = tuple[tuple[str, ...], int]


class LineTable(dict[int, Line]):
    """By line: the locals that its instructions bind, and its effect.

    Instructions without a line count for every line.
    """

    def __init__(self, code: Any) -> None:
        super().__init__()
        self._code = code  # kept, so that no other code gets its id
        self.is_function = bool(code.co_flags & 0x2)
        """Whether only its own instructions bind its locals, apart from cells."""
        self.cells = (*code.co_cellvars, *code.co_freevars)
        self.order = {name: number for number, name in enumerate((*code.co_varnames, *code.co_cellvars, *code.co_freevars))}
        everywhere: set[str] = set()
        effect = 0
        bound: dict[int, set[str]] = {}
        effects: dict[int, int] = {}
        for instruction in dis.get_instructions(code):
            place = instruction.positions.lineno if instruction.positions is not None else None
            weight = _effect(instruction)
            name = instruction.argval if instruction.opname in ("STORE_FAST", "DELETE_FAST", "STORE_DEREF", "DELETE_DEREF") else None
            if place is None:
                effect = max(effect, weight)
                everywhere |= {name} if name else set()
                continue
            effects[place] = max(effects.get(place, 0), weight)
            bound.setdefault(place, set()).update({name} if name else ())
        self._everywhere, self._effect = everywhere, effect
        for place in effects:
            self[place] = self._line(place, bound[place], effects[place])

    def _line(self, place: int, bound: set[str], effect: int) -> Line:
        names = tuple(sorted(bound | self._everywhere, key=self.order.__getitem__))
        return names, max(effect, self._effect)

    def __missing__(self, place: int) -> Line:
        return self._line(place, set(self.order), CHANGES)


NativeLine = tuple[int, int, tuple[int, ...]]


def native_table(code: Any) -> tuple[bool, tuple[str, ...], tuple[int, ...], tuple[NativeLine, ...]]:
    """The same for `box_native.cpp`: whether it is a function, its locals, the numbers of its cells among them, and its lines with the
    numbers of what they bind, in order; line -1 stands for all that are not there."""
    table = LineTable(code)
    numbers = {name: number for number, name in enumerate(table.order)}
    lines = {-1: table[-1], **table}
    return (
        table.is_function,
        tuple(numbers),
        tuple(numbers[name] for name in table.cells),
        tuple((line, effect, tuple(numbers[name] for name in names)) for line, (names, effect) in sorted(lines.items())),
    )


def _effect(instruction: dis.Instruction) -> int:
    name = instruction.opname
    if name in _NO_EFFECT or name.startswith(("JUMP", "POP_JUMP")):
        return 0
    if name == "BINARY_OP":
        return CHANGES if instruction.argrepr.endswith("=") else 0
    return READS if name == "BINARY_SUBSCR" else CHANGES
