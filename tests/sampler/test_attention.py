"""The cache and the one-query attention, against plain attention over copies."""

from __future__ import annotations

import pytest
import torch

from musicrl.sampler.attention import attend_step
from musicrl.sampler.cache import KVCache


def make_cache(P: int, G: int, Hkv: int, C: int, S: int, D: int) -> KVCache:
    return KVCache(
        num_prompts=P,
        samples_per_prompt=G,
        num_layers=2,
        num_kv_heads=Hkv,
        head_dim=D,
        prompt_len=C,
        num_steps=S,
    )


@pytest.mark.parametrize(("H", "Hkv"), [(4, 4), (4, 2), (3, 1)])
def test_two_parts_under_one_softmax_equal_attention_over_copies(H: int, Hkv: int) -> None:
    torch.manual_seed(0)
    P, G, C, s, D = 2, 3, 4, 5, 6
    query = torch.randn(P * G, H, D)
    prompt = torch.randn(2, P, Hkv, C, D)
    own = torch.randn(2, P * G, Hkv, s, D)
    got = attend_step(query, prompt[0], prompt[1], own[0], own[1])
    for row in range(P * G):
        for head in range(H):
            kv = head // (H // Hkv)
            keys = torch.cat([prompt[0, row // G, kv], own[0, row, kv]])
            values = torch.cat([prompt[1, row // G, kv], own[1, row, kv]])
            weights = (keys @ query[row, head] / D**0.5).softmax(0)
            torch.testing.assert_close(got[row, head], weights @ values)


def test_prompt_is_stored_once_for_all_its_samples() -> None:
    one, many = make_cache(3, 1, 2, 4, 5, 6), make_cache(3, 8, 2, 4, 5, 6)
    assert one.prompt.numel() == many.prompt.numel() == 2 * 2 * 3 * 2 * 4 * 6
    assert many.own.numel() == 8 * one.own.numel()


def test_what_is_written_is_read_back_in_order() -> None:
    torch.manual_seed(0)
    cache = make_cache(1, 2, 3, 4, 2, 6)
    prompt = torch.randn(2, 1, 4, 3, 6)
    steps = torch.randn(2, 2, 2, 3, 6)
    cache.write_prompt(1, prompt[0], prompt[1])
    for key, value in steps:
        cache.advance()
        cache.write(1, key, value)
    prompt_key, prompt_value, own_key, own_value = cache.read(1)
    assert torch.equal(prompt_key, prompt[0].transpose(1, 2))
    assert torch.equal(prompt_value, prompt[1].transpose(1, 2))
    assert torch.equal(own_key, steps[:, 0].permute(1, 2, 0, 3))
    assert torch.equal(own_value, steps[:, 1].permute(1, 2, 0, 3))
    assert not cache.read(0)[2].any()


def test_only_open_positions_are_read_and_a_full_cache_refuses_more() -> None:
    cache = make_cache(1, 1, 1, 1, 2, 2)
    cache.advance()
    assert cache.read(0)[2].shape == (1, 1, 1, 2)
    cache.advance()
    with pytest.raises(ValueError, match="holds 2 steps and all are used"):
        cache.advance()
