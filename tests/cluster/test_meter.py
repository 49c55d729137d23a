"""How busy the actors were and how long weights took, by hand-computed tasks."""

from __future__ import annotations

from dataclasses import replace

from actors.pool import Peer
from actors.sampler import SampleReport
from actors.scorer import ScoreReport
from cluster.meter import Meter, sizes_of
from cluster.supervise import Fault, Lost, Task
from musicrl.config import ClusterConfig
from musicrl.learner import StepReport
from tests.cluster.test_controller import Rig


def task(kind: str, peer: str) -> Task:
    return Task(kind=kind, peer=Peer(name=peer, actor=None), doing="working")


def sampled(publish: float) -> SampleReport:
    seconds = {"publish": publish, "sample": 1.0, "decode": 1.0}
    return SampleReport(version=0, num_bytes=1, seconds=seconds)


def stepped(publish: float) -> StepReport:
    seconds = {"learn": 1.0, "publish": publish}
    return StepReport(step=0, figures={}, lags={}, failed_rewards={}, seconds=seconds)


def test_shares_are_of_the_class_and_latencies_of_those_who_fetched() -> None:
    meter = Meter({"sampler": 2, "scorer": 1, "learner": 1})
    meter(task("sample", "sampler 0"), sampled(0.5), 0.0, 4.0)
    meter(task("sample", "sampler 1"), sampled(0.25), 0.0, 2.0)
    meter(task("sample", "sampler 1"), sampled(0.0), 1.0, 4.0)  # waited for its actor until 2
    meter(task("score", "scorer 0"), ScoreReport(seconds=1.0, priority=0.0), 4.0, 5.0)
    meter(task("save", "learner"), None, 0.0, 5.0)
    meter(task("learn", "learner"), stepped(0.75), 4.0, 7.5)
    assert meter.take(10.0, 2) == {
        "cluster/samplers": 2.0,
        "utilisation/sampler": 0.4,
        "utilisation/scorer": 0.1,
        "utilisation/learner": 0.25,
        "weights/publish_seconds": 0.75,
        "weights/apply_seconds": 0.375,
    }
    idle = dict.fromkeys((f"utilisation/{role}" for role in meter.sizes), 0.0)
    assert meter.take(10.0, 3) == {**idle, "cluster/samplers": 3.0}


def test_weights_that_did_not_come_by_broadcast_show() -> None:
    meter = Meter({"sampler": 2, "scorer": 1, "learner": 1}, is_broadcast=True)
    meter(task("sample", "sampler 0"), replace(sampled(0.5), way="broadcast"), 0.0, 4.0)
    meter(task("sample", "sampler 1"), replace(sampled(0.5), way="store"), 0.0, 4.0)
    meter(task("sample", "sampler 0"), sampled(0.0), 4.0, 6.0)  # had them
    assert meter.take(10.0, 2)["weights/broadcast_share"] == 0.5
    assert "weights/broadcast_share" not in meter.take(10.0, 2)


def test_a_lost_task_was_work_too() -> None:
    meter = Meter(sizes_of(ClusterConfig(num_samplers=1)))
    lost = Lost(fault=Fault.PEER, error=RuntimeError("gone"))
    meter(task("sample", "sampler 0"), lost, 0.0, 5.0)
    assert meter.take(10.0, 1)["utilisation/sampler"] == 0.5


def test_every_update_of_the_controller_has_the_figures() -> None:
    rig = Rig(iterations=3)
    rig.train()
    for iteration in rig.journal.iterations:
        assert {f"utilisation/{role}" for role in ("sampler", "scorer", "learner")} <= set(
            iteration.actors
        )
    assert not rig.fleet.pending.observers
