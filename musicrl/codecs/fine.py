"""The fine stage: codes of the coarse levels, which a policy wrote, to codes of all levels.

A parallel decoder after SoundStorm (paper.md 2.6): it fills a level at once, coarse to fine, the
tokens that it is surest of first. Reinforcement learning never changes it (paper section 3.1). The
paper does not say how it configured SoundStorm; that the coarse levels are held as they are is this
project's reading.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from musicrl.bounds import at_least
from musicrl.checkpoint import half, load_into, load_tensors, save_tensors
from musicrl.codecs.conformer import ConformerBlock
from musicrl.policies.blocks import rotations

FINE_FILE = "fine.safetensors"
"""Of a world's folder; a world without it plays the coarse levels alone."""


class FineStage(Protocol):
    """What fills the levels that a policy does not write."""

    @property
    def shape(self) -> FineShape:
        """What it reads and writes."""
        ...

    def to(self, device: torch.device) -> object:
        """Move it, in place."""
        ...

    def fill(self, semantic: Tensor, codes: Tensor) -> Tensor:
        """Semantic tokens int64 [B, S] and coarse codes int64 [B, Q', T] to codes int64 [B, Q, T],
        whose first Q' levels are the given ones."""
        ...


@dataclass(frozen=True, kw_only=True)
class FineShape:
    """What a fine stage reads and writes: given by policy, codec and semantic tokens."""

    semantic_vocab: int
    vocab_size: int
    """Codes of a level."""
    coarse_levels: int
    num_levels: int
    """With the coarse ones."""
    frames_per_step: int
    """Codec frames that share a semantic token."""

    def __post_init__(self) -> None:
        if not 1 <= self.coarse_levels < self.num_levels:
            raise ValueError(
                f"{self.coarse_levels} coarse of {self.num_levels} levels leave no fine ones"
            )

    @property
    def fine_levels(self) -> int:
        return self.num_levels - self.coarse_levels


@dataclass(frozen=True, kw_only=True)
class FineSizes:
    """Sizes of the parallel decoder, and how it decodes. SoundStorm: width 1024, 12 layers, 16
    heads, 16 iterations."""

    width: int = 192
    num_layers: int = 4
    num_heads: int = 4
    mlp_ratio: int = 4
    kernel: int = 5
    """Frames of the convolution, odd."""
    iterations: int = 16
    """Passes of the first fine level; the others take one each (SoundStorm section 4.3)."""
    temperature: float = 0.4
    """Of the draws in all passes but a level's last, which takes the likeliest (MusicLM's of its
    fine stage)."""

    def __post_init__(self) -> None:
        at_least(1, width=self.width, num_layers=self.num_layers, num_heads=self.num_heads)
        at_least(1, mlp_ratio=self.mlp_ratio, iterations=self.iterations)
        if self.width % (2 * self.num_heads):
            raise ValueError(f"width {self.width} is no multiple of 2 num_heads {self.num_heads}")
        if self.kernel < 1 or not self.kernel % 2:
            raise ValueError(f"kernel must be odd, got {self.kernel}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")


class SoundStorm(nn.Module):
    """The sum of a frame's embeddings through Conformer blocks, to one output a fine level."""

    offsets: Tensor

    def __init__(self, shape: FineShape, sizes: FineSizes) -> None:
        super().__init__()
        self.shape, self.sizes = shape, sizes
        W, V = sizes.width, shape.vocab_size
        self.semantic = nn.Embedding(shape.semantic_vocab, W)
        self.codes = nn.Embedding(shape.num_levels * (V + 1), W)
        for table in (self.semantic, self.codes):
            nn.init.normal_(table.weight, std=1 / math.sqrt(1 + shape.num_levels))
        self.blocks = nn.ModuleList(
            ConformerBlock(W, sizes.num_heads, sizes.mlp_ratio, sizes.kernel)
            for _ in range(sizes.num_layers)
        )
        self.heads = nn.Linear(W, shape.fine_levels * V)
        offsets = torch.arange(shape.num_levels)[:, None] * (V + 1)
        self.register_buffer("offsets", offsets, persistent=False)

    @property
    def mask(self) -> int:
        """The code of a cell that is not known."""
        return self.shape.vocab_size

    def forward(self, semantic: Tensor, codes: Tensor) -> Tensor:
        """Semantic int64 [B, S] and codes int64 [B, Q, T], fine cells possibly `mask`, to logits
        float32 [B, Q - Q', T, V]."""
        B, _, T = codes.shape
        repeated = semantic.repeat_interleave(self.shape.frames_per_step, dim=1)
        x = self.semantic(repeated) + self.codes(codes + self.offsets).sum(1)
        rotation = rotations(T, self.sizes.width // self.sizes.num_heads).to(x.device)
        for block in self.blocks:
            x = block(x, rotation)
        logits: Tensor = self.heads(x).view(B, T, self.shape.fine_levels, self.shape.vocab_size)
        return logits.transpose(1, 2).float()

    @torch.no_grad()
    def fill(self, semantic: Tensor, codes: Tensor) -> Tensor:
        """As `FineStage`: level by level, the first in several passes.

        A clip's draws are seeded by its own tokens: the same clip always sounds the same.
        """
        B, given, T = codes.shape
        missing = codes.new_full((B, self.shape.num_levels - given, T), self.mask)
        filled = torch.cat([codes, missing], dim=1)
        draws = [clip_generator(s, c) for s, c in zip(semantic, codes, strict=True)]
        for level in range(given, self.shape.num_levels):
            passes = self.sizes.iterations if level == given else 1
            for number in range(passes):
                logits = self(semantic, filled)[:, level - self.shape.coarse_levels]
                last = number + 1 == passes
                uniform = (
                    None if last else uniforms(draws, T, self.shape.vocab_size).to(codes.device)
                )
                kept = num_masked(T, number + 1, passes)
                filled[:, level] = refine(
                    filled[:, level],
                    logits,
                    uniform,
                    mask=self.mask,
                    kept=kept,
                    temperature=self.sizes.temperature,
                )
        return filled

    def save(self, path: Path, **facts: float) -> None:
        """Write the decoder, half precision, with `facts` (measured) beside its sizes."""
        config = {"shape": asdict(self.shape), "sizes": asdict(self.sizes), "facts": facts}
        save_tensors(path, half(self.state_dict()), kind="fine", config=config)

    @classmethod
    def from_file(cls, path: Path) -> SoundStorm:
        """The decoder of a file. Raises FileNotFoundError or ValueError naming file and tensor."""
        tensors, config = load_tensors(path, kind="fine")
        model = cls(FineShape(**config["shape"]), FineSizes(**config["sizes"]))
        load_into(model, tensors, origin=path)
        return model.eval().requires_grad_(False)


def num_masked(cells: int, done: int, passes: int) -> int:
    """Cells that stay masked after `done` of `passes`: a cosine from all to none (MaskGIT)."""
    return math.floor(cells * math.cos(math.pi / 2 * done / passes) + 1e-6)


def refine(
    known: Tensor,
    logits: Tensor,
    uniform: Tensor | None,
    *,
    mask: int,
    kept: int,
    temperature: float,
) -> Tensor:
    """One pass over a level known int64 [B, T]: its masked cells are drawn from logits [B, T, V] by
    uniform [B, T, V] in (0, 1) (none: the likeliest), and the `kept` least sure of them are masked
    again.

    How sure a cell is: the probability of what was drawn. What was known stays.
    """
    is_open = known == mask
    scaled = logits / temperature
    noise = 0.0 if uniform is None else -(-uniform.log()).log()
    drawn = (scaled + noise).argmax(-1)
    sureness = logits.softmax(-1).gather(-1, drawn[..., None])[..., 0]
    sureness = sureness.masked_fill(~is_open, torch.inf)
    made = torch.where(is_open, drawn, known)
    if kept:
        again = sureness.topk(kept, dim=-1, largest=False).indices
        made = made.scatter(-1, again, mask)
    return made


def clip_generator(semantic: Tensor, codes: Tensor) -> np.random.Generator:
    """The random stream of a clip: a digest of its semantic tokens [S] and coarse codes [Q', T]."""
    digest = hashlib.blake2b(digest_size=16)
    for tokens in (semantic, codes):
        digest.update(tokens.cpu().numpy().astype("<i8").tobytes())
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest.digest(), "little")))


def uniforms(draws: list[np.random.Generator], cells: int, vocab_size: int) -> Tensor:
    """float32 [B, T, V] in (0, 1), a clip's from its own stream."""
    rows = [draw.random((cells, vocab_size), dtype=np.float32) for draw in draws]
    return torch.from_numpy(np.stack(rows)).clamp(1e-7, 1 - 1e-7)
