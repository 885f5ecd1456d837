r"""Normalise the text of an answer and sieve out what would cost too much to compare. Pure functions; they parse no mathematics."""

import re

MAX_CHARS = 1000
"""Longest answer, in characters."""
_MAX_DIGITS_IN_A_ROW = 300
_MAX_EXPONENT = 5000
_MAX_FACTORIAL = 500
MAX_DEPTH = 30
"""Of brackets in brackets."""

_DELIMITERS = (("**", "**"), ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("`", "`"))
_LOOKALIKES = {
    0x2212: "-",
    0x2013: "-",
    0xD7: r"\times ",
    0x3C0: r"\pi ",
    0x221E: r"\infty ",
    0x2264: r"\le ",
    0x2265: r"\ge ",
    0xB1: r"\pm ",
    0x2205: r"\emptyset ",
    0x2260: r"\ne ",
    0x2248: r"\approx ",
    0x2032: "'",
    0x2019: "'",
}
"""Unicode minus, en dash, times, pi, infinity, at most, at least, plus or minus, empty set, not equal, about, prime, apostrophe."""
TEXT_MACRO = r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)"
_SPACES = re.compile(r"(\\\\)|\\[,;: ]|~|\\quad(?![a-zA-Z])|\s+")
_DROPPED = re.compile(r"\\(?:left|right|displaystyle|textstyle)(?![a-zA-Z])|\\!|\\color ?\{[a-zA-Z]+\}")
_TRANSPOSE = r"\\(?:text|mathrm|mathsf|mathit) ?\{ ?T ?\}|\\(?:top|intercal)(?![a-zA-Z])"
_RENAMED = (
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(?:varnothing(?![a-zA-Z])|\{ ?\\\})"), r"\\emptyset"),
    (re.compile(r"\\simeq(?![a-zA-Z])"), r"\\approx"),
    (re.compile(r"\\colon(?![a-zA-Z])|\{ ?: ?\}"), ":"),
    (re.compile(rf"\^ ?(?:\{{ ?(?:{_TRANSPOSE}) ?\}}|{_TRANSPOSE})"), "^T"),
    (re.compile(r"\\lbrace(?![a-zA-Z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![a-zA-Z])"), r"\\}"),
    (re.compile(r"\\langle(?![a-zA-Z])"), "("),
    (re.compile(r"\\rangle(?![a-zA-Z])"), ")"),
    (re.compile(r"\\(?:mathbf|boldsymbol|vec) ?\{ ?([a-zA-Z]) ?\}"), r" \1 "),
)
_SEPARATOR = re.compile(r"\\text ?\{ ?(?:or|and) ?\}|(?<![a-zA-Z\\{])(?:or|and)(?![a-zA-Z}])", re.IGNORECASE)
_PRIMES = re.compile(r"\^ ?(?:\{ ?((?:\\prime(?![a-zA-Z]) ?|' ?)+)\}|\\prime(?![a-zA-Z]))")
_OR, _AND = r"\\text ?\{[ ~]*or[ ~]*\}|\\lor(?![a-zA-Z])", r"\\text ?\{[ ~]*and[ ~]*\}|\\land(?![a-zA-Z])"
_JOINING = {
    name: re.compile(rf"{macros}|(?<![a-zA-Z\\{{]){name}(?![a-zA-Z}}])", re.IGNORECASE) for name, macros in (("or", _OR), ("and", _AND))
}
_RELATION = re.compile(r"[<>\u2264\u2265\u2260]|\\(?:le|leq|ge|geq|lt|gt|ne|neq)(?![a-zA-Z])")
_EXPONENT = re.compile(r"\^ ?(?:\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}|([0-9]))")
_FACTORIAL = re.compile(r"([0-9]*)[ ]?(!+)")
_SYMBOLIC_FACTORIAL = re.compile(r"\( ?[0-9]{0,3} ?[a-zA-Z] ?(?:[+-] ?[0-9]{1,3} ?)?\)$")
"""What may stand in brackets before a factorial sign, as in (n-1)!."""


def normalised(raw: str) -> str:
    """Peel delimiters, drop spacing commands, unify fraction commands, minus signs and separators.

    `raw` is at most MAX_CHARS long: the caller has checked.
    """
    text = raw.strip()
    peeled = True
    while peeled:
        peeled = False
        for left, right in _DELIMITERS:
            if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right) and not text.endswith("\\$"):
                text, peeled = text[len(left) : -len(right)].strip(), True
    text = text.translate(_LOOKALIKES).replace("{,}", ",").replace("\\%", "%").replace("\\$", "$")
    text = _DROPPED.sub("", text)
    for pattern, name in _RENAMED:
        text = pattern.sub(name, text)
    text = _PRIMES.sub(lambda match: "'" * max(1, len(re.findall("prime|'", match[1] or ""))), text)
    if _RELATION.search(text):
        text = re.sub(r"\\(?:lor|land)(?![a-zA-Z])", ",", text)
    text = _SPACES.sub(lambda match: match[1] or " ", text)  # a row break stays
    text = re.sub(r" *, *", ", ", _SEPARATOR.sub(",", text)) if _SEPARATOR.search(text) else text
    text = re.sub(" +", " ", text).strip()
    text = text.removesuffix("\\\\").rstrip()
    return text[:-1].rstrip() if text.endswith(".") and not text.endswith("..") else text


def joining_words(raw: str) -> frozenset[str]:
    """Which of `and` and `or` join the relations of an answer; none for an answer without relations, where both separate items."""
    if not _RELATION.search(raw):
        return frozenset()
    return frozenset(name for name, pattern in _JOINING.items() if pattern.search(raw))


def unbraced(text: str) -> str:
    """Without the pairs of group braces or round brackets that enclose all of it: `{5}` and `(5)` are `5`."""
    while text[:1] + text[-1:] in ("{}", "()") and len(text) > 2 and text[-2] != "\\" and closing(text, opening=0) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def closing(text: str, *, opening: int) -> int:
    """Index of the bracket that closes the one at `opening`, of whatever kind (half-open intervals mix them); -1 for none."""
    open_now = 0
    for at in range(opening, len(text)):
        open_now += (text[at] in "([{") - (text[at] in ")]}")
        if open_now == 0:
            return at
    return -1


def depth(text: str) -> int:
    """How deep brackets of all kinds are nested."""
    now = deepest = 0
    for letter in text:
        now += (letter in "([{") - (letter in ")]}")
        deepest = max(deepest, now)
    return deepest


def cost_problem(text: str) -> str:
    """Why an expression is too costly to evaluate; empty when it is not. A first sieve: the worker's time limit is the second."""
    if re.search(rf"[0-9]{{{_MAX_DIGITS_IN_A_ROW + 1}}}", text):
        return f"more than {_MAX_DIGITS_IN_A_ROW} digits in a row"
    if depth(text) > MAX_DEPTH:
        return f"brackets more than {MAX_DEPTH} deep"
    for match in _EXPONENT.finditer(text):
        exponent = (match[1] or match[2] or "").replace(" ", "").replace(",", "")
        if not re.search("[a-zA-Z]", exponent) and ("^" in exponent or "!" in exponent):
            return "a tower of powers"
        if any(int(digits) > _MAX_EXPONENT for digits in re.findall("[0-9]+", exponent)):
            return f"an exponent above {_MAX_EXPONENT}"
    for match in _FACTORIAL.finditer(text):
        before = text[: match.start()].rstrip()
        of_brackets = not match[1] and before.endswith((")", "}", "]")) and not _SYMBOLIC_FACTORIAL.search(before)
        if len(match[2]) > 1 or of_brackets or int(match[1] or 0) > _MAX_FACTORIAL:
            return f"a factorial above {_MAX_FACTORIAL}"
    return ""
