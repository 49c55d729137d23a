"""The learner: consumes the experience of one training step after another, in one process.

Numbers its steps, so that a step asked for twice is done once, and writes and reads its part of a
checkpoint. Knows nothing of where experience comes from or of who wants the weights.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from musicrl.algorithms import make_algorithm
from musicrl.allocator import keep_freed_memory
from musicrl.checkpoint import load_tensors, save_tensors
from musicrl.checkpoint_folder import read_state
from musicrl.config import TrainConfig
from musicrl.evaluation.heldout import Divergence, EvaluationChunk, divergence
from musicrl.playable import PlayableWorld
from musicrl.policies.flat import settle
from musicrl.policies.lora import Base, adapt, merged
from musicrl.policies.value import make_value_network
from musicrl.ranks import Ranks
from musicrl.rewards.mix import failures
from musicrl.run import POLICY, Run
from musicrl.types import Experience, Rollouts, Weights
from musicrl.update import PolicyUpdate

LEARNER = "learner.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one training step did."""

    step: int
    figures: Mapping[str, float]
    lags: Mapping[int, int]
    """Samples by the number of versions that they were older than the learner."""
    failed_rewards: Mapping[str, int]
    """Clips that each reward could not score."""
    seconds: Mapping[str, float]
    """Of the phases `learn` and `publish`."""
    num_tokens: int = 0
    """That were trained on."""
    missed: tuple[str, ...] = ()
    """Sentences of who missed the broadcast of its weights."""


class Learner:
    """A policy that trains. Its version is the number of training steps that it has done."""

    def __init__(
        self, world: PlayableWorld, config: TrainConfig, *, device: torch.device | None = None
    ) -> None:
        """Everything is on `device` (none: the CPU). The world's policy is the base, and is frozen;
        with adapters it is what learns, and the base is it without them."""
        keep_freed_memory()
        torch.manual_seed(config.seed)
        self.device = device or torch.device("cpu")
        self._lora = config.model.lora
        self._save_policy = world.save_policy
        self.sampling = config.rollout.sampling
        algorithm = make_algorithm(config.algorithm)
        self.base: nn.Module = world.policy.to(self.device)
        self.policy = world.policy if self._lora.rank else copy.deepcopy(world.policy)
        self.policy.requires_grad_(True)
        value = make_value_network(self.policy) if algorithm.needs_value else None
        if self._lora.rank:
            adapt(self.policy, self._lora)
            self.base = Base(self.policy)
        self.update = PolicyUpdate(
            self.policy,
            algorithm,
            self.sampling,
            config.update,
            reference=self.base,
            value=value,
        )
        self._latest: tuple[StepReport, Weights] | None = None
        is_here = self.device.type == "cpu"
        self._buffer: NDArray[np.float32] | None = settle(self.policy) if is_here else None

    @property
    def version(self) -> int:
        return self.update.version

    @property
    def stream_names(self) -> tuple[str, ...]:
        return self.policy.layout.stream_names

    def step(self, step: int, experience: Sequence[Experience]) -> tuple[StepReport, Weights]:
        """Do training step number `step`, or return again what it made if it was the latest. The
        weights are good until the next step, which writes over them.

        Raises ValueError for any other step than the next.
        """
        if self._latest is not None and self._latest[0].step == step:
            return self._latest
        if step != self.version:
            raise ValueError(f"the learner is to do step {self.version}, not step {step}")
        started = time.perf_counter()
        lags = _lags(self.version, experience)
        figures = self.update.step(experience)
        learned = time.perf_counter()
        weights = self.weights()
        seconds = {"learn": learned - started, "publish": time.perf_counter() - learned}
        report = StepReport(
            step=step,
            figures=figures,
            lags=lags,
            failed_rewards=_failures(experience),
            seconds=seconds,
            num_tokens=sum(e.rollouts.tokens.size for e in experience),
        )
        self._latest = report, weights
        return self._latest

    def share(self, ranks: Ranks) -> None:
        """Do the steps, from the first one on, as one of several ranks. Where they hold parts of
        the networks, each must do whatever one of them does."""
        self.update.share(ranks)

    def weights(self) -> Weights:
        """The current version, good until the next step."""
        weights = self.update.weights(out=self._buffer)
        self._buffer = weights.flat
        return weights

    def divergence(self, chunk: EvaluationChunk, rollouts: Rollouts) -> Divergence:
        """How far the policy is from the base on the clips that it sampled for a chunk."""
        tokens, conditions = (
            torch.tensor(array, device=self.device).long()
            for array in (rollouts.tokens, rollouts.conditions)
        )
        kept = None if rollouts.kept is None else torch.tensor(rollouts.kept, device=self.device)
        with self.update.ranks.watch():
            return divergence(
                chunk, self.policy, self.base, tokens, conditions, self.sampling, kept
            )

    def gather(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint holds: the policy's tensors, the update's, and its numbers. Where ranks
        hold parts, all of them must gather together."""
        with self.update.ranks.watch():
            policy = merged(self.policy)
        return policy, *self.update.state_dict()

    def save(self, run: Run) -> Path:
        """Write a checkpoint of the current version into the run's folder; what other ranks hold
        they `gather` meanwhile."""
        policy, tensors, numbers = self.gather()

        def write(folder: Path) -> None:
            self._save_policy(policy, folder / POLICY)
            save_tensors(folder / LEARNER, tensors, kind="learner", config={})

        state = {"learner": numbers, **self._lora_state}
        return run.save_checkpoint(self.version, state, write)

    @property
    def _lora_state(self) -> dict[str, object]:
        """What a checkpoint says of adapters, in JSON; nothing without them."""
        lora = asdict(self._lora) | {"targets": list(self._lora.targets)}
        return {"lora": lora} if self._lora.rank else {}

    def restore(self, checkpoint: Path) -> None:
        """Continue from a checkpoint. Raises ValueError when it does not fit this run."""
        tensors, _ = load_tensors(checkpoint / LEARNER, kind="learner")
        if read_state(checkpoint).get("lora") != self._lora_state.get("lora"):
            raise ValueError(f"cannot resume from {checkpoint}: it has another model.lora")
        try:
            self.update.load_state_dict(tensors, read_state(checkpoint)["learner"])
        except (KeyError, ValueError) as fault:
            raise ValueError(f"cannot resume from {checkpoint}: {fault}") from fault
        self._latest = None


def _lags(version: int, experience: Sequence[Experience]) -> dict[int, int]:
    ages = (version - int(v) for e in experience for v in e.rollouts.version)
    return dict(sorted(Counter(ages).items()))


def _failures(experience: Sequence[Experience]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for e in experience:
        total.update(failures(e.rewards))
    return dict(total)
