"""Real ratings: audio and what people said of it, in place of graded degradations.

One Parquet file with a column `audio` (the path of an audio file, from the Parquet file's folder,
or its bytes) and a column `score` from 1 to 5; several rows may rate one clip. A column `split`
with `train` and `validation` divides them; without it every tenth row validates. What does not fit
is refused with the file, the row and the column.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from musicrl.audio import read_wav, resample, to_mono
from musicrl.pretrain.graded import REAL, Grade, GradedClips
from musicrl.pretrain.progress import track
from musicrl.rewards.mos import HIGHEST, LOWEST

RATED = "rated"
"""The kind of a clip that people scored."""
COLUMNS = ("audio", "score")
SPLITS = ("train", "validation")


def read_ratings(
    path: Path, split: str, *, sample_rate: int, seconds: float, listen: Callable[[Tensor], Tensor]
) -> GradedClips:
    """The rated clips of a split; `listen` gives the log-mel of audio [1, N] at `sample_rate` Hz.

    Raises FileNotFoundError when the file or an audio file is missing, and ValueError naming file,
    row and column for whatever cannot be used, such as a clip shorter than `seconds`.
    """
    rows = [row for row in enumerate(_rows(path)) if _split(path, *row) == split]
    if not rows:
        raise ValueError(f"{path} has no rows of split {split!r}")
    grades = [_grade(path, index, row) for index, row in rows]
    mels = []
    for index, row in track(rows, description=f"hearing rated clips ({split})"):
        audio = _audio(path, index, row["audio"], sample_rate)
        if len(audio) < seconds * sample_rate:
            found = len(audio) / sample_rate
            raise ValueError(f"{path}: row {index} lasts {found:.2f} s, needs {seconds:g} s")
        mels.append(listen(torch.from_numpy(audio)[None])[0].half())
    return GradedClips(mels=mels, grades=grades)


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"no ratings at {path}")
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as fault:
        raise ValueError(f"{path} is not a readable Parquet file: {fault}") from fault
    for column in COLUMNS:
        if column not in table.column_names:
            raise ValueError(f"{path} lacks the column {column!r}")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _split(path: Path, index: int, row: dict[str, Any]) -> str:
    split = row.get("split", SPLITS[index % 10 == 9])
    if split not in SPLITS:
        raise ValueError(f"{path}: row {index} has split {split!r}, not one of {', '.join(SPLITS)}")
    return str(split)


def _grade(path: Path, index: int, row: dict[str, Any]) -> Grade:
    score = row["score"]
    is_number = isinstance(score, (int, float)) and not isinstance(score, bool)
    if not is_number or not LOWEST <= score <= HIGHEST:
        raise ValueError(f"{path}: row {index} has score {score!r}, expected a number from 1 to 5")
    group = f"row {index}"
    return Grade(group=group, base=REAL, kind=RATED, strength=0.0, opinion=float(score))


def _audio(path: Path, index: int, audio: object, sample_rate: int) -> NDArray[np.float32]:
    """Mono audio float32 [N] of a cell."""
    if isinstance(audio, str):
        return read_wav(path.parent / audio, sample_rate=sample_rate)
    if isinstance(audio, bytes):
        return _decoded(path, index, audio, sample_rate)
    kind = type(audio).__name__
    raise ValueError(f"{path}: row {index} has audio of type {kind}, expected a path or bytes")


def _decoded(path: Path, index: int, audio: bytes, sample_rate: int) -> NDArray[np.float32]:
    try:
        samples, rate = soundfile.read(io.BytesIO(audio), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as fault:
        raise ValueError(f"{path}: row {index} holds no readable audio: {fault}") from fault
    if not len(samples) or not np.isfinite(samples).all():
        raise ValueError(f"{path}: row {index} holds audio that is empty or not finite")
    return resample(to_mono(samples.T), rate, sample_rate)
