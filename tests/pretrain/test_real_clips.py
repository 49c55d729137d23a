"""The real clips of a listening page, found among rendered ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.commands.listen import clips_like
from musicrl.pretrain.world import WorldData
from musicrl.types import Prompt


def test_real_clips_of_a_listening_page_have_what_their_prompts_ask(tiny_world: Path) -> None:
    data = WorldData(tiny_world, "test")
    rows = [(4, True), (2, True), (4, True), (7, False)]
    prompts = []
    for index, is_complete in rows:
        row = {k: v for k, v in data.attributes[index].as_row().items() if v}
        named = row if is_complete else {"tempo": row["tempo"]}
        prompts.append(Prompt(id=str(index), text="a tune", attributes=tuple(named.items())))
    clips = clips_like(tiny_world, prompts)
    everything = data.audio(range(len(data))).numpy()
    found = [next(i for i, a in enumerate(everything) if (a == clip).all()) for clip in clips.audio]
    for prompt, index in zip(prompts, found, strict=True):
        assert dict(prompt.attributes).items() <= data.attributes[index].as_row().items()
    assert found[0] != found[1]
    zither = Prompt(id="z", text="a loud zither", attributes=(("instrument", "zither"),))
    with pytest.raises(ValueError, match="holds no test clip like 'a loud zither'"):
        clips_like(tiny_world, [zither])
