"""Float32 products in C: the bits of torch, or not used."""

from __future__ import annotations

from ctypes import CDLL

import pytest
import torch

from musicrl.sampler.chains import chains_of, exact_product
from musicrl.sampler.native import kernels
from musicrl.sampler.packing import COLUMNS, packed
from musicrl.sampler.summation import products

pytestmark = pytest.mark.compiler


@pytest.fixture(scope="module")
def library() -> CDLL:
    found = kernels()
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("inputs", "outputs"), [(48, 80), (192, 576), (384, 1152), (1024, 384), (1280, 512)]
)
@pytest.mark.parametrize("rows", [1, 2, 8, 15, 32])
def test_chains_that_were_found_gives_the_bits_of_torch(
    library: CDLL, inputs: int, outputs: int, rows: int
) -> None:
    chains = chains_of(library, inputs, outputs, 1)
    if chains is None:
        pytest.skip("this machine's library adds in an order of its own")
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(40, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator)
    columns = packed(library, weight, COLUMNS, 1)
    found = exact_product(library, x[:rows], columns.data_ptr(), outputs, chains, 1)
    assert any(torch.equal(found, wanted[:rows]) for wanted in products(x, weight))
    residual = torch.randn(rows, outputs, generator=generator)
    more = exact_product(library, x[:rows], columns.data_ptr(), outputs, chains, 1, residual)
    assert torch.equal(more, residual + found)


@pytest.mark.parametrize("chains", [(30,), (5, 5, 20), (1, 29)])
@pytest.mark.parametrize("outputs", [1, 33, 64])
def test_any_chains_are_the_product(library: CDLL, chains: tuple[int, ...], outputs: int) -> None:
    torch.manual_seed(outputs)
    x, weight = torch.randn(7, 30), torch.randn(outputs, 30)
    columns = packed(library, weight, COLUMNS, 1)
    found = exact_product(library, x, columns.data_ptr(), outputs, chains, 2)
    torch.testing.assert_close(found, x @ weight.T, atol=1e-5, rtol=1e-5)


def test_numbers_that_are_not_dense_are_refused(library: CDLL) -> None:
    columns = packed(library, torch.randn(4, 6), COLUMNS, 1)
    with pytest.raises(ValueError, match=r"a kernel needs dense float32, got torch\.float64"):
        exact_product(
            library, torch.zeros(2, 6, dtype=torch.float64), columns.data_ptr(), 4, (6,), 1
        )
