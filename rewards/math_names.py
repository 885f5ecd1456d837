r"""What an answer calls its value: the sides of equations, and which of them are bare names. Pure functions.

`x = 5`, `f(2) = 5` and `\text{Area} = 5` say 5; `2x = 5` says something else. The policy is in docs/math.md.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.math_text import TEXT_MACRO, closing
from rewards.math_units import unit_name, words_of

_WRAPPED = re.compile(rf"{TEXT_MACRO} ?\{{([^{{}}]*)\}}")
_NO_NAME = words_of(
    "not never no isn't isnt wrong false incorrect neither nor cannot can't unless except without if or less more greater least most than "
    "double twice half triple thrice square squared cubed root negative minus plus times inverse reciprocal opposite"
)
_GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi varphi chi psi "
    "omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar"
)
_INDEX = r"(?: ?_ ?(?:\{[^{}=]*\}|[A-Za-z0-9]))?"
_LETTER = rf"(?:[A-Za-z]|\\(?:{'|'.join(_GREEK.split())})(?![A-Za-z])){_INDEX}'*"
_ACCENT = r"\\(?:overline|bar|hat|widehat|tilde|vec|overrightarrow|mathcal|mathbb|boldsymbol) ?(?:\{ ?[A-Za-z]{1,3} ?\}|[A-Za-z])" + _INDEX
_NAME = rf"(?:{_LETTER}|{_ACCENT})"
_NAMES = rf"{_NAME}(?: ?[+-]? ?{_NAME})*"
_FUNCTION = rf"(?:[fghFGHPEVNTSRpqruA]|\\(?:phi|varphi|psi|Phi|Gamma|sigma|pi)(?![A-Za-z])){_INDEX}'*(?: ?\^ ?\{{ ?-1 ?\}})? ?"
_OPERATOR = r"\\(?:gcd|max|min|det|dim|deg|Pr|arg)(?![A-Za-z]) ?"
_SINGLE = re.compile(_NAME)
_APPLIED = re.compile(rf"(?:{_FUNCTION}|{_OPERATOR})(?=[(\[])")
_ONE_NAME = re.compile(rf"{_NAMES}")
_OTHER_NAMES = (
    re.compile(rf"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z]) ?\(? ?(?:\\angle ?)?{_NAMES} ?\)?"),
    re.compile(rf"(?:m ?)?\\(?:angle|triangle|measuredangle)(?![A-Za-z]) ?(?:{_NAMES}|[0-9]+)"),
    re.compile(r"\| ?(?:[A-Z]{2}|\\(?:vec|overline|overrightarrow) ?\{[A-Za-z]+\}) ?\||\[ ?[A-Z]{3,6} ?\]"),
)
_RATIO_NAME = re.compile(rf"\\frac ?\{{ ?({_NAMES}) ?\}} ?\{{ ?({_NAMES}) ?\}}|({_NAMES}) ?/ ?({_NAMES})")
_RELATION = re.compile(r"[<>]|\\(?:le|leq|ge|geq|lt|gt|ne|neq|not|neg|lnot|equiv|cong|sim|propto|nless|ngtr|in|notin)(?![a-zA-Z])")
_APPROX = "\\approx"
_BARE = str.maketrans("", "", " {}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One side of an equation."""

    text: str
    rounded: bool = False
    r"""The next sign is `\approx`."""


def sides(text: str) -> tuple[Side, ...]:
    r"""The sides of a chain of `=` and `\approx` outside of brackets; only one where there is none, or where any other relation stands."""
    if ("=" not in text and _APPROX not in text) or _RELATION.search(text):
        return (Side(text=text),)
    found, open_now, start, at = [], 0, 0, 0
    while at < len(text):
        letter = text[at]
        open_now += (letter in "([{") - (letter in ")]}")
        width = 1 if letter == "=" else len(_APPROX) if text.startswith(_APPROX, at) and not text[at + len(_APPROX) :][:1].isalpha() else 0
        if width and open_now == 0:
            found.append(Side(text=text[start:at].strip(), rounded=width > 1))
            start = at + width
        at += width or 1
    found.append(Side(text=text[start:].strip()))
    return (Side(text=text),) if any(side.text.endswith(("!", ":")) for side in found[:-1]) else tuple(found)


def is_name(side: str) -> bool:
    """Whether it only names a value: a letter, a function at a place, an angle, a segment, words, or a sum or product of such letters."""
    words, rest = _without_words(side)
    if any(word.strip(".,:;!").casefold() in _NO_NAME for word in words):
        return False
    if _ONE_NAME.fullmatch(rest):
        return _all_different(rest)
    if (match := _RATIO_NAME.fullmatch(rest)) and (terms := [term for term in match.groups() if term]):
        return terms[0] != terms[1] and all(_all_different(term) for term in terms)
    applied = _APPLIED.match(rest)
    opening = applied.end() if applied else 0
    if (applied or words) and closing(rest, opening=opening) == len(rest) - 1 and rest.endswith((")", "]")):
        return True  # the brackets may follow a word, as in lcm(4, 6)
    return not rest or any(pattern.fullmatch(rest) for pattern in _OTHER_NAMES)


def _without_words(side: str) -> tuple[list[str], str]:
    """The words of a side, and what is left."""
    words = [word for match in _WRAPPED.finditer(side) for word in match[1].split()]
    rest = _WRAPPED.sub(lambda match: match[1] if len(match[1].strip()) == 1 else " ", side).strip(" :,.")
    if len(rest) > 3 and all(len(word) > 1 and word.strip(".,:'").isalpha() for word in rest.split()):
        return words + rest.split(), ""
    return words, rest


def plain_side(side: str) -> str:
    """A side without units in text macros and currency signs, as in a sum of lengths."""
    return _WRAPPED.sub(lambda match: " " if unit_name(match[1]) else match[0], side).replace("$", "").strip()


def same_name(left: str, right: str) -> bool:
    """Whether two names are the same but for spaces, braces and words around them."""
    return _without_words(left)[1].translate(_BARE) == _without_words(right)[1].translate(_BARE)


def name_of(text: str) -> str:
    """The name of `x = 5` or `f(2) = 5`; empty for anything else, such as chains of equations or `x + y = 5`."""
    found = sides(text)
    name = found[0].text
    single = len(found) == 2 and (_SINGLE.fullmatch(name) or not _ONE_NAME.fullmatch(name))
    return name if single and name and is_name(name) and not _RATIO_NAME.fullmatch(name) else ""


def different_names(texts: Sequence[str]) -> bool:
    """Whether each is a named value and no name comes twice."""
    names = [name_of(text).translate(_BARE) for text in texts]
    return all(names) and len(set(names)) == len(names)


def _all_different(names: str) -> bool:
    """`ab` and `a+b` name something, `xx` and `x-x` are expressions."""
    found = _SINGLE.findall(names)
    return len(found) == len(set(found))
