"""The quarantine: prompts at which actors fail again and again, kept on disk and out of the run.

    <out>/quarantine/step_000012_prompt_0005.json          what was being done, with which seeds
    <out>/quarantine/step_000012_prompt_0005.safetensors   the tokens, where there were any to score

A prompt is out from the place where it failed on: a resumed run reads the folder and leaves out
what the first one left out. Deleting a file lets its prompt in again. It knows nothing of actors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from musicrl.checkpoint import save_tensors
from musicrl.rollout import Chunk
from musicrl.textfile import write_text
from musicrl.types import Rollouts

KIND = "quarantine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One prompt that failed, and all that it takes to do again what was done with it."""

    chunk: Chunk
    """Of this prompt alone."""
    doing: str
    """What failed last ("scoring prompt 5 of step 12")."""
    error: str
    attempts: int
    run_seed: int
    seeds: Sequence[int]
    """Of each sample, its own random stream."""
    version: int | None
    """Of the weights that sampled it; none where sampling failed (`doing` names them)."""
    rollouts: Rollouts | None
    """What was to be scored; none where sampling failed, or where they are lost too."""

    @property
    def place(self) -> tuple[int, int]:
        """Step, and number of the prompt in it."""
        return self.chunk.step, self.chunk.first_prompt

    @property
    def name(self) -> str:
        step, prompt = self.place
        return f"step_{step:06d}_prompt_{prompt:04d}"

    def to_json(self) -> dict[str, Any]:
        (prompt,), (step, index) = self.chunk.prompts, self.place
        return {
            "step": step,
            "prompt_index": index,
            "prompt": asdict(prompt),
            "doing": self.doing,
            "error": self.error,
            "attempts": self.attempts,
            "run_seed": self.run_seed,
            "seeds": list(self.seeds),
            "version": self.version,
            "tokens": None if self.rollouts is None else f"{self.name}.safetensors",
        }


class Quarantine:
    """The cases of a run, those of earlier attempts at it among them."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError naming a file that is none of its own."""
        self.folder = folder
        self._places: dict[tuple[int, int], str] = {}
        for path in sorted(folder.glob("*.json")):
            self._places.update([_read(path)])

    def __len__(self) -> int:
        return len(self._places)

    def add(self, case: Case) -> None:
        """Keep a case, whole or not at all: its JSON comes last."""
        self._write(case)
        (prompt,) = case.chunk.prompts
        self._places[case.place] = prompt.id

    def holds(self, chunk: Chunk) -> bool:
        """Whether the one prompt of `chunk` is out: it failed in this place, or in an earlier
        step."""
        (prompt,) = chunk.prompts
        place = chunk.step, chunk.first_prompt
        return place in self._places or any(
            step < chunk.step and prompt.id == id for (step, _), id in self._places.items()
        )

    def touches(self, chunk: Chunk) -> bool:
        """Whether any prompt of `chunk` is out."""
        return bool(self._places) and any(map(self.holds, chunk.parts()))

    def _write(self, case: Case) -> None:
        if case.rollouts is not None:
            path = self.folder / f"{case.name}.safetensors"
            save_tensors(path, _tensors(case.rollouts), kind=KIND, config=case.to_json())
        text = json.dumps(case.to_json(), indent=1, ensure_ascii=False)
        write_text(self.folder / f"{case.name}.json", text + "\n")


def _tensors(rollouts: Rollouts) -> Mapping[str, torch.Tensor]:
    """int16 [G, C], int16 [G, S, K] and float32 [G, S, K] of one prompt's samples."""
    arrays = {
        "conditions": rollouts.conditions,
        "tokens": rollouts.tokens,
        "logprobs": rollouts.logprobs,
    }
    return {name: torch.tensor(array) for name, array in arrays.items()}


def _read(path: Path) -> tuple[tuple[int, int], str]:
    try:
        case = json.loads(path.read_text(encoding="utf-8"))
        return (int(case["step"]), int(case["prompt_index"])), str(case["prompt"]["id"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as fault:
        raise ValueError(f"{path} is no file of a quarantine: {fault!r}") from fault
