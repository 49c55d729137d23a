"""A stand-in for the module `flash_attn` on the CPU: its signatures, its layouts, its refusals.

It takes what flash-attn 2.8 takes and refuses what that refuses (dtypes, devices aside; tables,
pages, contiguity), so that the backend's calls are held to the contract without a GPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: Tensor | None = None,
    block_table: Tensor | None = None,
    causal: bool = False,
    rotary_interleaved: bool = True,
) -> Tensor:
    """Append `k`, `v` in place at `cache_seqlens`, attend over what is then in the cache."""
    B, Sq, H, D = q.shape
    assert Sq == 1, "the stand-in decodes one position"
    assert q.dtype in HALVES, "FlashAttention only supports fp16 and bf16 data type"
    assert k_cache.dtype == v_cache.dtype == q.dtype, "query and cache must have the same dtype"
    assert q.stride(-1) == k_cache.stride(-1) == v_cache.stride(-1) == 1, "last dim contiguous"
    assert k_cache.shape == v_cache.shape
    assert D <= 256
    assert D % 8 == 0, "head dimension must be a multiple of 8"
    assert H % k_cache.shape[2] == 0, "heads of the query must be a multiple of the cache's"
    assert cache_seqlens is not None
    assert cache_seqlens.dtype == torch.int32, "cache_seqlens must be int32"
    assert cache_seqlens.shape == (B,)
    if block_table is None:
        assert k_cache.shape[0] == B, "without a table there is a row of the cache for each query"
        block_table = torch.arange(B, dtype=torch.int32)[:, None]
    else:
        assert k_cache.shape[1] % 256 == 0, "Paged KV cache block size must be divisible by 256"
    assert block_table.dtype == torch.int32, "block_table must be int32"
    assert block_table.stride(-1) == 1
    page = k_cache.shape[1]
    out = torch.empty_like(q)
    for b, length in enumerate(cache_seqlens.tolist()):
        asked = q[b, 0].float()
        if k is not None:
            assert v is not None
            assert k.shape == v.shape == (B, 1, k_cache.shape[2], D)
            assert k.dtype == v.dtype == q.dtype
            assert length < block_table.shape[1] * page, "the cache has no room for the new key"
            new = k[b, 0].float()
            if rotary_cos is not None:
                assert rotary_sin is not None
                assert rotary_cos.dtype == rotary_sin.dtype == q.dtype
                assert rotary_cos.shape == rotary_sin.shape
                assert rotary_cos.shape[1] == D // 2
                assert D % 16 == 0, "Only rotary dimensions divisible by 16 are supported"
                room = block_table.shape[1] * page
                assert len(rotary_cos) >= room, "cos/sin seqlen must be at least the KV cache's"
                assert rotary_cos.is_contiguous()
                assert rotary_sin.is_contiguous()
                assert rotary_interleaved, "the stand-in turns neighbouring pairs"
                turn = rotary_cos[length].float(), rotary_sin[length].float()
                asked, new = _turned(asked, *turn), _turned(new, *turn)
            block = int(block_table[b, length // page])
            k_cache[block, length % page] = new.to(q.dtype)
            v_cache[block, length % page] = v[b, 0]
            length += 1
        blocks = block_table[b].long()
        keys, values = (c[blocks].flatten(0, 1)[:length].float() for c in (k_cache, v_cache))
        out[b, 0] = _attend(asked[None], keys, values)[0].to(q.dtype)
    return out


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool = False,
) -> Tensor:
    """Ragged rows one after the other, each attending to itself."""
    assert q.dtype in HALVES, "FlashAttention only supports fp16 and bf16 data type"
    assert q.dtype == k.dtype == v.dtype
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert cu_seqlens_q[-1] == len(q)
    assert cu_seqlens_k[-1] == len(k)
    assert causal, "the stand-in is causal"
    assert int(cu_seqlens_q.diff().max()) == max_seqlen_q
    assert int(cu_seqlens_k.diff().max()) == max_seqlen_k
    out = torch.empty_like(q)
    for start, end in zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True):
        part = slice(start, end)
        out[part] = _attend(q[part].float(), k[part].float(), v[part].float()).to(q.dtype)
    return out


def _turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], -1).flatten(-2)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Queries [q, H, D] at the end of keys [n, Hkv, D]: causal, aligned at the last position."""
    shared = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(shared, dim=1) for x in (key, value))
    scores = torch.einsum("qhd,nhd->hqn", query, key) / math.sqrt(query.shape[2])
    behind = len(key) - len(query)
    ahead = torch.arange(len(key)) > torch.arange(len(query))[:, None] + behind
    return torch.einsum("hqn,nhd->qhd", scores.masked_fill(ahead, -torch.inf).softmax(-1), value)
