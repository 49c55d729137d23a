"""A connection to Ray: a local cluster of this process's own, or one that is already running.

Local Ray listens on the loopback only and is ended with the process; nothing here ever stops a
cluster that it did not start.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from cluster.placement import requests_of
from cluster.session import address_of
from musicrl.config import ClusterConfig

MEGABYTE = 10**6
START_ATTEMPTS = 2
"""Ray gives its agent 15 s to come up, which a busy machine can miss once."""


@contextmanager
def connected(cluster: ClusterConfig) -> Iterator[None]:
    """Joined to Ray while open; a connection that exists already is used and left as it was.

    Raises ConnectionError, in one sentence, when Ray cannot be reached or started.
    """
    if ray.is_initialized():
        yield
        return
    address = address_of(cluster)
    if address is None:
        start_local(cluster)
    else:
        join(address)
    try:
        yield
    finally:
        ray.shutdown()


def join(address: str) -> None:
    try:
        ray.init(address=address, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConnectionError(f"cannot join the Ray cluster at {address}: {error}") from error


def start_local(cluster: ClusterConfig) -> None:
    """A Ray on this machine, with as many CPU slots as the run's actors ask for: slots are a
    count, and a small machine shares its cores rather than waiting for ever.

    Ray asks for a token by default and warns that it does; errors only are shown.
    """
    needed = sum(request.cpus for request in requests_of(cluster))
    slots = max(os.cpu_count() or 1, int(needed))
    for attempt in range(START_ATTEMPTS):
        try:
            ray.init(
                address="local",
                num_cpus=slots,
                include_dashboard=False,
                object_store_memory=cluster.object_store_mb * MEGABYTE,
                logging_level=logging.ERROR,
            )
        except RuntimeError as error:
            ray.shutdown()
            if attempt + 1 == START_ATTEMPTS:
                raise ConnectionError(
                    f"Ray did not start on this machine in {START_ATTEMPTS} attempts: {error} "
                    "(its logs are under /tmp/ray/session_latest/logs; `musicrl solo` needs no Ray)"
                ) from error
        else:
            return
