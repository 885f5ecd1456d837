"""The math grader: verdicts a second, and its mistakes on labelled pairs beside those of math-verify alone.

Not called math.py, which would hide the standard module from every script in this folder.

    python benchmarks/math_grader.py [--verdicts N]

Speed: `MathGrader.grade` one verdict after the other, second opinions included, its worker warm. The pairs are those of
tests/data/math_pairs.jsonl; math-verify gets them as its users call it, `verify(parse(gold), parse(answer))` with all defaults, in a
process of its own that is killed after some seconds. A killed or failed comparison counts as a rejection. Prints one JSON line.
"""

import argparse
import asyncio
import json
import random
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.machine import print_result  # noqa: E402
from environments.records import Episode, Message, Problem, StopReason, Task  # noqa: E402
from rewards.math import MathGrader  # noqa: E402
from rewards.score import Score  # noqa: E402

HOSTILE = ("traps", "cost", "injection")
KILL_SECONDS = 15.0
ALONE = """
import json, sys
from math_verify import parse, verify
replies = sys.stdout
sys.stdout = sys.stderr
print("ready", file=replies, flush=True)
for line in sys.stdin:
    gold, answer = json.loads(line)
    try:
        equal = bool(verify(parse(gold), parse(answer)))
    except Exception:
        equal = False
    print(json.dumps(equal), file=replies, flush=True)
"""


def responses(gold: str, answer: str) -> tuple[str, str]:
    """The reference and the reply as both sides see them."""
    return f"\\boxed{{{gold}}}", f"The answer is \\boxed{{{answer}}}."


class MathVerifyAlone:
    """math-verify's own use in a killable process, in an empty folder."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self.killed = 0

    def equal(self, gold: str, answer: str) -> bool:
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(responses(gold, answer)) + "\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], KILL_SECONDS)
        reply = process.stdout.readline() if ready else ""
        if not reply:
            self.killed += 1
            self.close()
        return bool(reply) and json.loads(reply) is True

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> "subprocess.Popen[str]":
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        self._process = subprocess.Popen(
            [sys.executable, "-c", ALONE], stdin=pipe, stdout=pipe, stderr=null, text=True, cwd=self._folder, env={"PATH": "/usr/bin:/bin"}
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()
        return self._process


def exact_pairs(n: int) -> list[tuple[str, str]]:
    """Integers and fractions, half of the answers right, none spelled like its reference."""
    draw = random.Random(0)
    pairs = []
    for index in range(n):
        value, scale = draw.randrange(1, 10**6), draw.randrange(2, 50)
        wrong = index // 2 % 2
        if index % 2:
            pairs.append((str(value), f"{value + wrong:,}.0"))
        else:
            pairs.append((f"\\frac{{{value}}}{{{scale}}}", f"\\frac{{{value * 3 + wrong}}}{{{scale * 3}}}"))
    return pairs


def symbolic_pairs(n: int) -> list[tuple[str, str]]:
    """Roots and polynomials, half of the answers right, no two alike."""
    draw = random.Random(0)
    pairs = []
    for index in range(n):
        a, b, wrong = draw.randrange(2, 1000), draw.randrange(2, 1000), index // 2 % 2
        if index % 2:
            pairs.append((f"{a}+\\sqrt{{{b}}}", f"\\sqrt{{{b}}}+{a + wrong}"))
        else:
            pairs.append((f"(x+{a})(x-{b})", f"x^2+{a - b + wrong}x-{a * b}".replace("+-", "-")))
    return pairs


async def ours(grader: MathGrader, pairs: Sequence[tuple[str, str]]) -> list[Score]:
    """Grade one after the other."""
    scores = []
    for gold, answer in pairs:
        message = Message(role="assistant", content=responses(gold, answer)[1])
        episode = Episode(messages=(message,), stop_reason=StopReason.DONE, n_sampled_tokens=1)
        problem = Problem(task=Task(id="t", env="math", prompt=()), reference={"answer": gold}, source="benchmark")
        scores.append(await grader.grade(problem, episode))
    return scores


async def speed(pairs: Sequence[tuple[str, str]], *, rounds: int) -> dict[str, float]:
    """Verdicts a second with a warm worker: the median of some rounds, each with a grader of its own."""
    rates, opinions, right = [], 0, 0
    for _ in range(rounds):
        grader = MathGrader()
        await ours(grader, [("x+1", "1+x")])
        started = time.perf_counter()
        scores = await ours(grader, pairs)
        rates.append(len(pairs) / (time.perf_counter() - started))
        opinions, right = sum(bool(score.parts) for score in scores), sum(score.reward == 1.0 for score in scores)
        await grader.close()
    assert right == len(pairs) // 2, f"{right} of {len(pairs)} right"
    return {"verdicts_per_s": round(statistics.median(rates)), "second_opinions": opinions, "n": len(pairs), "rounds": rounds}


def mistakes(pairs: Sequence[dict[str, Any]], verdicts: Sequence[bool]) -> dict[str, Any]:
    """Wrong verdicts; those in the hostile groups among them."""
    accepts = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict and not pair["equal"]]
    rejects = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if not verdict and pair["equal"]]
    return {
        "false_accepts": len(accepts),
        "of_these_hostile": sum(pair["group"] in HOSTILE for pair in accepts),
        "false_rejects": len(rejects),
        "wrong_percent": round(100 * (len(accepts) + len(rejects)) / len(pairs), 1),
        "false_accepts_by_group": dict(Counter(pair["group"] for pair in accepts)),
        "false_rejects_by_group": dict(Counter(pair["group"] for pair in rejects)),
    }


async def worker_cost() -> dict[str, float]:
    """Seconds until the worker has answered first, and its resident memory then."""
    started = time.perf_counter()
    grader = MathGrader()
    await ours(grader, [("x+1", "1+x")])
    seconds = time.perf_counter() - started
    memory = next(child.memory_info().rss for child in psutil.Process().children() if "rewards.math_worker" in child.cmdline())
    await grader.close()
    return {"first_verdict_s": round(seconds, 2), "rss_mib": round(memory / 2**20)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--verdicts", type=int, default=4000, help="exact verdicts a round")
    arguments = parser.parse_args()
    pairs = [json.loads(line) for line in (ROOT / "tests/data/math_pairs.jsonl").read_text().splitlines()]

    async def grade_pairs() -> list[bool]:
        grader = MathGrader()
        scores = await ours(grader, [(pair["gold"], pair["answer"]) for pair in pairs])
        await grader.close()
        return [score.reward == 1.0 for score in scores]

    started = time.perf_counter()
    our_verdicts = asyncio.run(grade_pairs())
    our_seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        alone = MathVerifyAlone(folder)
        started = time.perf_counter()
        their_verdicts = [alone.equal(pair["gold"], pair["answer"]) for pair in pairs]
        their_seconds = time.perf_counter() - started
        alone.close()
        written = len(list(Path(folder).iterdir()))
    print_result(
        benchmark="math",
        exact=asyncio.run(speed(exact_pairs(arguments.verdicts), rounds=5)),
        symbolic=asyncio.run(speed(symbolic_pairs(300), rounds=3)),
        worker=asyncio.run(worker_cost()),
        pairs=len(pairs),
        ours={**mistakes(pairs, our_verdicts), "seconds": round(our_seconds, 1)},
        math_verify_alone={
            **mistakes(pairs, their_verdicts),
            "seconds": round(their_seconds, 1),
            "killed": alone.killed,
            "files_written_by_answers": written,
        },
    )


if __name__ == "__main__":
    main()
