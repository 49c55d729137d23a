from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.cli import EXIT_FAULT, main
from musicrl.audio import read_wav_with_rate, write_wav
from musicrl.checkpoint import load_tensors, save_tensors
from musicrl.config import load_config

ROOT = Path(__file__).parent.parent.parent
NO_POLICY = "no policy at no/run: neither a file, nor a checkpoint, nor a run"
NO_PREFERENCE = "no no.safetensors in .: `musicrl fit-reward` makes it from comparisons"


def refusal(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line of standard error of a command line that is refused."""
    assert main(args) == EXIT_FAULT
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    return err.rstrip("\n")


def short_run(world: Path) -> list[str]:
    """Options of a run that takes a second."""
    flags = (
        f"--model.weights {world} --iterations 2 --rollout.prompts-per-step 4 "
        "--rollout.prompts-per-chunk 2 --rollout.samples-per-prompt 2 --evaluation.prompts 6 "
        "--evaluation.audio-prompts 2 --cluster.learner-threads 1 --cluster.object-store-mb 100 "
        "--cluster.max-lag 0 --rollout.clip-seconds 0.4"
    )
    return flags.split()


def changes(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if "change" in line]


def run_process(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_typo_in_yaml_ends_a_process_with_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("rollout:\n  sampling:\n    temprature: 0.9\n")
    command = [sys.executable, "-m", "cluster.cli", "train", str(path)]
    done = run_process(command)
    assert done.returncode == EXIT_FAULT
    assert done.stdout == ""
    assert done.stderr == (
        f"musicrl: {path}: unknown key 'rollout.sampling.temprature' "
        "(nearest: rollout.sampling.temperature)\n"
    )


@pytest.mark.parametrize("verb", ["train", "solo", "config"])
def test_a_typo_on_the_command_line(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = refusal(capsys, verb, "--iteration", "3")
    assert sentence == "musicrl: unknown option --iteration (nearest: --iterations)"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["trian"], "unknown verb 'trian' (nearest: train)"),
        (["train", "tinny"], "no preset 'tinny' (nearest: tiny); a file ends in .yaml"),
        (["train", "missing.yaml"], "no settings file at missing.yaml"),
        (["train", "a", "b"], "musicrl train takes one preset or file, got a b"),
        (["bench", "lags"], "unknown measurement 'lags' (nearest: lag)"),
        (["pretrain", "codecs"], "unknown stage 'codecs' (nearest: codec)"),
        (["pretrain", "codec", "--step", "3"], "unknown option --step (nearest: --steps)"),
        (["pretrain", "--codec.step", "3"], "unknown option --codec.step (nearest: --codec.steps)"),
        (["evaluate", "--prompts", "1"], "command line: prompts must be 2 or more, got 1"),
        (["evaluate", "no/run"], NO_POLICY),
        (
            ["reproduce", "--models", "[RU]"],
            "command line: model RU starts from R, which must stand before it",
        ),
        (["reproduce", "--preference-file", "no.safetensors"], NO_PREFERENCE),
        (["reproduce", "a.yaml", "b.yaml"], "musicrl reproduce takes one file, got a.yaml b.yaml"),
        (["prefs", "winrate"], "prefs winrate needs files, as in: musicrl prefs winrate a.parquet"),
        (["spread", "no/run"], "no summary at no/run"),
        (["sample"], 'sample needs a text, as in: musicrl sample "a slow fiddle tune"'),
        (["sample", "a tune", "--counts", "3"], "unknown option --counts (nearest: --count)"),
        (["sample", "a tune", "--count", "0"], "command line: count must be 1 or more, got 0"),
    ],
)
def test_one_sentence(args: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, *args) == f"musicrl: {sentence}"


@pytest.mark.parametrize("verb", ["train", "solo"])
def test_a_missing_policy(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "policy.safetensors"
    sentence = refusal(capsys, verb, "--model.policy", str(path), "--out", str(tmp_path / "run"))
    assert str(path) in sentence
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["train", "solo"])
def test_nothing_to_resume(
    verb: str, tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [*short_run(tiny_world), "--resume", "--out", str(tmp_path)]
    assert main([verb, *args]) == EXIT_FAULT
    err = capsys.readouterr().err
    assert err == f"musicrl: no checkpoint in {tmp_path / 'checkpoints'} to resume from\n"


def test_a_policy_of_another_shape(
    tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, config = load_tensors(tiny_world / "policy.safetensors", kind="policy")
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    tensors[name] = torch.zeros(3, 3)
    path = tmp_path / "policy.safetensors"
    save_tensors(path, tensors, kind="policy", config=config)
    args = ["--weights", str(tiny_world), "--policy", str(path)]
    sentence = refusal(capsys, "sample", "a tune", *args)
    assert sentence.startswith(f"musicrl: {path}: tensor {name!r} has shape (3, 3), expected")


def test_a_truncated_policy(
    tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "policy.safetensors"
    path.write_bytes((tiny_world / "policy.safetensors").read_bytes()[:5000])
    args = ["--weights", str(tiny_world), "--policy", str(path)]
    sentence = refusal(capsys, "sample", "a tune", *args)
    assert sentence.startswith(f"musicrl: {path} is not a readable safetensors file")


def test_an_unreadable_wav(
    tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF, or not")
    sentence = refusal(capsys, "score", "a tune", str(path), "--weights", str(tiny_world))
    assert sentence.startswith(f"musicrl: {path} is not a readable audio file")


def test_score_gives_a_silent_file_no_number(
    tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tone = np.sin(np.arange(32000, dtype=np.float32) * 0.1) * 0.5
    files = {"tone.wav": tone, "silence.wav": np.zeros(32000, np.float32)}
    for name, audio in files.items():
        write_wav(tmp_path / name, audio, 16000)
    words = ["a slow tune", *(str(tmp_path / name) for name in files)]
    assert main(["score", *words, "--weights", str(tiny_world)]) == 0
    heard, silent = capsys.readouterr().out.splitlines()[1:]
    assert -1 <= float(heard.split("\t")[1]) <= 1
    assert silent.split("\t")[:2] == [str(tmp_path / "silence.wav"), "-"]


def test_sample_is_decided_by_the_seed(
    tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out, seed in (("a", 3), ("b", 3), ("c", 4)):
        args = ["--out", str(tmp_path / out), "--seed", str(seed), "--weights", str(tiny_world)]
        assert main(["sample", "a slow tune", *args]) == 0
    printed = capsys.readouterr().out.split()
    clips = [read_wav_with_rate(Path(path)) for path in printed]
    assert [rate for _, rate in clips] == [16000] * 3
    first, again, other = (audio for audio, _ in clips)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_run_is_repeated_by_its_own_config_and_measured_again(
    tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    assert main(["solo", *short_run(tiny_world), "--out", str(first)]) == 0
    printed = capsys.readouterr().out
    assert f"before/after {first / 'audio'}" in printed
    assert len(list((first / "audio" / "after").glob("*.wav"))) == 2
    assert main(["solo", str(first / "config.yaml"), "--out", str(again)]) == 0
    assert changes(capsys.readouterr().out) == changes(printed)
    args = ["--weights", str(tiny_world), "--prompts", "6", "--json", str(tmp_path / "e.json")]
    assert main(["evaluate", str(first), *args]) == 0
    measured = json.loads((tmp_path / "e.json").read_text())["rows"][str(first)]["figures"]
    summary = json.loads((first / "summary.json").read_text())["evaluation"]
    assert measured["reward"] == pytest.approx(summary["after"]["reward"], abs=1e-6)
    assert main(["spread", str(first), str(again), "--json", str(tmp_path / "s.json")]) == 0
    spread = json.loads((tmp_path / "s.json").read_text())
    assert spread["change"]["reward"]["standard_deviation"] == pytest.approx(0, abs=1e-12)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_train_prints_the_figures_of_solo(
    tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("train", "solo"):
        assert main([verb, *short_run(tiny_world), "--out", str(tmp_path / verb)]) == 0
    out = capsys.readouterr().out
    train, solo = out[: out.rindex("samples per step")], out[out.rindex("samples per step") :]
    assert changes(train)
    assert changes(train) == changes(solo)


def test_config_prints_what_loads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--iterations",
        "7",
        "--reward.weights.text",
        "0.5",
        "--model.policy",
        "a b.safetensors",
    ]
    assert main(["config", *flags]) == 0
    path = tmp_path / "config.yaml"
    path.write_text(capsys.readouterr().out)
    assert load_config(path) == load_config("tiny", flags)
    assert load_config(path).iterations == 7


def test_help_lists_every_verb_without_loading_torch() -> None:
    program = (
        "import sys; from cluster.cli import main; main(['--help']);"
        "sys.exit(bool({'torch', 'ray'} & sys.modules.keys()))"
    )
    done = run_process([sys.executable, "-c", program])
    assert done.returncode == 0, "torch or ray was loaded"
    for verb in ("train", "solo", "sample", "evaluate", "pretrain", "config"):
        assert f"\n  {verb} " in done.stdout


def test_help_of_a_verb_tells_what_a_field_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "--help"])
    assert caught.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "--rollout.sampling.temperature" in out
    assert "Training steps (policy updates)." in out


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSICRL_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unknown verb"):
        main(["trian"])
