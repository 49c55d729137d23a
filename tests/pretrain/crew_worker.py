"""Several processes that run pretraining stages one after the other, as torchrun would start them.

    python -m tests.pretrain.crew_worker JOBS.pickle    (WORLD_SIZE in the environment)

They are forked from one that has imported torch and used nothing of it. A job is (stage, configuration, port, number of the optimizer step to be stopped at or None).
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # an optimizer imports it, for seconds

from musicrl.pretrain import STAGES
from musicrl.pretrain.distributed import Crew

Job = tuple[str, Any, int, int | None]


def main(path: Path) -> None:
    torch.set_num_threads(1)
    jobs: list[Job] = pickle.loads(path.read_bytes())
    for stage, config, port, last in jobs:
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", str(port)
        whole = Crew.backward
        Crew.backward = _stopping(whole, last)  # type: ignore[method-assign]
        try:
            facts = STAGES[stage][1](config)
            assert bool(facts) == (os.environ["RANK"] == "0"), "the first process alone has figures"
        except KeyboardInterrupt:
            assert last is not None
        finally:
            Crew.backward = whole  # type: ignore[method-assign]


def _stopping(whole: Callable[..., float], last: int | None) -> Callable[..., float]:
    calls = 0

    def backward(*args: Any, **kwargs: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == last:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    return backward


def fork(rank: int, path: Path) -> int:
    """The process of a rank; its exit status says whether all jobs ended well."""
    process = os.fork()
    if process == 0:
        os.environ["RANK"] = str(rank)
        main(path)
        sys.exit()
    return process


if __name__ == "__main__":
    crew = [fork(rank, Path(sys.argv[1])) for rank in range(int(os.environ["WORLD_SIZE"]))]
    ended = [os.waitpid(process, 0)[1] for process in crew]
    sys.exit(max(map(bool, ended)))
