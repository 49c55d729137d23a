"""Rewards: scores of whole clips, and the weighted mix of them that is optimised."""

from __future__ import annotations

from musicrl.rewards.base import Reward
from musicrl.rewards.mix import RewardConfig, RewardMix, make_mix
from musicrl.rewards.preference import Preference
from musicrl.rewards.quality import Quality
from musicrl.rewards.table import REWARDS, make_reward
from musicrl.rewards.text import TextAdherence

__all__ = [
    "REWARDS",
    "Preference",
    "Quality",
    "Reward",
    "RewardConfig",
    "RewardMix",
    "TextAdherence",
    "make_mix",
    "make_reward",
]
