"""Real clips, and the sets that a policy's distances are read beside.

The first half of the real clips is what all distances are to. The second half, as it is, says what
two sets of real music differ by (they may share tunes); the same through the codec, what no policy
of its tokens can undo. Where the clips come from is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from rich.progress import track

from musicrl.audio import resample
from musicrl.evaluation.clipset import ClipSet, describe, join
from musicrl.evaluation.judges import Ears
from musicrl.types import Clips
from musicrl.world import DECODE_CLIPS, World

REAL, RECONSTRUCTION = "real", "reconstruction"


def reference_sets(
    real: Clips, world: World, ears: Ears, *, size: int
) -> tuple[ClipSet, dict[str, ClipSet]]:
    """The reference, and the rows beside a policy's, each of at most `size` clips.

    Raises ValueError when there are fewer than four real clips, or shorter ones than the policy's.
    """
    half = min(size, len(real.audio) // 2)
    if half < 2:
        raise ValueError(f"distances need four real clips or more, got {len(real.audio)}")
    fitted = fit(real, world)
    first, second = _rows(fitted, 0, half), _rows(fitted, half, 2 * half)
    beside = {REAL: second, RECONSTRUCTION: reconstruct(second, world)}
    return describe_all(first, ears), {k: describe_all(v, ears) for k, v in beside.items()}


def fit(clips: Clips, world: World) -> Clips:
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


@torch.inference_mode()
def reconstruct(clips: Clips, world: World) -> Clips:
    """Clips through the codec and back, at the levels that the policy writes."""
    levels = world.policy.config.coarse_levels
    parts = torch.tensor(clips.audio).split(DECODE_CLIPS)
    audio = [world.codec.decode(world.codec.encode(part)[:, :levels]) for part in parts]
    return Clips(audio=torch.cat(audio).numpy(), sample_rate=clips.sample_rate)


def describe_all(clips: Clips, ears: Ears) -> ClipSet:
    """`describe`, a few clips at a time."""
    parts = list(_batches(clips))
    shown = track(parts, description="hearing real clips", transient=True)
    return join([describe(part, ears) for part in shown])


def _batches(clips: Clips) -> Iterator[Clips]:
    for start in range(0, len(clips.audio), DECODE_CLIPS):
        yield _rows(clips, start, start + DECODE_CLIPS)


def _rows(clips: Clips, start: int, stop: int) -> Clips:
    return Clips(audio=clips.audio[start:stop], sample_rate=clips.sample_rate)
