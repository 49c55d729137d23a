"""The quality stage: the predictor of opinions learns to order clips by how much was done to them.

In the shipped world its labels are those of `degradations.py`; ratings of people replace them where
a file of them is given. It is measured with kinds of damage that are held out and with other
strengths of the rest, on clips of other tunes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from musicrl.bounds import at_least
from musicrl.closest import closest
from musicrl.pretrain.checkpoints import StageCheckpoint
from musicrl.pretrain.degradations import DEGRADATIONS, TOKENS
from musicrl.pretrain.distributed import Crew, Log, crew_of
from musicrl.pretrain.embedder import schedule
from musicrl.pretrain.graded import GradedClips, GradingConfig, make_graded
from musicrl.pretrain.opinions import measure_opinions
from musicrl.pretrain.pace import Pace
from musicrl.pretrain.ratings import read_ratings
from musicrl.pretrain.world import WorldData
from musicrl.rewards.mos import MosConfig, MosPredictor
from musicrl.rewards.quality import opinions
from musicrl.world import World

KINDS = (*DEGRADATIONS, TOKENS)
ROUGH_STRENGTHS, FINE_STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0), (0.1, 0.3, 0.5, 0.7, 0.9)
"""Strengths that are learned from, and those that are measured with."""
Batch = tuple[Tensor, Tensor, Tensor]
"""Crops, opinions and the number of each clip's source."""


@dataclass(frozen=True, kw_only=True)
class QualityStageConfig:
    """Training of the predictor of acoustic quality."""

    world: Path = Path("worlds/tiny")
    """Folder of rendered clips."""
    weights: Path = Path("worlds/tiny/weights")
    """Folder with the other weights; receives the predictor's file."""
    name: str = "quality"
    """Of the predictor, and of its file."""
    ratings: Path | None = None
    """Parquet file of real ratings, columns `audio` and `score` (1 to 5), that replace the labels
    (none: graded degradations of the world's clips)."""
    model: MosConfig = field(default_factory=MosConfig)
    held_out: tuple[str, ...] = ("pink", "highpass", "dropouts")
    """Kinds of damage that are measured with and never learned from."""
    clips: int = 1600
    """Rendered clips that are damaged to learn from."""
    coded_clips: int = 300
    """Rendered clips to learn from as fewer levels of the codec give them back."""
    prompts: int = 320
    """Captions that the policy plays, at several temperatures, to learn from (0: none)."""
    measured: int = 48
    """Clips, and captions, of the validation split to measure with."""
    steps: int = 4000
    batch_clips: int = 80
    """Clips of a step, at least: whole groups of them are drawn."""
    crop_seconds: tuple[float, float] = (1.3, 4.0)
    """Shortest and longest crop that is learned from: two thirds of the clips of 2 to 6 s that a
    policy of the tiny world plays."""
    learning_rate: float = 2e-3
    contrast_weight: float = 1.0
    """Of the error of differences between clips of one source, beside the error of opinions (0:
    none). It orders weak damage better; a pairwise logistic loss over all clips did not."""
    checkpoint_every: int = 1000
    gpus: float = 0.0
    """GPUs of a process: 0 (CPU) or 1; not yet run on one."""
    seed: int = 0

    def __post_init__(self) -> None:
        for kind in self.held_out:
            if kind not in KINDS:
                raise ValueError(f"held_out names {kind!r}{closest(kind, KINDS)}")
        if set(self.held_out) >= set(KINDS):
            raise ValueError("held_out leaves no kind of damage to learn from")
        shortest, longest = self.crop_seconds
        if not 0.2 <= shortest <= longest:
            raise ValueError(f"crop_seconds must rise from 0.2 s or more, got {self.crop_seconds}")
        at_least(1, steps=self.steps, batch_clips=self.batch_clips, measured=self.measured)
        at_least(1, checkpoint_every=self.checkpoint_every, clips=self.clips)
        at_least(0, coded_clips=self.coded_clips, prompts=self.prompts)
        at_least(0, contrast_weight=self.contrast_weight)


@dataclass(frozen=True, kw_only=True)
class QualityJudgeStageConfig(QualityStageConfig):
    """Training of the judge of quality: other clips' damage, another front end, width and seed."""

    name: str = "quality-judge"
    model: MosConfig = field(
        default_factory=lambda: MosConfig(fft_size=800, hop_size=400, num_bands=48, width=64)
    )
    steps: int = 1500
    checkpoint_every: int = 500
    seed: int = 1000


def train_quality(config: QualityStageConfig) -> dict[str, float]:
    """Train and write a predictor; resumes from its last checkpoint; returns validation figures.

    Under torchrun only the first process has figures.
    """
    with crew_of(config.gpus) as crew:
        return _train(config, crew)


def _train(config: QualityStageConfig, crew: Crew) -> dict[str, float]:
    torch.manual_seed(config.seed)
    model = MosPredictor(config.model)
    train, validation = _clips(config, model)
    check_lengths(train, model, config)
    groups = train.groups()
    model.to(crew.device)
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=0.02)
    checkpoint = StageCheckpoint(config.weights / f".{config.name}.resume.safetensors")
    first = checkpoint.restore(model, optimizer)
    crew.agree(first, config.name)
    writer = crew.writer(config.weights / "tensorboard" / config.name, first)
    pace = Pace(config.name, crew, writer)
    for step in pace.steps(range(first, config.steps)):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * schedule(step, config.steps)
        with pace.drawing():
            batch = _draw(train, groups, model, config, step)
        weight, (mel, labels, sources) = _own(batch, crew)
        error = model(mel) - labels
        losses = {"opinion": error.square().mean(), "contrast": contrast(error, sources)}
        optimizer.zero_grad()
        whole = losses["opinion"] + config.contrast_weight * losses["contrast"]
        crew.backward(whole, model.parameters(), weight=weight)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        values = {name: loss.item() for name, loss in losses.items()}
        for name, value in crew.total(values, weight=weight).items():
            writer.add_scalar(f"train/{name}", value, step)
        if crew.is_first and (step + 1) % config.checkpoint_every == 0:
            checkpoint.write(model, step + 1, optimizer)
            _report(writer, measure_quality(model, validation), step + 1)
    writer.close()
    if not crew.is_first:
        return {}
    model = model.cpu()
    facts = measure_quality(model, validation)
    model.save(config.weights / f"{config.name}.safetensors", **facts)
    checkpoint.remove()
    return facts


def _own(batch: Batch, crew: Crew) -> tuple[float, Batch]:
    """This process's share of a batch, in clips, and its clips: whole sources, numbered from 0."""
    sources = batch[2]
    own = crew.share(sources.unique())
    is_own = (sources >= own[0]) & (sources <= own[-1])
    mel, labels, numbers = (part[is_own].to(crew.device) for part in batch)
    return len(mel) / len(sources), (mel, labels, numbers - int(own[0]))


def check_lengths(graded: GradedClips, model: MosPredictor, config: QualityStageConfig) -> None:
    """Raise ValueError unless every clip is as long as the longest crop."""
    seconds = min(mel.shape[1] for mel in graded.mels) / model.frame_rate
    if seconds < config.crop_seconds[1]:
        raise ValueError(
            f"crop_seconds is {config.crop_seconds}, but a clip lasts only {seconds:.2f} s"
        )


def contrast(error: Tensor, sources: Tensor) -> Tensor:
    """Mean square of errors [B] about the mean of their own source, of sources int64 [B] 0, 1, ...

    What is left when the clips of a source are all too high or too low by the same: the errors of
    their differences, which alone a policy gradient with a baseline by prompt feels.
    """
    count = sources.bincount()
    mean = error.new_zeros(len(count)).index_add(0, sources, error) / count
    return (error - mean[sources]).square().mean()


@torch.no_grad()
def measure_quality(model: MosPredictor, graded: GradedClips) -> dict[str, float]:
    """Figures of the reward's own scores of graded clips: see `opinions.measure_opinions`."""
    model.eval()
    scores = np.concatenate([_scores(model, graded, part) for part in _by_length(graded)])
    order = np.concatenate(_by_length(graded))
    model.train()
    return measure_opinions(scores[order.argsort()], graded.grades)


def _scores(
    model: MosPredictor, graded: GradedClips, indices: NDArray[np.int64]
) -> NDArray[np.float64]:
    parts = [indices[i : i + 64] for i in range(0, len(indices), 64)]
    device = next(model.parameters()).device
    mels = (torch.stack([graded.mels[i] for i in part]).float().to(device) for part in parts)
    return torch.cat([opinions(model, mel) for mel in mels]).double().cpu().numpy()


def _by_length(graded: GradedClips) -> list[NDArray[np.int64]]:
    """The clips of each number of frames."""
    frames = np.array([mel.shape[1] for mel in graded.mels])
    return [np.flatnonzero(frames == length) for length in np.unique(frames)]


def _clips(config: QualityStageConfig, model: MosPredictor) -> tuple[GradedClips, GradedClips]:
    """What is learned from and what is measured with."""
    if config.ratings is not None:
        train, validation = (
            read_ratings(
                config.ratings,
                split,
                sample_rate=model.sample_rate,
                seconds=config.crop_seconds[1],
                listen=model.listen,
            )
            for split in ("train", "validation")
        )
        return train, validation
    world = World.load(config.weights)
    train, validation = (
        make_graded(grading, WorldData(config.world, split), world, model.listen)
        for split, grading in _gradings(config, world.codec.num_codebooks).items()
    )
    return train, validation


def _gradings(config: QualityStageConfig, levels: int) -> Mapping[str, GradingConfig]:
    """What is made of each split."""
    return {
        "train": GradingConfig(
            clips=config.clips,
            kinds=tuple(kind for kind in KINDS if kind not in config.held_out),
            kinds_per_clip=2,
            strengths=ROUGH_STRENGTHS,
            strengths_per_kind=2,
            levels=tuple(range(levels, 0, -2)),
            coded_clips=config.coded_clips,
            prompts=config.prompts,
            temperatures=(0.7, 0.85, 1.0, 1.15, 1.3, 1.45, 1.6),
            seed=config.seed,
        ),
        "validation": GradingConfig(
            clips=config.measured,
            kinds=KINDS,
            kinds_per_clip=0,
            strengths=FINE_STRENGTHS,
            strengths_per_kind=0,
            levels=tuple(range(levels, 0, -1)),
            coded_clips=config.measured,
            prompts=config.measured,
            temperatures=(0.8, 1.0, 1.2, 1.4),
            seed=config.seed + 1,
        ),
    }


def _draw(
    graded: GradedClips,
    groups: list[NDArray[np.int64]],
    model: MosPredictor,
    config: QualityStageConfig,
    step: int,
) -> Batch:
    """Crops [B, bands, frames] of some groups, their opinions [B] and the number of each's group
    int64 [B], a pure function of seed and step.

    The clips of a group are cropped at the same place, so that they differ in quality alone.
    """
    rng = np.random.default_rng((config.seed, step))
    shortest, longest = (round(s * model.frame_rate) for s in config.crop_seconds)
    frames = int(rng.integers(shortest, longest + 1))
    crops: list[Tensor] = []
    chosen: list[int] = []
    sources: list[int] = []
    for source, number in enumerate(rng.permutation(len(groups))):
        if len(chosen) >= config.batch_clips:
            break
        members = groups[number]
        start = int(rng.integers(min(graded.mels[i].shape[1] for i in members) - frames + 1))
        crops += [graded.mels[i][:, start : start + frames] for i in members]
        chosen += members.tolist()
        sources += [source] * len(members)
    return torch.stack(crops).float(), graded.opinions[chosen], torch.tensor(sources)


def _report(writer: Log, facts: Mapping[str, float], step: int) -> None:
    for name, value in facts.items():
        writer.add_scalar(name, value, step)
    means = {k: v for k, v in facts.items() if k.endswith("/mean") or k == "error"}
    print(f"step {step}: " + "  ".join(f"{k} {v:.3f}" for k, v in means.items()), flush=True)
