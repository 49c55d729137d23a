"""Figures of an update, for people: per token, per sequence and per stream.

Knows the names of the streams and the meaning of the figures; takes no part in the gradient.
KL and entropy are nats; `kl/sequence` sums the S x K tokens of a clip, the others are per token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from musicrl.algorithms.base import Algorithm, LossOut
from musicrl.algorithms.functions import explained_variance


def policy_metrics(
    outs: Sequence[LossOut], *, algorithm: Algorithm, streams: Sequence[str]
) -> dict[str, float]:
    """KL, entropy and importance ratio over all tokens that an update went through."""
    ratio = torch.cat([out.ratio for out in outs])
    metrics = {
        "ratio/mean": float(ratio.mean()),
        "ratio/max_deviation": float((ratio - 1).abs().max()),
        **_by_stream("entropy", torch.cat([out.entropy for out in outs]), streams),
    }
    limited = algorithm.is_limited(ratio)
    if limited is not None:
        metrics["ratio/limited"] = float(limited.float().mean())
    kl = [out.kl for out in outs if out.kl is not None]
    if kl:
        metrics["kl/sequence"] = float(torch.cat(kl).sum((1, 2)).mean())
        metrics |= _by_stream("kl", torch.cat(kl), streams)
    return metrics


def mismatch_metrics(outs: Sequence[LossOut]) -> dict[str, float]:
    """Distance of the learner's log-probabilities from the sampler's, nats: over the tokens of
    samples of the learner's own weights, before these change."""
    distance = torch.cat([out.ratio for out in outs]).log().abs()
    return {"mismatch/mean": float(distance.mean()), "mismatch/max": float(distance.max())}


def advantage_metrics(
    *, advantages: Tensor, returns: Tensor, values: Tensor | None, streams: Sequence[str]
) -> dict[str, float]:
    """Mean and standard deviation over tokens, root mean square of each stream, and how much of
    the returns the values explain."""
    rms = advantages.square().mean((0, 1)).sqrt()
    metrics = {
        "advantage/mean": float(advantages.mean()),
        "advantage/std": float(advantages.std(correction=0)),
        **{f"advantage/stream/{name}": float(x) for name, x in zip(streams, rms, strict=True)},
    }
    if values is not None:
        metrics["value/loss"] = float((returns - values).square().mean())
        metrics["value/explained_variance"] = explained_variance(values=values, returns=returns)
    return metrics


def _by_stream(name: str, cells: Tensor, streams: Sequence[str]) -> dict[str, float]:
    means = cells.mean((0, 1))
    return {
        f"{name}/token": float(cells.mean()),
        **{f"{name}/stream/{stream}": float(x) for stream, x in zip(streams, means, strict=True)},
    }
