"""A pool: clips of many prompts, several of each, sampled ahead of the listeners.

    <pool>/pool.parquet     what the clips are (format pool/1); written last, so a pool is whole
    <pool>/<clip id>.wav    what they sound like

Samples by the same worker as training does. Knows nothing of raters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from musicrl.audio import read_wav, write_wav
from musicrl.bounds import at_least
from musicrl.evaluation.origin import origin, own_policy, policy_file
from musicrl.lock import held
from musicrl.preference.clip import PlayableClip
from musicrl.preference.dataset import DatasetWriter, check_file, read_batches
from musicrl.preference.rows import pool_batch, to_pool
from musicrl.preference.schema import POOL
from musicrl.prompts import draw, load_prompts
from musicrl.rollout import RolloutWorker
from musicrl.sampler.sampling import SamplingConfig
from musicrl.types import Clips, Prompt, Rollouts, TokenClip
from musicrl.world import find_world
from musicrl.worlds import load_world, prompts_of_world

POOL_STEP = 2**31 - 2
"""The training step whose random numbers the first policy's clips use, the next policy's those of
the step before: no run reaches them."""
TABLE = "pool.parquet"
CLIPS_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class SampledClipsConfig:
    """The clips of a pool."""

    weights: Path | None = None
    """Folder of the world (none: the shipped tiny world)."""
    policies: tuple[Path, ...] = ()
    """Policy files, checkpoints, runs or names in the world's folder, each of which samples every
    prompt (none: the world's own policy)."""
    split: str = "train"
    """Of the world's prompts."""
    prompts: int = 256
    """Prompts drawn from the split."""
    clips_per_prompt: int = 4
    """From each policy."""
    prompts_per_chunk: int = 8
    """Prompts sampled together; the clips do not depend on it."""
    clip_seconds: float | None = None
    """Length of the clips (none: whole ones)."""
    seed: int = 0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        at_least(1, prompts=self.prompts, clips_per_prompt=self.clips_per_prompt)
        at_least(1, prompts_per_chunk=self.prompts_per_chunk)
        at_least(0, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """Sample clips of many prompts into a folder, to be heard or to be judged."""

    out: Path = Path("pool")
    """Folder of the pool."""
    clips: SampledClipsConfig = field(default_factory=SampledClipsConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledClips:
    """Some clips with their audio."""

    clips: tuple[PlayableClip, ...]
    audio: Clips


def write_pool(config: PoolConfig) -> int:
    """Sample the pool into its folder; how many clips it holds.

    Raises ValueError when the folder holds a pool already, as `held` and as `sample_clips`.
    """
    with held(config.out):
        return _write_pool(config)


def _write_pool(config: PoolConfig) -> int:
    if (config.out / TABLE).exists():
        raise ValueError(f"{config.out} already holds a pool: choose another folder with --out")
    with DatasetWriter(config.out / TABLE, POOL) as writer:
        for chunk in sample_clips(config.clips):
            for clip, audio in zip(chunk.clips, chunk.audio.channels, strict=True):
                write_wav(config.out / clip.wav, audio, chunk.audio.sample_rate)
            writer.write(pool_batch(chunk.clips))
    return writer.num_rows


def read_pool(folder: Path) -> tuple[PlayableClip, ...]:
    """The clips of a pool, whose wav files are all there.

    Raises FileNotFoundError or ValueError naming the file that is missing or wrong.
    """
    check_file(folder / TABLE, POOL)
    clips = tuple(clip for batch in read_batches(folder / TABLE) for clip in to_pool(batch))
    if not clips:
        raise ValueError(f"{folder / TABLE} holds no clips")
    for clip in clips:
        if Path(clip.wav).name != clip.wav:
            raise ValueError(f"{folder / TABLE} names a wav outside of its folder: {clip.wav!r}")
        if not (folder / clip.wav).is_file():
            raise FileNotFoundError(f"the pool lacks {folder / clip.wav}")
    return clips


def hear_pool(
    folder: Path, clips: Sequence[PlayableClip], sample_rate: int
) -> Iterator[SampledClips]:
    """The clips of a pool with the audio of their files, some at a time, at `sample_rate` Hz.

    Raises ValueError naming a file that is unreadable or not as long as the first.
    """
    size = len(read_wav(folder / clips[0].wav, sample_rate=sample_rate))
    for first in range(0, len(clips), CLIPS_AT_ONCE):
        part = tuple(clips[first : first + CLIPS_AT_ONCE])
        audio = [read_wav(folder / clip.wav, sample_rate=sample_rate) for clip in part]
        for clip, samples in zip(part, audio, strict=True):
            if len(samples) != size:
                raise ValueError(f"{folder / clip.wav} has {len(samples)} samples, not {size}")
        tokens = np.stack([playable.clip.tokens for playable in part])
        heard = Clips(audio=np.stack(audio), sample_rate=sample_rate, tokens=tokens)
        yield SampledClips(clips=part, audio=heard)


def sample_clips(config: SampledClipsConfig) -> Iterator[SampledClips]:
    """Sample every prompt with every policy, a chunk at a time.

    A clip is decided by the policy, the prompt, its place among the prompts, the place of its
    policy and the seed. Raises FileNotFoundError or ValueError for what cannot be sampled.
    """
    prompts = pool_prompts(config)
    for place, policy in enumerate(config.policies or (None,)):
        worker, name = load_worker(config.weights, policy, config.sampling)
        firsts = range(0, len(prompts), config.prompts_per_chunk)
        for first in track(firsts, description=f"sampling {name}", transient=True):
            rollouts, audio = worker.generate(
                prompts[first : first + config.prompts_per_chunk],
                first_prompt_index=first,
                step=POOL_STEP - place,
                run_seed=config.seed,
                samples_per_prompt=config.clips_per_prompt,
                version=0,
                clip_seconds=config.clip_seconds,
            )
            yield SampledClips(clips=playable_clips(rollouts, audio, name), audio=audio)


def pool_prompts(config: SampledClipsConfig) -> tuple[Prompt, ...]:
    """The prompts that are drawn. Raises ValueError when the world has too few."""
    path = prompts_of_world(config.weights)
    known = load_prompts(path, split=config.split)
    if len(known) < config.prompts:
        raise ValueError(f"prompts is {config.prompts}, but {path} holds only {len(known)}")
    return draw(known, config.seed, 0, config.prompts)


def load_worker(
    weights: Path | None, policy: Path | None, sampling: SamplingConfig
) -> tuple[RolloutWorker, str]:
    """A policy of a world, ready to sample, and its name with a digest."""
    folder = find_world(weights)
    file = own_policy(folder) if policy is None else policy_file(policy, folder)
    world = load_world(folder, file)
    return RolloutWorker(world, sampling), origin(file, world.policy)


def playable_clips(rollouts: Rollouts, audio: Clips, policy: str) -> tuple[PlayableClip, ...]:
    """Sampled clips under names that tell nothing of what made them."""
    seconds = audio.audio.shape[1] / audio.sample_rate
    rows = zip(rollouts.prompts, rollouts.tokens, rollouts.seeds.tolist(), strict=True)
    return tuple(
        PlayableClip(
            prompt=prompt,
            clip=TokenClip(id=clip_id(prompt, tokens, policy), tokens=tokens, policy=policy),
            seed=seed,
            wav=f"{clip_id(prompt, tokens, policy)}.wav",
            seconds=seconds,
        )
        for prompt, tokens, seed in rows
    )


def clip_id(prompt: Prompt, tokens: NDArray[np.int16], policy: str) -> str:
    """A digest of all that makes the clip what it is."""
    digest = hashlib.blake2b(f"{policy}\0{prompt.text}\0".encode(), digest_size=12)
    digest.update(tokens.astype("<i2").tobytes())
    return digest.hexdigest()
