"""pytest's own reports of failing tests, for issue texts.

`run_suite` decides which tests fail, and to be hard to fool it rewrites their comparisons, so its details lack the values that were
compared. Here pytest runs as a user would run it. What it prints comes from the process of the broken code: text for people, no verdict.
"""

import json
from collections.abc import Awaitable, Callable, Sequence

from environments.containers.base import Containers, ContainerSpec
from environments.swe.changes import to_tar
from environments.swe.records import RepoImage, TreeChange

ReadReports = Callable[[TreeChange, Sequence[str]], Awaitable[dict[str, str]]]
"""Reports of failing tests of the image with one file changed, by node id; those that could be had."""
MOST_TESTS = 20
_SECONDS, _LONGEST_REPORT = 60.0, 4000
_PROGRAM = """
import json, os, sys
import pytest

out = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

class Reports:
    def pytest_runtest_logreport(self, report):
        if report.failed:
            print(json.dumps([report.nodeid, str(report.longrepr)[-LONGEST:]]), file=out, flush=True)

pytest.main(["-q", "-p", "no:cacheprovider", "-o", "addopts=", "--tb=long", *json.loads(sys.argv[1])], plugins=[Reports()])
""".replace("LONGEST", str(_LONGEST_REPORT))


async def read_reports(containers: Containers, image: RepoImage, change: TreeChange, tests: Sequence[str]) -> dict[str, str]:
    """Of the first MOST_TESTS tests. Raises ContainerError when the engine fails."""
    container = await containers.start(ContainerSpec(image=image.image, command=("sleep", "3600"), work_dir=image.work_dir))
    try:
        await container.put(image.work_dir, to_tar([change], uid=0, folders=True))
        words = ["python3", "-B", "-c", _PROGRAM, json.dumps(list(tests[:MOST_TESTS]))]
        result = await container.exec(words, seconds=_SECONDS, output_bytes=2 * MOST_TESTS * _LONGEST_REPORT)
    finally:
        await container.remove()
    return dict(filter(None, map(parse_report, result.output.decode(errors="replace").splitlines())))


def parse_report(line: str) -> tuple[str, str] | None:
    """Node id and report; None for a line that something else printed, or that was cut."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value):
        return value[0], value[1]
    return None
