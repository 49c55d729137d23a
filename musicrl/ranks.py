"""Ranks: processes that share the work of one update and end it with the same weights.

Every rank holds the whole batch, so that baselines and normalisations are those of one process.
Each passes its share of an optimizer step's rows through the networks; what the rows gave is
joined, gradients are summed. The ranks of a `Group` hold whole networks; those that hold a part of
each are in sharding.py. It knows tensors and a process group, no actor and no algorithm.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import Backend, ProcessGroupGloo, Store, TCPStore
from torch.distributed import DistError


class Ranks(Protocol):
    """How one process takes part in an update."""

    size: int
    """Processes."""

    def spread(self, network: nn.Module, layers: Sequence[nn.Module]) -> None:
        """Keep of a network, and of the `layers` in it, what this rank is to hold. Its parameters
        may be others afterwards; its `state_dict` is that of the whole network, as before."""
        ...

    def num_passes(self, num_rows: int, pass_size: int) -> int:
        """Passes of up to `pass_size` rows that every rank must make over so many, whatever its
        share."""
        ...

    def whole(self, tensor: Tensor) -> Tensor:
        """All of a parameter, of its gradient or of what an optimizer keeps of it."""
        ...

    def part(self, tensor: Tensor, like: Tensor) -> Tensor:
        """What this rank holds of a whole tensor, as it does of the parameter `like`."""
        ...

    def watch(self) -> AbstractContextManager[None]:
        """Within it the loss of another rank is a ConnectionError, whoever finds it."""
        ...

    def share(self, rows: Tensor) -> Tensor:
        """This rank's part of the rows of an optimizer step, int64 [b]."""
        ...

    def join(self, parts: Sequence[Tensor], whole: Tensor) -> Tensor:
        """What all ranks made of their shares, in the order of the rows, shaped as `whole`."""
        ...

    def add_up(self, parameters: Sequence[Tensor], loss: float) -> float:
        """Make each gradient the sum over the ranks; returns the sum of the losses."""
        ...


class Alone:
    """One process does all."""

    size = 1

    def spread(self, network: nn.Module, layers: Sequence[nn.Module]) -> None:
        """It stays whole."""

    def num_passes(self, num_rows: int, pass_size: int) -> int:
        return 0

    def whole(self, tensor: Tensor) -> Tensor:
        return tensor

    def part(self, tensor: Tensor, like: Tensor) -> Tensor:
        return tensor

    def watch(self) -> AbstractContextManager[None]:
        return nullcontext()

    def share(self, rows: Tensor) -> Tensor:
        return rows

    def join(self, parts: Sequence[Tensor], whole: Tensor) -> Tensor:
        return torch.cat(list(parts))

    def add_up(self, parameters: Sequence[Tensor], loss: float) -> float:
        return loss


class Group:
    """One rank of several that hold whole networks. Sums are float64, so that they depend on the
    number of ranks by no more than the rounding of each rank's own part.

    Every method raises ConnectionError when another rank has gone or is late.
    """

    def __init__(self, group: Backend, device: torch.device | None = None) -> None:
        """`device` is where the group sums (none: the CPU)."""
        self._group = group
        self._device = device or torch.device("cpu")
        self.rank, self.size = group.rank(), group.size()

    def spread(self, network: nn.Module, layers: Sequence[nn.Module]) -> None:
        """It stays whole."""

    def num_passes(self, num_rows: int, pass_size: int) -> int:
        return 0

    def whole(self, tensor: Tensor) -> Tensor:
        return tensor

    def part(self, tensor: Tensor, like: Tensor) -> Tensor:
        return tensor

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Other faults than the transport's pass."""
        try:
            yield
        except RuntimeError as error:
            if not is_transport(error):
                raise
            raise ConnectionError(f"{self._lost}: {error}") from error

    def share(self, rows: Tensor) -> Tensor:
        return self._split(rows)[self.rank]

    def join(self, parts: Sequence[Tensor], whole: Tensor) -> Tensor:
        joined = torch.zeros(whole.shape, dtype=torch.float64, device=self._device)
        if parts:
            self._split(joined)[self.rank].copy_(torch.cat(list(parts)))
        return self._sum(joined).to(whole)

    def add_up(self, parameters: Sequence[Tensor], loss: float) -> float:
        """A parameter that no rank has a gradient of keeps none, as in one process."""
        new = partial(torch.zeros, dtype=torch.float64, device=self._device)
        grads = [None if p.grad is None else p.grad.to(new(0)) for p in parameters]
        known = new(0).new_tensor([loss, *(float(grad is not None) for grad in grads)])
        flat = [
            new(p.numel()) if grad is None else grad.flatten()
            for p, grad in zip(parameters, grads, strict=True)
        ]
        total = self._sum(torch.cat([known, *flat]))
        (loss_sum, *counts), sums = total[: len(known)].tolist(), total[len(known) :]
        slices = sums.split([p.numel() for p in parameters])
        for parameter, count, part in zip(parameters, counts, slices, strict=True):
            parameter.grad = part.view(parameter.shape).to(parameter) if count else None
        return float(loss_sum)

    def _split(self, rows: Tensor) -> tuple[Tensor, ...]:
        return rows.tensor_split(self.size)

    def _sum(self, tensor: Tensor) -> Tensor:
        with _blaming(self._lost):
            self._group.allreduce([tensor]).wait()  # type: ignore[attr-defined]  # the stubs lack it
        return tensor

    @property
    def _lost(self) -> str:
        return f"rank {self.rank} lost another rank of its group of {self.size}"


def is_transport(error: RuntimeError) -> bool:
    """Whether it is of a process group that lost a rank or waited too long."""
    return isinstance(error, DistError) or "/gloo/" in str(error)


def join_group(store: Store, *, rank: int, size: int, host: str, timeout_seconds: float) -> Group:
    """Meet the other ranks at `store`, listening on the address `host` only.

    The deadline is that of meeting and of every later sum. Raises ConnectionError.
    """
    with meeting(rank, size):
        return Group(make_gloo(store, rank, size, host, timedelta(seconds=timeout_seconds)))


def make_gloo(store: Store, rank: int, size: int, host: str, timeout: timedelta) -> Backend:
    """A gloo that listens on the address `host` only. Raises RuntimeError."""
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [ProcessGroupGloo.create_device(hostname=host)]
    options._timeout = timeout
    return ProcessGroupGloo(store, rank, size, options)


def open_store(host: str, timeout_seconds: float) -> TCPStore:
    """Where ranks meet: it listens on the address `host` only, at its `port`."""
    listener = socket.create_server((host, 0))
    return TCPStore(
        host,
        listener.getsockname()[1],
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_seconds),
        master_listen_fd=listener.detach(),
    )


def find_store(host: str, port: int, timeout_seconds: float) -> TCPStore:
    """The store that another process opened. Raises ConnectionError."""
    with _blaming(f"there is no store at {host}:{port}"):
        return TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout_seconds))


def meeting(rank: int, size: int) -> AbstractContextManager[None]:
    """Within it, what a process group raises is a ConnectionError that names the rank."""
    return _blaming(f"rank {rank} did not meet all {size} ranks")


@contextmanager
def _blaming(sentence: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # all that gloo and the store raise
        raise ConnectionError(f"{sentence}: {error}") from error
