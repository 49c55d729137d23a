"""The page of `musicrl listen` as HTML: a row a prompt, a column a source; no script, no other host.

Knows nothing of how clips are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from musicrl.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A clip as it was written."""

    file: str
    """Relative to the page."""
    loudness: float | None
    """Before the gain, dB below full scale; none for silence."""
    gain: float
    """dB."""
    bytes: int


def to_html(
    prompts: Sequence[Prompt],
    origins: Mapping[str, str],
    cells: Mapping[str, Sequence[Cell]],
    *,
    loudness: float,
) -> str:
    """The page of clips that were brought to `loudness`, dB below full scale."""
    heads = "".join(
        f'<th scope="col">{escape(name)}<small>{escape(origins[name])}</small></th>'
        for name in cells
    )
    rows = "\n".join(
        f'<tr><th scope="row">{escape(prompt.text)}</th>'
        + "".join(_cell(name, prompt, row[index]) for name, row in cells.items())
        + "</tr>"
        for index, prompt in enumerate(prompts)
    )
    return TEMPLATE.format(heads=heads, rows=rows, loudness=f"{-loudness:g}")


def _cell(name: str, prompt: Prompt, cell: Cell) -> str:
    label = escape(f"{name}: {prompt.text}", quote=True)
    told = "silent" if cell.loudness is None else f"{cell.gain:+.1f} dB"
    return (
        f'<td><audio controls preload="none" src="{escape(cell.file)}" aria-label="{label}">'
        f"</audio><small>{told}</small></td>"
    )


TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; media-src 'self' file:; style-src 'unsafe-inline'">
<title>musicrl: clips to listen to</title>
<style>
body {{ font: 16px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #1c1c1c; background: #fff }}
p {{ max-width: 45rem }}
.scroll {{ overflow-x: auto }}
table {{ border-collapse: collapse }}
th, td {{ padding: .5rem; text-align: left; vertical-align: top; border-top: 1px solid #ccc }}
th[scope=row] {{ min-width: 12rem; font-weight: normal }}
small {{ display: block; color: #555; font-weight: normal }}
audio {{ width: 15rem; height: 44px }}
@media (prefers-color-scheme: dark) {{
 body {{ color: #eee; background: #161616 }} small {{ color: #aaa }} th, td {{ border-color: #444 }}
}}
</style>
</head>
<body>
<h1>Clips to listen to</h1>
<p>One row a prompt, one column a source. Every clip was brought to {loudness} dB below full scale, for
listening alone; the gain stands below it. A soft clip needed more, a loud one less.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Clips">
<table>
<thead><tr><th scope="col">prompt</th>{heads}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
</div>
</body>
</html>
"""
