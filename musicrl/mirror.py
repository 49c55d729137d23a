"""Checkpoints at a second place: any URL that fsspec can write to.

A cluster's nodes come and go with their disks. What is copied here outlives them: a run is resumed
on another machine from the newest checkpoint of its URL. As on a disk, a checkpoint counts once its
state.json is there, which is copied last and removed first.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import fsspec

from musicrl.checkpoint_folder import STATE, checkpoint_fault, move_checkpoint

STEP = re.compile(r"step_\d+")


class Mirror:
    """The folder at `url`, which need not exist yet."""

    def __init__(self, url: str) -> None:
        """Raises ValueError when no kind of place is known for `url`."""
        check_url(url)
        self.url = url.rstrip("/")
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as fault:
            raise ValueError(f"checkpoint_url {url!r} cannot be opened: {fault}") from fault

    def names(self) -> list[str]:
        """Checkpoints that are whole, oldest first."""
        if not self._files.exists(self._root):
            return []
        found = (Path(path).name for path in self._files.ls(self._root, detail=False, refresh=True))
        return sorted(n for n in found if STEP.fullmatch(n) and self.has(f"{n}/{STATE}"))

    def has(self, name: str) -> bool:
        return bool(self._files.exists(f"{self._root}/{name}"))

    def push(self, checkpoint: Path) -> None:
        """Copy a checkpoint that is not there yet."""
        there = f"{self._root}/{checkpoint.name}"
        if self.has(f"{checkpoint.name}/{STATE}"):
            return
        self._files.makedirs(there, exist_ok=True)
        for file in sorted(checkpoint.iterdir(), key=lambda file: file.name == STATE):
            self._files.put_file(str(file), f"{there}/{file.name}")

    def pull(self, name: str, folder: Path) -> None:
        """Copy the checkpoint `name` into `folder`, whole or not at all. Where another process of this
        machine was faster, its copy stays.

        Raises ValueError when what arrives is not what was pushed.
        """
        partial = folder / f".{name}.{os.getpid()}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for path in self._files.ls(f"{self._root}/{name}", detail=False, refresh=True):
            self._files.get_file(path, str(partial / Path(path).name))
        if fault := checkpoint_fault(partial, is_thorough=True):
            shutil.rmtree(partial)
            raise ValueError(f"the checkpoint {self.url}/{name} {fault}")
        if checkpoint_fault(folder / name) is None:
            shutil.rmtree(partial)
        else:
            move_checkpoint(partial, folder / name)

    def push_file(self, file: Path) -> None:
        self._files.makedirs(self._root, exist_ok=True)
        self._files.put_file(str(file), f"{self._root}/{file.name}")

    def pull_file(self, file: Path) -> None:
        """Copy a file of that name here, if there is one."""
        if self.has(file.name):
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
            self._files.get_file(f"{self._root}/{file.name}", str(partial))
            partial.replace(file)

    def keep(self, names: Sequence[str]) -> None:
        """Remove all other checkpoints."""
        for name in set(self.names()) - set(names):
            self._files.rm_file(f"{self._root}/{name}/{STATE}")
            self._files.rm(f"{self._root}/{name}", recursive=True)


def check_url(url: str) -> None:
    """Raise ValueError when a URL holds a password: settings are printed and stored."""
    if urlsplit(url).password is not None:
        raise ValueError(
            "checkpoint_url must not hold a password: give it in the environment, as the package "
            "for that kind of URL says"
        )
