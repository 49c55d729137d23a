"""The policy stage: next-token training of the hierarchical decoder on tokenised clips.

Conditioned on the AUDIO embedding's tokens (so no captions are needed), prompted later with text
embeddings through the same codebooks (MusicLM section 3.2).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn

from musicrl.bounds import at_least
from musicrl.embedders.mulan import MuLan
from musicrl.policies.musiclm import MusicLM, MusicLMConfig
from musicrl.pretrain.checkpoints import StageCheckpoint
from musicrl.pretrain.distributed import Crew, Log, crew_of
from musicrl.pretrain.embedder import schedule
from musicrl.pretrain.pace import Pace
from musicrl.pretrain.tokens import TokenData
from musicrl.pretrain.world import WorldData
from musicrl.textfile import write_text

TINY = MusicLMConfig(
    coarse_levels=4,
    codec_frames_per_step=1,
    condition_vocab=64,
    width=192,
    num_layers=5,
    depth_width=128,
    depth_layers=2,
    depth_heads=4,
)
"""The shipped policy: 4.0 M parameters."""


@dataclass(frozen=True, kw_only=True)
class PolicyStageConfig:
    """Pretraining of the policy."""

    world: Path = Path("worlds/tiny")
    """Folder of rendered clips."""
    weights: Path = Path("worlds/tiny/weights")
    """Folder with the other weights; receives the policy."""
    name: str = "policy"
    """Of the file, without .safetensors."""
    model: MusicLMConfig = field(default_factory=lambda: TINY)
    steps: int = 3000
    batch_clips: int = 24
    learning_rate: float = 2e-3
    """AdamW's, of embeddings, norms and outputs."""
    muon_learning_rate: float = 0.015
    """Muon's, of the weights of linear layers."""
    weight_decay: float = 0.05
    misdescribed: float = 0.0
    """Probability that a clip is learned with the condition of another clip of its instrument: as
    scraped captions do, it names the sound and may err in all else. The shipped policy-noisy has
    0.4: a base that plays well and follows its prompts in part, as the paper's does, for
    reinforcement learning to mend (this project's choice)."""
    drop_condition: float = 0.1
    """Probability that a clip is learned without its condition."""
    keep_windows: float = 0.7
    """Probability that a window counts in a clip's embedding (augmentation)."""
    checkpoint_every: int = 200
    gpus: float = 0.0
    """GPUs of a process: 0 (CPU) or 1; not yet run on one."""
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, batch_clips=self.batch_clips)
        at_least(1, checkpoint_every=self.checkpoint_every)


def train_policy(config: PolicyStageConfig) -> dict[str, float]:
    """Train and write the policy; resumes from its last checkpoint; returns validation figures.

    Under torchrun only the first process has figures.
    """
    with crew_of(config.gpus) as crew:
        return _train(config, crew)


def _train(config: PolicyStageConfig, crew: Crew) -> dict[str, float]:
    torch.manual_seed(config.seed)
    model = MusicLM(config.model).to(crew.device)
    embedder = MuLan.from_file(config.weights / "embedder.safetensors")
    with crew.in_turn():
        train, validation, captions = _load(config, model)
    fellows = Fellows([a.instrument for a in WorldData(config.world, "train").attributes])
    optimizers = _optimizers(model, config)
    checkpoint = StageCheckpoint(config.weights / f".{config.name}.resume.safetensors")
    first = checkpoint.restore(model, *optimizers)
    crew.agree(first, config.name)
    writer = crew.writer(config.weights / "tensorboard" / config.name, first)
    pace = Pace(config.name, crew, writer)
    for step in pace.steps(range(first, config.steps)):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * schedule(step, config.steps)
        with pace.drawing():
            batch = _draw(train, fellows, embedder, config, step)
        tokens, conditions = (crew.share(part).to(crew.device) for part in batch)
        with torch.autocast(crew.device.type, torch.bfloat16):
            logprobs = model.token_logprobs(tokens, conditions)
        model.zero_grad()
        weight = len(tokens) / config.batch_clips
        loss = crew.backward(-logprobs.mean(), model.parameters(), weight=weight)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        writer.add_scalar("train/nll", loss, step)
        if crew.is_first and (step + 1) % config.checkpoint_every == 0:
            checkpoint.write(model, step + 1, *optimizers)
            facts = measure_policy(model, validation, embedder, captions)
            _report(writer, facts, step + 1)
    writer.close()
    if not crew.is_first:
        return {}
    facts = measure_policy(model, validation, embedder, captions)
    model.save(config.weights / f"{config.name}.safetensors", as_half=True)
    write_text(
        config.weights / f"{config.name}.json", json.dumps({"facts": facts, **_plain(config)})
    )
    checkpoint.remove()
    return facts


def _plain(config: PolicyStageConfig) -> dict[str, object]:
    return {"config": json.loads(json.dumps(asdict(config), default=str))}


def _load(config: PolicyStageConfig, model: MusicLM) -> tuple[TokenData, TokenData, list[str]]:
    data = {split: WorldData(config.world, split) for split in ("train", "validation")}
    tokens = {
        split: TokenData(config.weights, clips, split, model.config.layout)
        for split, clips in data.items()
    }
    captions = data["validation"].captions(
        range(len(data["validation"])), Random(config.seed), complete=True
    )
    return tokens["train"], tokens["validation"], captions


def _optimizers(model: MusicLM, config: PolicyStageConfig) -> list[torch.optim.Optimizer]:
    """Muon for the weights of linear layers, which learns several times faster here than AdamW,
    and AdamW for the rest; "peak_lr" is a group's rate before the schedule."""
    linear = [part.weight for part in model.modules() if isinstance(part, nn.Linear)]
    taken = {id(weight) for weight in linear}
    others = [p for p in model.parameters() if id(p) not in taken]
    rate, decay = config.learning_rate, config.weight_decay
    groups = [
        {"params": [p for p in others if p.dim() >= 2], "weight_decay": decay, "peak_lr": rate},
        {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0, "peak_lr": rate},
    ]
    muon = {"params": linear, "weight_decay": decay, "peak_lr": config.muon_learning_rate}
    return [
        torch.optim.AdamW(groups, rate, betas=(0.9, 0.97)),
        torch.optim.Muon([muon], config.muon_learning_rate, momentum=0.95),
    ]


class Fellows:
    """Clips by a label that they share."""

    def __init__(self, labels: Sequence[str]) -> None:
        label = torch.tensor([sorted(set(labels)).index(name) for name in labels])
        self._order = label.argsort(stable=True)
        self._count = label.bincount()[label]
        self._first = torch.searchsorted(label[self._order], label)

    def draw(self, index: Tensor, uniform: Tensor) -> Tensor:
        """A clip with the label of each clip of index int64 [B], by uniform [B] in [0, 1)."""
        return self._order[self._first[index] + (uniform * self._count[index]).long()]


def _draw(
    data: TokenData, fellows: Fellows, embedder: MuLan, config: PolicyStageConfig, step: int
) -> tuple[Tensor, Tensor]:
    """Grids and conditions of one batch, a pure function of seed and step."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    index = torch.randint(len(data), (config.batch_clips,), generator=generator)
    num_windows = data.windows.shape[1]
    keep = torch.rand(len(index), num_windows, generator=generator) < config.keep_windows
    keep[:, 0] |= ~keep.any(1)
    others = fellows.draw(index, torch.rand(len(index), generator=generator))
    is_wrong = torch.rand(len(index), generator=generator) < config.misdescribed
    described = torch.where(is_wrong, others, index)
    conditions = embedder.quantizer.encode(data.embedding(described, keep=keep))
    dropped = torch.rand(len(index), generator=generator) < config.drop_condition
    conditions = conditions.masked_fill(dropped[:, None], -1)
    return data.grids[index].long(), conditions


@torch.no_grad()
def measure_policy(
    model: MusicLM, data: TokenData, embedder: MuLan, captions: list[str], *, clips: int = 192
) -> dict[str, float]:
    """Validation NLL by stream (nats a token) and how far conditions matter.

    `gap/audio` and `gap/text`: NLL under another clip's condition less that under its own;
    `gap/semantic`: the latter of the semantic stream.
    """
    model.eval()
    device = next(model.parameters()).device
    index = torch.arange(min(clips, len(data)))
    audio = embedder.quantizer.encode(data.embedding(index))
    text = embedder.condition([captions[i] for i in index.tolist()])
    tokens = data.grids[index].long()
    nll = {
        name: torch.cat(
            [
                -model.token_logprobs(t.to(device), c.to(device)).cpu()
                for t, c in zip(tokens.split(32), conditions.split(32), strict=True)
            ]
        )
        for name, conditions in {
            "audio": audio,
            "text": text,
            "wrong_audio": audio.roll(1, 0),
            "wrong_text": text.roll(1, 0),
        }.items()
    }
    model.train()
    streams = zip(model.layout.stream_names, nll["audio"].mean((0, 1)).tolist(), strict=True)
    return {
        **{f"nll/{stream}": value for stream, value in streams},
        "nll/audio_condition": float(nll["audio"].mean()),
        "nll/text_condition": float(nll["text"].mean()),
        "gap/audio": float((nll["wrong_audio"] - nll["audio"]).mean()),
        "gap/text": float((nll["wrong_text"] - nll["text"]).mean()),
        "gap/semantic": float((nll["wrong_text"] - nll["text"])[:, :, 0].mean()),
    }


def _report(writer: Log, facts: dict[str, float], step: int) -> None:
    for name, value in facts.items():
        writer.add_scalar(name, value, step)
    figures = "  ".join(f"{name} {value:.3f}" for name, value in facts.items())
    print(f"step {step}: {figures}", flush=True)
