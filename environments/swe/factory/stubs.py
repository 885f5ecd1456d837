"""Stand-ins that compute nothing. Where one of them passes a task's tests, the tests cannot tell a repair from none."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from environments.swe.factory.gold import patched
from environments.swe.factory.mutations import functions
from environments.swe.factory.source import Function, Source, without_docstring
from environments.swe.records import RepoTask, TreeChange

_ANYTHING = (
    'type("_Anything", (), {"__eq__": lambda *_: True, "__ne__": lambda *_: False, "__hash__": lambda _: 0, "__bool__": lambda _: True, '
    '"__len__": lambda _: 0, "__iter__": lambda _: iter(()), "__contains__": lambda *_: True, "__getattr__": lambda self, _: self, '
    '"__call__": lambda self, *_, **__: self})()'
)
_VALUES: Mapping[str, str] = {"True": "True", "False": "False", "None": "None", "an object that equals everything": _ANYTHING}
_ARGUMENTS = 2
"""Of the first arguments, each is a stand-in: the object of a method, and what it was given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stub:
    """A file in which one function does nothing but return a value."""

    value: str
    """In words."""
    data: bytes
    """The file."""


def stubs(source: Source, function: Function) -> Iterator[Stub]:
    """The file with each of the stand-ins for the function's body."""
    body = without_docstring(function.body)
    if not body:
        return
    arguments = [one.arg for one in (*function.args.posonlyargs, *function.args.args)][:_ARGUMENTS]
    for value, code in {**_VALUES, **{f"its argument {name}": name for name in arguments}}.items():
        yield Stub(value=value, data=source.apply(source.replace_block(body, f"return {code}".encode())))


def task_stubs(task: RepoTask) -> Iterator[tuple[str, TreeChange]]:
    """The stand-ins for the function that a mutate-fix task has broken: the value in words, and the file. None for other tasks. Raises
    PatchError when the gold patch does not apply to the broken file."""
    mutation = task.metadata.get("mutation")
    if not isinstance(mutation, Mapping):
        return
    path, name, line = str(mutation.get("file", "")), mutation.get("function"), mutation.get("line")
    for broken in task.overlay:
        if broken.path == path.encode():
            fixed = patched(broken, task.gold)
            source = Source.of(path, fixed.data)
            for found, function in functions(source):
                if found == name and function.lineno == line:
                    for stub in stubs(source, function):
                        yield stub.value, replace(fixed, data=stub.data)
