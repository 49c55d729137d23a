"""Weights that are broadcast, on a real Ray: the same run as by the store, whoever dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from safetensors.numpy import load_file

from cluster.controller import Controller
from cluster.fleet import check_host
from cluster.session import train
from cluster.supervise import Lost, Result, Task
from musicrl.archive import Archive
from musicrl.config import ClusterConfig, TrainConfig
from musicrl.solo import solo

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
Configure = Callable[..., TrainConfig]
STEPS = 8
KILLED_AT, ENDED_AT = 2, 5
"""Versions of the sampler's death and of the learner's."""


def learned(out: Path) -> dict[str, bytes]:
    folder = out / "checkpoints" / f"step_{STEPS:06d}"
    return {n: a.tobytes() for n, a in load_file(folder / "learner.safetensors").items()}


def assert_equal_rollouts(out: Path, wanted: Path) -> None:
    found, expected = Archive(out / "rollouts"), Archive(wanted / "rollouts")
    assert found.steps() == expected.steps() == list(range(STEPS))
    for step in range(STEPS):
        for one, other in zip(found.read(step), expected.read(step), strict=True):
            for name in ("tokens", "logprobs", "seeds", "version"):
                np.testing.assert_array_equal(
                    getattr(one.rollouts, name), getattr(other.rollouts, name)
                )


def test_a_run_is_the_same_by_broadcast_and_by_store_whoever_dies(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sampler makes every chunk: it is killed, restarted, fetches what it missed, and takes part
    in the broadcasts after, and in those of the next learner."""
    waiting, ways = ["sampler", "learner"], list[tuple[int, str]]()
    sample, sampled, learn = Controller.sample, Controller.sampled, Controller.learn

    def sample_and_kill(controller: Controller) -> None:
        is_time = controller.version == KILLED_AT and "sampler" in waiting
        if not is_time or not controller.unsampled:
            return sample(controller)
        waiting.remove("sampler")
        (peer,) = controller.fleet.samplers._idle
        pid = ray.get(peer.actor.ping.remote(), timeout=30)
        sample(controller)
        return os.kill(pid, signal.SIGKILL)

    def kill_and_learn(controller: Controller) -> None:
        if controller.version == ENDED_AT and "learner" in waiting:
            waiting.remove("learner")
            actor = controller.fleet.learner.actor
            os.kill(ray.get(actor.ping.remote(), timeout=30), signal.SIGKILL)
        learn(controller)

    def sampled_and_noted(controller: Controller, task: Task, result: Result) -> None:
        if not isinstance(result, Lost) and result.way is not None:
            ways.append((result.version, result.way))
        sampled(controller, task, result)

    monkeypatch.setattr(Controller, "sample", sample_and_kill)
    monkeypatch.setattr(Controller, "sampled", sampled_and_noted)
    monkeypatch.setattr(Controller, "learn", kill_and_learn)
    same: dict[str, Any] = {"iterations": STEPS, "archive_rollouts": True, "checkpoint_every": 4}
    cluster = {
        "num_samplers": 1,
        "weights_transport": "collective",
        "weights_timeout_seconds": 30.0,
    }
    summary = train(configure(out=str(tmp_path / "run"), cluster=cluster, **same))
    assert not waiting
    assert summary["lost_rollouts"] >= 1
    solo(configure(out=str(tmp_path / "alone"), **same))
    assert learned(tmp_path / "run") == learned(tmp_path / "alone")
    assert_equal_rollouts(tmp_path / "run", tmp_path / "alone")
    by_version = dict(ways)
    assert by_version[KILLED_AT - 1] == "broadcast"
    assert by_version[KILLED_AT] == "store"
    assert by_version[STEPS - 1] == "broadcast"


def test_nodes_cannot_meet_on_a_loopback() -> None:
    plan = {"learner": ["a"], "sampler": ["a", "b"], "scorer": ["a"]}
    check_host(ClusterConfig(), plan)
    check_host(ClusterConfig(weights_transport="collective", learner_host="node"), plan)
    with pytest.raises(ValueError, match=r"collective on 2 nodes needs cluster\.learner_host node"):
        check_host(ClusterConfig(weights_transport="collective"), plan)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"weights_transport": "rdma"}, "'rdma' is neither store nor collective"),
        ({"weights_timeout_seconds": 0.0}, "weights_timeout_seconds must be above 0"),
        ({"weights_timeout_seconds": 5.0}, "is read only with weights_transport collective"),
    ],
)
def test_a_mistake_is_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ClusterConfig(**settings)
