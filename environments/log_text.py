"""Texts on their way to the log of a score: long ones keep their beginning and their end.

Lengths are in characters; the lines that say how much was left out come on top.
"""

FIELD_CHARS = 1_000
"""Of one value: what went into a test, what was expected, what came out or was printed."""


def shortened(text: str, *, chars: int = FIELD_CHARS) -> str:
    """The text, or three quarters of `chars` of its beginning and a quarter of its end, with a line between them."""
    if len(text) <= chars:
        return text
    tail = chars // 4
    head = chars - tail
    return f"{text[:head]}\n[{len(text) - head - tail} characters left out]\n{text[len(text) - tail :]}"


def labelled(name: str, text: str, *, chars: int = FIELD_CHARS) -> str:
    """`name: text`, or the text below the name, indented, when it has several lines; empty for an empty text."""
    body = shortened(text, chars=chars).rstrip("\n")
    if not body:
        return ""
    if "\n" not in body:
        return f"{name}: {body}\n"
    return f"{name}:\n" + "".join(f"  {line}\n" for line in body.split("\n"))
