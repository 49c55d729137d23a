"""Algorithms: how experience becomes a gradient. To add one, write a file and a line here."""

from __future__ import annotations

from collections.abc import Callable

from musicrl.algorithms.base import Algorithm
from musicrl.algorithms.config import AlgorithmConfig
from musicrl.algorithms.ppo import ppo
from musicrl.algorithms.reinforce import reinforce

ALGORITHMS: dict[str, Callable[[AlgorithmConfig], Algorithm]] = {
    "reinforce": reinforce,
    "ppo": ppo,
}


def make_algorithm(config: AlgorithmConfig) -> Algorithm:
    """The algorithm that `config` names, at its starting KL strength."""
    return ALGORITHMS[config.name](config)
