"""The end of a refusal: what the user may have meant. Loads nothing heavy."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def closest(name: str, known: Sequence[str]) -> str:
    """' (nearest: X)', or ' (known: ...)' where nothing is near."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" (nearest: {match[0]})" if match else f" (known: {', '.join(known)})"
