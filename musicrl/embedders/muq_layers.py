"""The networks of MuQ-MuLan (Zhu et al. 2025): a conformer over mel spectra, XLM-RoBERTa over words, and
a small transformer and a projection on each.

Modules and tensors are named as in the checkpoints of the package `muq`; what these hold besides, for
training alone, has no place here. transformers makes the conformer's layers and XLM-RoBERTa.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FFT_SIZE, QUIETEST = 2048, 1e-10
STRIDES = {25: (2, 2), 50: (2, 1)}
"""Strides in time of the two convolutions, by the frames a second that they leave of a hundred."""
SIMILARITY_SCALE = 8.0


class Mel(nn.Module):
    """Audio [B, N] to mel spectra [B, bands, N / hop] in decibels of power."""

    filters: Tensor
    window: Tensor

    def __init__(self, *, sample_rate: int, hop_size: int, num_bands: int) -> None:
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        self.hop_size = hop_size
        filters = mel_filter_bank(
            num_frequency_bins=FFT_SIZE // 2 + 1,
            num_mel_filters=num_bands,
            min_frequency=0.0,
            max_frequency=sample_rate / 2,
            sampling_rate=sample_rate,
        )
        self.register_buffer("filters", torch.tensor(filters.T).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(FFT_SIZE), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        spectra = torch.stft(
            audio, FFT_SIZE, self.hop_size, window=self.window, return_complex=True
        )
        power = self.filters @ spectra.abs().square()
        return 10 * power.clamp(min=QUIETEST).log10()[..., :-1]


class Residual(nn.Module):
    """Two convolutions beside one, halving bands and, by `stride`, frames."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, padding=1, stride=(2, stride))
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(inputs, width, 3, padding=1, stride=(2, stride))
        self.bn3 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, inputs, bands, frames] to [B, width, bands / 2, frames / stride]."""
        deep = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(self.bn3(self.conv3(x)) + deep)


class Subsampling(nn.Module):
    """Spectra [B, bands, frames] to states [B, frames', out]."""

    def __init__(self, *, num_bands: int, width: int, out: int, strides: tuple[int, int]) -> None:
        super().__init__()
        first, second = strides
        self.conv = nn.Sequential(Residual(1, width, first), Residual(width, width, second))
        self.linear = nn.Linear(width * num_bands // 4, out)

    def forward(self, spectra: Tensor) -> Tensor:
        found: Tensor = self.linear(self.conv(spectra[:, None]).flatten(1, 2).transpose(1, 2))
        return found


class Muq(nn.Module):
    """Audio to states: spectra, convolutions, conformer."""

    def __init__(self, values: Mapping[str, Any], *, sample_rate: int) -> None:
        """`values`: a MuQ's config.json. Raises ValueError for a model that this does not serve."""
        super().__init__()
        from transformers import Wav2Vec2ConformerConfig
        from transformers.models.wav2vec2_conformer import modeling_wav2vec2_conformer as conformer

        rate, width = values["label_rate"], values["encoder_dim"]
        if rate not in STRIDES or values["features"] != ["melspec_2048"]:
            raise ValueError(f"a MuQ of {rate} states a second of {values['features']}")
        bands, stat = values["n_mels"], values["stat"]
        self.mean, self.std = (float(stat[f"melspec_2048_{name}"]) for name in ("mean", "std"))
        self.mel = Mel(sample_rate=sample_rate, hop_size=values["hop_length"], num_bands=bands)
        self.conv = Subsampling(
            num_bands=bands, width=values["conv_dim"], out=width, strides=STRIDES[rate]
        )
        config = Wav2Vec2ConformerConfig(**values["w2v2_config"])
        config.hidden_size, config.num_hidden_layers = width, values["encoder_depth"]
        config._attn_implementation = "eager"
        self.conformer = conformer.Wav2Vec2ConformerEncoder(config)
        del self.conformer.pos_conv_embed  # which no forward pass uses

    def forward(self, audio: Tensor) -> list[Tensor]:
        """The states [B, T, W] before each layer, and those of the last, normed."""
        x = self.conv((self.mel(audio) - self.mean) / self.std)
        embed = self.conformer.embed_positions
        positions = None if embed is None else embed(x)
        states = [x]
        for layer in self.conformer.layers:
            states.append(layer(states[-1], relative_position_embeddings=positions))
        return [*states[:-1], cast(Tensor, self.conformer.layer_norm(states[-1]))]


class Norm(nn.Module):
    """Layer norm without an offset."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.learned_gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.learned_gamma)


class Gated(nn.Module):
    """GELU of one half times the other."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return F.gelu(gate) * value


class Attention(nn.Module):
    """Of all positions, by the cosines of queries and keys."""

    def __init__(self, width: int, *, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        inner = num_heads * head_dim
        self.norm = Norm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.q_scale = nn.Parameter(torch.ones(head_dim))
        self.k_scale = nn.Parameter(torch.ones(head_dim))
        self.to_out = nn.Sequential(nn.Linear(inner, width, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, W] to [B, T, W]."""
        x = self.norm(x)
        parts = (self.to_q(x), *self.to_kv(x).chunk(2, dim=-1))
        query, key, value = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts
        )
        query = F.normalize(query, dim=-1) * self.q_scale
        key = F.normalize(key, dim=-1) * self.k_scale
        mixed = F.scaled_dot_product_attention(query, key, value, scale=SIMILARITY_SCALE)
        found: Tensor = self.to_out(mixed.transpose(1, 2).flatten(2))
        return found


class Transformer(nn.Module):
    """Pre-norm layers of attention and gated products."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        """`values`: `audio_transformer` or `text_transformer` of a MuQ-MuLan's config.json."""
        super().__init__()
        width = values["dim"]
        hidden = int(width * values["ff_mult"] * 2 / 3)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    Attention(width, num_heads=values["heads"], head_dim=values["dim_head"]),
                    nn.Sequential(
                        Norm(width),
                        nn.Linear(width, 2 * hidden, bias=False),
                        Gated(),
                        nn.Identity(),  # the place of dropout
                        nn.Linear(hidden, width, bias=False),
                    ),
                ]
            )
            for _ in range(values["tf_depth"])
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            attention, feed_forward = cast(nn.ModuleList, layer)
            x = x + attention(x)
            x = x + feed_forward(x)
        return x
