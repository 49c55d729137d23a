"""`musicrl listen`: a static page of prompts and clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cluster.commands.flags import print_help, read_settings, split_words, wants_help
from musicrl.evaluation.listening import ListenConfig, chosen_prompts, run_listening
from musicrl.pretrain.world import WorldData
from musicrl.types import Clips, Prompt
from musicrl.world import find_world
from musicrl.worlds import load_world, prompts_of_world


def listen(args: Sequence[str]) -> None:
    """Write the page and print where it is."""
    if wants_help(args):
        return print_help(ListenConfig(), verb="listen [policy or run ...]")
    words, flags = split_words(args)
    config = read_settings(ListenConfig, flags)
    config = replace(config, policies=(*map(Path, words), *config.policies))
    if config.weights is not None:
        config = replace(config, weights=find_world(config.weights))
    prompts = chosen_prompts(config, prompts_of_world(config.weights))
    real = None if config.world is None else clips_like(config.world, prompts)
    run_listening(config, prompts, real=real, load=load_world)


def clips_like(world: Path, prompts: Sequence[Prompt]) -> Clips:
    """A clip of a world's test split for each prompt: the first that is like it, and no clip twice
    where that can be.

    Raises ValueError naming a prompt that no clip is like.
    """
    data, taken = WorldData(world, "test"), list[int]()
    for prompt in prompts:
        fitting = [i for i in range(len(data)) if data.is_like(i, prompt)]
        if not fitting:
            raise ValueError(f"{world} holds no test clip like {prompt.text!r}")
        taken.append(next((i for i in fitting if i not in taken), fitting[0]))
    return Clips(audio=data.audio(taken).numpy(), sample_rate=data.sample_rate)
