"""Text of the model on its way to a file or a terminal: it may hold anything, and must drive neither."""

import unicodedata

_VISIBLE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Control, format (bidirectional overrides, zero width), surrogate, private, unassigned, line and paragraph separators."""


def visible(text: str, *, one_line: bool = False) -> str:
    """`text` with every character that a terminal might act on written as an escape like `\\x1b`.

    Newlines and tabs stay, unless `one_line` asks for them as escapes, too.
    """
    if text.isascii() and text.isprintable():
        return text
    kept = "" if one_line else "\n\t"
    return "".join(c if c in kept or unicodedata.category(c) not in _VISIBLE_CATEGORIES else _escape(c) for c in text)


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters, the last one an ellipsis when something was cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def storable(text: str) -> str:
    """`text` as valid UTF-8: lone surrogates, which Parquet cannot hold, become escapes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
