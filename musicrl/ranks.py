"""Ranks: processes that share the work of one update and end it with the same weights.

Every rank holds the whole batch, so that baselines and normalisations are those of one process.
Each passes its share of an optimizer step's rows through the networks; what the rows gave is
joined, gradients are summed. It knows tensors and a process group, no actor and no algorithm.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

import torch
from torch import Tensor
from torch._C._distributed_c10d import Backend, ProcessGroupGloo, Store, TCPStore


class Ranks(Protocol):
    """How one process takes part in an update."""

    size: int
    """Processes."""

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

    def share(self, rows: Tensor) -> Tensor:
        return rows

    def join(self, parts: Sequence[Tensor], whole: Tensor) -> Tensor:
        return torch.cat(list(parts))

    def add_up(self, parameters: Sequence[Tensor], loss: float) -> float:
        return loss


class Group:
    """One rank of several. Sums go through the CPU, as float64, so that they depend on the number
    of ranks by no more than the rounding of each rank's own part.

    Every method raises ConnectionError when another rank has gone or is late.
    """

    def __init__(self, group: Backend) -> None:
        self._group = group
        self.rank, self.size = group.rank(), group.size()

    def share(self, rows: Tensor) -> Tensor:
        return self._split(rows)[self.rank]

    def join(self, parts: Sequence[Tensor], whole: Tensor) -> Tensor:
        joined = torch.zeros(whole.shape, dtype=torch.float64)
        if parts:
            self._split(joined)[self.rank].copy_(torch.cat(list(parts)))
        return self._sum(joined).to(whole)

    def add_up(self, parameters: Sequence[Tensor], loss: float) -> float:
        """A parameter that no rank has a gradient of keeps none, as in one process."""
        grads = [None if p.grad is None else p.grad.double().cpu() for p in parameters]
        known = torch.tensor([loss, *(float(grad is not None) for grad in grads)])
        flat = [
            torch.zeros(p.numel(), dtype=torch.float64) if grad is None else grad.flatten()
            for p, grad in zip(parameters, grads, strict=True)
        ]
        total = self._sum(torch.cat([known.double(), *flat]))
        (loss_sum, *counts), sums = total[: len(known)].tolist(), total[len(known) :]
        slices = sums.split([p.numel() for p in parameters])
        for parameter, count, part in zip(parameters, counts, slices, strict=True):
            parameter.grad = part.view(parameter.shape).to(parameter) if count else None
        return float(loss_sum)

    def _split(self, rows: Tensor) -> tuple[Tensor, ...]:
        return rows.tensor_split(self.size)

    def _sum(self, tensor: Tensor) -> Tensor:
        with _blaming(f"rank {self.rank} lost another rank of its group of {self.size}"):
            self._group.allreduce([tensor]).wait()  # type: ignore[attr-defined]  # the stubs lack it
        return tensor


def join_group(store: Store, *, rank: int, size: int, host: str, timeout_seconds: float) -> Group:
    """Meet the other ranks at `store`, listening on the address `host` only.

    The deadline is that of meeting and of every later sum. Raises ConnectionError.
    """
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [ProcessGroupGloo.create_device(hostname=host)]
    options._timeout = timedelta(seconds=timeout_seconds)
    with _blaming(f"rank {rank} did not meet all {size} ranks"):
        return Group(ProcessGroupGloo(store, rank, size, options))


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


@contextmanager
def _blaming(sentence: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # all that gloo and the store raise
        raise ConnectionError(f"{sentence}: {error}") from error
