"""The distribution of the sampler, and drawing from it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from musicrl.sampler.sampling import SamplingConfig, draw, guide, log_probs, pack, unpack

INF = float("inf")
PLAIN = SamplingConfig(temperature=1.0)
SMALLEST, LARGEST = 2.0**-53, 1 - 2.0**-53


def of(probabilities: list[float]) -> Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log().float()


def draw_one(logits: Tensor, uniform: float, config: SamplingConfig = PLAIN) -> tuple[int, float]:
    drawn = draw(logits, torch.tensor([uniform], dtype=torch.float64), config)
    return int(drawn.tokens), float(drawn.logprobs)


def test_temperature_by_hand() -> None:
    got = log_probs(torch.tensor([0.0, math.log(4)]), SamplingConfig(temperature=2.0)).exp()
    torch.testing.assert_close(got, torch.tensor([1 / 3, 2 / 3]))


def test_top_k_renormalises_and_keeps_ties() -> None:
    config = SamplingConfig(temperature=1.0, top_k=2)
    got = log_probs(of([0.1, 0.4, 0.2, 0.3]), config).exp()
    torch.testing.assert_close(got, torch.tensor([[0, 4 / 7, 0, 3 / 7]]))
    tied = log_probs(of([0.25, 0.4, 0.25, 0.1]), config).exp()
    torch.testing.assert_close(tied, torch.tensor([[0.25, 0.4, 0.25, 0]]) / 0.9)


def test_a_kept_set_replaces_the_own_cut() -> None:
    config = SamplingConfig(temperature=1.0, top_k=2)
    kept = pack(torch.tensor([[True, False, True, False]]))
    got = log_probs(of([0.1, 0.4, 0.2, 0.3]), config, kept).exp()
    torch.testing.assert_close(got, torch.tensor([[1 / 3, 0, 2 / 3, 0]]))


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_flags_come_back_from_their_bits(flags: list[bool]) -> None:
    bits = pack(torch.tensor([flags, flags[::-1]]))
    assert bits.shape == (2, -(-len(flags) // 8))
    assert unpack(bits, len(flags)).tolist() == [flags, flags[::-1]]
    packed = np.packbits(np.array(flags), bitorder="little")
    assert bits[0].tolist() == packed.tolist()


def test_guidance_by_hand() -> None:
    conditioned, null = torch.tensor([1.0, 2.0, -INF]), torch.tensor([0.5, 4.0, -INF])
    assert guide(conditioned, null, 3.0).tolist() == [2.0, -2.0, -INF]
    assert guide(conditioned, null, 1.0).tolist() == conditioned.tolist()
    assert guide(conditioned, null, 0.0).tolist() == null.tolist()


def test_gradients_pass_guidance_beside_impossible_tokens() -> None:
    logits = torch.tensor([1.0, 2.0, -INF], requires_grad=True)
    guided = guide(logits, torch.tensor([0.5, 4.0, -INF]), 3.0)
    log_probs(guided, PLAIN)[0].backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0] == pytest.approx(3 * (1 - 1 / (1 + math.exp(-4))), rel=1e-5)


def test_outside_the_vocabulary_stays_impossible_when_top_k_exceeds_it() -> None:
    logits = torch.tensor([0.0, 0.0, -INF, -INF])
    got = log_probs(logits, SamplingConfig(temperature=0.7, top_k=3)).exp()
    assert got.tolist() == [0.5, 0.5, 0, 0]


@pytest.mark.parametrize(
    ("uniform", "token"),
    [(SMALLEST, 0), (0.2499, 0), (0.2501, 1), (0.7499, 1), (0.7501, 2), (LARGEST, 2)],
)
def test_inverse_cdf_by_hand(uniform: float, token: int) -> None:
    drawn, logprob = draw_one(of([0.25, 0.5, 0.25]), uniform)
    assert drawn == token
    assert logprob == pytest.approx(math.log([0.25, 0.5, 0.25][token]), abs=1e-6)


@pytest.mark.parametrize("uniform", [SMALLEST, 0.5, LARGEST])
def test_impossible_tokens_at_the_edges_are_never_drawn(uniform: float) -> None:
    assert draw_one(torch.tensor([[-INF, -INF, 1.0, -INF, -INF]]), uniform) == (2, 0.0)


def test_tokens_that_top_k_removes_are_never_drawn() -> None:
    config = SamplingConfig(temperature=1.0, top_k=1)
    for uniform in (SMALLEST, 0.3, LARGEST):
        assert draw_one(of([0.3, 0.4, 0.3]), uniform, config) == (1, 0.0)


def test_logits_that_are_not_finite_give_nan_and_a_token_in_range() -> None:
    token, logprob = draw_one(torch.tensor([[0.0, float("nan"), 1.0]]), 0.5)
    assert 0 <= token < 3
    assert math.isnan(logprob)


logits_lists = st.lists(
    st.one_of(st.just(-INF), st.floats(-200, 200, width=32)), min_size=1, max_size=30
).filter(lambda logits: max(logits) > -INF)


@given(
    logits=logits_lists,
    uniform=st.floats(SMALLEST, LARGEST),
    temperature=st.floats(0.1, 5.0),
    top_k=st.integers(0, 31),
)
def test_draw_inverts_the_cumulative_distribution(
    logits: list[float], uniform: float, temperature: float, top_k: int
) -> None:
    config = SamplingConfig(temperature=temperature, top_k=top_k)
    row = torch.tensor([logits])
    token, logprob = draw_one(row, uniform, config)
    wanted = log_probs(row, config)[0]
    cumulative = np.concatenate([[0.0], np.cumsum(wanted.double().exp().numpy())])
    assert logprob == float(wanted[token]) > -INF
    assert cumulative[token] <= uniform * cumulative[-1] <= cumulative[token + 1]
    assert cumulative[token] < cumulative[token + 1]


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"temperature": math.nan}, "temperature must be above 0, got nan"),
        ({"top_k": -1}, "top_k must be 0"),
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SamplingConfig(**setting)  # type: ignore[arg-type]
