"""Run by the Python of Inspect Scout's own environment: opens a transcript database with the library and prints what it read, as JSON.

python scout_reader.py DATABASE
"""

import asyncio
import json
import sys
from typing import Any

from inspect_scout import TranscriptContent, transcripts_db
from inspect_scout import columns as c
from inspect_scout._query import Query
from inspect_scout._transcript.database.factory import transcripts_view
from inspect_scout._transcript.database.schema import validate_transcript_schema


async def read(location: str) -> dict[str, Any]:
    found = []
    async with transcripts_db(location) as database:
        async for info in database.select():
            transcript = await database.read(info, TranscriptContent(messages="all"))
            messages = [
                {
                    "role": one.role,
                    "text": one.text,
                    "calls": [{"function": call.function, "arguments": call.arguments} for call in getattr(one, "tool_calls", None) or ()],
                }
                for one in transcript.messages
            ]
            shown = {
                name: getattr(info, name) for name in ("transcript_id", "task_id", "model", "score", "success", "error", "total_tokens")
            }
            metadata = {name: info.metadata.get(name) for name in ("rollout_id", "reward", "status", "reward_parts", "learner")}
            found.append({**shown, "metadata": metadata, "messages": messages})
        infra = await database.count(Query(where=[c.status == "infra"]))
    async with transcripts_view(location) as view:  # what its viewer's server reads with
        viewed = 0
        async for info in view.select():
            content = await view.read_messages_events(info)
            async with content.data as data:
                viewed += bool(json.loads(b"".join([chunk async for chunk in data])))
    errors = [error.message for error in validate_transcript_schema(location)]
    return {"transcripts": found, "infra": infra, "viewed": viewed, "errors": errors}


if __name__ == "__main__":
    json.dump(asyncio.run(read(sys.argv[1])), sys.stdout)
