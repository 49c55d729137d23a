"""How much a policy's tokens depend on the caption: real clips under their own and under another.

Teacher-forced on the tokens of real clips, so that nothing is sampled: the gap shrinks when a policy
stops listening to its prompt, whatever a judge hears. Only for worlds whose tokens of audio are known
here, those of `World`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from musicrl.codecs.semantic import SemanticTokenizer
from musicrl.prompts import mismatched
from musicrl.types import Clips, Prompt
from musicrl.world import DECODE_CLIPS, World

SEMANTIC = "semantic.safetensors"


def cannot_tokenise(world: object, prompts: Sequence[Prompt]) -> str | None:
    """Why there is no gap of clips with these captions in a world, if so."""
    if not isinstance(world, World):
        return "only the project's own tokens are made of audio here"
    if not (world.folder / SEMANTIC).is_file():
        return f"no {SEMANTIC} in the world's folder: `musicrl pretrain semantic` makes it"
    if len({prompt.text for prompt in prompts}) < 2:
        return "the real clips have no two different captions"
    return None


@torch.inference_mode()
def tokenise(world: World, clips: Clips) -> NDArray[np.int16]:
    """Grids int16 [B, S, K] of clips at the world's rate, as the policy was pretrained on them.

    Raises FileNotFoundError or ValueError naming the file of the semantic tokens.
    """
    semantic = SemanticTokenizer.from_file(world.folder / SEMANTIC)
    layout, grids = world.policy.config.layout, []
    for audio in torch.from_numpy(clips.audio).split(DECODE_CLIPS):
        codes = world.codec.encode(audio)[:, : world.written_levels]
        heard = semantic.encode(audio, world.embedder)
        grids.append(layout.interleave(heard.numpy(), codes.numpy()))
    return np.concatenate(grids)


@torch.inference_mode()
def caption_gap(
    world: World, grids: NDArray[np.int16], prompts: Sequence[Prompt]
) -> NDArray[np.float64]:
    """NLL of a clip's semantic tokens under another clip's caption less that under its own, nats a
    token, float64 [B] of clips with grids int16 [B, S, K]."""
    own, other = (
        _semantic_nll(world, grids, [prompt.text for prompt in asked])
        for asked in (prompts, mismatched(prompts))
    )
    gap: NDArray[np.float64] = (other - own).double().numpy()
    return gap


def _semantic_nll(world: World, grids: NDArray[np.int16], texts: Sequence[str]) -> Tensor:
    """Mean over the steps of the first stream, [B]."""
    tokens = torch.from_numpy(grids.astype(np.int64))
    pairs = zip(
        tokens.split(DECODE_CLIPS), world.conditioner(texts).split(DECODE_CLIPS), strict=True
    )
    parts = [-world.policy.token_logprobs(t, c)[:, :, 0].mean(1) for t, c in pairs]
    return torch.cat(parts)
