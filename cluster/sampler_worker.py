"""A process of the sampler's benchmark, under the interpreter and the allocator of its engine.

It and its children stand still while others have their turn: idle processes of some engines spin.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from ctypes.util import find_library
from pathlib import Path
from tempfile import TemporaryFile
from typing import Self

from cluster.sampler_subject import Subject

SUBJECT_MODULE = "cluster.sampler_subject"
VLLM_SCRIPT = Path(__file__).with_name("sampler_vllm.py")
VLLM_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "4",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
"""GB of its cache, and nothing sent or fetched."""
SECONDS_TO_END = 30
TCMALLOC = ("tcmalloc_minimal", "tcmalloc")


class Worker:
    """A process that generates when asked to, and from then on does nothing else."""

    def __init__(self, subject: Subject, vllm_python: Path | None = None) -> None:
        self.subject, environment, openmp = subject, dict(os.environ), list[str]()
        command = [sys.executable, "-m", SUBJECT_MODULE, subject.to_json()]
        if subject.engine.startswith("vllm"):
            command = [str(vllm_python), str(VLLM_SCRIPT), subject.to_vllm()]
            environment |= VLLM_ENVIRONMENT
            home = Path(str(vllm_python)).parent.parent
            openmp += map(str, home.glob("lib/libiomp5.so"))  # of the package intel-openmp
            environment.pop("PYTHONPATH", None)  # of this environment
        if subject.engine.endswith("-tcmalloc"):
            environment["LD_PRELOAD"] = ":".join([str(tcmalloc()), *openmp])
        self._said = TemporaryFile("w+")  # noqa: SIM115 (a pipe that nobody reads would fill up)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=environment,
            process_group=0,  # with its children; the kernel ends it if this process dies
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._signal(signal.SIGCONT)
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(SECONDS_TO_END)  # vLLM has children to end
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._said.close()

    def generate(self) -> float:
        """Seconds of one generation. Raises RuntimeError when the process has failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            seconds = float(self._process.stdout.readline())
        except (ValueError, BrokenPipeError) as fault:
            self._process.communicate()
            self._said.seek(0)
            said = self._said.read().strip().splitlines()
            last = said[-1] if said else "it said nothing"
            raise RuntimeError(f"engine {self.subject.engine} failed: {last}") from fault
        self._signal(signal.SIGSTOP)
        return seconds

    def _signal(self, number: signal.Signals) -> None:
        """To the process and its children, unless all have ended."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def tcmalloc() -> str | None:
    """The file name of the library, if it is installed."""
    return next(filter(None, map(find_library, TCMALLOC)), None)
