"""Tables as plain cells, and what they are written as: for the terminal, in Markdown, in HTML.

Everything that is written is escaped. It knows no figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import rich.table

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Heads and rows of cells."""
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
  color: #222; background: #fff }
table { border-collapse: collapse; font-size: 0.85rem; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #ddd; padding: 0.3rem 0.6rem; text-align: left }
.warning { background: #fff3cd; padding: 0.8rem; border-left: 4px solid #b9770e }
svg { max-width: 45rem; width: 100% } audio { width: 14rem }
"""


def terminal_table(table: Table) -> rich.table.Table:
    heads, rows = table
    shown = rich.table.Table(*heads)
    for row in rows:
        shown.add_row(*row)
    return shown


def markdown_table(table: Table) -> str:
    heads, rows = table
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(_in_cell(cell) for cell in line) + " |" for line in lines)


def html_table(table: Table) -> str:
    heads, rows = table
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def page(title: str, body: str) -> str:
    """A whole HTML file that needs nothing else and runs no script; `body` is markup."""
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
    )
    return f"{head}<body>{body}</body></html>\n"


def _in_cell(text: str) -> str:
    """A bar or a line's end would end the cell."""
    return text.replace("|", "\\|").replace("\n", " ")
