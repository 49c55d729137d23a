"""Submission: a verb of this project, run on a Ray cluster as a job of its dashboard.

The working directory travels without what git ignores, the job's log is followed, and its exit code
is the end of it. Where the cluster asks for a token, Ray's token authentication is switched on
before Ray is imported; a cluster that asks for none gets none. It knows nothing of what the verb
does.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.request import urlopen

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

DASHBOARD = "http://127.0.0.1:8265"
PROBE_SECONDS = 10.0
POLL_SECONDS = 1.0
REFUSED = (401, 403)
TOKEN_FILE = Path(".ray") / "auth_token"
"""In the home folder: where Ray looks last."""
HOW_TO_GET_A_TOKEN = (
    "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with it, or put it in ~/.ray/auth_token"
)


@dataclass(frozen=True, kw_only=True)
class SubmitConfig:
    """Where a job goes, and what is seen of it."""

    address: str | None = None
    """URL of the cluster's dashboard (none: RAY_API_SERVER_ADDRESS, else RAY_ADDRESS where that is
    a URL, else http://127.0.0.1:8265)."""
    working_dir: Path = Path(".")
    """Folder that travels with the job, without what .gitignore names: a checkout, or any folder
    with settings where musicrl is installed on the nodes."""
    submission_id: str | None = None
    """Name of the job (none: Ray makes one up)."""
    follow: bool = True
    """Show the job's log until it ends; the exit code is then the job's."""

    def __post_init__(self) -> None:
        if not self.working_dir.is_dir():
            raise ValueError(f"working_dir {self.working_dir} is no folder")
        if self.address is not None and not is_url(self.address):
            raise ValueError(
                f"address {self.address} is not that of a dashboard, as {DASHBOARD}; "
                "HOST:6379 is what a run joins"
            )


def is_url(address: str) -> bool:
    return address.startswith(("http://", "https://"))


def submit(config: SubmitConfig, args: Sequence[str]) -> int:
    """Run `python -m cluster.cli ARGS` as a job; its exit code, 0 where it is not followed.

    Raises ConnectionError or ValueError when the cluster cannot be reached or refuses the job.
    """
    address = dashboard_of(config)
    prepare_token(address)
    client = connect(address)
    try:
        job = client.submit_job(
            entrypoint=shlex.join(["python", "-m", "cluster.cli", *args]),
            runtime_env={"working_dir": str(config.working_dir)},
            submission_id=config.submission_id,
        )
    except RuntimeError as fault:
        raise ValueError(f"{address} takes no such job: {fault}") from fault
    print(f"job {job} on {address}", flush=True)
    return follow(client, job, address) if config.follow else 0


def dashboard_of(config: SubmitConfig) -> str:
    """The URL of the dashboard, from the settings, else from what Ray reads."""
    ray_address = os.environ.get("RAY_ADDRESS", "")
    found = os.environ.get("RAY_API_SERVER_ADDRESS") or (ray_address if is_url(ray_address) else "")
    return (config.address or found or DASHBOARD).rstrip("/")


def prepare_token(address: str) -> None:
    """Switch Ray's token authentication on if the cluster asks for it, and warn if it does not.

    Raises ConnectionError when nobody answers, ValueError when there is no token to give.
    """
    if not asks_for_token(address):
        print(
            f"warning: {address} runs whatever anybody who reaches it sends: start the cluster "
            "with RAY_AUTH_MODE=token",
            file=sys.stderr,
        )
    elif has_token():
        os.environ["RAY_AUTH_MODE"] = "token"
    else:
        raise ValueError(f"the Ray cluster at {address} asks for a token: {HOW_TO_GET_A_TOKEN}")


def asks_for_token(address: str) -> bool:
    """Whether a dashboard refuses who brings none. Raises ConnectionError when it is not there."""
    try:
        with urlopen(f"{address}/api/version", timeout=PROBE_SECONDS):
            return False
    except HTTPError as answer:
        if answer.code in REFUSED:
            return True
        raise ConnectionError(f"no Ray dashboard at {address}: {answer}") from answer
    except OSError as fault:
        raise ConnectionError(f"no Ray dashboard answers at {address}: {fault}") from fault


def has_token() -> bool:
    """Whether Ray will find a token: in one of its variables, or in the home folder."""
    is_set = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(is_set) or (Path.home() / TOKEN_FILE).is_file()


def connect(address: str) -> JobSubmissionClient:
    """Raises ConnectionError, and ValueError for a token that is not the cluster's."""
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # comes before the argument, whatever it says
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except AuthenticationError as fault:
        raise ValueError(
            f"the Ray cluster at {address} refuses the token: {HOW_TO_GET_A_TOKEN}"
        ) from fault
    except RuntimeError as fault:
        raise ConnectionError(f"no Ray jobs at {address}: {fault}") from fault


def follow(client: JobSubmissionClient, job: str, address: str) -> int:
    """Print a job's log until it ends; its exit code. A job outlives those who follow it."""
    try:
        try:
            asyncio.run(print_log(client, job))
        except (RuntimeError, OSError) as fault:
            print(f"the log of {job} breaks off ({fault}); the job goes on", file=sys.stderr)
        return exit_code(client, job)
    except KeyboardInterrupt:
        ways = f"`ray job logs --follow {job}` or `ray job stop {job}`, --address {address}"
        print(f"job {job} goes on: {ways}", file=sys.stderr)
        raise


async def print_log(client: JobSubmissionClient, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)


def exit_code(client: JobSubmissionClient, job: str) -> int:
    """Wait for the end of a job. Raises ConnectionError when the cluster no longer answers."""
    try:
        while not (info := client.get_job_info(job)).status.is_terminal():
            time.sleep(POLL_SECONDS)
    except (RuntimeError, OSError) as fault:
        raise ConnectionError(f"what became of job {job} is not known: {fault}") from fault
    print(f"job {job}: {info.status.value.lower()}", flush=True)
    if info.status.value == "SUCCEEDED":
        return 0
    first = (info.message or "no reason is given").splitlines()[0]  # the log's end comes after it
    print(f"musicrl: job {job}: {first}", file=sys.stderr)
    code = info.driver_exit_code
    return code if code is not None and 0 < code < 256 else 1
