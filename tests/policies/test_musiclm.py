"""The hierarchical decoder: what each cell sees, its vocabulary, its files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from musicrl.checkpoint import load_tensors, save_tensors
from musicrl.policies.musiclm import MusicLM, MusicLMConfig
from musicrl.policies.table import POLICIES

CONFIG = MusicLMConfig(
    semantic_vocab=3,
    coarse_vocab=5,
    coarse_levels=1,
    num_steps=3,
    condition_levels=2,
    condition_vocab=4,
    width=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    depth_width=8,
    depth_layers=2,
    depth_heads=2,
)
VOCAB = CONFIG.layout.vocab_sizes


def make_policy(config: MusicLMConfig = CONFIG) -> MusicLM:
    torch.manual_seed(0)
    policy = MusicLM(config)
    torch.nn.init.normal_(policy.head)
    return policy


def make_batch(B: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    streams = [torch.randint(0, v, (B, CONFIG.num_steps), generator=generator) for v in VOCAB]
    conditions = torch.randint(0, CONFIG.condition_vocab, (B, 2), generator=generator)
    return torch.stack(streams, dim=-1), conditions


def test_logits_of_a_cell_see_exactly_the_cells_before_it() -> None:
    policy = make_policy()
    tokens, conditions = make_batch(1)
    _, S, K = tokens.shape
    before = policy(tokens, conditions).view(S * K, -1).softmax(-1)
    for cell in range(S * K):
        s, k = divmod(cell, K)
        for token in range(VOCAB[k]):
            if token == tokens[0, s, k]:
                continue
            changed = tokens.clone()
            changed[0, s, k] = token
            after = policy(changed, conditions).view(S * K, -1).softmax(-1)
            moved = (after - before).abs().amax(dim=1) > 1e-6
            assert not moved[: cell + 1].any(), f"a cell up to {cell} saw it"
            assert moved[cell + 1 :].all(), f"a cell after {cell} ignores it"


def test_every_condition_token_reaches_every_cell() -> None:
    policy = make_policy()
    tokens, conditions = make_batch(1)
    before = policy(tokens, conditions).softmax(-1)
    for level in range(CONFIG.condition_levels):
        for token in (-1, (int(conditions[0, level]) + 1) % CONFIG.condition_vocab):
            changed = conditions.clone()
            changed[0, level] = token
            after = policy(tokens, changed).softmax(-1)
            assert ((after - before).abs().amax(dim=-1) > 1e-6).all()


def test_the_null_condition_is_one_row_per_level_and_mixes_in_a_batch() -> None:
    policy = make_policy()
    tokens, conditions = make_batch(3)
    conditions[1] = -1
    together = policy(tokens, conditions)
    alone = policy(tokens[1:2], torch.full((1, 2), -1))
    torch.testing.assert_close(together[1:2], alone)
    policy.token_logprobs(tokens[1:2], conditions[1:2]).sum().backward()
    gradient = policy.trunk.condition.weight.grad
    assert gradient is not None
    rows = CONFIG.condition_vocab + 1
    assert gradient.abs().sum(1).nonzero().flatten().tolist() == [rows - 1, 2 * rows - 1]


def test_logits_outside_a_stream_are_minus_infinity_and_inside_finite() -> None:
    logits = make_policy()(*make_batch(2))
    assert logits.shape == (2, 3, 3, 5)
    for k, size in enumerate(VOCAB):
        assert torch.isfinite(logits[:, :, k, :size]).all()
        assert (logits[:, :, k, size:] == -torch.inf).all()


def test_token_logprobs_are_those_of_forward() -> None:
    policy = make_policy()
    tokens, conditions = make_batch(4)
    wanted = policy(tokens, conditions).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    torch.testing.assert_close(policy.token_logprobs(tokens, conditions), wanted)


def test_gradients_of_both_paths_are_finite_and_equal() -> None:
    policy = make_policy()
    tokens, conditions = make_batch(2)
    policy.token_logprobs(tokens, conditions).sum().backward()
    direct = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    logprobs = policy(tokens, conditions).log_softmax(-1)
    logprobs.gather(-1, tokens[..., None]).sum().backward()
    assert len(direct) == len(list(policy.parameters()))
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(parameter.grad, direct[name], atol=1e-5, rtol=1e-4)


def test_mixed_precision_returns_float32_near_the_full_precision() -> None:
    policy = make_policy()
    tokens, conditions = make_batch(2)
    full = policy.token_logprobs(tokens, conditions)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = policy.token_logprobs(tokens, conditions)
        assert policy(tokens, conditions).dtype == torch.float32
    assert mixed.dtype == torch.float32
    assert not torch.equal(mixed, full)
    torch.testing.assert_close(mixed, full, atol=0.2, rtol=0)


def test_a_grid_of_one_step_equals_the_first_step_of_a_longer_one() -> None:
    policy = make_policy()
    tokens, conditions = make_batch(2)
    torch.testing.assert_close(policy(tokens[:, :1], conditions), policy(tokens, conditions)[:, :1])


def test_file_round_trip_keeps_every_bit_and_the_configuration(tmp_path: Path) -> None:
    policy = make_policy()
    policy.save(tmp_path / "policy.safetensors")
    loaded = POLICIES["musiclm"].from_file(tmp_path / "policy.safetensors")
    assert loaded.config == CONFIG
    batch = make_batch(2)
    assert torch.equal(loaded(*batch), policy(*batch))


def test_half_precision_is_widened(tmp_path: Path) -> None:
    policy = make_policy()
    policy.save(tmp_path / "policy.safetensors", as_half=True)
    loaded = MusicLM.from_file(tmp_path / "policy.safetensors")
    for name, tensor in policy.state_dict().items():
        assert loaded.state_dict()[name].dtype == torch.float32
        assert torch.equal(loaded.state_dict()[name], tensor.half().float())


def test_unknown_key_in_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    policy = make_policy()
    config = policy.config_dict | {"num_head": 2}
    save_tensors(path, policy.state_dict(), kind="policy", config=config)
    with pytest.raises(ValueError, match=r"policy.safetensors: unknown key 'num_head'"):
        MusicLM.from_file(path)


def test_wrong_shaped_file_names_file_and_tensor(tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    make_policy().save(path)
    tensors, config = load_tensors(path, kind="policy")
    tensors["trunk.start"] = torch.zeros(9)
    save_tensors(path, tensors, kind="policy", config=config)
    with pytest.raises(
        ValueError,
        match=r"policy.safetensors: tensor 'trunk.start' has shape \(9,\), expected \(16,\)",
    ):
        MusicLM.from_file(path)


def test_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no policy weights at .*nowhere"):
        MusicLM.from_file(tmp_path / "nowhere")


def test_a_run_in_place_of_a_file_is_told_which_file_to_name(tmp_path: Path) -> None:
    for step in (20, 40):
        folder = tmp_path / f"run/checkpoints/step_{step:06d}"
        folder.mkdir(parents=True)
        make_policy().save(folder / "policy.safetensors")
    with pytest.raises(FileNotFoundError, match=r"such as .*/step_000040/policy.safetensors$"):
        MusicLM.from_file(tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_layers": 0}, "num_layers must be a whole number above 0, got 0"),
        ({"num_steps": 2.5}, "num_steps must be a whole number above 0, got 2.5"),
        ({"num_heads": 3}, "width 16 does not split into num_heads 3"),
        ({"depth_heads": 8}, "depth_width 8 does not split into depth_heads 8"),
        ({"num_kv_heads": 3}, "num_kv_heads 3 does not divide num_heads 4"),
    ],
)
def test_impossible_sizes_are_refused(change: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(CONFIG, **change)


def test_default_size_fits_the_shipped_weights() -> None:
    with torch.device("meta"):
        policy = MusicLM(MusicLMConfig())
    halves = 2 * sum(parameter.numel() for parameter in policy.parameters())
    assert 10e6 < halves < 15e6
