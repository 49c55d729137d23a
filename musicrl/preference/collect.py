"""`musicrl collect`: what is served to listeners, where it is kept, and the process that serves it.

<out>/preferences.db    the answers (unless `database` names another)
<out>/session.key       signs sessions; readable by its owner alone
<out>/clips/            wavs of clips that are sampled on demand
"""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import uvicorn

from musicrl.bounds import at_least
from musicrl.preference.players import OnePlayer, Player, Players, RunFollower
from musicrl.preference.pool import load_worker
from musicrl.preference.server import Rules, make_app
from musicrl.preference.session import Sessions, read_key
from musicrl.preference.source import ClipSource, PoolSource, SamplerSource
from musicrl.preference.store import Store
from musicrl.prompts import load_prompts
from musicrl.sampler.sampling import SamplingConfig
from musicrl.worlds import prompts_of_world

SHUTDOWN_SECONDS = 5
"""That requests in work are given when the server is stopped."""


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """Serve a page on which people listen and say what they prefer."""

    mode: Literal["compare", "rating"] = "compare"
    """Two clips and a trophy for one of them, or one clip and a mark from 1 to 5 (needs a pool)."""
    out: Path = Path("preferences")
    """Folder of the database, the sessions' key and the clips made on demand."""
    database: str | None = None
    """File of SQLite, or URL of another database, such as postgresql+psycopg://host/name (none:
    preferences.db in `out`)."""
    pool: Path | None = None
    """Folder of `musicrl prefs pool` to serve from (none: clips are sampled on demand)."""
    weights: Path | None = None
    """Folder of the world that samples (none: the shipped tiny world)."""
    policy: Path | None = None
    """Policy that samples: a file, checkpoint, run or name in the world's folder (none: the world's
    own)."""
    follow: Path | None = None
    """Folder of a run whose newest checkpoint samples, as training goes on; `policy` plays until
    there is one. Every clip is kept under the checkpoint that made it; the page shows none."""
    follow_seconds: float = 30.0
    """Between two looks for a newer checkpoint."""
    clip_seconds: float | None = None
    """Length of the clips made on demand (none: whole ones)."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    queue: int = 8
    """Pairs that may wait to be sampled; who comes later is asked to try again."""
    minimum_share: float = 0.5
    """Share of each clip that must be played before it can be judged."""
    raters_per_pair: int = 3
    """Raters who mark a clip of every policy that played a prompt, in mode rating: of two policies,
    both clips of the pair (paper section 4.3: 3)."""
    max_prompt_chars: int = 300
    requests_per_minute: int = 240
    """Of one session; of one address five times as many."""
    token: str | None = None
    """Access token: who does not bring it in the link is not let in (none: anybody who can reach
    the port)."""
    secure_cookie: bool = False
    """Send cookies over HTTPS only: for a page behind a proxy that speaks it."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 opens the page to the network."""
    port: int = 8000
    """0: any that is free."""

    def __post_init__(self) -> None:
        at_least(1, queue=self.queue, raters_per_pair=self.raters_per_pair)
        at_least(1, max_prompt_chars=self.max_prompt_chars)
        at_least(1, requests_per_minute=self.requests_per_minute)
        if not 0 <= self.minimum_share <= 1:
            raise ValueError(f"minimum_share must be 0 to 1, got {self.minimum_share}")
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port must be 0 to 65535, got {self.port}")
        if self.mode == "rating" and self.pool is None:
            raise ValueError("mode rating serves the clips of a pool: give it with --pool")
        if self.pool is not None and self.policy is not None:
            raise ValueError("clips come from the pool or from the policy: give one of them")
        if self.pool is not None and self.follow is not None:
            raise ValueError("clips come from the pool or from the run to follow: give one of them")
        if not self.follow_seconds > 0:
            raise ValueError(f"follow_seconds must be above 0, got {self.follow_seconds}")

    @property
    def rules(self) -> Rules:
        return Rules(
            mode=self.mode,
            minimum_share=self.minimum_share,
            raters_per_pair=self.raters_per_pair,
            max_prompt_chars=self.max_prompt_chars,
            requests_per_minute=self.requests_per_minute,
            requests_per_minute_of_address=5 * self.requests_per_minute,
            access_token=self.token,
            secure_cookie=self.secure_cookie,
        )


def collect(config: CollectConfig) -> None:
    """Serve until a signal stops it (Ctrl-C, or a supervisor's).

    Raises OSError when the address cannot be listened on, and ValueError or FileNotFoundError for
    a pool, a policy, a database or a key that cannot be used.
    """
    with listen(config.host, config.port) as listener:
        server = make_server(config)
        print(f"listening at {_link(config, listener)} (Ctrl-C stops)", flush=True)
        with suppress(KeyboardInterrupt):  # raised again by uvicorn, after it has stopped
            server.run(sockets=[listener])
    print("stopped")


def make_server(config: CollectConfig) -> uvicorn.Server:
    """All that serves, but for the socket. Raises as `collect`."""
    store = Store.open(config.database or config.out / "preferences.db")
    sessions = Sessions(read_key(config.out / "session.key"), config.token)
    app = make_app(config.rules, store, make_source(config, store), sessions)
    settings = uvicorn.Config(
        app,
        log_level="warning",
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    return uvicorn.Server(settings)


def make_source(config: CollectConfig, store: Store) -> ClipSource:
    """The pool, or the policy that samples on demand."""
    if config.pool is not None:
        return PoolSource(config.pool, store)
    return SamplerSource(
        make_players(config),
        load_prompts(prompts_of_world(config.weights), split="train"),
        config.out / "clips",
        store,
        queue=config.queue,
        clip_seconds=config.clip_seconds,
    )


def make_players(config: CollectConfig) -> Players:
    """The policy, or the follower of a run. Raises as `load_worker`, and FileNotFoundError for a
    run that is not there."""

    def load(policy: Path | None) -> Player:
        worker, name = load_worker(config.weights, policy, config.sampling)
        worker.world.steps_of(config.clip_seconds)
        return Player(worker, name)

    first = load(config.policy)
    if config.follow is None:
        return OnePlayer(first)
    return RunFollower(config.follow, first, load, every_seconds=config.follow_seconds)


def listen(host: str, port: int) -> socket.socket:
    """A socket that names its protocol: asyncio sends without delay on such only."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as fault:
        listener.close()
        raise OSError(f"cannot listen on {host}:{port}: {fault.strerror or fault}") from fault
    return listener


def _link(config: CollectConfig, listener: socket.socket) -> str:
    host = f"[{config.host}]" if ":" in config.host else config.host
    key = f"?token={quote(config.token, safe='')}" if config.token else ""
    return f"http://{host}:{listener.getsockname()[1]}/{key}"
