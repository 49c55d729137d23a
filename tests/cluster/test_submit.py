"""`musicrl submit`: what is refused before anything is sent, and jobs on a cluster with a token."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from cluster.cli import EXIT_FAULT, main
from cluster.commands.submit import split_at_dashes
from cluster.submit import SubmitConfig, dashboard_of, prepare_token
from tests.small_musicgen import write_world

ROOT = Path(__file__).parent.parent.parent
DEADLINE_SECONDS = 180
TOKEN = "a-token-of-this-test-and-of-nothing-else"
VARIABLES = (
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH",
)


@pytest.fixture
def nothing_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """No address and no token, in the environment or in the home folder."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


@pytest.fixture
def dashboard() -> Iterator[tuple[str, list[int]]]:
    """The address of a server that answers every request with the status in the list."""
    status = [200]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status[0])
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", status
    server.shutdown()
    server.server_close()


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([], "submit takes a verb after --, as in"),
        (["train"], "submit takes a verb after --, as in"),
        (["--", "trian"], "submit: unknown verb 'trian' (nearest: train)"),
        (["--", "submit"], "submit: unknown verb 'submit'"),
        (["--adress", "x", "--", "train"], "unknown option --adress (nearest: --address)"),
        (
            ["--address", "1.2.3.4:6379", "--", "train"],
            "address 1.2.3.4:6379 is not that of a dash",
        ),
        (["--working-dir", "no/such", "--", "train"], "working_dir no/such is no folder"),
        (
            ["--address", "http://127.0.0.1:1", "--", "train"],
            "no Ray dashboard answers at http://127.0.0.1:1",
        ),
    ],
)
def test_what_is_refused_before_anything_is_sent(
    args: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *args]) == EXIT_FAULT
    out, err = capsys.readouterr()
    assert not out
    assert sentence in err
    assert err.count("\n") == 1


def test_options_of_the_verb_are_its_own() -> None:
    args = ["--address", "http://a", "--", "train", "tiny", "--seed", "1", "--", "x"]
    assert split_at_dashes(args) == (args[:2], args[3:])


def test_the_dashboard_is_the_one_that_ray_would_take(nothing_known: pytest.MonkeyPatch) -> None:
    assert dashboard_of(SubmitConfig()) == "http://127.0.0.1:8265"
    nothing_known.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert dashboard_of(SubmitConfig()) == "http://127.0.0.1:8265"
    nothing_known.setenv("RAY_ADDRESS", "http://10.0.0.1:8265/")
    assert dashboard_of(SubmitConfig()) == "http://10.0.0.1:8265"
    nothing_known.setenv("RAY_API_SERVER_ADDRESS", "http://10.0.0.2:8265")
    assert dashboard_of(SubmitConfig()) == "http://10.0.0.2:8265"
    assert dashboard_of(SubmitConfig(address="https://x")) == "https://x"


def test_an_open_cluster_is_warned_of_and_gets_no_token(
    nothing_known: pytest.MonkeyPatch,
    dashboard: tuple[str, list[int]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    nothing_known.setenv("RAY_AUTH_TOKEN", TOKEN)
    prepare_token(dashboard[0])
    assert "runs whatever anybody who reaches it sends" in capsys.readouterr().err
    assert "RAY_AUTH_MODE" not in os.environ


def test_a_token_is_used_where_one_is_asked_for(
    nothing_known: pytest.MonkeyPatch, dashboard: tuple[str, list[int]], tmp_path: Path
) -> None:
    address, status = dashboard
    status[0] = 401
    with pytest.raises(ValueError, match=r"asks for a token: set RAY_AUTH_TOKEN, or"):
        prepare_token(address)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(TOKEN)
    nothing_known.setenv("RAY_AUTH_MODE", "")
    prepare_token(address)
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_a_server_in_trouble_is_not_taken_for_an_open_cluster(
    dashboard: tuple[str, list[int]],
) -> None:
    address, status = dashboard
    status[0] = 503
    with pytest.raises(ConnectionError, match=r"no Ray dashboard at .*503"):
        prepare_token(address)


@pytest.fixture(scope="module")
def cluster_with_token(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, dict[str, str]]]:
    """A one-node cluster of its own processes, as `ray start --head` makes it: the address of its
    dashboard and an environment that holds its token. Ended by the group that it was started in."""
    folder = tmp_path_factory.mktemp("r")
    (folder / "token").write_text(TOKEN)
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment |= {"RAY_AUTH_TOKEN_PATH": str(folder / "token"), "HOME": str(folder)}
    port, dashboard, metrics, *agents = free_ports(6)
    options = [
        f"--port={port}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}",
        "--num-cpus=4",
        f"--temp-dir={folder / 't'}",
        "--disable-usage-stats",
        f"--object-store-memory={10**8}",
        f"--metrics-export-port={metrics}",
        f"--dashboard-agent-listen-port={agents[0]}",
        f"--dashboard-agent-grpc-port={agents[1]}",
        f"--runtime-env-agent-port={agents[2]}",
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", *options],
            env={**environment, "RAY_AUTH_MODE": "token"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while "Ray runtime started" not in (folder / "log").read_text():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{dashboard}", environment
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_gets_its_arguments_and_gives_its_log_and_its_exit_code(
    cluster_with_token: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    """The verb `spread` fails with one sentence, about the very words that it was given."""
    address, environment = cluster_with_token
    command = [sys.executable, "-m", "cluster.cli", "submit", "--address", address, "--"]
    done = subprocess.run(
        [*command, "spread", "no/run at all", "--json", "x"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_SECONDS,
    )
    assert "musicrl: no summary at no/run at all" in done.stdout, done.stdout + done.stderr
    assert "failed" in done.stdout
    assert "warning" not in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert done.returncode == EXIT_FAULT


@pytest.mark.ray
@pytest.mark.slow
def test_the_readmes_job_trains_a_musicgen(
    cluster_with_token: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    """The line as it stands there, on a checkpoint of random weights and with a size that this
    machine can do."""
    address, environment = cluster_with_token
    (line,) = re.findall(
        r"^ray job submit .*musicgen.*$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    command = shlex.split(line)
    command[command.index("--address") + 1] = address
    write_world(tmp_path / "world")
    sizes = {
        "model.weights": tmp_path / "world",
        "out": tmp_path / "run",
        "iterations": 1,
        "rollout.prompts-per-step": 2,
        "rollout.samples-per-prompt": 2,
        "rollout.prompts-per-chunk": 2,
        "evaluation.prompts": 2,
        "evaluation.audio-prompts": 1,
        "cluster.num-scorers": 1,
        "cluster.sampler-gpus": 0,
        "cluster.learner-gpus": 0,
        "cluster.object-store-mb": 80,
    }
    programs = Path(sys.executable).parent
    done = subprocess.run(
        [programs / command[0], *command[1:], *(f"--{k}={v}" for k, v in sizes.items())],
        cwd=ROOT,
        env=environment | {"RAY_AUTH_MODE": "token", "PATH": f"{programs}:{environment['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["iterations"] == 1
    assert (tmp_path / "run" / "checkpoints" / "step_000001" / "policy.safetensors").is_file()
    assert TOKEN not in done.stdout + done.stderr
