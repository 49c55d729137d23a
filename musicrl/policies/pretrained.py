"""What transformers reads from a folder of the Hub's form, with nothing made up: whatever its files
lack or have in another shape is refused, where transformers would draw it at random.

Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from musicrl.policies.folder import file_of, files_of

VOCABULARIES = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json", "vocab.txt")
"""Files of which a tokeniser needs one; without any transformers makes one that knows no word."""


def load_model(network: Any, folder: Path) -> Any:
    """The model of transformers' class `network` that a folder holds, in float32.

    Raises FileNotFoundError, or ValueError naming the file, and the tensor that is missing or does
    not fit the folder's settings.
    """
    files_of(folder)
    try:
        with _quiet():
            model, told = network.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as fault:
        raise ValueError(f"{folder / 'config.json'}: {fault}") from fault
    for name in sorted(told["missing_keys"]):
        raise ValueError(f"{file_of(folder, name)} lacks the tensor {name!r}")
    for name, found, wanted in sorted(told["mismatched_keys"]):
        shapes = f"{tuple(found)}, expected {tuple(wanted)}"
        raise ValueError(f"{file_of(folder, name)}: tensor {name!r} has shape {shapes}")
    return model.float()


def load_tokenizer(folder: Path) -> Any:
    """The tokeniser of a folder. Raises FileNotFoundError or ValueError naming the folder."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise FileNotFoundError(f"{folder} has no tokenizer: none of {', '.join(VOCABULARIES)}")
    try:
        with _quiet():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as fault:
        raise ValueError(f"{folder} holds no tokenizer that can be read: {fault}") from fault


@contextmanager
def _quiet() -> Iterator[None]:
    """While transformers reads a folder: without its progress bars, which the logs of actors would
    be full of, and its warnings; what it would only warn of is checked here."""
    from transformers.utils import logging

    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()
