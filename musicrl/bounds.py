"""Bounds of settings: a number that is too small is refused in one sentence that names its field."""

from __future__ import annotations


def at_least(least: float, **fields: float) -> None:
    """Raises ValueError naming the first of `fields` that is below `least`, or no number."""
    for name, value in fields.items():
        if not value >= least:
            raise ValueError(f"{name} must be {least:g} or more, got {value}")
