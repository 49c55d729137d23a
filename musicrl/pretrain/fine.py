"""The fine stage's training: masked codes of the levels that a policy does not write.

SoundStorm section 3: one level of each clip is masked in part, all finer ones wholly, and the masked
cells of that level are to be found. Coarse levels are never masked: the policy writes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from musicrl.bounds import at_least
from musicrl.codecs.base import Codec
from musicrl.codecs.fine import FINE_FILE, FineShape, FineSizes, SoundStorm
from musicrl.codecs.semantic import SemanticTokenizer
from musicrl.codecs.table import load_codec
from musicrl.evaluation.reconstruction import chroma_correlation, log_spectral_distance
from musicrl.pretrain.checkpoints import StageCheckpoint
from musicrl.pretrain.codes import CodeData
from musicrl.pretrain.distributed import Crew, crew_of
from musicrl.pretrain.embedder import schedule
from musicrl.pretrain.pace import Pace
from musicrl.pretrain.tokens import CODEC, SEMANTIC
from musicrl.pretrain.world import WorldData


@dataclass(frozen=True, kw_only=True)
class FineStageConfig:
    """Training of the fine stage."""

    world: Path = Path("worlds/tiny")
    """Folder of rendered clips."""
    weights: Path = Path("worlds/tiny/weights")
    """Folder with codec, embedder and semantic tokens; receives fine.safetensors, after which the
    world plays all levels."""
    coarse_levels: int = 4
    """Levels that the policy writes."""
    model: FineSizes = field(default_factory=FineSizes)
    steps: int = 3000
    batch_clips: int = 24
    learning_rate: float = 1e-3
    prompted: float = 0.0
    """Share of clips whose beginning, of random length, is not masked, as in SoundStorm: wanted
    where clips are continued."""
    measured: int = 96
    """Validation clips to measure with."""
    checkpoint_every: int = 250
    gpus: float = 0.0
    """GPUs of a process: 0 (CPU) or 1; not yet run on one."""
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, batch_clips=self.batch_clips, measured=self.measured)
        at_least(1, checkpoint_every=self.checkpoint_every, coarse_levels=self.coarse_levels)
        if not 0 <= self.prompted <= 1:
            raise ValueError(f"prompted must be 0 to 1, got {self.prompted}")


def train_fine(config: FineStageConfig) -> dict[str, float]:
    """Train and write the decoder; resumes from its last checkpoint; returns validation figures.

    Under torchrun only the first process has figures. Raises ValueError when the codec has no levels
    beside the coarse ones.
    """
    with crew_of(config.gpus) as crew:
        return _train(config, crew)


def _train(config: FineStageConfig, crew: Crew) -> dict[str, float]:
    codec, device = load_codec(config.weights / CODEC), crew.device
    world = {split: WorldData(config.world, split) for split in ("train", "validation")}
    with crew.in_turn():
        train, validation = (CodeData(config.weights, data, s) for s, data in world.items())
    shape = shape_of(config, codec, train)
    torch.manual_seed(config.seed)  # here: reading models draws random numbers
    model = SoundStorm(shape, config.model).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=0.05)
    checkpoint = StageCheckpoint(config.weights / ".fine.resume.safetensors")
    first = checkpoint.restore(model, optimizer)
    crew.agree(first, "fine")
    writer = crew.writer(config.weights / "tensorboard" / "fine", first)
    pace = Pace("fine", crew, writer)
    for step in pace.steps(range(first, config.steps)):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * schedule(step, config.steps)
        with pace.drawing():
            semantic, codes, whole = _draw(train, model, config, step)
        masking = Masking(*(crew.share(part).to(device) for part in whole))
        rows = crew.share(semantic).to(device), crew.share(codes).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            loss = masked_loss(model, *rows, masking)
        optimizer.zero_grad()
        weight = float(masking.is_target.sum()) / max(float(whole.is_target.sum()), 1.0)
        nll = crew.backward(loss, model.parameters(), weight=weight)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        writer.add_scalar("train/nll", nll, step)
        if crew.is_first and (step + 1) % config.checkpoint_every == 0:
            checkpoint.write(model, step + 1, optimizer)
    writer.close()
    if not crew.is_first:
        return {}
    model = model.cpu().eval()
    facts = measure_fine(model, codec, validation, world["validation"], config.measured)
    model.save(config.weights / FINE_FILE, **facts)
    checkpoint.remove()
    return facts


def shape_of(config: FineStageConfig, codec: Codec, data: CodeData) -> FineShape:
    """What the stage reads and writes. Raises ValueError where no fine levels are left."""
    tokenizer = SemanticTokenizer.from_file(config.weights / SEMANTIC)
    return FineShape(
        semantic_vocab=tokenizer.config.vocab_size,
        vocab_size=codec.vocab_size,
        coarse_levels=config.coarse_levels,
        num_levels=codec.num_codebooks,
        frames_per_step=data.codes.shape[2] // data.semantic.shape[1],
    )


class Masking(NamedTuple):
    """What is hidden of a batch."""

    level: Tensor
    """int64 [B]: the level of each clip that is learned."""
    boundary: Tensor
    """int64 [B]: frames at the beginning of which nothing is hidden."""
    is_target: Tensor
    """bool [B, T]: cells of the level that are hidden, and to be found."""


def masked_loss(model: SoundStorm, semantic: Tensor, codes: Tensor, masking: Masking) -> Tensor:
    """Mean NLL, nats, of the hidden cells of each clip's level."""
    clips = torch.arange(len(codes), device=codes.device)
    hidden = hide(codes, masking, mask=model.mask)
    logits = model(semantic, hidden)[clips, masking.level - model.shape.coarse_levels]
    wanted, is_target = codes[clips, masking.level], masking.is_target
    nll = F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")
    return (nll * is_target).sum() / is_target.sum().clamp(min=1)


def hide(codes: Tensor, masking: Masking, *, mask: int) -> Tensor:
    """Codes int64 [B, Q, T] with `mask` in the targets of each clip's level, and in all cells of finer
    levels from its boundary on (SoundStorm section 3)."""
    levels, frames = (torch.arange(size, device=codes.device) for size in codes.shape[1:])
    own = masking.level[:, None, None]
    depth = levels[None, :, None]
    is_open = (frames[None] >= masking.boundary[:, None])[:, None]
    is_hidden = (depth == own) & masking.is_target[:, None] | (depth > own) & is_open
    return codes.masked_fill(is_hidden, mask)


def _draw(
    data: CodeData, model: SoundStorm, config: FineStageConfig, step: int
) -> tuple[Tensor, Tensor, Masking]:
    """Semantic tokens, codes and what is hidden of one batch, a pure function of seed and step."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    index = torch.randint(len(data), (config.batch_clips,), generator=generator)
    semantic, codes = data.of(index)
    masking = draw_masking(
        codes.shape, model.shape.coarse_levels, generator, prompted=config.prompted
    )
    return semantic, codes, masking


def draw_masking(
    size: Sequence[int], coarse_levels: int, generator: torch.Generator, *, prompted: float
) -> Masking:
    """For codes [B, Q, T]: a fine level, alike for all; a share of cosines of its cells; and in the
    share `prompted` of clips a beginning of 0 .. T - 1 frames that is shown."""
    B, Q, T = size
    level = torch.randint(coarse_levels, Q, (B,), generator=generator)
    angle = torch.rand(B, generator=generator) * math.pi / 2
    is_drawn = torch.rand(B, T, generator=generator) < angle.cos()[:, None]
    boundary = torch.randint(T, (B,), generator=generator)
    boundary[torch.rand(B, generator=generator) >= prompted] = 0
    return Masking(level, boundary, is_drawn & (torch.arange(T) >= boundary[:, None]))


@torch.no_grad()
def measure_fine(
    model: SoundStorm, codec: Codec, data: CodeData, clips: WorldData, measured: int
) -> dict[str, float]:
    """NLL of each fine level, wholly masked under the true ones below it, nats a cell; and what
    clips sound like from their true coarse levels, those filled, and all true levels (`ideal`)."""
    index = torch.arange(min(measured, len(data)))
    facts = {
        f"nll/level{level + 1}": _mean(
            [_nll(model, *data.of(part), level) for part in index.split(16)]
        )
        for level in range(model.shape.coarse_levels, model.shape.num_levels)
    }
    heard: dict[str, list[Tensor]] = {}
    for part in index.split(16):
        semantic, codes = data.of(part)
        coarse, audio = codes[:, : model.shape.coarse_levels], clips.audio(part.numpy())
        filled = model.fill(semantic, coarse)
        for name, chosen in {"coarse": coarse, "filled": filled, "ideal": codes}.items():
            rebuilt = codec.decode(chosen)
            distance = log_spectral_distance(audio, rebuilt, codec.sample_rate)
            correlation = chroma_correlation(audio, rebuilt, codec.sample_rate)
            heard.setdefault(f"log_spectral_distance/{name}", []).append(distance)
            heard.setdefault(f"chroma_correlation/{name}", []).append(correlation)
    return {**facts, **{name: _mean(parts) for name, parts in heard.items()}}


def _nll(model: SoundStorm, semantic: Tensor, codes: Tensor, level: int) -> Tensor:
    """Mean NLL [B] of a level that is wholly masked."""
    B, _, T = codes.shape
    all_hidden = Masking(
        torch.full((B,), level), torch.zeros(B), torch.ones(B, T, dtype=torch.bool)
    )
    hidden = hide(codes, all_hidden, mask=model.mask)
    logits = model(semantic, hidden)[:, level - model.shape.coarse_levels]
    nll: Tensor = F.cross_entropy(logits.transpose(1, 2), codes[:, level], reduction="none")
    return nll.mean(1)


def _mean(parts: list[Tensor]) -> float:
    return float(torch.cat(parts).mean())
