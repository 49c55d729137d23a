"""Real servers: in a process of its own, started as a user starts it, or in a thread of the test."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from musicrl.preference.collect import CollectConfig, listen, make_server

ROOT = Path(__file__).parent.parent.parent


class ServerProcess:
    """`musicrl collect` on a free port of this machine, killed at the end if it still runs."""

    def __init__(self, out: Path, *flags: str) -> None:
        self.out = out
        command = [sys.executable, "-m", "cluster.cli", "collect", "--out", str(out)]
        self.process = subprocess.Popen(
            [*command, "--port", "0", "--requests-per-minute", "1000000", *flags],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.match(r"listening at (http://127\.0\.0\.1:\d+)/", line)
        assert found, line + (self.process.stderr.read() if self.process.stderr else "")
        self.url = found.group(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def browser(self) -> httpx.Client:
        """A new listener."""
        client = httpx.Client(base_url=self.url, timeout=30)
        client.get("/")
        return client

    def interrupt(self) -> tuple[int, str, str]:
        """Ctrl-C: the exit code and what it printed."""
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err

    def kill(self) -> None:
        """As `kill -9`."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate(timeout=30)


class ServerThread:
    """What `musicrl collect` serves, on a free port of this machine, for as long as it is open."""

    def __init__(self, config: CollectConfig) -> None:
        self.out = config.out
        self._listener = listen("127.0.0.1", 0)
        self._server = make_server(config)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        self._listener.close()
