"""Flat weights: round trip, aliasing, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from musicrl.policies.flat import (
    ALIGNED,
    SUMMED,
    adopt,
    apply,
    checksum,
    digest,
    disown,
    flatten,
    settle,
    split,
)
from musicrl.policies.lora import LoraConfig, adapt
from musicrl.types import Weights


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2, width)
        self.norm = nn.LayerNorm(width)


def make_module(seed: int, width: int = 3) -> Net:
    torch.manual_seed(seed)
    return Net(width)


def test_flat_buffer_is_the_tensors_in_order() -> None:
    module = make_module(0)
    weights = flatten(module, version=7)
    assert weights.version == 7
    assert weights.index[:2] == (("linear.weight", (3, 2)), ("linear.bias", (3,)))
    assert weights.flat[:6].tolist() == module.linear.weight.flatten().tolist()
    assert weights.flat[ALIGNED:][:3].tolist() == module.linear.bias.tolist()
    assert weights.flat.shape == (4 * ALIGNED,)
    for name, part in split(weights).items():
        assert np.array_equal(part, module.state_dict()[name].numpy())
        assert part.ctypes.data % 64 == 0


def test_round_trip_copies_exactly_into_the_same_parameters() -> None:
    source, target = make_module(0), make_module(1)
    parameter = target.linear.weight
    weights = flatten(source, version=1)
    weights.flat.flags.writeable = False
    apply(target, weights)
    assert target.linear.weight is parameter
    for mine, theirs in zip(source.parameters(), target.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert theirs.requires_grad


def test_neither_direction_aliases() -> None:
    source, target = make_module(0), make_module(1)
    weights = flatten(source, version=1)
    before = weights.flat.copy()
    apply(target, weights)
    with torch.no_grad():
        source.linear.weight.add_(1)
        target.linear.weight.add_(2)
    assert np.array_equal(weights.flat, before)


def test_flipped_bit_is_refused_and_nothing_is_applied() -> None:
    target = make_module(1)
    before = target.linear.weight.clone()
    weights = flatten(make_module(0), version=3)
    weights.flat[4] = np.nextafter(weights.flat[4], np.float32(9))
    with pytest.raises(ValueError, match="version 3 do not match their checksum"):
        apply(target, weights)
    assert torch.equal(target.linear.weight, before)


def test_shape_mismatch_names_the_tensor_and_applies_nothing() -> None:
    target = make_module(1)
    before = [p.clone() for p in target.parameters()]
    with pytest.raises(
        ValueError, match=r"tensor 'linear.weight' has shape \(4, 2\), expected \(3, 2\)"
    ):
        apply(target, flatten(make_module(0, width=4), version=1))
    assert all(torch.equal(a, b) for a, b in zip(before, target.parameters(), strict=True))


@pytest.mark.parametrize(
    ("source", "target", "sentence"),
    [
        (nn.Linear(2, 2, bias=False), nn.Linear(2, 2), "lack the tensor 'bias'"),
        (nn.Linear(2, 2), nn.Linear(2, 2, bias=False), "hold an unknown tensor 'bias'"),
    ],
)
def test_name_mismatch_names_the_tensor(
    source: nn.Module, target: nn.Module, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        apply(target, flatten(source, version=1))


def test_short_buffer_is_refused() -> None:
    weights = flatten(make_module(0), version=1)
    cut = weights.flat[:-1].copy()
    with pytest.raises(ValueError, match="its index 64 float32 numbers"):
        apply(make_module(1), signed(replace(weights, flat=cut)))


def test_a_buffer_is_written_over_where_it_fits() -> None:
    first = flatten(make_module(0), version=1)
    second = flatten(make_module(1), version=2, out=first.flat)
    assert second.flat is first.flat
    apply(make_module(2), second)
    with pytest.raises(ValueError, match="version 1 do not match their checksum"):
        apply(make_module(2), first)
    assert flatten(make_module(0, width=9), version=1, out=first.flat).flat is not first.flat


@pytest.mark.parametrize("rank", [0, 2])
def test_a_settled_module_is_published_from_where_it_is(rank: int) -> None:
    module, twin = make_module(0), make_module(0)
    for one in (module, twin):
        if rank:
            torch.manual_seed(1)
            adapt(one, LoraConfig(rank=rank))
    parameters = list(module.parameters())
    buffer = settle(module)
    assert all(a is b for a, b in zip(parameters, module.parameters(), strict=True))
    before = flatten(twin, version=1)
    assert flatten(module, version=1, out=buffer).checksum == before.checksum
    step(module)
    step(twin)
    weights = flatten(module, version=1, out=buffer)
    assert weights.flat is buffer
    assert before.checksum != weights.checksum == flatten(twin, version=1).checksum
    lying = {name: part.ctypes.data for name, part in split(weights).items()}
    assert {p.data_ptr() for p in module.parameters() if p.requires_grad} <= {*lying.values()}


def test_what_has_left_its_place_is_copied_there() -> None:
    module = make_module(0)
    buffer = settle(module)
    module.linear.weight.data = torch.full((3, 2), 5.0)
    weights = flatten(module, version=1, out=buffer)
    assert weights.flat is buffer
    assert (split(weights)["linear.weight"] == 5).all()


def step(module: Net) -> None:
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad])
    module.linear(torch.ones(1, 2)).square().sum().backward()
    optimizer.step()


def test_an_adopted_version_is_read_where_it_is() -> None:
    source, target = make_module(0), make_module(1)
    weights = flatten(source, version=1)
    weights.flat.flags.writeable = False
    parameters = list(target.parameters())
    adopt(target, weights)
    own = target.state_dict()
    assert {n: t.data_ptr() for n, t in own.items()} == {
        n: part.ctypes.data for n, part in split(weights).items()
    }
    assert all(
        a is b and b.requires_grad for a, b in zip(parameters, target.parameters(), strict=True)
    )
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), parameters, strict=True))


def test_a_module_is_disowned_before_another_version_is_copied() -> None:
    target = make_module(1)
    weights = flatten(make_module(0), version=1)
    adopt(target, weights)
    disown(target)
    assert flatten(target, version=1).checksum == weights.checksum
    apply(target, flatten(make_module(2), version=2))
    assert checksum(weights) == weights.checksum


def test_what_cannot_be_adopted_leaves_the_module_as_it_was() -> None:
    target = make_module(1)
    before = {name: tensor.data_ptr() for name, tensor in target.state_dict().items()}
    torn = flatten(make_module(0), version=3)
    torn.flat[4] = np.nextafter(torn.flat[4], np.float32(9))
    with pytest.raises(ValueError, match="version 3 do not match their checksum"):
        adopt(target, torn)
    with pytest.raises(ValueError, match=r"'linear\.weight' has shape"):
        adopt(target, flatten(make_module(0, width=4), version=1))
    adapted = make_module(0)
    adapt(adapted, LoraConfig(rank=1))
    with pytest.raises(ValueError, match="version 4 are adapters"):
        adopt(target, flatten(adapted, version=4))
    assert before == {name: tensor.data_ptr() for name, tensor in target.state_dict().items()}


def test_a_digest_is_of_the_tensors_and_not_of_the_gaps() -> None:
    weights = flatten(make_module(0), version=1)
    dense = np.concatenate([part.ravel() for part in split(weights).values()])
    assert digest(split(weights).values()) == digest([dense])


def signed(weights: Weights) -> Weights:
    return replace(weights, checksum=checksum(weights))


def test_a_checksum_tells_every_kind_of_fault() -> None:
    """Three whole sums and a rest, in random bits."""
    words = 3 * SUMMED + 77
    bits = np.random.default_rng(0).integers(0, 2**32, 2 * words, np.uint32)
    weights = Weights(version=3, flat=bits.view(np.float32), index=(("a", (2 * words,)),))
    good = checksum(weights)

    def of(faulty: np.ndarray) -> str:
        return checksum(replace(weights, flat=faulty.view(np.float32)))

    assert of(bits.copy()) == good
    assert checksum(replace(weights, version=4)) != good
    assert checksum(replace(weights, scale=2.0)) != good
    assert checksum(replace(weights, index=(("b", (2 * words,)),))) != good
    assert of(bits[:-2]) != good
    part = 2 * SUMMED
    for here, there in ((4, 4 + part), (3 * part + 4, 3 * part + 8), (part, 3 * part + 1)):
        swapped = bits.copy()
        swapped[[here, there]] = swapped[[there, here]]
        assert of(swapped) != good, (here, there)
    for place in (0, part - 1, 3 * part + 5):
        flipped = bits.copy()
        flipped[place] ^= 1 << 31
        assert of(flipped) != good, place
    stale = bits.copy()
    stale[part + 7 :] = 0  # a copy that stopped half-way
    assert of(stale) != good
