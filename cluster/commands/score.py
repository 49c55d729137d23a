"""`musicrl score`: how well audio files fit a text, by the reward and by the judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

from cluster.commands.flags import print_help, read_settings, split_words, wants_help
from musicrl.audio import read_wav
from musicrl.rewards.mix import RewardConfig, make_mix, refuse_tokens
from musicrl.types import Clips, Prompt
from musicrl.worlds import judges_of_world, load_world


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Score audio files against a text: the text first, then the files, then the options."""

    weights: Path | None = None
    """Folder of the world (none: the shipped tiny world)."""
    reward: RewardConfig = field(default_factory=RewardConfig)


def score(args: Sequence[str]) -> None:
    """Print a tab-separated table: a row for each file, a column for each reward and judge."""
    if wants_help(args):
        return print_help(ScoreConfig(), verb='score "text" file.wav ...')
    words, flags = split_words(args)
    config = read_settings(ScoreConfig, flags)
    if len(words) < 2:
        raise ValueError('score needs a text and files: musicrl score "a slow fiddle tune" a.wav')
    refuse_tokens(config.reward)
    text, files = words[0], [Path(word) for word in words[1:]]
    world = load_world(config.weights)
    audio = [read_wav(file, sample_rate=world.sample_rate) for file in files]
    judges, mix = judges_of_world(config.weights), make_mix(config.reward, world)
    print("file", *mix.rewards, *(judge.name for judge in judges), sep="\t")
    prompt = [Prompt(id="text", text=text)]
    for file, samples in zip(files, audio, strict=True):
        clips = Clips(audio=samples[None], sample_rate=world.sample_rate)
        scores = [*mix(prompt, clips).terms.values(), *(judge(prompt, clips) for judge in judges)]
        print(file, *(_cell(float(column[0])) for column in scores), sep="\t")


def _cell(score: float) -> str:
    """What could not be scored is a dash."""
    return f"{score:.3f}" if isfinite(score) else "-"
