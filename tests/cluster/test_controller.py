"""The controller against hand-written actors that finish in any order and die at will."""

from __future__ import annotations

import gc
import itertools
import random
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray import exceptions

from actors.pool import Peer, Pool
from actors.sampler import SampleReport
from actors.scorer import ScoreReport
from cluster.controller import Controller
from cluster.fleet import Fleet
from cluster.supervise import Pending
from musicrl.algorithms.config import AlgorithmConfig
from musicrl.config import (
    ClusterConfig,
    EvaluationConfig,
    ReplayConfig,
    RolloutConfig,
    TrainConfig,
)
from musicrl.evaluation.heldout import EvaluationChunk
from musicrl.guards import GuardConfig, Watch
from musicrl.journal import Iteration, Journal
from musicrl.learner import StepReport
from musicrl.prompts import draw
from musicrl.rollout import Chunk
from musicrl.run import Run
from musicrl.stop import StopRequest
from musicrl.types import Prompt

PROMPTS = tuple(Prompt(id=str(i), text=f"tune {i}") for i in range(7))
DIED = exceptions.ActorDiedError()
LOST = exceptions.ObjectLostError("00", None, "stack")


class Reference:
    """A return that exists once its call has been run, as a value or an error."""

    def __init__(self) -> None:
        self.value: Any = None


class Call:
    """A task: run when the store says so, it fills its returns."""

    def __init__(self, function: Callable[[], tuple[Any, ...]], num_returns: int) -> None:
        self.function = function
        self.returns = [Reference() for _ in range(num_returns)]

    def run(self) -> None:
        try:
            values = self.function()
        except exceptions.RayError as error:
            values = (error,) * len(self.returns)
        for reference, value in zip(self.returns, values, strict=True):
            reference.value = value


class Store:
    """Finishes the calls in flight one at a time, in an order that the seed draws; an actor's own
    calls stay in order, as Ray's do."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.queues: dict[Any, list[Call]] = {}
        self.hung: set[Any] = set()
        """Actors whose calls do not end."""
        self.now = 0.0

    def clock(self) -> float:
        """Seconds: a tenth for every look at it by `wait`."""
        return self.now

    def submit(self, actor: Any, function: Callable[[], tuple[Any, ...]], returns: int) -> Any:
        call = Call(function, returns)
        self.queues.setdefault(actor, []).append(call)
        return call.returns[0] if returns == 1 else call.returns

    def wait(
        self, refs: list[Reference], *, num_returns: int, timeout: float, fetch_local: bool
    ) -> tuple[list[Reference], list[Reference]]:
        if timeout:
            self.run_one()
            self.now += 0.1
        ready = [ref for ref in refs if ref.value is not None]
        return ready, [ref for ref in refs if ref.value is None]

    def run_one(self) -> None:
        busy = [a for a, calls in self.queues.items() if calls and a not in self.hung]
        if busy:
            self.queues[self.random.choice(busy)].pop(0).run()

    def get(self, ref: Reference, *, timeout: float) -> Any:
        while ref.value is None:
            self.run_one()
        if isinstance(ref.value, BaseException):
            raise ref.value
        return ref.value


class Method:
    def __init__(self, store: Store, actor: Any, function: Callable[..., Any], returns: int = 1):
        self.store, self.actor, self.function, self.returns = store, actor, function, returns

    def remote(self, *args: Any) -> Any:
        return self.store.submit(self.actor, lambda: self._call(args), self.returns)

    def options(self, **options: int) -> Method:
        return self

    def _call(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        values = self.function(*args)
        return values if self.returns > 1 else (values,)


class Actor:
    """Every method fails with what `faults` holds for it, once each."""

    def __init__(self, store: Store, faults: dict[str, list[Exception]]) -> None:
        self.store = store
        self.faults = faults
        self.ping = Method(store, self, lambda: 1)

    def fail(self, method: str) -> None:
        if self.faults.get(method):
            raise self.faults[method].pop()


class FakeSampler(Actor):
    def __init__(self, store: Store, faults: dict[str, list[Exception]]) -> None:
        super().__init__(store, faults)
        self.generate = Method(store, self, self._generate, 3)
        self.generate_heldout = Method(store, self, self._generate, 3)

    def _generate(
        self, chunk: Any, version: int, weights: list[Reference], address: None
    ) -> tuple[Any, ...]:
        self.fail("generate")
        assert self.store.get(weights[0], timeout=1) == f"weights {version}"
        seconds = {"sample": 1.0, "decode": 0.5, "publish": 0.0}
        report = SampleReport(version=version, num_bytes=8, seconds=seconds)
        return (chunk, version), f"clips {chunk}", report


class FakeScorer(Actor):
    def __init__(self, store: Store, faults: dict[str, list[Exception]]) -> None:
        super().__init__(store, faults)
        self.score = Method(store, self, self._score, 2)

    def _score(self, chunk: Chunk, clips: Reference) -> tuple[Any, ...]:
        self.fail("score")
        assert self.store.get(clips, timeout=1) == f"clips {chunk}"
        return f"rewards {chunk}", ScoreReport(seconds=0.25, priority=1.0)


class FakeLearner(Actor):
    """Remembers what it was trained on: the versions and prompts of each step."""

    def __init__(self, store: Store, faults: dict[str, list[Exception]], saved: list[int]) -> None:
        super().__init__(store, faults)
        self.version, self.saved = 0, saved
        self.trained: list[list[tuple[Chunk, int]]] = []
        self.step = Method(store, self, self._step, 2)
        self.save = Method(store, self, self._save)
        self.restore = Method(store, self, self._restore)
        self.weights = Method(store, self, lambda: f"weights {self.version}")

    def _step(
        self, step: int, pairs: list[tuple[Reference, Reference]], resting: tuple[str, ...]
    ) -> tuple[Any, ...]:
        self.fail("step")
        assert step == self.version
        experience = [self.store.get(rollouts, timeout=1) for rollouts, _ in pairs]
        rewards = [self.store.get(reward, timeout=1) for _, reward in pairs]
        assert rewards == [f"rewards {chunk}" for chunk, _ in experience]
        self.trained.append(experience)
        lags = [self.version - version for _, version in experience]
        self.version += 1
        report = StepReport(
            step=step,
            figures={},
            lags={lag: lags.count(lag) for lag in lags},
            failed_rewards={},
            seconds={"learn": 2.0},
        )
        return report, f"weights {self.version}"

    def _save(self) -> str:
        self.fail("save")
        self.saved.append(self.version)
        return "path"

    def _restore(self, checkpoint: int) -> int:
        self.version = checkpoint
        return self.version


class FakeRun(Run):
    def __init__(self, saved: list[int]) -> None:
        super().__init__(Path("nowhere"))
        self.saved = saved

    def find_checkpoint(self) -> Any:
        return self.saved[-1] if self.saved else None


class Silent:
    def say(self, sentence: str) -> None:
        pass


class FakeJournal(Journal):
    def __init__(self, run: Run) -> None:
        self.run = run
        self.iterations: list[Iteration] = []
        self.heard_at: list[int] = []
        self.watch = Watch(GuardConfig())
        self.display: Any = Silent()

    def record(self, iteration: Iteration) -> None:
        self.iterations.append(iteration)

    def heard(self, name: str, step: int, prompts: Any, clips: Any) -> None:
        assert clips.startswith("clips ")
        self.heard_at.append(step)


class FakeFleet(Fleet):
    def __init__(
        self, store: Store, faults: dict[str, list[Exception]], *, samplers: int, scorers: int
    ) -> None:
        self.store, self.faults, self.saved = store, faults, list[int]()
        self.pending = Pending(store=store, timeout_seconds=10, clock=store.clock)
        self.interrupted: list[str] = []
        self.samplers = Pool(
            Peer(name=f"sampler {i}", actor=FakeSampler(store, faults)) for i in range(samplers)
        )
        self.scorers = Pool(
            Peer(name=f"scorer {i}", actor=FakeScorer(store, faults)) for i in range(scorers)
        )
        self.learners: list[FakeLearner] = []
        self.replace_learner()

    def interrupt(self, peer: Peer) -> None:
        """Its process is killed, and its call with it."""
        self.interrupted.append(peer.name)
        self.store.hung.discard(peer.actor)
        self.store.queues[peer.actor].pop(0)

    def grow(self) -> None:
        """No more of them."""

    def replace_learner(self) -> None:
        self.learners.append(FakeLearner(self.store, self.faults, self.saved))
        self.learner = Peer(name="learner", actor=self.learners[-1])


class Rig:
    """A controller with its fakes."""

    def __init__(
        self,
        *,
        max_lag: int = 0,
        iterations: int = 4,
        samplers: int = 2,
        scorers: int = 1,
        seed: int = 0,
        every: int = 0,
        guards: GuardConfig | None = None,
        max_quarantined: int = 8,
        faults: dict[str, list[Exception]] | None = None,
        replay: ReplayConfig | None = None,
    ) -> None:
        self.config = TrainConfig(
            iterations=iterations,
            checkpoint_every=2,
            rollout=RolloutConfig(prompts_per_step=6, prompts_per_chunk=2),
            cluster=ClusterConfig(max_lag=max_lag, max_quarantined=max_quarantined),
            evaluation=EvaluationConfig(every=every),
            guards=guards or GuardConfig(),
            replay=replay or ReplayConfig(),
            algorithm=AlgorithmConfig(importance_cap=2.0 if max_lag else None),
        )
        store = Store(seed)
        self.fleet = FakeFleet(store, faults or {}, samplers=samplers, scorers=scorers)
        self.journal = FakeJournal(FakeRun(self.fleet.saved))
        self.stop = StopRequest()
        self.measured: list[int] = []
        self.controller = Controller(
            self.config,
            prompts=PROMPTS,
            fleet=self.fleet,
            journal=self.journal,
            stop=self.stop,
            heard=EvaluationChunk(first=0, prompts=PROMPTS[:1], mismatched=()),
            measure=self.measure,
        )

    def train(self) -> int:
        """Raises AssertionError when the loop turns without an end."""
        collect, turns = self.controller.collect, itertools.count()

        def collect_for_a_while() -> None:
            assert next(turns) < 5_000, "the loop does not end"
            collect()

        self.controller.collect = collect_for_a_while  # type: ignore[method-assign]
        learner = self.fleet.learner.actor
        version, weights = self.controller.train(0, learner.weights.remote())
        assert self.fleet.store.get(weights, timeout=1) == f"weights {version}"
        return version

    def measure(self, version: int, weights: Reference) -> None:
        """Nothing else is under way, and the learner holds what is measured."""
        assert not self.fleet.pending.count("sample", "score", "learn", "save", "listen")
        assert self.fleet.learners[-1].version == version
        assert self.fleet.store.get(weights, timeout=1) == f"weights {version}"
        self.measured.append(version)

    @property
    def lags(self) -> set[int]:
        return {lag for iteration in self.journal.iterations for lag in iteration.report.lags}

    def check_training(self) -> None:
        """Every step was trained once, in order, on its own prompts in their order."""
        assert [i.report.step for i in self.journal.iterations] == list(range(4))
        (learner,) = self.fleet.learners
        for step, experience in enumerate(learner.trained):
            chunks = [chunk for chunk, _ in experience]
            places = [
                (chunk.step, chunk.first_prompt + i)
                for chunk in chunks
                for i in range(len(chunk.prompts))
            ]
            assert places == [(step, i) for i in range(6)]
            found = [prompt for chunk in chunks for prompt in chunk.prompts]
            assert found == list(draw(PROMPTS, 0, step, 6))


@given(seed=st.integers(0, 10**6), max_lag=st.integers(0, 2), samplers=st.integers(1, 4))
def test_every_step_is_trained_once_in_order_within_the_lag(
    seed: int, max_lag: int, samplers: int
) -> None:
    rig = Rig(seed=seed, max_lag=max_lag, samplers=samplers, scorers=2)
    assert rig.train() == 4
    rig.check_training()
    assert max(rig.lags) <= max_lag


def test_max_lag_1_samples_the_next_step_while_the_learner_is_at_work() -> None:
    rig = Rig(max_lag=1)
    rig.train()
    assert rig.lags == {0, 1}


@given(
    seed=st.integers(0, 10**6),
    max_lag=st.integers(0, 1),
    deaths=st.integers(0, ClusterConfig.max_attempts - 1),
    losses=st.integers(0, 3),
)
def test_deaths_of_samplers_and_scorers_change_nothing_that_is_trained(
    seed: int, max_lag: int, deaths: int, losses: int
) -> None:
    faults: dict[str, list[Exception]] = {
        "generate": [DIED] * deaths,
        "score": list[Exception]([DIED, LOST][:losses]),
    }
    rig = Rig(seed=seed, max_lag=max_lag, faults=faults)
    assert rig.train() == 4
    rig.check_training()
    assert sum(i.lost_rollouts for i in rig.journal.iterations) == deaths + (losses > 1)


@given(
    seed=st.integers(0, 10**6),
    order=st.sampled_from(["fifo", "uniform", "prioritised"]),
    reuse=st.integers(1, 3),
    spare=st.integers(0, 3),
    deaths=st.integers(0, 2),
)
def test_samples_are_reused_within_their_lag_and_no_more_often_than_allowed(
    seed: int, order: Any, reuse: int, spare: int, deaths: int
) -> None:
    max_lag = max(reuse - 1 + spare, 1)
    rig = Rig(
        seed=seed,
        max_lag=max_lag,
        iterations=9,
        samplers=3,
        scorers=2,
        replay=ReplayConfig(order=order, reuse=reuse),
        faults={"generate": [DIED] * deaths},
    )
    assert rig.train() == 9
    (learner,) = rig.fleet.learners
    assert [sum(len(c.prompts) for c, _ in step) for step in learner.trained] == [6] * 9
    assert all(0 <= lag <= max_lag for lag in rig.lags)
    uses = Counter(made for step in learner.trained for made in step)
    assert max(uses.values()) <= reuse
    if order == "fifo":
        rounds = [{chunk.step for chunk, _ in step} for step in learner.trained]
        assert rounds == [{step // reuse} for step in range(9)]


def test_a_learner_that_starts_within_a_round_uses_the_rest_of_it() -> None:
    """The first dies at once; its heir restores version 4, after the first of three uses of round
    1."""
    rig = Rig(
        max_lag=2, iterations=6, replay=ReplayConfig(reuse=3), faults={"step": [DIED]}, samplers=1
    )
    rig.fleet.saved.append(4)
    assert rig.train() == 6
    trained = rig.fleet.learners[-1].trained
    assert [{chunk.step for chunk, _ in step} for step in trained] == [{1}, {1}]


def hanging(rig: Rig, pool: Pool, method: str, after: int) -> None:
    """Let the first actor of a pool hang at its call number `after`."""
    peers = [pool.take() for _ in range(pool.size)]
    for peer in peers:
        pool.give(peer)
    actor, store = peers[0].actor, rig.fleet.store
    call, calls = getattr(actor, method), itertools.count()
    submit = call.remote

    def remote(*args: Any) -> Any:
        if next(calls) == after:
            store.hung.add(actor)
        return submit(*args)

    call.remote = remote


@given(
    seed=st.integers(0, 10**6),
    max_lag=st.integers(0, 2),
    method=st.sampled_from(["generate", "score"]),
)
def test_what_a_hung_process_was_to_do_is_done_by_another(
    seed: int, max_lag: int, method: str
) -> None:
    rig = Rig(seed=seed, max_lag=max_lag, samplers=3, scorers=2)
    hanging(
        rig, {"generate": rig.fleet.samplers, "score": rig.fleet.scorers}[method], method, after=3
    )
    assert rig.train() == 4
    rig.check_training()
    rig.controller.replay.check_integrity()


def test_a_process_that_stays_hung_is_killed_at_its_deadline_and_its_copy_counts_once() -> None:
    """A run long enough for the deadline of 10 s to pass; nothing is lost by then."""
    rig = Rig(samplers=2, iterations=20)
    hanging(rig, rig.fleet.samplers, "generate", after=3)
    assert rig.train() == 20
    assert rig.fleet.interrupted == ["sampler 0"]
    assert sum(i.lost_rollouts for i in rig.journal.iterations) == 0
    assert not rig.controller.stragglers._copies


def test_without_a_second_actor_a_hung_one_is_waited_for_until_its_deadline() -> None:
    rig = Rig(samplers=1)
    hanging(rig, rig.fleet.samplers, "generate", after=3)
    assert rig.train() == 4
    rig.check_training()
    assert rig.fleet.interrupted == ["sampler 0"]
    assert sum(i.lost_rollouts for i in rig.journal.iterations) == 1


def test_rollouts_whose_bytes_are_gone_are_made_again() -> None:
    rig = Rig(faults={"step": [LOST]})
    assert rig.train() == 4
    rig.check_training()
    assert sum(i.lost_rollouts for i in rig.journal.iterations) == 3


@given(seed=st.integers(0, 10**6), max_lag=st.integers(0, 2))
def test_a_dead_learner_is_started_again_from_the_newest_checkpoint(
    seed: int, max_lag: int
) -> None:
    """What was in flight when it died belongs to nobody; all is sampled anew."""
    rig = Rig(seed=seed, max_lag=max_lag, iterations=7, scorers=2)
    first = rig.fleet.learners[0]
    step = first.step.function

    def die_in_step_3(number: int, *given: Any) -> Any:
        if number == 3:
            raise DIED
        return step(number, *given)

    first.step.function = die_in_step_3
    assert rig.train() == 7
    assert [i.report.step for i in rig.journal.iterations] == [0, 1, 2, 2, 3, 4, 5, 6]
    assert all(0 <= lag <= max_lag for lag in rig.lags)


def die_before(rig: Rig, *steps: int) -> None:
    """Every learner of a rig dies at these steps, once at each where a list holds it once."""
    left = list(steps)
    replace_learner = rig.fleet.replace_learner

    def frail(learner: FakeLearner) -> None:
        step = learner.step.function

        def die_or_step(number: int, *given: Any) -> Any:
            if number in left:
                left.remove(number)
                raise DIED
            return step(number, *given)

        learner.step.function = die_or_step

    def replace_by_frail() -> None:
        replace_learner()
        frail(rig.fleet.learners[-1])

    frail(rig.fleet.learners[-1])
    rig.fleet.replace_learner = replace_by_frail  # type: ignore[method-assign]


def test_a_learner_may_die_often_as_long_as_steps_are_trained_in_between() -> None:
    rig = Rig(iterations=16)
    die_before(rig, *range(1, 15, 2))
    assert rig.train() == 16
    assert len(rig.fleet.learners) == 8


def test_a_learner_that_dies_again_and_again_at_a_step_ends_the_run() -> None:
    rig = Rig(iterations=16)
    die_before(rig, *[4] * 5)
    with pytest.raises(ConnectionError, match="the learner failed 5 times; at last, its process"):
        rig.train()


def test_checkpoints_are_written_when_due_and_at_the_end() -> None:
    rig = Rig(iterations=3)
    rig.train()
    assert rig.fleet.saved == [2, 3]


def test_the_fixed_prompts_are_played_when_due() -> None:
    rig = Rig(every=2, faults={"generate": [DIED]})
    rig.train()
    assert sorted(rig.journal.heard_at) == [2, 4]


def test_a_request_to_stop_ends_after_the_step_at_hand_with_a_checkpoint() -> None:
    rig = Rig(iterations=100, max_lag=1)
    record = rig.journal.record

    def stop_at_step_5(iteration: Iteration) -> None:
        record(iteration)
        if iteration.report.step == 5:
            rig.stop.request()

    rig.journal.record = stop_at_step_5  # type: ignore[method-assign]
    assert rig.train() == 6
    assert rig.fleet.saved[-1] == 6


@given(seed=st.integers(0, 10**6), max_lag=st.integers(0, 2))
def test_held_out_prompts_are_measured_when_due_and_nothing_is_in_flight(
    seed: int, max_lag: int
) -> None:
    guards = GuardConfig(evaluate_every=2)
    rig = Rig(seed=seed, max_lag=max_lag, every=2, guards=guards, samplers=3, scorers=2)
    assert rig.train() == 4
    assert rig.measured == [2, 4]
    rig.check_training()


def test_a_run_that_is_to_end_with_its_best_measures_the_last_step_too() -> None:
    rig = Rig(guards=GuardConfig(evaluate_every=3, restore_best=True))
    rig.train()
    assert rig.measured == [3, 4]


@given(seed=st.integers(0, 10**6), max_lag=st.integers(0, 2))
def test_a_guard_ends_after_its_step_with_a_checkpoint_and_nothing_in_flight(
    seed: int, max_lag: int
) -> None:
    guards = GuardConfig(stop=("max_skipped",), max_skipped=0)
    rig = Rig(iterations=100, seed=seed, max_lag=max_lag, scorers=2, guards=guards)
    watch = rig.journal.watch = Watch(guards)
    record = rig.journal.record

    def skip_step_5(iteration: Iteration) -> None:
        record(iteration)
        step = iteration.report.step
        watch.update(step, {"update/skipped": float(step == 5)})

    rig.journal.record = skip_step_5  # type: ignore[method-assign]
    assert rig.train() == 6
    assert rig.fleet.saved[-1] == 6
    assert not rig.fleet.pending.count("sample", "score", "learn", "save", "listen")


def test_the_audio_of_a_chunk_is_dropped_when_it_is_scored() -> None:
    """Otherwise it would pile up in the object store, which spills it to disk without a word."""
    rig = Rig()
    store, record = rig.fleet.store, rig.journal.record
    audio: list[weakref.ref[Reference]] = []
    submit = store.submit

    def submit_and_watch(actor: Any, function: Any, returns: int) -> Any:
        references = submit(actor, function, returns)
        if isinstance(actor, FakeSampler) and returns == 3:
            audio.append(weakref.ref(references[1]))
        return references

    def record_and_look(iteration: Iteration) -> None:
        record(iteration)
        gc.collect()
        assert all(reference() is None for reference in audio)

    store.submit = submit_and_watch  # type: ignore[method-assign]
    rig.journal.record = record_and_look  # type: ignore[method-assign]
    rig.train()
    assert len(audio) == 12


def test_the_seconds_of_a_step_are_those_of_its_chunks() -> None:
    rig = Rig()
    rig.train()
    seconds = rig.journal.iterations[0].seconds
    assert {k: seconds[k] for k in ("sample", "decode", "score", "learn")} == {
        "sample": 3.0,
        "decode": 1.5,
        "score": 0.75,
        "learn": 2.0,
    }
    assert rig.journal.iterations[0].replay_bytes == 24
