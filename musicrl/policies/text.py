"""Text as the condition of a delayed decoder: token ids to states that every layer attends to.

    ids [P, C] ──► frozen text encoder ──► projection (it learns) ──► states [P, C, W], lengths [P]

The encoder is no part of the module: it is neither trained, copied nor broadcast. It knows neither
the tokeniser nor the decoder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

PADDING = -2
"""A condition's id past its text; ids of -1 only are the null prompt (`NO_CONDITION`)."""


class Frozen:
    """A network that does not learn: copies of its holder share it."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen:
        return self


class TextStates(nn.Module):
    """States of prompts, as MusicGen's decoder is given them."""

    def __init__(self, encoder: nn.Module, *, text_width: int, width: int) -> None:
        """`encoder(input_ids=, attention_mask=)` gives states [P, C, text_width] as
        `last_hidden_state`; they are projected where the widths differ."""
        super().__init__()
        self.text_width = text_width
        self.frozen = Frozen(encoder)
        self.projection = nn.Linear(text_width, width) if text_width != width else None

    def fresh(self, width: int) -> TextStates:
        """Other states of the same encoder, whose projection knows nothing."""
        encoder = self.frozen.network
        return TextStates(encoder, text_width=self.text_width, width=width)

    def forward(self, conditions: Tensor) -> tuple[Tensor, Tensor]:
        """Conditions int64 [P, C], each text's ids followed by `PADDING`, to states [P, C, W], zero
        past a text and for the null prompt, and to the int32 [P] states that count, 1 at least."""
        is_text = conditions >= 0
        states = self._encode(conditions, is_text)
        if self.projection is not None:
            states = self.projection(states)
        lens = is_text.sum(dim=1, dtype=torch.int32).clamp(min=1)
        return states.masked_fill(~is_text[..., None], 0.0), lens

    @torch.no_grad()
    def _encode(self, conditions: Tensor, is_text: Tensor) -> Tensor:
        encoder = self.frozen.network.to(conditions.device)
        attended = is_text.clone()
        attended[:, 0] = True  # the null prompt's states are dropped, yet must be finite
        with torch.autocast(conditions.device.type, enabled=False):  # as in the sampler
            found = encoder(input_ids=conditions.clamp(min=0), attention_mask=attended.long())
        states: Tensor = found.last_hidden_state
        return states.float()


def pad(texts: list[list[int]], size: int) -> Tensor:
    """Conditions int64 [P, size] of token ids, longer ones cut."""
    rows = [ids[:size] + [PADDING] * (size - len(ids)) for ids in texts]
    return torch.tensor(rows, dtype=torch.int64)
