"""The only fenced block of a reply. Linear time; no regular expressions."""

from dataclasses import dataclass

from environments.reply import final_part

PYTHON = ("", "python", "py", "python3")
"""How a block of Python may be marked."""
_FENCE = "```"
_MAX_CODE_CHARS = 100_000


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


def code_block(response: str, *, languages: tuple[str, ...] = PYTHON) -> str:
    """The only fenced block behind the reasoning, marked as one of `languages` unless that is empty. Raises ExtractionError."""
    block = only_fenced_block(final_part(response))
    if languages and block.language not in languages:
        raise ExtractionError(f"the code block is marked {block.language[:20]!r}, not python")
    if len(block.text) > _MAX_CODE_CHARS:
        raise ExtractionError(f"the code has more than {_MAX_CODE_CHARS} characters")
    return block.text
