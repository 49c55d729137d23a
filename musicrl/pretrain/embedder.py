"""The embedder stage: contrastive training of the two towers on clips and true captions.

The embedder also hears clips as the codec's coarse levels give them back, so that its reward knows
tempo and texture of what the policy plays, not of recordings alone. The same stage, with another
seed and front end, trains the judge, on the clips alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from musicrl.bounds import at_least
from musicrl.codecs.table import load_codec
from musicrl.embedders.mulan import MuLan, MuLanConfig
from musicrl.pretrain.attributes import INSTRUMENTS, ONSET_RATES, PEAKS, TEXTURES
from musicrl.pretrain.checkpoints import StageCheckpoint
from musicrl.pretrain.distributed import ALONE, Crew, crew_of
from musicrl.pretrain.kmeans import fit_quantizer
from musicrl.pretrain.pace import Pace
from musicrl.pretrain.world import WorldData


@dataclass(frozen=True, kw_only=True)
class EmbedderStageConfig:
    """Training of a joint embedder."""

    world: Path = Path("worlds/tiny")
    """Folder of rendered clips."""
    weights: Path = Path("worlds/tiny/weights")
    """Folder that receives KIND.safetensors."""
    kind: str = "embedder"
    """'embedder' (rewarded, conditions the policy) or 'judge' (never rewarded)."""
    model: MuLanConfig = field(default_factory=MuLanConfig)
    codec_levels: int = 4
    """Levels of weights/codec.safetensors that some clips are also heard through (0: none)."""
    codec_clips: int = 6000
    """Number of these clips."""
    codec_share: float = 0.5
    """Share of a batch's windows of these clips that is heard through the codec."""
    steps: int = 900
    batch_clips: int = 192
    learning_rate: float = 1e-3
    checkpoint_every: int = 250
    gpus: float = 0.0
    """GPUs of a process: 0 (CPU) or 1; not yet run on one."""
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, batch_clips=self.batch_clips)
        at_least(1, checkpoint_every=self.checkpoint_every)
        at_least(0, codec_levels=self.codec_levels, codec_clips=self.codec_clips)


@dataclass(frozen=True, kw_only=True)
class JudgeStageConfig(EmbedderStageConfig):
    """Training of the judge: another seed, front end and width."""

    kind: str = "judge"
    codec_levels: int = 0
    model: MuLanConfig = field(
        default_factory=lambda: MuLanConfig(
            fft_size=800, hop_size=400, num_bands=64, width=128, condition_levels=0
        )
    )
    steps: int = 450
    batch_clips: int = 128
    checkpoint_every: int = 150
    seed: int = 1000


def train_embedder(config: EmbedderStageConfig) -> dict[str, float]:
    """Train and write an embedder; resumes from its last checkpoint; returns validation figures.

    Under torchrun only the first process has figures.
    """
    with crew_of(config.gpus) as crew:
        return _train(config, crew)


def _train(config: EmbedderStageConfig, crew: Crew) -> dict[str, float]:
    torch.manual_seed(config.seed)
    data, model = WorldData(config.world, "train"), MuLan(config.model)
    mel, coded = log_mels(model, data, crew), coded_log_mels(model, data, config, crew)
    model.to(crew.device)
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=0.02)
    checkpoint = StageCheckpoint(config.weights / f".{config.kind}.resume.safetensors")
    first = checkpoint.restore(model, optimizer)
    crew.agree(first, config.kind)
    writer = crew.writer(config.weights / "tensorboard" / config.kind, first)
    pace = Pace(config.kind, crew, writer)
    for step in pace.steps(range(first, config.steps)):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * schedule(step, config.steps)
        with pace.drawing():
            windows, captions = _draw(data, mel, coded, config, step)
        own = crew.share(torch.arange(len(captions)))
        texts = [captions[i] for i in own.tolist()]
        optimizer.zero_grad()
        local = contrastive_loss(model, windows[own].to(crew.device), texts, crew)
        loss = crew.backward(local, model.parameters(), weight=len(own) / len(captions))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        writer.add_scalar("train/loss", loss, step)
        if crew.is_first and (step + 1) % config.checkpoint_every == 0:
            checkpoint.write(model, step + 1, optimizer)
    writer.close()
    if not crew.is_first:
        return {}
    model = model.cpu().eval()
    _centre(model, data, mel, coded, config)
    _fit_conditions(model, data, config)
    validation = WorldData(config.world, "validation")
    facts = measure_embedder(model, validation)
    if config.codec_levels:
        coded_facts = measure_embedder(model, validation, hear=_through_codec(config))
        facts.update({f"coded/{name}": value for name, value in coded_facts.items()})
    model.save(config.weights / f"{config.kind}.safetensors", kind=config.kind, **facts)
    checkpoint.remove()
    return facts


def schedule(step: int, steps: int, *, warmup: int = 100) -> float:
    """Linear warm-up, then half a cosine down to 2 %."""
    rise = min(1.0, (step + 1) / min(warmup, max(steps // 10, 1)))
    return rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


@torch.no_grad()
def log_mels(model: MuLan, data: WorldData, crew: Crew = ALONE) -> Tensor:
    """Log-mel of every clip, float16 [clips, bands, frames], computed once, by all processes."""
    clips = crew.share(torch.arange(len(data))).numpy()
    batches = np.array_split(clips, -(-len(clips) // 64))
    shown = crew.track(batches, description="log-mel")
    return crew.join(torch.cat([model.front(data.audio(batch)).half() for batch in shown]))[0]


@torch.no_grad()
def coded_log_mels(
    model: MuLan, data: WorldData, config: EmbedderStageConfig, crew: Crew = ALONE
) -> Tensor:
    """The same of the first clips, decoded from the codec's first levels.

    Raises FileNotFoundError when there is no codec yet.
    """
    if config.codec_levels == 0:
        return torch.zeros(0)
    hear = _through_codec(config)
    clips = crew.share(torch.arange(min(config.codec_clips, len(data)))).numpy()
    batches = np.array_split(clips, -(-len(clips) // 32))
    shown = crew.track(batches, description="log-mel through the codec")
    return crew.join(torch.cat([model.front(hear(data.audio(b))).half() for b in shown]))[0]


def _through_codec(config: EmbedderStageConfig) -> Callable[[Tensor], Tensor]:
    codec = load_codec(config.weights / "codec.safetensors")
    return lambda audio: codec.decode(codec.encode(audio)[:, : config.codec_levels])


def contrastive_loss(model: MuLan, mel: Tensor, captions: list[str], crew: Crew = ALONE) -> Tensor:
    """Symmetric cross-entropy over the batch (MuLan; InfoNCE), the mean over this process's clips:
    each is told from the clips and captions of all processes."""
    audio = F.normalize(model.audio(mel), dim=-1)
    text = F.normalize(model.text(captions), dim=-1)
    scale = model.log_scale.clamp(max=4.6).exp()
    every_audio, every_text = crew.join_with_gradient(audio), crew.join_with_gradient(text)
    target = crew.share(torch.arange(len(every_text), device=mel.device))
    of_audio = F.cross_entropy(scale * audio @ every_text.T, target)
    of_text = F.cross_entropy((scale * every_audio @ text.T).T, target)
    return (of_audio + of_text) / 2


def _draw(
    data: WorldData, mel: Tensor, coded: Tensor, config: EmbedderStageConfig, step: int
) -> tuple[Tensor, list[str]]:
    """One batch: random windows and fresh wordings, a pure function of seed and step."""
    rng = np.random.default_rng((config.seed, step))
    chosen = rng.choice(len(data), size=min(config.batch_clips, len(data)), replace=False)
    frames = round(config.model.window_seconds * config.model.sample_rate / config.model.hop_size)
    starts = rng.integers(mel.shape[2] - frames + 1, size=len(chosen))
    is_coded = (chosen < len(coded)) & (rng.random(len(chosen)) < config.codec_share)
    sources = [coded if is_one else mel for is_one in is_coded]
    windows = [
        source[i, :, s : s + frames] for source, i, s in zip(sources, chosen, starts, strict=True)
    ]
    captions = data.captions(chosen, Random(f"{config.seed}/{step}"))
    return torch.stack(windows).float(), captions


@torch.no_grad()
def _centre(
    model: MuLan, data: WorldData, mel: Tensor, coded: Tensor, config: EmbedderStageConfig
) -> None:
    draws = [_draw(data, mel, coded, config, config.steps + i) for i in range(8)]
    audio = torch.cat([F.normalize(model.audio(windows), dim=-1) for windows, _ in draws])
    text = torch.cat([F.normalize(model.text(captions), dim=-1) for _, captions in draws])
    model.audio_mean.copy_(audio.mean(0))
    model.text_mean.copy_(text.mean(0))


@torch.no_grad()
def _fit_conditions(model: MuLan, data: WorldData, config: EmbedderStageConfig) -> None:
    """Fit the conditioning codebooks on embeddings of clips alone, as MusicLM does.

    Codebooks fitted on captions too keep codes for them which the policy never meets while it
    learns from audio: prompts would then fall on rows that were never trained.
    """
    if model.config.condition_levels == 0:
        return
    rng = np.random.default_rng((config.seed, 1))
    chosen = rng.choice(len(data), size=min(4096, len(data)), replace=False)
    batches = np.array_split(chosen, -(-len(chosen) // 32))
    vectors = torch.cat([model.embed_clip(data.audio(batch)) for batch in batches])
    fit_quantizer(
        model.quantizer, lambda step: vectors, steps=60, description="conditioning codebooks"
    )


@torch.no_grad()
def measure_embedder(
    model: MuLan,
    data: WorldData,
    *,
    clips: int = 256,
    hear: Callable[[Tensor], Tensor] = lambda audio: audio,
) -> dict[str, float]:
    """Zero-shot attribute accuracy, matched and mismatched cosine, recall@10 over the clips, as
    `hear` gives their audio."""
    indices = np.arange(min(clips, len(data)))
    batches = np.array_split(indices, -(-len(indices) // 32))
    audio = torch.cat([model.embed_clip(hear(data.audio(batch))) for batch in batches])
    text = model.embed_text(data.captions(indices, Random(0), complete=True))
    scores = audio @ text.T
    rank = (scores > scores.diagonal()[:, None]).sum(1)
    facts = {
        "cosine/matched": float(scores.diagonal().mean()),
        "cosine/mismatched": float(
            (scores.sum() - scores.diagonal().sum()) / (scores.numel() - len(scores))
        ),
        "recall_at_10": float((rank < 10).float().mean()),
    }
    return {**facts, **(_zero_shot(model, audio, data, indices) if data.is_described else {})}


def _zero_shot(
    model: MuLan, audio: Tensor, data: WorldData, indices: NDArray[np.int64]
) -> dict[str, float]:
    """Accuracy of the nearest prompt to each clip's embedding [B, D], by attribute."""
    facts = {}
    choices = {
        "instrument": [f"played on {name}" for name in INSTRUMENTS],
        "tempo": [f"{name} music" for name in ONSET_RATES],
        "loudness": [f"{name} music" for name in PEAKS],
        "texture": [_TEXTURE_PROMPTS[name] for name in TEXTURES],
    }
    names = {
        "instrument": list(INSTRUMENTS),
        "tempo": list(ONSET_RATES),
        "loudness": list(PEAKS),
        "texture": list(TEXTURES),
    }
    for attribute, prompts in choices.items():
        guess = (audio @ model.embed_text(prompts).T).argmax(1).tolist()
        truth = [getattr(data.attributes[i], attribute) for i in indices]
        hits = [names[attribute][g] == t for g, t in zip(guess, truth, strict=True)]
        facts[f"zero_shot/{attribute}"] = sum(hits) / len(hits)
    return facts


_TEXTURE_PROMPTS = {
    "solo": "solo music",
    "drone": "music with a drone",
    "chords": "music with chords",
    "drums": "music with drums",
    "four-part": "music in four parts",
}
