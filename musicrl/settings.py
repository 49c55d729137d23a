"""Settings: YAML files and command-line flags, read strictly into frozen dataclasses.

A schema is a dataclass, possibly of dataclasses; a setting's path is the dotted names that lead to
it. Whatever does not fit is refused in one sentence that names the path, the value and what was
wanted. This module knows no particular schema.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import dacite
import yaml

Schema = TypeVar("Schema")
Tree = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number and a key may stand only once in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                line = node.start_mark.line + 1
                raise ValueError(f"key {key!r} stands twice in the mapping of line {line}")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_yaml(path: Path) -> Tree:
    """The mapping that a YAML file holds.

    Raises FileNotFoundError when there is none and ValueError when it is no mapping.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no settings file at {path}")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.MarkedYAMLError as fault:
        line = fault.problem_mark.line + 1 if fault.problem_mark else 0
        raise ValueError(f"{path}: line {line} is not YAML: {fault.problem}") from fault
    except (ValueError, yaml.YAMLError) as fault:
        raise ValueError(f"{path}: {fault}") from fault
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise ValueError(f"{path}: expected a mapping of settings")
    return tree


def read_flags(schema: type, args: Sequence[str]) -> Tree:
    """The tree of `--a.b value`, `--a.b=value`, `--flag` and `--no-flag`.

    Raises ValueError for an unknown option, naming the nearest, and for one without its value.
    """
    tree: Tree = {}
    rest = list(args)
    while rest:
        keys, value = _flag(schema, rest)
        _put(tree, keys, value)
    return tree


def build(schema: type[Schema], tree: Tree, *, origin: str) -> Schema:
    """The dataclass that `tree` describes; what it does not name keeps its default.

    Raises ValueError, opened by `origin`, for an unknown key, a wrong type or a refused value.
    """
    unknown = next(_unknown_keys(schema, tree), None)
    if unknown is not None:
        raise ValueError(f"{origin}: unknown key {unknown!r}{_nearest(unknown, schema)}")
    hooks: dict[type[Any], Callable[[Any], Any]] = {
        int: _as_int,
        float: _as_float,
        Path: _as_path,
    }
    try:
        config = dacite.Config(strict=True, type_hooks=hooks)
        return dacite.from_dict(schema, _frozen(tree), config)
    except dacite.MissingValueError as fault:
        raise ValueError(f"{origin}: {fault.field_path} is missing") from fault
    except dacite.WrongTypeError as fault:
        wanted = describe_type(fault.field_type)
        raise ValueError(
            f"{origin}: {fault.field_path} is {fault.value!r}, expected {wanted}"
        ) from fault
    except ValueError as fault:
        raise ValueError(f"{origin}: {fault}") from fault


def merge(base: Tree, over: Tree) -> Tree:
    """`base` with the settings of `over` in place of its own."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = merge(cast(Tree, old), value) if both else value
    return merged


def to_tree(config: Any) -> Tree:
    """A dataclass as nested mappings of what YAML can hold."""
    return {field.name: _plain(getattr(config, field.name)) for field in fields(config)}


def to_yaml(config: Any) -> str:
    """A dataclass as YAML that `build` reads back."""
    return yaml.safe_dump(to_tree(config), sort_keys=False, allow_unicode=True, width=100)


def paths(schema: type, prefix: str = "") -> dict[str, Any]:
    """Every setting of a schema: its dotted path and its type."""
    found: dict[str, Any] = {}
    hints = get_type_hints(schema)
    for field in fields(schema):
        name, hint = prefix + field.name, hints[field.name]
        found |= paths(cast(type, hint), name + ".") if is_dataclass(hint) else {name: hint}
    return found


def describe_type(hint: Any) -> str:
    """A type in a reader's words."""
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
    if hint in names:
        return names[hint]
    if hint is Path:
        return "a path"
    if hint is types.NoneType:
        return "null"
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if _is_union(hint):
        return " or ".join(describe_type(part) for part in get_args(hint))
    if _is_mapping(hint):
        return f"a mapping from names, each to {describe_type(get_args(hint)[1])}"
    if is_dataclass(hint):
        return "a mapping of settings"
    return "a list"


def _unknown_keys(schema: type, tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(schema)
    names = {field.name for field in fields(schema)}
    for key, value in tree.items():
        if key not in names:
            yield f"{prefix}{key}"
        elif is_dataclass(hints[key]) and isinstance(value, Mapping):
            yield from _unknown_keys(cast(type, hints[key]), value, f"{prefix}{key}.")


def _nearest(path: str, schema: type, mark: str = "") -> str:
    """The known path most like an unknown one; else one anywhere that ends in the same name."""
    known = list(paths(schema))
    match = difflib.get_close_matches(path, known, n=1, cutoff=0.8)
    leaf = path.rpartition(".")[2]
    ends = {name.rpartition(".")[2]: name for name in reversed(known)}
    match = match or [ends[m] for m in difflib.get_close_matches(leaf, list(ends), n=1)]
    match = match or difflib.get_close_matches(path, known, n=1, cutoff=0.0)
    return f" (nearest: {mark}{match[0]})" if match else ""


def _flag(schema: type, rest: list[str]) -> tuple[list[str], Any]:
    """Takes one option, with its value, off the head of `rest`."""
    token = rest.pop(0)
    if not token.startswith("--"):
        raise ValueError(f"unexpected argument {token!r}; settings are given as --name value")
    name, has_value, raw = token[2:].partition("=")
    path, known = name.replace("-", "_"), paths(schema)
    negated = path.removeprefix("no_")
    if path not in known and known.get(negated) is bool and not has_value:
        return negated.split("."), False
    keys, hint = _find(name, known)
    if not keys:
        raise ValueError(f"unknown option --{name}{_nearest(path, schema, '--')}")
    if has_value or (rest and not rest[0].startswith("--")):
        return keys, _parse(raw if has_value else rest.pop(0), hint, name)
    if hint is not bool:
        raise ValueError(f"option --{name} needs a value: {describe_type(hint)}")
    return keys, True


def _find(name: str, known: Mapping[str, Any]) -> tuple[list[str], Any]:
    """Keys and type of a setting, or of an item of a mapping, whose key may hold dots."""
    path = name.replace("-", "_")
    if path in known:
        return path.split("."), known[path]
    for parent, hint in known.items():
        if _is_mapping(hint) and path.startswith(parent + "."):
            return [*parent.split("."), name[len(parent) + 1 :]], get_args(hint)[1]
    return [], None


def _parse(raw: str, hint: Any, name: str) -> Any:
    """A word of the command line as YAML would read it; text, paths and choices as they stand,
    and one item for a list of one."""
    parts = get_args(hint) if _is_union(hint) else (hint,)
    if types.NoneType in parts and raw.lower() in ("null", "none"):
        return None
    if any(part in (str, Path) or get_origin(part) is Literal for part in parts):
        return raw
    try:
        value = yaml.load(raw, Loader=_Loader)
    except (ValueError, yaml.YAMLError) as fault:
        raise ValueError(f"--{name} is {raw!r}, expected {describe_type(hint)}") from fault
    return value if get_origin(hint) is not tuple or isinstance(value, list) else [value]


def _put(tree: Tree, keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = value


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_tree(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _frozen(value: Any) -> Any:
    """YAML's lists as tuples: dataclasses of settings hold nothing that changes."""
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _is_mapping(hint: Any) -> bool:
    origin = get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _as_int(value: Any) -> Any:
    return _refused(int, value) if isinstance(value, bool) else value


def _as_float(value: Any) -> Any:
    if isinstance(value, bool):
        return _refused(float, value)
    return float(value) if isinstance(value, int) else value


def _as_path(value: Any) -> Any:
    return Path(value) if isinstance(value, str) else value


def _refused(wanted: type, value: Any) -> Any:
    raise dacite.WrongTypeError(field_type=wanted, value=value)
