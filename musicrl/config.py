"""The configuration of a run: one tree of frozen dataclasses.

Each package owns its part beside the code that reads it; this module composes them, reads YAML
strictly and prints the derived numbers. It runs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from musicrl.algorithms.config import AlgorithmConfig
from musicrl.rewards.mix import RewardConfig
from musicrl.sampler.sampling import SamplingConfig
from musicrl.update import UpdateConfig


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The world that the run lives in."""

    weights: Path | None = None
    """Folder with policy, codec, embedder and judge weights (none: the shipped tiny world)."""
    policy: Path | None = None
    """Policy file to start from and to hold as KL reference (none: the one in `weights`)."""


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How much is sampled for one training step."""

    prompts_per_step: int = 16
    """Prompts of one training step."""
    samples_per_prompt: int = 4
    """Clips sampled of each prompt."""
    prompts_per_chunk: int = 4
    """Prompts of one sampling task: the unit of work, whatever the number of actors, so that the
    same rollouts come out of one actor or of many."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Processes of a run. `solo` reads only the threads and devices."""

    num_samplers: int = 2
    num_scorers: int = 1
    sampler_threads: int = 1
    """CPU threads of each sampler."""
    scorer_threads: int = 1
    learner_threads: int = 2
    sampler_gpus: float = 0.0
    """GPUs of each sampler actor (a fraction shares one)."""
    scorer_gpus: float = 0.0
    learner_gpus: float = 0.0
    max_lag: int = 0
    """Versions by which a consumed sample may be older than the learner: 0 is synchronous."""
    object_store_mb: int = 512
    """Object store of a cluster started by this run, MB."""
    task_timeout_seconds: float = 600.0
    """Deadline of one sampling, scoring or learning task."""
    address: str | None = None
    """Ray address to join (none: RAY_ADDRESS, as set by `ray job submit`, else a local cluster)."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The held-out measurement before and after training."""

    prompts: int = 160
    """Fixed held-out prompts."""
    audio_prompts: int = 4
    """Of these, the ones written as wav and to TensorBoard."""
    every: int = 0
    """Iterations between evaluations of the audio prompts during training (0: never)."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run."""

    out: Path = Path("runs/tiny")
    """Folder of the run: config.yaml, summary.json, TensorBoard events, wavs, checkpoints."""
    seed: int = 0
    iterations: int = 40
    """Training steps (policy updates)."""
    checkpoint_every: int = 10
    """Iterations between checkpoints; the newest two are kept."""
    resume: bool = False
    """Continue from the newest checkpoint in `out`."""
    model: ModelConfig = field(default_factory=ModelConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
