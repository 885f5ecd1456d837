"""Find the answer in a response: the only box here, the only fenced block in `environments/fenced.py`. Linear time."""

import re
from dataclasses import dataclass

from environments.fenced import ExtractionError as ExtractionError
from environments.fenced import only_fenced_block as only_fenced_block

_BOX = "\\boxed"
_COMMAND = re.compile(r"(\\boxed|\\fbox)(?![a-zA-Z])\s*")
_MAX_BOX_CHARS = 10_000
_MAX_BOXES = 100


def only_box(text: str) -> str:
    r"""Return the content of the only `\boxed{...}`. Raises ExtractionError when there is none, more than one or an open one.

    A box that holds nothing but a box is one; any other box inside a box is one too many. `\boxed 5` and `\fbox{5}` count as boxes, but
    not as answers. `\{`, `\}` and `\\` are no braces.
    """
    content = _only_content(text)
    inner = content.strip()
    nested = _boxes(inner) if inner.startswith(_BOX) else []
    if nested and nested[0].end == len(inner):
        content = _only_content(inner)
    if _boxes(content):
        raise ExtractionError("a box inside a box instead of exactly one box")
    return content


@dataclass(frozen=True, kw_only=True, slots=True)
class _Box:
    """Where the content begins and where the box ends; `problem` says why it holds no answer."""

    start: int
    end: int
    problem: str = ""


def _only_content(text: str) -> str:
    boxes = _boxes(text)
    if not boxes:
        raise ExtractionError("no \\boxed{} in the response")
    if len(boxes) > 1:
        count = f"more than {_MAX_BOXES}" if len(boxes) > _MAX_BOXES else len(boxes)
        raise ExtractionError(f"{count} boxes instead of exactly one")
    if boxes[0].problem:
        raise ExtractionError(boxes[0].problem)
    return text[boxes[0].start : boxes[0].end - 1]


def _boxes(text: str) -> list[_Box]:
    """The outermost boxes, at most one more than _MAX_BOXES."""
    boxes: list[_Box] = []
    match = _COMMAND.search(text)
    while match and len(boxes) <= _MAX_BOXES:
        at = end = match.end()
        if text[at : at + 1] == "{":
            closed = _closing_brace(text, at)
            if closed < 0:
                raise ExtractionError(f"a {match[1]}{{ is not closed within {_MAX_BOX_CHARS} characters")
            end = closed + 1
            boxes.append(_Box(start=at + 1, end=end, problem="" if match[1] == _BOX else f"{match[1]}{{}} instead of \\boxed{{}}"))
        else:
            boxes.append(_Box(start=at, end=at, problem=f"{match[1]} without braces instead of \\boxed{{}}"))
        match = _COMMAND.search(text, end)
    return boxes


def _closing_brace(text: str, opening: int) -> int:
    """Index of the brace that closes the one at `opening`; -1 when there is none within reach."""
    depth, at, last = 0, opening, min(len(text), opening + _MAX_BOX_CHARS)
    while at < last:
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
