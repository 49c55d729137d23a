"""Two plots as SVG: win rates with their intervals, and rewards against divergence.

Drawn here, since they are a few lines and a page must stand alone; knows no findings, only numbers
and names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LEFT, RIGHT = 720, 250, 90
ROW, TOP = 26, 24
HEIGHT, MARGIN = 320, 48
COLOURS = ("#777777", "#1b6ca8", "#c0392b", "#1e8449", "#8e44ad", "#b9770e", "#2c3e50")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A share with its interval."""

    label: str
    value: float
    low: float
    high: float
    mark: float | None = None
    """Another share to compare with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    label: str
    x: float
    y: float


def bars(rows: Sequence[Bar], title: str) -> str:
    """Shares 0 to 1 as bars from one half, their intervals as whiskers, `mark` as a diamond."""
    height = TOP + ROW * len(rows) + 30
    axis = [_line(_share(x), TOP, _share(x), height - 30, "#ddd") for x in (0.25, 0.75, 1.0)]
    axis.append(_line(_share(0.5), TOP, _share(0.5), height - 30, "#000"))
    ticks = [
        _text(_share(x), height - 12, f"{100 * x:.0f} %", "middle")
        for x in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    drawn = [_bar(row, TOP + ROW * i) for i, row in enumerate(rows)]
    return _svg(height, title, [*axis, *ticks, *drawn])


def _bar(row: Bar, top: float) -> str:
    middle, half, end = top + ROW / 2, _share(0.5), _share(row.value)
    colour = "#1e8449" if row.low > 0.5 else "#c0392b" if row.value <= 0.5 else "#b9770e"
    parts = [
        _text(LEFT - 8, middle + 4, row.label, "end"),
        (
            f'<rect x="{min(half, end):.1f}" y="{top + 5}" width="{abs(end - half):.1f}" '
            f'height="{ROW - 10}" fill="{colour}" opacity="0.6"/>'
        ),
        _line(_share(row.low), middle, _share(row.high), middle, "#000"),
        _text(WIDTH - RIGHT + 8, middle + 4, f"{100 * row.value:.1f} %", "start"),
    ]
    if row.mark is not None:
        x = _share(row.mark)
        parts.append(f'<path d="M{x:.1f} {middle - 5}l5 5l-5 5l-5 -5z" fill="none" stroke="#000"/>')
    return "".join(parts)


def scatter(points: Sequence[Point], title: str, *, x_name: str, y_name: str) -> str:
    """Points with their labels."""
    x_low, x_high = _range([p.x for p in points])
    y_low, y_high = _range([p.y for p in points])
    drawn = []
    for number, point in enumerate(points):
        x = MARGIN + (point.x - x_low) / (x_high - x_low) * (WIDTH - 3 * MARGIN)
        y = HEIGHT - MARGIN - (point.y - y_low) / (y_high - y_low) * (HEIGHT - 2 * MARGIN)
        colour = COLOURS[number % len(COLOURS)]
        drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>')
        drawn.append(_text(x + 8, y - 6, f"{point.label} ({point.x:.1f}, {point.y:.3f})", "start"))
    axes = [
        _line(MARGIN, HEIGHT - MARGIN, WIDTH - MARGIN, HEIGHT - MARGIN, "#000"),
        _line(MARGIN, MARGIN, MARGIN, HEIGHT - MARGIN, "#000"),
        _text(WIDTH / 2, HEIGHT - 12, x_name, "middle"),
        _text(MARGIN, MARGIN - 10, y_name, "start"),
    ]
    return _svg(HEIGHT, title, [*axes, *drawn])


def _share(value: float) -> float:
    return LEFT + value * (WIDTH - LEFT - RIGHT)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Ends that leave a twelfth of room, and are never the same."""
    low, high = min(values), max(values)
    room = (high - low) / 12 or 1.0
    return low - room, high + room


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1}" x2="{x2:.1f}" y2="{y2}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}" '
        f'font-family="sans-serif" font-size="12">{"".join(parts)}</svg>'
    )
