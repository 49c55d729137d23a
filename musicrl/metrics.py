"""Where a run is seen: TensorBoard and the terminal.

`Metrics` is the only writer of TensorBoard events; `Display` draws one line of progress, live on a
terminal and as plain lines elsewhere. Both receive figures; neither computes any.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from musicrl.audio import spectrogram_image
from musicrl.types import Clips, Prompt

Sink = Callable[[int, Mapping[str, float]], None]
"""Takes the figures of a step."""


class Metrics:
    """TensorBoard events of a run."""

    def __init__(self, folder: Path, *, first_step: int = 0, sinks: Sequence[Sink] = ()) -> None:
        """Append to `folder`; events of an earlier attempt at `first_step` or later are hidden.
        `sinks` receive the same figures."""
        self._sinks = sinks
        self._writer = SummaryWriter(str(folder), purge_step=first_step or None)

    def scalars(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        for sink in self._sinks:
            sink(step, figures)

    def lags(self, step: int, lags: Mapping[int, int]) -> None:
        """Histogram of the versions by which the samples of a step were older than the learner."""
        if lags:
            values = np.repeat(list(lags), list(lags.values()))
            edges = np.arange(max(lags) + 2) - 0.5
            self._writer.add_histogram("staleness/lag", values, step, bins=edges)

    def clips(self, step: int, prompts: Sequence[Prompt], clips: Clips) -> None:
        """Audio and a picture of the spectrum of each clip, under its prompt."""
        for index, (prompt, audio) in enumerate(zip(prompts, clips.audio, strict=True)):
            tag = f"{index:02d} {prompt.text}"
            self._writer.add_audio(f"audio/{tag}", _column(audio), step, clips.sample_rate)
            picture = spectrogram_image(audio)
            self._writer.add_image(f"spectrogram/{tag}", picture, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _column(audio: NDArray[np.float32]) -> NDArray[np.float32]:
    """A copy [1, N] in [-1, 1]: the writer takes channels first and clips loudly."""
    return np.clip(audio, -1, 1)[None]


class Display:
    """Progress in the terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._title, self._total, self._done, self._started = "", 0, 0, 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[figures]}"),
                TextColumn("ETA"),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=self._console,
            )
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def say(self, sentence: str) -> None:
        """One line that stays."""
        self._console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    def begin(self, title: str, total: int, done: int = 0) -> None:
        """A new stage of `total` parts, of which `done` were made earlier."""
        self._title, self._total, self._done = title, total, done
        self._started = time.monotonic()
        if self._progress is None:
            self.say(f"{title}: {total} to do" if not done else f"{title}: from {done} to {total}")
            return
        if self._task is not None:
            self._progress.stop_task(self._task)
        self._task = self._progress.add_task(title, total=total, completed=done, figures="")

    def advance(self, figures: Mapping[str, float] | None = None, *, parts: int = 1) -> None:
        """`parts` more of the stage are done; `figures` are shown beside the bar."""
        self._done += parts
        text = "  ".join(f"{name} {value:.4g}" for name, value in (figures or {}).items())
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=parts, figures=text)
        elif figures:
            self.say(f"{self._title} {self._done}/{self._total}  {text}")
