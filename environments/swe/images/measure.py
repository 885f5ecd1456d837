"""Runs the tests of a prepared image as the grader will, several times, and records which of them can be relied on."""

from statistics import median

from environments.containers.base import Containers
from environments.swe.images.build import Built, Tell
from environments.swe.images.record import LABEL, RUNS_LABEL, from_label, record_label
from environments.swe.records import WORK_DIR, Outcome, RepoImage, SuiteRequest, SuiteResult
from environments.swe.suite import run_suite

_SUITE_SECONDS, _COVERAGE_SECONDS = 900.0, 3600.0
_LABEL_SECONDS = 60.0


async def recorded(containers: Containers, built: Built, *, runs: int) -> RepoImage | None:
    """What an image's label says of as many runs; None when it says nothing."""
    label = await containers.image_label(built.image, LABEL)
    if not label or await containers.image_label(built.image, RUNS_LABEL) != str(runs):
        return None
    return from_label(label, image_id=await containers.image_id(built.image))


async def measure(containers: Containers, built: Built, *, name: str, source: str, runs: int, tell: Tell) -> RepoImage:
    """Run all tests `runs` times and once more to see which functions they enter; the record is put into the image's label.

    Raises ValueError when there are no tests, when none passes, or when a run does not finish; and the engine's errors.
    """
    results = []
    for number in range(1, runs + 1):
        result = await _run(containers, built, source=source, coverage=False)
        tell(f"run {number} of {runs}: {len(result.passed())} of {len(result.tests)} tests pass, {result.seconds:.1f} s")
        results.append(result)
    passed = [result.passed() for result in results]
    names = list(dict.fromkeys(test.id for result in results for test in result.tests))
    kept = [test for test in names if all(test in run for run in passed)]
    if not kept:
        raise ValueError(f"no test of {source} passes in each of {runs} runs; {_first_failure(results[0])}")
    covering = await _run(containers, built, source=source, coverage=True)
    tell(f"run with coverage: {len(covering.covered)} functions are entered, {covering.seconds:.1f} s")
    is_kept = frozenset(kept)
    covered = {function: tuple(test for test in tests if test in is_kept) for function, tests in sorted(covering.covered.items())}
    seconds = [{test.id: test.seconds for test in result.tests} for result in results]
    record = RepoImage(
        image=built.image,
        image_id=built.image_id,
        name=name,
        source=source,
        base_commit=built.base_commit,
        tests={test: round(median(run[test] for run in seconds), 4) for test in kept},
        flaky=tuple(test for test in names if test not in is_kept and any(test in run for run in passed)),
        failing=tuple(test for test in names if not any(test in run for run in passed)),
        covered={function: tests for function, tests in covered.items() if tests},
        suite_seconds=round(median(result.seconds for result in results), 3),
    )
    return await _labelled(containers, record, runs=runs)


async def _run(containers: Containers, built: Built, *, source: str, coverage: bool) -> SuiteResult:
    request = SuiteRequest(seconds=_COVERAGE_SECONDS if coverage else _SUITE_SECONDS, coverage=coverage)
    result = await run_suite(containers, image=built.image, work_dir=WORK_DIR, request=request)
    if result.ended != "finished":
        raise ValueError(f"the tests of {source} cannot be run: {result.ended}, {result.reason}{_tail(result.output)}")
    if not result.tests:
        raise ValueError(
            f"{source} has no tests that pytest finds{_tail(result.output)}; name a git repository or a package with its tests"
        )
    return result


async def _labelled(containers: Containers, record: RepoImage, *, runs: int) -> RepoImage:
    """The same image with its record as a label, under the same reference."""
    labels = {LABEL: record_label(record), RUNS_LABEL: str(runs)}
    command = ("python3", "-I", "-c", "")
    result = await containers.build_step(
        base=record.image, image=record.image, command=command, files=None, labels=labels, seconds=_LABEL_SECONDS
    )
    if result.exit_code != 0:
        raise ValueError(f"image {record.image} cannot start python3: {result.errors.decode(errors='replace')[-500:]}")
    return from_label(labels[LABEL], image_id=await containers.image_id(record.image))


def _first_failure(result: SuiteResult) -> str:
    first = next(test for test in result.tests if test.outcome is not Outcome.PASSED)
    return f"the first, {first.id}, is {first.outcome.value}: {first.detail.strip()[-600:]}"


def _tail(output: str) -> str:
    return f"; it printed: {output.strip()[-1500:]}" if output.strip() else ""
