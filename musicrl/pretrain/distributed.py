"""Pretraining by several processes, as torchrun starts them: each takes its rows of every batch.

    whole batch, drawn by every process (a pure function of seed and step)
      └ its rows ── forward, backward ── gradients summed over the processes ── the same step in each

So a batch's loss is that of one process up to rounding, whatever the number of processes. The first
process alone writes: checkpoints, logs, weights, figures. They meet by gloo, and sum gradients on GPUs
by nccl. All must see one folder. It knows no stage.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from musicrl.device import role_device
from musicrl.pretrain import progress
from musicrl.ranks import Alone, Group, Ranks

Item = TypeVar("Item")


class Crew:
    """The processes of one stage."""

    def __init__(self, rank: int, size: int, device: torch.device, ranks: Ranks) -> None:
        self.rank, self.size, self.device = rank, size, device
        self._ranks = ranks

    @property
    def is_first(self) -> bool:
        """Whether this one writes."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This process's part of the rows [B, ...] of a batch, one row at least.

        Raises ValueError when there are more processes than rows.
        """
        if len(rows) < self.size:
            raise ValueError(f"{self.size} processes cannot share {len(rows)} rows of a batch")
        return rows.tensor_split(self.size)[self.rank]

    def backward(self, loss: Tensor, parameters: Iterable[Tensor], *, weight: float = 1.0) -> float:
        """Gradients of the weighted sum of all processes' losses, and that sum.

        `weight` is this process's share of what the loss is a mean over. Raises ConnectionError when
        another process has gone.
        """
        weighted = loss * weight if self.size > 1 else loss
        weighted.backward()
        return self._ranks.add_up(list(parameters), weighted.item())

    def total(self, values: Mapping[str, float], *, weight: float) -> dict[str, float]:
        """Weighted sums over the processes."""
        if self.size == 1:
            return dict(values)
        sums = torch.tensor(list(values.values()), dtype=torch.float64) * weight
        dist.all_reduce(sums)
        return dict(zip(values, sums.tolist(), strict=True))

    def join(self, part: Tensor) -> tuple[Tensor, slice]:
        """The rows of all processes in their order, without gradient, and which are this one's."""
        if self.size == 1:
            return part.detach(), slice(len(part))
        counts = [torch.zeros(1, dtype=torch.int64, device=part.device) for _ in range(self.size)]
        dist.all_gather(counts, torch.tensor([len(part)], device=part.device))
        sizes = [int(count) for count in counts]
        padded = part.new_zeros((max(sizes), *part.shape[1:]))
        padded[: len(part)] = part.detach()
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        whole = torch.cat([rows[:count] for rows, count in zip(parts, sizes, strict=True)])
        first = sum(sizes[: self.rank])
        return whole, slice(first, first + len(part))

    def join_with_gradient(self, part: Tensor) -> Tensor:
        """The rows of all processes; the gradients that any has of this one's rows come back."""
        if self.size == 1:
            return part
        whole: Tensor = _Join.apply(part, self)  # type: ignore[no-untyped-call]
        return whole

    def agree(self, step: int, what: str) -> None:
        """Wait for all, and raise ValueError unless they begin at one step: they see one folder."""
        if self.size == 1:
            return
        steps, _ = self.join(torch.tensor([step]))
        if len(set(steps.tolist())) > 1:
            raise ValueError(
                f"the processes resume {what} at steps {steps.tolist()}: give them one folder"
            )

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process goes before the others, who find the files that it wrote."""
        if not self.is_first:
            self._meet()
        yield
        if self.is_first:
            self._meet()

    def track(self, items: Iterable[Item], *, description: str) -> Iterable[Item]:
        """The items, with the progress of the first process shown."""
        return progress.track(items, description=description) if self.is_first else items

    def writer(self, folder: Path, first_step: int) -> Log:
        """TensorBoard's, of the first process; the others log nothing."""
        return Log(folder if self.is_first else None, first_step)

    def _meet(self) -> None:
        if self.size > 1:
            dist.all_reduce(torch.zeros(1))


class Log:
    """Scalars for TensorBoard, or for nobody."""

    def __init__(self, folder: Path | None, first_step: int) -> None:
        is_read = folder is not None
        self._writer = SummaryWriter(str(folder), purge_step=first_step) if is_read else None

    def add_scalar(self, name: str, value: float, step: int) -> None:
        if self._writer is not None:
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _Join(torch.autograd.Function):
    """Rows of all processes. Every process uses them all, so that a row's gradient is the sum over
    the processes of what each has of it."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, part: Tensor, crew: Crew) -> Tensor:
        whole, ctx.own = crew.join(part)  # type: ignore[attr-defined]
        return whole

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor
    ) -> tuple[Tensor, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.own], None  # type: ignore[attr-defined]


ALONE = Crew(0, 1, torch.device("cpu"), Alone())
"""One process on the CPU."""


def num_processes() -> int:
    """How many torchrun started: 1 without it. Raises ValueError for what torchrun never sets."""
    return _number("WORLD_SIZE", 1)


@contextmanager
def crew_of(gpus: float) -> Iterator[Crew]:
    """The processes that torchrun started, each on a GPU of its own where `gpus` is not 0; else one.

    Raises ValueError where torch finds no GPU for this process.
    """
    device = role_device(gpus)
    if num_processes() == 1:
        yield Crew(0, 1, device, Alone())
        return
    if device.type == "cuda":
        local = _number("LOCAL_RANK", 0)
        if local >= torch.cuda.device_count():
            raise ValueError(f"process {local} of this machine finds no GPU of its own")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        world = dist.distributed_c10d._get_default_group()
        group = Group(world._get_backend(device), device)
        yield Crew(group.rank, group.size, device, group)
    finally:
        dist.destroy_process_group()


def _number(name: str, usual: int) -> int:
    text = os.environ.get(name, str(usual))
    if not text.isdigit():
        raise ValueError(f"the environment's {name} must be a number, got {text!r}")
    return int(text)
