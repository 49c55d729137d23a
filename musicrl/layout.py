"""Layouts: how token streams at different rates become one grid of S steps x K streams.

A layout owns the interleaving and its inverse, the name and the vocabulary of every stream, and
nothing else: sampler, learner and algorithms see only the grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Layout(Protocol):
    """What sampler, learner and algorithms may know of a grid."""

    @property
    def stream_names(self) -> tuple[str, ...]: ...

    @property
    def vocab_sizes(self) -> tuple[int, ...]: ...

    @property
    def num_streams(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    def to_codes(self, tokens: NDArray[np.int16]) -> NDArray[np.int16]: ...

    def cut(self, tokens: NDArray[np.int16], start: int, size: int) -> NDArray[np.int16]:
        """A part of grids [B, S, K], from step `start` on, as whole grids of `size` steps."""
        ...


@dataclass(frozen=True, kw_only=True)
class FrameLayout:
    """Frame-interleaved semantic and coarse acoustic tokens (paper section 3.1).

    A step is one semantic frame: its semantic token, then the coarse tokens of the codec frames
    that it spans, time-major and level-minor. The order and the absence of de-duplication are this
    project's choice; the paper gives neither.
    """

    semantic_vocab: int
    coarse_vocab: int
    coarse_levels: int
    codec_frames_per_step: int

    @property
    def stream_names(self) -> tuple[str, ...]:
        frames, levels = range(self.codec_frames_per_step), range(self.coarse_levels)
        return ("semantic", *(f"coarse{q + 1}.{t}" for t in frames for q in levels))

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        coarse = self.coarse_levels * self.codec_frames_per_step
        return (self.semantic_vocab, *([self.coarse_vocab] * coarse))

    @property
    def num_streams(self) -> int:
        return 1 + self.coarse_levels * self.codec_frames_per_step

    @property
    def vocab_size(self) -> int:
        """Largest vocabulary of a stream: the width V of padded logits."""
        return max(self.vocab_sizes)

    def interleave(
        self, semantic: NDArray[np.integer], codes: NDArray[np.integer]
    ) -> NDArray[np.int16]:
        """Semantic [B, S] and coarse codes [B, Q, T], T = S x frames per step, to [B, S, K].

        Raises ValueError when the lengths or the number of levels do not fit the layout.
        """
        B, S = semantic.shape
        _, Q, T = codes.shape
        if self.coarse_levels != Q or self.codec_frames_per_step * S != T:
            raise ValueError(
                f"codes of {Q} levels x {T} frames do not fit {self.coarse_levels} levels x "
                f"{self.codec_frames_per_step * S} frames ({S} semantic frames)"
            )
        coarse = codes.transpose(0, 2, 1).reshape(B, S, self.num_streams - 1)
        return np.concatenate([semantic[:, :, None], coarse], axis=2).astype(np.int16)

    def to_codes(self, tokens: NDArray[np.int16]) -> NDArray[np.int16]:
        """Grid [B, S, K] to the coarse codes [B, Q, T]."""
        B, S, _ = tokens.shape
        coarse = tokens[:, :, 1:].reshape(B, S * self.codec_frames_per_step, self.coarse_levels)
        return np.ascontiguousarray(coarse.transpose(0, 2, 1))

    def cut(self, tokens: NDArray[np.int16], start: int, size: int) -> NDArray[np.int16]:
        """Steps `start` to `start + size` of grids [B, S, K]."""
        return tokens[:, start : start + size]

    def to_semantic(self, tokens: NDArray[np.int16]) -> NDArray[np.int16]:
        """Grid [B, S, K] to the semantic tokens [B, S]."""
        return np.ascontiguousarray(tokens[:, :, 0])


@dataclass(frozen=True, kw_only=True)
class DelayedLayout:
    """Codebook k written k steps late (MusicGen's delay pattern, Copet et al. 2023, figure 1).

    With two channels, streams 2k and 2k + 1 are codebook k of left and of right, both k steps late
    (the order of MusicGen's stereo checkpoints).

        step        0   1   2   3   4        X: the special token, number `vocab`; never drawn
        codebook 0  t0  t1  t2  X   X
        codebook 1  X   t0  t1  t2  X
        codebook 2  X   X   t0  t1  t2

    T frames of K streams in C channels take S = T + K / C - 1 steps.
    """

    vocab: int
    num_codebooks: int
    """Of all channels together: the streams K."""
    channels: int = 1

    @property
    def stream_names(self) -> tuple[str, ...]:
        if self.channels == 1:
            return tuple(f"codebook{k}" for k in range(self.num_streams))
        return tuple(
            f"codebook{delay}.{'left' if k % 2 == 0 else 'right'}"
            for k, delay in enumerate(self.delays)
        )

    @property
    def delays(self) -> tuple[int, ...]:
        """Steps that each stream comes late by."""
        return tuple(k // self.channels for k in range(self.num_codebooks))

    def steps_of(self, frames: int) -> int:
        """Steps of a grid of so many frames."""
        return frames + self.delays[-1]

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        """With the special token."""
        return (self.vocab + 1,) * self.num_codebooks

    @property
    def num_streams(self) -> int:
        return self.num_codebooks

    @property
    def vocab_size(self) -> int:
        return self.vocab + 1

    @property
    def special(self) -> int:
        """The token of cells that hold no frame."""
        return self.vocab

    def interleave(self, codes: NDArray[np.integer]) -> NDArray[np.int16]:
        """Codes [B, K, T] to the grid [B, S, K]. Raises ValueError for another number of codebooks."""
        B, K, T = codes.shape
        if self.num_codebooks != K:
            raise ValueError(f"codes of {K} codebooks do not fit a layout of {self.num_codebooks}")
        grid = np.full((B, self.steps_of(T), K), self.special, dtype=np.int16)
        for k, late in enumerate(self.delays):
            grid[:, late : late + T, k] = codes[:, k]
        return grid

    def to_codes(self, tokens: NDArray[np.int16]) -> NDArray[np.int16]:
        """Grid [B, S, K] to the codes [B, K, T] of the frames that all codebooks have."""
        _, S, _ = tokens.shape
        T = S - self.delays[-1]
        late = enumerate(self.delays)
        return np.stack([tokens[:, delay : delay + T, k] for k, delay in late], axis=1)

    def cut(self, tokens: NDArray[np.int16], start: int, size: int) -> NDArray[np.int16]:
        """The frames from number `start` on that a grid of `size` steps holds, as such a grid, of
        grids [B, S, K]. Raises ValueError where it would hold no frame."""
        frames = size - self.delays[-1]
        if frames < 1:
            raise ValueError(f"{size} steps of {self.num_codebooks} codebooks hold no frame")
        return self.interleave(self.to_codes(tokens)[:, :, start : start + frames])
