"""Find the answer in a response: the last closed box, or the only fenced block. Linear time; no regular expressions."""

from dataclasses import dataclass

_FENCE = "```"
_BOX = "\\boxed"


class ExtractionError(ValueError):
    """The response does not hold exactly what was asked for; the message is one line for a person."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FencedBlock:
    """A block between two lines of three backticks."""

    language: str
    """The word after the opening backticks, lower case; empty when there is none."""
    text: str
    """The lines between, joined by newlines, without a final one."""


def only_fenced_block(response: str) -> FencedBlock:
    """Return the only fenced block of a response. Raises ExtractionError when there is none, more than one or an open one."""
    blocks: list[FencedBlock] = []
    language: str | None = None
    lines: list[str] = []
    for line in response.split("\n"):
        mark = line.strip()
        if language is None:
            if mark.startswith(_FENCE):
                language, lines = mark[len(_FENCE) :].strip().lower(), []
                if "`" in language:
                    raise ExtractionError("a fenced block must start on a line of its own")
        elif mark == _FENCE:
            blocks.append(FencedBlock(language=language, text="\n".join(lines)))
            language = None
        else:
            lines.append(line)
    if language is not None:
        raise ExtractionError("the last fenced block is not closed")
    if len(blocks) != 1:
        raise ExtractionError(f"{len(blocks)} fenced blocks instead of exactly one")
    return blocks[0]


def last_box(response: str) -> str:
    r"""Return the content of the last `\boxed{...}`, outermost braces off. Raises ExtractionError when there is none or one is not closed.

    A box inside a box belongs to the outer one. `\{`, `\}` and `\\` are no braces.
    """
    content: str | None = None
    start = response.find(_BOX)
    while start >= 0:
        opening = start + len(_BOX)
        while opening < len(response) and response[opening] in " \t":
            opening += 1
        if opening < len(response) and response[opening] == "{":
            end = _closing_brace(response, opening)
            if end < 0:
                raise ExtractionError("a \\boxed{ is not closed")
            content = response[opening + 1 : end]
            opening = end
        start = response.find(_BOX, opening)
    if content is None:
        raise ExtractionError("no \\boxed{} in the response")
    return content


def _closing_brace(text: str, opening: int) -> int:
    """Index of the brace that closes the one at `opening`; -1 when there is none."""
    depth, at = 0, opening
    while at < len(text):
        letter = text[at]
        if letter == "\\":
            at += 1
        elif letter == "{":
            depth += 1
        elif letter == "}":
            depth -= 1
            if depth == 0:
                return at
        at += 1
    return -1
