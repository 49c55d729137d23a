"""The whole algorithm in one process, without Ray: the text to read first, and the cluster's twin.

    prompts ──► sample ──► decode ──► score ──► learn ──► weights ──► (sample ...)

The sampling policy is a copy that receives the learner's weights as in the cluster, and each phase
runs with its role's number of threads, so that the result equals a Ray run at max_lag 0 bit for
bit. It does not read the cluster's other settings.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from musicrl.archive import FOLDER, Archive
from musicrl.config import TrainConfig
from musicrl.device import role_device
from musicrl.evaluation.heldout import EvaluationChunk, merge
from musicrl.journal import Hearing, Iteration, Journal, add_up, first_clips
from musicrl.learner import Learner
from musicrl.playable import PlayableWorld
from musicrl.prompts import draw
from musicrl.rollout import Chunk, RolloutWorker, chunks_of
from musicrl.run import (
    Run,
    heldout_chunks,
    is_due,
    is_measured,
    listening_chunk,
    training_prompts,
)
from musicrl.scorer import Scorer
from musicrl.stop import StopRequest
from musicrl.types import Clips, Experience, Rollouts
from musicrl.worlds import judges_of_world, load_world


def solo(config: TrainConfig) -> dict[str, Any]:
    """Train as `config` says; returns the summary that it leaves in `<out>/summary.json`."""
    if config.trace:
        raise ValueError(f"trace {config.trace}: there are no tasks to trace in one process")
    if config.replay_from is not None:
        Archive(config.replay_from).check(Run.find(config).first_step, config.iterations)
    with Run.start(config) as run:
        return _solo(config, run)


def _solo(config: TrainConfig, run: Run) -> dict[str, Any]:
    loop = Solo(config)
    with StopRequest() as stop, Journal(config, run) as journal:
        hearing = loop.evaluate(journal, stop)
        journal.evaluated("before", 0, hearing)
        if config.resume:
            loop.resume(run)
        elif hearing is not None:
            loop.keep_if_best(run, journal, hearing)
        loop.train(run, journal, stop)
        version = loop.learner.version
        if not stop.is_requested:
            loop.restore_best(run, journal)
        journal.evaluated("after", loop.learner.version, loop.evaluate(journal, stop))
        return journal.finish(version)


class Solo:
    """Sampler, scorer and learner, one after the other."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.prompts = training_prompts(config)
        self.archive = Archive(config.out / FOLDER) if config.archive_rollouts else None
        self.replayed = None if config.replay_from is None else Archive(config.replay_from)
        self.heldout = heldout_chunks(config)
        self.heard = listening_chunk(config)
        world, sampling_world = load_worlds(config)
        world.steps_of(config.rollout.clip_seconds)
        sampler, learner = (
            role_device(gpus) for gpus in (config.cluster.sampler_gpus, config.cluster.learner_gpus)
        )
        self.learner = Learner(world, config, device=learner)
        self.sampler = RolloutWorker(sampling_world, config.rollout.sampling, device=sampler)
        self.scorer = Scorer(
            world,
            config.reward,
            judges_of_world(config.model.weights),
            device=role_device(config.cluster.scorer_gpus),
        )

    def resume(self, run: Run) -> None:
        self.learner.restore(run.newest_checkpoint())
        self.sampler.apply(self.learner.weights())

    def train(self, run: Run, journal: Journal, stop: StopRequest) -> None:
        """Iterate until the last step, a guard or a request to stop; ends with a checkpoint."""
        config, first = self.config, self.learner.version
        journal.begin_training(first)
        for step in range(first, config.iterations):
            if stop.is_requested or journal.watch.stopped_by is not None:
                break
            journal.record(self.iterate(step))
            if journal.watch.stopped_by is not None:
                break
            if is_due(step + 1, config.checkpoint_every):
                self.learner.save(run)
            if is_due(step + 1, config.evaluation.every):
                _, clips = self.sample_heldout(self.heard)
                journal.heard(f"step_{step + 1:06d}", step + 1, self.heard.prompts, clips)
            if is_measured(config, step + 1):
                self.measure(run, journal, stop)
        self.learner.save(run)

    def measure(self, run: Run, journal: Journal, stop: StopRequest) -> None:
        """Measure the held-out prompts during training."""
        hearing = self.evaluate(journal, stop)
        if hearing is not None:
            journal.measured(self.learner.version, hearing.result)
            self.keep_if_best(run, journal, hearing)
        journal.begin_training(self.learner.version)

    def keep_if_best(self, run: Run, journal: Journal, hearing: Hearing) -> None:
        best = journal.find_better(self.learner.version, hearing.result)
        if best is not None:
            self.learner.save(run)
            run.keep_best(best)

    def restore_best(self, run: Run, journal: Journal) -> None:
        """Go back to the best checkpoint, where the run is to end with it."""
        checkpoint = journal.restore_best()
        if checkpoint is not None:
            self.learner.restore(checkpoint)
            self.sampler.apply(self.learner.weights())

    def iterate(self, step: int) -> Iteration:
        """One training step: draw, sample, score, learn, apply."""
        started = time.perf_counter()
        if self.replayed is None:
            experience, seconds = self.gather(step)
        else:
            experience, seconds = self.replayed.read(step), []
        with threads(self.config.cluster.learner_threads):
            report, weights = self.learner.step(step, experience)
        if self.archive is not None:
            self.archive.write(step, experience)
        seconds += [report.seconds, {"publish": self.sampler.apply(weights)}]
        wall = time.perf_counter() - started
        return Iteration(report=report, seconds=add_up(seconds), wall_seconds=wall)

    def gather(self, step: int) -> tuple[Sequence[Experience], list[Mapping[str, float]]]:
        """Experience for a training step, and the seconds of each phase, chunk by chunk."""
        rollout = self.config.rollout
        prompts = draw(self.prompts, self.config.seed, step, rollout.prompts_per_step)
        experience, seconds = [], list[Mapping[str, float]]()
        for chunk in chunks_of(step, prompts, size=rollout.prompts_per_chunk):
            rollouts, clips = self.sample(chunk)
            with threads(self.config.cluster.scorer_threads):
                rewards = self.scorer.score(rollouts.prompts, clips)
            seconds += [self.sampler.seconds, {"score": self.scorer.seconds}]
            experience.append(Experience(rollouts=rollouts, rewards=rewards))
        return experience, seconds

    def sample(self, chunk: Chunk) -> tuple[Rollouts, Clips]:
        with threads(self.config.cluster.sampler_threads):
            return self.sampler.generate(
                chunk.prompts,
                first_prompt_index=chunk.first_prompt,
                step=chunk.step,
                run_seed=self.config.seed,
                samples_per_prompt=self.config.rollout.samples_per_prompt,
                version=self.learner.version,
                clip_seconds=self.config.rollout.clip_seconds,
            )

    def evaluate(self, journal: Journal, stop: StopRequest) -> Hearing | None:
        """Measure the policy on the held-out prompts; None when asked to stop."""
        if stop.is_requested:
            return None
        journal.display.begin("evaluating", len(self.heldout))
        scores, divergences, clips = [], [], []
        for chunk in self.heldout:
            if stop.is_requested:
                return None
            rollouts, audio = self.sample_heldout(chunk)
            with threads(self.config.cluster.scorer_threads):
                scores.append(self.scorer.evaluate(chunk, audio))
            with threads(self.config.cluster.learner_threads):
                divergences.append(self.learner.divergence(chunk, rollouts))
            clips.append(audio)
            journal.display.advance()
        result = merge(scores, divergences, self.learner.stream_names)
        prompts = self.heard.prompts
        return Hearing(result=result, prompts=prompts, clips=first_clips(clips, prompts))

    def sample_heldout(self, chunk: EvaluationChunk) -> tuple[Rollouts, Clips]:
        with threads(self.config.cluster.sampler_threads):
            return self.sampler.generate_heldout(
                chunk.prompts, first=chunk.first, version=self.learner.version
            )


def load_worlds(config: TrainConfig) -> tuple[PlayableWorld, PlayableWorld]:
    """The world twice, as the learner's process and the samplers' have one each."""
    model = config.model
    return load_world(model.weights, model.policy), load_world(model.weights, model.policy)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with the CPU threads of a role: sums of floats depend on their number."""
    previous = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(previous)
