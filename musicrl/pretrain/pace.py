"""The pace of a stage: seconds of its steps, and of drawing their batches, which is what a loader does.

    for step in pace.steps(numbers):            time/step
        with pace.drawing(): batch = ...        time/drawing, in it

Both go to TensorBoard; at the end a sentence has their medians, in which checkpoints and measurements
between steps do not count. Knows nothing of what a step does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from musicrl.pretrain.distributed import Crew, Log


class Pace:
    """Of one stage, in one process of its crew; the first one's is logged and said."""

    def __init__(self, name: str, crew: Crew, log: Log) -> None:
        self._name, self._crew, self._log = name, crew, log
        self._steps: list[float] = []
        self._draws: list[float] = []

    def steps(self, numbers: range) -> Iterator[int]:
        """The numbers of the steps, with their progress; says the pace after the last."""
        for number in self._crew.track(numbers, description=f"training {self._name}"):
            started, drawn = time.perf_counter(), len(self._draws)
            yield number
            self._steps.append(time.perf_counter() - started)
            self._log.add_scalar("time/step", self._steps[-1], number)
            self._log.add_scalar("time/drawing", sum(self._draws[drawn:]), number)
        if self._steps and self._crew.is_first:
            print(self.told(), flush=True)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """What is inside draws a batch."""
        started = time.perf_counter()
        yield
        self._draws.append(time.perf_counter() - started)

    def told(self) -> str:
        """One sentence; of steps that were taken."""
        step, draw = median(self._steps), median(self._draws)
        share = 100 * draw / step
        return (
            f"training {self._name}: {len(self._steps)} steps of {step:.3f} s, "
            f"{draw:.4f} s ({share:.1f} %) of it drawing the batch (medians)"
        )
