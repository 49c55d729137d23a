"""A set of clips, and the numbers that only a set has: how far it is from another, how diverse.

A set is kept as what those numbers need, so that no audio is held: embeddings by models that are no
reward, the tokens it was sampled as, and a few measures of each clip. How the numbers are made
stands in `distance.py` and `diversity.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musicrl.evaluation.distance import Distance, frechet, kernel
from musicrl.evaluation.diversity import (
    clipped,
    cosine_spread,
    cosine_spread_within,
    distinct,
    longest_note,
    silent,
    token_entropy,
)
from musicrl.evaluation.ears import Ears
from musicrl.evaluation.figures import Figure, figure
from musicrl.types import Clips


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSet:
    """B clips without their audio."""

    embeddings: Mapping[str, NDArray[np.float64]]
    """float64 [B, D] of each embedder; NaN for clips that are not finite."""
    columns: Mapping[str, NDArray[np.float64]]
    """float64 [B] each: `longest-note`, s, and whether `silent` and `clipped`; NaN as above."""
    tokens: NDArray[np.int16] | None = None
    """int16 [B, S, K]; None for clips that no policy sampled."""
    texts: tuple[str, ...] = ()
    """Caption of each clip; empty where it was made for none."""

    @property
    def num_clips(self) -> int:
        return len(next(iter(self.columns.values())))


@dataclass(frozen=True, slots=True, kw_only=True)
class SetFigures:
    """The numbers of one set."""

    clips: int
    distances: Mapping[str, Distance]
    """To the reference, as `frechet/tagger`; empty without one, and for the reference itself."""
    diversity: Mapping[str, Figure]

    def to_json(self) -> dict[str, object]:
        return {
            "clips": self.clips,
            "distances": {name: found.to_json() for name, found in self.distances.items()},
            "diversity": {name: found.to_json() for name, found in self.diversity.items()},
        }


def describe(
    clips: Clips, ears: Ears, tokens: NDArray[np.int16] | None = None, texts: Sequence[str] = ()
) -> ClipSet:
    """The set of clips [B, N], sampled as tokens [B, S, K] for B texts where a policy did it."""
    return ClipSet(
        embeddings=ears.embed(clips),
        columns={
            "longest-note": longest_note(clips),
            "silent": silent(clips),
            "clipped": clipped(clips),
        },
        tokens=tokens,
        texts=tuple(texts),
    )


def join(parts: Sequence[ClipSet]) -> ClipSet:
    """The clips of several parts of one set, in their order."""
    tokens = [part.tokens for part in parts if part.tokens is not None]
    return ClipSet(
        embeddings=_joined([part.embeddings for part in parts]),
        columns=_joined([part.columns for part in parts]),
        tokens=np.concatenate(tokens) if tokens else None,
        texts=tuple(text for part in parts for text in part.texts),
    )


def set_figures(
    clips: ClipSet, reference: ClipSet | None, stream_names: Sequence[str]
) -> SetFigures:
    """The numbers of a set, with its distances to `reference` unless that is the set itself."""
    is_measured = reference is not None and reference is not clips
    return SetFigures(
        clips=clips.num_clips,
        distances=distances(reference, clips) if is_measured and reference is not None else {},
        diversity=diversity(clips, stream_names),
    )


def distances(reference: ClipSet, clips: ClipSet) -> dict[str, Distance]:
    """Both distances in every embedding; clips that are not finite are left out.

    Clips of a policy and of its base share prompts and random numbers; the standard errors, which
    resample each set on its own, are then too large rather than too small. Raises ValueError when
    fewer than two clips are left in a set.
    """
    measures = {"frechet": frechet, "kernel": kernel}
    return {
        f"{name}/{embedding}": measure(_known(reference.embeddings[embedding]), _known(rows))
        for name, measure in measures.items()
        for embedding, rows in clips.embeddings.items()
    }


def diversity(clips: ClipSet, stream_names: Sequence[str]) -> dict[str, Figure]:
    """Spread of the embeddings, measures of the clips, and repetition of every stream's tokens."""
    spread = {f"spread/{k}": cosine_spread(_known(v)) for k, v in clips.embeddings.items()}
    return {
        **spread,
        **_spread_within(clips),
        **{name: figure(column) for name, column in clips.columns.items()},
        **(_token_figures(clips.tokens, stream_names) if clips.tokens is not None else {}),
    }


def _spread_within(clips: ClipSet) -> dict[str, Figure]:
    """Only where a caption has several clips."""
    if len(set(clips.texts)) == len(clips.texts):
        return {}
    return {
        f"spread-within/{name}": cosine_spread_within(
            _known(rows), [clips.texts[i] for i in np.flatnonzero(np.isfinite(rows).all(1))]
        )
        for name, rows in clips.embeddings.items()
    }


def _token_figures(tokens: NDArray[np.int16], stream_names: Sequence[str]) -> dict[str, Figure]:
    """Numbers of the whole set, without a standard error: resampled clips would repeat n-grams."""
    streams = {name: tokens[:, :, k] for k, name in enumerate(stream_names)}
    found = {
        **{f"distinct-1/{name}": distinct(stream, 1) for name, stream in streams.items()},
        **{f"distinct-2/{name}": distinct(stream, 2) for name, stream in streams.items()},
        **{f"token-entropy/{name}": token_entropy(stream) for name, stream in streams.items()},
    }
    return {
        name: Figure(mean=value, standard_error=float("nan"), count=len(tokens))
        for name, value in found.items()
    }


def _known(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    known: NDArray[np.float64] = rows[np.isfinite(rows).all(1)]
    return known


def _joined(parts: Sequence[Mapping[str, NDArray[np.float64]]]) -> dict[str, NDArray[np.float64]]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
