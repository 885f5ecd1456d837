"""What a report tells people about its tests: a line on each that passed, and of the others what went in, was expected and came out.

It holds hidden tests and expected values, and text of the candidate: it goes to the log, never to the policy.
"""

from environments.log_text import labelled

MOST_CHARS = 32_768
"""Of one report; further tests are only counted."""


class CaseLog:
    """Collects the tests of one run in their order."""

    def __init__(self) -> None:
        self._entries: list[str] = []
        self._chars = 0
        self._left_out = 0

    def passed(self, number: int, what: str) -> None:
        """A test (1-based) passed; `what` is a short line on it."""
        self._add(f"test {number} passed: {what}\n")

    def failed(self, number: int, why: str, **fields: str) -> None:
        """A test did not pass. Fields that are empty are left out, long ones shortened."""
        self._add(f"test {number} failed: {why}\n" + "".join(_indented(labelled(name, text)) for name, text in fields.items()))

    def note(self, name: str, text: str) -> None:
        """Something about the run as a whole."""
        self._add(labelled(name, text))

    def text(self) -> str:
        """All of it."""
        more = f"[{self._left_out} more entries left out]\n" if self._left_out else ""
        return "".join(self._entries) + more

    def _add(self, entry: str) -> None:
        if self._chars + len(entry) > MOST_CHARS:
            self._left_out += 1
        elif entry:
            self._entries.append(entry)
            self._chars += len(entry)


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())
