"""Comparisons, ratings and playable clips as batches of columns, and back.

Tokens travel as one flat column with offsets: a batch is made and read without a Python object a
token. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from musicrl.preference.clip import PlayableClip
from musicrl.preference.schema import COMPARISONS, POOL, RATINGS
from musicrl.types import Comparison, Prompt, Rating, TokenClip

Columns = dict[str, object]


def comparison_batch(rows: Sequence[Comparison]) -> pa.RecordBatch:
    columns: Columns = {
        "id": [row.id for row in rows],
        **_prompt_columns([row.prompt for row in rows]),
        **_clip_columns([row.clip_a for row in rows], "_a"),
        **_clip_columns([row.clip_b for row in rows], "_b"),
        "choice": [row.choice for row in rows],
        "heard_a": [row.heard_a for row in rows],
        "heard_b": [row.heard_b for row in rows],
        **_rater_columns(rows),
    }
    return _batch(columns, COMPARISONS)


def rating_batch(rows: Sequence[Rating]) -> pa.RecordBatch:
    columns: Columns = {
        "id": [row.id for row in rows],
        **_prompt_columns([row.prompt for row in rows]),
        **_clip_columns([row.clip for row in rows]),
        "score": [row.score for row in rows],
        "heard": [row.heard for row in rows],
        **_rater_columns(rows),
    }
    return _batch(columns, RATINGS)


def pool_batch(rows: Sequence[PlayableClip]) -> pa.RecordBatch:
    columns: Columns = {
        **_prompt_columns([row.prompt for row in rows]),
        "source": [row.prompt.source for row in rows],
        **_clip_columns([row.clip for row in rows]),
        "seed": pa.array([row.seed for row in rows], pa.uint64()),
        "wav": [row.wav for row in rows],
        "seconds": [row.seconds for row in rows],
    }
    return _batch(columns, POOL)


def to_comparisons(batch: pa.RecordBatch) -> tuple[Comparison, ...]:
    names = ("id", "choice", "heard_a", "heard_b", "rater", "simulated", "time")
    ids, choices, heard_a, heard_b, raters, simulated, times = (
        batch.column(name).to_pylist() for name in names
    )
    prompts, first, second = _prompts(batch), _clips(batch, "_a"), _clips(batch, "_b")
    return tuple(
        Comparison(
            id=ids[i],
            prompt=prompts[i],
            clip_a=first[i],
            clip_b=second[i],
            choice=choices[i],
            heard_a=heard_a[i],
            heard_b=heard_b[i],
            rater=raters[i],
            simulated=simulated[i],
            time=times[i],
        )
        for i in range(batch.num_rows)
    )


def to_ratings(batch: pa.RecordBatch) -> tuple[Rating, ...]:
    names = ("id", "score", "heard", "rater", "simulated", "time")
    ids, scores, heard, raters, simulated, times = (
        batch.column(name).to_pylist() for name in names
    )
    prompts, clips = _prompts(batch), _clips(batch)
    return tuple(
        Rating(
            id=ids[i],
            prompt=prompts[i],
            clip=clips[i],
            score=scores[i],
            heard=heard[i],
            rater=raters[i],
            simulated=simulated[i],
            time=times[i],
        )
        for i in range(batch.num_rows)
    )


def to_pool(batch: pa.RecordBatch) -> tuple[PlayableClip, ...]:
    sources, seeds, wavs, seconds = (
        batch.column(name).to_pylist() for name in ("source", "seed", "wav", "seconds")
    )
    prompts, clips = _prompts(batch), _clips(batch)
    return tuple(
        PlayableClip(
            prompt=Prompt(id=prompts[i].id, text=prompts[i].text, source=sources[i]),
            clip=clips[i],
            seed=seeds[i],
            wav=wavs[i],
            seconds=seconds[i],
        )
        for i in range(batch.num_rows)
    )


def _batch(columns: Columns, schema: pa.Schema) -> pa.RecordBatch:
    arrays = [
        pa.array(columns[field.name], field.type)
        if isinstance(columns[field.name], list)
        else columns[field.name]
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _prompt_columns(prompts: Sequence[Prompt]) -> Columns:
    return {"prompt_id": [p.id for p in prompts], "prompt": [p.text for p in prompts]}


def _rater_columns(rows: Sequence[Comparison] | Sequence[Rating]) -> Columns:
    return {
        "rater": [row.rater for row in rows],
        "simulated": [row.simulated for row in rows],
        "time": [row.time for row in rows],
    }


def _clip_columns(clips: Sequence[TokenClip], suffix: str = "") -> Columns:
    sizes = [clip.tokens.size for clip in clips]
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int32)
    flat = np.concatenate([np.empty(0, np.int16), *(clip.tokens.ravel() for clip in clips)])
    kind = COMPARISONS.field("tokens_a").type
    return {
        f"clip{suffix}": [clip.id for clip in clips],
        f"tokens{suffix}": pa.ListArray.from_arrays(offsets, pa.array(flat, pa.int16()), type=kind),
        f"steps{suffix}": [clip.tokens.shape[0] for clip in clips],
        f"streams{suffix}": [clip.tokens.shape[1] for clip in clips],
        f"policy{suffix}": [clip.policy for clip in clips],
    }


def _prompts(batch: pa.RecordBatch) -> list[Prompt]:
    ids, texts = (batch.column(name).to_pylist() for name in ("prompt_id", "prompt"))
    return [Prompt(id=id, text=text) for id, text in zip(ids, texts, strict=True)]


def _clips(batch: pa.RecordBatch, suffix: str = "") -> list[TokenClip]:
    ids, steps, streams, policies = (
        batch.column(name + suffix).to_pylist() for name in ("clip", "steps", "streams", "policy")
    )
    grids = _grids(batch.column("tokens" + suffix), steps, streams)
    return [
        TokenClip(id=id, tokens=tokens, policy=policy)
        for id, tokens, policy in zip(ids, grids, policies, strict=True)
    ]


def _grids(
    tokens: pa.ListArray, steps: Sequence[int], streams: Sequence[int]
) -> list[NDArray[np.int16]]:
    """Each row's tokens int16 [S, K]: views of the batch, so that nothing is copied."""
    flat, ends = tokens.values.to_numpy(), tokens.offsets.to_numpy()
    return [
        flat[start:end].reshape(S, K)
        for start, end, S, K in zip(ends[:-1], ends[1:], steps, streams, strict=True)
    ]
