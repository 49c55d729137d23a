"""The learner: numbered steps done once, checkpoints that belong to their run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from musicrl.config import TrainConfig
from musicrl.evaluation.heldout import EvaluationChunk
from musicrl.learner import Learner
from musicrl.rollout import RolloutWorker
from musicrl.run import Run, training_prompts
from musicrl.types import Experience, RewardBatch, Rollouts
from musicrl.world import World

Configure = Callable[..., TrainConfig]


def make_learner(config: TrainConfig) -> Learner:
    return Learner(World.load(config.model.weights, config.model.policy), config)


def experience(config: TrainConfig, *, version: int = 0) -> list[Experience]:
    """Four clips of two prompts, the second of each better, one of them without a score."""
    rollouts = sample(config, version=version)
    total = np.array([0.0, 1.0, 0.2, 0.0], np.float32)
    terms = {"text": np.array([0.0, 1.0, 0.2, np.nan], np.float32)}
    valid = np.array([True, True, True, False])
    return [
        Experience(rollouts=rollouts, rewards=RewardBatch(total=total, terms=terms, valid=valid))
    ]


def sample(config: TrainConfig, *, version: int = 0) -> Rollouts:
    worker = RolloutWorker(World.load(config.model.weights), config.rollout.sampling)
    rollouts, _ = worker.generate(
        training_prompts(config)[:2],
        first_prompt_index=0,
        step=0,
        run_seed=0,
        samples_per_prompt=2,
        version=version,
    )
    return rollouts


def test_a_step_asked_for_twice_is_done_once(configure: Configure) -> None:
    config = configure()
    learner, batch = make_learner(config), experience(config)
    report, weights = learner.step(0, batch)
    again = learner.step(0, [])
    assert again == (report, weights)
    assert learner.version == weights.version == 1
    with pytest.raises(ValueError, match="the learner is to do step 1, not step 3"):
        learner.step(3, batch)


def test_a_step_reports_lags_failures_and_new_weights(configure: Configure) -> None:
    config = configure()
    learner = make_learner(config)
    before = learner.weights().flat.copy()
    _, weights = learner.step(0, experience(config))
    assert (weights.flat != before).any()
    report, _ = learner.step(1, experience(config, version=0) + experience(config, version=1))
    assert report.lags == {0: 4, 1: 4}
    assert report.failed_rewards == {"text": 2}
    assert report.figures["update/invalid_samples"] == 2
    assert report.seconds["learn"] > 0


def test_the_base_stays_what_it_was(configure: Configure) -> None:
    config = configure()
    learner = make_learner(config)
    learner.step(0, experience(config))
    expected = World.load(config.model.weights).policy.state_dict()
    for name, tensor in learner.base.state_dict().items():
        assert tensor.equal(expected[name])
    rollouts = sample(config)
    chunk = EvaluationChunk(first=0, prompts=rollouts.prompts, mismatched=rollouts.prompts)
    assert (learner.divergence(chunk, rollouts).kl.sum(1) > 0).all()


def test_a_checkpoint_restores_the_learner(configure: Configure, tmp_path: Path) -> None:
    config = configure()
    learner, batch = make_learner(config), experience(config)
    learner.step(0, batch)
    path = learner.save(Run(tmp_path))
    expected = learner.step(1, batch)[1]
    other = make_learner(config)
    other.restore(path)
    assert other.version == 1
    assert other.step(1, batch)[1].checksum == expected.checksum


def test_a_checkpoint_of_another_base_is_refused(configure: Configure, tmp_path: Path) -> None:
    config = configure()
    path = make_learner(config).save(Run(tmp_path))
    world = World.load(config.model.weights)
    with torch.no_grad():
        next(world.policy.parameters()).add_(1)
    with pytest.raises(ValueError, match=r"cannot resume from .*step_000000.*another reference"):
        Learner(world, config).restore(path)


def test_a_checkpoint_without_its_state_is_refused(configure: Configure, tmp_path: Path) -> None:
    config = configure()
    learner = make_learner(config)
    path = learner.save(Run(tmp_path))
    (path / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot resume from"):
        learner.restore(path)
