"""Equal weights give equal logits: transformers' decoders and ours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MusicgenDecoderConfig, MusicgenForCausalLM

from musicrl.policies.delayed import DelayedLM
from musicrl.policies.delayed_config import DelayedConfig
from musicrl.policies.huggingface import from_llama, from_musicgen
from musicrl.sampler.engine import Engine
from musicrl.sampler.sampling import SamplingConfig

MUSICGEN = DelayedConfig(
    vocab=40,
    num_codebooks=3,
    num_steps=12,
    condition_levels=5,
    condition_vocab=7,
    width=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    mlp_width=48,
)
LLAMA = replace(
    MUSICGEN,
    num_codebooks=1,
    num_kv_heads=2,
    norm="rms",
    mlp="swiglu",
    positions="rotary",
    has_cross=False,
)


@torch.no_grad()
def test_a_llama_of_equal_weights_has_equal_logits() -> None:
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=LLAMA.vocab + 1,
            hidden_size=LLAMA.width,
            intermediate_size=LLAMA.mlp_width,
            num_hidden_layers=LLAMA.num_layers,
            num_attention_heads=LLAMA.num_heads,
            num_key_value_heads=LLAMA.num_kv_heads,
            rms_norm_eps=1e-5,
            initializer_range=0.2,
        )
    ).eval()
    ours = DelayedLM(LLAMA)
    ours.load_state_dict(from_llama(theirs.state_dict(), LLAMA))
    tokens = torch.randint(0, LLAMA.vocab, (2, 9))
    start = torch.full((2, 1), LLAMA.vocab)
    wanted = theirs(torch.cat([start, tokens[:, :-1]], dim=1)).logits[..., : LLAMA.vocab]
    found = ours(tokens[..., None], torch.zeros(2, 5, dtype=torch.int64))[:, :, 0, : LLAMA.vocab]
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_musicgens_decoder_of_equal_weights_has_equal_logits() -> None:
    """Prompts' states are given to both: to ours as the embeddings of its conditions."""
    torch.manual_seed(0)
    theirs = MusicgenForCausalLM(
        MusicgenDecoderConfig(
            vocab_size=MUSICGEN.vocab,
            hidden_size=MUSICGEN.width,
            num_hidden_layers=MUSICGEN.num_layers,
            num_attention_heads=MUSICGEN.num_heads,
            ffn_dim=MUSICGEN.mlp_width,
            num_codebooks=MUSICGEN.num_codebooks,
            max_position_embeddings=64,
            initializer_factor=0.2,
            pad_token_id=MUSICGEN.vocab,
            bos_token_id=MUSICGEN.vocab,
        )
    ).eval()
    ours = DelayedLM(MUSICGEN)
    ours.load_state_dict(from_musicgen(theirs.state_dict(), MUSICGEN))
    torch.nn.init.normal_(ours.condition.weight)
    conditions = torch.randint(0, MUSICGEN.condition_vocab, (2, MUSICGEN.condition_levels))
    samples = Engine(ours, SamplingConfig()).generate(
        conditions, samples_per_prompt=1, seeds=np.arange(2, dtype=np.uint64)
    )
    grid = torch.from_numpy(samples.tokens).long()
    B, S, K = grid.shape
    before = torch.cat([torch.full((B, 1, K), MUSICGEN.vocab), grid[:, :-1]], dim=1)
    wanted = theirs(
        input_ids=before.transpose(1, 2).reshape(B * K, S),
        encoder_hidden_states=ours.embed_conditions(conditions),
    ).logits.view(B, K, S, -1)
    found = ours(grid, conditions).transpose(1, 2)[..., : MUSICGEN.vocab]
    is_frame = grid.transpose(1, 2) != MUSICGEN.vocab
    assert is_frame.float().mean() > 0.5
    assert wanted.std() > 0.1
    torch.testing.assert_close(found[is_frame], wanted[is_frame], atol=2e-5, rtol=1e-5)
