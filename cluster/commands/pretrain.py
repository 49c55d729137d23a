"""`musicrl pretrain STAGE`: one stage of building a world."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.commands.flags import print_help, read_settings, split_words, wants_help
from musicrl.closest import closest
from musicrl.pretrain import STAGES


def pretrain(args: Sequence[str]) -> None:
    """Run a stage and print the figures that it measured."""
    words, flags = split_words(args)
    names = list(STAGES)
    if not words and wants_help(args):
        print("usage: musicrl pretrain STAGE [file.yaml] [--field value]")
        print(f"stages: {', '.join(names)}")
        return
    if not words:
        raise ValueError(f"pretrain needs a stage: {', '.join(names)}")
    stage, *files = words
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}{closest(stage, names)}")
    if len(files) > 1:
        raise ValueError(f"musicrl pretrain {stage} takes one file, got {' '.join(files)}")
    schema, run = STAGES[stage]
    if wants_help(args):
        return print_help(schema(), verb=f"pretrain {stage}")
    config = read_settings(schema, flags, Path(files[0]) if files else None)
    for name, value in run(config).items():
        print(f"{name:<32}{value:.4g}")
