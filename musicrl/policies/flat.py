"""A module's weights as one flat buffer that can be shared between processes, and back.

The buffer that arrives may be read-only memory that others read too: it is copied, never aliased.
Knows names, shapes and a digest; not how the buffer travels.
"""

from __future__ import annotations

import hashlib
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from musicrl.policies.lora import merged
from musicrl.types import Weights


def flatten(module: nn.Module, version: int) -> Weights:
    """A copy of the module's tensors in the order of its `state_dict`, adapters merged.

    Raises ValueError naming a tensor that is not float32.
    """
    tensors = merged(module)
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"tensor {name!r} is {tensor.dtype}, only float32 can be published")
    index = tuple((name, tuple(tensor.shape)) for name, tensor in tensors.items())
    whole = torch.cat([tensor.detach().flatten() for tensor in tensors.values()])
    flat = whole.cpu().numpy()  # one transfer from a GPU, whatever the number of tensors
    return Weights(version=version, flat=flat, index=index, digest=digest(flat))


def apply(module: nn.Module, weights: Weights) -> None:
    """Copy `weights` into the module's own tensors, all of them or none.

    Raises ValueError when the digest does not match the buffer, and when names or shapes differ
    from the module's, naming the first tensor.
    """
    if digest(weights.flat) != weights.digest:
        raise ValueError(f"weights of version {weights.version} do not match their digest")
    own = module.state_dict()
    _check(own, weights)
    device = next(iter(own.values())).device
    parts = torch.tensor(weights.flat).to(device).split([prod(shape) for _, shape in weights.index])
    with torch.no_grad():
        for (name, shape), part in zip(weights.index, parts, strict=True):
            own[name].copy_(part.view(shape))


def digest(flat: NDArray[np.float32]) -> str:
    """Hex blake2b of the buffer's bytes."""
    return hashlib.blake2b(np.ascontiguousarray(flat).data, digest_size=16).hexdigest()


def _check(own: dict[str, Tensor], weights: Weights) -> None:
    origin = f"weights of version {weights.version}"
    shapes = dict(weights.index)
    for name, tensor in own.items():
        if name not in shapes:
            raise ValueError(f"{origin} lack the tensor {name!r}")
        if shapes[name] != tuple(tensor.shape):
            raise ValueError(
                f"{origin}: tensor {name!r} has shape {shapes[name]}, expected {tuple(tensor.shape)}"
            )
    for name in shapes:
        if name not in own:
            raise ValueError(f"{origin} hold an unknown tensor {name!r}")
    size = sum(prod(shape) for _, shape in weights.index)
    if weights.flat.dtype != np.float32 or weights.flat.shape != (size,):
        raise ValueError(
            f"{origin}: the buffer holds {weights.flat.dtype} {weights.flat.shape}, "
            f"its index {size} float32 numbers"
        )
