"""Products in parts: the same bits as torch's, for lengths that libraries cut in several ways."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from musicrl.sampler import summation
from musicrl.sampler.reference import FEWEST_ROWS
from musicrl.sampler.summation import pack, parts_of, product_in_parts, products


@pytest.mark.parametrize("inputs", [1, 24, 192, 200, 256, 384, 448, 768, 1000, 1024])
@pytest.mark.parametrize(
    ("rows", "outputs"), [(FEWEST_ROWS, 64), (FEWEST_ROWS, 768), (50, 200), (128, 768)]
)
def test_parts_that_were_found_give_the_bits_of_torch(inputs: int, rows: int, outputs: int) -> None:
    parts = parts_of(inputs, outputs)
    if parts is None:
        pytest.skip("this machine's library adds in an order of its own")
    assert sum(parts) == inputs
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator)
    found = product_in_parts(x, pack(weight, parts, rows), parts)
    assert any(torch.equal(found, wanted) for wanted in products(x, weight))
    after = product_in_parts(x, pack(weight, parts, rows), parts, "gelu")
    torch.testing.assert_close(after, F.gelu(F.linear(x, weight)), atol=1e-4, rtol=1e-5)


def test_an_order_that_nobody_guesses_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summation, "BLOCKS", (7,))
    guesses = list(summation.guesses(20))
    assert guesses == [(20,), (7, 7, 6), (10, 10)]
    assert (7, 5, 5) in summation.guesses(17)
    monkeypatch.setattr(F, "linear", lambda x, w: torch.zeros(len(x), len(w)))
    assert parts_of.__wrapped__(20, 30) is None
