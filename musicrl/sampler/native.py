"""The C kernels: built once by the system's compiler, kept in the user's cache, called by ctypes.

The library's name is a digest of its source, of the compiler and of the machine that it compiles
for, so that a shared home folder serves machines of several kinds.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = tuple(
    HERE / name
    for name in (
        "kernels.c",
        "mixing.c",
        "packing.c",
        "products.c",
        "tiles.c",
        "layers.c",
        "draws.c",
        "causal.c",
    )
)
HEADERS = tuple(
    HERE / name for name in ("attention.h", "norms.h", "numbers.h", "tiles.h", "vectors.h")
)
FLAGS = (
    (
        "-O3",
        "-march=native",
        "-ffp-contract=off",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-fopenmp",
    ),
    ("-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd"),
)
"""Tried in turn: the second for compilers without OpenMP or native code."""
_LOG = logging.getLogger(__name__)
_int, _float, _pointer = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
SIGNATURES = {
    "attend_causally": [*[_pointer] * 7, *[_int] * 5],
    "attend": [*[_pointer] * 8, *[_int] * 9],
    "layer_norm": [*[_pointer] * 3, _float, *[_int] * 2, _pointer, _int],
    "rms_norm": [_pointer, _pointer, _float, *[_int] * 2, _pointer, _int],
    "product": [*[_pointer] * 4, *[_int] * 5],
    "exact_product": [*[_pointer] * 4, *[_int] * 3, _pointer, *[_int] * 2],
    "exact_swiglu": [*[_pointer] * 2, *[_int] * 3],
    "feed_forward": [*[_pointer] * 5, _float, *[_pointer] * 7, *[_int] * 5],
    "decode": [*[_pointer] * 4, _float, *[_pointer] * 8],
    "tile_product": [*[_pointer] * 5, _float, *[_pointer] * 6, *[_int] * 5],
    "pack_weight": [*[_pointer] * 2, *[_int] * 4],
    "packed_words": [_int] * 3,
    "product_lanes": [],
    "swiglu": [*[_pointer] * 2, *[_int] * 3],
    "draw_cells": [*[_pointer] * 4, *[_float] * 2, *[_int] * 4, *[_pointer] * 4, _int],
}
RESULTS = {"packed_words": ctypes.c_int64, "product_lanes": _int}


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """The built kernels; None, with one warning, where they cannot be built."""
    try:
        library = ctypes.CDLL(str(build(cache_folder())))
    except (OSError, subprocess.CalledProcessError) as fault:
        _LOG.warning("sampling without C kernels, which is slower: %s", _reason(fault))
        return None
    for name, arguments in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, RESULTS.get(name)
    return library


def cache_folder() -> Path:
    """Where built kernels are kept: `musicrl` in XDG_CACHE_HOME, or in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "musicrl"


def build(folder: Path) -> Path:
    """The library in `folder`, compiled when it is not there yet.

    Raises FileNotFoundError without a compiler and CalledProcessError when the source does not
    compile. Processes that build at once each write their own file; the last rename stays.
    """
    name = os.environ.get("CC", "cc")
    compiler = shutil.which(name)
    if compiler is None:
        raise FileNotFoundError(f"there is no C compiler {name} (set CC to name one)")
    path = folder / f"kernels-{_digest(compiler)}.so"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        partial = Path(scratch) / path.name
        for flags in FLAGS:
            files = [*map(str, SOURCES), "-o", str(partial)]
            command = [compiler, *flags, "-shared", "-fPIC", *files, "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                break
        done.check_returncode()
        partial.replace(path)  # whole or not there
    return path


def _digest(compiler: str) -> str:
    """Of all that decides the machine code: the macros name compiler, version and target."""
    macros = b""
    for flags in FLAGS:
        command = [compiler, *flags, "-dM", "-E", "-x", "c", os.devnull]
        macros += subprocess.run(command, capture_output=True, check=False).stdout
    sources = b"".join(source.read_bytes() for source in (*SOURCES, *HEADERS))
    return hashlib.sha256(sources + macros).hexdigest()[:16]


def _reason(fault: OSError | subprocess.CalledProcessError) -> str:
    if isinstance(fault, subprocess.CalledProcessError):
        lines = str(fault.stderr).strip().splitlines()
        return f"the kernels do not compile: {lines[0] if lines else fault}"
    return str(fault)
