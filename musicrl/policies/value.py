"""The value network: a separate model that starts as the policy and predicts its return.

Both are initialised from theta_0 (paper section 3.1); the vocabulary heads are replaced by one
scalar output (Roit et al. 2023, whose recipe the paper follows). It shares no tensor with the
policy. It knows neither rewards nor losses.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn

from musicrl.policies.musiclm import MusicLM
from musicrl.policies.trunk import Trunk


class ValueNetwork(nn.Module):
    """Expected return of the state before each token."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(trunk.config.depth_width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

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
