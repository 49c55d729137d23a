"""The sampler actor: a `RolloutWorker` in a process of its own.

It keeps one version of the weights and changes it only when a task asks for another: what was
broadcast meanwhile is at hand, all else is fetched. A restarted actor has none and fetches them with
its next task. It knows no reward and no learner.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import ray
import torch
from ray import ObjectRef
from ray.util import get_node_ip_address

from musicrl.broadcast import Address, find_kind
from musicrl.config import TrainConfig
from musicrl.device import role_device
from musicrl.evaluation.heldout import EvaluationChunk
from musicrl.listener import Listener
from musicrl.rollout import Chunk, RolloutWorker, rollout_bytes
from musicrl.types import Clips, Rollouts, Weights
from musicrl.worlds import load_world

Way = Literal["store", "broadcast"] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleReport:
    """What the controller reads of a chunk; the bytes themselves stay in the object store."""

    version: int
    """Of the weights that sampled it."""
    num_bytes: int
    """Of the rollouts."""
    seconds: Mapping[str, float]
    """Of the phases `publish` (fetching and applying weights), `sample` and `decode`."""
    way: Way = None
    """By which new weights came for it (none: they were there)."""


class SamplerActor:
    """Each task names its weights: a version, a list of one reference to them (a list, so that Ray
    passes the reference and not the bytes), and where they are broadcast, if they are."""

    def __init__(self, config: TrainConfig, name: str = "sampler") -> None:
        """`name` is what people call it."""
        torch.set_num_threads(config.cluster.sampler_threads)
        self.config, self.name = config, name
        world = load_world(config.model.weights, config.model.policy)
        device = role_device(config.cluster.sampler_gpus)
        self.worker = RolloutWorker(world, config.rollout.sampling, device=device)
        self.version: int | None = None
        self.listener: Listener | None = None

    def ping(self) -> int:
        """The process id: the actor is up."""
        return os.getpid()

    @ray.method(num_returns=3)
    def generate(
        self,
        chunk: Chunk,
        version: int,
        weights: Sequence[ObjectRef[Weights]],
        address: Address | None = None,
    ) -> tuple[Rollouts, Clips, SampleReport]:
        """Sample and decode a chunk of a training step."""
        used = self._use(version, weights, address)
        rollouts, clips = self.worker.generate(
            chunk.prompts,
            first_prompt_index=chunk.first_prompt,
            step=chunk.step,
            run_seed=self.config.seed,
            samples_per_prompt=self.config.rollout.samples_per_prompt,
            version=version,
            clip_seconds=self.config.rollout.clip_seconds,
        )
        return rollouts, clips, self._report(rollouts, version, used)

    @ray.method(num_returns=3)
    def generate_heldout(
        self,
        chunk: EvaluationChunk,
        version: int,
        weights: Sequence[ObjectRef[Weights]],
        address: Address | None = None,
    ) -> tuple[Rollouts, Clips, SampleReport]:
        """Sample and decode one clip of each held-out prompt."""
        used = self._use(version, weights, address)
        rollouts, clips = self.worker.generate_heldout(
            chunk.prompts, first=chunk.first, version=version
        )
        return rollouts, clips, self._report(rollouts, version, used)

    def _use(
        self, version: int, weights: Sequence[ObjectRef[Weights]], address: Address | None
    ) -> tuple[float, Way]:
        """Get and apply the weights of `version` unless they are applied; the seconds that it took,
        and the way."""
        self._listen(address)
        if version == self.version:
            return 0.0, None
        started = time.perf_counter()
        way: Way = "broadcast" if self._apply_broadcast(version) else "store"
        if way == "store":
            (reference,) = weights
            timeout = self.config.cluster.task_timeout_seconds
            self._apply(ray.get(reference, timeout=timeout), is_shared=True)
        return time.perf_counter() - started, way

    def _listen(self, address: Address | None) -> None:
        """Have a thread at the place where weights are broadcast; another where that is another, or
        it has ended."""
        one = self.listener
        if address is None or (one and one.is_alive() and one.address == address):
            return
        if one is not None:
            one.stop()
        cluster = self.config.cluster
        self.listener = Listener(
            self.name,
            address,
            host=self._host,
            kind=find_kind(cluster.learner_gpus, cluster.sampler_gpus),
            device=self.worker.device,
            timeout_seconds=cluster.broadcast_seconds,
        )
        self.listener.start()
        self.listener.arrived.wait(cluster.broadcast_seconds)

    @property
    def _host(self) -> str:
        host = self.config.cluster.learner_host
        return str(get_node_ip_address()) if host == "node" else host  # type: ignore[no-untyped-call]

    def _apply_broadcast(self, version: int) -> bool:
        """Whether the version had come."""
        if self.listener is None:
            return False
        with self.listener.held(version) as arrived:
            if arrived is not None:
                self._apply(arrived, is_shared=False)
            return arrived is not None

    def _apply(self, arrived: Weights, *, is_shared: bool) -> None:
        self.version = None
        self.worker.apply(arrived, is_shared=is_shared)
        self.version = arrived.version

    def _report(self, rollouts: Rollouts, version: int, used: tuple[float, Way]) -> SampleReport:
        publish, way = used
        seconds = {**self.worker.seconds, "publish": publish}
        num_bytes = rollout_bytes(rollouts)
        return SampleReport(version=version, num_bytes=num_bytes, seconds=seconds, way=way)
