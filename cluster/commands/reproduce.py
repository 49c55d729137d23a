"""`musicrl reproduce`: the paper's models, one from another, and how they compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.commands.flags import print_help, read_settings, split_words, wants_help
from musicrl.reproduction.config import ReproduceConfig


def reproduce(args: Sequence[str]) -> None:
    """Train what is left to train, and write the report."""
    if wants_help(args):
        return print_help(ReproduceConfig(), verb="reproduce [file.yaml]")
    words, flags = split_words(args)
    if len(words) > 1:
        raise ValueError(f"musicrl reproduce takes one file, got {' '.join(words)}")
    config = read_settings(ReproduceConfig, flags, Path(words[0]) if words else None)
    from musicrl.reproduction.publish import reproduce as run

    if config.solo:
        from musicrl.solo import solo

        run(config, solo)
    else:
        from cluster.session import train

        run(config, train)
