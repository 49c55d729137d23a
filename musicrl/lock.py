"""The lock of a folder: one process at a time makes something in it.

    <folder>/.lock    there while somebody works in the folder; names the process and its machine

The kernel holds the lock (flock) and lets go of it when the process ends, however it ends, so that
what a killed one leaves blocks nobody. Knows nothing of what the folder is for.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system says that has none."""
logger = logging.getLogger(__name__)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep a folder, made where it is missing, for the block inside.

    Raises ValueError naming the process that has it already, be it this one. Where the file system
    has no locks, that is logged and the folder is not kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    handle = _acquire(path)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)  # first: nobody may lock a file that is about to go
        os.close(handle)


def check_free(folder: Path) -> None:
    """Raise ValueError, as `held`, when somebody has the folder; nothing is made."""
    try:
        handle = os.open(folder / LOCK, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        _lock(handle, folder / LOCK)
    finally:
        os.close(handle)


def _acquire(path: Path) -> int:
    """The open, locked file at `path`: again where its holder removed it meanwhile."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(handle, path)
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as fault:
        holder = os.pread(handle, 200, 0).decode(errors="replace") or "another process"
        raise ValueError(
            f"{path.parent} is in use by {holder}: wait for it to end, or choose another folder"
        ) from fault
    except OSError as fault:
        if fault.errno not in NO_LOCKS:
            raise
        logger.warning("%s is not kept from other processes: %s", path.parent, fault.strerror)
