"""A run on a random MusicGen, heard by a random CLAP: the same loops as every other world's."""

from __future__ import annotations

import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.torch import load_file as torch_file
from safetensors.torch import save_file
from transformers import ClapModel

from cluster.cli import main
from cluster.fleet import with_absolute_paths
from cluster.session import train
from musicrl.audio import read_wav
from musicrl.codecs.huggingface import HuggingFaceCodec
from musicrl.config import TrainConfig, load_config
from musicrl.embedders.clap import Clap
from musicrl.policies.musicgen import MusicGen
from musicrl.preference.pool import read_pool
from musicrl.rewards.mix import RewardConfig
from musicrl.run import training_prompts
from musicrl.scorer import Scorer
from musicrl.settings import build, merge, to_tree
from musicrl.solo import solo
from musicrl.world import SHIPPED
from musicrl.worlds import load_world
from tests.small_musicgen import HOP, RATE, WINDOW, extractor, sounds_of, tokenizer


@pytest.fixture(scope="module")
def world(musicgen_world: Path) -> Path:
    return musicgen_world


def _config(world: Path, out: Path, **settings: Any) -> TrainConfig:
    tree = {
        "out": str(out),
        "iterations": 12,
        "model": {"weights": str(world)},
        "rollout": {"prompts_per_step": 4, "samples_per_prompt": 8, "prompts_per_chunk": 2},
        "algorithm": {"baseline": "group_mean", "alpha": 0.001},
        "update": {"learning_rate": 0.01, "microbatch_samples": 32},
        "cluster": {"learner_threads": 1, "object_store_mb": 100, "task_timeout_seconds": 120.0},
        "evaluation": {"prompts": 16, "audio_prompts": 1},
    }
    return build(TrainConfig, merge(tree, settings), origin="test")


def test_clap_is_transformers_behind_the_protocol(world: Path) -> None:
    ours, theirs = Clap.from_folder(world / "clap"), ClapModel.from_pretrained(world / "clap")
    assert (ours.sample_rate, ours.window_seconds) == (RATE, WINDOW)
    audio = sounds_of(HuggingFaceCodec.from_musicgen(world / "musicgen"))[:3]
    texts = ["slow piano", "flute"]
    heard = extractor()(list(audio.numpy()), sampling_rate=RATE, return_tensors="pt")
    read = tokenizer()(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        sounds = theirs.eval().get_audio_features(heard["input_features"].float()).pooler_output
        words = theirs.get_text_features(read.input_ids, read.attention_mask).pooler_output
    torch.testing.assert_close(ours.embed_audio(audio), sounds)
    torch.testing.assert_close(ours.embed_text(texts), words)
    assert (sounds @ words.T).std() > 0.01


@pytest.fixture(scope="module")
def alone(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Any]:
    """A run in one process, and its summary."""
    config = _config(world, tmp_path_factory.mktemp("alone") / "run")
    return config, solo(config)


def _checkpoint(config: TrainConfig, file: str) -> Path:
    return config.out / "checkpoints" / f"step_{config.iterations:06d}" / file


def _tensors(config: TrainConfig, file: str) -> dict[str, bytes]:
    arrays = load_file(_checkpoint(config, file))
    return {name: array.tobytes() for name, array in arrays.items()}


def test_the_reward_rises(alone: Any) -> None:
    change = alone[1]["evaluation"]["difference"]["reward"]
    assert change["mean"] > 0.1
    assert change["mean"] > 4 * change["standard_error"]


@pytest.fixture(scope="module")
def short(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Any]:
    """A run of two updates in one process, and its summary."""
    config = _config(world, tmp_path_factory.mktemp("short") / "run", iterations=2)
    return config, solo(config)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_controller_trains_it_as_one_process_does(alone: Any, tmp_path: Path) -> None:
    """And the reward rises: on fixed prompts and noise, by several standard errors of the pairs."""
    config, summary = alone
    settings = to_tree(replace(config, out=tmp_path / "run"))
    ours = build(TrainConfig, merge(settings, {"cluster": {"num_samplers": 1}}), origin="test")
    trained = train(ours)
    change = trained["evaluation"]["difference"]["reward"]
    assert change["mean"] > 4 * change["standard_error"]
    assert trained["evaluation"] == summary["evaluation"]
    assert _tensors(ours, "learner.safetensors") == _tensors(config, "learner.safetensors")


def test_a_run_goes_on_from_its_checkpoint(short: Any, tmp_path: Path) -> None:
    world, out = short[0].model.weights, tmp_path / "run"
    solo(_config(world, out, iterations=1))
    resumed = _config(world, out, iterations=2, resume=True)
    solo(resumed)
    assert _tensors(resumed, "policy.safetensors") == _tensors(short[0], "policy.safetensors")


def test_the_papers_algorithm_trains_a_value_network(world: Path, tmp_path: Path) -> None:
    """From the same checkpoint; and layers that run again change nothing."""
    settings: dict[str, Any] = {"iterations": 2, "algorithm": {"baseline": "value"}}
    plain = _config(world, tmp_path / "plain", **settings)
    again = _config(
        world,
        tmp_path / "again",
        **settings,
        update={"gradient_checkpointing": True, "microbatch_samples": 32, "learning_rate": 0.01},
    )
    summary = solo(plain)
    assert solo(again)["evaluation"] == summary["evaluation"]
    learned = _tensors(plain, "learner.safetensors")
    assert _tensors(again, "learner.safetensors") == learned
    begun = load_world(world).policy.state_dict()["token.weight"].numpy().tobytes()
    assert len({begun, learned["policy/token.weight"], learned["value/trunk.token.weight"]}) == 3
    assert "value/head.weight" in learned
    assert "value/trunk.head" not in learned


def test_adapters_learn_resume_and_leave_a_policy_as_any_other(world: Path, tmp_path: Path) -> None:
    def config(out: str, iterations: int, *, rank: int = 2, **settings: Any) -> TrainConfig:
        model = {"weights": str(world), "lora": {"rank": rank, "targets": ["qkv", "cross_kv"]}}
        return _config(world, tmp_path / out, model=model, iterations=iterations, **settings)

    whole = config("whole", 4)
    summary = solo(whole)
    assert summary["evaluation"]["kl"]["total"]["mean"] > 0
    solo(config("parts", 2))
    parts = config("parts", 4, resume=True)
    solo(parts)
    file = "policy.safetensors"
    assert _tensors(parts, file) == _tensors(whole, file)
    begun = load_world(world).policy.state_dict()
    learned = load_world(world, _checkpoint(whole, file)).policy.state_dict()
    moved = {name for name, tensor in begun.items() if not torch.equal(tensor, learned[name])}
    assert moved == {"layers.0.qkv.weight", "layers.0.cross_kv.weight"}
    base, folder = f"path:{world / 'musicgen'}", tmp_path / "adapter"
    options = ["--adapter", str(_checkpoint(whole, file).parent), "--run", str(whole.out)]
    assert main(["export", base, *options, "--out", str(folder)]) == 0
    assert "license: cc-by-nc-4.0\nlibrary_name: peft" in (folder / "README.md").read_text()
    for name, tensor in load_world(world, folder).policy.state_dict().items():
        torch.testing.assert_close(tensor, learned[name])
    with pytest.raises(ValueError, match=r"cannot resume from .*: it has another model\.lora"):
        solo(config("parts", 5, rank=3, resume=True))
    with pytest.raises(
        ValueError, match=r"model\.lora\.rank above 0 leaves nothing to update\.parts"
    ):
        config("refused", 1, update={"parts": ["layers"]})


def test_a_checkpoint_carries_the_licence_and_is_exported(
    alone: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, file = alone[0], _checkpoint(alone[0], "policy.safetensors")
    with safe_open(file, framework="pt") as opened:
        assert json.loads(opened.metadata()["config"])["licence"] == "cc-by-nc-4.0"
    base, out = config.model.weights / "musicgen", tmp_path / "finetuned"
    options = ["--policy", str(file), "--run", str(config.out), "--out", str(out)]
    assert main(["export", f"path:{base}", *options]) == 0
    card = (out / "README.md").read_text()
    assert "license: cc-by-nc-4.0" in card
    assert "| reward | -" in card
    learned = load_world(config.model.weights, file).policy.state_dict()
    written = MusicGen.load(str(out)).policy.state_dict()
    begun = load_world(config.model.weights).policy.state_dict()
    options[:2] = ["--adapter", str(file.parent)]
    assert main(["export", f"path:{base}", *options[:4], "--out", str(tmp_path / "adapter")]) == 1
    assert "is of a run without model.lora" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"finetuned"}
    assert all(torch.equal(written[name], tensor) for name, tensor in learned.items())
    assert not torch.equal(learned["head"], begun["head"])


def test_a_run_is_evaluated_against_its_base(alone: Any, tmp_path: Path) -> None:
    run, out = alone[0].out, tmp_path / "report"
    words = [str(run), "--weights", str(alone[0].model.weights), "--prompts", "16"]
    assert main(["evaluate", *words, "--out", str(out), "--json", str(tmp_path / "e.json")]) == 0
    report = json.loads((tmp_path / "e.json").read_text())
    base, learned = report["rows"]["base"], report["rows"][str(run)]
    trained = alone[1]["evaluation"]
    for row, side in ((base, "before"), (learned, "after")):
        assert row["figures"]["reward"]["mean"] == pytest.approx(trained[side]["reward"]["mean"])
    assert learned["kl"].keys() == {"codebook0", "codebook1", "total"}
    assert learned["kl"]["total"]["mean"] == pytest.approx(trained["kl"]["total"]["mean"])
    assert report["win_rates"][str(run)]["reward"]["win_rate"] > 0.8
    assert {"distinct-1/codebook0", "spread/tagger", "silent"} <= report["sets"]["rows"]["base"][
        "diversity"
    ].keys()
    left_out = report["left_out"]
    assert left_out["judge/embedding"].startswith("world.yaml names no `judge`")
    assert left_out["judge/tagger"].startswith("no calibration.json")
    assert left_out["judge/onset-tempo"].startswith("no clip of these prompts")
    for text in ((out / "report.md").read_text(), (out / "report.html").read_text()):
        assert "KL of codebook1, nats a clip" in text
        assert "left out: judge/tagger: no calibration.json" in text
        assert "| judge/onset-tempo" not in text
        assert "judge/pitch-variety" in text


def test_a_listening_page_has_the_base_and_what_was_learned(alone: Any, tmp_path: Path) -> None:
    file, out = _checkpoint(alone[0], "policy.safetensors"), tmp_path / "page"
    weights = ["--weights", str(alone[0].model.weights), "--prompts", "2", "--out", str(out)]
    assert main(["listen", str(file), *weights]) == 0
    columns = json.loads((out / "listening.json").read_text())["columns"]
    assert list(columns) == ["base", str(file)]
    base, learned = (column["origin"] for column in columns.values())
    assert base.startswith("base@")
    assert learned.startswith("run-step_000012@")
    assert len(list(out.glob("audio/*/*.mp3"))) == 4


def test_a_pool_of_clips_is_sampled_for_listeners(world: Path, tmp_path: Path) -> None:
    sizes = ["--clips.prompts", "2", "--clips.clips-per-prompt", "3", "--clips.clip-seconds", "0.2"]
    out = tmp_path / "pool"
    assert main(["prefs", "pool", "--clips.weights", str(world), *sizes, "--out", str(out)]) == 0
    clips = read_pool(out)
    assert sorted(c.prompt.text for c in clips) == sorted(3 * list({c.prompt.text for c in clips}))
    assert len({c.clip.id for c in clips}) == 6
    assert {c.clip.policy.split("@")[0] for c in clips} == {"base"}
    assert {len(read_wav(out / c.wav, sample_rate=RATE)) for c in clips} == {10 * HOP}


def test_world_yaml_may_name_the_prompts(world: Path, tmp_path: Path) -> None:
    settings = (world / "world.yaml").read_text()
    (tmp_path / "world.yaml").write_text(settings + "prompts: musiccaps.csv\n")
    (tmp_path / "musiccaps.csv").write_text("caption,is_audioset_eval\nsoft harp,False\n")
    config = _config(tmp_path, tmp_path / "run")
    assert [prompt.text for prompt in training_prompts(config)] == ["soft harp"]


def _read(folder: Path) -> None:
    """All of a world."""
    loaded = load_world(folder)
    _ = loaded.policy, loaded.embedder


def test_licences_are_logged(world: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        _read(world)
    assert "musicgen: licence cc-by-nc-4.0" in caplog.text
    assert "clap: licence unknown" in caplog.text


def test_nothing_else_is_said(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No progress bars and no warnings of transformers, once for each actor."""
    _read(world)
    said = capfd.readouterr()
    lines = (said.out + said.err).splitlines()
    assert [line for line in lines if "licence" not in line] == []


def test_clips_are_whole_frames_and_late_codebooks_take_steps(world: Path) -> None:
    loaded = load_world(world)
    assert (loaded.steps_of(None), loaded.steps_of(0.2)) == (21, 11)
    with pytest.raises(
        ValueError, match=r"clip_seconds 0\.03 is not a multiple of 0\.02 up to 0\.4"
    ):
        loaded.steps_of(0.03)
    tokens = np.zeros((2, 11, 2), np.int16)
    assert loaded.decode(tokens).shape == (2, 10 * HOP)


def test_a_process_reads_the_models_that_it_uses(world: Path, tmp_path: Path) -> None:
    """Who samples needs no listener, and who scores by text no weights of the policy."""
    copy = _copy(world, tmp_path)
    (copy / "clap" / "model.safetensors").unlink()
    assert load_world(copy).policy.layout == load_world(world).layout
    listener = _copy(world, tmp_path / "other")
    file = listener / "musicgen" / "model.safetensors"
    tensors = torch_file(file)
    save_file({k: v for k, v in tensors.items() if not k.startswith("decoder.")}, file)
    scorer = Scorer(load_world(listener), RewardConfig(weights={"text": 1.0}))
    assert list(scorer.mix.rewards) == ["text"]
    with pytest.raises(ValueError, match=f"{file} lacks the tensor 'decoder"):
        _read(listener)


@pytest.mark.parametrize(
    ("setting", "value", "sentence"),
    [
        ("family", "musicgan", r"world\.yaml: unknown family 'musicgan'.*musicgen"),
        (
            "embedder",
            "path:musicgen",
            "musicgen holds no CLAP that can be read: model_type is",
        ),
        ("embedder", "path:nowhere", "nowhere: no such folder"),
        ("model", "path:clap", r"clap.config\.json: model_type is 'clap', not 'musicgen'"),
        ("model", "hub:nobody/nothing", "hub:nobody/nothing is not in the local cache"),
        ("clip_seconds", 0.001, "clip_seconds 0.001 is less than a frame"),
        ("clip_second", 1, "unknown key 'clip_second'"),
    ],
)
def test_a_world_that_does_not_fit_is_refused(
    world: Path, tmp_path: Path, setting: str, value: object, sentence: str
) -> None:
    for name in ("musicgen", "clap"):
        (tmp_path / name).symlink_to(world / name)
    settings = yaml.safe_load((world / "world.yaml").read_text()) | {setting: value}
    (tmp_path / "world.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match=sentence):
        _read(tmp_path)


def _copy(world: Path, folder: Path) -> Path:
    return Path(shutil.copytree(world, folder / "copy"))


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("clap", "text_projection.linear1.weight"),
        ("musicgen", "audio_encoder.decoder.layers.0.conv.bias"),
    ],
)
def test_a_listener_and_a_codec_are_whole_or_refused(
    world: Path, tmp_path: Path, model: str, name: str
) -> None:
    """Where transformers would draw at random what is not there."""
    copy = _copy(world, tmp_path)
    file = copy / model / "model.safetensors"
    tensors = torch_file(file)
    shape = re.escape(str(tuple(tensors[name].shape)))
    tensors[name] = torch.zeros(3, 7)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=rf"{file}: tensor '{name}' has .*\(3, 7\), expected {shape}"
    ):
        _read(copy)
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{file} lacks the tensor '{name}'"):
        _read(copy)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{file} is not a readable safetensors file"):
        _read(copy)


def test_a_world_without_tokenizers_is_refused_before_a_run(world: Path, tmp_path: Path) -> None:
    for model in ("clap", "musicgen"):
        copy = _copy(world, tmp_path / model)
        for file in (copy / model).glob("tokenizer*"):
            file.unlink()
        with pytest.raises((ValueError, OSError), match=f"{copy / model} has no tokenizer"):
            _read(copy)


@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_the_presets_of_musicgen_say_what_is_missing(
    size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And fetch nothing."""
    assert main(["solo", f"musicgen-{size}", "--out", str(tmp_path / "run")]) == 1
    fault = capsys.readouterr().err.splitlines()[-1]
    assert fault.startswith(f"musicrl: hub:facebook/musicgen-{size} is not in the local cache")
    config = load_config(f"musicgen-{size}")
    assert len(training_prompts(config)) > 100
    assert with_absolute_paths(config).model.weights == SHIPPED.parent / f"musicgen-{size}"


def test_older_names_of_the_codecs_tensors_are_known(world: Path, tmp_path: Path) -> None:
    tensors = torch_file(world / "musicgen" / "model.safetensors")
    older = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in tensors.items()
    }
    assert older.keys() != tensors.keys()
    save_file(older, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((world / "musicgen" / "config.json").read_text())
    found = HuggingFaceCodec.from_musicgen(tmp_path)
    assert torch.equal(
        sounds_of(found), sounds_of(HuggingFaceCodec.from_musicgen(world / "musicgen"))
    )
