"""Training a preference model on pairs: steps, early stopping, and a state that resumes bit for bit.

    <folder>/.resume.safetensors   model, best model, moments and the step
    <folder>/tensorboard/

Knows nothing of files of comparisons, of rewards or of what a report looks like.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from musicrl.bounds import at_least
from musicrl.device import role_device
from musicrl.policies.preference import PreferenceModel, bradley_terry
from musicrl.preference.inputs import HeldoutClips, Inputs, distinct_clips, score
from musicrl.preference.pairs import batches, prompt_batches
from musicrl.preference.predictions import Prediction
from musicrl.pretrain.checkpoints import StageCheckpoint
from musicrl.pretrain.embedder import schedule

CHECKPOINT = ".resume.safetensors"


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Learning of the preference model (paper section 3.3 gives steps and batch, no more)."""

    steps: int = 2000
    """The paper takes 10,000, somewhat more than an epoch of its 300,000 pairs."""
    batch_pairs: int = 32
    """Drawn at random, as the paper's; not read with `batch_prompts`."""
    batch_prompts: int = 0
    """Prompts of a step, with all their comparisons (0: pairs at random). Where the clips of a pool
    stand in many pairs each, this learns from many choices for the work of a few."""
    learning_rate: float = 3e-4
    """Highest; rises linearly and falls by half a cosine."""
    weight_decay: float = 0.02
    evaluate_every: int = 250
    """Steps between measurements of the held-out comparisons, and between checkpoints."""
    patience: int = 4
    """Measurements without a lower held-out log-loss after which it stops (0: never)."""
    gpus: float = 0.0
    """Above 0 it learns on the first GPU (not yet run on one)."""
    seed: int = 0
    """Of the order of the pairs."""

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, batch_pairs=self.batch_pairs)
        at_least(1, evaluate_every=self.evaluate_every)
        at_least(0, patience=self.patience, batch_prompts=self.batch_prompts, seed=self.seed)
        at_least(0, weight_decay=self.weight_decay, gpus=self.gpus)
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A trained model: that of the lowest held-out log-loss."""

    model: PreferenceModel
    step: int
    """Steps that made it."""
    steps: int
    """Steps that were done."""
    prediction: Prediction
    deviation: float
    """Of the scores among the held-out clips of a prompt."""


class State(nn.Module):
    """All that training carries from step to step, but for the moments."""

    best_loss: Tensor
    best_step: Tensor
    waited: Tensor
    settings: Tensor

    def __init__(self, model: PreferenceModel, settings: bytes) -> None:
        super().__init__()
        self.model, self.best = model, copy.deepcopy(model).requires_grad_(False)
        self.register_buffer("best_loss", torch.tensor(torch.inf, dtype=torch.float64))
        self.register_buffer("best_step", torch.tensor(0))
        self.register_buffer("waited", torch.tensor(0))
        self.register_buffer("settings", torch.tensor(list(settings), dtype=torch.uint8))

    def compare(self, log_loss: float, step: int) -> None:
        """Keep the model if it is the best so far."""
        if log_loss < self.best_loss:
            self.best.load_state_dict(self.model.state_dict())
            self.best_loss.fill_(log_loss)
            self.best_step.fill_(step)
            self.waited.zero_()
        else:
            self.waited += 1


def train(
    model: PreferenceModel, inputs: Inputs, config: TrainingConfig, folder: Path, *, name: str
) -> Fitted:
    """Train `model` on the pairs to learn from; continues where a checkpoint of `folder` ends, which
    stays: who is interrupted after it comes back to it.

    What comes out has the lowest held-out log-loss of all measurements; its figures are therefore
    chosen among as many, and a little kind. Raises ValueError when the checkpoint is of other
    settings or pairs.
    """
    digest, device = _digest(model, inputs, config), role_device(config.gpus)
    state = State(model.to(device), digest)
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    checkpoint = StageCheckpoint(folder / CHECKPOINT)
    first = _restore(checkpoint, state, optimizer)
    heldout = HeldoutClips(inputs)
    done = first
    with SummaryWriter(str(folder / "tensorboard"), purge_step=first) as writer:
        for step, numbers in _steps(inputs, config, first, name):
            if config.patience and int(state.waited) >= config.patience:
                break
            loss = _update(model, optimizer, inputs, numbers, config, step)
            writer.add_scalar("train/log_loss", loss, step)
            done = step + 1
            if done % config.evaluate_every == 0 or done == config.steps:
                _measure(state, heldout, writer, done)
                checkpoint.write(state, done, optimizer)
    return _finish(state, heldout, done)


def _steps(
    inputs: Inputs, config: TrainingConfig, first: int, name: str
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The steps that are left, each with its pairs."""
    pairs = inputs.pairs
    drawn = (
        prompt_batches(pairs.train, pairs.prompt, config.batch_prompts, config.seed)
        if config.batch_prompts
        else batches(pairs.train, config.batch_pairs, config.seed)
    )
    left = islice(enumerate(drawn), first, config.steps)
    yield from track(left, total=config.steps - first, description=f"training {name}")


def _update(
    model: PreferenceModel,
    optimizer: torch.optim.Optimizer,
    inputs: Inputs,
    numbers: NDArray[np.int64],
    config: TrainingConfig,
    step: int,
) -> float:
    """One step on the numbered pairs; its log-loss."""
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * schedule(step, config.steps)
    clips, place = distinct_clips(inputs.pairs, numbers)
    scores = score(model, inputs.of(clips))
    first, second = scores[torch.from_numpy(place).to(scores.device)].unbind(1)
    wins = torch.from_numpy(inputs.pairs.first_wins[numbers]).to(scores.device)
    loss = bradley_terry(first - second, wins)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def _measure(state: State, heldout: HeldoutClips, writer: SummaryWriter, step: int) -> None:
    prediction = heldout.predict(heldout.scores(state.model))
    state.compare(prediction.log_loss, step)
    print(
        f"step {step}: held-out accuracy {prediction.accuracy:.3f}, "
        f"log-loss {prediction.log_loss:.4f}",
        flush=True,
    )
    for name in ("accuracy", "log_loss", "calibration_error"):
        writer.add_scalar(f"heldout/{name}", prediction.figures[name], step)


def _restore(checkpoint: StageCheckpoint, state: State, optimizer: torch.optim.Optimizer) -> int:
    wanted = state.settings.clone()
    step = checkpoint.restore(state, optimizer)
    if not torch.equal(state.settings, wanted):
        raise ValueError(
            f"{checkpoint.path} is of a fit with other settings or comparisons: "
            "finish that one, or choose another folder with --out"
        )
    return step


def _finish(state: State, heldout: HeldoutClips, steps: int) -> Fitted:
    """The best model, its scores moved to a mean of 0 over the held-out clips."""
    model = state.best
    scores = heldout.scores(model)
    with torch.no_grad():
        model.head.bias.sub_(float(scores.mean()))
    return Fitted(
        model=model.cpu().eval(),
        step=int(state.best_step),
        steps=steps,
        prediction=heldout.predict(scores),
        deviation=heldout.deviation(scores),
    )


def _digest(model: PreferenceModel, inputs: Inputs, config: TrainingConfig) -> bytes:
    """Of all that decides the steps: the settings, the pairs and the model to start from."""
    pairs = inputs.pairs
    digest = hashlib.blake2b(repr(asdict(config)).encode(), digest_size=16)
    digest.update(repr((inputs.has_text, inputs.num_steps, pairs.tokens.shape)).encode())
    for array in (inputs.conditions, pairs.prompt, pairs.first_wins, pairs.is_heldout):
        digest.update(np.ascontiguousarray(array).tobytes())
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.digest()
