"""`musicrl codec`: what the codec keeps of real clips, by level and by soundfont."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cluster.commands.flags import print_help, read_settings, split_words, wants_help
from musicrl.codecs.base import Codec
from musicrl.evaluation.codec_report import CodecReportConfig, run_codec_report
from musicrl.evaluation.reference import RealClips, at_codec
from musicrl.pretrain.real import real_clips, rendered_clips
from musicrl.pretrain.render import find_soundfont


def codec(args: Sequence[str]) -> None:
    """Print a table of each soundfont or folder of clips."""
    if wants_help(args):
        return print_help(CodecReportConfig(), verb="codec [soundfont or folder of clips ...]")
    words, flags = split_words(args)
    config = read_settings(CodecReportConfig, flags)
    sources = (*map(Path, words), *config.sources)
    if not sources and not config.soundfont:
        sources = (find_soundfont(None),)

    def load(source: Path, codec: Codec, count: int) -> RealClips:
        if source.is_dir():
            return at_codec(real_clips(source, count), codec)
        rate, seconds = codec.sample_rate, config.seconds
        return at_codec(rendered_clips(source, count, sample_rate=rate, seconds=seconds), codec)

    run_codec_report(replace(config, sources=sources), load)
