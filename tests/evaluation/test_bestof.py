"""Best of n: the choice by hand, and that it never falls below the policy's own clip."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from musicrl.evaluation.bestof import best_of, divergence_bound
from musicrl.evaluation.config import EvaluateConfig
from musicrl.evaluation.evaluate import run_evaluation
from musicrl.types import RewardBatch


def test_the_best_of_each_prompt_by_hand() -> None:
    rewards = RewardBatch(
        total=np.array([1.0, 3.0, 2.0, 0.0, -5.0, 0.0, 4.0, 4.0, 1.0], np.float32),
        terms={},
        valid=np.array([1, 1, 1, 0, 1, 0, 1, 1, 1], bool),
    )
    assert best_of(rewards, 3).tolist() == [1, 4, 6]  # a failed reward's 0 does not beat -5


def test_the_divergence_bound_by_hand() -> None:
    assert divergence_bound(1) == 0
    assert divergence_bound(4) == pytest.approx(math.log(4) - 0.75)


def test_best_of_n_rises_with_n_from_the_policys_own_clips(
    tiny_world: Path, tmp_path: Path
) -> None:
    screen = io.StringIO()
    config = EvaluateConfig(weights=tiny_world, prompts=6, best_of=(2, 4), json=tmp_path / "e.json")
    run_evaluation(config, Console(file=screen, width=200))
    rows = json.loads((tmp_path / "e.json").read_text())["rows"]
    names = ["base", "base, best of 2", "base, best of 4"]
    rewards = np.array([[p["reward"] for p in rows[name]["per_prompt"]] for name in names])
    # The clips of fewer are among those of more.
    assert (np.diff(rewards, axis=0) >= -1e-6).all()
    assert (np.diff(rewards.mean(1)) > 1e-4).all()
    assert rows["base, best of 4"]["kl"]["total"]["mean"] == pytest.approx(divergence_bound(4))
    assert "reward against divergence" in screen.getvalue()


@pytest.mark.parametrize("numbers", [(1,), (4, 4)])
def test_numbers_that_choose_nothing_are_refused(numbers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="best_of must be different numbers from 2 on"):
        EvaluateConfig(best_of=numbers)
