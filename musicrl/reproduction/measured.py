"""What one model's clips of the held-out prompts are worth, kept in one file.

Everything that pairs, tables and players are made of: scores, divergences, embeddings and the
tokens, from which the audio can be decoded again. Which models there are is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from musicrl.checkpoint import load_tensors, save_tensors
from musicrl.evaluation.clipset import ClipSet
from musicrl.evaluation.config import EvaluateConfig
from musicrl.evaluation.ears import Ears
from musicrl.evaluation.figures import Figure, figure
from musicrl.evaluation.heldout import EvaluationResult, divergence, evaluation_chunks
from musicrl.evaluation.rows import evaluate_policy
from musicrl.policies.base import Policy
from musicrl.rewards.base import Reward
from musicrl.rewards.mix import RewardMix
from musicrl.types import Clips, Prompt
from musicrl.world import DECODE_CLIPS, World

KIND = "measurement"
Columns = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One clip of each of P prompts, measured."""

    result: EvaluationResult
    """Its divergence is from the base."""
    clips: ClipSet
    reference_kl: NDArray[np.float64]
    """float64 [P], nats a clip, from the model's own KL reference."""

    @property
    def tokens(self) -> NDArray[np.int16]:
        """int16 [P, S, K]."""
        assert self.clips.tokens is not None
        return self.clips.tokens

    @property
    def base_kl(self) -> Figure:
        """Nats a clip, from the base."""
        return figure(self.result.kl["total"])

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        groups: dict[str, Columns] = {
            "column": self.result.columns,
            "kl": self.result.kl,
            "entropy": self.result.entropy,
            "embedding": self.clips.embeddings,
            "clip": self.clips.columns,
            "reference": {"kl": self.reference_kl},
        }
        arrays = {
            f"{g}:{name}": column for g, part in groups.items() for name, column in part.items()
        }
        tensors = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}
        tensors["tokens"] = torch.from_numpy(np.ascontiguousarray(self.tokens))
        config = {
            "prompts": [prompt.id for prompt in self.result.prompts],
            "streams": list(self.result.stream_names),
        }
        save_tensors(path, tensors, kind=KIND, config=config)

    @classmethod
    def from_file(cls, path: Path, prompts: Sequence[Prompt]) -> Measured:
        """A file's measurement of `prompts`.

        Raises FileNotFoundError, or ValueError naming the file when it is damaged or of others.
        """
        tensors, config = load_tensors(path, kind=KIND)
        if config["prompts"] != [prompt.id for prompt in prompts]:
            raise ValueError(f"{path} was measured on other prompts")
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        result = EvaluationResult(
            prompts=tuple(prompts),
            columns=_group(arrays, "column"),
            stream_names=tuple(config["streams"]),
            kl=_group(arrays, "kl"),
            entropy=_group(arrays, "entropy"),
        )
        clips = ClipSet(
            embeddings=_group(arrays, "embedding"),
            columns=_group(arrays, "clip"),
            tokens=arrays["tokens"],
            texts=tuple(prompt.text for prompt in prompts),
        )
        return cls(result=result, clips=clips, reference_kl=arrays["reference:kl"])


def measure(
    world: World,
    prompts: Sequence[Prompt],
    mix: RewardMix,
    ears: Ears,
    *,
    base: Policy,
    reference: Policy,
    config: EvaluateConfig,
) -> Measured:
    """Sample one clip of each prompt with the world's policy and measure it; the divergence is
    from `base` and from `reference`, the policy that it was trained against."""
    result, clips = evaluate_policy(world, prompts, mix, ears, base=base, config=config)
    measured = Measured(result=result, clips=clips, reference_kl=result.kl["total"].copy())
    if reference is base:
        return measured
    return replace(measured, reference_kl=_divergence(world, measured, reference, config))


def with_judges(measured: Measured, world: World, judges: Sequence[Reward]) -> Measured:
    """The same, heard by further judges too: of its tokens, decoded again by `world`."""
    heard = []
    for chunk in evaluation_chunks(measured.result.prompts, DECODE_CLIPS):
        audio = world.decode(measured.tokens[chunk.first : chunk.first + len(chunk.prompts)])
        clips = Clips(audio=audio, sample_rate=world.sample_rate)
        heard.append({column_of(judge): judge(chunk.prompts, clips) for judge in judges})
    columns = {
        name: np.concatenate([part[name] for part in heard]).astype(np.float64) for name in heard[0]
    }
    result = replace(measured.result, columns={**measured.result.columns, **columns})
    return replace(measured, result=result)


def column_of(judge: Reward) -> str:
    """The name of a judge's scores."""
    return f"judge/{judge.name}"


def _divergence(
    world: World, measured: Measured, reference: Policy, config: EvaluateConfig
) -> NDArray[np.float64]:
    """Nats a clip, float64 [P], from `reference`. Top-k is not replayed here."""
    found = []
    for chunk in evaluation_chunks(measured.result.prompts, config.prompts_per_chunk):
        rows = measured.tokens[chunk.first : chunk.first + len(chunk.prompts)]
        tokens = torch.from_numpy(rows.astype(np.int64))
        conditions = world.conditioner([prompt.text for prompt in chunk.prompts])
        part = divergence(chunk, world.policy, reference, tokens, conditions, config.sampling)
        found.append(part.kl.sum(1))
    return np.concatenate(found)


def _group(arrays: Mapping[str, np.ndarray], group: str) -> dict[str, NDArray[np.float64]]:
    opening = f"{group}:"
    return {n.removeprefix(opening): a for n, a in arrays.items() if n.startswith(opening)}
