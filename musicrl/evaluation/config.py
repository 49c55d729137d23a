"""The settings of `musicrl evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from musicrl.bounds import at_least
from musicrl.evaluation.pitch import require_tracker
from musicrl.rewards.mix import RewardConfig, refuse_tokens
from musicrl.sampler.sampling import SamplingConfig


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measure policies on the fixed held-out prompts."""

    policies: tuple[Path, ...] = ()
    """Policy files, checkpoints or run folders to compare with the base."""
    base: Path | None = None
    """Policy that every row is compared with (none: the world's own)."""
    audio: tuple[Path, ...] = ()
    """Folders with one `<prompt id>.wav` for each held-out prompt, scored as rows of their own."""
    weights: Path | None = None
    """Folder of the world (none: the shipped tiny world)."""
    world: Path | None = None
    """Folder of rendered clips (`musicrl pretrain world`): distances between sets of clips are to
    real ones of its test split (none: to the clips of `base`, where that is given)."""
    prompts: int = 160
    """Held-out prompts; below 160 the gain of a single attribute drowns in noise."""
    prompt_file: Path | None = None
    """Prompts to take instead of the world's: a .parquet, .csv or .txt file, or `freeform`, 101
    prompts of this project for models of more than a tiny world."""
    best_of: tuple[int, ...] = ()
    """Numbers of clips of each prompt of which the base's best by reward is a row of its own."""
    prompts_per_chunk: int = 16
    """Prompts sampled together; the figures do not depend on it."""
    seed: int = 0
    """The same seed gives every policy the same random numbers."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    pitch: bool = False
    """Judge which clips of solo prompts have a stable pitch track and, with `world`, what the codec
    keeps of the pitch of real solos (needs the extra `judges`)."""
    out: Path | None = None
    """Folder that receives the tables as report.md and report.html (none: they are only printed)."""
    json: Path | None = None
    """File that receives the figures and the scores of every prompt."""

    def __post_init__(self) -> None:
        at_least(2, prompts=self.prompts)
        at_least(1, prompts_per_chunk=self.prompts_per_chunk)
        at_least(0, seed=self.seed)
        if any(n < 2 for n in self.best_of) or len(set(self.best_of)) < len(self.best_of):
            raise ValueError(
                f"best_of must be different numbers from 2 on, got {list(self.best_of)}"
            )
        if self.pitch:
            require_tracker()
        if self.audio:
            refuse_tokens(self.reward)
