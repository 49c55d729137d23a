"""The delayed decoder: one transformer over steps, one output head per codebook (MusicGen's form).

    tokens of step s-1 [B, K] ──► sum of embeddings + position ──► layers ──► hidden s ──► K heads
    conditions [B, C]         ──► prompt states ─── attended to by every layer

Codebooks are delayed by `DelayedLayout`, so that the tokens of a step can be drawn at once. Learner
and sampler run the same layers through the same `Ops`. It knows neither rewards nor algorithms.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrl.checkpoint import half, load_into, load_tensors, save_tensors
from musicrl.policies.base import Draw
from musicrl.policies.blocks import attend_causally, attend_over, rotate, rotations
from musicrl.policies.cache import DecodingCache
from musicrl.policies.delayed_config import DelayedConfig
from musicrl.policies.delayed_decoding import decode
from musicrl.policies.delayed_layers import Layer, Norm, waves
from musicrl.policies.text import TextStates
from musicrl.sampler.cache import PagedKV, Rows, Span
from musicrl.sampler.ops import Ops
from musicrl.sampler.reference import ReferenceOps
from musicrl.sampler.sampling import with_special

KIND = "delayed policy"
HEAD_STD = 0.02
EMBEDDING_STD = 0.1


class DelayedLM(nn.Module):
    """A policy (see policies/base.py) over a `DelayedLayout` grid."""

    places: Tensor
    streams: Tensor
    """Numbers of the codebooks."""
    delays: Tensor
    """Steps that each comes late by."""
    num_prefix = 0

    def __init__(self, config: DelayedConfig, text: TextStates | None = None) -> None:
        """With `text`, conditions are a text's token ids; else levels that are embedded here."""
        super().__init__()
        self.config = config
        self.layout = config.layout
        self.num_steps = config.num_steps
        K, V, W = config.num_codebooks, config.vocab, config.width
        self.token = nn.Embedding(K * (V + 1), W)
        self.text = text
        if text is None:
            rows = config.condition_levels * (config.condition_vocab + 1)
            self.condition = nn.Embedding(rows, W)
            nn.init.normal_(self.condition.weight, std=EMBEDDING_STD)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = Norm(config)
        self.head = nn.Parameter(torch.empty(K, V, W))
        nn.init.normal_(self.head, std=HEAD_STD)
        nn.init.normal_(self.token.weight, std=EMBEDDING_STD)
        is_rotary = config.positions == "rotary"
        places = rotations(config.num_steps, config.head_dim) if is_rotary else waves(config)
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("streams", torch.arange(K), persistent=False)
        self.register_buffer("delays", torch.tensor(self.layout.delays), persistent=False)

    @property
    def _layers(self) -> tuple[Layer, ...]:
        return tuple(cast(Layer, layer) for layer in self.layers)

    @property
    def config_dict(self) -> dict[str, Any]:
        return asdict(self.config)

    @classmethod
    def from_file(cls, path: Path) -> DelayedLM:
        """Raises FileNotFoundError or a ValueError naming the file and what is wrong with it."""
        tensors, values = load_tensors(path, kind=KIND)
        try:
            config = DelayedConfig.from_mapping(values)
        except ValueError as fault:
            raise ValueError(f"{path}: {fault}") from fault
        policy = cls(config)
        load_into(policy, tensors, origin=path)
        return policy

    def save(self, path: Path, *, as_half: bool = False) -> None:
        """Write weights and configuration; `as_half` in half precision.

        Raises ValueError for a policy of text, whose encoder such a file has no place for.
        """
        if self.text is not None:
            raise ValueError(f"{path}: a {KIND} file cannot hold a policy with a text encoder")
        tensors = self.state_dict()
        tensors = half(tensors) if as_half else tensors
        save_tensors(path, tensors, kind=KIND, config=self.config_dict)

    def forward(self, tokens: Tensor, conditions: Tensor) -> Tensor:
        """Teacher-forced logits float32 [B, S, K, V + 1] from tokens int64 [B, S, K] and conditions
        int64 [B, C] (-1: no condition). Cells that hold no frame are certain of the special token,
        which has no probability elsewhere."""
        B, S, K = tokens.shape
        hidden = self.hidden(tokens, conditions).flatten(0, 1)
        with torch.autocast(hidden.device.type, enabled=False):  # as every backend of the sampler
            logits = self.logits(ReferenceOps(), hidden.float())
        if K == 1:  # no cell is without a frame
            never = logits.new_full((B * S, 1, 1), -torch.inf)
            return torch.cat([logits, never], -1).view(B, S, 1, -1)
        steps = torch.arange(S, device=tokens.device).repeat(B)
        is_empty = self.is_empty(steps, torch.full_like(steps, S))
        return with_special(logits, is_empty).view(B, S, K, -1)

    def hidden(self, tokens: Tensor, conditions: Tensor) -> Tensor:
        """Hidden states [B, S, W] of every step: of what lies before it."""
        B, S, K = tokens.shape
        ops = ReferenceOps()
        before = F.pad(tokens[:, :-1], (0, 0, 1, 0), value=self.layout.special)
        steps = torch.arange(S, device=tokens.device).repeat(B)
        states, lens = self.prompts(conditions)
        x = self.embed(before.reshape(B * S, K), steps)
        if not self.config.has_cross:
            x = x + states.mean(dim=1).repeat_interleave(S, dim=0)
        for layer in self._layers:
            cross = partial(self._attend_states, ops, layer, states, lens)
            x = layer(ops, x, partial(self._attend_all, B, steps), cross)
        hidden: Tensor = self.norm(ops, x)
        return hidden.view(B, S, -1)

    def _attend_all(self, B: int, steps: Tensor, qkv: Tensor) -> Tensor:
        """Every step over itself and the steps before it: [B * S, H * D]."""
        query, key, value = self._split(qkv)
        if self.config.positions == "rotary":
            turn = self.places[steps]
            query, key = rotate(query, turn), rotate(key, turn)
        parts = (x.view(B, -1, *x.shape[1:]) for x in (query, key, value))
        return attend_causally(*parts).flatten(0, 1).flatten(1)

    def _attend_states(
        self, ops: Ops, layer: Layer, states: Tensor, lens: Tensor | None, query: Tensor
    ) -> Tensor:
        """The layer makes keys and values of the prompts while it runs: its weights may be there
        only then."""
        return self._attend_prompts(lens, *layer.prompt(ops, states), query)

    def _attend_prompts(
        self, lens: Tensor | None, keys: Tensor, values: Tensor, query: Tensor
    ) -> Tensor:
        """Queries [B * S, H * D] over the first `lens` [B] (none: all) of their prompt's keys and
        values [B, C, Hkv, D]."""
        heads = query.view(len(keys), -1, self.config.num_heads, self.config.head_dim)
        return attend_over(heads, keys, values, lens).flatten(0, 1).flatten(1)

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        config = self.config
        heads = qkv.view(len(qkv), -1, config.head_dim)
        sizes = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        query, key, value = torch.split(heads, sizes, dim=1)
        return query, key, value

    def prompts(self, conditions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Conditions int64 [P, C] to the prompts' states [P, C, W], and how many of them count,
        int32 [P] (none: all)."""
        if self.text is None:
            return self.embed_conditions(conditions), None
        states, lens = self.text(conditions)
        return states, lens

    def embed_conditions(self, conditions: Tensor) -> Tensor:
        """Conditions int64 [P, C] to the prompt's states [P, C, W]."""
        vocab = self.config.condition_vocab
        rows = torch.where(conditions < 0, vocab, conditions)
        levels = torch.arange(conditions.shape[1], device=conditions.device)
        states: Tensor = self.condition(rows + levels * (vocab + 1))
        return states

    def embed(self, before: Tensor, steps: Tensor) -> Tensor:
        """Inputs [N, W] from the tokens int64 [N, K] of the steps before."""
        codes = torch.add(before, self.streams, alpha=self.config.vocab + 1)
        x = F.embedding_bag(codes, self.token.weight, mode="sum")
        return x if self.config.positions == "rotary" else x + self.places[steps]

    def logits(self, ops: Ops, hidden: Tensor) -> Tensor:
        """Of every codebook [N, K, V], from hidden states [N, W]."""
        whole = ops.logits(hidden, self.head.flatten(0, 1))
        return whole.view(len(hidden), self.config.num_codebooks, -1)

    def is_empty(self, steps: Tensor, ends: Tensor) -> Tensor:
        """Bool [N, K]: cells at `steps` of grids that have `ends` steps which hold no frame."""
        latest = self.layout.delays[-1]
        if latest == 0:
            return steps.new_zeros(len(steps), self.config.num_codebooks, dtype=torch.bool)
        left = (ends - steps)[:, None] - 1 - latest
        return (steps[:, None] < self.delays) | (left < -self.delays)

    def new_cache(
        self, ops: Ops, *, num_rows: int, num_slots: int, num_blocks: int, block_size: int
    ) -> DecodingCache:
        """An empty cache; prompts have keys and values of their own, or a mean to add."""
        config, device = self.config, self.head.device
        new_kv = partial(
            PagedKV,
            num_layers=config.num_layers,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=ops.kv_dtype,
            by_head=ops.kv_by_head,
            device=device,
        )
        steps = new_kv(num_blocks=num_blocks, block_size=block_size)
        if not config.has_cross:
            means = torch.zeros(num_slots, config.width, device=device)
            return DecodingCache(ops, steps, contexts=(means,))
        size = -(-config.condition_levels // ops.block_multiple) * ops.block_multiple
        lens = torch.zeros(num_slots, dtype=torch.int32, device=device)
        prompts = new_kv(num_blocks=num_slots, block_size=size)
        return DecodingCache(ops, steps, contexts=(lens,), prompts=prompts)

    def prefill(
        self, conditions: Tensor, history: Tensor, slots: Tensor, span: Span, cache: DecodingCache
    ) -> None:
        """Encode prompts int64 [P, C] and the steps int64 [P, s, K] that follow them."""
        states, lens = self.prompts(conditions)
        if cache.prompts is None:
            cache.contexts[0][slots] = states.mean(dim=1)
        else:
            cache.contexts[0][slots] = states.shape[1] if lens is None else lens
            self._keep_prompts(states, slots, cache)
        if history.shape[1]:
            self._extend(states, lens, history, span, cache)

    def _keep_prompts(self, states: Tensor, slots: Tensor, cache: DecodingCache) -> None:
        assert cache.prompts is not None
        within = torch.arange(states.shape[1], device=states.device)
        places = (slots[:, None] * cache.prompts.block_size + within).flatten()
        for number, layer in enumerate(self._layers):
            key, value = layer.prompt(cache.ops, states)
            cache.prompts.write(number, key.flatten(0, 1), value.flatten(0, 1), places)

    def _extend(
        self,
        states: Tensor,
        lens: Tensor | None,
        history: Tensor,
        span: Span,
        cache: DecodingCache,
    ) -> None:
        special = self.layout.special
        padded = F.pad(history[:, :-1], (0, 0, 1, 0), value=special)
        before = padded.masked_fill(padded < 0, special)[span.rows, span.positions]
        x = self.embed(before, span.positions)
        if cache.prompts is None:
            x = x + states.mean(dim=1)[span.rows]
        counts = None if lens is None else lens[span.rows]
        for number, layer in enumerate(self._layers):
            prompts = (part[span.rows] for part in layer.prompt(cache.ops, states))
            cross = partial(self._attend_prompts, counts, *prompts)
            x = layer(cache.ops, x, partial(self._attend_span, cache, number, span), cross)

    def _attend_span(self, cache: DecodingCache, layer: int, span: Span, qkv: Tensor) -> Tensor:
        """Keep all positions' keys and values, mix for their queries: [N, H * D]."""
        query, key, value = self._split(qkv)
        if self.config.positions == "rotary":
            turn = self.places[span.positions]
            query, key = rotate(query, turn), rotate(key, turn)
        cache.kv.write(layer, key, value, span.slots)
        return cache.ops.attend_varlen(query, key, value, span).flatten(1)

    def step(self, previous: Tensor, rows: Rows, cache: DecodingCache) -> Tensor:
        """Hidden state [B, W] of the next step from the tokens int64 [B, K] of the previous."""
        assert rows.steps is not None
        before = previous.masked_fill(previous < 0, self.layout.special)
        x = self.embed(before, rows.steps)
        if cache.prompts is None:
            x = x + cache.contexts[0][rows.slots]
        rotation = self.places if self.config.positions == "rotary" else None
        x = decode(self._layers, x, rows, rotation, cache)
        hidden: Tensor = self.norm(cache.ops, x)
        return hidden

    def emit(self, hidden: Tensor, rows: Rows, cache: DecodingCache, draw: Draw) -> Tensor:
        """Draw the K tokens of a step at once."""
        assert rows.steps is not None
        assert rows.num_steps is not None
        is_empty = self.is_empty(rows.steps, rows.num_steps)
        return draw.cells(self.logits(cache.ops, draw.guided(hidden)), is_empty)
