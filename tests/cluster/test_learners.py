"""Several learners that share every update, on a real Ray: equal to one, whoever dies."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from numpy.typing import NDArray
from safetensors.numpy import load_file

from cluster.controller import Controller
from cluster.fleet import Fleet
from cluster.placement import Plan
from cluster.session import train
from cluster.supervise import Pending
from musicrl.config import ClusterConfig, TrainConfig
from musicrl.solo import solo

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
Configure = Callable[..., TrainConfig]
STEPS = 10


def settings(out: Path, num_learners: int, **more: Any) -> dict[str, Any]:
    return {
        "out": str(out),
        "iterations": STEPS,
        "checkpoint_every": 4,
        "algorithm": {"baseline": "group_mean"},
        "evaluation": {"prompts": 2, "audio_prompts": 1},
        "cluster": {"num_samplers": 1, "num_learners": num_learners},
        **more,
    }


PARTS = {"num_samplers": 1, "num_learners": 2, "learner_sharding": "full"}


def learned(out: Path) -> dict[str, NDArray[np.float32]]:
    return load_file(out / "checkpoints" / f"step_{STEPS:06d}" / "learner.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("learners")


@pytest.fixture
def undisturbed(configure: Configure, folder: Path) -> dict[str, NDArray[np.float32]]:
    """What two learners end with when nobody dies, once one of these tests has made it."""
    out = folder / "two"
    if not out.exists():
        train(configure(**settings(out, 2)))
    return learned(out)


@pytest.fixture
def parts(configure: Configure, folder: Path) -> Path:
    """Where two learners that hold a part each did the same."""
    out = folder / "parts"
    if not out.exists():
        train(configure(**settings(out, 2, cluster=PARTS)))
    return out


@pytest.fixture
def alone(configure: Configure, folder: Path) -> dict[str, NDArray[np.float32]]:
    """What one learner ends with, in one process."""
    out = folder / "alone"
    if not out.exists():
        solo(configure(**settings(out, 1)))
    return learned(out)


def test_two_learners_do_what_one_does(
    alone: dict[str, NDArray[np.float32]], undisturbed: dict[str, NDArray[np.float32]]
) -> None:
    for name, wanted in alone.items():
        np.testing.assert_allclose(undisturbed[name], wanted, rtol=0, atol=1e-5, err_msg=name)


def test_two_learners_that_hold_a_part_each_do_what_one_does(
    configure: Configure, tmp_path: Path, alone: dict[str, NDArray[np.float32]], parts: Path
) -> None:
    """With a divergence of held-out clips before and after; one learner then resumes from it."""
    for name, wanted in alone.items():
        np.testing.assert_allclose(learned(parts)[name], wanted, rtol=0, atol=1e-5, err_msg=name)
    out = tmp_path / "run"
    shutil.copytree(parts, out)
    solo(configure(**settings(out, 1, resume=True, iterations=STEPS + 1)))
    assert (out / "checkpoints" / f"step_{STEPS + 1:06d}" / "state.json").exists()


@pytest.mark.parametrize(
    ("holding", "victim", "moment"),
    [("all", "leader", "before the step"), ("a part", "follower", "in the step")],
)
def test_a_death_among_them_changes_nothing(
    configure: Configure,
    tmp_path: Path,
    undisturbed: dict[str, NDArray[np.float32]],
    parts: Path,
    monkeypatch: pytest.MonkeyPatch,
    holding: str,
    victim: str,
    moment: str,
) -> None:
    """All ranks start again from the newest checkpoint, as a run that resumes does."""
    fleets: list[Fleet] = []

    class Known(Fleet):
        def __init__(self, config: TrainConfig, pending: Pending, plan: Plan) -> None:
            super().__init__(config, pending, plan)
            fleets.append(self)

    monkeypatch.setattr("cluster.training.Fleet", Known)
    waiting = [6]
    learn = Controller.learn

    def learn_and_kill(controller: Controller) -> None:
        is_time = controller.version in waiting and not controller.pending.count("learn")
        if not is_time:
            return learn(controller)
        peers = {"leader": fleets[0].learner, "follower": fleets[0].followers[0]}
        pid = ray.get(peers[victim].actor.ping.remote(), timeout=30)
        if moment == "in the step":
            learn(controller)
            if not controller.pending.count("learn"):
                return None
        waiting.clear()
        os.kill(pid, signal.SIGKILL)
        return None if moment == "in the step" else learn(controller)

    monkeypatch.setattr(Controller, "learn", learn_and_kill)
    more = {"cluster": PARTS} if holding == "a part" else {}
    train(configure(**settings(tmp_path / "run", 2, **more)))
    assert not waiting
    wanted = learned(parts) if holding == "a part" else undisturbed
    for name, found in learned(tmp_path / "run").items():
        assert np.array_equal(found, wanted[name]), name


def test_a_learner_that_does_not_come_is_named(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unite(fleet: Fleet) -> None:
        """The second learner never gets to know where the others meet."""
        host, port = fleet.pending.call(
            fleet.learner.actor.open.remote([]), fleet.learner, "opening"
        )
        fleet.pending.timeout_seconds = 1.0
        fleet.pending.call(
            fleet.learner.actor.join.remote(0, host, port), fleet.learner, "meeting the others"
        )

    monkeypatch.setattr(Fleet, "_unite", unite)
    with pytest.raises(TimeoutError, match=r"learner was still meeting the others after 1 s"):
        train(configure(**settings(tmp_path / "run", 2)))


def test_there_is_one_learner_at_least() -> None:
    with pytest.raises(ValueError, match="num_learners must be 1 or more, got 0"):
        ClusterConfig(num_learners=0)
