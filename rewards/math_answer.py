r"""Read a single answer as people write it: exact number, unit, percent sign, number base or word. Pure functions.

The policies are in docs/math.md; the same ones hold for the reference ("gold") and the response. Lists, tuples and ratios are
taken apart by `rewards/math_shape.py` before.
"""

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from rewards.math_text import unbraced

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

_TEXT_MACRO = r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)"
_ONLY_TEXT = re.compile(rf"{_TEXT_MACRO} ?\{{([^{{}}]*)\}}")
_TEXT_UNIT = re.compile(rf"^(.*[^ ]) ?{_TEXT_MACRO} ?\{{([^{{}}]*)\}} ?(?:\^ ?\{{? ?([23]) ?\}}?)?$")
_WORD_UNIT = re.compile(r"^(.*[0-9})\]]) +([A-Za-z][A-Za-z ./-]*?) ?(?:\^ ?\{? ?([23]) ?\}?)?$")
_GLUED_UNIT = re.compile(r"^(.*[0-9.])([A-Za-z]{2,})$")
_DEGREES = re.compile(r" ?(?:\^ ?(?:\{ ?\\circ ?\}|\\circ)|°)$")
_LETTERS = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]+")
_BASED = re.compile(r"([0-9][0-9A-Fa-f]*|[0-9A-F]+(?=_16$|_\{16\}$)) ?_ ?(?:\{ ?([0-9]+) ?\}|([0-9]+))")

_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_NO_UNITS = {"or", "and", "to", "mod", "plus", "minus", "times", "over", "not", "pi", "if", "for", "where", "when", "is"}
_LETTER_UNITS = frozenset("mgslhLCFKNJWVA")
_UNIT_NAMES = {
    name: canonical
    for canonical, names in {
        "degree": "degrees deg",
        "dollar": "dollars usd",
        "cent": "cents",
        "hour": "hours hr hrs h",
        "minute": "minutes min mins",
        "second": "seconds sec secs s",
        "m": "meter meters metre metres",
        "cm": "cm centimeter centimeters centimetre centimetres",
        "mm": "mm millimeter millimeters",
        "km": "km kilometer kilometers kilometre kilometres",
        "ft": "ft foot feet",
        "inch": "inches in",
        "mile": "miles mi",
        "g": "gram grams",
        "kg": "kg kilogram kilograms",
        "l": "liter liters litre litres L",
        "percent": "%",
    }.items()
    for name in names.split()
}


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


def stated_value(answer: Answer) -> Answer:
    """The right side of the last equation, as in `x = 5`; the answer itself when it is none or says that two numbers are one."""
    *others, right = answer.core.split("=")
    if not others or any(side.endswith(("<", ">", "!", ":")) for side in others):
        return answer
    value = read_answer(right.strip())
    value = replace(value, unit=value.unit or answer.unit, percent=value.percent or answer.percent)
    sides = [read_answer(side.strip()) for side in others]
    return answer if any(side.number is not None and not numbers_equal(value, side) for side in sides) else value


def numbers_equal(gold: Answer, answer: Answer) -> bool:
    """Whether the answer is the number `gold`, which is plain or written in a base."""
    if not units_agree(gold, answer) or (gold.base and answer.base and gold.base != answer.base):
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


def subscripts(core: str) -> list[str]:
    """Subscripts of digits, such as number bases inside an expression."""
    return [(match[1] or match[2] or "") for match in re.finditer(r"[0-9] ?_ ?(?:\{ ?([^{}]*?) ?\}|([0-9A-Za-z]))", core)]


def texts(core: str) -> list[str]:
    """Words inside an expression, which a symbolic comparison would drop."""
    return [match[1].strip().casefold() for match in _ONLY_TEXT.finditer(core)]


def case_differs(left: str, right: str) -> bool:
    """Whether a letter stands in capitals on one side only: math-verify takes `R` for `r`."""
    letters = [{letter for run in _LETTERS.findall(core) for letter in run} for core in (left, right)]
    only_left, only_right = letters[0] - letters[1], letters[1] - letters[0]
    return any(letter.swapcase() in only_right for letter in only_left)


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
        return replace(inner, unit=inner.unit if inner.unit in _SCALES or inner.unit.split(" ")[0] in _SCALES else "dollar")
    if text.endswith("$"):
        return Answer(core=text[:-1].rstrip(), unit="dollar")
    if match := _DEGREES.search(text):
        return Answer(core=text[: match.start()], unit="degree")
    if (glued := _GLUED_UNIT.fullmatch(text)) and glued[2] in _UNIT_NAMES:
        return Answer(core=glued[1], unit=_UNIT_NAMES[glued[2]])
    match = _TEXT_UNIT.fullmatch(text) or _WORD_UNIT.fullmatch(text)
    if match and (unit := _unit_name(match[2])):
        return Answer(core=match[1].rstrip(), unit=unit + (f"^{match[3]}" if match[3] else ""))
    return Answer(core=text)


def _unit_name(words: str) -> str:
    """Canonical unit; empty when the words are no unit."""
    name = " ".join(words.strip().strip(".").split())
    if (
        not name
        or not all(character.isalpha() or character in " ./-'°%" for character in name)
        or any(word in _NO_UNITS for word in name.casefold().split())
    ):
        return ""
    if len(name) == 1 and name not in _LETTER_UNITS:
        return ""  # a symbol, as in `5 x`
    if len(name) > 2:
        name = name.casefold()
    return _UNIT_NAMES.get(name, _UNIT_NAMES.get(name.casefold(), name.removesuffix("s") if len(name) > 3 else name))


def _without_scale(answer: Answer) -> tuple[Answer, int]:
    """`5 million dollars`: unit dollar and the factor 10**6."""
    first, _, rest = answer.unit.partition(" ")
    if first not in _SCALES:
        return answer, 1
    return replace(answer, unit=_unit_name(rest.removeprefix("of ")) if rest else ""), _SCALES[first]


def _is_word(text: str) -> bool:
    """Plain words, or the letter of a choice such as B or (B)."""
    bare = text.strip("()")
    if len(bare) == 1:
        return bare.isascii() and bare.isupper()
    if len(bare) < 3 or "\\" in bare or not all(letter.isalpha() or letter in " '-" for letter in bare):
        return False
    return any(len(word) > 1 for word in bare.split())  # `x y` is a product
