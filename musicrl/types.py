"""The values that travel between the parts of the system: frozen dataclasses of numpy arrays.

They know nothing of torch or of processes: numpy arrays are shared by an object store without a
copy. What comes out of the store is read-only; `torch.tensor(array)` copies, `from_numpy` aliases.

Axis legend, the only one in this project:
    B clips (samples)    S steps of the grid    K streams of a step    V vocabulary
    Q codebooks          T codec frames         N audio samples        D width
    P prompts            G samples per prompt   C conditioning tokens
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray

HALF = np.float32(0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A caption to make music for."""

    id: str
    text: str
    source: str = ""
    attributes: tuple[tuple[str, str], ...] = ()
    """(name, value) of what the caption is known to ask for, such as ("instrument", "flute")."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """Clips sampled by a policy, as grids of tokens, with what the learner needs of them."""

    prompts: tuple[Prompt, ...]
    """One per sample (B of them; the samples of one prompt repeat it)."""
    conditions: NDArray[np.int16]
    """int16 [B, C]: the conditioning tokens that the policy was given."""
    tokens: NDArray[np.int16]
    """int16 [B, S, K]."""
    logprobs: NDArray[np.float32]
    """float32 [B, S, K], nats: of each token under the exact distribution it was drawn from."""
    group: NDArray[np.int32]
    """int32 [B]: samples of one prompt in one iteration share a number."""
    seeds: NDArray[np.uint64]
    """uint64 [B]: the sample's own random stream."""
    version: NDArray[np.int64]
    """int64 [B]: version of the weights that sampled it."""
    kept: NDArray[np.uint8] | None = None
    """uint8 [B, S, K, ceil(V / 8)] where top-k cut the distribution: the tokens that were left to
    draw from, a bit each, so that the learner replays the sampler's set and not its own."""

    @property
    def num_samples(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clips:
    """Audio of B clips at one sample rate, and the tokens that it was decoded from."""

    audio: NDArray[np.float32]
    """float32 [B, N], in [-1, 1]: what is scored, of stereo clips the mean of both channels."""
    sample_rate: int
    """Hz."""
    tokens: NDArray[np.int16] | None = None
    """int16 [B, S, K]; none where the clips come from audio files."""
    side: NDArray[np.float32] | None = None
    """float32 [B, N]: half of what left has more than right; none where clips are mono."""

    @property
    def channels(self) -> NDArray[np.float32]:
        """float32 [B, channels, N]: what is heard."""
        if self.side is None:
            return self.audio[:, None]
        return np.stack([self.audio + self.side, self.audio - self.side], axis=1)


def clips_of(
    channels: NDArray[np.float32], sample_rate: int, tokens: NDArray[np.int16] | None = None
) -> Clips:
    """Clips of audio float32 [B, channels, N], one channel or two."""
    if channels.shape[1] == 1:
        return Clips(audio=channels[:, 0], sample_rate=sample_rate, tokens=tokens)
    left, right = channels[:, 0], channels[:, 1]
    return Clips(
        audio=HALF * (left + right),
        side=HALF * (left - right),
        sample_rate=sample_rate,
        tokens=tokens,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardBatch:
    """Scores of B clips: the mix that is optimised and the raw terms that it was made of."""

    total: NDArray[np.float32]
    """float32 [B]; 0 where not valid (never read there)."""
    terms: Mapping[str, NDArray[np.float32]]
    """float32 [B] each, before any normalisation; NaN where that reward failed."""
    valid: NDArray[np.bool_]
    """bool [B]: False where a reward of non-zero weight failed; such samples carry no gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """What one training step consumes: rollouts with their rewards."""

    rollouts: Rollouts
    rewards: RewardBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """One version of a model's parameters as a single buffer."""

    version: int
    flat: NDArray[np.float32]
    """float32: the tensors in the order of `index`, each at a multiple of 64 bytes."""
    index: tuple[tuple[str, tuple[int, ...]], ...]
    """(name, shape) of every tensor."""
    scale: float | None = None
    """Where the tensors are those of adapters (policies/lora.py), of their products; none: they are
    the model's own."""
    checksum: str = field(default="")
    """Hex, of `flat` and all of the above; checked before the weights are applied."""


Side = Literal["a", "b"]
"""Of a pair, as it was presented: "a" first, "b" second."""
Choice = Literal["a", "b", "none"]
"""The clip that got the trophy; "none" where the listener went on without giving one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenClip:
    """One clip as the tokens that it was decoded from."""

    id: str
    tokens: NDArray[np.int16]
    """int16 [S, K]."""
    policy: str
    """Name and digest of the policy that sampled it; never shown to a listener."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two clips of one prompt, and which of them a rater preferred (paper section 3.3)."""

    id: str
    prompt: Prompt
    clip_a: TokenClip
    clip_b: TokenClip
    choice: Choice
    heard_a: float
    """Share of the clip that was played, 0 to 1; so is `heard_b`."""
    heard_b: float
    rater: str
    """A pseudonym; opens with 'simulated-' exactly where `simulated` is set."""
    simulated: bool
    """Whether a program chose, and no person."""
    time: datetime
    """Of the choice, UTC; 1970-01-01 where it is simulated."""

    def swap(self) -> Comparison:
        """The same comparison with the clips in the other order."""
        swapped: Mapping[Choice, Choice] = {"a": "b", "b": "a", "none": "none"}
        return replace(
            self,
            clip_a=self.clip_b,
            clip_b=self.clip_a,
            heard_a=self.heard_b,
            heard_b=self.heard_a,
            choice=swapped[self.choice],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating:
    """One clip's mark, 1 (worst) to 5, by one rater (paper section 4.3)."""

    id: str
    prompt: Prompt
    clip: TokenClip
    score: int
    heard: float
    """Share of the clip that was played, 0 to 1."""
    rater: str
    """As in `Comparison`."""
    simulated: bool
    time: datetime
    """UTC."""
