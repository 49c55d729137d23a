"""The quality reward: windows by hand, what has no score, and the shipped predictor's order."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from musicrl.config import TrainConfig
from musicrl.pretrain.degradations import degrade
from musicrl.prompts import load_prompts
from musicrl.rewards import RewardConfig, make_mix
from musicrl.rewards.mos import MosConfig, MosPredictor
from musicrl.rewards.quality import Quality, load_quality, window_frames
from musicrl.sampler.engine import Engine
from musicrl.sampler.sampling import SamplingConfig
from musicrl.solo import solo
from musicrl.types import Clips, Prompt
from musicrl.world import World

Configure = Callable[..., TrainConfig]
RATE = 16_000
PROMPT = Prompt(id="0", text="a tune")


class Frames:
    """Hears a clip as its samples, one a frame, 10 a second, and thinks of their mean."""

    sample_rate, frame_rate = 10, 10.0

    def __init__(self) -> None:
        self.heard: list[tuple[int, int]] = []

    def listen(self, audio: Tensor) -> Tensor:
        return audio[:, None]

    def __call__(self, mel: Tensor) -> Tensor:
        self.heard.append((len(mel), mel.shape[2]))
        return mel.mean((1, 2))


def reward(predictor: Frames, **settings: int) -> Quality:
    return Quality(predictor, **settings)  # type: ignore[arg-type]


def clips(*rows: object, rate: int = 10) -> Clips:
    return Clips(audio=np.array(rows, np.float32), sample_rate=rate)


def test_thirty_seconds_are_scored_on_their_first_and_last_twenty() -> None:
    """0..10 s sound like 1, 10..20 s like 2, 20..30 s like 4: windows of 1.5 and 3."""
    predictor = Frames()
    scores = reward(predictor)([PROMPT], clips(np.repeat([1.0, 2.0, 4.0], 100)))
    assert predictor.heard == [(1, 200), (1, 200)]
    np.testing.assert_allclose(scores, [(1.5 + 3.0) / 2])


@pytest.mark.parametrize(
    ("seconds", "window"), [(60.0, 20.0), (30.0, 20.0), (6.0, 4.0), (3.0, 2.0), (0.3, 0.2)]
)
def test_a_window_is_twenty_seconds_or_two_thirds_of_a_short_clip(
    seconds: float, window: float
) -> None:
    assert window_frames(round(seconds * 50), 50.0) == round(window * 50)


def test_what_cannot_be_scored_is_nan_and_spoils_no_other() -> None:
    good, silent, broken = np.full(60, 2.0), np.zeros(60), np.full(60, 2.0)
    broken[7] = np.inf
    scores = reward(Frames(), batch=1)([PROMPT] * 4, clips(silent, good, broken, good * 2))
    np.testing.assert_allclose(scores, [np.nan, 2.0, np.nan, 4.0])
    assert np.isnan(reward(Frames())([PROMPT], clips([1.0]))).all()  # 0.1 s


def test_clips_are_heard_in_batches_and_at_the_predictors_rate() -> None:
    predictor = Frames()
    scores = reward(predictor, batch=2)([PROMPT] * 3, clips(*np.full((3, 120), 2.0), rate=20))
    assert predictor.heard == [(2, 40), (2, 40), (1, 40), (1, 40)]  # 6 s at 10 Hz
    np.testing.assert_allclose(scores, 2.0, atol=0.2)


def test_a_predictor_ignores_level_and_survives_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MosPredictor(MosConfig(width=8, num_blocks=1)).eval()
    audio = torch.randn(2, RATE) * 0.2
    assert torch.allclose(model.listen(audio), model.listen(audio * 0.1), atol=1e-4)
    model.save(tmp_path / "quality.safetensors", error=0.5)
    again = load_quality(tmp_path)
    scores = again([PROMPT] * 2, Clips(audio=audio.numpy(), sample_rate=RATE))
    mel = model.listen(audio)
    by_hand = (model(mel[:, :, :33]) + model(mel[:, :, -33:])) / 2  # two thirds of 50 frames
    np.testing.assert_allclose(scores, by_hand.detach().numpy(), atol=5e-3)
    assert ((scores > 1) & (scores < 5)).all()


def test_a_world_without_a_predictor_says_so_only_when_asked(tiny_world: Path) -> None:
    world = World.load(tiny_world)
    make_mix(RewardConfig(), world)
    with pytest.raises(FileNotFoundError) as caught:
        make_mix(RewardConfig(weights={"text": 1.0, "quality": 1.0}), world)
    assert str(caught.value) == (
        f"no quality.safetensors in {tiny_world}: "
        f"`musicrl pretrain quality --weights {tiny_world}` makes it"
    )


def test_a_run_reports_the_opinion_as_a_raw_term(
    tiny_world: Path, configure: Configure, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_world, tmp_path / "world"))
    MosPredictor(MosConfig(width=8, num_blocks=1)).save(folder / "quality.safetensors")
    weights = {"text": 0.0, "quality": 1.0}
    summary = solo(
        configure(iterations=1, model={"weights": str(folder)}, reward={"weights": weights})
    )
    before = summary["evaluation"]["before"]
    raw, total = (before[name]["mean"] for name in ("reward/quality", "reward"))
    assert 1 < raw < 5
    assert total == pytest.approx((raw - 1) / 4, rel=1e-5)
    assert -1 <= before["reward/text"]["mean"] <= 1


@pytest.fixture(scope="module")
def world() -> World:
    return World.load()


def test_the_opinion_enters_the_mix_from_0_to_1(world: World) -> None:
    played = play(world, 1, temperature=0.99)
    batch = make_mix(RewardConfig(weights={"quality": 2.0}), world)([PROMPT], played)
    np.testing.assert_allclose(batch.total, 2 * (batch.terms["quality"] - 1) / 4, rtol=1e-6)
    assert 1 < batch.terms["quality"][0] < 5


def play(world: World, count: int, *, temperature: float) -> Clips:
    """Clips of 2 s of held-out captions."""
    texts = [prompt.text for prompt in load_prompts(split="heldout")[:count]]
    samples = Engine(world.policy.eval(), SamplingConfig(temperature=temperature)).generate(
        world.conditioner(texts),
        samples_per_prompt=1,
        seeds=np.arange(count, dtype=np.uint64),
        num_steps=25,
    )
    return Clips(audio=world.decode(samples.tokens), sample_rate=world.sample_rate)


@pytest.mark.parametrize(
    ("kind", "fall"), [("white", 0.8), ("pink", 0.8), ("dropouts", 0.2), ("crush", 0.8)]
)
def test_more_damage_to_what_the_policy_plays_scores_lower(
    world: World, kind: str, fall: float
) -> None:
    """Of pink noise and drop-outs the predictor never heard any."""
    quality, played = load_quality(world.folder), play(world, 6, temperature=0.9)
    means = [float(quality([PROMPT] * 6, played).mean())]
    for strength in (0.35, 0.65, 0.95):
        worse = [
            degrade(kind, clip, strength=strength, sample_rate=RATE, rng=np.random.default_rng(3))
            for clip in played.audio
        ]
        means.append(float(quality([PROMPT] * 6, clips(*worse, rate=RATE)).mean()))
    assert means == sorted(means, reverse=True)
    assert means[0] - means[-1] > fall


def test_a_hotter_policy_scores_lower(world: World) -> None:
    quality = load_quality(world.folder)
    means = [
        float(quality([PROMPT] * 12, play(world, 12, temperature=t)).mean())
        for t in (0.8, 1.1, 1.5)
    ]
    assert means == sorted(means, reverse=True)
