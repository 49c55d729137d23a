"""The memory that the actors of a run need, by arithmetic: before weights are there, or paid for.

    learner   policy 4 bytes a parameter, gradients 4, moments 8 (Muon: 4 of a matrix), the base that
              KL is measured to 4, the value network 16 more; what a microbatch keeps for its backward
              pass
    sampler   weights 4, and 2 more where products are in bfloat16; keys and values of all its clips
              weights that are broadcast: the version in use and a spare one, 4 each (on a GPU one)
    store     each version of the weights 4, in the host's memory, a few at once

Tensors are counted exactly. What a backward pass keeps was measured on decoders of several sizes: 92
bytes for each number of each layer's width at every step (49 under bfloat16, and 2 a parameter for
the rounded weights), and 6 floats for each symbol of each cell of the output. Fragmentation, the
CUDA context and a codec's inner tensors are the stated `OVERHEAD`. This project's arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import safe_open
from torch import nn

from musicrl.checkpoint import load_tensors
from musicrl.config import TrainConfig
from musicrl.musicgen_world import WORLD_FILE, read_model_config, read_world
from musicrl.policies.config import MusicLMConfig
from musicrl.policies.delayed import DelayedLM
from musicrl.policies.delayed_config import DelayedConfig
from musicrl.policies.musiclm import KIND, MusicLM
from musicrl.policies.recompute import layers
from musicrl.policies.value import make_value_network
from musicrl.world import find_policy, find_world

GIGABYTE = 1e9
OVERHEAD = 1.5e9
"""Bytes of an actor on a GPU that no tensor here accounts for."""
KEPT = {"float32": 92, "bfloat16": 49}
"""Bytes that a layer keeps for its backward pass, for each number of its width and each step."""
KEPT_LOGITS = 24
"""Bytes for each symbol of each cell: log-probabilities, the parts of an exact KL, gradients."""
RATE = 50
"""Steps of a MusicGen a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A policy, as far as its memory goes."""

    policy: int
    """Parameters that learn."""
    linears: int
    """Of these, in matrices, which Muon steps."""
    adapters: int
    """Parameters of adapters of rank 1 on every linear layer."""
    tensors: int
    """That these parameters are in."""
    matrices: int
    """That `linears` are in."""
    adapted: int
    """Tensors of adapters on every linear layer."""
    outside: int
    """Parameters that are in no layer."""
    value: int
    """Parameters of the value network."""
    value_tensors: int
    frozen: int
    """Parameters of the text encoder."""
    codec: int
    states: int
    """Numbers of the states of one whole clip: sum over layers of steps x width."""
    layers: int
    """Layers that they are spread over."""
    cached: int
    """Numbers of keys and values of one whole clip."""
    cells: int
    """Tokens of one whole clip."""
    symbols: int
    """Numbers of the outputs of one whole clip: cells x vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Of one actor."""

    role: str
    gpus: float
    """That it asks for (0: it lives in the memory of its node)."""
    parts: Mapping[str, float]
    """Bytes, by what they are for."""

    @property
    def total(self) -> float:
        """Bytes."""
        return sum(self.parts.values())


KNOWN: Mapping[str, tuple[int, int, int, int]] = MappingProxyType(
    {
        f"hub:facebook/musicgen-{name}{size}": (*shape, channels)
        for name, channels in (("", 1), ("stereo-", 2))
        for size, shape in (
            ("small", (24, 1024, 16)),
            ("medium", (48, 1536, 24)),
            ("large", (48, 2048, 32)),
        )
    }
)
"""Layers, width, heads and channels of checkpoints whose weights need not be here (Copet et al.
2023)."""
T5_BASE, ENCODEC_32K = 109_628_544, 58_852_547
"""Parameters of their text encoder and of their codec."""
T5_BASE_WIDTH, T5_VOCAB = 768, 32_128


def needs_of(config: TrainConfig) -> list[Need]:
    """What the learner and a sampler of a run need.

    Raises FileNotFoundError or ValueError naming what cannot be sized.
    """
    size = size_of(config)
    return [learner_need(config, size), sampler_need(config, size)]


def learner_need(config: TrainConfig, size: Size) -> Need:
    """Of one rank: of everything, or with `cluster.learner_sharding` of its part of every network. The
    text encoder and the backward pass are whole on each."""
    cluster = config.cluster
    share = 1 / cluster.num_learners if cluster.learner_sharding == "full" else 1.0
    update, rank = config.update, config.model.lora.rank
    learning = rank * size.adapters if rank else size.policy
    has_muon = update.muon_learning_rate is not None
    moments = 8 * learning - (4 * size.linears if has_muon else 0)
    has_value = config.algorithm.baseline == "value"
    parts = {
        "weights": 4.0 * (size.policy + (learning if rank else 0)) * share,
        "gradients": 4.0 * learning * share,
        "moments": moments * share,
        "base": 0.0 if rank else 4.0 * size.policy * share,
        "value network": 16.0 * size.value * share if has_value else 0.0,
        "text encoder": 4.0 * size.frozen,
        "gathered layer": 0.0 if share == 1 else gathered_layer(config, size),
        "backward pass": activations(config, size),
    }
    return _need("learner", config.cluster.learner_gpus, parts)


def gathered_layer(config: TrainConfig, size: Size) -> float:
    """Bytes of what is whole on every rank at once: one layer, and all that is in none, with their
    gradients where they learn."""
    whole = size.outside + (size.policy - size.outside) / size.layers
    return (4.0 if config.model.lora.rank else 8.0) * whole


def activations(config: TrainConfig, size: Size) -> float:
    """Bytes that a microbatch keeps: all layers', or one layer's and the inputs of all."""
    update = config.update
    share = trained_share(config)
    clips = update.pass_size(round(size.cells * share)) * _passes(config) * share
    kept: float = KEPT[update.precision] * size.states
    if update.gradient_checkpointing:
        kept = kept / size.layers + 4 * size.states
    rounded = 2.0 * size.policy if update.precision == "bfloat16" else 0.0
    return clips * (kept + KEPT_LOGITS * size.symbols) + rounded


def sampler_need(config: TrainConfig, size: Size) -> Need:
    """Of one that samples a chunk at a time."""
    is_rounded = config.rollout.sampling.precision == "bfloat16"
    rollout = config.rollout
    clips = rollout.prompts_per_chunk * rollout.samples_per_prompt * _passes(config)
    parts = {
        "weights": (6.0 if is_rounded else 4.0) * size.policy,
        "bases of adapters": 4.0 * size.linears if config.model.lora.rank else 0.0,
        "broadcast weights": _received(config, size),
        "text encoder": 4.0 * size.frozen,
        "codec": 4.0 * size.codec,
        "keys and values": (2.0 if is_rounded else 4.0) * size.cached * clips,
    }
    return _need("sampler", config.cluster.sampler_gpus, parts)


def _received(config: TrainConfig, size: Size) -> float:
    """Bytes that a listening sampler keeps beside its weights, in the memory that is counted."""
    cluster, rank = config.cluster, config.model.lora.rank
    if cluster.weights_transport == "store":
        return 0.0
    version = 4.0 * (rank * size.adapters if rank else size.policy)
    return version if cluster.sampler_gpus else 2 * version


def _need(role: str, gpus: float, parts: Mapping[str, float]) -> Need:
    found = {name: amount for name, amount in parts.items() if amount}
    return Need(role=role, gpus=gpus, parts={**found, "overhead": OVERHEAD if gpus else 0.0})


def _passes(config: TrainConfig) -> int:
    """Rows of a clip: guidance has a second one, without the prompt."""
    return 1 if config.rollout.sampling.guidance == 1 else 2


def trained_share(config: TrainConfig) -> float:
    """Of a whole clip, what is trained on."""
    seconds, whole = config.rollout.clip_seconds, whole_seconds(config)
    return 1.0 if seconds is None or whole is None else min(1.0, seconds / whole)


def whole_seconds(config: TrainConfig) -> float | None:
    """Of a clip of a MusicGen's world; None where the policy's file decides."""
    folder = find_world(config.model.weights)
    return read_world(folder).clip_seconds if (folder / WORLD_FILE).is_file() else None


def check_fit(needs: list[Need], *, gpu_gigabytes: float) -> None:
    """Raise ValueError naming the actor that its share of a GPU of so many GB cannot hold, and what
    would make it smaller."""
    for need in needs:
        has = gpu_gigabytes * min(1.0, need.gpus)
        if need.gpus and need.total / GIGABYTE > has:
            largest = max(need.parts, key=lambda name: need.parts[name])
            raise ValueError(
                f"the {need.role} needs {need.total / GIGABYTE:.1f} GB, most of it for its "
                f"{largest}, and has {has:.1f} GB ({need.gpus:g} of a GPU of {gpu_gigabytes:g} GB): "
                f"{ADVICE[need.role]}"
            )


ADVICE = {
    "learner": "lower update.microbatch_samples (or _tokens) or rollout.clip_seconds, set "
    "update.gradient_checkpointing or model.lora.rank, raise cluster.learner_gpus, or spread the "
    "networks over cluster.num_learners with cluster.learner_sharding full",
    "sampler": "lower rollout.prompts_per_chunk or rollout.samples_per_prompt, set "
    "rollout.sampling.precision bfloat16, or raise cluster.sampler_gpus",
}


def size_of(config: TrainConfig) -> Size:
    """Of the policy that a run trains; a MusicGen of `KNOWN` need not be there.

    Raises FileNotFoundError or ValueError naming the file.
    """
    folder = find_world(config.model.weights)
    if (folder / WORLD_FILE).is_file():
        return size_of_musicgen(folder)
    _, values = load_tensors(find_policy(folder, config.model.policy), kind=KIND)
    return size_of_musiclm(MusicLMConfig.from_mapping(values))


def size_of_musiclm(config: MusicLMConfig) -> Size:
    """Of the tiny world's kind; its codec is not counted."""
    with torch.device("meta"):
        policy = MusicLM(config)
        value = make_value_network(policy)
    steps, streams = config.num_steps, config.layout.num_streams
    wide, deep = config.num_layers * config.width, config.depth_layers * config.depth_width
    heads = 2 * config.num_layers * config.num_kv_heads * (config.width // config.num_heads)
    return Size(
        **_counts(policy, value),
        frozen=0,
        codec=0,
        states=steps * (wide + streams * deep),
        layers=config.num_layers + config.depth_layers,
        cached=steps * heads,
        cells=steps * streams,
        symbols=steps * streams * config.layout.vocab_size,
    )


def size_of_musicgen(folder: Path) -> Size:
    """Of the checkpoint that a world names. Raises FileNotFoundError or ValueError naming it."""
    world = read_world(folder)
    if world.model in KNOWN:
        layers, width, heads, channels = KNOWN[world.model]
        config = DelayedConfig(
            num_codebooks=4 * channels,
            channels=channels,
            num_steps=round(RATE * world.clip_seconds) + 3,
            condition_levels=world.text_size,
            condition_vocab=T5_VOCAB,
            width=width,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=heads,
            mlp_width=4 * width,
        )
        return size_of_delayed(config, text=T5_BASE, text_width=T5_BASE_WIDTH, codec=ENCODEC_32K)
    place, config, text_width = read_model_config(folder)
    text, codec = (_count_file(place, prefix) for prefix in ("text_encoder.", "audio_encoder."))
    return size_of_delayed(config, text=text, text_width=text_width, codec=codec)


def size_of_delayed(config: DelayedConfig, *, text: int, text_width: int, codec: int) -> Size:
    """Of a decoder beside a text encoder and a codec of so many parameters."""
    with torch.device("meta"):
        policy = DelayedLM(config)
        value = make_value_network(policy)
        projection = nn.Linear(text_width, config.width)
    counts = _counts(policy, value)
    table = config.condition_levels * (config.condition_vocab + 1) * config.width
    added = 0 if text_width == config.width else sum(p.numel() for p in projection.parameters())
    for name in ("policy", "value", "outside"):
        counts[name] += added - table  # in whose place the text encoder stands
    counts["linears"] -= table
    steps, states = config.num_steps, config.num_layers * config.width
    kv = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return Size(
        **counts,
        frozen=text,
        codec=codec,
        states=steps * states,
        layers=config.num_layers,
        cached=(steps + config.condition_levels) * kv,
        cells=steps * config.num_codebooks,
        symbols=steps * config.num_codebooks * (config.vocab + 1),
    )


def _counts(policy: nn.Module, value: nn.Module) -> dict[str, int]:
    linears = [part for part in policy.modules() if isinstance(part, nn.Linear)]
    tables = [part for part in policy.modules() if isinstance(part, nn.Embedding)]
    matrices = sum(part.in_features * part.out_features for part in linears)
    matrices += sum(part.num_embeddings * part.embedding_dim for part in tables)
    return {
        "policy": sum(p.numel() for p in policy.parameters()),
        "linears": matrices,
        "tensors": sum(1 for _ in policy.parameters()),
        "matrices": len(linears) + len(tables),
        "adapted": 2 * len(linears),
        "outside": sum(p.numel() for p in policy.parameters())
        - sum(p.numel() for layer in layers(policy) for p in layer.parameters()),
        "value": sum(p.numel() for p in value.parameters()),
        "value_tensors": sum(1 for _ in value.parameters()),
        "adapters": sum(part.in_features + part.out_features for part in linears),
    }


def _count_file(folder: Path, prefix: str) -> int:
    """Numbers of the tensors of a folder whose names begin so; none of them is read."""
    total = 0
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if name.startswith(prefix):
                    total += prod(file.get_slice(name).get_shape())
    return total
