"""What the sampler's benchmark times: a policy of known shape, or its peer in transformers.

Each runs in a process of its own (`python -m cluster.sampler_subject SPEC`), which generates once for
every line that it reads and answers with the seconds: allocators, caches and threads of one do not
meet those of another. Random weights: how long a step takes does not depend on them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from musicrl.policies.base import Policy
from musicrl.policies.delayed import DelayedLM
from musicrl.policies.delayed_config import DelayedConfig
from musicrl.sampler.engine import Engine
from musicrl.sampler.sampling import Precision, SamplingConfig
from musicrl.world import World

Shape = Literal["world", "12M", "25M", "100M", "musicgen-1M", "musicgen-20M", "musicgen-small"]
EngineName = Literal["reference", "musicrl", "hf", "hf-tcmalloc", "vllm", "vllm-tcmalloc"]
TEXT = "a slow fiddle tune on the flute"
TOP_K = 250
"""MusicGen's, of all engines on the shapes that are not the world's."""
PROMPT = 8
"""Conditioning tokens of a prompt."""
MUSICGEN_FRAME_RATE = 50.0
"""Steps a second of a clip, on the shapes that are not the world's."""


def _llama(width: int, layers: int, mlp: int) -> DelayedConfig:
    return DelayedConfig(
        vocab=2048,
        num_codebooks=1,
        num_steps=1024,
        condition_levels=PROMPT,
        width=width,
        num_layers=layers,
        num_heads=width // 64,
        num_kv_heads=width // 64,
        mlp_width=mlp,
        norm="rms",
        mlp="swiglu",
        positions="rotary",
        has_cross=False,
    )


def _delayed(width: int, layers: int, heads: int) -> DelayedConfig:
    return DelayedConfig(
        num_steps=1024,
        condition_levels=PROMPT,
        width=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        mlp_width=4 * width,
    )


SHAPES: Mapping[Shape, DelayedConfig] = {
    "12M": _llama(384, 6, 1024),
    "25M": _llama(512, 8, 1280),
    "100M": _llama(768, 14, 2048),
    "musicgen-1M": _delayed(64, 2, 2),
    "musicgen-20M": _delayed(384, 6, 6),
    "musicgen-small": _delayed(1024, 24, 16),
}
"""Llama-like decoders with heads of 64, and MusicGen's form with four codebooks: two small ones, and
`facebook/musicgen-small`'s own (420M)."""
LLAMA_LIKE: tuple[Shape, ...] = ("12M", "25M", "100M")
GUIDANCE: Mapping[Shape, float] = {
    "musicgen-1M": 3.0,
    "musicgen-20M": 3.0,
    "musicgen-small": 3.0,
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One engine on one shape and batch."""

    shape: Shape
    engine: EngineName
    dtype: Precision
    batch: int
    threads: int
    steps: int
    device: str = "cpu"
    weights: str | None = None
    """Folder of the world, for shape "world"."""

    def sampling(self) -> SamplingConfig:
        """Of our engine."""
        return SamplingConfig(
            temperature=1.0,
            top_k=0 if self.shape == "world" else TOP_K,
            guidance=GUIDANCE.get(self.shape, 1.0),
            backend="reference" if self.engine == "reference" else "auto",
            precision=self.dtype,
        )

    def policy(self) -> Policy:
        """In evaluation mode."""
        if self.shape == "world":
            world = World.load(Path(self.weights) if self.weights else None)
            return world.policy.eval().to(self.device)
        torch.manual_seed(0)
        return DelayedLM(SHAPES[self.shape]).eval().to(self.device)

    def conditions(self) -> torch.Tensor:
        """int64 [P, C]: one prompt for the world, else one for each sample."""
        if self.shape != "world":
            return torch.arange(self.batch * PROMPT).view(self.batch, PROMPT) % 256
        return World.load(Path(self.weights) if self.weights else None).conditioner([TEXT])

    def work(self) -> Callable[[], object]:
        """Generates the batch once."""
        if self.engine in ("hf", "hf-tcmalloc"):
            return _peer(self)
        engine, conditions = Engine(self.policy(), self.sampling()), self.conditions()
        seeds = np.arange(self.batch, dtype=np.uint64)
        return lambda: engine.generate(
            conditions,
            samples_per_prompt=self.batch // len(conditions),
            seeds=seeds,
            num_steps=self.steps,
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def to_vllm(self) -> str:
        """What `sampler_vllm` is to time."""
        config = SHAPES[self.shape]
        spec = {
            "config": {
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "rms_norm_eps": 1e-6,
                "tie_word_embeddings": False,
                "torch_dtype": self.dtype,
                **_llama_sizes(config),
            },
            "start": config.vocab,
            "batch": self.batch,
            "steps": self.steps - 1,  # all but the prompt's position fit into the model's length
            "dtype": self.dtype,
            "top_k": TOP_K,
        }
        return json.dumps(spec)


def _peer(subject: Subject) -> Callable[[], object]:
    """`generate` of transformers on a model of the same shape, as it is shipped."""
    dtype = torch.bfloat16 if subject.dtype == "bfloat16" else torch.float32
    is_musicgen = subject.shape in GUIDANCE
    config = SHAPES[subject.shape]
    model = musicgen_peer(config) if is_musicgen else _llama_model(config)
    model = model.to(subject.device, dtype).eval()
    settings: dict[str, Any] = {
        "do_sample": True,
        "top_k": TOP_K,
        "max_new_tokens": subject.steps,
        "min_new_tokens": subject.steps,
    }
    if is_musicgen:
        settings |= {"guidance_scale": GUIDANCE[subject.shape], "num_return_sequences": 1}
        ids = torch.ones(subject.batch, PROMPT, dtype=torch.int64)
    else:
        ids = torch.full((subject.batch, 1), config.vocab)
    ids = ids.to(subject.device)
    mask = torch.ones_like(ids)

    @torch.inference_mode()
    def generate() -> object:
        return model.generate(input_ids=ids, attention_mask=mask, **settings).cpu()

    return generate


def _llama_model(config: DelayedConfig) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_llama_sizes(config)))


def _llama_sizes(config: DelayedConfig) -> dict[str, Any]:
    """Of a Llama's configuration."""
    return {
        "vocab_size": config.vocab + 1,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "max_position_embeddings": config.num_steps,
        "bos_token_id": config.vocab,
        "eos_token_id": None,
        "pad_token_id": config.vocab,
    }


def musicgen_peer(config: DelayedConfig) -> Any:
    """transformers' model of that shape, with a text encoder and a codec so small that the decoder takes the time."""
    from transformers import (
        EncodecConfig,
        MusicgenConfig,
        MusicgenDecoderConfig,
        MusicgenForConditionalGeneration,
        T5Config,
    )

    text = T5Config(vocab_size=64, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    codec = EncodecConfig(codebook_size=config.vocab, num_filters=4, hidden_size=16)
    decoder = MusicgenDecoderConfig(
        vocab_size=config.vocab,
        hidden_size=config.width,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        ffn_dim=config.mlp_width,
        num_codebooks=config.num_codebooks,
        max_position_embeddings=config.num_steps,
    )
    parts = {"text_encoder": text, "audio_encoder": codec, "decoder": decoder}
    whole = MusicgenConfig(**{name: part.to_dict() for name, part in parts.items()})
    return MusicgenForConditionalGeneration(whole)


def main() -> None:
    """Generate once for every line of standard input; the seconds to standard output."""
    subject = Subject(**json.loads(sys.argv[1]))
    torch.set_num_threads(subject.threads)
    work = subject.work()
    for _ in sys.stdin:
        started = time.perf_counter()
        work()
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
