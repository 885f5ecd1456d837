"""The text of a value, made without running any code of the program. Imported in the box of the tracer: standard library only.

Plain values (built-in types all the way down) read as Python's `repr`. An instance of a class of the program is shown by its attributes,
whatever its `__repr__` says: `<Stack items=[1, 2]>`, a dataclass `Point(x=1, y=2)`. Addresses are left out. A text longer than `chars`
is cut there and ends with `...`.
"""

import collections
import contextlib
import enum
import fractions
import marshal
import types
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

MAX_ITEMS = 2000
"""A container with more parts is never looked at as a whole."""
MAX_FORM = 1 << 15
"""Bytes; one with a larger form isn't either."""
_MAX_BITS = 4096
LARGE = 1 << 64
_MAX_DEPTH = 24
_CUT = "..."
_get_name = type.__dict__["__qualname__"].__get__
_get_flags = type.__dict__["__flags__"].__get__
_get_mro = type.__dict__["__mro__"].__get__
_get_members = type.__dict__["__dict__"].__get__
_get_args = BaseException.__dict__["args"].__get__
_BRACKETS: dict[Any, tuple[str, str]] = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    set: ("{", "}"),
    frozenset: ("frozenset({", "})"),
    collections.deque: ("deque([", "])"),
    type({}.keys()): ("dict_keys([", "])"),
    type({}.values()): ("dict_values([", "])"),
    type({}.items()): ("dict_items([", "])"),
}
_PLAIN_REPR: frozenset[Any] = frozenset((type(None), bool, float, complex, type(...), type(NotImplemented), bytes, bytearray, Decimal))
_REPEATABLE = frozenset((int, str, bytes, float, bool))
"""Their hashes do not depend on where they lie."""
_DATES: tuple[Any, ...] = (date, datetime, time, timedelta)


class Full(Exception):
    """The text is long enough."""


class Shown:
    """What is written of a value: quick to make, equal only for what reads alike, of built-in types alone.

    An integer, a string, a float, a bool or None is itself. Otherwise bytes: a container of plain values in marshal's form; a tuple:
    (text,) or (class, whether it is a dataclass, form of its attributes). The reading side makes texts of them by the same rules.
    """

    def __init__(self, *, chars: int, buffers: bool) -> None:
        """`buffers`: the program may have bytearrays and arrays, which marshal does not tell from bytes."""
        self.chars, self.buffers = chars, buffers
        self.wary = False
        """Whether the program has shown a container that is too large. Counting first is slower, but a few lists in one another can
        stand for more items than memory holds."""
        self._classes: dict[int, tuple[Any, Any, str, bool]] = {}

    def value(self, value: Any) -> Any:
        kind = type(value)
        if kind is list or kind is dict or kind is tuple:
            form = self._form(value)
            return (Text.of(value, chars=self.chars),) if form is None else form
        if kind is str:
            return value if len(value) <= self.chars else value[: self.chars + 1]
        if kind is int:
            return value if -LARGE < value < LARGE else (int_text(value),)
        if value is None or kind is float or kind is bool:
            return value
        if type(kind) is type and _get_flags(kind) & _HEAP:
            _, getter, name, is_dataclass = self.known_class(kind)
            own = None if getter is None else getter(value)
            form = self._form(own) if type(own) is dict else None
            if form is not None:
                return name, is_dataclass, form
        return (Text.of(value, chars=self.chars),)

    def known_class(self, kind: Any) -> tuple[Any, Any, str, bool]:
        """A class, and what `_simple_class` said of it when it was first seen."""
        known = self._classes.get(id(kind))
        if known is None:
            known = self._classes[id(kind)] = (kind, *_simple_class(kind))
        return known

    def _form(self, value: Any) -> bytes | None:
        """None for a container that is not plain, holds sets (of which marshal keeps no order), or is too large."""
        try:
            if len(value) > MAX_ITEMS or (self.wary and not _is_small(value)):
                return None
            form = marshal.dumps(value, 2)  # the version without references: equal values have equal forms
        except (ValueError, TypeError) as error:
            self.wary = self.wary or "nested" in str(error)  # in one another without end
            return None
        except (MemoryError, RecursionError):
            self.wary = True
            return None
        if len(form) > MAX_FORM or (len(form) > MAX_ITEMS and not _is_small(value)):  # a part takes a byte at least
            self.wary = True
            return None
        doubtful = b"<" in form or b">" in form or (self.buffers and b"s" in form)  # codes of sets and bytes, or parts of numbers and texts
        return None if doubtful and not _all_plain(value) else form


def _is_small(value: Any) -> bool:
    """Whether a container has at most MAX_ITEMS parts, the parts of its parts included, each counted as often as it is reached, and texts
    that may fit a form."""
    left, room, parts = MAX_ITEMS, MAX_FORM, [value]
    while parts:
        part = parts.pop()
        kind = type(part)
        if kind is str or kind is bytes:
            room -= len(part)
        elif kind is list or kind is tuple:
            left -= len(part)
        elif kind is dict:
            left -= 2 * len(part)
        if left < 0 or room < 0:
            return False
        if kind is list or kind is tuple:
            parts += part
        elif kind is dict:
            parts += part.keys()
            parts += part.values()
    return True


def _all_plain(value: Any) -> bool:
    """Whether a value that has a form is read as it is: no sets, no bytearrays, no arrays."""
    kind = type(value)
    if kind is int or kind is str or value is None or kind is float or kind is bool or kind is bytes or kind is complex:
        return True
    if kind is list or kind is tuple:
        return all(map(_all_plain, value))
    return kind is dict and all(map(_all_plain, value.keys())) and all(map(_all_plain, value.values()))


def _simple_class(kind: Any) -> tuple[Any, str, bool]:
    """How to get the attributes of an instance that has nothing but its dictionary (None: it has more), name, whether a dataclass."""
    getter = None
    for base in _get_mro(kind):
        if base is not object and base is not kind and _get_flags(base) & _HEAP == 0:
            return None, "", False
        for name, member in _get_members(base).items():
            if type(member) is types.MemberDescriptorType or (name == "__dict__" and type(member) is not types.GetSetDescriptorType):
                return None, "", False
            if name == "__dict__":
                getter = member.__get__
    return getter, type_name(kind), "__dataclass_fields__" in _get_members(kind)


class Text:
    """Writes one value, part by part, until it is long enough."""

    def __init__(self, *, chars: int) -> None:
        self._chars, self._left = chars, chars + 1
        self._parts: list[str] = []
        self._open: set[int] = set()
        self._nodes = 2 * chars

    @staticmethod
    def of(value: Any, *, chars: int) -> str:
        writer = Text(chars=chars)
        try:
            return writer._cut(lambda: writer._value(value, 0))
        except BaseException:  # a container that another thread changes; whatever it is, the trace goes on
            return f"<{type_name(type(value))}>"

    @staticmethod
    def of_instance(name: str, attributes: list[tuple[str, Any]], *, is_dataclass: bool, chars: int) -> str:
        """The text of an instance with these attributes."""
        writer = Text(chars=chars)
        return writer._cut(lambda: writer._attributes(name, attributes, 1, is_dataclass=is_dataclass))

    def _cut(self, write: Callable[[], None]) -> str:
        with contextlib.suppress(Full):
            write()
        text = "".join(self._parts)
        return text if len(text) <= self._chars else text[: self._chars] + _CUT

    def _put(self, text: str) -> None:
        self._parts.append(text)
        self._left -= len(text)
        if self._left < 0:
            raise Full

    def _value(self, value: Any, depth: int) -> None:
        self._nodes -= 1
        if self._nodes < 0:
            raise Full
        kind: Any = type(value)
        if kind is str:
            return self._put(repr(value[: self._chars + 1]) if len(value) > self._chars else repr(value))
        if kind is int:
            return self._put(int_text(value))
        # Looking a class up calls its metaclass, so only classes whose metaclass is `type` itself are looked up.
        known = kind if type(kind) is type else None
        if known in _PLAIN_REPR:
            return self._put(repr(value[: self._chars + 1]) if known in (bytes, bytearray) else repr(value))
        if depth >= _MAX_DEPTH or id(value) in self._open:
            return self._put(f"{_BRACKETS[known][0]}...{_BRACKETS[known][1]}" if known in _BRACKETS else _CUT)
        self._open.add(id(value))
        if known in _BRACKETS:
            self._items(value, kind, depth + 1)
        elif known in _WRITERS:
            _WRITERS[known](self, value, depth + 1)
        else:
            self._compound(value, kind, depth + 1)
        self._open.discard(id(value))

    def _compound(self, value: Any, kind: Any, depth: int) -> None:
        if kind is dict:
            return self._dict(value, depth)
        for base in (list, tuple, set, frozenset, dict, collections.deque):
            if issubclass_safe(kind, base):
                return self._subclass(value, kind, base, depth)
        if issubclass_safe(kind, BaseException):
            return self._call(type_name(kind), ((None, item) for item in _get_args(value)), depth)
        if issubclass_safe(kind, type):
            return self._put(f"<class '{type_name(value)}'>")
        if any(kind is known for known in _DATES):
            return self._put(repr(value) if getattr(value, "tzinfo", None) is None else f"<{type_name(kind)}>")
        if type_module(kind) == "numpy":
            return self._numpy(value, kind, depth)
        self._instance(value, kind, depth)

    def _items(self, value: Any, kind: Any, depth: int) -> None:
        opening, closing = _BRACKETS[kind]
        size = len(value)
        if not size and kind in (set, frozenset):
            return self._put(f"{kind.__name__}()")
        self._put(opening)
        if kind in (set, frozenset) and size <= MAX_ITEMS:
            self._joined(iter(_stable(value)), depth)
        else:
            self._joined(kind.__iter__(value), depth)
        self._put("," + closing if kind is tuple and size == 1 else closing)

    def _joined(self, items: Iterator[Any], depth: int) -> None:
        for number, item in enumerate(items):
            if number:
                self._put(", ")
            self._value(item, depth)

    def _dict(self, value: Any, depth: int) -> None:
        self._put("{")
        for number, (key, item) in enumerate(dict.items(value)):
            if number:
                self._put(", ")
            self._value(key, depth)
            self._put(": ")
            self._value(item, depth)
        self._put("}")

    def _call(self, name: str, arguments: Iterable[tuple[str | None, Any]], depth: int) -> None:
        """`name(a=1, 2)`."""
        self._put(name + "(")
        for number, (key, item) in enumerate(arguments):
            self._put((", " if number else "") + (f"{key}=" if key else ""))
            self._value(item, depth)
        self._put(")")

    def _subclass(self, value: Any, kind: Any, base: Any, depth: int) -> None:
        fields = _get_members(kind).get("_fields")
        if base is tuple and type(fields) is tuple and len(fields) == tuple.__len__(value) and all(type(name) is str for name in fields):
            return self._call(type_name(kind), zip(fields, tuple.__iter__(value), strict=True), depth)
        self._put(type_name(kind) + "(")
        if base is dict:
            self._dict(value, depth)
        else:
            self._put(_BRACKETS[list][0])
            self._joined(base.__iter__(value), depth)
            self._put(_BRACKETS[list][1])
        self._put(")")

    def _instance(self, value: Any, kind: Any, depth: int) -> None:
        """By its attributes, read past everything that the class may have redefined."""
        own, attributes = attributes_of(value, kind)
        name = type_name(kind)
        if type(kind) is enum.EnumMeta and "_name_" in own:
            self._put(f"<{name}.{own['_name_']}: " if type(own["_name_"]) is str else f"<{name}: ")
            self._value(own.get("_value_"), depth)
            return self._put(">")
        if type_module(kind) == "builtins" and not attributes:
            label = value.__qualname__ if any(kind is known for known in _NAMED) else ""
            return self._put(f"<{name} {label}>" if type(label) is str and label else f"<{name} object>")
        self._attributes(name, attributes, depth, is_dataclass="__dataclass_fields__" in _get_members(kind))

    def _attributes(self, name: str, attributes: list[tuple[str, Any]], depth: int, *, is_dataclass: bool) -> None:
        if is_dataclass:
            return self._call(name, attributes, depth)
        self._put(f"<{name}")
        for number, (key, item) in enumerate(attributes):
            self._put(f"{',' if number else ''} {key}=")
            self._value(item, depth)
        self._put(">")

    def _numpy(self, value: Any, kind: Any, depth: int) -> None:
        import numpy  # it is loaded: the value is of it

        if kind is numpy.ndarray and not value.dtype.hasobject:
            self._put("array(")
            self._value(value.tolist() if value.size <= MAX_ITEMS else value.ravel()[:MAX_ITEMS].tolist(), depth)
            return self._put(")")
        if issubclass_safe(kind, numpy.generic) and not issubclass_safe(kind, numpy.void):
            self._put(f"np.{type_name(kind)}(")
            self._value(numpy.generic.item(value), depth)
            return self._put(")")
        self._put(f"<{type_name(kind)}>")


_NAMED: tuple[Any, ...] = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.GeneratorType,
    types.CoroutineType,
    types.AsyncGeneratorType,
    types.MethodDescriptorType,
)


def int_text(value: int) -> str:
    """Decimal digits take quadratic time, and Python itself refuses many of them."""
    return repr(value) if value.bit_length() <= _MAX_BITS else f"<int of {value.bit_length()} bits>"


def type_name(kind: Any) -> str:
    """The name that a class was given, past its metaclass, fit to be written."""
    text = _get_name(kind)[:80]
    return text if text.isprintable() else repr(text)[1:-1]


def type_module(kind: Any) -> str:
    module = _get_members(kind).get("__module__") if _get_flags(kind) & _HEAP else None
    return module.partition(".")[0] if type(module) is str else "builtins"


_HEAP = 1 << 9
"""Flag of classes that were made while the interpreter ran."""


def issubclass_safe(kind: Any, base: Any) -> bool:
    """Without `__subclasscheck__`."""
    return any(known is base for known in _get_mro(kind))


def attributes_of(value: Any, kind: Any) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """The instance's own dictionary, and its attributes in order: slots first. Reads descriptors of the interpreter only."""
    own: Any = {}
    attributes: list[tuple[str, Any]] = []
    for base in reversed(_get_mro(kind)):
        for name, member in _get_members(base).items():
            if type(member) is types.GetSetDescriptorType and name == "__dict__":
                own = member.__get__(value)
            elif type(member) is types.MemberDescriptorType and _get_flags(base) & _HEAP and not name.startswith("__"):
                try:
                    attributes.append((name, member.__get__(value)))
                except AttributeError:
                    continue
    if type(own) is not dict:
        own = {}
    attributes += [(name, item) for name, item in own.items() if type(name) is str and name.isidentifier()]
    return own, attributes


def _stable(value: Any) -> list[Any]:
    """Items of a set: in its own order where that repeats, else sorted by their text."""
    if all(type(type(item)) is type and type(item) in _REPEATABLE for item in value):
        return list(value)
    return sorted(value, key=lambda item: Text.of(item, chars=60))


def _range(writer: Text, value: Any, depth: int) -> None:
    step = [] if value.step == 1 else [value.step]
    writer._call("range", ((None, item) for item in (value.start, value.stop, *step)), depth)


def _slice(writer: Text, value: Any, depth: int) -> None:
    writer._call("slice", ((None, item) for item in (value.start, value.stop, value.step)), depth)


def _counter(writer: Text, value: Any, depth: int) -> None:
    """As Python does, the most frequent first; a large one in its own order, since it is written again and again."""
    writer._put("Counter(")
    size = dict.__len__(value)
    if 0 < size <= MAX_ITEMS and all(type(count) is int for count in dict.values(value)):
        writer._dict(dict(sorted(dict.items(value), key=lambda pair: -pair[1])), depth)
    elif size:
        writer._dict(value, depth)
    writer._put(")")


def _defaultdict(writer: Text, value: Any, depth: int) -> None:
    writer._put("defaultdict(")
    writer._value(value.default_factory, depth)
    writer._put(", ")
    writer._dict(value, depth)
    writer._put(")")


def _ordered(writer: Text, value: Any, depth: int) -> None:
    writer._put("OrderedDict(")
    if dict.__len__(value):
        writer._put("[")
        writer._joined(iter(dict.items(value)), depth)
        writer._put("]")
    writer._put(")")


def _fraction(writer: Text, value: Any, depth: int) -> None:
    writer._call("Fraction", ((None, item) for item in (value._numerator, value._denominator)), depth)


def _method(writer: Text, value: Any, depth: int) -> None:
    name = getattr(value.__func__, "__qualname__", "") if type(value.__func__) is types.FunctionType else ""
    writer._put(f"<bound method {name}>" if type(name) is str else "<bound method>")


def _module(writer: Text, value: Any, depth: int) -> None:
    name = types.ModuleType.__getattribute__(value, "__dict__").get("__name__")
    writer._put(f"<module '{name[:80]}'>" if type(name) is str and name.isprintable() else "<module>")


_WRITERS: dict[Any, Callable[[Text, Any, int], None]] = {
    range: _range,
    slice: _slice,
    collections.Counter: _counter,
    collections.defaultdict: _defaultdict,
    collections.OrderedDict: _ordered,
    fractions.Fraction: _fraction,
    types.MethodType: _method,
    types.ModuleType: _module,
}
