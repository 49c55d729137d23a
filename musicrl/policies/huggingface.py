"""Weights of transformers' decoders as weights of the delayed decoder, and MusicGen's back: names and
orders only.

`LlamaForCausalLM` whose last token is the special one, and `MusicgenForCausalLM`. It takes state
dicts and needs no transformers; prompts, text encoders and codecs are not its matter.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from musicrl.policies.delayed_config import DelayedConfig

State = Mapping[str, Tensor]


def from_llama(state: State, config: DelayedConfig) -> dict[str, Tensor]:
    """Of a Llama with `config.vocab` + 1 tokens and RMS epsilon 1e-5; prompts add nothing.

    Raises KeyError naming a tensor that is not there.
    """
    found = {
        "token.weight": state["model.embed_tokens.weight"],
        "head": state["lm_head.weight"][None, : config.vocab],
        "norm.weight": state["model.norm.weight"],
    }
    for number in range(config.num_layers):
        theirs, ours = f"model.layers.{number}", f"layers.{number}"
        mixer = f"{theirs}.self_attn"
        qkv = [
            interleaved(state[f"{mixer}.q_proj.weight"], config.head_dim),
            interleaved(state[f"{mixer}.k_proj.weight"], config.head_dim),
            state[f"{mixer}.v_proj.weight"],
        ]
        up = [state[f"{theirs}.mlp.{name}_proj.weight"] for name in ("gate", "up")]
        found |= {
            f"{ours}.attention_norm.weight": state[f"{theirs}.input_layernorm.weight"],
            f"{ours}.qkv.weight": torch.cat(qkv),
            f"{ours}.out.weight": state[f"{mixer}.o_proj.weight"],
            f"{ours}.mlp_norm.weight": state[f"{theirs}.post_attention_layernorm.weight"],
            f"{ours}.up.weight": torch.cat(up),
            f"{ours}.down.weight": state[f"{theirs}.mlp.down_proj.weight"],
        }
    return found | _without_prompts(config)


def from_musicgen(state: State, config: DelayedConfig) -> dict[str, Tensor]:
    """Of MusicGen's decoder; the embedding of conditions, which it has none of, is zero.

    Raises KeyError naming a tensor that is not there.
    """
    books = range(config.num_codebooks)
    found = {
        "token.weight": torch.cat([state[f"model.decoder.embed_tokens.{k}.weight"] for k in books]),
        "head": torch.stack([state[f"lm_heads.{k}.weight"] for k in books]),
        **_norm(state, "model.decoder.layer_norm", "norm"),
    }
    for number in range(config.num_layers):
        theirs, ours = f"model.decoder.layers.{number}", f"layers.{number}"
        found |= {
            **_norm(state, f"{theirs}.self_attn_layer_norm", f"{ours}.attention_norm"),
            f"{ours}.qkv.weight": _joined(state, f"{theirs}.self_attn", "qkv"),
            f"{ours}.out.weight": state[f"{theirs}.self_attn.out_proj.weight"],
            **_norm(state, f"{theirs}.encoder_attn_layer_norm", f"{ours}.cross_norm"),
            f"{ours}.cross_query.weight": _joined(state, f"{theirs}.encoder_attn", "q"),
            f"{ours}.cross_kv.weight": _joined(state, f"{theirs}.encoder_attn", "kv"),
            f"{ours}.cross_out.weight": state[f"{theirs}.encoder_attn.out_proj.weight"],
            **_norm(state, f"{theirs}.final_layer_norm", f"{ours}.mlp_norm"),
            f"{ours}.up.weight": state[f"{theirs}.fc1.weight"],
            f"{ours}.down.weight": state[f"{theirs}.fc2.weight"],
        }
    return found | _without_prompts(config)


def to_musicgen(own: State, config: DelayedConfig) -> dict[str, Tensor]:
    """The inverse of `from_musicgen`: the delayed decoder's weights under MusicGen's names."""
    tokens = own["token.weight"].chunk(config.num_codebooks)
    found = {f"model.decoder.embed_tokens.{k}.weight": each for k, each in enumerate(tokens)}
    found |= {f"lm_heads.{k}.weight": each for k, each in enumerate(own["head"])}
    found |= _their_norm(own, "norm", "model.decoder.layer_norm")
    for number in range(config.num_layers):
        theirs, ours = f"model.decoder.layers.{number}", f"layers.{number}"
        found |= {
            **_their_norm(own, f"{ours}.attention_norm", f"{theirs}.self_attn_layer_norm"),
            **_split(own[f"{ours}.qkv.weight"], f"{theirs}.self_attn", "qkv"),
            f"{theirs}.self_attn.out_proj.weight": own[f"{ours}.out.weight"],
            **_their_norm(own, f"{ours}.cross_norm", f"{theirs}.encoder_attn_layer_norm"),
            **_split(own[f"{ours}.cross_query.weight"], f"{theirs}.encoder_attn", "q"),
            **_split(own[f"{ours}.cross_kv.weight"], f"{theirs}.encoder_attn", "kv"),
            f"{theirs}.encoder_attn.out_proj.weight": own[f"{ours}.cross_out.weight"],
            **_their_norm(own, f"{ours}.mlp_norm", f"{theirs}.final_layer_norm"),
            f"{theirs}.fc1.weight": own[f"{ours}.up.weight"],
            f"{theirs}.fc2.weight": own[f"{ours}.down.weight"],
        }
    return found


def interleaved(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of a query or key projection whose rotary pairs are neighbours, from rows whose pairs
    are half a head apart."""
    halves = weight.view(-1, 2, head_dim // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


def _joined(state: State, attention: str, letters: str) -> Tensor:
    return torch.cat([state[f"{attention}.{letter}_proj.weight"] for letter in letters])


def _norm(state: State, theirs: str, ours: str) -> dict[str, Tensor]:
    return {f"{ours}.weight": state[f"{theirs}.weight"], f"{ours}.offset": state[f"{theirs}.bias"]}


def _split(joined: Tensor, attention: str, letters: str) -> dict[str, Tensor]:
    """Of a decoder whose heads are not grouped."""
    parts = joined.chunk(len(letters))
    return {
        f"{attention}.{letter}_proj.weight": part
        for letter, part in zip(letters, parts, strict=True)
    }


def _their_norm(own: State, ours: str, theirs: str) -> dict[str, Tensor]:
    return {f"{theirs}.weight": own[f"{ours}.weight"], f"{theirs}.bias": own[f"{ours}.offset"]}


def _without_prompts(config: DelayedConfig) -> dict[str, Tensor]:
    rows = config.condition_levels * (config.condition_vocab + 1)
    return {"condition.weight": torch.zeros(rows, config.width)}
