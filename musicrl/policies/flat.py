"""A module's weights as one flat buffer that can be shared between processes, and back.

    settle    a module's tensors move into a buffer, and are published from where they are
    flatten   the buffer of a version: what is not in it yet is copied there
    apply     a version is copied into a module's own memory
    adopt     a module reads a version where it is: shared memory, which nobody may write to

Knows names, shapes and a checksum; not how the buffer travels.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
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
ALIGNED = 16
"""Every tensor begins at a multiple of so many numbers, 64 bytes, as torch's own do: the last bits of
some products depend on it."""
Index = tuple[tuple[str, tuple[int, ...]], ...]


def settle(module: nn.Module) -> NDArray[np.float32]:
    """Move the tensors that `flatten` would publish of a module on the CPU into one buffer, which
    holds their newest values from then on: given as `out`, it is published without a copy.

    Raises ValueError naming a tensor that is not float32.
    """
    adapters = published(module)
    tensors = module.state_dict(keep_vars=True) if adapters is None else adapters[0]
    flat = _new_buffer(_index(tensors))
    _move(tensors, flat)
    return flat


@torch.no_grad()
def _move(tensors: Mapping[str, Tensor], flat: NDArray[np.float32]) -> None:
    for tensor, part in zip(tensors.values(), _parts(flat, _index(tensors)), strict=True):
        tensor.data = torch.from_numpy(part).copy_(tensor)


def flatten(module: nn.Module, version: int, *, out: NDArray[np.float32] | None = None) -> Weights:
    """The module's tensors in the order of its `state_dict`; of an adapted module, its adapters'
    alone.

    `out` is a buffer of `settle` or of an earlier version, to write over where the sizes are equal:
    what lies in it is not copied, and memory that is used for the first time costs many times the
    copy (none: a new one). Raises ValueError naming a tensor that is not float32.
    """
    adapters = published(module)
    tensors, scale = (merged(module), None) if adapters is None else adapters
    index = _index(tensors)
    flat = _new_buffer(index) if out is None or out.shape != (_size(index),) else out
    for tensor, part in zip(tensors.values(), _parts(flat, index), strict=True):
        if tensor.data_ptr() != part.ctypes.data:
            torch.from_numpy(part).copy_(tensor.detach())  # takes no second place on its device
    found = Weights(version=version, flat=flat, index=index, scale=scale)
    return replace(found, checksum=checksum(found))


def split(weights: Weights) -> dict[str, NDArray[np.float32]]:
    """The tensors by name, as views of the buffer."""
    parts = _parts(weights.flat, weights.index)
    return {name: part for (name, _), part in zip(weights.index, parts, strict=True)}


@torch.no_grad()
def apply(module: nn.Module, weights: Weights, *, bases: dict[str, Tensor] | None = None) -> None:
    """Copy `weights` into the module's own tensors, all of them or none. Adapters are merged with
    `bases`, the weights that their layers had before (none: those that they have now).

    Raises ValueError when the checksum does not match, and when names or shapes differ from the
    module's, naming the first tensor.
    """
    _verify(weights)
    parts = split(weights)
    if weights.scale is not None:
        tensors = {name: torch.tensor(part) for name, part in parts.items()}
        return merge(module, tensors, weights.scale, {} if bases is None else bases)
    own = module.state_dict()
    _check_names(own, weights)
    for name, part in parts.items():
        if own[name].device.type == "cpu":
            np.copyto(own[name].numpy(), part)
        else:
            own[name].copy_(torch.tensor(part))


def adopt(module: nn.Module, weights: Weights) -> None:
    """Have a module on the CPU read `weights` where they are, all of them or none. From then on
    nobody may write to the buffer or to the module's tensors, which keep it alive: `disown` it first.

    Raises ValueError as `apply`, and for adapters.
    """
    _verify(weights)
    if weights.scale is not None:
        raise ValueError(
            f"weights of version {weights.version} are adapters: they can be merged only"
        )
    own = module.state_dict(keep_vars=True)
    _check_names(own, weights)
    for name, part in split(weights).items():
        own[name].data = _tensor(part)


def disown(module: nn.Module) -> None:
    """Give a module memory of its own again, with the weights that it has."""
    for tensor in module.state_dict(keep_vars=True).values():
        tensor.data = tensor.data.clone()


def checksum(weights: Weights) -> str:
    """Hex digits that tell a buffer from one that is torn, cut, stale in part, of another version or
    of another layout, at the rate at which memory is read (a cryptographic digest takes ten times
    as long; this guards against faults, not against an adversary). This project's choice: blake2b of
    the sums of every 16 KiB, as 64-bit words, and of the version and the index. Words that change
    places within those 16 KiB go unseen. Sums use torch's threads."""
    flat = np.ascontiguousarray(weights.flat)
    named = f"{weights.version} {weights.scale} {flat.shape} {weights.index}"
    hashed = hashlib.blake2b(named.encode(), digest_size=16)
    whole = flat.size // (2 * SUMMED) * (2 * SUMMED)
    words = _tensor(flat[:whole]).view(torch.int64).view(-1, SUMMED)
    hashed.update(words.sum(dim=1).numpy().tobytes())
    hashed.update(flat[whole:].tobytes())
    return hashed.hexdigest()


def digest(tensors: Iterable[NDArray[np.float32]]) -> str:
    """Hex blake2b of the bytes of a policy's tensors: the name of its weights for ever."""
    hashed = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        hashed.update(np.ascontiguousarray(tensor).data)
    return hashed.hexdigest()


def _index(tensors: Mapping[str, Tensor]) -> Index:
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"tensor {name!r} is {tensor.dtype}, only float32 can be published")
    return tuple((name, tuple(tensor.shape)) for name, tensor in tensors.items())


def _size(index: Index) -> int:
    """Numbers of a buffer."""
    return sum(-(-prod(shape) // ALIGNED) * ALIGNED for _, shape in index)


def _new_buffer(index: Index) -> NDArray[np.float32]:
    """Zeros, at an address that torch would choose."""
    found: NDArray[np.float32] = torch.zeros(_size(index)).numpy()
    return found


def _parts(flat: NDArray[np.float32], index: Index) -> Iterator[NDArray[np.float32]]:
    start = 0
    for _, shape in index:
        yield flat[start : start + prod(shape)].reshape(shape)
        start += -(-prod(shape) // ALIGNED) * ALIGNED


def _tensor(part: NDArray[np.float32]) -> Tensor:
    """On the array's own memory, though it be read-only: it is never written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(part)


def _verify(weights: Weights) -> None:
    if checksum(weights) != weights.checksum:
        raise ValueError(f"weights of version {weights.version} do not match their checksum")
    size = _size(weights.index)
    if weights.flat.dtype != np.float32 or weights.flat.shape != (size,):
        raise ValueError(
            f"weights of version {weights.version}: the buffer holds {weights.flat.dtype} "
            f"{weights.flat.shape}, its index {size} float32 numbers"
        )


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
