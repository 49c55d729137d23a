"""Forecasts of several learners: by hand, and what they are made of counted in real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from cluster.plan_config import PlanConfig
from cluster.simulation.costs import Costs, costs_of, read_trace
from cluster.simulation.fleet import Machine
from cluster.simulation.reducing import WORD, Load, Reducing, load_of, measure_reducing
from cluster.simulation.run import Forecast, forecast
from cluster.trace import Span, Trace, to_chrome
from musicrl.config import TrainConfig, load_config
from musicrl.learner import Learner
from musicrl.ranks import Group, join_group
from musicrl.rollout import RolloutWorker
from musicrl.run import training_prompts
from musicrl.textfile import write_text
from musicrl.types import Experience, RewardBatch
from musicrl.world import World
from tests.cluster.test_controller import Rig

Configure = Callable[..., TrainConfig]
FREE = Reducing(copy=0.0, send=0.0, latency=0.0)
COSTS = Costs(
    sample=(3.0,),
    apply=(1.0,),
    score=(0.5,),
    learn=(4.0,),
    save=(2.0,),
    shared=0.75,
    reducing=FREE,
)
ROOMY = [Machine(cores=64, slots=64)]


def configured(*flags: str) -> TrainConfig:
    sizes = ["--rollout.prompts-per-step", "8", "--rollout.prompts-per-chunk", "4"]
    more = ["--checkpoint-every", "1000", "--cluster.max-lag", "0"]
    return load_config("tiny", [*sizes, *more, *flags])


def foretold(*flags: str, costs: Costs = COSTS, machines: list[Machine] = ROOMY) -> Forecast:
    return forecast(configured(*flags), machines, costs, updates=10)


def test_a_sum_over_ranks_by_hand() -> None:
    # Six messages of 2 MB each for 8 MB of four ranks: 8 ms copied, 24 ms sent; 3 x 6 x 1 ms.
    load = Load(num_sums=3, num_bytes=8e6)
    reducing = Reducing(copy=1e-9, send=2e-9, latency=1e-3)
    assert reducing.seconds(load, ranks=4) == pytest.approx(0.050)


def test_two_learners_halve_what_they_share() -> None:
    # apply 1, sample 3 + 3, score 0.5; learning: 1 s each does whole, and half of the other 3.
    found = foretold("--cluster.num-learners", "2")
    assert found.seconds_per_update == pytest.approx(7.5 + 1 + 1.5)
    assert found.utilisation["learner"] == pytest.approx(2.5 / 10)


def test_the_rank_with_most_rows_ends_the_step() -> None:
    # 128 rows of three: 43, 43 and 42.
    found = foretold("--cluster.num-learners", "3")
    assert found.seconds_per_update == pytest.approx(7.5 + 1 + 3 * 43 / 128)


def test_learners_share_the_cores_of_their_machine() -> None:
    # Two threads each on two cores: the halves take as long as the whole.
    flags = ["--cluster.num-learners", "2", "--cluster.learner-threads", "2"]
    costs = replace(COSTS, shared=1.0)
    crowded = foretold(*flags, costs=costs, machines=[Machine(cores=2, slots=64)])
    assert crowded.seconds_per_update == pytest.approx(7.5 + 4)


def test_sums_are_paid_by_bytes_and_ranks() -> None:
    flags = "--cluster.num-learners", "4"
    load = load_of(configured(*flags))
    costs = replace(COSTS, reducing=Reducing(copy=0.0, send=1.0 / load.num_bytes, latency=0.0))
    found = foretold(*flags, costs=costs)
    assert found.seconds_per_update == pytest.approx(7.5 + 1 + 3 / 4 + 6 / 4)


class Counting(Group):
    """A real one that notes the bytes of its sums."""

    def __init__(self, group: Group) -> None:
        super().__init__(group._group)
        self.bytes: list[int] = []

    def _sum(self, tensor: Tensor) -> Tensor:
        self.bytes.append(tensor.numel() * WORD)
        return super()._sum(tensor)


@pytest.mark.parametrize("baseline", ["value", "group_mean"])
def test_the_sums_of_an_update_are_those_of_real_ranks(configure: Configure, baseline: str) -> None:
    config = configure(algorithm={"baseline": baseline})
    assert config.model.weights is not None
    store, world = HashStore(), World.load(config.model.weights)
    rollouts, _ = RolloutWorker(world, config.rollout.sampling).generate(
        training_prompts(config)[:4],
        first_prompt_index=0,
        step=0,
        run_seed=0,
        samples_per_prompt=2,
        version=0,
    )
    total = np.arange(8, dtype=np.float32)
    rewards = RewardBatch(total=total, terms={"r": total}, valid=np.ones(8, bool))
    learners = [Learner(World.load(config.model.weights), config) for _ in range(2)]

    def run(rank: int) -> list[int]:
        ranks = Counting(join_group(store, rank=rank, size=2, host="127.0.0.1", timeout_seconds=60))
        learners[rank].share(ranks)
        learners[rank].step(0, [Experience(rollouts=rollouts, rewards=rewards)])
        return ranks.bytes

    with ThreadPoolExecutor(2) as threads:
        counted, same = threads.map(run, range(2))
    load = load_of(config)
    assert counted == same
    assert len(counted) == load.num_sums
    # The loss and a flag for each tensor travel with the gradients.
    assert sum(counted) == pytest.approx(load.num_bytes, rel=0.05)


def test_a_sum_of_two_ranks_here_costs_something() -> None:
    found = measure_reducing()
    assert min(found.copy, found.latency) > 0
    larger = Load(num_sums=1, num_bytes=16e6)
    assert found.seconds(larger, ranks=2) > found.seconds(Load(num_sums=1, num_bytes=8.0), ranks=2)


def test_the_share_that_ranks_divide_comes_out_of_a_trace() -> None:
    """The first step warms up: of the others' 4 s each, 3 are the update's."""
    steps = [spent("learn", start, 4.0, learn=3.0, publish=0.5) for start in (0.0, 8.0, 16.0)]
    sampled = spent("sample", 5.0, 3.0, publish=0.0, sample=3.0, decode=0.0)
    assert costs_of([*steps, sampled, spent("score", 8.0, 0.5)]).shared == pytest.approx(0.75)


def spent(kind: str, start: float, seconds: float, **phases: float) -> Span:
    return Span(
        kind=kind,
        peer=kind,
        doing=kind,
        start=start,
        end=start + seconds,
        queued=0.0,
        phases=phases,
    )


def test_a_trace_of_several_learners_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    rig, trace = Rig(iterations=3, samplers=2), Trace(updates=9, path=None)
    with rig.fleet.pending.watched(trace):
        rig.train()
    write_text(path, json.dumps(to_chrome(trace.spans, num_learners=2)))
    with pytest.raises(ValueError, match=r"trace\.json is of 2 learners: costs come from a run"):
        read_trace(path)


def test_learners_are_a_side_of_the_grid() -> None:
    sizes = PlanConfig(train=configured(), samplers=(1, 2), lags=(0,), learners=(1, 4)).grid()
    counts = [(size.cluster.num_samplers, size.cluster.num_learners) for size in sizes]
    assert counts == [(1, 1), (1, 4), (2, 1), (2, 4)]
