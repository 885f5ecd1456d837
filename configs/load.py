"""From YAML layers and `a.b=c` overrides to one frozen `Config`; the owner of omegaconf.

    YAML files (left to right, each on top of its `defaults`)  ->  overrides  ->  interpolations  ->  range checks  ->  Config

Every problem is a ValueError that names the file or override, the full key, and what to write instead.
"""

import dataclasses
import difflib
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from configs.checked import Checked
from configs.schema import Config, resolved

T = TypeVar("T", bound=Checked)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One source of settings."""

    origin: str
    """File name or override, for error messages."""
    values: Mapping[str, Any]
    """Nested plain settings; interpolations are still text."""


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One setting of a layer that the schema types as a value, not as a section."""

    key: str
    value: Any
    hint: Any


def load_config(paths: Sequence[Path], overrides: Sequence[str] = ()) -> Config:
    """Merge YAML files left to right, then the overrides, over the class defaults, and resolve once.

    A file's top-level `defaults: [other.yaml]` (relative to the file) are layered below it; a default shared by several
    files is applied once, below all of them. Relative paths among the values stay relative to the current directory.
    Raises ValueError.
    """
    layers: list[Layer] = []
    applied: set[Path] = set()
    for path in paths:
        layers += _file_layers(Path(path), parents=(), applied=applied)
    layers += [_override_layer(text) for text in overrides]

    merged = OmegaConf.structured(Config)
    for layer in layers:
        merged = _merge(merged, layer)
    try:
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            setters = " ".join(f"{key}=VALUE" for key in missing)
            raise ValueError(f"no value for {', '.join(missing)}: write it in a YAML file or add {setters} to the command")
        plain = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"{error.full_key or 'configuration'}: {_first_line(error)}") from error
    return _build(Config, plain, key="")


def dump_config(config: Config) -> str:
    """YAML text that `load_config` turns back into an equal object."""
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(resolved(config))))


# --- layers ---------------------------------------------------------------------------------------------------------


def _file_layers(path: Path, *, parents: tuple[Path, ...], applied: set[Path]) -> list[Layer]:
    """The layer of one file, after the layers of its defaults that were not applied before."""
    resolved_path = path.resolve()
    if resolved_path in parents:
        chain = " -> ".join(str(parent.name) for parent in (*parents[parents.index(resolved_path) :], resolved_path))
        raise ValueError(f"{path}: defaults form a cycle: {chain}")
    values = _read_yaml(path)
    defaults = values.pop("defaults", [])
    if not isinstance(defaults, list) or not all(isinstance(name, str) for name in defaults):
        raise ValueError(f"{path}: defaults is {defaults!r}; it must be a list of YAML files, for example [base.yaml]")
    layers: list[Layer] = []
    for name in defaults:
        below = path.parent / name
        if below.resolve() not in applied:
            layers += _file_layers(below, parents=(*parents, resolved_path), applied=applied)
    applied.add(resolved_path)
    return [*layers, Layer(origin=str(path), values=values)]


def _read_yaml(path: Path) -> dict[str, Any]:
    """Plain nested settings of a file."""
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1, cutoff=0.5)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ValueError(f"configuration file {path} does not exist{hint}")
    try:
        content = OmegaConf.load(path)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{path}{line}: malformed YAML: {error.problem or error.context}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path}: cannot be read as a YAML mapping: {_first_line(error)}") from error
    if not isinstance(content, DictConfig):
        raise ValueError(f"{path}: must be a YAML mapping of sections (run, model, tasks, ...), not a {type(content).__name__}")
    return cast(dict[str, Any], OmegaConf.to_container(content, resolve=False))


def _override_layer(text: str) -> Layer:
    """One `a.b=c` of the command line."""
    key, equals, raw = text.partition("=")
    names = key.split(".")
    if not equals or not all(names):
        raise ValueError(f"override {text!r} is not of the form section.name=value, for example run.steps=10")
    is_text = str in _alternatives(_hint_of(names))
    value: Any = raw
    try:
        parsed = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.from_dotlist([f"value={raw}"]), resolve=False))["value"]
        # Text stays as typed: a prompt such as {question}, or a name such as 007, is not YAML.
        if not is_text or isinstance(parsed, str) or (parsed is None and raw):
            value = parsed
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        if not is_text:
            problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else _first_line(error)
            raise ValueError(f"override {text!r}: the value is not valid YAML: {problem}") from error
    for name in reversed(names):
        value = {name: value}
    return Layer(origin=f"override {text!r}", values=value)


# --- checks and merge -----------------------------------------------------------------------------------------------


def _merge(merged: DictConfig, layer: Layer) -> DictConfig:
    """`merged` under `layer`; a refused value is found by trying the layer's settings one by one."""
    leaves = list(_leaves(layer.values, hint=Config, key="", origin=layer.origin))
    try:
        return cast(DictConfig, OmegaConf.merge(merged, OmegaConf.create(dict(layer.values))))
    except OmegaConfBaseException as error:
        for leaf in leaves:
            value = leaf.value
            for name in reversed(leaf.key.split(".")):
                value = {name: value}
            try:
                OmegaConf.merge(merged, OmegaConf.create(value))
            except GrammarParseError as refusal:
                fix = "; write \\${ for a plain ${"
                raise ValueError(f"{layer.origin}: {leaf.key} is {leaf.value!r}, not a valid interpolation{fix}") from refusal
            except OmegaConfBaseException as refusal:
                raise _wrong_type(leaf, layer.origin) from refusal
        raise ValueError(f"{layer.origin}: {_first_line(error)}") from error


def _leaves(value: Any, *, hint: Any, key: str, origin: str) -> Iterator[Leaf]:
    """The settings inside `value`; raises ValueError for unknown keys and for values where a section belongs."""
    dotted = f"{key}." if key else ""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        known = get_type_hints(hint)
        names = [spec.name for spec in dataclasses.fields(hint)]
        for name, inner in _section(value, key=key, names=names, origin=origin).items():
            if name not in names:
                raise ValueError(f"{origin}: unknown key {dotted}{name}{_nearest(str(name), names, dotted=dotted)}")
            yield from _leaves(inner, hint=known[name], key=f"{dotted}{name}", origin=origin)
    elif get_origin(hint) is dict and dataclasses.is_dataclass(get_args(hint)[1]):
        for name, inner in _section(value, key=key, names=("names to sections",), origin=origin).items():
            if not isinstance(name, str) or not name or "." in name:
                raise ValueError(f"{origin}: {key} has the name {name!r}; it must be text without a dot")
            yield from _leaves(inner, hint=get_args(hint)[1], key=f"{dotted}{name}", origin=origin)
    else:
        leaf = Leaf(key=key, value=value, hint=hint)
        interpolated = isinstance(value, str) and "${" in value
        wrong_bool = isinstance(value, bool | float) and str in _alternatives(hint)
        wrong_list = get_origin(hint) is tuple and (not isinstance(value, list) or (str in get_args(hint) and not _all_text(value)))
        if (wrong_bool or wrong_list) and not interpolated:
            raise _wrong_type(leaf, origin)
        yield leaf


def _all_text(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _section(value: Any, *, key: str, names: Iterable[str], origin: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{origin}: {key} is {value!r}; it must be a section, a mapping of {', '.join(names)}")
    return value


def _nearest(name: str, names: Sequence[str], *, dotted: str) -> str:
    """The end of an unknown-key message: the nearest valid name, or all of them; another section's name if it fits better."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {dotted}{near[0]}?"
    elsewhere = [f"{section.name}.{name}" for section in dataclasses.fields(Config) if name in _names_of(section.name)]
    if elsewhere:
        return f"; did you mean {elsewhere[0]}?"
    return f"; valid names: {', '.join(names)}"


def _names_of(section: str) -> list[str]:
    hint = get_type_hints(Config)[section]
    return [spec.name for spec in dataclasses.fields(hint)] if dataclasses.is_dataclass(hint) else []


def _wrong_type(leaf: Leaf, origin: str) -> ValueError:
    wanted = " or ".join(_describe(part) for part in _alternatives(leaf.hint))
    return ValueError(f"{origin}: {leaf.key} is {leaf.value!r}; it must be {wanted}")


def _describe(hint: Any) -> str:
    """A type hint in the words of a YAML author."""
    if get_origin(hint) is Literal:
        allowed = ", ".join(str(value) for value in get_args(hint))
        return f"one of {allowed}" if len(get_args(hint)) > 1 else allowed
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        if parts[-1] is Ellipsis:
            return f"a list, each item {_describe(parts[0])}"
        return f"a list of {len(parts)}, each {_describe(parts[0])}"
    if get_origin(hint) is dict:
        return "a mapping"
    words: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return words[hint]


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the hint alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _hint_of(names: Sequence[str]) -> Any:
    """Type of the setting at a dotted key; None where the schema has no such key or leaves the type open."""
    hint: Any = Config
    for name in names:
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            hint = get_type_hints(hint).get(name)
        elif get_origin(hint) is dict:
            hint = get_args(hint)[1]
        else:
            return None
    return hint


# --- building -------------------------------------------------------------------------------------------------------


def _build(cls: type[T], plain: Any, *, key: str) -> T:
    """Frozen objects from resolved plain settings, with the range checks of each class."""
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for spec in dataclasses.fields(cls):
        value, hint = plain[spec.name], hints[spec.name]
        inner = f"{key}.{spec.name}" if key else spec.name
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            value = _build(cast(type[Checked], hint), value, key=inner)
        elif get_origin(hint) is dict and dataclasses.is_dataclass(get_args(hint)[1]):
            value = {name: _build(get_args(hint)[1], item, key=f"{inner}.{name}") for name, item in value.items()}
        elif get_origin(hint) is tuple:
            value = tuple(value)
        values[spec.name] = value
    try:
        return cls(**values)
    except ValueError as error:
        # Only here is it known which of the `tasks.*` a check speaks of.
        raise ValueError(str(error).replace(f"{cls.section}.", f"{key}.") if key else str(error)) from error


def _escaped(value: Any) -> Any:
    """Plain settings with every `${` kept from being read as an interpolation."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)
    if isinstance(value, Mapping):
        return {name: _escaped(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(item) for item in value]
    return value


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
