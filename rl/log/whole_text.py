"""The whole text of a logged message, of which the row has the beginning and the end when it is long (`rl/log/tables.py`)."""

from collections.abc import Mapping
from typing import Any

from rl.log.query import RunLog
from rl.log.tables import LONG_TEXT


def whole_text(log: RunLog, row: Mapping[str, Any]) -> tuple[str, int]:
    """The text, and how many characters the log has lost of it, because its blob is not there."""
    text, chars = str(row["text"] or ""), row["text_chars"] or 0
    if row["turn"] is not None or chars <= LONG_TEXT:
        return text, 0
    try:
        return log.blob(row["stdout_ref"] or "").decode(), 0
    except ValueError:
        return text, max(1, chars - len(text))
