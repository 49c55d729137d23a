"""Resuming a pretraining stage: model and optimisers of one step, in one atomic file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from musicrl.checkpoint import load_into, load_tensors, save_tensors


class StageCheckpoint:
    """The one resume file of a stage; moments are stored beside the parameters."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, model: nn.Module, step: int, *optimizers: torch.optim.Optimizer) -> None:
        """Replace the file with the state after `step` steps."""
        tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
        for number, optimizer in enumerate(optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                for key, value in state.items():
                    tensors[f"optimizer/{number}/{index}/{key}"] = value
        save_tensors(self.path, tensors, kind="stage", config={"step": step})

    def restore(self, model: nn.Module, *optimizers: torch.optim.Optimizer) -> int:
        """The number of steps done: 0 where there is no file.

        Raises ValueError naming the file where it belongs to another model.
        """
        if not self.path.is_file():
            return 0
        tensors, config = load_tensors(self.path, kind="stage")
        own = {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}
        load_into(model, own, origin=self.path)
        moments: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
        for name, tensor in tensors.items():
            if name.startswith("optimizer/"):
                _, number, index, key = name.split("/")
                moments[int(number)].setdefault(int(index), {})[key] = tensor
        for optimizer, state in zip(optimizers, moments, strict=True):
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        return int(config["step"])

    def remove(self) -> None:
        """Forget it: the stage is finished."""
        self.path.unlink(missing_ok=True)
