"""The frame layout: interleaving and its inverse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicrl.layout import DelayedLayout, FrameLayout

TINY = FrameLayout(semantic_vocab=256, coarse_vocab=512, coarse_levels=2, codec_frames_per_step=2)


def test_streams_are_semantic_then_time_major_level_minor() -> None:
    assert TINY.stream_names == ("semantic", "coarse1.0", "coarse2.0", "coarse1.1", "coarse2.1")
    assert TINY.vocab_sizes == (256, 512, 512, 512, 512)
    assert (TINY.num_streams, TINY.vocab_size) == (5, 512)


def test_interleave_by_hand() -> None:
    semantic = np.array([[1, 2]])
    codes = np.array([[[10, 11, 12, 13], [20, 21, 22, 23]]])
    grid = TINY.interleave(semantic, codes)
    assert grid.dtype == np.int16
    assert grid.tolist() == [[[1, 10, 20, 11, 21], [2, 12, 22, 13, 23]]]


@given(
    data=st.data(),
    B=st.integers(1, 3),
    S=st.integers(1, 4),
    levels=st.integers(1, 3),
    frames=st.integers(1, 3),
)
def test_round_trip(data: st.DataObject, B: int, S: int, levels: int, frames: int) -> None:
    layout = FrameLayout(
        semantic_vocab=7, coarse_vocab=9, coarse_levels=levels, codec_frames_per_step=frames
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    semantic = rng.integers(0, 7, (B, S)).astype(np.int16)
    codes = rng.integers(0, 9, (B, levels, S * frames)).astype(np.int16)
    grid = layout.interleave(semantic, codes)
    assert grid.shape == (B, S, layout.num_streams)
    assert len(layout.stream_names) == len(layout.vocab_sizes) == layout.num_streams
    assert np.array_equal(layout.to_semantic(grid), semantic)
    assert np.array_equal(layout.to_codes(grid), codes)


@pytest.mark.parametrize("shape", [(1, 2, 3), (1, 1, 4), (1, 3, 4), (1, 2, 5)])
def test_codes_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"codes of {shape[1]} levels x {shape[2]} frames"):
        TINY.interleave(np.zeros((1, 2), int), np.zeros(shape, int))


def test_codebooks_are_late_by_their_number() -> None:
    layout = DelayedLayout(vocab=10, num_codebooks=3)
    codes = np.arange(6).reshape(1, 3, 2)
    assert layout.interleave(codes)[0].T.tolist() == [
        [0, 1, 10, 10],
        [10, 2, 3, 10],
        [10, 10, 4, 5],
    ]
    assert np.array_equal(layout.to_codes(layout.interleave(codes)), codes)
    assert layout.vocab_sizes == (11, 11, 11)
    with pytest.raises(ValueError, match="codes of 2 codebooks do not fit a layout of 3"):
        layout.interleave(codes[:, :2])


def test_left_and_right_of_a_codebook_come_late_together() -> None:
    layout = DelayedLayout(vocab=10, num_codebooks=4, channels=2)
    codes = np.arange(8).reshape(1, 4, 2)
    grid = layout.interleave(codes)
    assert grid[0].T.tolist() == [[0, 1, 10], [2, 3, 10], [10, 4, 5], [10, 6, 7]]
    assert np.array_equal(layout.to_codes(grid), codes)
    assert layout.steps_of(2) == 3
    assert layout.stream_names == (
        "codebook0.left",
        "codebook0.right",
        "codebook1.left",
        "codebook1.right",
    )
    assert layout.cut(grid, 1, 2)[0].T.tolist() == [[1, 10], [3, 10], [10, 5], [10, 7]]


def test_a_part_of_a_late_grid_is_a_whole_grid() -> None:
    """Frames 1 and 2 of three, with the special tokens where a clip of two frames has them."""
    layout = DelayedLayout(vocab=10, num_codebooks=2)
    grid = layout.interleave(np.array([[[1, 2, 3], [4, 5, 6]]]))
    assert layout.cut(grid, 1, 3)[0].T.tolist() == [[2, 3, 10], [10, 5, 6]]
    assert np.array_equal(layout.cut(grid, 0, 4), grid)
    with pytest.raises(ValueError, match="1 steps of 2 codebooks hold no frame"):
        layout.cut(grid, 0, 1)
    frames = TINY.cut(np.arange(12, dtype=np.int16).reshape(1, 4, 3), 1, 2)
    assert frames.tolist() == [[[3, 4, 5], [6, 7, 8]]]
