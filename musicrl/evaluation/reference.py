"""Real clips, and the sets that a policy's distances are read beside.

The first half of the real clips is what all distances are to. The second half, as it is, says what
two sets of real music differ by (they may share tunes); the same through the codec, what no policy
of its tokens can undo. Where the clips come from is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from musicrl.audio import resample
from musicrl.codecs.base import Codec
from musicrl.evaluation.clipset import ClipSet, describe, join
from musicrl.evaluation.ears import Ears
from musicrl.evaluation.figures import Figure
from musicrl.evaluation.heldout import ChunkScores, EvaluationResult, merge
from musicrl.evaluation.reconstruction import REAL, codec_figures
from musicrl.evaluation.unseen import Combination
from musicrl.playable import PlayableWorld
from musicrl.prompts import attribute
from musicrl.rewards.base import Reward
from musicrl.types import Clips, Prompt
from musicrl.world import DECODE_CLIPS

RECONSTRUCTION = "reconstruction"


@dataclass(frozen=True, slots=True, kw_only=True)
class RealClips:
    """Clips that nobody sampled, and what is true of each."""

    clips: Clips
    prompts: tuple[Prompt, ...]
    """A caption of each, with its attributes where they are known."""
    trained: frozenset[Combination] = frozenset()
    """The attributes of the clips that the world's models learned from; empty where not known."""

    @property
    def solo(self) -> NDArray[np.bool_]:
        """Which are known to be of one voice, bool [B]."""
        return np.array([attribute(p, "texture") == "solo" for p in self.prompts], bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """What is measured of real clips alone."""

    first: ClipSet
    """What distances are to."""
    beside: dict[str, ClipSet]
    """The rows beside a policy's."""
    judged: dict[str, EvaluationResult]
    """What the judges say of the same rows, each clip by its own caption."""
    second: RealClips
    """The clips of those rows, at the world's rate and length."""
    codec: dict[str, dict[str, Figure]]
    """What the codec keeps of the second half, by number of levels (`codec_figures`)."""


def measure_references(
    real: RealClips,
    world: PlayableWorld,
    ears: Ears,
    judges: Sequence[Reward] = (),
    *,
    size: int,
    pitch: bool = False,
) -> References:
    """Each row of at most `size` clips, scored by `judges`; `pitch` asks for that of solos through
    the codec.

    Raises ValueError when there are fewer than four real clips, or shorter ones than the policy's.
    """
    half = min(size, len(real.clips.audio) // 2)
    if half < 2:
        raise ValueError(f"distances need four real clips or more, got {len(real.clips.audio)}")
    fitted = fit(real.clips, world)
    first, second = _rows(fitted, 0, half), _rows(fitted, half, 2 * half)
    beside = {REAL: second, RECONSTRUCTION: reconstruct(second, world)}
    levels = sorted({world.written_levels, world.codec.num_codebooks})
    known = RealClips(clips=second, prompts=real.prompts[half : 2 * half])
    heard = {name: _hear(clips, known.prompts, ears, judges) for name, clips in beside.items()}
    return References(
        first=describe_all(first, ears),
        beside={name: clips for name, (clips, _) in heard.items()},
        judged={name: result for name, (_, result) in heard.items()},
        second=known,
        codec=codec_figures(world.codec, second.audio, known.solo, levels, pitch=pitch),
    )


def fit(clips: Clips, world: PlayableWorld) -> Clips:
    """Clips at the rate and the length of the world's policy; longer ones are cut.

    Raises ValueError when they are shorter.
    """
    size = round(world.clip_seconds * world.sample_rate)
    audio = resample(clips.audio, clips.sample_rate, world.sample_rate)
    if audio.shape[1] < size:
        seconds = audio.shape[1] / world.sample_rate
        raise ValueError(
            f"the real clips are of {seconds:g} s, those of the policy of {world.clip_seconds:g} s"
        )
    return Clips(audio=audio[:, :size], sample_rate=world.sample_rate)


def at_codec(real: RealClips, codec: Codec) -> RealClips:
    """Clips at a codec's rate, cut to whole frames of it."""
    audio = resample(real.clips.audio, real.clips.sample_rate, codec.sample_rate)
    whole = audio.shape[1] // codec.frame_size * codec.frame_size
    return replace(real, clips=Clips(audio=audio[:, :whole], sample_rate=codec.sample_rate))


@torch.inference_mode()
def reconstruct(clips: Clips, world: PlayableWorld) -> Clips:
    """Clips through the codec and back, at the levels that the policy writes."""
    levels = world.written_levels
    parts = torch.tensor(clips.audio).split(DECODE_CLIPS)
    audio = [world.codec.decode(world.codec.encode(part)[:, :levels]) for part in parts]
    return Clips(audio=torch.cat(audio).numpy(), sample_rate=clips.sample_rate)


def describe_all(clips: Clips, ears: Ears) -> ClipSet:
    """`describe`, a few clips at a time."""
    return join([describe(part, ears) for part in _shown(clips)])


def _hear(
    clips: Clips, prompts: Sequence[Prompt], ears: Ears, judges: Sequence[Reward]
) -> tuple[ClipSet, EvaluationResult]:
    """The set, and what judges say of its clips for their prompts; a few clips at a time, as the
    tagger remembers the latest."""
    sets, scores = [], []
    for number, part in enumerate(_shown(clips)):
        first = number * DECODE_CLIPS
        asked = tuple(prompts[first : first + len(part.audio)])
        sets.append(describe(part, ears))
        columns = {f"judge/{judge.name}": judge(asked, part) for judge in judges}
        scores.append(ChunkScores(first=first, prompts=asked, columns=columns))
    return join(sets), merge(scores)


def _shown(clips: Clips) -> Iterable[Clips]:
    return track(list(_batches(clips)), description="hearing real clips", transient=True)


def _batches(clips: Clips) -> Iterator[Clips]:
    for start in range(0, len(clips.audio), DECODE_CLIPS):
        yield _rows(clips, start, start + DECODE_CLIPS)


def _rows(clips: Clips, start: int, stop: int) -> Clips:
    return Clips(audio=clips.audio[start:stop], sample_rate=clips.sample_rate)
