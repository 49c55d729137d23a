"""The mathematics against numbers worked out by hand, finite differences and enumeration."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from musicrl.algorithms import functions as f


def row(*probabilities: float) -> Tensor:
    """Log-distribution [1, 1, 1, V] in double precision."""
    return torch.tensor(probabilities, dtype=torch.float64).log().reshape(1, 1, 1, -1)


def test_terminal_reward_reaches_every_token_of_its_clip() -> None:
    returns = f.terminal_returns(rewards=torch.tensor([1.0, -2.0]), like=torch.zeros(2, 1, 2))
    assert returns.tolist() == [[[1.0, 1.0]], [[-2.0, -2.0]]]


def test_reward_to_go_subtracts_the_penalties_from_each_token_on() -> None:
    penalties = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    returns = f.reward_to_go(rewards=torch.tensor([20.0]), penalties=penalties)
    assert returns.tolist() == [[[10.0, 11.0], [13.0, 16.0]]]


def test_exact_kl_by_hand() -> None:
    kl = f.exact_kl(logprobs=row(0.5, 0.5), reference=row(0.25, 0.75))
    assert kl.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


def test_exact_kl_ignores_symbols_outside_the_vocabulary() -> None:
    logits = torch.tensor([0.3, -0.2, -torch.inf], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.0, 0.0, -torch.inf], dtype=torch.float64).log_softmax(-1)
    logprobs = logits.log_softmax(-1).reshape(1, 1, 1, 3)
    kl = f.exact_kl(logprobs=logprobs, reference=reference.reshape(1, 1, 1, 3))
    kl.sum().backward()
    two = logits.detach()[:2].log_softmax(-1)
    assert kl.item() == pytest.approx(float((two.exp() * (two + math.log(2))).sum()))
    assert logits.grad is not None
    assert logits.grad[2] == 0
    assert logits.grad[0].item() == pytest.approx(-logits.grad[1].item())
    assert logits.grad[0] > 0


def test_exact_kl_gradient_equals_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, reference = torch.randn(2, 1, 2, 2, 4, dtype=torch.float64, generator=generator)

    def kl(x: Tensor) -> Tensor:
        return f.exact_kl(logprobs=x.log_softmax(-1), reference=reference.log_softmax(-1)).sum()

    x = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(kl(x), x)
    for i in range(logits.numel()):
        bump = torch.zeros(logits.numel(), dtype=torch.float64)
        bump[i] = 1e-5
        bump = bump.reshape(logits.shape)
        slope = (kl(logits + bump) - kl(logits - bump)) / 2e-5
        assert slope.item() == pytest.approx(gradient.flatten()[i].item(), abs=1e-9)


def test_entropy_by_hand_and_of_a_padded_row() -> None:
    assert f.entropy(row(0.25, 0.75)).item() == pytest.approx(0.5623351446)
    assert f.entropy(row(0.5, 0.5, 0.0)).item() == pytest.approx(math.log(2))


PI, REFERENCE = (0.6, 0.3, 0.1), (0.2, 0.3, 0.5)


def expected(values: Tensor) -> float:
    """Expectation under PI of one value per symbol."""
    return float((torch.tensor(PI, dtype=torch.float64) * values.flatten()).sum())


def test_k1_and_k3_are_unbiased_and_k2_is_as_defined() -> None:
    kl = f.exact_kl(logprobs=row(*PI), reference=row(*REFERENCE)).item()
    k1, k2, k3 = (
        f.kl_estimate(logp=row(*PI)[0], reference_logp=row(*REFERENCE)[0], kind=kind)
        for kind in ("k1", "k2", "k3")
    )
    assert expected(k1) == pytest.approx(kl)
    assert expected(k3) == pytest.approx(kl)
    assert (k3 >= 0).all()
    logs = [math.log(p / q) for p, q in zip(PI, REFERENCE, strict=True)]
    assert expected(k2) == pytest.approx(sum(p * x * x / 2 for p, x in zip(PI, logs, strict=True)))
    assert expected(k2) != pytest.approx(kl, rel=1e-2)


def gradient_in_expectation(kind: f.Estimator) -> list[float]:
    """E_{a ~ pi} of the gradient of `kl_loss` with respect to the logits of pi."""
    logits = row(*PI)[0].clone().requires_grad_()
    terms = f.kl_loss(logp=logits.log_softmax(-1), reference_logp=row(*REFERENCE)[0], kind=kind)
    weights = torch.tensor(PI, dtype=torch.float64).reshape(1, 1, 3)
    (gradient,) = torch.autograd.grad((weights * terms).sum(), logits)
    return gradient.flatten().tolist()


@pytest.mark.parametrize("kind", ["k1", "k2"])
def test_k1_and_k2_in_the_loss_have_the_gradient_of_the_kl(kind: f.Estimator) -> None:
    logits = row(*PI).clone().requires_grad_()
    kl = f.exact_kl(logprobs=logits.log_softmax(-1), reference=row(*REFERENCE)).sum()
    (exact,) = torch.autograd.grad(kl, logits)
    assert gradient_in_expectation(kind) == pytest.approx(exact.flatten().tolist())


def test_k3_in_the_loss_has_the_gradient_of_the_reverse_kl() -> None:
    logits = row(*PI).clone().requires_grad_()
    reverse = f.exact_kl(logprobs=row(*REFERENCE), reference=logits.log_softmax(-1)).sum()
    (exact,) = torch.autograd.grad(reverse, logits)
    assert gradient_in_expectation("k3") == pytest.approx(exact.flatten().tolist())


def test_vtrace_is_the_sum_of_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 3, 4, 2, generator=generator, dtype=torch.float64)
    ratio = torch.randn(3, 4, 2, generator=generator, dtype=torch.float64).exp()
    targets = f.vtrace_targets(rewards=rewards, values=values, ratio=ratio, cap=1.5, trace_cap=1.0)
    advantages = f.vtrace_advantages(rewards=rewards, values=values, targets=targets)
    for b in range(3):
        r, v, w = (x[b].flatten().tolist() for x in (rewards, values, ratio))
        v.append(0.0)
        expected = []
        for t in range(8):
            target = v[t]
            for i in range(t, 8):
                carried = math.prod(min(1.0, c) for c in w[t:i])
                target += carried * min(1.5, w[i]) * (r[i] + v[i + 1] - v[i])
            expected.append(target)
        assert targets[b].flatten().tolist() == pytest.approx(expected)
        later = [*expected[1:], 0.0]
        gains = [r[t] + later[t] - v[t] for t in range(8)]
        assert advantages[b].flatten().tolist() == pytest.approx(gains)


def test_vtrace_of_the_policys_own_samples_is_the_return_less_the_value() -> None:
    values = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0))
    rewards = torch.zeros_like(values)
    rewards[:, -1, -1] = torch.tensor([1.0, -2.0])
    ones = torch.ones_like(values)
    targets = f.vtrace_targets(rewards=rewards, values=values, ratio=ones, cap=1.0, trace_cap=1.0)
    advantages = f.vtrace_advantages(rewards=rewards, values=values, targets=targets)
    returns = torch.tensor([1.0, -2.0])[:, None, None].expand_as(values)
    assert targets == pytest.approx(returns, abs=1e-6)
    assert advantages == pytest.approx(returns - values, abs=1e-6)


def test_group_mean_is_that_of_the_other_samples() -> None:
    returns = torch.tensor([1.0, 10.0, 2.0, 6.0, 7.0])
    baseline = f.group_mean_baseline(returns=returns, group=torch.tensor([3, 8, 3, 3, 5]))
    assert baseline.tolist() == [4.0, 10.0, 3.5, 1.5, 7.0]


def test_group_mean_is_taken_token_by_token() -> None:
    returns = torch.tensor([[[1.0, 2.0]], [[3.0, 8.0]]])
    baseline = f.group_mean_baseline(returns=returns, group=torch.tensor([0, 0]))
    assert baseline.tolist() == [[[3.0, 8.0]], [[1.0, 2.0]]]


def test_normalised_advantages_by_hand() -> None:
    assert f.normalise(torch.tensor([1.0, 3.0])).tolist() == [-1.0, 1.0]
    assert f.normalise(torch.tensor([2.0, 2.0])).tolist() == [0.0, 0.0]


def test_importance_ratio_is_per_token() -> None:
    ratio = f.importance_ratio(logp=row(0.6, 0.1)[0], behaviour_logp=row(0.3, 0.2)[0])
    assert ratio.flatten().tolist() == pytest.approx([2.0, 0.5])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.1, 1.0, -1.1, -1.0),
        (1.5, 1.0, -1.2, 0.0),
        (0.5, 1.0, -0.5, -1.0),
        (0.5, -1.0, 0.8, 0.0),
        (1.5, -1.0, 1.5, 1.0),
    ],
)
def test_clipped_loss_by_hand(ratio: float, advantage: float, loss: float, slope: float) -> None:
    x = torch.tensor([[[ratio]]], requires_grad=True)
    out = f.clipped_loss(ratio=x, advantages=torch.tensor([[[advantage]]]), clip_ratio=0.2)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert out.item() == pytest.approx(loss)
    assert gradient.item() == slope


def test_reinforce_loss_does_not_differentiate_the_advantage_or_the_weight() -> None:
    logp = torch.tensor([[[-1.0]]], requires_grad=True)
    advantages = torch.tensor([[[3.0]]], requires_grad=True)
    loss = f.reinforce_loss(logp=logp, advantages=advantages, weight=logp.exp())
    loss.sum().backward()
    assert loss.item() == pytest.approx(3.0 * math.exp(-1))
    assert logp.grad is not None
    assert logp.grad.item() == pytest.approx(-3.0 * math.exp(-1))
    assert advantages.grad is None


@pytest.mark.parametrize(
    ("kl", "factor"), [(10.0, 1.0), (11.0, 1.01), (100.0, 1.02), (9.0, 0.99), (0.0, 0.98)]
)
def test_adaptive_coefficient_by_hand(kl: float, factor: float) -> None:
    coefficient = f.adaptive_coefficient(coefficient=0.5, kl=kl, target=10.0)
    assert coefficient == pytest.approx(0.5 * factor)


def test_adaptive_coefficient_holds_when_the_kl_is_not_finite() -> None:
    assert f.adaptive_coefficient(coefficient=0.5, kl=math.nan, target=10.0) == 0.5


def test_explained_variance_by_hand() -> None:
    returns = torch.tensor([1.0, 3.0])
    assert f.explained_variance(values=returns, returns=returns) == 1.0
    assert f.explained_variance(values=torch.zeros(2), returns=returns) == 0.0
    assert f.explained_variance(values=torch.tensor([1.5, 2.5]), returns=returns) == 0.75
    assert f.explained_variance(values=returns, returns=torch.ones(2)) == 0.0


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"reference has shape \(1, 1, 1, 2\), expected"):
        f.exact_kl(logprobs=row(*PI), reference=row(0.5, 0.5))
    with pytest.raises(ValueError, match=r"rewards has shape \(3,\), expected \(2,\)"):
        f.terminal_returns(rewards=torch.zeros(3), like=torch.zeros(2, 1, 2))
