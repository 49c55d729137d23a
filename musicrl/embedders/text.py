"""The text tower: words as bags of hashed character n-grams, then a small transformer.

Hashing means that any text can be embedded: a word never seen shares n-grams with known ones.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

MAX_WORDS = 40


class TextTower(nn.Module):
    """Texts to float32 [B, D], not yet normalised."""

    def __init__(self, *, num_buckets: int, width: int, num_layers: int, out: int) -> None:
        super().__init__()
        self.num_buckets = num_buckets
        self.grams = nn.EmbeddingBag(num_buckets, width, mode="mean")
        self.positions = nn.Parameter(torch.randn(MAX_WORDS, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.out = nn.Linear(width, out)

    def forward(self, texts: Sequence[str]) -> Tensor:
        rows = [split_words(text) for text in texts]
        bags = [word_grams(word, self.num_buckets) for words in rows for word in words]
        lengths = torch.tensor([len(words) for words in rows])
        offsets = torch.tensor([0, *(len(bag) for bag in bags[:-1])]).cumsum(0)
        flat = torch.tensor([gram for bag in bags for gram in bag])
        device = self.positions.device
        vectors = self.grams(flat.to(device), offsets.to(device))
        padded = torch.nn.utils.rnn.pad_sequence(
            list(vectors.split(lengths.tolist())), batch_first=True
        )
        is_pad = (torch.arange(padded.shape[1])[None] >= lengths[:, None]).to(device)
        hidden = self.layers(
            padded + self.positions[: padded.shape[1]], src_key_padding_mask=is_pad
        )
        summed = hidden.masked_fill(is_pad[..., None], 0).sum(1)
        out: Tensor = self.out(summed / lengths[:, None].to(device))
        return out


def split_words(text: str) -> list[str]:
    """Lower-case words, at most `MAX_WORDS`; a text without any is one empty word."""
    return re.findall(r"[^\W_]+", text.lower())[:MAX_WORDS] or [""]


@lru_cache(maxsize=65536)
def word_grams(word: str, num_buckets: int) -> tuple[int, ...]:
    """Buckets of the word and of its character trigrams, by CRC-32."""
    marked = f"<{word}>"
    grams = {marked, *(marked[i : i + 3] for i in range(len(marked) - 2))}
    return tuple(sorted(zlib.crc32(gram.encode()) % num_buckets for gram in grams))
