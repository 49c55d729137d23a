"""Runs on a real Ray, in the tiny world: equal to `solo`, whoever does the work and whoever dies."""

from __future__ import annotations

import json
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
from cluster.fleet import Fleet
from cluster.placement import Misfit, Plan, place
from cluster.session import train
from cluster.supervise import Pending
from musicrl.archive import Archive
from musicrl.config import TrainConfig
from musicrl.rollout import RolloutWorker, chunks_of
from musicrl.run import training_prompts
from musicrl.solo import solo
from musicrl.world import World

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
Configure = Callable[..., TrainConfig]
STEPS = 5


def learner_state(out: Path, step: int) -> dict[str, bytes]:
    """Every tensor of the learner at a checkpoint: policy, value and both optimizers."""
    tensors = load_file(out / "checkpoints" / f"step_{step:06d}" / "learner.safetensors")
    return {name: array.tobytes() for name, array in tensors.items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Where the one-process run of these tests is, once one of them has made it."""
    return {"out": tmp_path_factory.mktemp("alone") / "run"}


@pytest.fixture
def reference(configure: Configure, alone: dict[str, Any]) -> dict[str, Any]:
    """The final state and the evaluation of the one-process run."""
    if "state" not in alone:
        config = configure(out=str(alone["out"]), iterations=STEPS)
        alone["evaluation"] = solo(config)["evaluation"]
        alone["state"] = learner_state(config.out, STEPS)
    return alone


@pytest.fixture
def fleets(monkeypatch: pytest.MonkeyPatch) -> list[Fleet]:
    """The fleets that runs of this test start."""
    started: list[Fleet] = []

    class Known(Fleet):
        def __init__(self, config: TrainConfig, pending: Pending, plan: Plan) -> None:
            super().__init__(config, pending, plan)
            started.append(self)

    monkeypatch.setattr("cluster.training.Fleet", Known)
    return started


def kill(actor: Any) -> None:
    """SIGKILL to an actor's process."""
    os.kill(ray.get(actor.ping.remote(), timeout=30), signal.SIGKILL)


def test_three_samplers_and_two_scorers_give_what_one_process_gives(
    configure: Configure, reference: dict[str, Any]
) -> None:
    cluster = {"num_samplers": 3, "num_scorers": 2}
    config = configure(iterations=STEPS, trace=2, archive_rollouts=True, cluster=cluster)
    summary = train(config)
    archived = Archive(config.out / "rollouts")
    assert archived.steps() == list(range(STEPS))
    assert sum(e.rollouts.num_samples for e in archived.read(STEPS - 1)) == 8
    trace = json.loads((config.out / "trace.json").read_text())["traceEvents"]
    rows = {event["args"]["name"] for event in trace if event["name"] == "thread_name"}
    assert rows >= {"learner", "sampler 0", "scorer 0"}
    assert sum(event["name"] == "learn" and "doing" in event["args"] for event in trace) == 2
    assert learner_state(config.out, STEPS) == reference["state"]
    assert summary["evaluation"] == reference["evaluation"]
    assert summary["lag_histogram"] == {"0": 8 * STEPS}
    assert summary["lost_rollouts"] == 0
    assert summary["seconds"]["phases"]["wait"] > 0


def test_a_killed_sampler_changes_nothing_but_the_count_of_lost_rollouts(
    configure: Configure,
    reference: dict[str, Any],
    fleets: list[Fleet],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    victims = [2]
    sample = Controller.sample

    def sample_and_kill(controller: Controller) -> None:
        if controller.version in victims and controller.unsampled:
            victims.clear()
            pid = ray.get(fleets[0].sampler_peers[0].actor.ping.remote(), timeout=30)
            sample(controller)
            os.kill(pid, signal.SIGKILL)
        else:
            sample(controller)

    monkeypatch.setattr(Controller, "sample", sample_and_kill)
    config = configure(iterations=STEPS, cluster={"num_samplers": 1})
    summary = train(config)
    assert not victims
    assert summary["lost_rollouts"] >= 1
    assert learner_state(config.out, STEPS) == reference["state"]


def test_a_killed_learner_goes_on_from_its_checkpoint_to_the_same_end(
    configure: Configure,
    reference: dict[str, Any],
    fleets: list[Fleet],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    victims = [3]
    learn = Controller.learn

    def kill_and_learn(controller: Controller) -> None:
        if controller.version in victims:
            victims.clear()
            kill(fleets[0].learner.actor)
        learn(controller)

    monkeypatch.setattr(Controller, "learn", kill_and_learn)
    config = configure(iterations=STEPS, checkpoint_every=2, cluster={"num_samplers": 1})
    summary = train(config)
    assert not victims
    assert learner_state(config.out, STEPS) == reference["state"]
    assert summary["evaluation"] == reference["evaluation"]


def test_a_run_begun_alone_is_continued_on_ray(
    configure: Configure, reference: dict[str, Any]
) -> None:
    solo(configure(iterations=2))
    config = configure(iterations=STEPS, resume=True, cluster={"num_samplers": 1})
    summary = train(config)
    assert learner_state(config.out, STEPS) == reference["state"]
    assert summary["evaluation"] == reference["evaluation"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "replay": {"order": "prioritised", "reuse": 2},
            "algorithm": {"importance_cap": 2.0, "trace_cap": 1.0},
        },
    ],
    ids=["fifo", "reuse with V-trace"],
)
def test_max_lag_1_trains_on_samples_of_the_version_before_and_none_older(
    configure: Configure, settings: dict[str, Any]
) -> None:
    config = configure(iterations=STEPS, cluster={"max_lag": 1}, **settings)
    summary = train(config)
    lags = {int(lag): count for lag, count in summary["lag_histogram"].items()}
    assert sum(lags.values()) == 8 * STEPS
    assert lags[1] > 0
    assert set(lags) <= {0, 1}
    assert summary["iterations"] == STEPS


def test_a_guard_stops_at_the_step_where_it_stops_one_process(
    configure: Configure, tmp_path: Path
) -> None:
    settings = {
        "iterations": 50,
        "update": {"learning_rate": 0.05},
        "guards": {
            "stop": ["max_kl"],
            "max_kl": 0.1,
            "window": 2,
            "evaluate_every": 2,
            "restore_best": True,
            "max_silence": None,
            "min_pitch_variety": None,
        },
    }
    alone, found = (
        run(configure(out=str(tmp_path / run.__name__), **settings)) for run in (solo, train)
    )
    assert found["stopped_by"]["guard"] == "max_kl"
    assert found["iterations"] < 50
    for part in ("iterations", "stopped_by", "guards", "restored", "evaluation"):
        assert found[part] == alone[part]


def test_every_sampler_makes_the_same_rollouts_of_a_chunk(configure: Configure) -> None:
    """Two that the run begins with, and one that joins it."""
    config = configure(cluster={"num_samplers": 2, "max_samplers": 3})
    assert config.model.weights is not None
    plan = place(config.cluster, ray.nodes())  # type: ignore[no-untyped-call]
    pending = Pending(store=ray, timeout_seconds=60)
    fleet = Fleet(config, pending, plan)
    weights = fleet.learner.actor.weights.remote()
    (chunk, _) = chunks_of(4, training_prompts(config)[:4], size=2)
    try:
        fleet.grow()
        fleet.grow()  # one at a time
        while pending.count("join"):
            for task, result in pending.wait(1):
                fleet.joined(task, result)
        fleet.grow()  # no more than that
        assert [peer.name for peer in fleet.sampler_peers] == [
            "sampler 0",
            "sampler 1",
            "sampler 2",
        ]
        assert (fleet.samplers.size, pending.count("join")) == (3, 0)
        made = [
            ray.get(peer.actor.generate.remote(chunk, 0, [weights])[:2], timeout=60)
            for peer in fleet.sampler_peers
        ]
    finally:
        fleet.stop()
    world = World.load(config.model.weights)
    expected, clips = RolloutWorker(world, config.rollout.sampling).generate(
        chunk.prompts,
        first_prompt_index=0,
        step=4,
        run_seed=config.seed,
        samples_per_prompt=2,
        version=0,
    )
    for rollouts, audio in made:
        for name in ("tokens", "logprobs", "conditions", "seeds", "group", "version"):
            np.testing.assert_array_equal(getattr(rollouts, name), getattr(expected, name))
        np.testing.assert_array_equal(audio.audio, clips.audio)


def test_a_task_that_takes_too_long_names_its_actor(configure: Configure) -> None:
    config = configure(cluster={"num_samplers": 1, "task_timeout_seconds": 0.01})
    with pytest.raises(TimeoutError, match=r"learner was still starting after 0\.01 s"):
        train(config)


def test_a_run_without_room_leaves_no_folder_and_starts_no_actor(
    configure: Configure, fleets: list[Fleet], capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = {"num_samplers": 1, "num_learners": 2, "learner_threads": 16}
    config = configure(cluster=cluster)
    with pytest.raises(Misfit, match=r"no place for .*1 of 2 learners: it lacks 18 CPUs"):
        train(config)
    assert not config.out.exists()
    assert not fleets
    table = capsys.readouterr().err
    assert all(word in table for word in ("asked", "there", "missing", "learner (16 CPU)"))
