"""The questions of benchmarks/export.py, asked of Inspect Scout. Run by the Python of Scout's environment; prints the answer as JSON.

python scout_questions.py DATABASE QUESTION [ROLLOUT]

Scout's query language selects, filters and orders transcripts; it does not group or join, so the rest is Python.
"""

import asyncio
import json
import sys
from collections import Counter, defaultdict
from typing import Any

from inspect_scout import columns as c
from inspect_scout import transcripts_db
from inspect_scout._query import Query


async def one_in_eight(database: Any, rollout: str) -> Any:
    won: Counter[str] = Counter()
    graded: Counter[str] = Counter()
    async for info in database.select(Query(where=[c.reward.is_not_null()])):
        graded[info.metadata["group_id"]] += 1
        won[info.metadata["group_id"]] += info.success
    return sorted(group for group, n in graded.items() if n == 8 and won[group] == 1)


async def why_this_reward(database: Any, rollout: str) -> Any:
    async for info in database.select(Query(where=[c.rollout_id == rollout])):
        parts = {name: part["value"] * part["weight"] for name, part in info.metadata["reward_parts"].items()}
        return {"reward": info.metadata["reward"], "parts": parts, "worst": [info.metadata["worst_index"]]}


async def pass_rates(database: Any, rollout: str) -> Any:
    seen: dict[tuple[str, int], list[bool]] = defaultdict(list)
    async for info in database.select(Query(where=[c.reward.is_not_null()])):
        seen[info.agent, info.metadata["dispatch_version"] // 100].append(info.success)
    return [[*key, round(sum(values) / len(values), 6)] for key, values in sorted(seen.items())]


async def main() -> None:
    location, question, rollout = sys.argv[1:]
    ask = {"one_in_eight": one_in_eight, "why_this_reward": why_this_reward, "pass_rates": pass_rates}[question]
    async with transcripts_db(location) as database:
        print(json.dumps(await ask(database, rollout)))


if __name__ == "__main__":
    asyncio.run(main())
