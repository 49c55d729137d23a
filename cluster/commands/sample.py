"""`musicrl sample`: texts to wav files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.commands.flags import print_help, read_settings, split_words, wants_help
from musicrl.audio import write_wav
from musicrl.bounds import at_least
from musicrl.journal import slug
from musicrl.rollout import RolloutWorker
from musicrl.sampler.sampling import SamplingConfig
from musicrl.types import Prompt
from musicrl.worlds import load_world


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Make clips of each text given before the options, as 16-bit wav files."""

    out: Path = Path("samples")
    """Folder of the wav files."""
    count: int = 1
    """Clips of each text."""
    policy: Path | None = None
    """Policy file, such as the one of a run's checkpoint, or the name of one of the world's (none:
    the world's own)."""
    weights: Path | None = None
    """Folder of the world (none: the shipped tiny world)."""
    seed: int = 0
    """The same seed, text, policy and place among the texts give the same clips."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        at_least(1, count=self.count)
        at_least(0, seed=self.seed)


def sample(args: Sequence[str]) -> None:
    """Write the clips and print where each is."""
    if wants_help(args):
        return print_help(SampleConfig(), verb='sample "text" ...')
    texts, flags = split_words(args)
    config = read_settings(SampleConfig, flags)
    if not texts or not all(text.strip() for text in texts):
        raise ValueError('sample needs a text, as in: musicrl sample "a slow fiddle tune"')
    worker = RolloutWorker(load_world(config.weights, config.policy), config.sampling)
    for index, text in enumerate(texts):
        for path in sample_text(worker, config, index, text):
            print(path)


def sample_text(
    worker: RolloutWorker, config: SampleConfig, index: int, text: str
) -> tuple[Path, ...]:
    """The files of the clips of one text, which stands at `index`."""
    prompt = Prompt(id=f"text-{index}", text=text, source="command line")
    _, clips = worker.generate(
        [prompt],
        first_prompt_index=index,
        step=0,
        run_seed=config.seed,
        samples_per_prompt=config.count,
        version=0,
    )
    stem = f"{index:02d}_{slug(text)}"
    paths = tuple(config.out / f"{stem}_{sample}.wav" for sample in range(config.count))
    for path, audio in zip(paths, clips.channels, strict=True):
        write_wav(path, audio, clips.sample_rate)
    return paths
