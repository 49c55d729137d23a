"""Tokenised clips: the grids and window embeddings that the policy stage learns from.

Computed once for a split and kept beside the weights, so that training reads no audio.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from musicrl.codecs.semantic import SemanticTokenizer
from musicrl.codecs.spectral import SpectralCodec
from musicrl.embedders.mulan import MuLan
from musicrl.layout import FrameLayout
from musicrl.pretrain.world import WorldData


class TokenData:
    """Grids int16 [clips, S, K] and window embeddings float16 [clips, M, D] of one split."""

    def __init__(self, weights: Path, data: WorldData, split: str, layout: FrameLayout) -> None:
        path = weights / f"tokens-{split}.safetensors"
        if not path.is_file():
            grids, windows = tokenise(weights, data, layout)
            partial = path.with_suffix(".partial")
            save_file({"grids": grids, "windows": windows}, partial)
            partial.replace(path)
        stored = load_file(path)
        self.grids, self.windows = stored["grids"], stored["windows"]
        if len(self.grids) != len(data):
            raise ValueError(f"{path} holds {len(self.grids)} clips, the world {len(data)}")

    def __len__(self) -> int:
        return len(self.grids)

    def embedding(self, index: Tensor, *, keep: Tensor | None = None) -> Tensor:
        """Clip embeddings float32 [B, D]: normalised means over windows.

        `keep` bool [B, M] chooses windows, an augmentation of training (none: all).
        """
        windows = self.windows[index].float()
        if keep is not None:
            windows = windows * keep[..., None]
        return F.normalize(windows.sum(1), dim=-1)


@torch.no_grad()
def tokenise(weights: Path, data: WorldData, layout: FrameLayout) -> tuple[Tensor, Tensor]:
    """Every clip through codec, semantic tokenizer and embedder."""
    codec = SpectralCodec.from_file(weights / "codec.safetensors")
    embedder = MuLan.from_file(weights / "embedder.safetensors")
    semantic = SemanticTokenizer.from_file(weights / "semantic.safetensors")
    grids, windows = [], []
    batches = np.array_split(np.arange(len(data)), -(-len(data) // 32))
    for batch in track(batches, description="tokenising"):
        audio = data.audio(batch)
        codes = codec.encode(audio)[:, : layout.coarse_levels]
        grid = layout.interleave(semantic.encode(audio, embedder).numpy(), codes.numpy())
        grids.append(torch.from_numpy(grid))
        windows.append(embedder.embed_windows(audio).half())
    return torch.cat(grids), torch.cat(windows)
