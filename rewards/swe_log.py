"""What a verdict on a patch tells people: for the log of the score, never for the policy. It names hidden tests and shows their reports."""

from environments.log_text import labelled, shortened
from environments.swe.grading import PatchVerdict
from environments.swe.records import Outcome, TestOutcome

_MOST_CHARS = 65_536
"""Of one log: its tests take three quarters, the output of the run a quarter."""
_DETAIL_CHARS = 2_000
_VERDICT, _PUT_BACK, _TO_LOOK_AT = "verdict", "put back, because they are tests or settle how tests run", "to look at"


def verdict_log(verdict: PatchVerdict) -> str:
    """The verdict and what led to it: paths that were put back, each test's outcome with the end of its report, the end of the output."""
    head = labelled(_VERDICT, f"{verdict.status}: {verdict.reason}", chars=_DETAIL_CHARS)
    head += labelled(_PUT_BACK, "\n".join(verdict.overruled), chars=_DETAIL_CHARS)
    head += labelled(_TO_LOOK_AT, "\n".join(verdict.told), chars=_DETAIL_CHARS)
    tests = sorted(verdict.tests, key=lambda test: test.outcome is Outcome.PASSED)  # those that did not pass come first
    told = shortened("".join(_told(test) for test in tests), chars=_MOST_CHARS * 3 // 4)
    return head + told + labelled("output", verdict.output, chars=_MOST_CHARS // 4)


def notes_of(log: str) -> str:
    """Of the log of a score: the paths that were put back, and what the scan of the patch came upon."""
    kept, keep = [], False
    for line in log.splitlines():
        if not line.startswith("  "):
            keep = line.startswith((_PUT_BACK, _TO_LOOK_AT))
            if not keep and not line.startswith(_VERDICT):
                break
        if keep:
            kept.append(line)
    return "\n".join(kept)


def _told(test: TestOutcome) -> str:
    line = f"{test.outcome.value} {test.id} ({test.seconds:.3f} s)\n"
    if test.outcome is Outcome.PASSED or not test.detail:
        return line
    return line + "".join(f"  {text}\n" for text in shortened(test.detail, chars=_DETAIL_CHARS).splitlines())
