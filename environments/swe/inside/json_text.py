"""JSON as the programs in containers write it: without the module `json`, which takes as long to load as Python itself, and whose Python
code other code of a process can replace. Standard library only, Python 3.8.
"""

from __future__ import annotations

TYPE_CHECKING = False
"""`typing` takes long to load, too."""
if TYPE_CHECKING:
    from typing import Any

try:
    from _json import encode_basestring_ascii as _quote
except ImportError:
    from json.encoder import encode_basestring_ascii as _quote

_repr = repr


def to_json(value: Any) -> str:
    """As json.dumps, of what is made of dicts, lists, tuples, texts, numbers and None alone."""
    kind = type(value)
    if kind is str:
        return _quote(value)
    if value is None or kind is bool:
        return "null" if value is None else "true" if value else "false"
    if kind is int or kind is float:
        return _repr(value)
    if kind is dict:
        return "{" + ",".join([_quote(name) + ":" + to_json(one) for name, one in value.items()]) + "}"
    return "[" + ",".join([to_json(one) for one in value]) + "]"
