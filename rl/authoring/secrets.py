"""Looks for the reference of a problem in what the policy sees and in what an environment holds."""

import gc
import re
import types
from asyncio import AbstractEventLoop, Future
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from environments.records import Json, Message, Problem
from environments.sources.code_rows import CODE_ENVS
from environments.sources.rows import HIDDEN_FIELDS
from environments.traces.tasks import TRACE_ENVS

SHOWN_KEYS = ("entry_point", "columns")
"""Fields of a reference that a task shows, or may show, on purpose. So are others that the payload has under the same name, except
those that are hidden in every row."""
LONG = 12
"""A text of this length does not turn up by chance."""
_MOST_OBJECTS = 100_000
_COMPARED = 50
"""Problems whose prompts are searched for one another's answers."""
_OPAQUE = (
    *(types.ModuleType, type, types.BuiltinFunctionType, types.CodeType, types.FrameType, types.GeneratorType, types.CoroutineType),
    *(AbstractEventLoop, Future),
)
"""Everything can be reached from these; what an environment keeps in them is not looked at."""


def secrets(problem: Problem) -> dict[str, Json]:
    """The values that only the grader may see, by field: texts, numbers, and containers that hold something."""
    payload = problem.task.payload
    # Of the code and trace environments all other fields are part of the question: the program to read, the code to go on with.
    open_fields = problem.reference if problem.task.env in (*CODE_ENVS, *TRACE_ENVS) else payload
    shown = {*SHOWN_KEYS, *(key for key in problem.reference if key not in HIDDEN_FIELDS and key in open_fields)}
    fields = {key: value for key, value in problem.reference.items() if key not in shown}
    return {key: value for key, value in fields.items() if not isinstance(value, bool) and value not in (None, "", [], {})}


def shown_by_data(problem: Problem) -> list[str]:
    """Fields of the reference that the task itself shows."""
    payload = problem.task.payload
    said = "\n".join(message.content for message in problem.task.prompt)
    found = []
    for key, value in secrets(problem).items():
        same_key = key in payload and _same(payload[key], value)
        elsewhere = _telling(value) and any(_same(other, value) for other in _values(dict(payload)))
        if same_key or elsewhere:
            found.append(f"the payload holds reference[{key!r}]")
        elif isinstance(value, str) and len(value) >= LONG and value in said:
            found.append(f"the prompt shows reference[{key!r}]")
    return found


def shown_everywhere(problems: Sequence[Problem]) -> list[str]:
    """Fields whose values, however short, the prompts or the payloads of all problems show, each its own.

    Choices that every problem shows alike tell nothing.
    """
    some = problems[:_COMPARED]
    hidden = [secrets(problem) for problem in some]
    found = []
    for key in sorted(set.intersection(*map(set, hidden))) if len(some) > 1 else []:
        values = [own[key] for own in hidden]
        for what, shows in (("the payload holds", _payload_holds), ("the prompt shows", _prompt_shows)):
            own = all(shows(problem, value) for problem, value in zip(some, values, strict=True))
            if own and not all(shows(problem, value) for problem in some for value in values):
                found.append(f"{what} reference[{key!r}]")
    return found


def _prompt_shows(problem: Problem, value: Json) -> bool:
    said = "\n".join(message.content for message in problem.task.prompt)
    return isinstance(value, str | int | float) and _has_word(said, str(value))


def _payload_holds(problem: Problem, value: Json) -> bool:
    return any(_same(other, value) for other in _values(dict(problem.task.payload)))


def said_by_environment(problem: Problem, shown: Sequence[Message]) -> set[str]:
    """Fields of the reference that occur, as whole words, in the environment's messages and not in the task's prompt."""
    asked = "\n".join(message.content for message in problem.task.prompt)
    said = "\n".join(message.content for message in shown)
    texts = {key: str(value) for key, value in secrets(problem).items() if isinstance(value, str | int | float)}
    return {key for key, text in texts.items() if _has_word(said, text) and not _has_word(asked, text)}


def held_by_environment(problem: Problem, environment: object) -> set[str]:
    """Fields of the reference that can be reached from the environment and not from its task."""
    allowed = list(reachable(problem.task))
    ids = {id(one) for one in allowed}
    words = "\n".join(one for one in allowed if isinstance(one, str))
    hidden = secrets(problem)
    lists = [value for value in hidden.values() if isinstance(value, list | dict)]
    found: set[str] = set()
    for one in reachable(environment):
        if one is problem.reference:
            found.update(hidden)
        if id(one) not in ids or any(one is value for value in lists):
            found.update(key for key, value in hidden.items() if _gives_away(one, value, words=words))
    return found


def reachable(root: object) -> Iterator[object]:
    """Objects that `root` refers to, near ones first, without modules, classes and code; at most 100,000."""
    seen = {id(root)}
    queue = deque([root])
    while queue and len(seen) < _MOST_OBJECTS:
        one = queue.popleft()
        yield one
        for below in _below(one):
            if id(below) not in seen and not isinstance(below, _OPAQUE):
                seen.add(id(below))
                queue.append(below)


def _below(one: object) -> Sequence[object]:
    if isinstance(one, types.FunctionType):
        # not its globals: they are the module
        return [*(cell for cell in one.__closure__ or ()), *(one.__defaults__ or ()), *(one.__kwdefaults__ or {}).values()]
    return gc.get_referents(one)


def _values(value: Json) -> Iterator[Json]:
    yield value
    for below in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        yield from _values(below)


def _telling(value: Json) -> bool:
    """Whether an equal value elsewhere is no coincidence."""
    return len(value) >= 4 if isinstance(value, str) else isinstance(value, list | dict)


def _same(one: Any, value: Json) -> bool:
    if type(one) is not type(value):
        return False
    try:
        return bool(one == value)
    except Exception:  # an object of the author's may refuse to be compared
        return False


def _gives_away(one: object, value: Json, *, words: str) -> bool:
    """Whether an object is the secret or a text around it; what the task says in `words` is no secret."""
    if isinstance(value, str | int | float) and _has_word(words, str(value)):
        return False
    return _same(one, value) or (isinstance(one, str) and isinstance(value, str) and len(value) >= LONG and value in one)


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None
