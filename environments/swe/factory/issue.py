"""The text of a task: what fails and how it shows, never where the bug is or what the fix is. No model, the same text for the same runs."""

import re
from collections.abc import Sequence

from environments.swe.factory.failure import Failure

STYLES = ("issue", "file")
_MOST_OTHERS = 2


def issue_text(failures: Sequence[Failure], *, repository: str, work_dir: str) -> str:
    """An issue as a user of the repository would file it, and what to do. `failures`: of every failing test, one at least."""
    shown = min(failures, key=_preference)
    lines = [f"# {_title(shown)}", "", f"The Python repository `{repository}` in {work_dir} has a bug.", ""]
    if code := shown.example or shown.statement:
        lines += [f"With {shown.values}, this" if shown.values else "This", "", _fence(code, "python"), "", _expectation(shown), ""]
    elif shown.called or shown.values:
        lines += [f"A call of `{shown.called}` shows it." if shown.called else f"It shows with {shown.values}.", ""]
    if shown.message:
        lines += [_fence(shown.message, "text"), ""]
    if others := len(failures) - 1:
        lines += [f"{others} more {'check fails' if others == 1 else 'checks fail'}{_other_errors(failures, shown)}.", ""]
    lines += [
        f"Find the cause and repair the code in {work_dir}. Leave the tests alone: tests that are not shown here decide, and they check "
        "that everything else still works.",
    ]
    return "\n".join(lines) + "\n"


def file_text(failures: Sequence[Failure], *, path: str, source: str) -> str:
    """For small models: the file's name, what goes wrong in one line, and the broken file."""
    return f"Fix {path}\n{_one_line(min(failures, key=_preference))}\n{source}"


def _preference(failure: Failure) -> tuple[bool, bool, bool, int, str]:
    """Small for what explains most: an example with a message, few lines, no fixtures."""
    size = len(failure.example or failure.statement)
    return not failure.example, not failure.message, not failure.called, size, failure.test


def _title(failure: Failure) -> str:
    subject = f" of `{failure.called}`" if failure.called else ""
    if "DID NOT RAISE" in failure.message:
        return f"An error is missing{f': `{failure.called}` accepts what it should refuse' if failure.called else ''}"
    if failure.error == "AssertionError":
        return f"Wrong result{subject}" if subject else "Wrong result"
    return f"`{failure.error}`{f' from `{failure.called}`' if failure.called else ' where a result is expected'}"


def _expectation(failure: Failure) -> str:
    if "DID NOT RAISE" in failure.message:
        return "should raise an error, but does not:"
    if failure.error == "AssertionError":
        return "should hold, but does not:" if failure.message else "should hold, but does not."
    return "should work, but raises:"


def _other_errors(failures: Sequence[Failure], shown: Failure) -> str:
    found = dict.fromkeys(failure.headline for failure in failures if failure.headline and failure.headline != shown.headline)
    some = [f"`{line}`" for line in list(found)[:_MOST_OTHERS] if "`" not in line]
    return f", for example with {' and with '.join(some)}" if some else ""


def _one_line(failure: Failure) -> str:
    """`f(1, 2) gives 3, not 4` where the test is one comparison, else the statement and the error."""
    call = re.fullmatch(r"assert (.+?) == (.+)", failure.statement)
    values = re.fullmatch(r"(?:AssertionError: )?assert (.+?) == (.+)", failure.headline)
    if call and values and "==" not in call[2] + values[2]:
        return f"{call[1]} gives {values[1]}, not {values[2]}"
    statement = " ".join(failure.statement.split())
    return f"{statement}: {failure.headline}" if statement and failure.headline else statement or failure.headline or "a test fails"


def _fence(text: str, language: str) -> str:
    marks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{marks}{language}\n{text}\n{marks}"
