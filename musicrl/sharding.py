"""Ranks that hold a part of every network each (FSDP2): what does not fit one device fits several.

    layer to run ──► all-gather ──► forward or backward ──► reduce-scatter of gradients ──► parts

Only one layer, and what is in no layer, is whole at a time, and only while it runs: the modules'
own calls gather it. So every rank must make the same calls in the same order, of the weights' whole
state too. It knows tensors and a process group; torch does the gathering. Imported only by who
shards: torch's parts of this take a second to load.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import Backend, Store
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from musicrl.ranks import Group, make_gloo, meeting

GLOO = "gloo_at_host"
"""torch's own gloo listens on all addresses of the interface that it chooses."""


class Sharded:
    """One rank of several that hold a part of every network. Experience is shared as in a `Group`;
    a rank whose share has fewer passes makes others for company.

    Collectives of the networks raise RuntimeError when a rank has gone or is late, which `watch`
    makes a ConnectionError.
    """

    def __init__(self, group: Group, mesh: DeviceMesh) -> None:
        self._group, self._mesh = group, mesh
        self.rank, self.size = group.rank, group.size

    def spread(self, network: nn.Module, layers: Sequence[nn.Module]) -> None:
        for part in (*layers, network):
            # What a step without gradients gathered would else stay, and be stale after the next.
            module = fully_shard(part, mesh=self._mesh, reshard_after_forward=True)
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot multiply as it sums
        network.register_state_dict_post_hook(_gather)
        network.register_load_state_dict_pre_hook(_scatter)

    def num_passes(self, num_rows: int, pass_size: int) -> int:
        largest_share = -(-num_rows // self.size)
        return -(-largest_share // pass_size)

    def whole(self, tensor: Tensor) -> Tensor:
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def part(self, tensor: Tensor, like: Tensor) -> Tensor:
        return _part(tensor, like)

    def watch(self) -> AbstractContextManager[None]:
        return self._group.watch()

    def share(self, rows: Tensor) -> Tensor:
        return self._group.share(rows)

    def join(self, parts: Sequence[Tensor], whole: Tensor) -> Tensor:
        return self._group.join(parts, whole)

    def add_up(self, parameters: Sequence[Tensor], loss: float) -> float:
        """The backward passes have added up the gradients."""
        return self._group.add_up([], loss)


def join_sharded(
    store: Store,
    *,
    rank: int,
    size: int,
    host: str,
    timeout_seconds: float,
    device: torch.device,
) -> Sharded:
    """Meet the other ranks at `store`, listening on the address `host` only: once a process. By gloo
    on the CPU, by nccl on a GPU.

    The deadline is that of meeting and of every later collective. Raises ConnectionError.
    """
    timeout = timedelta(seconds=timeout_seconds)
    backend = "nccl" if device.type == "cuda" else GLOO
    if backend == GLOO and GLOO.upper() not in dist.Backend._plugins:
        make = partial(_make_gloo, host)
        dist.Backend.register_backend(GLOO, make, extended_api=True, devices="cpu")
    with meeting(rank, size):
        dist.init_process_group(
            f"{device.type}:{backend}", store=store, rank=rank, world_size=size, timeout=timeout
        )
        mesh = init_device_mesh(device.type, (size,))
        world = dist.distributed_c10d._get_default_group()
        return Sharded(Group(world._get_backend(device), device), mesh)


def _make_gloo(host: str, options: Any, _: object) -> Backend:
    return make_gloo(options.store, options.group_rank, options.group_size, host, options.timeout)


def _part(tensor: Tensor, like: Tensor) -> Tensor:
    """Of a tensor that every rank has."""
    assert isinstance(like, DTensor)
    there = tensor.to(like.device)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)


def _gather(module: nn.Module, state: dict[str, Any], prefix: str, _: object) -> None:
    """Hook of `state_dict`: whole tensors, on the CPU, as no device holds all of them at once."""
    for name, tensor in state.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        state[name] = whole.detach().cpu()


def _scatter(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Hook of `load_state_dict`: every rank has all of `state`, and takes its parts."""
    for name, parameter in module.named_parameters(prefix.rstrip(".")):
        if isinstance(parameter, DTensor) and name in state:
            state[name] = _part(state[name], parameter)
