"""Codes of all levels of clips, which the fine stage learns from; the policy's grids hold the coarse.

Computed once for a split and kept beside the weights; made again when a model or a clip changed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from musicrl.codecs.semantic import SemanticTokenizer
from musicrl.codecs.table import load_codec
from musicrl.embedders.mulan import MuLan
from musicrl.pretrain.progress import track
from musicrl.pretrain.tokens import CODEC, EMBEDDER, SEMANTIC, origin_of, stored_origin
from musicrl.pretrain.world import WorldData


class CodeData:
    """Semantic tokens int16 [clips, S] and codes int16 [clips, Q, T] of one split."""

    def __init__(self, weights: Path, data: WorldData, split: str) -> None:
        path = weights / f"tokens-all-levels-{split}.safetensors"
        origin = origin_of(weights, data, "all levels")
        if not path.is_file() or stored_origin(path) != origin:
            semantic, codes = encode(weights, data)
            partial = path.with_suffix(".partial")
            save_file({"semantic": semantic, "codes": codes}, partial, metadata={"origin": origin})
            partial.replace(path)
        stored = load_file(path)
        self.semantic, self.codes = stored["semantic"], stored["codes"]

    def __len__(self) -> int:
        return len(self.codes)

    def of(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Semantic int64 [B, S] and codes int64 [B, Q, T] of clips int64 [B]."""
        return self.semantic[index].long(), self.codes[index].long()


@torch.no_grad()
def encode(weights: Path, data: WorldData) -> tuple[Tensor, Tensor]:
    """Every clip through codec and semantic tokenizer."""
    codec = load_codec(weights / CODEC)
    embedder = MuLan.from_file(weights / EMBEDDER)
    tokenizer = SemanticTokenizer.from_file(weights / SEMANTIC)
    semantic, codes = [], []
    batches = np.array_split(np.arange(len(data)), -(-len(data) // 32))
    for batch in track(batches, description="encoding all levels"):
        audio = data.audio(batch)
        semantic.append(tokenizer.encode(audio, embedder).short())
        codes.append(codec.encode(audio).short())
    return torch.cat(semantic), torch.cat(codes)
