"""A module's weights as one flat buffer that can be shared between processes, and back.

The buffer that arrives may be read-only memory that others read too: it is copied, never aliased.
Knows names, shapes and a checksum; not how the buffer travels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from musicrl.policies.lora import merge, merged, published
from musicrl.types import Weights

SUMMED = 2048
"""64-bit words that a checksum adds up to one."""


def flatten(module: nn.Module, version: int, *, out: NDArray[np.float32] | None = None) -> Weights:
    """A copy of the module's tensors in the order of its `state_dict`; of an adapted module, of its
    adapters' alone.

    `out` is a buffer of an earlier version to write over where the sizes are equal: memory that is
    used for the first time costs many times the copy. Raises ValueError naming a tensor that is not
    float32.
    """
    adapters = published(module)
    tensors, scale = (merged(module), None) if adapters is None else adapters
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"tensor {name!r} is {tensor.dtype}, only float32 can be published")
    index = tuple((name, tuple(tensor.shape)) for name, tensor in tensors.items())
    size = sum(tensor.numel() for tensor in tensors.values())
    flat = np.empty(size, np.float32) if out is None or out.shape != (size,) else out
    _fill(flat, [tensor.detach() for tensor in tensors.values()])
    found = Weights(version=version, flat=flat, index=index, scale=scale)
    return replace(found, checksum=checksum(found))


def _fill(flat: NDArray[np.float32], tensors: Sequence[Tensor]) -> None:
    """Write tensors one behind the other; on their own device they take no second place."""
    parts = torch.from_numpy(flat).split([tensor.numel() for tensor in tensors])
    for part, tensor in zip(parts, tensors, strict=True):
        part.view(tensor.shape).copy_(tensor)


@torch.no_grad()
def apply(module: nn.Module, weights: Weights, *, bases: dict[str, Tensor] | None = None) -> None:
    """Copy `weights` into the module's own tensors, all of them or none. Adapters are merged with
    `bases`, the weights that their layers had before (none: those that they have now).

    Raises ValueError when the checksum does not match, and when names or shapes differ from the
    module's, naming the first tensor.
    """
    if checksum(weights) != weights.checksum:
        raise ValueError(f"weights of version {weights.version} do not match their checksum")
    _check_size(weights)
    parts = np.split(weights.flat, np.cumsum([prod(shape) for _, shape in weights.index])[:-1])
    if weights.scale is not None:
        arrived = zip(weights.index, parts, strict=True)
        tensors = {name: torch.tensor(part).view(shape) for (name, shape), part in arrived}
        return merge(module, tensors, weights.scale, {} if bases is None else bases)
    own = module.state_dict()
    _check_names(own, weights)
    for (name, shape), part in zip(weights.index, parts, strict=True):
        if own[name].device.type == "cpu":
            np.copyto(own[name].numpy(), part.reshape(shape))
        else:
            own[name].copy_(torch.tensor(part).view(shape))


def checksum(weights: Weights) -> str:
    """Hex digits that tell a buffer from one that is torn, cut, stale in part, of another version or
    of another layout, at the rate at which memory is read (a cryptographic digest takes ten times
    as long; this guards against faults, not against an adversary). This project's choice: blake2b of
    the sums of every 16 KiB, as 64-bit words, and of the version and the index. Words that change
    places within those 16 KiB go unseen."""
    flat = weights.flat
    named = f"{weights.version} {weights.scale} {flat.shape} {weights.index}"
    hashed = hashlib.blake2b(named.encode(), digest_size=16)
    raw = np.ascontiguousarray(flat).view(np.uint8)
    whole = len(raw) // (8 * SUMMED) * (8 * SUMMED)
    hashed.update(raw[:whole].view(np.uint64).reshape(-1, SUMMED).sum(axis=1).tobytes())
    hashed.update(raw[whole:].tobytes())
    return hashed.hexdigest()


def digest(flat: NDArray[np.float32]) -> str:
    """Hex blake2b of the buffer's bytes: the name of a policy's weights for ever."""
    return hashlib.blake2b(np.ascontiguousarray(flat).data, digest_size=16).hexdigest()


def _check_names(own: dict[str, Tensor], weights: Weights) -> None:
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


def _check_size(weights: Weights) -> None:
    origin = f"weights of version {weights.version}"
    size = sum(prod(shape) for _, shape in weights.index)
    if weights.flat.dtype != np.float32 or weights.flat.shape != (size,):
        raise ValueError(
            f"{origin}: the buffer holds {weights.flat.dtype} {weights.flat.shape}, "
            f"its index {size} float32 numbers"
        )
