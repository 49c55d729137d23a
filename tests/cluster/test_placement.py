"""Which node every actor gets, and what is said of those that get none."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.placement import Misfit, Plan, place, place_sampler, requests_of
from musicrl.config import ClusterConfig


def node(name: str, *, cpus: float, gpus: float = 0.0, is_alive: bool = True) -> dict[str, Any]:
    """As `ray.nodes()` lists it: what a node has none of is not there."""
    has = {"CPU": cpus, "GPU": gpus, "memory": 1e9}
    return {"NodeID": name, "Alive": is_alive, "Resources": {k: v for k, v in has.items() if v}}


def test_every_actor_is_asked_for() -> None:
    cluster = ClusterConfig(
        num_samplers=3, sampler_threads=2, sampler_gpus=0.5, num_learners=2, learner_threads=4
    )
    asked = Counter((r.role, r.cpus, r.gpus) for r in requests_of(cluster))
    assert asked == {("sampler", 2, 0.5): 3, ("scorer", 1, 0): 1, ("learner", 4, 0): 2}


def test_totals_that_suffice_are_not_enough() -> None:
    """Two nodes of 3 CPUs have 6, and no room for two learners of 2 and a sampler of 2 more."""
    cluster = ClusterConfig(num_samplers=1, num_learners=2, sampler_threads=1, learner_threads=2)
    assert place(cluster, [node("a", cpus=3), node("b", cpus=3)])["learner"] == ["a", "b"]
    wide = ClusterConfig(num_samplers=1, num_learners=1, sampler_threads=1, learner_threads=4)
    with pytest.raises(Misfit, match=r"2 nodes has no place for 1 of 1 learners: no node has") as f:
        place(wide, [node("a", cpus=3), node("b", cpus=3)])
    assert f.value.lines() == [
        ("CPU", 6, 6, 0),
        ("GPU", 0, 0, 0),
        ("sampler (1 CPU)", 1, 1, 0),
        ("scorer (1 CPU)", 1, 1, 0),
        ("learner (4 CPU)", 1, 0, 1),
    ]


def test_a_share_of_a_gpu_comes_from_one_device() -> None:
    """Three of 0.6 ask for 1.8 of 2 GPUs, and two devices hold one each."""
    cluster = ClusterConfig(num_samplers=3, sampler_gpus=0.6)
    with pytest.raises(Misfit, match=r"no place for 1 of 3 samplers: no node has enough left"):
        place(cluster, [node("a", cpus=32, gpus=2)])
    place(cluster, [node("a", cpus=32, gpus=3)])
    five = ClusterConfig(num_samplers=5, sampler_gpus=0.2, num_learners=2, learner_gpus=1.0)
    place(five, [node("a", cpus=32, gpus=3)])
    whole = ClusterConfig(num_samplers=1, sampler_gpus=0.1, learner_gpus=2.0)
    with pytest.raises(Misfit, match=r"no place for 1 of 1 samplers: it lacks 0\.1 GPUs"):
        place(whole, [node("a", cpus=32, gpus=2)])


def test_learners_on_two_nodes_are_placed_before_what_is_small() -> None:
    """Samplers first would take a GPU of each node, and leave the second learner none."""
    cluster = ClusterConfig(num_samplers=4, sampler_gpus=0.5, num_learners=2, learner_gpus=4.0)
    plan = place(cluster, [node(name, cpus=16, gpus=5) for name in "ab"])
    assert sorted(plan["learner"]) == ["a", "b"]
    assert Counter(plan["sampler"]) == {"a": 2, "b": 2}


def test_a_cpu_actor_leaves_the_node_of_the_gpus_to_others() -> None:
    cluster = ClusterConfig(num_samplers=1, sampler_gpus=1.0, learner_threads=4)
    plan = place(cluster, [node("gpu", cpus=8, gpus=1), node("cpu", cpus=5)])
    assert plan == {"sampler": ["gpu"], "learner": ["cpu"], "scorer": ["cpu"]}


def test_when_gpus_first_fails_cpus_first_is_tried() -> None:
    """The sampler fits either node, the learner only the large one."""
    cluster = ClusterConfig(num_samplers=1, sampler_gpus=1.0, learner_threads=8)
    plan = place(cluster, [node("large", cpus=8, gpus=1), node("small", cpus=2, gpus=1)])
    assert plan == {"sampler": ["small"], "learner": ["large"], "scorer": ["small"]}


def test_spread_has_samplers_everywhere_and_learners_together() -> None:
    nodes = [node(name, cpus=16) for name in "abc"]
    counts = {"num_samplers": 6, "num_scorers": 3, "num_learners": 2}
    spread = place(ClusterConfig(**counts, placement="spread"), nodes)  # type: ignore[arg-type]
    assert Counter(spread["sampler"]) == {"a": 2, "b": 2, "c": 2}
    assert Counter(spread["scorer"]) == {"a": 1, "b": 1, "c": 1}
    assert len(set(spread["learner"])) == 1
    tight = ClusterConfig(**counts, placement="spread", learner_threads=1)  # type: ignore[arg-type]
    plan = place(tight, [node(name, cpus=4) for name in "abc"])
    assert len(set(plan["learner"])) == 1
    packed = place(ClusterConfig(**counts), nodes)  # type: ignore[arg-type]
    assert {n for names in packed.values() for n in names} == {"a"}


def test_one_more_sampler_goes_where_the_others_left_room() -> None:
    cluster = ClusterConfig(num_samplers=2, sampler_threads=2, learner_threads=2)
    nodes = [node("a", cpus=6), node("b", cpus=3)]
    plan: Plan = {"learner": ["a"], "sampler": ["a", "a"], "scorer": ["b"]}
    assert place_sampler(cluster, plan, nodes) == "b"
    assert place_sampler(cluster, {**plan, "sampler": ["a", "a", "b"]}, nodes) is None
    joined = [*nodes, node("c", cpus=2)]
    assert place_sampler(cluster, {**plan, "sampler": ["a", "a", "b"]}, joined) == "c"
    gone = [node("a", cpus=6, is_alive=False), node("b", cpus=3)]
    assert place_sampler(cluster, plan, gone) == "b"


def test_a_dead_node_has_no_room() -> None:
    with pytest.raises(Misfit, match="cluster of 0 nodes has no place for 2 of 2 samplers"):
        place(ClusterConfig(), [node("a", cpus=64, is_alive=False)])


@pytest.mark.parametrize("name", ["sampler_gpus", "scorer_gpus", "learner_gpus"])
def test_ray_gives_no_gpu_and_a_half(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be a share of one GPU or whole ones, got"):
        ClusterConfig(**{name: 1.5})  # type: ignore[arg-type]


@given(
    sizes=st.lists(st.tuples(st.integers(1, 8), st.integers(0, 3)), min_size=1, max_size=4),
    samplers=st.integers(1, 6),
    share=st.sampled_from([0.0, 0.25, 0.4, 0.5, 1.0, 2.0]),
    learners=st.integers(1, 3),
    gpus=st.sampled_from([0.0, 1.0]),
    placement=st.sampled_from(["pack", "spread"]),
)
def test_no_plan_asks_more_of_a_node_than_it_has(
    sizes: list[tuple[int, int]],
    samplers: int,
    share: float,
    learners: int,
    gpus: float,
    placement: Any,
) -> None:
    cluster = ClusterConfig(
        num_samplers=samplers,
        sampler_gpus=share,
        num_learners=learners,
        learner_gpus=gpus,
        placement=placement,
    )
    nodes = [node(str(i), cpus=c, gpus=g) for i, (c, g) in enumerate(sizes)]
    try:
        plan: Plan = place(cluster, nodes)
    except Misfit:
        return
    assert [len(plan[role]) for role in ("sampler", "scorer", "learner")] == [samplers, 1, learners]
    for i, (cpus, devices) in enumerate(sizes):
        s, r, t = (list(plan[role]).count(str(i)) for role in ("sampler", "scorer", "learner"))
        assert s + r + 2 * t <= cpus
        assert s * share + t * gpus <= devices + 1e-9
