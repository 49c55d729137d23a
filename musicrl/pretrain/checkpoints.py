"""Resuming a pretraining stage: model and optimiser of one step, in one atomic file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from musicrl.checkpoint import load_into, load_tensors, save_tensors


class StageCheckpoint:
    """The one resume file of a stage; AdamW moments are stored beside the parameters."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Replace the file with the state after `step` steps."""
        tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{key}": value for key, value in state.items()}
        save_tensors(self.path, tensors, kind="stage", config={"step": step})

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """The number of steps done: 0 where there is no file.

        Raises ValueError naming the file where it belongs to another model.
        """
        if not self.path.is_file():
            return 0
        tensors, config = load_tensors(self.path, kind="stage")
        own = {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}
        load_into(model, own, origin=self.path)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer/"):
                _, index, key = name.split("/")
                moments.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        return int(config["step"])

    def remove(self) -> None:
        """Forget it: the stage is finished."""
        self.path.unlink(missing_ok=True)
