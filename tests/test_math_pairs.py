"""The labelled pairs of tests/data/math_pairs.jsonl, graded; docs/math.md holds the policies behind the labels and the counts."""

import asyncio
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from environments.records import Episode, Message, Problem, StopReason, Task
from rewards.math import MathGrader
from rewards.score import Score

ROOT = Path(__file__).parent.parent
PAIRS: list[dict[str, Any]] = [json.loads(line) for line in (ROOT / "tests/data/math_pairs.jsonl").read_text().splitlines()]
HOSTILE = ("traps", "cost", "injection")


def graded() -> list[Score]:
    async def main() -> list[Score]:
        grader = MathGrader()
        places = asyncio.Semaphore(4)

        async def one(pair: dict[str, Any]) -> Score:
            problem = Problem(task=Task(id="t", env="math", prompt=()), reference={"answer": pair["gold"]}, source="test")
            message = Message(role="assistant", content=f"The answer is \\boxed{{{pair['answer']}}}.")
            episode = Episode(messages=(message,), stop_reason=StopReason.DONE, n_sampled_tokens=1)
            async with places:
                return await grader.grade(problem, episode)

        scores = await asyncio.gather(*map(one, PAIRS))
        await grader.close()
        return scores

    return asyncio.run(main())


def test_at_most_one_percent_of_the_pairs_is_graded_wrong() -> None:
    wrong = [(pair, score) for pair, score in zip(PAIRS, graded(), strict=True) if score.reward != (1.0 if pair["equal"] else -1.0)]
    assert len(wrong) <= len(PAIRS) // 100, wrong
    assert [pair for pair, _ in wrong if not pair["equal"]] == [], "nothing wrong may pass"


def test_the_pairs_are_what_they_are_said_to_be() -> None:
    assert len(PAIRS) >= 250 and sum(pair["hard"] for pair in PAIRS) >= len(PAIRS) / 2
    assert len({(pair["gold"], pair["answer"]) for pair in PAIRS}) == len(PAIRS)
    assert all(pair["why"] for pair in PAIRS)
    assert not any(pair["equal"] for pair in PAIRS if pair["group"] in HOSTILE)


def test_the_documents_counts_are_the_files() -> None:
    rows = re.findall(r"^\| ([a-z]+) \| (\d+) \| (\d+) \|$", (ROOT / "docs/math.md").read_text(), re.M)
    counts, equal = Counter(pair["group"] for pair in PAIRS), Counter(pair["group"] for pair in PAIRS if pair["equal"])
    assert [(name, int(total), int(right)) for name, total, right in rows] == [(name, counts[name], equal[name]) for name in sorted(counts)]
