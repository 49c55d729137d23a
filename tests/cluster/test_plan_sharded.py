"""Forecasts of learners that hold parts: by hand, and what they are made of counted in real ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from cluster.simulation.gathering import (
    Gathering,
    Line,
    Load,
    Moved,
    load_of,
    measure_gathering,
)
from musicrl.config import TrainConfig
from musicrl.learner import Learner
from musicrl.rollout import RolloutWorker
from musicrl.run import training_prompts
from musicrl.sharding import Sharded
from musicrl.types import Experience, RewardBatch
from musicrl.world import World
from tests.cluster.test_plan_learners import COSTS, configured, foretold
from tests.test_sharding import Pools, pools, together

__all__ = ["pools"]
Configure = Callable[..., TrainConfig]
SHARDED = "--cluster.num-learners", "2", "--cluster.learner-sharding", "full"
NOTHING = Line(call=0.0, byte=0.0)


def test_gathering_by_hand() -> None:
    # 4 calls of 1 ms and 8 MB, of which each of four ranks lacks three quarters: 4 + 12 ms, where two
    # ranks would take 8; 2 calls of 5 ms; 3 tensors of 2 ms.
    line = Line(call=1e-3, byte=1e-9)
    gathering = Gathering(gather=line, scatter=Line(call=5e-3, byte=0.0), whole=line, step=2e-3)
    load = Load(
        gathered=Moved(calls=4, num_bytes=8e6),
        scattered=Moved(calls=2, num_bytes=8e6),
        whole=Moved(calls=0, num_bytes=0.0),
        stepped=3,
    )
    assert gathering.seconds(load, ranks=4) == pytest.approx(0.032)
    assert gathering.seconds(load, ranks=2) == pytest.approx(0.028)


def test_parts_cost_their_gathering_and_save_the_sums_of_gradients() -> None:
    load = load_of(configured(*SHARDED))
    second = Line(call=1.0 / load.gathered.calls, byte=0.0)
    costs = replace(
        COSTS, gathering=Gathering(gather=second, scatter=NOTHING, whole=NOTHING, step=0.0)
    )
    # apply 1, sample 3 + 3, score 0.5; learning: 1 s each does whole, half of the other 3, 1 s gathering
    assert foretold(*SHARDED, costs=costs).seconds_per_update == pytest.approx(7.5 + 1 + 1.5 + 1)


def test_costs_without_gathering_are_refused() -> None:
    with pytest.raises(ValueError, match="sharding full: the costs do not hold what learners tell"):
        foretold(*SHARDED)


class Counting(TorchDispatchMode):
    """Notes the collectives of a rank: calls and bytes of what is whole."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it comes again with the parts
        found = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name == "c10d::_allgather_base_":
            self._note("gathered", args[0])
        elif name == "c10d::_reduce_scatter_base_":
            self._note("scattered", args[1])
        elif name == "_c10d_functional::all_gather_into_tensor":
            self._note("whole", found)
        return found

    def _note(self, name: str, tensor: Any) -> None:
        self.calls[name] += 1
        self.bytes[name] += tensor.numel() * tensor.element_size()


def counted(
    ranks: Sharded, config: TrainConfig, experience: Experience
) -> tuple[dict[str, int], dict[str, int]]:
    assert config.model.weights is not None
    learner = Learner(World.load(config.model.weights), config)
    learner.share(ranks)
    with Counting() as counting:
        learner.step(0, [experience])
    return dict(counting.calls), dict(counting.bytes)


def played(config: TrainConfig) -> Experience:
    """A whole step of clips."""
    assert config.model.weights is not None
    worker = RolloutWorker(World.load(config.model.weights), config.rollout.sampling)
    prompts, samples = config.rollout.prompts_per_step, config.rollout.samples_per_prompt
    rollouts, _ = worker.generate(
        training_prompts(config)[:prompts],
        first_prompt_index=0,
        step=0,
        run_seed=0,
        samples_per_prompt=samples,
        version=0,
    )
    total = np.arange(prompts * samples, dtype=np.float32)
    rewards = RewardBatch(total=total, terms={"r": total}, valid=np.ones(len(total), bool))
    return Experience(rollouts=rollouts, rewards=rewards)


@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": {"baseline": "value"}},
        {
            "algorithm": {"name": "ppo", "clip_ratio": 0.2, "baseline": "value"},
            "update": {"epochs": 2, "microbatch_samples": 1, "muon_learning_rate": 0.01},
        },
    ],
)
def test_what_an_update_moves_is_what_real_ranks_move(
    pools: Pools, configure: Configure, settings: dict[str, Any]
) -> None:
    cluster = {"num_learners": 2, "learner_sharding": "full"}
    config = configure(**{**settings, "cluster": cluster})
    (calls, moved), same = together(pools, counted, config, played(config))
    assert (calls, moved) == same
    load = load_of(config)
    for name in ("gathered", "scattered", "whole"):
        wanted: Moved = getattr(load, name)
        assert calls[name] == pytest.approx(wanted.calls, rel=0.1), name
        assert moved[name] == pytest.approx(wanted.num_bytes, rel=0.1), name


def test_gathering_here_costs_something() -> None:
    found = measure_gathering()
    assert min(found.gather.call, found.whole.call, found.step) > 0
    assert found.gather.byte > 0
