"""The report as one HTML file that needs nothing else: tables, plots and players of the clips.

Every caption and name is escaped; no script runs. Knows findings and audio, not how they were made.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import soundfile

from musicrl.evaluation.document import html_table, page
from musicrl.reproduction.findings import PairFinding
from musicrl.reproduction.plot import Bar, Point, bars, scatter
from musicrl.reproduction.report import (
    KEPT,
    REWARDS,
    SIMULATED,
    Report,
    kept_rows,
    model_tables,
    music_said,
    music_verdict,
    pair_table,
    verdict,
)
from musicrl.types import Clips, Prompt

AUDIO_FORMAT, AUDIO_TYPE = "MP3", "audio/mpeg"


def to_html(report: Report, prompts: Sequence[Prompt], clips: Mapping[str, Clips]) -> str:
    """The report.html; `clips` are those of the first seed's models for `prompts`, one of each."""
    parts = [
        "<h1>MusicRL in the tiny world: base, R, U, RU</h1>",
        f'<p class="warning">{escape(SIMULATED)}</p>',
        f"<p><strong>{escape(verdict(report))}</strong></p>",
        "<ul>" + "".join(f"<li>{escape(str(found))}</li>" for found in report.orderings) + "</ul>",
        f"<p><strong>{escape(music_verdict(report))}</strong></p>",
        "<h2>Win rates</h2>",
        (
            "<p>Win rate of the first model, ties left out, with 95 % intervals over prompts; the "
            "diamond is the win rate in the paper, by people.</p>"
        ),
        *_win_rates(report.pairs),
        f"<h2>{escape(KEPT)}</h2>",
        "<ul>" + "".join(f"<li>{escape(said)}</li>" for said in music_said(report)) + "</ul>",
        html_table(kept_rows(report)),
        "<h2>Rewards against divergence</h2>",
        *_frontiers(report),
        "<h2>Listen</h2>",
        players(prompts, clips),
        "<h2>Pairs</h2>",
        html_table(pair_table(report.pairs)),
        "<h2>Models</h2>",
        *(f"<h3>{escape(title)}</h3>{html_table(found)}" for title, found in model_tables(report)),
        "<h2>Settings</h2>",
        html_table((("setting", "value"), [(k, str(v)) for k, v in report.settings.items()])),
    ]
    return page("MusicRL, reproduced with simulated raters", "".join(parts))


def players(prompts: Sequence[Prompt], clips: Mapping[str, Clips]) -> str:
    """A row a caption, a player a model."""
    heads = "".join(f"<th>{escape(name)}</th>" for name in clips)
    lines = []
    for number, prompt in enumerate(prompts):
        cells = "".join(
            f"<td>{_player(found.audio[number], found.sample_rate)}</td>"
            for found in clips.values()
        )
        lines.append(f"<tr><td>{escape(prompt.text)}</td>{cells}</tr>")
    body = "".join(lines)
    return f"<table><thead><tr><th>caption</th>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _player(audio: np.ndarray, sample_rate: int) -> str:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(audio, -1, 1), sample_rate, format=AUDIO_FORMAT)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<audio controls preload="none" src="data:{AUDIO_TYPE};base64,{data}"></audio>'


def _win_rates(pairs: Sequence[PairFinding]) -> list[str]:
    """A plot for each panel, of all seeds together where there are several."""
    last = pairs[-1].seed
    plots = []
    for rater in dict.fromkeys(row.rater for row in pairs):
        rows = [
            Bar(
                label=f"{row.a} over {row.b}",
                value=row.found.rate,
                low=row.found.low,
                high=row.found.high,
                mark=row.to_json()["paper"],
            )
            for row in pairs
            if row.rater == rater and row.seed == last and np.isfinite(row.found.rate)
        ]
        plots.append(f"<h3>{escape(rater)}</h3>{bars(rows, rater)}")
    return plots


def _frontiers(report: Report) -> list[str]:
    """A plot for each reward: its mean against the divergence from the base, of every model."""
    plots = []
    for reward in REWARDS:
        points = [
            Point(
                label=f"{row['name']}, seed {row['seed']}",
                x=row["kl"]["base"]["total"]["mean"],
                y=row["rewards"][reward]["mean"],
            )
            for row in report.models
            if row["rewards"][reward]["mean"] is not None
        ]
        if points:
            title = f"mean of the reward {reward}"
            plots.append(scatter(points, title, x_name="KL to the base, nats a clip", y_name=title))
    return plots
