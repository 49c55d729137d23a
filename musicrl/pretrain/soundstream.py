"""The soundstream stage: the paper's codec, learned from clips against discriminators.

The tiny world uses the spectral codec; this one wants a GPU and hours. The same code trains both
sizes. On a GPU it has not been run yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from musicrl.bounds import at_least
from musicrl.codecs.soundstream import SoundStream, SoundStreamConfig
from musicrl.pretrain.checkpoints import StageCheckpoint
from musicrl.pretrain.codec import measure_codec
from musicrl.pretrain.discriminators import (
    DiscriminatorConfig,
    Discriminators,
    adversarial_loss,
    discriminator_loss,
    feature_loss,
)
from musicrl.pretrain.distributed import ALONE, Crew, crew_of
from musicrl.pretrain.pace import Pace
from musicrl.pretrain.quantizing import MovingAverages, draw_levels
from musicrl.pretrain.spectral_loss import SCALES, SpectralLoss
from musicrl.pretrain.world import WorldData


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Of the generator's losses; the first three are SoundStream's (section III.E)."""

    adversarial: float = 1.0
    feature: float = 100.0
    reconstruction: float = 1.0
    commitment: float = 1.0
    """This project's choice."""


@dataclass(frozen=True, kw_only=True)
class SoundStreamStageConfig:
    """Training of SoundStream."""

    world: Path = Path("worlds/tiny")
    """Folder of rendered clips, of the codec's sample rate."""
    weights: Path = Path("worlds/tiny/weights")
    """Folder that receives NAME.safetensors."""
    name: str = "soundstream"
    """Of the file, without .safetensors; a world plays through the one that is named `codec`."""
    codec: SoundStreamConfig = field(default_factory=SoundStreamConfig)
    discriminators: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    coarse_levels: int = 4
    """Levels that a policy will write: measured beside all of them."""
    measured: int = 96
    """Validation clips to measure with."""
    steps: int = 200_000
    batch_clips: int = 64
    crop_seconds: float = 2.0
    """Length of the crops that are learned from; a batch is to have several times two frames for
    each code of a level, below which codes count as dead."""
    learning_rate: float = 1e-4
    """Adam's, of both sides."""
    checkpoint_every: int = 1000
    gpus: float = 0.0
    """GPUs of a process: 0 (CPU) or 1."""
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, batch_clips=self.batch_clips, measured=self.measured)
        at_least(1, checkpoint_every=self.checkpoint_every)
        if self.crop_seconds * self.codec.sample_rate < max(SCALES):
            raise ValueError(
                f"crop_seconds must be {max(SCALES)} samples or more, got {self.crop_seconds}"
            )


class Players(nn.Module):
    """All that is learned, and the averages behind the codebooks: what a checkpoint holds."""

    def __init__(self, config: SoundStreamStageConfig) -> None:
        super().__init__()
        self.codec = SoundStream(config.codec)
        self.averages = MovingAverages(self.codec.quantizer)
        self.discriminators = Discriminators(config.discriminators)


def train_soundstream(config: SoundStreamStageConfig) -> dict[str, float]:
    """Train and write the codec; resumes from its last checkpoint; returns validation figures.

    Under torchrun only the first process has figures. Raises ValueError when the clips are of another
    sample rate or shorter than a crop.
    """
    with crew_of(config.gpus) as crew:
        return _train(config, crew)


def _train(config: SoundStreamStageConfig, crew: Crew) -> dict[str, float]:
    torch.manual_seed(config.seed)
    data, device = WorldData(config.world, "train"), crew.device
    check_clips(data, config)
    players = Players(config).to(device)
    rebuild = SpectralLoss(config.codec.sample_rate).to(device)
    optimizers = _optimizers(players, config.learning_rate)
    checkpoint = StageCheckpoint(config.weights / f".{config.name}.resume.safetensors")
    first = checkpoint.restore(players, *optimizers)
    crew.agree(first, config.name)
    writer = crew.writer(config.weights / "tensorboard" / config.name, first)
    pace = Pace(config.name, crew, writer)
    for step in pace.steps(range(first, config.steps)):
        with pace.drawing():
            audio, levels, generator = _draw(data, config, step, crew)
        losses = update(
            players,
            rebuild,
            optimizers,
            audio.to(device),
            levels.to(device),
            generator,
            config.loss,
            crew,
            len(audio) / config.batch_clips,
        )
        for name, value in losses.items():
            writer.add_scalar(f"train/{name}", value, step)
        if crew.is_first and (step + 1) % config.checkpoint_every == 0:
            checkpoint.write(players, step + 1, *optimizers)
    writer.close()
    if not crew.is_first:
        return {}
    codec = players.codec.cpu().eval()
    facts = measure_codec(
        codec,
        WorldData(config.world, "validation"),
        config.coarse_levels,
        clips=config.measured,
    )
    codec.save(config.weights / f"{config.name}.safetensors", **facts)
    checkpoint.remove()
    return facts


def check_clips(data: WorldData, config: SoundStreamStageConfig) -> None:
    """Raise ValueError unless crops can be taken of the clips."""
    wanted = config.codec.sample_rate
    if data.sample_rate != wanted:
        raise ValueError(
            f"{config.world} holds clips of {data.sample_rate} Hz, the codec is of {wanted} Hz: "
            f"render them with musicrl pretrain world --sample-rate {wanted}"
        )
    if crop_size(config) > data.num_samples:
        seconds = data.num_samples / data.sample_rate
        raise ValueError(f"crop_seconds is {config.crop_seconds}, a clip lasts {seconds:g} s")


def crop_size(config: SoundStreamStageConfig) -> int:
    """Samples of a crop: whole frames."""
    frame = config.codec.frame_size
    return round(config.crop_seconds * config.codec.sample_rate) // frame * frame


def update(
    players: Players,
    rebuild: SpectralLoss,
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
    audio: Tensor,
    levels: Tensor,
    generator: torch.Generator,
    weights: LossWeights,
    crew: Crew = ALONE,
    weight: float = 1.0,
) -> Mapping[str, float]:
    """One step of both sides on this process's audio [B, N], its clips through their levels int64
    [B], which are `weight` of the whole batch; the whole batch's losses before the step."""
    codec, discriminators = players.codec, players.discriminators
    quantised = players.averages.quantise(
        codec.quantizer, codec.embed(audio), levels, generator, crew
    )
    rebuilt = codec.synthesise(quantised.vectors)
    real, made = discriminators(audio), discriminators(rebuilt)
    losses = {
        "adversarial": adversarial_loss(made),
        "feature": feature_loss(real, made),
        "reconstruction": rebuild(audio, rebuilt),
        "commitment": quantised.commitment,
    }
    shares = asdict(weights)
    total = torch.stack([shares[name] * loss for name, loss in losses.items()]).sum()
    _step(optimizers[0], total, crew, weight)
    judged = discriminator_loss(discriminators(audio), discriminators(rebuilt.detach()))
    _step(optimizers[1], judged, crew, weight)
    values = {name: loss.item() for name, loss in losses.items()}
    values = crew.total({**values, "discriminator": judged.item()}, weight=weight)
    return {**values, "codes_replaced": float(quantised.replaced)}


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, crew: Crew, weight: float) -> None:
    """Gradients that the other side's loss left here are dropped first."""
    optimizer.zero_grad()
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    crew.backward(loss, own, weight=weight)
    optimizer.step()


def _optimizers(
    players: Players, learning_rate: float
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """The codec's and the discriminators'."""
    betas = (0.5, 0.9)
    return (
        torch.optim.Adam(players.codec.parameters(), learning_rate, betas=betas),
        torch.optim.Adam(players.discriminators.parameters(), learning_rate, betas=betas),
    )


def _draw(
    data: WorldData, config: SoundStreamStageConfig, step: int, crew: Crew = ALONE
) -> tuple[Tensor, Tensor, torch.Generator]:
    """This process's crops [B, N] of a batch, the levels int64 [B] of each, and the generator of the
    codes that are replaced: a pure function of seed and step."""
    rng = np.random.default_rng((config.seed, step))
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    clips = rng.integers(len(data), size=config.batch_clips)
    size = crop_size(config)
    starts = rng.integers(data.num_samples - size + 1, size=config.batch_clips)
    levels = draw_levels(len(clips), config.codec.num_codebooks, generator)
    own = crew.share(torch.arange(len(clips))).numpy()
    rows = zip(data.audio(clips[own]), starts[own].tolist(), strict=True)
    audio = torch.stack([clip[start : start + size] for clip, start in rows])
    return audio, crew.share(levels), generator
