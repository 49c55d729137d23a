"""Experience to one batch of tensors: valid samples only, in the given order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from musicrl.algorithms.base import Batch
from musicrl.types import Experience


def collate(
    experience: Sequence[Experience], *, device: torch.device
) -> tuple[Batch, NDArray[np.bool_]]:
    """The samples whose reward is valid and finite, on `device`, and bool [B] telling which.

    Group numbers of different experiences are kept apart; a group lies within one experience.
    """
    rollouts = [e.rollouts for e in experience]
    rewards = np.concatenate([e.rewards.total for e in experience])
    valid = np.concatenate([e.rewards.valid for e in experience]) & np.isfinite(rewards)
    groups = [r.group.astype(np.int64) + (i << 32) for i, r in enumerate(rollouts)]
    kept = [r.kept for r in rollouts if r.kept is not None]
    batch = Batch(
        conditions=_integers([r.conditions for r in rollouts], valid).to(device),
        tokens=_integers([r.tokens for r in rollouts], valid).to(device),
        behaviour_logprobs=torch.tensor(
            np.concatenate([r.logprobs for r in rollouts])[valid], device=device
        ),
        rewards=torch.tensor(rewards[valid], device=device),
        group=_integers(groups, valid).to(device),
        kept=torch.tensor(np.concatenate(kept)[valid], device=device) if kept else None,
    )
    return batch, valid


def _integers(arrays: Sequence[NDArray[np.integer]], valid: NDArray[np.bool_]) -> torch.Tensor:
    return torch.tensor(np.concatenate(arrays)[valid].astype(np.int64))


def reward_metrics(experience: Sequence[Experience], valid: NDArray[np.bool_]) -> dict[str, float]:
    """Mean and spread of the valid rewards, and the mean of each raw term where it is finite."""
    kept = np.concatenate([e.rewards.total for e in experience])[valid].astype(np.float64)
    metrics: dict[str, float] = {}
    if len(kept):
        metrics = {"reward/mean": float(kept.mean()), "reward/std": float(kept.std())}
    for name in experience[0].rewards.terms:
        term = np.concatenate([e.rewards.terms[name] for e in experience])
        term = term[np.isfinite(term)]
        if len(term):
            metrics[f"reward/term/{name}"] = float(term.mean())
    return metrics
