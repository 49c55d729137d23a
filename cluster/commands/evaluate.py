"""`musicrl evaluate` and `musicrl spread`: policies on held-out prompts, and runs beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cluster.commands.flags import print_help, read_settings, split_words, wants_help
from musicrl.evaluation.evaluate import EvaluateConfig, run_evaluation
from musicrl.evaluation.spread import SpreadConfig, run_spread


def evaluate(args: Sequence[str]) -> None:
    """Print the figures of the base and of each policy file, checkpoint or run."""
    if wants_help(args):
        return print_help(EvaluateConfig(), verb="evaluate [policy or run ...]")
    words, flags = split_words(args)
    config = read_settings(EvaluateConfig, flags)
    run_evaluation(replace(config, policies=(*map(Path, words), *config.policies)))


def spread(args: Sequence[str]) -> None:
    """Print finished runs beside each other, with the mean and the deviation over them."""
    if wants_help(args):
        return print_help(SpreadConfig(), verb="spread runs/a runs/b ...")
    words, flags = split_words(args)
    config = read_settings(SpreadConfig, flags)
    run_spread(replace(config, summaries=(*map(Path, words), *config.summaries)))
