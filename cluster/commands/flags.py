"""What the verbs share: reading a settings dataclass from the words of a command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import tyro

from musicrl.settings import build, merge, read_flags, read_yaml, to_tree

Schema = TypeVar("Schema")


def wants_help(args: Sequence[str]) -> bool:
    return "--help" in args or "-h" in args


def print_help(default: object, *, verb: str) -> None:
    """Every field of the settings of a verb, with what it means and its default."""
    tyro.cli(type(default), default=default, args=["--help"], prog=f"musicrl {verb}")


def split_words(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words before the first option, and the options."""
    first = next((i for i, word in enumerate(args) if word.startswith("--")), len(args))
    return list(args[:first]), list(args[first:])


def read_settings(schema: type[Schema], flags: Sequence[str], file: Path | None = None) -> Schema:
    """Settings of a verb: its defaults, a YAML file over them, flags over both."""
    config = build(schema, read_yaml(file) if file else {}, origin=str(file))
    if not flags:
        return config
    tree = merge(to_tree(config), read_flags(schema, flags))
    return build(schema, tree, origin="command line")
