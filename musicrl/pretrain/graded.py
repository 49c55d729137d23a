"""Graded clips: log-mel spectra with an opinion each, made from a world and its models.

Every source gives a group of clips that differ in quality alone: a rendered clip, as it is or as
the policy's coarse levels give it back, undamaged and with several strengths of several kinds of
damage; a rendered clip from fewer levels of the codec; one caption, played by the policy with the
same random numbers at several temperatures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from musicrl.codecs.base import Codec
from musicrl.pretrain.degradations import (
    CODEC,
    POLICY,
    REPLACED_AT_ONE,
    TOKENS,
    degrade,
    heat,
    kept_by,
    kept_by_codec,
    opinion,
)
from musicrl.pretrain.progress import track
from musicrl.pretrain.world import WorldData
from musicrl.sampler.engine import Engine
from musicrl.sampler.randomness import sample_seed
from musicrl.sampler.sampling import SamplingConfig
from musicrl.world import World

REAL, CLEAN = "real", "clean"
"""A base that is the rendered clip itself, and the kind of a clip that nothing was done to."""


@dataclass(frozen=True, kw_only=True)
class GradingConfig:
    """Which graded clips are made of a split."""

    clips: int
    """Rendered clips; every other one goes through the codec first."""
    kinds: tuple[str, ...]
    """Kinds of damage."""
    kinds_per_clip: int
    """Of these, drawn for each clip (0: all)."""
    strengths: tuple[float, ...]
    """Strengths of damage, above 0 and up to 1."""
    strengths_per_kind: int
    """Of these, drawn for each kind (0: all)."""
    levels: tuple[int, ...]
    """Numbers of codec levels."""
    coded_clips: int
    """Rendered clips that are decoded from each number of levels."""
    prompts: int
    """Captions that the policy plays."""
    temperatures: tuple[float, ...]
    """At which it plays each of them."""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """What a clip is."""

    group: str
    """The source that it shares with clips of other quality."""
    base: str
    """`REAL` for a rendered clip, else `CODEC`."""
    kind: str
    """Of the damage: `CLEAN`, `CODEC`, `POLICY`, `TOKENS` or one of DEGRADATIONS."""
    strength: float
    """Of the damage, 0 to 1; of the codec, the share of levels that are missing."""
    opinion: float
    """Its label, 1 to 5."""


@dataclass(frozen=True, kw_only=True)
class GradedClips:
    """Spectra and what they are, one of each a clip."""

    mels: Sequence[Tensor]
    """float16 [bands, frames] each."""
    grades: Sequence[Grade]

    def __len__(self) -> int:
        return len(self.grades)

    @property
    def opinions(self) -> Tensor:
        """float32 [clips]."""
        return torch.tensor([grade.opinion for grade in self.grades])

    def groups(self) -> list[NDArray[np.int64]]:
        """The clips of each source."""
        found: dict[str, list[int]] = {}
        for index, grade in enumerate(self.grades):
            found.setdefault(grade.group, []).append(index)
        return [np.array(members) for members in found.values()]


Made = tuple[NDArray[np.float32], Grade]


@torch.no_grad()
def make_graded(
    config: GradingConfig, data: WorldData, world: World, listen: Callable[[Tensor], Tensor]
) -> GradedClips:
    """The graded clips of a split, a pure function of `config` and the models; `listen` gives the
    log-mel [B, bands, frames] of audio [B, N]. Raises ValueError when the split has too few clips.
    """
    wanted = max(config.clips, config.coded_clips, config.prompts)
    if wanted > len(data):
        raise ValueError(f"{wanted} clips are to be graded, but the world holds only {len(data)}")
    sources = chain(
        _damaged(config, data, world), _coded(config, data, world), _played(config, data, world)
    )
    total = config.clips + config.coded_clips + len(config.temperatures)
    mels: list[Tensor] = []
    grades: list[Grade] = []
    for part in track(sources, description="grading clips", total=total):
        audio = torch.from_numpy(np.stack([clip for clip, _ in part]))
        mels.extend(listen(audio).half())
        grades.extend(grade for _, grade in part)
    return GradedClips(mels=mels, grades=grades)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A clip that damage is done to."""

    audio: Tensor
    """float32 [1, N]."""
    codes: Tensor | None
    """int64 [1, Q, T], where it is what the codec gave back."""
    base: str
    kept: float
    """Share of quality that it has before."""


def _damaged(config: GradingConfig, data: WorldData, world: World) -> Iterator[list[Made]]:
    """Each clip undamaged and damaged."""
    for index in range(config.clips):
        rng = np.random.default_rng((config.seed, index))
        source = _source(index, data, world)
        chosen = _choose(config, rng, is_coded=source.codes is not None)
        yield [
            (
                _with_damage(source, kind, strength, world.codec, rng),
                _grade(f"clip {index}", source.base, source.kept, kind, strength),
            )
            for kind, strength in [(CLEAN, 0.0), *chosen]
        ]


def _source(index: int, data: WorldData, world: World) -> Source:
    """A rendered clip; every other one from the coarse levels of its codes."""
    audio, codec = data.audio([index]), world.codec
    if index % 2 == 0:
        return Source(audio=audio, codes=None, base=REAL, kept=1.0)
    levels = world.policy.config.coarse_levels
    codes = codec.encode(audio)[:, :levels]
    kept = kept_by_codec(levels, all_levels=codec.num_codebooks)
    return Source(audio=codec.decode(codes), codes=codes, base=CODEC, kept=kept)


def _choose(
    config: GradingConfig, rng: np.random.Generator, *, is_coded: bool
) -> Iterator[tuple[str, float]]:
    """Kinds and strengths for a clip; codes are only replaced in what the codec gives back."""
    kinds = [kind for kind in config.kinds if is_coded or kind != TOKENS]
    for kind in _some(kinds, config.kinds_per_clip, rng):
        for strength in _some(config.strengths, config.strengths_per_kind, rng):
            yield str(kind), float(strength)


def _some(
    values: Sequence[str] | Sequence[float], count: int, rng: np.random.Generator
) -> NDArray[np.str_] | NDArray[np.float64]:
    """`count` different values (0: all)."""
    return rng.permutation(np.array(values))[: count or len(values)]


def _grade(group: str, base: str, kept: float, kind: str, strength: float) -> Grade:
    share = 1.0 if kind == CLEAN else kept_by(kind, strength)
    label = opinion(kept, share)
    return Grade(group=group, base=base, kind=kind, strength=strength, opinion=label)


def _with_damage(
    source: Source, kind: str, strength: float, codec: Codec, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Audio float32 [N] of a source, damaged."""
    if kind == TOKENS:
        assert source.codes is not None
        worse = codec.decode(replace_codes(source.codes, strength, codec, rng))
        return np.asarray(worse[0])
    clip = np.asarray(source.audio[0])
    if kind == CLEAN:
        return clip
    return degrade(kind, clip, strength=strength, sample_rate=codec.sample_rate, rng=rng)


def replace_codes(codes: Tensor, strength: float, codec: Codec, rng: np.random.Generator) -> Tensor:
    """Codes [1, Q, T] of which 0.5 x strength, chosen at random, are random ones."""
    is_wrong = rng.random(codes.shape) < REPLACED_AT_ONE * strength
    others = rng.integers(codec.vocab_size, size=codes.shape)
    return torch.where(torch.from_numpy(is_wrong), torch.from_numpy(others), codes)


def _coded(config: GradingConfig, data: WorldData, world: World) -> Iterator[list[Made]]:
    """Each clip as it is and from several numbers of levels."""
    codec, most = world.codec, world.codec.num_codebooks
    for index in range(config.coded_clips):
        audio = data.audio([index])
        codes = codec.encode(audio)
        group = f"coded {index}"
        yield [
            (audio[0].numpy(), _grade(group, REAL, 1.0, CLEAN, 0.0)),
            *(
                (codec.decode(codes[:, :levels])[0].numpy(), _coded_grade(group, levels, most))
                for levels in config.levels
            ),
        ]


def _coded_grade(group: str, levels: int, most: int) -> Grade:
    label = opinion(kept_by_codec(levels, all_levels=most))
    return Grade(
        group=group, base=CODEC, kind=CODEC, strength=(most - levels) / most, opinion=label
    )


def _played(config: GradingConfig, data: WorldData, world: World) -> Iterator[list[Made]]:
    """Captions of the split as the policy plays them, a temperature after the other; none of 0."""
    if not config.prompts:
        return
    indices = np.linspace(0, len(data) - 1, config.prompts).round().astype(int)
    texts = data.captions(indices, Random(config.seed), complete=True)
    kept = kept_by_codec(world.policy.config.coarse_levels, all_levels=world.codec.num_codebooks)
    for temperature in config.temperatures:
        audio = play(world, texts, SamplingConfig(temperature=temperature), seed=config.seed)
        yield [
            (clip, _grade(f"prompt {i}", CODEC, kept, POLICY, heat(temperature)))
            for i, clip in enumerate(audio)
        ]


def play(
    world: World, texts: Sequence[str], sampling: SamplingConfig, *, seed: int, batch: int = 64
) -> NDArray[np.float32]:
    """One clip float32 [N] of each text; the same seed gives the same random numbers."""
    engine, parts = Engine(world.policy, sampling), []
    for first in range(0, len(texts), batch):
        some = texts[first : first + batch]
        numbers = range(first, first + len(some))
        seeds = np.array([sample_seed(seed, 0, number, 0) for number in numbers], np.uint64)
        samples = engine.generate(world.conditioner(some), samples_per_prompt=1, seeds=seeds)
        parts.append(world.decode(samples.tokens))
    return np.concatenate(parts)
