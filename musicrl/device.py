"""The device of a role, from the GPUs that its configuration gives it."""

from __future__ import annotations

import torch


def role_device(gpus: float) -> torch.device:
    """The first visible GPU for a role that has one, or a part of one; else the CPU.

    Raises ValueError when torch cannot use a GPU.
    """
    if not gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(f"{gpus:g} GPUs are asked for, but torch finds none that it can use")
    return torch.device("cuda")
