"""The layers of a network, and gradient checkpointing: a layer keeps its inputs alone, and is run
again for its gradient.

It knows which layers the families have, and nothing of what they compute.
"""

from __future__ import annotations

from torch import nn

from musicrl.policies.blocks import Block
from musicrl.policies.delayed_layers import Layer


def layers(network: nn.Module) -> list[Block | Layer]:
    """The layers that a network is stacked of; none lies in another."""
    return [part for part in network.modules() if isinstance(part, Block | Layer)]


def recompute(*networks: nn.Module | None) -> None:
    """Have every layer of the networks run again in the backward pass. Gradients stay the same."""
    for network in networks:
        for layer in [] if network is None else layers(network):
            layer.is_recomputed = True
