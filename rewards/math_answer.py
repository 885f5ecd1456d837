r"""Read a single answer as people write it: exact number, unit, percent sign, number base or word. Pure functions.

The policies are in docs/math.md; the same ones hold for the reference ("gold") and the response. Lists, tuples and ratios are
taken apart by `rewards/math_shape.py` before.
"""

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from rewards.math_text import TEXT_MACRO, unbraced
from rewards.math_units import is_known, is_scale, unit_name, without_scale

_MAX_TEN_POWER = 400

_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,3}(?: [0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_SIGNED = rf"[+-]? ?(?:{_NUMBER})"
_PART = rf"\{{ ?({_SIGNED}) ?\}}|([0-9])"
_TEN_POWER = r"10 ?\^ ?(?:\{ ?([+-]?[0-9]{1,4}) ?\}|([0-9]))"
_DECIMAL = re.compile(_SIGNED)
_REPEATING = re.compile(r"([+-]?) ?([0-9]*)\.([0-9]*) ?\\(?:overline|bar|dot) ?(?:\{ ?([0-9]+) ?\}|([0-9]))")
_SCIENTIFIC = re.compile(rf"(?:({_SIGNED}) ?(?:\\times|\\cdot|\*) ?)?{_TEN_POWER}")
_PROGRAM = re.compile(r"([+-]?[0-9]+(?:\.[0-9]*)?|[+-]?\.[0-9]+)[eE]([+-]?[0-9]{1,4})")
_SLASH = re.compile(rf"({_SIGNED}) ?/ ?({_SIGNED})")
_MIXED_SLASH = re.compile(r"([+-]? ?)([0-9]+) ([0-9]+) ?/ ?([0-9]+)")
_FRACTION = re.compile(rf"([+-]? ?)([0-9]*) ?\\frac ?(?:{_PART}) ?(?:{_PART})")

_UNIT_MACRO = r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)"
_ONLY_TEXT = re.compile(rf"{TEXT_MACRO} ?\{{([^{{}}]*)\}}")
_TEXT_UNIT = re.compile(rf"^(.*[^ ]) ?{_UNIT_MACRO} ?\{{([^{{}}]*)\}} ?(?:\^ ?\{{? ?([23]) ?\}}?)?$")
_WORD_UNIT = re.compile(r"^(.*[0-9})\]]) +([A-Za-z][A-Za-z ./-]*?) ?(?:\^ ?\{? ?([23]) ?\}?)?$")
_GLUED_UNIT = re.compile(r"^(.*[0-9.])([A-Za-z]{2,})$")
_DEGREES = re.compile(r" ?(?:\^ ?(?:\{ ?\\circ ?\}|\\circ)|°)$")
_NO_DEGREES = re.compile(r"(?:[a-zA-Z]|\\[a-zA-Z]+)$|\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
"""A circle on a symbol is a mark, and one in the argument of a function is no unit of the value."""
_BASED = re.compile(r"([0-9][0-9A-Fa-f]*|[0-9A-F]+(?=_16$|_\{16\}$)) ?_ ?(?:\{ ?([0-9]+) ?\}|([0-9]+))")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer, taken apart."""

    core: str
    """Normalised text without unit, percent sign and base."""
    unit: str = ""
    """Canonical name; empty when there is none."""
    percent: bool = False
    base: str = ""
    """Subscript of a number like 1011_2; empty when there is none or it is 10."""
    number: Fraction | None = None
    """Exact value when the core is a plain number."""
    word: bool = False
    """The answer is text, such as a name or the letter of a choice."""


def read_answer(text: str) -> Answer:
    """Take a normalised answer apart."""
    if only := _ONLY_TEXT.fullmatch(text):
        text = only[1].strip().strip("()").rstrip(".")
        if not any(letter.isdigit() for letter in text):
            return Answer(core=" ".join(text.split()), word=True)
    if _is_word(text):
        return Answer(core=text.strip("()"), word=True)
    answer = _without_unit(unbraced(text.strip()))
    if answer.core.endswith("%") or answer.unit == "percent":
        answer = replace(answer, core=answer.core.removesuffix("%").rstrip(), percent=True, unit="")
    if based := _BASED.fullmatch(answer.core):
        base = based[2] or based[3]
        return replace(answer, core=based[1], base="" if base == "10" else base, number=plain_number(based[1]))
    scaled, factor = _without_scale(answer)
    number = plain_number(unbraced(scaled.core))
    return replace(scaled, number=None if number is None else number * factor) if number is not None or factor == 1 else answer


def with_unit_of(value: Answer, whole: Answer) -> Answer:
    """The last side of an equation with the unit or percent sign that was split off the whole of it."""
    return replace(value, unit=value.unit or whole.unit, percent=value.percent or whole.percent)


def numbers_equal(gold: Answer, answer: Answer) -> bool:
    """Whether the answer is the number `gold`, which is plain or written in a base."""
    if not units_agree(gold, answer) or (answer.base and gold.base != answer.base):
        return False
    if gold.base or answer.base:
        return gold.core.lstrip("0").casefold() == answer.core.lstrip("0").casefold()
    if gold.number is None or answer.number is None:
        return False
    if gold.number == answer.number:
        return True
    gold_value, value = (side.number / 100 if side.percent else side.number for side in (gold, answer) if side.number is not None)
    return gold.percent != answer.percent and gold_value == value


def units_agree(gold: Answer, answer: Answer) -> bool:
    """Whether one side has no unit or both have the same one."""
    return not gold.unit or not answer.unit or gold.unit == answer.unit


def words_equal(gold: Answer, answer: Answer) -> bool:
    """Case-insensitive, except for single letters."""
    left, right = gold.core, answer.core.strip("()")
    return left == right if len(left) == 1 else left.casefold() == right.casefold()


def plain_number(core: str) -> Fraction | None:
    """Exact value of an integer, decimal, fraction, mixed number or number in scientific notation; None for anything else."""
    if _DECIMAL.fullmatch(core):
        return _decimal(core)
    if match := _SCIENTIFIC.fullmatch(core):
        return _scaled(match[1] or "1", int(match[2] or match[3]))
    if match := _PROGRAM.fullmatch(core):
        return _scaled(match[1], int(match[2]))
    if match := _REPEATING.fullmatch(core):
        return _repeating(match[1], whole=match[2], fixed=match[3], period=match[4] or match[5])
    if match := _SLASH.fullmatch(core):
        return _quotient(_decimal(match[1]), _decimal(match[2]))
    if match := _MIXED_SLASH.fullmatch(core):
        return _mixed(match[1], match[2], Fraction(match[3]), Fraction(match[4]))
    if match := _FRACTION.fullmatch(core):
        numerator, denominator = _decimal(match[3] or match[4]), _decimal(match[5] or match[6])
        return _mixed(match[1], match[2], numerator, denominator)
    return None


def _decimal(text: str) -> Fraction:
    digits = text.replace(",", "").replace(" ", "")
    return Fraction(digits[:-1] if digits.endswith(".") else digits)


def _scaled(coefficient: str, power: int) -> Fraction | None:
    return _decimal(coefficient) * Fraction(10) ** power if abs(power) <= _MAX_TEN_POWER else None


def _repeating(sign: str, *, whole: str, fixed: str, period: str) -> Fraction:
    """0.1(6): the digits `period` follow 0.1 for ever."""
    start = Fraction(int(f"0{whole}{fixed}"), 10 ** len(fixed))
    value = start + Fraction(int(period), 10 ** len(fixed) * (10 ** len(period) - 1))
    return -value if sign == "-" else value


def _quotient(numerator: Fraction, denominator: Fraction) -> Fraction | None:
    return numerator / denominator if denominator else None


def _mixed(sign: str, whole: str, numerator: Fraction, denominator: Fraction) -> Fraction | None:
    value = _quotient(numerator, denominator)
    if value is not None and whole:
        if not 0 <= numerator < denominator:
            return None  # 2\frac{3}{2} is a product to some and a sum to others
        value += int(whole)
    return -value if value is not None and sign.strip() == "-" else value


def _without_unit(text: str) -> Answer:
    """Split off one unit at the end, or a currency sign at either end."""
    if match := re.fullmatch(r"([+-]? ?)\$ ?([^$]*)", text):
        inner = _without_unit(match[1] + match[2])
        return replace(inner, unit=inner.unit if is_scale(inner.unit) else "dollar")
    if text.endswith("$"):
        return Answer(core=text[:-1].rstrip(), unit="dollar")
    if (match := _DEGREES.search(text)) and not _NO_DEGREES.search(text[: match.start()].rpartition("=")[2]):
        return Answer(core=text[: match.start()], unit="degree")
    if (glued := _GLUED_UNIT.fullmatch(text)) and is_known(glued[2]):
        return Answer(core=glued[1], unit=unit_name(glued[2]))
    match = _TEXT_UNIT.fullmatch(text) or _WORD_UNIT.fullmatch(text)
    if match and (unit := unit_name(match[2])):
        return Answer(core=match[1].rstrip(), unit=unit + (f"^{match[3]}" if match[3] else ""))
    return Answer(core=text)


def _without_scale(answer: Answer) -> tuple[Answer, int]:
    """`5 million dollars`: unit dollar and the factor 10**6."""
    unit, factor = without_scale(answer.unit)
    return replace(answer, unit=unit), factor


def _is_word(text: str) -> bool:
    """Plain words, or the letter of a choice such as B or (B)."""
    bare = text.strip("()")
    if len(bare) == 1:
        return bare.isascii() and bare.isupper()
    if len(bare) < 3 or "\\" in bare or not all(letter.isalpha() or letter in " '-" for letter in bare):
        return False
    return any(len(word) > 1 for word in bare.split())  # `x y` is a product
