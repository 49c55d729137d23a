"""A whole run on Ray: evaluate, train, evaluate, summarise; `musicrl.solo.solo` with actors.

Reads what it needs before anything is started, so that a user's mistake costs no time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from cluster.connection import connected
from cluster.controller import Controller
from cluster.fleet import Fleet
from cluster.heldout import Heldout
from cluster.placement import Misfit, Plan, place
from cluster.prometheus import Gauges
from cluster.supervise import Pending
from cluster.trace import TRACE_FILE, Trace
from musicrl.config import ClusterConfig, TrainConfig
from musicrl.journal import Hearing, Journal
from musicrl.lock import check_free
from musicrl.rewards.mix import make_mix
from musicrl.run import Run, heldout_chunks, training_prompts
from musicrl.stop import StopRequest
from musicrl.types import Prompt
from musicrl.worlds import judges_of_world, load_world


def run_training(config: TrainConfig) -> dict[str, Any]:
    """Train as `config` says; returns the summary that it leaves in `<out>/summary.json`."""
    if config.replay_from is not None:
        raise ValueError("replay_from is for `musicrl solo`: it samples nothing to distribute")
    prompts, stream_names = preflight(config)
    Run.find(config)
    check_free(config.out)
    with StopRequest() as stop, connected(config.cluster):
        plan = find_places(config.cluster)
        return _start(config, prompts, stream_names, plan, stop)


def _start(
    config: TrainConfig,
    prompts: tuple[Prompt, ...],
    stream_names: tuple[str, ...],
    plan: Plan,
    stop: StopRequest,
) -> dict[str, Any]:
    """Make the run's folder and its actors, and end these whatever happens."""
    with (
        Run.start(config) as run,
        Journal(config, run, sinks=[Gauges(config.out)]) as journal,
    ):
        pending = Pending(store=ray, timeout_seconds=config.cluster.task_timeout_seconds)
        journal.display.say("starting the actors")
        fleet = Fleet(config, pending, plan)
        try:
            return _run(config, prompts, stream_names, fleet, journal, stop)
        finally:
            fleet.stop()


def find_places(cluster: ClusterConfig) -> Plan:
    """A node for every actor. Raises Misfit, with the table of what is missing printed, when the
    cluster lacks the room."""
    try:
        return place(cluster, ray.nodes())  # type: ignore[no-untyped-call]
    except Misfit as misfit:
        Console(stderr=True).print(misfit.table())
        raise


def _run(
    config: TrainConfig,
    prompts: tuple[Prompt, ...],
    stream_names: tuple[str, ...],
    fleet: Fleet,
    journal: Journal,
    stop: StopRequest,
) -> dict[str, Any]:
    heldout = Heldout(config, fleet, journal, stop)
    version, weights = 0, fleet.learner.actor.weights.remote()
    hearing = heldout.evaluate(version, weights, stream_names)
    journal.evaluated("before", 0, hearing)
    if config.resume:
        version, weights = restore(fleet, journal.run.newest_checkpoint())
    elif hearing is not None:
        keep_if_best(fleet, journal, version, hearing)

    def measure(version: int, weights: Any) -> None:
        """Measure the held-out prompts during training."""
        hearing = heldout.evaluate(version, weights, stream_names)
        if hearing is not None:
            journal.measured(version, hearing.result)
            keep_if_best(fleet, journal, version, hearing)
        journal.begin_training(version)

    journal.begin_training(version)
    trace = traced(config) if config.trace else None
    controller = Controller(
        config,
        prompts=prompts,
        fleet=fleet,
        journal=journal,
        stop=stop,
        heard=heldout.heard,
        measure=measure,
    )
    with fleet.pending.watched(trace):
        trained, weights = controller.train(version, weights)
    if trace is not None:
        trace.close()
    version, best = trained, None if stop.is_requested else journal.restore_best()
    if best is not None:
        version, weights = restore(fleet, best)
    journal.evaluated("after", version, heldout.evaluate(version, weights, stream_names))
    return journal.finish(trained)


def traced(config: TrainConfig) -> Trace:
    """What is written of the first updates."""
    return Trace(config.trace, config.out / TRACE_FILE, config.cluster.num_learners)


def keep_if_best(fleet: Fleet, journal: Journal, version: int, hearing: Hearing) -> None:
    """Have the learner, which holds `version`, keep its checkpoint if none was as good."""
    best, peer = journal.find_better(version, hearing.result), fleet.learner
    if best is not None:
        doing = f"writing the checkpoint of version {version}"
        fleet.pending.call(peer.actor.save.remote(), peer, doing)
        journal.run.keep_best(best)


def restore(fleet: Fleet, checkpoint: Path) -> tuple[int, Any]:
    """Move the learner to a checkpoint: its version and a reference to its weights."""
    peer = fleet.learner
    restoring = peer.actor.restore.remote(checkpoint)
    version: int = fleet.pending.call(restoring, peer, f"restoring {checkpoint}")
    return version, peer.actor.weights.remote()


def preflight(config: TrainConfig) -> tuple[tuple[Prompt, ...], tuple[str, ...]]:
    """The training prompts and the names of the streams.

    Raises FileNotFoundError or ValueError naming what no actor could load.
    """
    world = load_world(config.model.weights, config.model.policy)
    world.steps_of(config.rollout.clip_seconds)
    _ = world.policy  # which a world may read only when it is asked for
    make_mix(config.reward, world)
    judges_of_world(config.model.weights)
    heldout_chunks(config)
    return training_prompts(config), world.layout.stream_names
