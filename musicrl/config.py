"""The configuration of a run: one tree of frozen dataclasses.

Each package owns its part beside the code that reads it; this module composes them, finds presets
and files, refuses settings that contradict each other and derives numbers to print. It runs
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from musicrl.algorithms.config import AlgorithmConfig
from musicrl.bounds import at_least
from musicrl.check import check_settings
from musicrl.closest import closest
from musicrl.guards import GuardConfig
from musicrl.policies.lora import LoraConfig
from musicrl.rewards.mix import RewardConfig
from musicrl.sampler.sampling import SamplingConfig
from musicrl.settings import build, merge, read_flags, read_yaml, to_tree, to_yaml
from musicrl.update_config import UpdateConfig

PRESETS = Path(__file__).parent / "presets"
DEFAULT_PRESET = "tiny"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The world that the run lives in."""

    weights: Path | None = None
    """Folder with policy, codec, embedder and judge weights, or with a world.yaml that names a
    pretrained MusicGen; or the name of a shipped one (none: the shipped tiny world)."""
    policy: Path | None = None
    """Policy file to start from and to hold as KL reference, here or in `weights` (none:
    policy.safetensors there)."""
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How much is sampled for one training step."""

    prompts_per_step: int = 16
    """Prompts of one training step."""
    samples_per_prompt: int = 4
    """Clips sampled of each prompt."""
    clip_seconds: float | None = None
    """Length of the clips that are trained on (none: whole clips). Evaluation hears whole clips.
    A clip's first seconds decide most of what it becomes, and cost a fraction of it."""
    prompts_per_chunk: int = 4
    """Prompts of one sampling task: the unit of work, whatever the number of actors, so that the
    same rollouts come out of one actor or of many."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        _check_least(self, 1, "prompts_per_step", "samples_per_prompt", "prompts_per_chunk")
        if self.prompts_per_step % self.prompts_per_chunk:
            raise ValueError(
                f"prompts_per_step {self.prompts_per_step} is not a multiple of "
                f"prompts_per_chunk {self.prompts_per_chunk}"
            )

    @property
    def samples_per_step(self) -> int:
        return self.prompts_per_step * self.samples_per_prompt

    @property
    def chunks_per_step(self) -> int:
        """Sampling tasks of one training step."""
        return self.prompts_per_step // self.prompts_per_chunk


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Processes of a run. `solo` reads only the threads and devices."""

    num_samplers: int = 2
    num_scorers: int = 1
    sampler_threads: int = 1
    """CPU threads of each sampler."""
    scorer_threads: int = 1
    learner_threads: int = 2
    """CPU threads of each learner."""
    num_learners: int = 1
    """Learners that share every update. Ranks differ from one process in roundings alone, which
    Adam's first steps, where gradients are nothing but rounding, can make as large as its rate."""
    learner_sharding: Literal["none", "full"] = "none"
    """What several learners hold of policy, reference, value network and optimizers: none: all of
    it each, gradients are added up; full: a part of each layer, gathered while it runs (FSDP2)."""
    learner_host: str = "127.0.0.1"
    """Address that several learners listen on for each other, and learner and samplers for broadcast
    weights; on several nodes, `node`: each its own node's."""
    weights_transport: Literal["store", "collective"] = "store"
    """How samplers get new weights: store: from Ray's object store; collective: broadcast by the
    learner (gloo; nccl where all have GPUs of their own), and from the store what they missed."""
    weights_timeout_seconds: float | None = None
    """With `collective`: deadline of the answers to a broadcast, and of itself (none: 5). A sampler
    that misses it takes that version from the store."""
    sampler_gpus: float = 0.0
    """GPUs of each sampler actor (a fraction shares one)."""
    scorer_gpus: float = 0.0
    """GPUs of each scorer; judges, and rewards of other packages that cannot move, stay on the
    CPU."""
    learner_gpus: float = 0.0
    placement: Literal["pack", "spread"] = "pack"
    """Nodes of the actors: `pack` fills one after another, `spread` has samplers and scorers on as
    many as there are; learners stay together where they can. Checked before a run starts."""
    max_lag: int = 0
    """Versions by which a consumed sample may be older than the learner: 0 is synchronous."""
    object_store_mb: int = 512
    """Object store of a cluster started by this run, MB."""
    max_samplers: int | None = None
    """Samplers to grow to while the run goes on, one at a time, where the cluster has room for them
    (none: it has `num_samplers`, and fewer when nodes are gone for good)."""
    straggler_factor: float | None = 3.0
    """Times the median of its kind after which a sampling or scoring task is given to an idle actor
    too; the first answer counts, and both are the same (none: never)."""
    task_timeout_seconds: float = 600.0
    """Deadline of one sampling, scoring or learning task. A sampler or scorer that misses it is
    killed and started again; a learner's ends the run."""
    max_attempts: int = 3
    """Times that a sampler or scorer may fail at a chunk, and then at one of its prompts alone, before
    the prompt is quarantined: kept in `<out>/quarantine` and left out from then on."""
    max_quarantined: int = 8
    """Prompts of a run that may be quarantined; one more ends it, with a checkpoint."""
    address: str | None = None
    """Ray address to join (none: RAY_ADDRESS, as set by `ray job submit`, else a local cluster)."""

    def __post_init__(self) -> None:
        _check_least(self, 1, "num_samplers", "num_scorers", "num_learners")
        _check_least(self, 1, "sampler_threads", "scorer_threads", "learner_threads")
        _check_least(self, 0, "sampler_gpus", "scorer_gpus", "learner_gpus", "max_lag")
        _check_least(self, 1, "max_attempts")
        _check_least(self, 0, "max_quarantined")
        _check_least(self, 80, "object_store_mb")
        _check_shares(self, "sampler_gpus", "scorer_gpus", "learner_gpus")
        if self.max_samplers is not None and self.max_samplers < self.num_samplers:
            raise ValueError(
                f"max_samplers {self.max_samplers} is less than num_samplers {self.num_samplers}"
            )
        if self.straggler_factor is not None and not self.straggler_factor > 1:
            raise ValueError(f"straggler_factor must be above 1, got {self.straggler_factor}")
        self._check_sharding()
        self._check_transport()
        if not self.task_timeout_seconds > 0:
            raise ValueError(
                f"task_timeout_seconds must be above 0, got {self.task_timeout_seconds}"
            )

    def _check_transport(self) -> None:
        if self.weights_transport not in ("store", "collective"):
            raise ValueError(
                f"weights_transport {self.weights_transport!r} is neither store nor collective"
            )
        if not self.broadcast_seconds > 0:
            raise ValueError(
                f"weights_timeout_seconds must be above 0, got {self.weights_timeout_seconds}"
            )
        if self.weights_transport == "store" and self.weights_timeout_seconds is not None:
            raise ValueError(
                "weights_timeout_seconds is read only with weights_transport collective"
            )

    @property
    def broadcast_seconds(self) -> float:
        """Deadline of a broadcast of weights."""
        return 5.0 if self.weights_timeout_seconds is None else self.weights_timeout_seconds

    def _check_sharding(self) -> None:
        if self.learner_sharding not in ("none", "full"):
            raise ValueError(f"learner_sharding {self.learner_sharding!r} is neither none nor full")
        if self.learner_sharding == "full" and self.num_learners == 1:
            raise ValueError("learner_sharding full needs num_learners of 2 or more, got 1")
        if self.learner_sharding == "full" and 0 < self.learner_gpus < 1:
            raise ValueError(
                f"learner_sharding full needs learner_gpus of 0 or whole ones, got "
                f"{self.learner_gpus:g}: nccl has one rank on a GPU"
            )


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """What the learner does with rollouts that wait for it, where `cluster.max_lag` lets some wait.
    `solo` never reads this. None of it is in the paper, which is on-policy."""

    order: Literal["fifo", "uniform", "prioritised"] = "fifo"
    """fifo: step after step, each on the prompts drawn for it. uniform: any samples that wait.
    prioritised: those of large |advantage| more often (Schaul et al. 2016, without its weights, so
    that the gradient leans to them). What would else turn too old unused comes first."""
    reuse: int = 1
    """Training steps that train on the same sample, at most; needs a max_lag of one less, and an
    off-policy correction to be worth it."""
    priority_exponent: float = 0.6
    """0 is uniform, 1 in proportion to the advantage."""
    max_mb: float | None = None
    """Rollouts that may wait, MB: sampling waits beyond it (none: as many as there are slots)."""

    def __post_init__(self) -> None:
        _check_least(self, 1, "reuse")
        _check_least(self, 0, "priority_exponent")
        if self.order not in ("fifo", "uniform", "prioritised"):
            raise ValueError(f"replay.order {self.order!r} is none of fifo, uniform, prioritised")
        if self.max_mb is not None and not self.max_mb > 0:
            raise ValueError(f"replay.max_mb must be above 0, got {self.max_mb}")

    @property
    def max_bytes(self) -> float | None:
        return None if self.max_mb is None else self.max_mb * 1e6


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The held-out measurement before and after training."""

    prompts: int = 160
    """Fixed held-out prompts."""
    audio_prompts: int = 4
    """Of these, the ones written as wav and to TensorBoard."""
    every: int = 0
    """Iterations between evaluations of the audio prompts during training (0: never)."""

    def __post_init__(self) -> None:
        _check_least(self, 1, "prompts")
        _check_least(self, 0, "audio_prompts", "every")
        if self.audio_prompts > self.prompts:
            raise ValueError(
                f"audio_prompts {self.audio_prompts} of only {self.prompts} evaluation prompts"
            )
        if self.every and not self.audio_prompts:
            raise ValueError(f"evaluation.every {self.every} measures nothing: audio_prompts is 0")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run."""

    out: Path = Path("runs/tiny")
    """Folder of the run: config.yaml, summary.json, TensorBoard events, wavs, checkpoints."""
    seed: int = 0
    iterations: int = 40
    """Training steps (policy updates)."""
    checkpoint_every: int = 10
    """Iterations between checkpoints; the newest two are kept, and the best with
    `guards.restore_best`."""
    checkpoint_url: str | None = None
    """Where checkpoints are copied to as well, and are resumed from where `out` lacks them: any URL
    that fsspec knows (s3://bucket/run with s3fs installed, gs:// with gcsfs, file:///shared/run)."""
    archive_rollouts: bool = False
    """Keep what every training step is trained on in `<out>/rollouts`, as Parquet (archive.py)."""
    replay_from: Path | None = None
    """Folder of such an archive: train on it, step after step, and sample nothing but evaluations
    (`solo` alone). The settings of the run that made it give its weights again, bit for bit; under
    others its samples are those of another policy."""
    resume: bool = False
    """Continue from the newest checkpoint in `out`, or at `checkpoint_url`."""
    trace: int = 0
    """Updates, the first ones of this process, whose tasks are written to `<out>/trace.json` for
    chrome://tracing (`train` alone: `solo` has no tasks)."""
    model: ModelConfig = field(default_factory=ModelConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    guards: GuardConfig = field(default_factory=GuardConfig)

    def __post_init__(self) -> None:
        _check_least(self, 0, "seed", "trace")
        _check_least(self, 1, "iterations", "checkpoint_every")
        check_settings(
            algorithm=self.algorithm,
            update=self.update,
            samples_per_prompt=self.rollout.samples_per_prompt,
            max_lag=self.cluster.max_lag,
            reuse=self.replay.reuse,
            is_replayed=self.replay_from is not None,
        )
        lag, replay = self.cluster.max_lag, self.replay
        if replay.reuse > lag + 1:
            raise ValueError(
                f"replay.reuse {replay.reuse} needs cluster.max_lag {replay.reuse - 1}: a sample is "
                "a version older with every use"
            )
        if replay.order != "fifo" and not lag:
            raise ValueError(
                f"replay.order {replay.order!r} has no choice with cluster.max_lag 0: nothing waits"
            )
        if self.model.lora.rank and (self.update.parts or self.update.muon_learning_rate):
            raise ValueError(
                "model.lora.rank above 0 leaves nothing to update.parts and "
                "update.muon_learning_rate: the adapters learn, by Adam"
            )
        if self.model.lora.rank and self.cluster.learner_sharding == "full":
            raise ValueError(
                "cluster.learner_sharding full does not go with model.lora.rank above 0: adapters "
                "and their base are one network"
            )
        has_kl = self.algorithm.alpha > 0 or self.algorithm.report_kl
        if "max_kl" in self.guards.stop and not has_kl:
            raise ValueError("guards.stop max_kl needs algorithm.alpha above 0 or report_kl")


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_config(source: str | Path = DEFAULT_PRESET, flags: Sequence[str] = ()) -> TrainConfig:
    """The configuration of a preset or of a YAML file, with command-line `flags` over it.

    Raises FileNotFoundError or ValueError, in one sentence, for whatever does not fit.
    """
    config = build(TrainConfig, read_tree(source), origin=str(source))
    if not flags:
        return config
    tree = merge(to_tree(config), read_flags(TrainConfig, flags))
    return build(TrainConfig, tree, origin="command line")


def read_tree(source: str | Path, above: Sequence[str] = ()) -> dict[str, Any]:
    """The settings of a preset or of a file, over those of the preset or file that its key
    `extends` names. Raises ValueError when they extend each other (`above` extends this one)."""
    tree = read_yaml(find_settings(source))
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    line = (*above, str(source))
    if not isinstance(parent, str) or parent in line:
        raise ValueError(f"{source}: extends is {parent!r}, expected another preset or file")
    return merge(read_tree(parent, line), tree)


def find_settings(source: str | Path) -> Path:
    """The file of a preset's name; a path stays itself."""
    text = str(source)
    if Path(text).suffix in (".yaml", ".yml") or "/" in text:
        return Path(text)
    if text not in preset_names():
        raise ValueError(f"no preset {text!r}{closest(text, preset_names())}; a file ends in .yaml")
    return PRESETS / f"{text}.yaml"


def dump_yaml(config: TrainConfig) -> str:
    """The resolved configuration as YAML that `load_config` reads back."""
    return to_yaml(config)


def derived_numbers(config: TrainConfig, *, cells_per_sample: int) -> dict[str, int]:
    """What the settings amount to, for a grid of `cells_per_sample` = S x K tokens."""
    rollout, lag = config.rollout, config.cluster.max_lag
    return {
        "samples per step": rollout.samples_per_step,
        "tokens per step": rollout.samples_per_step * cells_per_sample,
        "sampling tasks per step": rollout.chunks_per_step,
        "samples in flight at most": (lag + 1) * rollout.samples_per_step,
        "samples of the run": config.iterations * rollout.samples_per_step,
    }


def _check_least(config: object, least: float, *names: str) -> None:
    at_least(least, **{name: getattr(config, name) for name in names})


def _check_shares(config: object, *names: str) -> None:
    for name in names:
        gpus = getattr(config, name)
        if gpus > 1 and gpus != round(gpus):
            raise ValueError(f"{name} must be a share of one GPU or whole ones, got {gpus:g}")
