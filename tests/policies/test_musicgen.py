"""A whole MusicGen checkpoint of random weights: transformers' model and our policy."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
)

from cluster.cli import main
from musicrl.algorithms import make_algorithm
from musicrl.algorithms.config import AlgorithmConfig
from musicrl.config import dump_yaml, load_config
from musicrl.policies.export import export, model_card
from musicrl.policies.folder import INDEX, locate
from musicrl.policies.musicgen import MusicGen
from musicrl.policies.text import PADDING, pad
from musicrl.sampler.engine import Engine
from musicrl.sampler.sampling import NO_CONDITION, SamplingConfig
from musicrl.settings import build
from musicrl.types import Experience, Prompt, RewardBatch, Rollouts
from musicrl.update import PolicyUpdate
from musicrl.update_config import UpdateConfig

VOCAB, STEPS, TEXT_SIZE = 32, 14, 9
PROMPTS = [[5, 9, 3, 17, 1], [8, 1], [30, 31, 32, 33, 34, 35, 36, 1]]
SHAPES = {
    "K2-projected": (2, 24, 32),
    "K4-plain": (4, 32, 32),
    "K8-projected": (8, 24, 32),
    "K1-odd": (1, 24, 33),
    "K2-stereo": (2, 24, 32, 2),
    "K4-stereo": (4, 32, 32, 2),
    "K8-stereo": (8, 24, 32, 2),
}
"""Codebooks of all channels, width of the text encoder and of the decoder, whose heads are three of
odd size where it is odd, and channels."""


def _model(num_codebooks: int, text_width: int, width: int = 32, channels: int = 1) -> Any:
    torch.manual_seed(num_codebooks)
    text = T5Config(vocab_size=50, d_model=text_width, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    codec = EncodecConfig(
        sampling_rate=800,
        target_bandwidths=[num_codebooks / channels],
        upsampling_ratios=[4, 2],
        num_filters=2,
        hidden_size=8,
        codebook_size=VOCAB,
        codebook_dim=8,
        num_lstm_layers=1,
        chunk_length_s=None,
    )
    decoder = MusicgenDecoderConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=3 if width % 2 else 4,
        ffn_dim=48,
        num_codebooks=num_codebooks,
        audio_channels=channels,
        max_position_embeddings=64,
        initializer_factor=0.2,
        pad_token_id=VOCAB,
        bos_token_id=VOCAB,
    )
    model = MusicgenForConditionalGeneration(
        MusicgenConfig(text_encoder=text, audio_encoder=codec, decoder=decoder)
    ).eval()
    model.generation_config.pad_token_id = VOCAB
    model.generation_config.bos_token_id = VOCAB
    model.generation_config.decoder_start_token_id = VOCAB
    return model


@pytest.fixture(scope="module", params=SHAPES.values(), ids=list(SHAPES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """transformers' model, and ours from its folder."""
    folder = tmp_path_factory.mktemp("musicgen")
    model = _model(*request.param)
    model.save_pretrained(folder)
    return model, MusicGen.load(f"path:{folder}", num_steps=STEPS, text_size=TEXT_SIZE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _model(2, 24).save_pretrained(tmp_path)
    return tmp_path


def _inputs() -> dict[str, Tensor]:
    conditions = pad(PROMPTS, max(len(ids) for ids in PROMPTS))
    return {"input_ids": conditions.clamp(min=0), "attention_mask": (conditions >= 0).long()}


@torch.no_grad()
def _their_tokens(model: Any, guidance: float) -> Tensor:
    """Codes [P, K, T] that `generate` gives its codec, greedily: of a stereo model left and right,
    which alternate."""
    seen: list[Tensor] = []
    decode = model.audio_encoder.decode

    def recorded(codes: Tensor, **settings: Any) -> Any:
        seen.append(codes)
        return decode(codes, **settings)

    model.audio_encoder.decode = recorded
    try:
        model.generate(**_inputs(), do_sample=False, guidance_scale=guidance, max_length=STEPS + 1)
    finally:
        model.audio_encoder.decode = decode
    return torch.stack([codes[0] for codes in seen], dim=2).flatten(1, 2)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=pytest.mark.compiler)])
def test_greedy_tokens_equal_generates(pair: Any, backend: Any, guidance: float) -> None:
    theirs, ours = pair
    sampling = SamplingConfig(top_k=1, guidance=guidance, backend=backend)
    conditions = pad(PROMPTS, TEXT_SIZE)
    samples = Engine(ours.policy, sampling).generate(
        conditions, samples_per_prompt=1, seeds=np.arange(len(PROMPTS), dtype=np.uint64)
    )
    found = ours.policy.layout.to_codes(samples.tokens)
    wanted = _their_tokens(theirs, guidance).numpy()
    assert len({row.tobytes() for row in wanted}) > 1
    np.testing.assert_array_equal(found, wanted)


@torch.no_grad()
def test_teacher_forced_logits_equal_transformers(pair: Any) -> None:
    theirs, ours = pair
    layout = ours.policy.layout
    K = layout.num_streams
    codes = np.random.default_rng(0).integers(0, VOCAB, (len(PROMPTS), K, STEPS - K + 1))
    grid = torch.from_numpy(layout.interleave(codes)).long()
    B, S, K = grid.shape
    before = torch.cat([torch.full((B, 1, K), VOCAB), grid[:, :-1]], dim=1)
    wanted = theirs(
        **_inputs(), decoder_input_ids=before.transpose(1, 2).reshape(B * K, S)
    ).logits.view(B, K, S, -1)
    found = ours.policy(grid, pad(PROMPTS, TEXT_SIZE)).transpose(1, 2)[..., :VOCAB]
    is_frame = grid.transpose(1, 2) != VOCAB
    assert wanted.std() > 0.1
    torch.testing.assert_close(found[is_frame], wanted[is_frame], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_samplers_log_probabilities_are_the_learners(pair: Any, guidance: float) -> None:
    """With few blocks, so that samples are taken up again in the middle."""
    from musicrl.sampler.sampling import grid_log_probs

    policy = pair[1].policy
    config = SamplingConfig(guidance=guidance, block_size=8, num_blocks=6)
    conditions = pad(PROMPTS, TEXT_SIZE).repeat_interleave(2, dim=0)
    engine = Engine(policy, config)
    samples = engine.generate(conditions, samples_per_prompt=1, seeds=np.arange(6, dtype=np.uint64))
    tokens = torch.from_numpy(samples.tokens).long()
    with torch.no_grad():
        all_cells = grid_log_probs(policy, tokens, conditions, config)
    found = all_cells.gather(-1, tokens[..., None])[..., 0]
    assert engine.num_preempted > 0
    torch.testing.assert_close(found, torch.from_numpy(samples.logprobs), atol=2e-6, rtol=0)


def test_the_null_prompt_is_a_state_of_zeros(pair: Any) -> None:
    states, lens = pair[1].policy.text(torch.full((1, TEXT_SIZE), NO_CONDITION))
    assert not states.any()
    assert lens.tolist() == [1]


def test_only_the_text_encoder_is_frozen_and_kept_out(pair: Any) -> None:
    policy = pair[1].policy
    assert not [name for name in policy.state_dict() if "frozen" in name or "encoder" in name]
    policy(torch.full((1, STEPS, policy.layout.num_streams), 3), pad([[4, 1]], TEXT_SIZE))[
        :, 5, :, 3
    ].sum().backward()
    assert policy.head.grad.abs().sum() > 0
    assert all(p.grad is None for p in policy.text.frozen.network.parameters())
    if policy.text.projection is not None:
        assert policy.text.projection.weight.grad.abs().sum() > 0


def test_texts_become_padded_ids(folder: Path) -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "slow": 4, "piano": 5}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)
    loaded = MusicGen.load(str(folder), num_steps=STEPS, text_size=3)
    found = loaded.conditioner(["slow piano", "slow slow piano piano"])
    assert found.tolist() == [[4, 5, PADDING], [4, 4, 5]]


def test_the_cards_licence_is_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# A model\n")
    with caplog.at_level(logging.WARNING):
        assert MusicGen.load(str(folder)).licence == "cc-by-nc-4.0"
    assert "cc-by-nc-4.0" in caplog.text


def _change(folder: Path, part: str | None, name: str, value: object) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    (values if part is None else values[part])[name] = value
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("part", "name", "value", "sentence"),
    [
        (
            "decoder",
            "audio_channels",
            3,
            r"num_codebooks 2 does not split into 3 channels \(1 or 2",
        ),
        (
            "decoder",
            "num_codebooks",
            3,
            r"lacks the tensor 'decoder\.model.*embed_tokens\.2\.weight'",
        ),
        (None, "model_type", "musicgen_melody", "melody"),
        (None, "model_type", "llama", "model_type is 'llama'"),
        ("text_encoder", "model_type", "bert", "text_encoder.model_type is 'bert'"),
        ("decoder", "activation_function", "relu", "decoder.activation_function is 'relu'"),
        (
            "decoder",
            "ffn_dim",
            64,
            r"layers\.0\.fc1\.weight' has shape \(48, 32\), expected \(64, ",
        ),
        ("text_encoder", "d_model", "x", r"config\.json: invalid literal for int\(\)"),
        ("text_encoder", "d_model", 25, r"enc_to_dec_proj\.weight' has shape \(32, 24\)"),
    ],
)
def test_what_is_not_served_is_refused(
    folder: Path, part: str | None, name: str, value: object, sentence: str
) -> None:
    _change(folder, part, name, value)
    with pytest.raises(ValueError, match=sentence) as caught:
        MusicGen.load(str(folder))
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(("part", "name"), [("decoder", "ffn_dim"), ("text_encoder", "vocab_size")])
def test_a_missing_setting_is_named(folder: Path, part: str, name: str) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    del values[part][name]
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=rf"config\.json lacks the setting '{name}'"):
        MusicGen.load(str(folder))


def _in_shards(folder: Path) -> list[Path]:
    """The checkpoint of `folder` in several files; their paths."""
    (folder / "model.safetensors").unlink()
    _model(2, 24).save_pretrained(folder, max_shard_size="40KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    return shards


def test_a_checkpoint_in_shards_is_the_same_policy(folder: Path) -> None:
    whole = MusicGen.load(str(folder)).policy
    _in_shards(folder)
    found = MusicGen.load(str(folder)).policy
    assert found.text is not None
    assert whole.text is not None
    for one, other in ((found, whole), (found.text.frozen.network, whole.text.frozen.network)):
        theirs = other.state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def test_a_damaged_shard_is_named(folder: Path) -> None:
    shards = _in_shards(folder)
    tensors = load_file(shards[1])
    lost = min(tensors)
    save_file({k: v for k, v in tensors.items() if k != lost}, shards[1])
    with pytest.raises(ValueError, match=f"{shards[1].name} lacks the tensor '{lost}'"):
        MusicGen.load(str(folder))
    shards[1].write_bytes(shards[1].read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{shards[1].name} is not a readable safetensors file"):
        MusicGen.load(str(folder))
    shards[1].unlink()
    with pytest.raises(FileNotFoundError, match=shards[1].name):
        MusicGen.load(str(folder))


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        MusicGen.load(str(folder))
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="no such folder"):
        MusicGen.load(f"path:{folder}")


def test_a_truncated_file_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a readable safetensors file"):
        MusicGen.load(str(folder))


@pytest.mark.parametrize(
    "name", ["decoder.lm_heads.1.weight", "enc_to_dec_proj.bias", "text_encoder.shared.weight"]
)
def test_a_missing_tensor_is_named(folder: Path, name: str) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tied = "text_encoder.encoder.embed_tokens.weight"
    save_file({k: v for k, v in tensors.items() if k not in (name, tied)}, path)
    with pytest.raises(ValueError, match=f"lacks the tensor '{name.split('.', 1)[-1]}|{name}"):
        MusicGen.load(str(folder))


@pytest.mark.parametrize(
    ("name", "tensor", "sentence"),
    [
        ("decoder.lm_heads.1.weight", torch.zeros(9, 32), r"shape \(9, 32\), expected \(32, 32\)"),
        (
            "decoder.model.decoder.layers.1.self_attn.q_proj.weight",
            torch.zeros(9, 30),
            r"has shape \(9, 30\), expected \(32, 32\)",
        ),
        ("text_encoder.shared.weight", torch.zeros(9, 24), r"shape \(9, 24\), expected \(50, 24\)"),
        ("decoder.lm_heads.0.weight", torch.zeros(32, 32).int(), r"is torch\.int32, expected"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named_with_its_file(
    folder: Path, name: str, tensor: Tensor, sentence: str
) -> None:
    """By the checkpoint's own name; whole or in shards."""
    for path in (folder / "model.safetensors", _shard_of(folder, name)):
        save_file(load_file(path) | {name: tensor}, path)
        with pytest.raises(ValueError, match=sentence) as caught:
            MusicGen.load(str(folder))
        assert str(caught.value).startswith(f"{path}: tensor {name!r} ")
        if path.name == "model.safetensors":
            _in_shards(folder)


def _shard_of(folder: Path, name: str) -> Path:
    """The file that will hold a tensor once the checkpoint is in shards."""
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(folder, Path(scratch) / "copy")
        _in_shards(Path(scratch) / "copy")
        index = json.loads((Path(scratch) / "copy" / INDEX).read_text())
    return folder / str(index["weight_map"][name])


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}']
)
def test_an_index_that_is_none_is_named(folder: Path, text: str) -> None:
    (folder / INDEX).write_text(text)
    with pytest.raises(ValueError, match=rf"{folder / INDEX} "):
        MusicGen.load(str(folder))


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe\x00", b'{"model_type": "gpt2"}'])
def test_a_configuration_that_is_none_is_named(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{folder / 'config.json'}"):
        MusicGen.load(str(folder))


def test_without_a_tokenizer_no_text_is_read(folder: Path) -> None:
    """transformers would make one that knows no word."""
    with pytest.raises(FileNotFoundError, match=f"{folder} has no tokenizer"):
        MusicGen.load(str(folder)).conditioner(["slow piano"])
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=f"{folder} holds no tokenizer that can be read"):
        MusicGen.load(str(folder)).conditioner(["slow piano"])


def test_a_pickle_is_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        FileNotFoundError, match=r"model\.safetensors: pytorch_model\.bin is a pickle"
    ):
        MusicGen.load(str(folder))


def test_a_download_that_is_asked_for_keeps_to_offline_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"hub:nobody/nothing is not in .*HF_HUB_OFFLINE is set"):
        locate("hub:nobody/nothing", downloads=True)


def test_a_model_of_the_hub_is_not_fetched_unasked() -> None:
    with pytest.raises(ValueError, match="hub:nobody/nothing is not in the local cache"):
        locate("hub:nobody/nothing")


def test_a_policy_of_text_has_no_file_of_its_own(pair: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="text encoder"):
        pair[1].policy.save(tmp_path / "policy.safetensors")


def _ours(policy: Any, guidance: float) -> Any:
    seeds = np.arange(len(PROMPTS), dtype=np.uint64)
    samples = Engine(policy, SamplingConfig(top_k=1, guidance=guidance)).generate(
        pad(PROMPTS, TEXT_SIZE), samples_per_prompt=1, seeds=seeds
    )
    return policy.layout.to_codes(samples.tokens)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_what_is_exported_plays_in_transformers(tmp_path: Path, shape: tuple[int, ...]) -> None:
    base = tmp_path / "base"
    _model(*shape).save_pretrained(base)
    loaded = MusicGen.load(str(base), num_steps=STEPS, text_size=TEXT_SIZE)
    before = _ours(loaded.policy, 3.0)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in loaded.policy.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    folder = export(loaded, tmp_path / "finetuned", base="hub:somebody/something")
    theirs = MusicgenForConditionalGeneration.from_pretrained(folder).eval()
    found = _ours(loaded.policy, 3.0)
    assert not np.array_equal(found, before)
    np.testing.assert_array_equal(found, _their_tokens(theirs, 3.0).numpy())
    assert {path.name for path in tmp_path.iterdir()} == {"base", "finetuned"}
    with pytest.raises(ValueError, match="finetuned is there already"):
        export(loaded, folder, base="hub:somebody/something")


def test_the_card_says_what_was_done(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# A model\n")
    figures = {"reward": {"mean": 0.5}}, {"reward": {"mean": 0.75}}
    summary = {
        "iterations": 7,
        "seed": 3,
        "last_step": {"kl/sequence": 1.5},
        "evaluation": {"before": figures[0], "after": figures[1]},
    }
    card = model_card(MusicGen.load(str(folder)), base="hub:a/b", summary=summary)
    front, text = card.split("---\n", 2)[1:]
    assert yaml.safe_load(front)["license"] == "cc-by-nc-4.0"
    assert "`hub:a/b`" in text
    assert "Updates: 7, seed 3, KL 1.50 nats a clip." in text
    assert "| reward | 0.500 | 0.750 |" in text


def _finetuned(folder: Path, file: Path) -> MusicGen:
    """The checkpoint with every weight that learns moved, and saved as `file`."""
    model = MusicGen.load(str(folder), num_steps=STEPS, text_size=TEXT_SIZE)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.policy.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    model.save_policy(file)
    return model


def _run_folder(folder: Path) -> Path:
    folder.mkdir()
    settings = load_config("tiny", ["--reward.weights", "{text: 1.0, quality: 0.5}"])
    (folder / "config.yaml").write_text(dump_yaml(settings))
    summary = {"iterations": 7, "seed": 3, "last_step": {"kl/sequence": 1.5}, "evaluation": None}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_the_verb_exports_what_was_learned(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path_factory.mktemp("export")
    file, out = place / "learned.safetensors", place / "finetuned"
    model = _finetuned(folder, file)
    run = _run_folder(place / "run")
    options = ["--policy", str(file), "--out", str(out), "--run", str(run)]
    assert main(["export", f"path:{folder}", *options]) == 0
    assert capsys.readouterr().out == f"{out}: licence unknown\n"
    theirs = MusicgenForConditionalGeneration.from_pretrained(out).eval()
    np.testing.assert_array_equal(_ours(model.policy, 3.0), _their_tokens(theirs, 3.0).numpy())
    card = (out / "README.md").read_text()
    assert "- Rewards and their weights: text (1), quality (0.5)\n" in card
    assert "- Data: training prompts of the shipped tiny world\n" in card
    assert "- Weight of the KL to the base: 0.001\n" in card
    assert "Updates: 7, seed 3, KL 1.50 nats a clip." in card
    assert {path.name for path in place.iterdir()} == {file.name, "finetuned", "run"}


def test_what_the_verb_cannot_export_leaves_no_folder(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path_factory.mktemp("export")
    file, run, other = place / "learned.safetensors", _run_folder(place / "run"), place / "other"
    _finetuned(folder, file)
    _model(4, 24).save_pretrained(other)
    (run / "summary.json").write_text("{}")
    options = ["--policy", str(file), "--out", str(place / "out")]
    lacking = f"{run / 'summary.json'} lacks 'iterations': it is no summary of a run"
    misshapen = f"{file}: tensor 'head' has shape (2, 32, 32), expected (4, 32, 32)"
    wanted = {
        (
            "export",
            str(folder),
        ): "export needs a base and --policy or --adapter, as in: musicrl export "
        "path:musicgen-small --policy learned.safetensors",
        ("export", str(folder), *options, "--run", str(run)): lacking,
        ("export", str(other), *options): misshapen,
        ("export", str(folder), "--policy", "no.safetensors"): "no MusicGen policy weights at "
        "no.safetensors",
    }
    for args, sentence in wanted.items():
        assert main(args) == 1
        assert capsys.readouterr().err.splitlines()[-1] == f"musicrl: {sentence}"
    assert not (place / "out").exists()


def _experience(policy: Any, sampling: SamplingConfig, step: int) -> Experience:
    """Eight samples of every prompt, drawn by the policy of version `step`, and a reward of even
    tokens."""
    conditions, seeds = pad(PROMPTS, TEXT_SIZE), np.arange(24, dtype=np.uint64)
    seeds += np.uint64(24 * step)
    samples = Engine(policy, sampling).generate(conditions, samples_per_prompt=8, seeds=seeds)
    reward = ((samples.tokens % 2 == 0) & (samples.tokens < VOCAB)).mean((1, 2))
    group = np.arange(24, dtype=np.int32) // 8
    rollouts = Rollouts(
        prompts=tuple(Prompt(id=str(g), text="") for g in group),
        conditions=conditions.numpy().astype(np.int16).repeat(8, axis=0),
        tokens=samples.tokens,
        logprobs=samples.logprobs,
        group=group,
        seeds=seeds,
        version=np.full(24, step, dtype=np.int64),
    )
    total = reward.astype(np.float32)
    rewards = RewardBatch(total=total, terms={}, valid=np.ones(24, np.bool_))
    return Experience(rollouts=rollouts, rewards=rewards)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_bfloat16_updates_nearly_as_float32_does(folder: Path, guidance: float) -> None:
    """With layers that run again in the backward pass; weights and gradients (as AdamW's first moments
    hold them after a step) stay float32, and what rounding moves between sampler and learner is among
    the figures."""
    sampling = SamplingConfig(temperature=1.0, guidance=guidance)
    algorithm = make_algorithm(AlgorithmConfig(baseline="group_mean", alpha=0.01))
    drawn = _experience(
        MusicGen.load(str(folder), num_steps=STEPS, text_size=TEXT_SIZE).policy, sampling, 0
    )
    found = []
    for precision, is_again in (("float32", False), ("bfloat16", False), ("bfloat16", True)):
        policy = MusicGen.load(str(folder), num_steps=STEPS, text_size=TEXT_SIZE).policy
        config = build(
            UpdateConfig,
            {"precision": precision, "gradient_checkpointing": is_again, "max_grad_norm": None},
            origin="test",
        )
        update = PolicyUpdate(policy, algorithm, sampling, config)
        figures = update.step([drawn])
        tensors = update.state_dict()[0].items()
        moments = {name: tensor for name, tensor in tensors if name.endswith("exp_avg")}
        found.append((figures, moments))
        assert len(moments) == len(list(policy.parameters()))
        assert {p.dtype for p in (*policy.parameters(), *moments.values())} == {torch.float32}
    (exact, whole), (half, rounded), (_, again) = found
    assert exact["mismatch/max"] < 1e-5 < half["mismatch/max"] < 0.1
    assert half["mismatch/mean"] < 0.02
    assert half["policy/loss"] == pytest.approx(exact["policy/loss"], abs=0.005)
    for name, gradient in rounded.items():
        off = (gradient - whole[name]).norm() / whole[name].norm()
        assert 0 < off < 0.05, name
        assert torch.equal(again[name], gradient), name


def test_reinforcement_raises_a_reward(folder: Path) -> None:
    """Of even tokens; by the update that every family of policies has, with the text encoder as it
    was."""
    policy = MusicGen.load(str(folder), num_steps=STEPS, text_size=TEXT_SIZE).policy
    algorithm = make_algorithm(AlgorithmConfig(baseline="group_mean", alpha=0.01))
    sampling = SamplingConfig(temperature=1.0)
    update = PolicyUpdate(policy, algorithm, sampling, UpdateConfig(learning_rate=0.01))
    assert policy.text is not None
    encoder = policy.text.frozen.network
    frozen = [weight.clone() for weight in encoder.parameters()]
    rewards = []
    for step in range(12):
        experience = _experience(policy, sampling, step)
        figures = update.step([experience])
        rewards.append(float(experience.rewards.total.mean()))
        assert figures["mismatch/max"] < 1e-5
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.1
    assert all(torch.equal(a, b) for a, b in zip(frozen, encoder.parameters(), strict=True))
