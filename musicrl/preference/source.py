"""Where the clips that listeners hear come from: a pool, or a policy that samples on demand.

Either way a pair is a promise (a future), so that the server need not know which. Sampling happens
in one thread, one pair at a time, behind a queue of bounded length.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from random import SystemRandom
from threading import Lock
from typing import Protocol

from musicrl.audio import write_wav
from musicrl.preference.clip import PlayableClip
from musicrl.preference.marking import next_sets, to_compare
from musicrl.preference.players import Players
from musicrl.preference.pool import POOL_STEP, playable_clips, read_pool
from musicrl.preference.refusal import Busy, Finished, UnknownPrompt
from musicrl.preference.store import Store
from musicrl.types import Prompt

Pair = tuple[PlayableClip, PlayableClip]
CHANCE = SystemRandom()
"""Order and choice of what is offered must not be guessed, nor depend on a seed."""

GUESSES = 20
"""At a pair that a rater has not seen, before all pairs are gone through."""


class ClipSource(Protocol):
    """What a listener may ask for."""

    folder: Path
    """Of the wav files."""
    takes_text: bool
    """Whether any text may be asked for, or only what is suggested."""

    def suggest(self, count: int) -> tuple[Prompt, ...]:
        """Some prompts, in random order."""
        ...

    def pair(self, rater: str, text: str | None) -> Future[Pair]:
        """Two clips of a text (none: of any prompt), in random order, added to the store.

        Raises a Refusal: UnknownPrompt, Finished or Busy.
        """
        ...

    def close(self) -> None: ...


class PoolSource:
    """Serves the clips of a pool: to every rater each pair once."""

    takes_text = False

    def __init__(self, folder: Path, store: Store) -> None:
        """Raises as `read_pool`, and ValueError when the store knows other prompts by its names."""
        self.folder = folder
        self._store = store
        self._clips = {clip.clip.id: clip for clip in read_pool(folder)}
        store.add_clips(self._clips.values())
        self._of_text: dict[str, list[PlayableClip]] = {}
        for clip in self._clips.values():
            self._of_text.setdefault(clip.prompt.text, []).append(clip)
        self._sets = [clips for of_text in self._of_text.values() for clips in to_compare(of_text)]

    def suggest(self, count: int) -> tuple[Prompt, ...]:
        texts = [text for text, clips in self._of_text.items() if len(clips) > 1]
        chosen = CHANCE.sample(texts, min(count, len(texts)))
        return tuple(self._of_text[text][0].prompt for text in chosen)

    def pair(self, rater: str, text: str | None) -> Future[Pair]:
        if text is not None and text not in self._of_text:
            raise UnknownPrompt("choose one of the suggested texts: no other clips are here")
        seen = {frozenset(offer) for offer in self._store.offered(rater)}
        texts = CHANCE.sample(list(self._of_text), len(self._of_text)) if text is None else [text]
        for candidate in texts:
            pair = _unseen(self._of_text[candidate], seen)
            if pair is not None:
                return _done(_shuffled(pair))
        raise Finished("you have heard every pair of this text" if text else "you have heard all")

    def single(self, rater: str, raters_per_pair: int) -> PlayableClip:
        """A clip that this rater has not marked, of a pair that needs them: see `marking`.

        Raises Finished when there is none.
        """
        marked_by = self._store.raters_of_clips()
        sets = next_sets(self._sets, marked_by, rater, enough=raters_per_pair)
        if not sets:
            raise Finished("every clip that you could rate has its ratings")
        return CHANCE.choice(CHANCE.choice(sets))

    def close(self) -> None:
        """Nothing runs."""


class SamplerSource:
    """Samples two clips of whatever text is asked for."""

    takes_text = True

    def __init__(
        self,
        players: Players,
        prompts: Sequence[Prompt],
        folder: Path,
        store: Store,
        *,
        queue: int,
        clip_seconds: float | None = None,
    ) -> None:
        self.folder = folder
        self._players, self._prompts = players, tuple(prompts)
        self._store, self._queue, self._clip_seconds = store, queue, clip_seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sampler")
        self._waiting = 0
        self._lock = Lock()

    def suggest(self, count: int) -> tuple[Prompt, ...]:
        return tuple(CHANCE.sample(self._prompts, min(count, len(self._prompts))))

    def pair(self, rater: str, text: str | None) -> Future[Pair]:
        prompt = typed_prompt(CHANCE.choice(self._prompts).text if text is None else text)
        with self._lock:
            if self._waiting >= self._queue:
                raise Busy("many are waiting for music just now: try again in a moment")
            self._waiting += 1
        future = self._thread.submit(self._sample, prompt)
        future.add_done_callback(self._leave)
        return future

    def close(self) -> None:
        """Finish the pair in work and forget those that wait."""
        self._thread.shutdown(cancel_futures=True)
        self._players.close()

    def _sample(self, prompt: Prompt) -> Pair:
        player = self._players.player  # of both clips, whoever plays the next pair
        rollouts, audio = player.worker.generate(
            [prompt],
            first_prompt_index=0,
            step=POOL_STEP,
            run_seed=secrets.randbits(63),
            samples_per_prompt=2,
            version=0,
            clip_seconds=self._clip_seconds,
        )
        clips = playable_clips(rollouts, audio, player.policy)
        for clip, sound in zip(clips, audio.channels, strict=True):
            write_wav(self.folder / clip.wav, sound, audio.sample_rate)
        self._store.add_clips(clips)
        return _shuffled((clips[0], clips[1]))

    def _leave(self, future: Future[Pair]) -> None:
        with self._lock:
            self._waiting -= 1


def typed_prompt(text: str) -> Prompt:
    """A prompt known by its text alone."""
    digest = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
    return Prompt(id=f"text-{digest}", text=text, source="listener")


def _unseen(clips: Sequence[PlayableClip], seen: set[frozenset[str | None]]) -> Pair | None:
    """Two of the clips that are not among the pairs seen, at random; None where there are none."""
    for _ in range(GUESSES if len(clips) > 1 else 0):
        first, second = CHANCE.sample(clips, 2)
        if _ids((first, second)) not in seen:
            return first, second
    rest = [pair for pair in combinations(clips, 2) if _ids(pair) not in seen]
    return CHANCE.choice(rest) if rest else None


def _ids(pair: Pair) -> frozenset[str | None]:
    return frozenset(clip.clip.id for clip in pair)


def _shuffled(pair: Pair) -> Pair:
    return pair if CHANCE.random() < 0.5 else (pair[1], pair[0])


def _done(pair: Pair) -> Future[Pair]:
    future: Future[Pair] = Future()
    future.set_result(pair)
    return future
