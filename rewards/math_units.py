"""Units of an answer: what may stand behind a number, and what may not since it says another number or none. Pure functions.

The policy is in docs/math.md: any plain noun may be a unit, so the words that are none are listed here.
"""

import string


def words_of(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
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
        "am": "am a.m",
        "pm": "pm p.m",
    }.items()
    for name in names.split()
} | {"%": "percent", "percent": "percent", "per cent": "percent"}
_SHORT_UNITS = words_of("nm dm yd oz lb mg cl dl ml pt qt gb mb kb tb hz kn kj kw mw ms ns kv mv ma pa mph kph kmh rpm fps lbs yds pts")
_SMALL_WORDS = words_of("a an the of per in on by up")
_FORMULA = "plus minus times over divided multiplied equals equal is sum difference product mod modulo gcd lcm log ln exp max min pi"
_FUNCTION = "sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan sqrt abs det root squared cubed factorial inverse reciprocal"
_CHANGE = "complement conjugate base power exponent index infinity infinite inf nan remainder remainders"
_REMARK = (
    "or and to not no nor if for where when but except without unless than least most below above under about approximately roughly "
    "almost nearly exactly nope answer maybe perhaps instead rather never neither cannot"
)
_NUMBER = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen "
    "twenty thirty forty fifty sixty seventy eighty ninety once twice thrice"
)
_PARTS = "third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth twentieth hundredth thousandth millionth billionth"
_FRACTION = f"half halves quarter quarters {_PARTS} {' '.join(part + 's' for part in _PARTS.split())}"
_SCALE_WORD = "tens hundreds thousands dozens score scores gross lakh lakhs crore crores myriad myriads mil mils mio mln bil bln nil"
_NO_UNITS = words_of(f"{_FORMULA} {_FUNCTION} {_CHANGE} {_REMARK} {_NUMBER} {_FRACTION} {_SCALE_WORD}") | frozenset(_SCALES)
_NOT_LAST = words_of("negative positive opposite wrong false true correct incorrect double triple maximum minimum")
"""No units, but `3 negative numbers` are three."""


def unit_name(words: str) -> str:
    """Canonical unit; empty when the words are no unit."""
    name = " ".join(words.strip().strip(".").split())
    if not name or not all(character.isalpha() or character in " ./-'°%" for character in name):
        return ""
    if len(name) > 2:
        name = name.casefold()
    canonical = _UNIT_NAMES.get(name, _UNIT_NAMES.get(name.casefold(), ""))
    if canonical or (len(name) == 1 and name in _LETTER_UNITS):
        return canonical or name
    parts = name.replace("/", " / ").split()
    while parts and parts[0].casefold() in _SCALES:
        parts = parts[1:]
    if any(part != "/" and not _may_be_unit(part, rate="/" in parts) for part in parts) or (parts and parts[-1].casefold() in _NOT_LAST):
        return ""
    return name.removesuffix("s") if len(name) > 3 else name


def is_known(unit: str) -> bool:
    """Whether it is in the table of units, and so may be glued to its number."""
    return unit in _UNIT_NAMES


def without_scale(unit: str) -> tuple[str, int]:
    """`million dollar` is the unit dollar and the factor 10**6."""
    factor = 1
    first, _, rest = unit.partition(" ")
    while first in _SCALES:
        factor *= _SCALES[first]
        unit = rest.removeprefix("of ")
        first, _, rest = unit.partition(" ")
    return (unit_name(unit) if unit and factor > 1 else unit), factor


def is_scale(unit: str) -> bool:
    """Whether it begins with a factor, such as million."""
    return unit.partition(" ")[0] in _SCALES


def no_unit_words(text: str) -> list[str]:
    """The words of an expression that change what a number says: a symbolic comparison would drop them or take them for unknowns."""
    words = "".join(character if character.isalpha() else " " for character in text).casefold().split()
    return [word for word in words if len(word) > 3 and (_changes_a_number(word) or word in _NOT_LAST)]


def _may_be_unit(word: str, *, rate: bool) -> bool:
    """A noun, a known short unit or a small word between them; other short words may be unknowns, as in `5 xy`."""
    bare = word.strip(".'-").casefold()
    if bare in _UNIT_NAMES or bare in _SHORT_UNITS or bare in _SMALL_WORDS:
        return True
    if _changes_a_number(bare.rpartition("-")[2]):
        return False  # of `five-dollar` only the last part counts
    if len(bare) == 1:
        return rate and word in _LETTER_UNITS
    vowels = "aeiou" if len(bare) == 3 else "aeiouy"
    return len(bare) > 2 and bare not in string.ascii_lowercase and any(letter in vowels or not letter.isascii() for letter in bare)


def _changes_a_number(word: str) -> bool:
    return word in _NO_UNITS or word.removesuffix("s").endswith("illion")
