"""Find the answer in a response: the only box here, the only fenced block in `environments/fenced.py`. Linear time."""

from environments.fenced import ExtractionError as ExtractionError
from environments.fenced import only_fenced_block as only_fenced_block

_BOX = "\\boxed"
_MAX_BOX_CHARS = 10_000
_MAX_BOXES = 100


def only_box(text: str) -> str:
    r"""Return the content of the only `\boxed{...}`. Raises ExtractionError when there is none, more than one or an open one.

    A box that holds nothing but a box is one; any other box inside a box is one too many. `\{`, `\}` and `\\` are no braces.
    """
    content = _only_content(text)
    inner = content.strip()
    nested = _boxes(inner) if inner.startswith(_BOX) else []
    if nested and nested[0][1] == len(inner):
        content = _only_content(inner)
    if _BOX in content:
        raise ExtractionError("a box inside a box instead of exactly one box")
    return content


def _only_content(text: str) -> str:
    boxes = _boxes(text)
    if not boxes:
        raise ExtractionError("no \\boxed{} in the response")
    if len(boxes) > 1:
        count = f"more than {_MAX_BOXES}" if len(boxes) > _MAX_BOXES else len(boxes)
        raise ExtractionError(f"{count} boxes instead of exactly one")
    start, end = boxes[0]
    return text[start : end - 1]


def _boxes(text: str) -> list[tuple[int, int]]:
    """Of the outermost boxes, at most one more than _MAX_BOXES: where the content begins and where the box ends."""
    boxes: list[tuple[int, int]] = []
    at = text.find(_BOX)
    while at >= 0 and len(boxes) <= _MAX_BOXES:
        at += len(_BOX)
        while at < len(text) and text[at] in " \t":
            at += 1
        if at < len(text) and text[at] == "{":
            end = _closing_brace(text, at)
            if end < 0:
                raise ExtractionError(f"a \\boxed{{ is not closed within {_MAX_BOX_CHARS} characters")
            boxes.append((at + 1, end + 1))
            at = end + 1
        at = text.find(_BOX, at)
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
