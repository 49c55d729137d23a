"""Tokenised clips: the grids and window embeddings that the policy stage learns from.

Computed once for a split and kept beside the weights, so that training reads no audio. A file made
by other models or from other clips is made again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from musicrl.codecs.semantic import SemanticTokenizer
from musicrl.codecs.table import load_codec
from musicrl.embedders.mulan import MuLan
from musicrl.layout import FrameLayout
from musicrl.pretrain.progress import track
from musicrl.pretrain.world import WorldData

CODEC, EMBEDDER, SEMANTIC = MODELS = (
    "codec.safetensors",
    "embedder.safetensors",
    "semantic.safetensors",
)


class TokenData:
    """Grids int16 [clips, S, K] and window embeddings float16 [clips, M, D] of one split."""

    def __init__(self, weights: Path, data: WorldData, split: str, layout: FrameLayout) -> None:
        path = weights / f"tokens-{split}.safetensors"
        origin = origin_of(weights, data, layout)
        if not path.is_file() or stored_origin(path) != origin:
            grids, windows = tokenise(weights, data, layout)
            partial = path.with_suffix(".partial")
            save_file({"grids": grids, "windows": windows}, partial, metadata={"origin": origin})
            partial.replace(path)
        stored = load_file(path)
        self.grids, self.windows = stored["grids"], stored["windows"]

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


def origin_of(weights: Path, data: WorldData, layout: object) -> str:
    """A digest of all that the tokens were made from: the models' files, what is said of the
    clips and the layout."""
    digest = hashlib.sha256(repr(layout).encode())
    for name in MODELS:
        digest.update((weights / name).read_bytes())
    for row in data.described:
        digest.update(row.encode())
    return digest.hexdigest()


def stored_origin(path: Path) -> str | None:
    """None for a file that cannot be read: it is made again."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("origin")
    except SafetensorError:
        return None


@torch.no_grad()
def tokenise(weights: Path, data: WorldData, layout: FrameLayout) -> tuple[Tensor, Tensor]:
    """Every clip through codec, semantic tokenizer and embedder."""
    codec = load_codec(weights / CODEC)
    embedder = MuLan.from_file(weights / EMBEDDER)
    semantic = SemanticTokenizer.from_file(weights / SEMANTIC)
    grids, windows = [], []
    batches = np.array_split(np.arange(len(data)), -(-len(data) // 32))
    for batch in track(batches, description="tokenising"):
        audio = data.audio(batch)
        codes = codec.encode(audio)[:, : layout.coarse_levels]
        grid = layout.interleave(semantic.encode(audio, embedder).numpy(), codes.numpy())
        grids.append(torch.from_numpy(grid))
        windows.append(embedder.embed_windows(audio).half())
    return torch.cat(grids), torch.cat(windows)
