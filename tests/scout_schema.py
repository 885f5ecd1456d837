"""Run by the Python of Inspect Scout's own environment: prints what it publishes about transcripts, as JSON.

.venv-scout/bin/python tests/scout_schema.py > tests/data/scout_schema.json
"""

import json
import sys

import inspect_scout
from inspect_ai.model import ChatMessage
from inspect_scout import transcripts_db_schema
from pydantic import TypeAdapter

if __name__ == "__main__":
    published = {
        "inspect_scout": inspect_scout.__version__,
        "transcript": transcripts_db_schema(format="avro"),
        "messages": TypeAdapter(list[ChatMessage]).json_schema(),
    }
    json.dump(published, sys.stdout, indent=1)
    print()
