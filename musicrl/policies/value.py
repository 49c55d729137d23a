"""The value network: a separate model that starts as the policy and predicts its return.

Both are initialised from theta_0 (paper section 3.1); the vocabulary heads are replaced by one
scalar output (Roit et al. 2023, whose recipe the paper follows). It shares no tensor with the
policy. It knows neither rewards nor losses.

A `MusicLM` gives one scalar a cell. A `DelayedLM` draws the K tokens of a step from one state, which
gets one scalar for each codebook: this project's choice.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn

from musicrl.policies.delayed import DelayedLM
from musicrl.policies.musiclm import MusicLM
from musicrl.policies.trunk import Trunk


class ValueNetwork(nn.Module):
    """Expected return of the state before each token."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(trunk.config.depth_width, 1)
        _start_at_zero(self.head)

    @classmethod
    def from_policy(cls, policy: nn.Module) -> ValueNetwork:
        """A copy of the policy's trunk under a scalar output that starts at zero.

        Raises TypeError when the policy is of a family without a trunk to copy.
        """
        if not isinstance(policy, MusicLM):
            raise TypeError(f"no value network is known for a policy {type(policy).__name__}")
        device = next(policy.parameters()).device
        return cls(copy.deepcopy(policy.trunk)).requires_grad_(True).to(device)

    def forward(self, tokens: Tensor, conditions: Tensor) -> Tensor:
        """Values float32 [B, S, K] from tokens int64 [B, S, K] and conditions int64 [B, C].

        The value of cell (s, k) has seen the frames before s and the streams before k of frame s:
        never the token of the cell itself.
        """
        values: Tensor = self.head(self.trunk(tokens, conditions))
        return values[..., 0].float()


class DelayedValue(nn.Module):
    """Expected return of the state before each step, for each of its K tokens."""

    def __init__(self, trunk: DelayedLM) -> None:
        """`trunk` loses its outputs."""
        super().__init__()
        self.trunk = trunk
        del trunk.head
        self.head = nn.Linear(trunk.config.width, trunk.config.num_codebooks)
        _start_at_zero(self.head)

    @classmethod
    def from_policy(cls, policy: DelayedLM) -> DelayedValue:
        """A copy of the policy without its outputs; a text encoder, which is frozen, is shared."""
        device = policy.head.device
        return cls(copy.deepcopy(policy)).requires_grad_(True).to(device)

    def forward(self, tokens: Tensor, conditions: Tensor) -> Tensor:
        """Values float32 [B, S, K] from tokens int64 [B, S, K] and conditions int64 [B, C].

        Those of step s have seen the steps before s, and no token of s itself.
        """
        values: Tensor = self.head(self.trunk.hidden(tokens, conditions))
        return values.float()


def make_value_network(policy: nn.Module) -> ValueNetwork | DelayedValue:
    """The value network of a policy's family. Raises TypeError when none is known."""
    if isinstance(policy, DelayedLM):
        return DelayedValue.from_policy(policy)
    return ValueNetwork.from_policy(policy)


def _start_at_zero(linear: nn.Linear) -> None:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
