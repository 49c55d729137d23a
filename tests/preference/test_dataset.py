from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from musicrl.preference.dataset import (
    ROWS_PER_GROUP,
    check_file,
    check_files,
    read_comparisons,
    write_comparisons,
)
from musicrl.preference.rows import (
    comparison_batch,
    pool_batch,
    rating_batch,
    to_comparisons,
    to_pool,
    to_ratings,
)
from musicrl.preference.schema import COMPARISONS, POOL, RATINGS
from musicrl.types import Comparison, Prompt, Rating, TokenClip
from tests.preference.playable import compared, playable, token_clip

ROOT = Path(__file__).parent.parent.parent
FORMAT = ROOT / "musicrl" / "preference" / "FORMAT.md"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
NOTHING = np.empty(0, np.int16)
SHARE = st.floats(0, 1, width=32)


def same(left: Comparison, right: Comparison) -> bool:
    grids = [
        np.array_equal(x.tokens, y.tokens) and x.tokens.dtype == y.tokens.dtype == np.int16
        for x, y in ((left.clip_a, right.clip_a), (left.clip_b, right.clip_b))
    ]
    return all(grids) and bare(left) == bare(right)


def bare(row: Comparison) -> Comparison:
    """Without its arrays, which have no truth value."""
    clips = [replace(c, tokens=NOTHING) for c in (row.clip_a, row.clip_b)]
    return replace(row, clip_a=clips[0], clip_b=clips[1])


def test_files_give_back_what_was_written_in_groups_of_bounded_size(tmp_path: Path) -> None:
    written = [compared(n) for n in range(2 * ROWS_PER_GROUP + 10)]
    path = tmp_path / "pairs.parquet"
    assert write_comparisons(path, iter(written)) == len(written)
    batches = list(read_comparisons([path]))
    read = [row for batch in batches for row in batch]
    assert len(read) == len(written)
    assert all(map(same, read, written))
    assert max(map(len, batches)) <= ROWS_PER_GROUP
    groups = pq.ParquetFile(path).metadata
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [2048, 2048, 10]
    assert [file.name for file in tmp_path.iterdir()] == ["pairs.parquet"]


@st.composite
def grids(draw: st.DrawFn) -> TokenClip:
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    values = draw(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=12, max_size=12))
    tokens = np.array(values, np.int16)[: shape[0] * shape[1]].reshape(shape)
    return TokenClip(id=draw(TEXT), tokens=tokens, policy=draw(TEXT))


@given(
    rows=st.lists(
        st.builds(
            Comparison,
            id=TEXT,
            prompt=st.builds(Prompt, id=TEXT, text=TEXT),
            clip_a=grids(),
            clip_b=grids(),
            choice=st.sampled_from(["a", "b", "none"]),
            heard_a=SHARE,
            heard_b=SHARE,
            rater=TEXT,
            simulated=st.booleans(),
            time=st.datetimes(timezones=st.just(UTC)),
        ),
        max_size=6,
    )
)
@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
def test_columns_hold_any_comparison(rows: list[Comparison]) -> None:
    batch = comparison_batch(rows)
    for part in (batch, *(batch.slice(i) for i in range(len(rows)))):
        read = to_comparisons(part)
        assert len(read) == part.num_rows
        assert all(map(same, read, rows[len(rows) - part.num_rows :]))


def test_ratings_and_pools_come_back() -> None:
    mark = Rating(
        id="r",
        prompt=Prompt(id="p", text="t"),
        clip=token_clip(1),
        score=4,
        heard=0.25,
        rater="rater-1",
        simulated=False,
        time=datetime(2024, 2, 6, tzinfo=UTC),
    )
    (read,) = to_ratings(rating_batch([mark]))
    assert np.array_equal(read.clip.tokens, mark.clip.tokens)
    assert replace(read, clip=mark.clip) == mark
    clips = [playable(0, 0), playable(1, 2)]
    for new, old in zip(to_pool(pool_batch(clips)), clips, strict=True):
        assert np.array_equal(new.clip.tokens, old.clip.tokens)
        assert replace(new, clip=old.clip) == old


def test_swapping_twice_changes_nothing() -> None:
    row = compared(1)
    swapped = row.swap()
    assert swapped.choice == "a"
    assert (swapped.clip_a, swapped.heard_a, swapped.heard_b) == (row.clip_b, 1.0, 0.5)
    assert swapped.swap() == row


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def flip_a_bit(path: Path) -> None:
    """Of the first page of tokens: the footer stays sound."""
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    tokens = next(c for c in columns if c.path_in_schema.startswith("tokens_a"))
    data = bytearray(path.read_bytes())
    data[tokens.data_page_offset + tokens.total_compressed_size - 10] ^= 0x10
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    pq.write_table(pa.table({"text": ["a tune"]}), path)


def without_raters(path: Path) -> None:
    pq.write_table(pq.read_table(path).drop_columns(["rater"]), path)


def with_wide_tokens(path: Path) -> None:
    table = pq.read_table(path)
    at = table.schema.get_field_index("tokens_b")
    wide = table.column("tokens_b").cast(pa.list_(pa.int64()))
    pq.write_table(table.set_column(at, "tokens_b", wide), path)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (tear, "is not a whole Parquet file"),
        (flip_a_bit, "is not a whole Parquet file: .*checksum"),
        (empty, "is not a whole Parquet file"),
        (foreign, "holds the format 'none', not 'comparisons/1'"),
        (without_raters, "lacks the column 'rater'"),
        (with_wide_tokens, "column 'tokens_b' holds list<element: int64>, not list<element: int16"),
    ],
)
def test_a_bad_file_is_refused_by_name_or_skipped_never_half_read(
    spoil: Callable[[Path], None], sentence: str, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good.parquet", tmp_path / "bad.parquet"
    for path in (good, bad):
        write_comparisons(path, map(compared, range(3000)))
    spoil(bad)
    with pytest.raises(ValueError, match=f"{re.escape(str(bad))}.*{sentence}"):
        next(read_comparisons([good, bad]))
    read = [row for rows in read_comparisons([bad, good], skip_bad=True) for row in rows]
    assert [row.id for row in read] == [f"pair-{n}" for n in range(3000)]
    assert list(check_files([bad, good], skip_bad=True).faults) == [bad]
    with pytest.raises(ValueError, match="no file of comparisons/1 among 1"):
        check_files([bad], skip_bad=True)


@pytest.mark.parametrize(
    ("column", "value", "sentence"),
    [
        ("choice", "c", "row 2: choice 'c'"),
        ("heard_b", 1.5, r"row 2: heard_b 1\.5"),
        ("heard_a", float("nan"), "row 2: heard_a nan"),
        ("steps_a", 5, "row 2: tokens_a are not 5 steps of 2 streams"),
        ("steps_b", 0, "row 2: tokens_b are not 0 steps of 2 streams"),
        ("simulated", True, "row 2: rater 'rater-2'"),
        ("rater", "simulated-2", "row 2: rater 'simulated-2'"),
        ("prompt", "", "row 2: prompt ''"),
    ],
)
def test_a_row_against_the_rules_is_named(
    column: str, value: object, sentence: str, tmp_path: Path
) -> None:
    table = pa.Table.from_batches([comparison_batch([compared(n) for n in range(4)])])
    at, values = table.schema.get_field_index(column), table.column(column).to_pylist()
    values[2] = value
    field = table.schema.field(column)
    table = table.set_column(at, field, pa.array(values, field.type))
    path = tmp_path / "simulated.parquet"
    pq.write_table(table, path)
    with pytest.raises(ValueError, match=f"{path}, from row 0, {sentence}$"):
        check_file(path)


def test_simulated_rows_need_a_name_that_says_so(tmp_path: Path) -> None:
    row = replace(compared(0), simulated=True, rater="simulated-0")
    with pytest.raises(ValueError, match="its name must contain 'simulated'"):
        write_comparisons(tmp_path / "pairs.parquet", [row])
    assert not list(tmp_path.iterdir())
    assert write_comparisons(tmp_path / "simulated-pairs.parquet", [row]) == 1


def test_a_failure_on_the_way_leaves_no_file(tmp_path: Path) -> None:
    def rows() -> list[Comparison]:
        raise OSError("the database went away")

    path = tmp_path / "pairs.parquet"
    write_comparisons(path, [compared(0)])
    before = path.read_bytes()
    with pytest.raises(OSError, match="went away"):
        write_comparisons(path, (row for _ in [0] for row in rows()))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["pairs.parquet"]


@pytest.mark.parametrize("schema", [COMPARISONS, RATINGS, POOL])
def test_the_page_on_the_format_names_every_column_with_its_type(schema: pa.Schema) -> None:
    text = FORMAT.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", text, re.MULTILINE))
    for field in schema:
        stem = re.sub(r"_[ab]$", "", field.name)
        assert field.name in text or stem in text
        documented = rows.get(field.name) or rows.get(f"{stem}_a")
        assert documented == str(field.type)


def test_files_are_read_without_the_extra_that_collects() -> None:
    program = (
        "import sys, musicrl.preference.dataset, musicrl.preference.validate\n"
        "import musicrl.preference.combine, musicrl.preference.simulate\n"
        "sys.exit(bool({'sqlalchemy', 'fastapi', 'uvicorn', 'itsdangerous'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert done.returncode == 0
