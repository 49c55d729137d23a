"""The mathematics of the algorithms, as pure functions of tensors.

Tokens of a grid are ordered step by step, stream by stream: t = s * K + k. Functions know neither
settings nor networks. Anything of shape [B, S, K] is one number a token.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from musicrl.chunks import chunks

Estimator = Literal["k1", "k2", "k3"]


def token_logprobs(*, logprobs: Tensor, tokens: Tensor) -> Tensor:
    """log pi(a_t | s_t), [B, S, K], of the tokens in log-distributions [B, S, K, V]."""
    _check_shapes(tokens.shape, logprobs=logprobs.shape[:-1])
    return logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def terminal_returns(*, rewards: Tensor, like: Tensor) -> Tensor:
    """Return of every token, [B, S, K]: Z_t = sum_{i >= t} r_i with the reward r [B] paid at the
    last token and gamma = 1, so Z_t = r at every t (paper section 3.2; the sibling papers)."""
    B, _, _ = like.shape
    _check_shapes((B,), rewards=rewards.shape)
    return rewards[:, None, None].expand_as(like)


def reward_to_go(*, rewards: Tensor, penalties: Tensor) -> Tensor:
    """Return of every token with a penalty at each, [B, S, K]: G_t = r - sum_{i >= t} c_i.

    The penalty of token t itself belongs to G_t: it depends on the action taken at t.
    """
    B, _, _ = penalties.shape
    _check_shapes((B,), rewards=rewards.shape)
    flat = penalties.reshape(B, -1)
    to_go = flat.flip(1).cumsum(1).flip(1).reshape(penalties.shape)
    return rewards[:, None, None] - to_go


def vtrace_targets(
    *, rewards: Tensor, values: Tensor, ratio: Tensor, cap: float, trace_cap: float
) -> Tensor:
    """V-trace targets v_t of the value network for each token, [B, S, K], from samples of another
    policy (Espeholt et al. 2018, eq. 1, with gamma = 1).

        v_t = V_t + sum_{i >= t} (prod_{t <= j < i} c_j) rho_i (r_i + V_{i+1} - V_i)

    with rho = min(`cap`, ratio), c = min(`trace_cap`, ratio) and V = 0 after the last token. Where
    every ratio is 1 these are the returns.

    Args: the reward at each token, its value before it, and pi / mu of it, [B, S, K] each.
    """
    _check_shapes(rewards.shape, values=values.shape, ratio=ratio.shape)
    r, v, w = (x.double().flatten(1) for x in (rewards, values, ratio))
    surprise = w.clamp(max=cap) * (r + _next(v) - v)
    carried = w.clamp(max=trace_cap)
    target, excess = torch.empty_like(v), v.new_zeros(len(v))
    for t in reversed(range(v.shape[1])):
        excess = surprise[:, t] + carried[:, t] * excess
        target[:, t] = v[:, t] + excess
    return target.to(values).reshape(values.shape)


def vtrace_advantages(*, rewards: Tensor, values: Tensor, targets: Tensor) -> Tensor:
    """r_t + v_{t+1} - V_t of each token, [B, S, K], whose factor rho_t the surrogate has (Espeholt
    et al. 2018, section 4.2)."""
    _check_shapes(rewards.shape, values=values.shape, targets=targets.shape)
    after = _next(targets.flatten(1)).reshape(targets.shape)
    return rewards + after - values


def _next(values: Tensor) -> Tensor:
    """[B, T] of the token after each, 0 after the last."""
    return torch.cat([values[:, 1:], values.new_zeros(len(values), 1)], 1)


def exact_kl(*, logprobs: Tensor, reference: Tensor) -> Tensor:
    """D_KL(pi || pi_ref) of every token, nats [B, S, K], over the full vocabulary:
    sum_a pi(a|s_t) log(pi(a|s_t) / pi_ref(a|s_t)) (paper section 3.2, with its missing weight).

    Symbols of zero probability under pi add nothing to the value or to the gradient.
    """
    _check_shapes(logprobs.shape, reference=reference.shape)
    divergence: Tensor = _ExactKL.apply(logprobs, reference)  # type: ignore[no-untyped-call]
    return divergence


class _ExactKL(torch.autograd.Function):
    """`exact_kl`, whose gradient is pi (log pi - log pi_ref + 1). Shares and gaps are made again for
    it, a few rows at a time, in place of being kept."""

    @staticmethod
    def forward(ctx: Any, logprobs: Tensor, reference: Tensor) -> Tensor:
        ctx.save_for_backward(logprobs, reference)
        own, others = (x.flatten(0, -2) for x in (logprobs, reference))
        found = own.new_empty(len(own))
        for rows in chunks(own):
            share, gap = _shares(own[rows], others[rows])
            found[rows] = gap.mul_(share).sum(-1)
        return found.view(logprobs.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None]:
        logprobs, reference = ctx.saved_tensors
        of_reference = torch.empty_like(reference) if ctx.needs_input_grad[1] else None
        of_own = torch.empty_like(logprobs)
        own, others, first = (x.flatten(0, -2) for x in (logprobs, reference, of_own))
        outer = gradients[0].reshape(-1, 1)
        for rows in chunks(own):
            share, gap = _shares(own[rows], others[rows])
            torch.addcmul(share, share, gap, out=first[rows]).mul_(outer[rows])
            if of_reference is not None:
                of_reference.flatten(0, -2)[rows] = share.neg_().mul_(outer[rows])
        return of_own, of_reference


def _shares(logprobs: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """pi, and log pi - log pi_ref: finite, so that it counts for nothing where pi is 0."""
    lowest = torch.finfo(logprobs.dtype).min
    gap = logprobs.clamp(min=lowest).sub_(reference.clamp(min=lowest))
    return logprobs.exp(), gap


def entropy(logprobs: Tensor) -> Tensor:
    """-sum_a pi(a|s) log pi(a|s), nats [...], of log-distributions [..., V]."""
    lowest, flat = torch.finfo(logprobs.dtype).min, logprobs.reshape(-1, logprobs.shape[-1])
    found = flat.new_empty(len(flat))
    for rows in chunks(flat):
        part = flat[rows]
        found[rows] = part.clamp(min=lowest).mul_(part.exp()).sum(-1)
    return found.neg_().view(logprobs.shape[:-1])


def kl_estimate(*, logp: Tensor, reference_logp: Tensor, kind: Estimator) -> Tensor:
    """Estimate of D_KL(pi || pi_ref) from sampled tokens, [B, S, K] (Schulman 2020).

    With x = log pi_ref - log pi: k1 = -x (unbiased), k2 = x^2 / 2 (biased, low variance),
    k3 = exp(x) - 1 - x (unbiased, never negative).
    """
    _check_shapes(logp.shape, reference_logp=reference_logp.shape)
    x = reference_logp - logp
    if kind == "k1":
        return -x
    if kind == "k2":
        return x.square() / 2
    return torch.expm1(x) - x


def kl_loss(*, logp: Tensor, reference_logp: Tensor, kind: Estimator) -> Tensor:
    """What to differentiate for a KL term in the loss, from sampled tokens, [B, S, K].

    k1 enters as its score function, stopgrad(k1) log pi: differentiated directly its gradient is 0
    in expectation. That and k2 (directly) have the gradient of D_KL(pi || pi_ref) of the state in
    expectation; k3 (directly, as in GRPO) has that of D_KL(pi_ref || pi).
    """
    estimate = kl_estimate(logp=logp, reference_logp=reference_logp, kind=kind)
    return estimate.detach() * logp if kind == "k1" else estimate


def group_mean_baseline(*, returns: Tensor, group: Tensor) -> Tensor:
    """Mean return of the OTHER samples of the same prompt, [B, ...] (leave-one-out, so it is
    independent of the sample's own actions). A sample alone in its group gets its own return:
    advantage 0.

    Args: returns [B, ...]; group int64 [B], any numbers.
    """
    _check_shapes(returns.shape[:1], group=group.shape)
    _, index = torch.unique(group, return_inverse=True)
    num_groups = int(index.max()) + 1
    sums = returns.new_zeros((num_groups, *returns.shape[1:])).index_add_(0, index, returns)
    others = index.bincount(minlength=num_groups)[index] - 1
    others = others.reshape(-1, *[1] * (returns.dim() - 1))
    mean = (sums[index] - returns) / others.clamp(min=1)
    return torch.where(others > 0, mean, returns)


def normalise(advantages: Tensor) -> Tensor:
    """Advantages with mean 0 and standard deviation 1 over the update (all 0 where they are
    equal)."""
    centred = advantages - advantages.mean()
    return centred / centred.square().mean().sqrt().clamp(min=1e-8)


def importance_ratio(*, logp: Tensor, behaviour_logp: Tensor) -> Tensor:
    """pi(a_t|s_t) / mu(a_t|s_t) of each token, [B, S, K]; mu is the policy that sampled it."""
    _check_shapes(logp.shape, behaviour_logp=behaviour_logp.shape)
    return (logp - behaviour_logp).exp()


def reinforce_loss(*, logp: Tensor, advantages: Tensor, weight: Tensor | None = None) -> Tensor:
    """-w_t A_t log pi(a_t|s_t), [B, S, K], with A_t and w_t held constant (Williams 1992; paper
    section 3.2 with A_t = Z_t - V(s_t) and w_t = 1)."""
    _check_shapes(logp.shape, advantages=advantages.shape)
    scale = advantages if weight is None else advantages * weight
    return -scale.detach() * logp


def clipped_loss(*, ratio: Tensor, advantages: Tensor, clip_ratio: float) -> Tensor:
    """-min(rho_t A_t, clip(rho_t, 1 - c, 1 + c) A_t), [B, S, K] (Schulman et al. 2017, eq. 7)."""
    _check_shapes(ratio.shape, advantages=advantages.shape)
    clipped = ratio.clamp(1 - clip_ratio, 1 + clip_ratio)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def adaptive_coefficient(*, coefficient: float, kl: float, target: float) -> float:
    """Next KL coefficient beta (Ziegler et al. 2019, section 2.2):
    beta (1 + 0.1 e), e = clip((KL - target) / target, -0.2, 0.2). Unchanged by a non-finite KL."""
    if not math.isfinite(kl):
        return coefficient
    error = min(max((kl - target) / target, -0.2), 0.2)
    return coefficient * (1 + 0.1 * error)


def explained_variance(*, values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 is perfect, 0 no better than their mean (and 0
    where all returns are equal)."""
    _check_shapes(returns.shape, values=values.shape)
    variance = returns.var(correction=0)
    if variance == 0:
        return 0.0
    return 1.0 - float((returns - values).var(correction=0) / variance)


def _check_shapes(expected: tuple[int, ...], **shapes: tuple[int, ...]) -> None:
    for name, shape in shapes.items():
        if tuple(shape) != tuple(expected):
            raise ValueError(f"{name} has shape {tuple(shape)}, expected {tuple(expected)}")
