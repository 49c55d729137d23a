"""`musicrl evaluate`, `spread` and `curves`: policies on held-out prompts, and runs beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cluster.commands.flags import print_help, read_settings, split_words, wants_help
from musicrl.evaluation.config import EvaluateConfig
from musicrl.evaluation.curves import CurvesConfig, run_curves
from musicrl.evaluation.evaluate import run_evaluation
from musicrl.evaluation.spread import SpreadConfig, run_spread
from musicrl.pretrain.real import real_clips
from musicrl.worlds import family_of


def evaluate(args: Sequence[str]) -> None:
    """Print the figures of the base and of each policy file, checkpoint or run."""
    if wants_help(args):
        return print_help(EvaluateConfig(), verb="evaluate [policy or run ...]")
    words, flags = split_words(args)
    config = read_settings(EvaluateConfig, flags)
    config = replace(config, policies=(*map(Path, words), *config.policies))
    real = None if config.world is None else real_clips(config.world, 2 * config.prompts)
    run_evaluation(config, real=real, family=family_of(config.weights))


def spread(args: Sequence[str]) -> None:
    """Print finished runs beside each other, with the mean and the deviation over them."""
    if wants_help(args):
        return print_help(SpreadConfig(), verb="spread runs/a runs/b ...")
    words, flags = split_words(args)
    config = read_settings(SpreadConfig, flags)
    run_spread(replace(config, summaries=(*map(Path, words), *config.summaries)))


def curves(args: Sequence[str]) -> None:
    """Print and draw how groups of runs got on, update by update."""
    if wants_help(args):
        return print_help(CurvesConfig(), verb="curves runs/a runs/b ...")
    words, flags = split_words(args)
    config = read_settings(CurvesConfig, flags)
    run_curves(replace(config, runs=(*map(Path, words), *config.runs)))
