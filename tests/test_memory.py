"""The memory of a run by arithmetic, against bytes that real networks and optimizers allocate."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cluster.cli import main
from musicrl.config import PRESETS, TrainConfig, load_config
from musicrl.memory import (
    KEPT,
    KEPT_LOGITS,
    Size,
    activations,
    check_fit,
    learner_need,
    needs_of,
    sampler_need,
    size_of,
    size_of_delayed,
)
from musicrl.optimizer import Optimizer
from musicrl.policies.delayed import DelayedLM
from musicrl.policies.delayed_config import DelayedConfig
from musicrl.policies.lora import LoraConfig, adapt
from musicrl.policies.value import make_value_network
from musicrl.sampler.sampling import SamplingConfig, grid_log_probs
from musicrl.settings import build, merge, to_tree

SMALL = DelayedConfig(
    vocab=64,
    num_codebooks=4,
    num_steps=64,
    condition_levels=8,
    width=128,
    num_layers=3,
    num_heads=4,
    num_kv_heads=4,
    mlp_width=512,
)
TABLE = 8 * 257 * 128
"""Numbers of the condition table, which a MusicGen has a text encoder in place of."""


def sized(config: DelayedConfig = SMALL) -> Size:
    return size_of_delayed(config, text=1000, text_width=config.width, codec=500)


def musicgen(**settings: object) -> TrainConfig:
    return build(
        TrainConfig, merge(to_tree(load_config("musicgen-small")), settings), origin="test"
    )


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_are_counted_as_the_networks_have_them() -> None:
    policy, size = DelayedLM(SMALL), sized()
    assert size.policy == count(policy) - TABLE
    assert size.value == count(make_value_network(policy)) - TABLE
    by_hand = 3 * 16 * 128**2 + 4 * (65 + 64) * 128
    norms = (3 * 3 + 1) * 2 * 128
    assert size.policy == by_hand + norms
    adapt(policy, LoraConfig(rank=1))
    assert size.adapters == sum(p.numel() for p in policy.parameters() if p.requires_grad)


def test_a_rank_that_holds_parts_has_one_layer_whole() -> None:
    """By hand: weights and gradients of a layer, of embeddings, outputs and the last norm."""
    size = sized()
    layer = 16 * 128**2 + 3 * 2 * 128
    outside = 4 * (65 + 64) * 128 + 2 * 128
    assert size.outside == outside
    spread = {"num_learners": 2, "learner_sharding": "full", "learner_gpus": 1.0}
    halved = musicgen(cluster=spread)
    parts = learner_need(halved, size).parts
    assert parts["gathered layer"] == 8 * (layer + outside)
    whole = learner_need(musicgen(), size).parts
    assert "gathered layer" not in whole
    for name in ("weights", "gradients", "moments", "base"):
        assert parts[name] == whole[name] / 2


@pytest.mark.parametrize("muon", [None, 0.01])
def test_moments_are_those_that_the_optimizer_keeps(muon: float | None) -> None:
    policy, config = DelayedLM(SMALL), musicgen(update={"muon_learning_rate": muon})
    optimizer = Optimizer(policy, config.update.policy_optimizer)
    for parameter in policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(0.0)
    kept = sum(t.nbytes for name, t in optimizer.tensors().items() if not name.endswith(".step"))
    expected = learner_need(config, sized()).parts["moments"]
    table = 4 * TABLE if muon else 8 * TABLE
    assert kept - table == expected


def kept_bytes(work: Callable[[], Tensor], module: nn.Module) -> int:
    """Bytes of all that a forward pass keeps for its backward pass beside the module's own."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    seen: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        work()
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


@pytest.mark.parametrize("width", [128, 256])
@pytest.mark.parametrize("layers", [2, 4])
def test_what_layers_keep_for_the_backward_pass_is_within_a_tenth(width: int, layers: int) -> None:
    """Under bfloat16, as the presets train. In float32 the CPU's attention to prompts is float64, and
    keeps 8 bytes more than a GPU's would."""
    config = replace(SMALL, width=width, num_layers=layers, mlp_width=4 * width)
    policy, size = DelayedLM(config), sized(config)
    tokens, conditions = torch.randint(0, 64, (2, 64, 4)), torch.randint(0, 8, (2, 8))
    rounded = 2 * sum(p.numel() for p in policy.layers.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        kept = kept_bytes(lambda: policy.hidden(tokens, conditions), policy)
    assert kept - rounded == pytest.approx(2 * KEPT["bfloat16"] * size.states, rel=0.1)
    kept = kept_bytes(lambda: policy.hidden(tokens, conditions), policy)
    assert kept == pytest.approx(2 * (KEPT["float32"] + 8) * size.states, rel=0.1)


def test_outputs_keep_no_more_than_is_said() -> None:
    policy, size = DelayedLM(SMALL), sized()
    tokens, conditions = torch.randint(0, 64, (2, 64, 4)), torch.randint(0, 8, (2, 8))

    def outputs() -> Tensor:
        return grid_log_probs(policy, tokens, conditions, SamplingConfig(), None)

    kept = kept_bytes(outputs, policy)
    kept -= kept_bytes(lambda: policy.hidden(tokens, conditions), policy)
    assert 0 < kept <= 2 * KEPT_LOGITS * size.symbols


def test_settings_that_save_memory_save_it() -> None:
    size = sized()

    def learner(**settings: object) -> float:
        return learner_need(musicgen(**settings), size).total

    whole = learner()
    assert learner(update={"microbatch_samples": 1}) < whole
    assert learner(update={"gradient_checkpointing": True}) < whole
    assert learner(model={"lora": {"rank": 2}}) < whole
    assert learner(rollout={"clip_seconds": 5.0}) < whole
    assert learner(algorithm={"baseline": "value"}) > whole
    base = learner_need(musicgen(algorithm={"alpha": 0.0, "report_kl": False}), size).parts["base"]
    assert base == 4 * size.policy
    half, full = (
        activations(musicgen(rollout={"sampling": {"guidance": guidance}}), size)
        for guidance in (1.0, 3.0)
    )
    assert full - 2 * size.policy == pytest.approx(2 * (half - 2 * size.policy))
    few = sampler_need(musicgen(rollout={"prompts_per_chunk": 2}), size)
    assert few.total < sampler_need(musicgen(), size).total


@pytest.mark.parametrize(("gpus", "copies"), [(0.0, 2), (1.0, 1)])
def test_broadcast_weights_are_kept_beside_those_in_use(gpus: float, copies: int) -> None:
    size = sized()
    whole = {"weights_transport": "collective", "sampler_gpus": gpus}
    kept = sampler_need(musicgen(cluster=whole), size).parts["broadcast weights"]
    assert kept == copies * 4 * size.policy
    adapters = musicgen(cluster=whole, model={"lora": {"rank": 2}})
    assert sampler_need(adapters, size).parts["broadcast weights"] == copies * 8 * size.adapters
    assert "broadcast weights" not in sampler_need(musicgen(), size).parts


def test_a_rank_of_several_holds_its_part_of_the_networks() -> None:
    spread = {"num_learners": 4, "learner_sharding": "full", "learner_gpus": 1.0}
    valued = {"baseline": "value"}
    one = learner_need(musicgen(algorithm=valued), sized()).parts
    rank = learner_need(musicgen(algorithm=valued, cluster=spread), sized()).parts
    for name in ("weights", "gradients", "moments", "base", "value network"):
        assert rank[name] == one[name] / 4, name
    for name in ("text encoder", "backward pass"):
        assert rank[name] == one[name], name


@pytest.mark.parametrize("name", ["small", "medium", "large"])
def test_the_presets_say_what_plan_says(name: str) -> None:
    text = (PRESETS / f"musicgen-{name}.yaml").read_text().replace("\n#            ", "")
    needs = {need.role: need.total / 1e9 for need in needs_of(load_config(f"musicgen-{name}"))}
    for role, total in needs.items():
        part = text[text.index(f"#   {role} ") :]
        assert re.search(r"overhead 1\.5: ([\d.]+) GB", part)[1] == f"{total:.1f}", role  # type: ignore[index]


def test_what_does_not_fit_is_refused_with_what_to_change() -> None:
    needs = needs_of(load_config("musicgen-medium"))
    check_fit(needs, gpu_gigabytes=80)
    with pytest.raises(ValueError, match=r"the learner needs 46\.2 GB, .* has 28\.0 GB \(0\.7 of"):
        check_fit(needs, gpu_gigabytes=40)


def test_plan_refuses_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    report = str(tmp_path / "plan.json")
    fits = ["plan", "musicgen-small", "--memory-only", "True", "--gpu-gb", "40", "--json", report]
    assert main(fits) == 0
    assert "together" in capsys.readouterr().out
    assert main(["plan", "musicgen-small", "--gpu-gb", "16"]) == 1
    fault = capsys.readouterr().err.splitlines()[-1]
    assert fault.startswith("musicrl: the learner needs 14.0 GB, most of it for its backward pass")
    assert "update.microbatch_samples" in fault


def test_the_shipped_world_is_sized_from_its_file() -> None:
    size = size_of(load_config("tiny"))
    assert 3e6 < size.policy < 6e6
    assert size.frozen == 0


def test_a_stereo_checkpoint_is_sized_with_twice_the_codebooks(tmp_path: Path) -> None:
    """Of text and clip as the mono one's; twice the heads and token embeddings are more numbers."""
    sizes = []
    for name in ("musicgen-small", "musicgen-stereo-small"):
        (tmp_path / "world.yaml").write_text(
            f"family: musicgen\nmodel: hub:facebook/{name}\nembedder: path:clap\n"
        )
        sizes.append(size_of(musicgen(model={"weights": str(tmp_path)})))
    mono, stereo = sizes
    assert stereo.policy - mono.policy == 4 * 1024 * (2048 + 2049)
    assert (stereo.cells, stereo.cached) == (2 * mono.cells, mono.cached)
