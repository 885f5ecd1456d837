"""The scripts of a task folder that only other harnesses run.

Harbor builds `environment/`, gives the container to the agent, then copies `tests/` to /tests in that same container, runs test.sh there
and reads /logs/verifier/reward.txt. So an agent that tampers with pytest or with the base's tests can fool this script; the project's
graders run the tests in a fresh container instead.
"""

_DELETE = "import os, sys; [os.unlink(path) for path in open(sys.argv[1], 'rb').read().split(b'\\0') if path and os.path.lexists(path)]"
_TESTS = """\
import json, os, tarfile
import pytest

class Outcomes:
    def __init__(self):
        self.phases = {}

    def pytest_runtest_logreport(self, report):
        self.phases.setdefault(report.nodeid, []).append((report.when, report.outcome, hasattr(report, "wasxfail")))

with tarfile.open("/tests/files.tar", errors="surrogateescape") as tar:
    tar.extractall(".")
with open("/tests/files.deleted", "rb") as deleted:
    for path in deleted.read().split(b"\\0"):
        if path and os.path.lexists(path):
            os.unlink(path)
with open("/tests/tests.json") as file:
    wanted = sum(json.load(file).values(), [])
outcomes = Outcomes()
pytest.main(["-q", "-p", "no:cacheprovider", *wanted], plugins=[outcomes])
passed = [(when, "passed", False) for when in ("setup", "call", "teardown")]
failed = [test for test in wanted if outcomes.phases.get(test) != passed]
print(f"{len(wanted) - len(failed)} of {len(wanted)} tests passed")
with open("/logs/verifier/reward.txt", "w") as file:
    file.write("0" if failed else "1")
"""


def dockerfile(*, image: str, work_dir: str) -> bytes:
    """The prepared image with the overlay in it."""
    lines = (
        f"FROM {image}",
        "USER root",
        f"WORKDIR {work_dir}",
        f"ADD overlay.tar {work_dir}/",
        "COPY overlay.deleted /tmp/overlay.deleted",
        f'RUN python3 -c "{_DELETE}" /tmp/overlay.deleted && rm /tmp/overlay.deleted',
    )
    return ("\n".join(lines) + "\n").encode()


def verifier_script(*, work_dir: str) -> bytes:
    """`tests/test.sh`: puts the test files in place, runs the tests, and writes 1 or 0."""
    lines = ("#!/bin/bash", "mkdir -p /logs/verifier", "echo 0 > /logs/verifier/reward.txt", f"cd {work_dir} || exit 1")
    return ("\n".join(lines) + f"\nexec python3 -B - <<'EOF'\n{_TESTS}EOF\n").encode()


def solve_script(*, work_dir: str) -> bytes:
    """`solution/solve.sh`: applies the gold patch."""
    return f"#!/bin/bash\nset -e\ncd {work_dir}\ngit apply --whitespace=nowarn /solution/gold.patch\n".encode()
