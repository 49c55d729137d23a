"""`musicrl collect`: the page on which people listen and choose."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.commands.flags import print_help, read_settings, wants_help
from cluster.commands.prefs import require_extra


def collect(args: Sequence[str]) -> None:
    """Serve the page until Ctrl-C."""
    require_extra()
    from musicrl.preference import collect as page

    if wants_help(args):
        return print_help(page.CollectConfig(), verb="collect")
    page.collect(read_settings(page.CollectConfig, args))
