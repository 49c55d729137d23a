"""Prompts at which actors keep failing: kept on disk, left out, counted, and too many end a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray import exceptions

from cluster.quarantine import KIND, Case, Quarantine
from cluster.session import train
from musicrl.checkpoint import load_tensors
from musicrl.config import TrainConfig
from musicrl.prompts import draw
from musicrl.rollout import Chunk, RolloutWorker, chunk_seeds
from musicrl.run import training_prompts
from musicrl.types import Prompt
from musicrl.world import World
from tests.cluster.poison import DEADLY
from tests.cluster.test_controller import DIED, PROMPTS, FakeSampler, FakeScorer, Rig

Configure = Callable[..., TrainConfig]
BAD = PROMPTS[2]
BUG = exceptions.RayTaskError("generate", "a traceback", IndexError("out of range"))  # type: ignore[no-untyped-call]


class Kept(Quarantine):
    """Remembers its cases, and writes them nowhere."""

    def __init__(self) -> None:
        super().__init__(Path("nowhere"))
        self.cases: list[Case] = []

    def _write(self, case: Case) -> None:
        self.cases.append(case)


def poisoned(
    error: Exception, *, method: str, bad: set[Prompt], **settings: Any
) -> tuple[Rig, Kept]:
    """A rig whose samplers (`generate`) or scorers (`score`) fail at every chunk with a prompt of
    `bad`."""
    rig, kept = Rig(**settings), Kept()
    rig.controller.recovery.quarantine = kept
    kind = {"generate": FakeSampler, "score": FakeScorer}[method]
    pool = {"generate": rig.fleet.samplers, "score": rig.fleet.scorers}[method]
    for actor in [pool.take() for _ in range(pool.size)]:
        assert isinstance(actor.actor, kind)
        call = getattr(actor.actor, method)
        call.function = _fail_at(call.function, error, bad)
        pool.give(actor)
    return rig, kept


def _fail_at(work: Any, error: Exception, bad: set[Prompt]) -> Any:
    def fail_or_work(chunk: Chunk, *args: Any) -> Any:
        if bad & set(chunk.prompts):
            raise error
        return work(chunk, *args)

    return fail_or_work


@given(
    seed=st.integers(0, 10**6),
    max_lag=st.integers(0, 2),
    method=st.sampled_from(["generate", "score"]),
    error=st.sampled_from([DIED, BUG]),
)
def test_all_but_the_poisoned_prompt_is_trained(
    seed: int, max_lag: int, method: str, error: Exception
) -> None:
    rig, kept = poisoned(
        error, method=method, bad={BAD}, seed=seed, max_lag=max_lag, samplers=3, scorers=2
    )
    assert rig.train() == 4
    rig.controller.replay.check_integrity()
    (learner,) = rig.fleet.learners
    for step, experience in enumerate(learner.trained):
        found = [prompt for chunk, _ in experience for prompt in chunk.prompts]
        assert found == [p for p in draw(PROMPTS, 0, step, 6) if p != BAD]
    assert {prompt for case in kept.cases for prompt in case.chunk.prompts} == {BAD}
    assert all(case.attempts == 3 for case in kept.cases)
    counted = sum(iteration.quarantined for iteration in rig.journal.iterations)
    assert counted == len(kept.cases)
    if max_lag == 0:
        assert len(kept.cases) == 1


def test_a_case_says_what_was_done_with_which_seeds() -> None:
    rig, kept = poisoned(BUG, method="generate", bad={BAD})
    rig.train()
    (case,) = kept.cases
    step, index = case.place
    assert draw(PROMPTS, 0, step, 6)[index] == BAD
    assert list(case.seeds) == chunk_seeds(0, step, [index], 4).tolist()
    assert f"sampling prompt {index} of step {step} with version {step}" in case.doing
    assert case.error == "it raised an exception (out of range)"
    assert case.rollouts is None


def test_too_many_end_the_run_with_a_checkpoint() -> None:
    rig, kept = poisoned(DIED, method="generate", bad=set(PROMPTS[:5]), max_quarantined=2)
    with pytest.raises(ConnectionError, match=r"more than 2 prompts failed .*; checkpoint path"):
        rig.train()
    assert len(kept.cases) == 3
    assert rig.fleet.saved[-1:] == [rig.fleet.learners[0].version]


def test_a_step_of_which_nothing_is_left_ends_the_run() -> None:
    rig, _ = poisoned(DIED, method="score", bad=set(PROMPTS))
    with pytest.raises(ConnectionError, match="every prompt of step 0 is quarantined"):
        rig.train()


def one(step: int, index: int, prompt: Prompt = BAD) -> Chunk:
    return Chunk(step=step, index=0, first_prompt=index, prompts=(prompt,))


def case_of(chunk: Chunk, **known: Any) -> Case:
    empty = {
        "doing": "sampling",
        "error": "it died",
        "attempts": 3,
        "run_seed": 1,
        "seeds": [2**64 - 1],
    }
    return Case(chunk=chunk, **{**empty, "version": None, "rollouts": None, **known})


def test_a_prompt_is_out_from_where_it_failed_on_in_a_resumed_run_too(tmp_path: Path) -> None:
    Quarantine(tmp_path).add(case_of(one(3, 5)))
    again = Quarantine(tmp_path)
    assert len(again) == 1
    out = [(3, 5), (4, 0), (9, 5)]
    still_in = [(2, 5), (3, 4)]
    assert all(again.holds(one(*place)) for place in out)
    assert not any(again.holds(one(*place)) for place in still_in)
    assert not again.holds(one(4, 0, PROMPTS[0]))
    wide = Chunk(step=4, index=0, first_prompt=0, prompts=PROMPTS[:4])
    assert again.touches(wide)
    assert json.loads((tmp_path / "step_000003_prompt_0005.json").read_text())["seeds"] == [
        2**64 - 1
    ]


def test_a_file_that_is_none_of_its_own_is_named(tmp_path: Path) -> None:
    (tmp_path / "step_000001_prompt_0001.json").write_text("{}")
    with pytest.raises(ValueError, match=r"step_000001_prompt_0001\.json is no file of a quarant"):
        Quarantine(tmp_path)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_reward_that_kills_its_process_costs_its_prompt_alone(
    configure: Configure, tiny_world: Path
) -> None:
    config = configure(
        iterations=3,
        reward={"weights": {"text": 1.0, "tests.cluster.poison:Poison": 0.0}},
        cluster={"num_samplers": 1, "num_scorers": 2, "max_attempts": 1},
        evaluation={"prompts": 2, "audio_prompts": 1},
    )
    summary = train(config)
    assert (summary["iterations"], summary["quarantined"]) == (3, 1)
    assert summary["lag_histogram"] == {"0": 3 * 8 - 2}
    (path,) = (config.out / "quarantine").glob("*.json")
    case = json.loads(path.read_text())
    assert case["prompt"]["id"] == DEADLY
    tensors, _ = load_tensors(path.with_name(case["tokens"]), kind=KIND)
    prompts = draw(training_prompts(config), 0, 0, 4)
    assert (case["step"], prompts[case["prompt_index"]].id) == (0, DEADLY)
    rollouts, _ = RolloutWorker(World.load(tiny_world), config.rollout.sampling).generate(
        [prompts[case["prompt_index"]]],
        first_prompt_index=case["prompt_index"],
        step=0,
        run_seed=0,
        samples_per_prompt=2,
        version=0,
    )
    np.testing.assert_array_equal(tensors["tokens"].numpy(), rollouts.tokens)
    np.testing.assert_array_equal(tensors["logprobs"].numpy(), rollouts.logprobs)
