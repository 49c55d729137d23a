"""Reading prompts, drawing them and pairing them wrongly."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicrl.prompts import FREEFORM, attribute, draw, load_prompts, mismatched
from musicrl.types import Prompt


def numbered(count: int) -> tuple[Prompt, ...]:
    return tuple(Prompt(id=f"p{i}", text=f"text {i}") for i in range(count))


def write_table(path: Path, **columns: list[object]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_a_parquet_file_with_splits_and_attributes(tmp_path: Path) -> None:
    path = write_table(
        tmp_path / "p.parquet",
        id=["a", "b"],
        text=["a slow flute", "a harp"],
        split=["train", "heldout"],
        source=["world", "world"],
        instrument=["flute", "harp"],
        tempo=["slow", None],
        loudness=[None, None],
    )
    (train,) = load_prompts(path, "train")
    expected = Prompt(
        id="a",
        text="a slow flute",
        source="world",
        attributes=(("instrument", "flute"), ("tempo", "slow")),
    )
    assert train == expected
    assert attribute(train, "tempo") == "slow"
    assert attribute(train, "loudness") is None
    assert [p.id for p in load_prompts(path, "heldout")] == ["b"]
    assert [p.id for p in load_prompts(path)] == ["a", "b"]


def test_a_text_file_is_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("a march\n\n  épique  \n", encoding="utf-8")
    prompts = load_prompts(path, "train")
    assert [(p.id, p.text, p.source) for p in prompts] == [
        ("mine-1", "a march", "mine"),
        ("mine-3", "épique", "mine"),
    ]


def test_a_csv_file(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text('text,instrument\n"slow, soft",harp\n', encoding="utf-8")
    (prompt,) = load_prompts(path)
    assert prompt.text == "slow, soft"
    assert prompt.attributes == (("instrument", "harp"),)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_of_musiccaps_is_read_as_it_is(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"musiccaps.{suffix}"
    if suffix == "csv":
        header = "ytid,start_s,end_s,aspect_list,caption,is_balanced_subset,is_audioset_eval\n"
        first = '-0Gj8,30,40,"[\'soft\']","A soft, slow tune.",False,True\n'
        path.write_text(header + first + "-0Sdl,30,40,['rock'],Loud rock.,True,False\n")
    else:
        captions: list[object] = ["A soft, slow tune.", "Loud rock."]
        write_table(path, ytid=["-0Gj8", "-0Sdl"], caption=captions, is_audioset_eval=[True, False])
    assert [p.text for p in load_prompts(path, "heldout")] == ["A soft, slow tune."]
    assert [p.text for p in load_prompts(path, "train")] == ["Loud rock."]
    assert {p.source for p in load_prompts(path)} == {"musiccaps"}


def write_dataset(folder: Path, **columns: list[object]) -> None:
    """As `Dataset.save_to_disk` of the library `datasets` writes it, in two files."""
    folder.mkdir()
    table = pa.table(columns)
    files = [f"data-{number:05d}-of-00002.arrow" for number in range(2)]
    for number, file in enumerate(files):
        with pa.ipc.new_stream(folder / file, table.schema) as stream:
            stream.write_table(table.slice(number, 1 if number == 0 else None))
    state = {"_data_files": [{"filename": file} for file in files], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))


def test_folders_of_datasets_are_read_with_their_splits(tmp_path: Path) -> None:
    flags: list[object] = [True, False, False]
    write_dataset(tmp_path / "one", caption=["a", "b", "c"], is_audioset_eval=flags)
    assert [p.text for p in load_prompts(tmp_path / "one", "train")] == ["b", "c"]
    assert [p.text for p in load_prompts(tmp_path / "one", "heldout")] == ["a"]
    both = tmp_path / "both"
    both.mkdir()
    (both / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    write_dataset(both / "train", text=["a", "b"], audio=[1, 2])
    write_dataset(both / "test", text=["c", "d"], audio=[3, 4])
    assert [p.text for p in load_prompts(both, "train")] == ["a", "b"]
    assert [p.text for p in load_prompts(both, "heldout")] == ["c", "d"]
    assert [p.id for p in load_prompts(both)] == ["both-1", "both-2", "both-3", "both-4"]


def test_a_damaged_folder_is_named_with_its_file(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_dataset(folder, lyrics=["a", "b"])
    with pytest.raises(ValueError, match=r"set has no column 'text' or 'caption'.*: lyrics"):
        load_prompts(folder)
    file = folder / "data-00001-of-00002.arrow"
    file.write_bytes(b"no stream at all")
    with pytest.raises(ValueError, match=r"data-00001-of-00002\.arrow is not a readable Arrow"):
        load_prompts(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"the dataset lacks .*data-00001-of-00002"):
        load_prompts(folder)
    (folder / "state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"state\.json has no list '_data_files'"):
        load_prompts(folder)
    (folder / "state.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no dataset at .*set: it lacks state\.json"):
        load_prompts(folder)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.csv", "lyrics\nx\n", "p.csv has no column 'text' or 'caption'; its columns: lyrics"),
        ("p.csv", "id,text\na,x\nb, \n", "p.csv, line 3: the prompt is empty"),
        ("p.csv", "text\nx,y\n", "p.csv, line 2: more cells than columns"),
        ("p.csv", "id,text\na,x\na,y\n", "p.csv, line 3: id 'a' is taken by line 2"),
        ("p.csv", "text\n", "p.csv holds no prompts"),
        (
            "p.csv",
            "caption,is_audioset_eval\nx,maybe\n",
            "p.csv: column 'is_audioset_eval' holds 'maybe', not true or false",
        ),
        ("p.csv", "text,split\nx,train\n", "p.csv has no prompts of split 'heldout'"),
        ("p.json", "{}", "p.json: prompts must be .parquet, .csv or .txt, not '.json'"),
        ("p.parquet", "no parquet", "p.parquet is not a readable Parquet file"),
    ],
)
def test_a_bad_file_is_named_with_its_line(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match="p") as fault:
        load_prompts(tmp_path / name, "heldout" if "split" in content else None)
    assert words in str(fault.value)


def test_a_column_of_numbers_and_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "p.parquet", text=[1, 2])
    with pytest.raises(ValueError, match="column 'text' must hold text, not int64"):
        load_prompts(path)
    (tmp_path / "p.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"p\.txt is not UTF-8 text"):
        load_prompts(tmp_path / "p.txt")
    with pytest.raises(FileNotFoundError, match="no prompts at"):
        load_prompts(tmp_path / "none.txt")


def test_an_epoch_holds_every_prompt_once_in_its_own_order() -> None:
    prompts = numbered(12)
    steps = [draw(prompts, 5, step, 4) for step in range(6)]
    first, second = (sum(part, ()) for part in (steps[:3], steps[3:]))
    assert sorted(first, key=lambda p: p.id) == sorted(prompts, key=lambda p: p.id)
    assert sorted(second, key=lambda p: p.id) == sorted(prompts, key=lambda p: p.id)
    assert first != second
    assert first != prompts


def test_drawing_is_a_pure_function_of_seed_and_step() -> None:
    prompts = numbered(12)
    assert draw(prompts, 5, 2, 4) == draw(prompts, 5, 2, 4)
    assert draw(prompts, 5, 2, 4) != draw(prompts, 6, 2, 4)


@given(st.integers(1, 9), st.integers(1, 7), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_steps_are_slices_of_one_sequence(size: int, count: int, step: int) -> None:
    prompts = numbered(size)
    one_by_one = tuple(draw(prompts, 1, i, 1)[0] for i in range(step * count, (step + 1) * count))
    assert draw(prompts, 1, step, count) == one_by_one


def test_drawing_from_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no prompts"):
        draw((), 0, 0, 4)


def test_wrong_pairs_differ_in_text_and_in_attributes_as_a_whole() -> None:
    values = ["flute", "harp", "choir", "flute", "harp", "choir"]
    prompts = [
        Prompt(id=str(i), text=f"text {i}", attributes=(("instrument", value),))
        for i, value in enumerate(values)
    ]
    wrong = mismatched(prompts)
    # Half the list, 3, would pair every instrument with itself; 4 pairs none.
    assert [p.id for p in wrong] == ["4", "5", "0", "1", "2", "3"]


def test_wrong_pairs_start_from_half_the_list() -> None:
    assert [p.id for p in mismatched(numbered(4))] == ["p2", "p3", "p0", "p1"]
    assert [p.id for p in mismatched(numbered(2))] == ["p1", "p0"]


def test_equal_texts_are_never_paired_when_that_can_be_avoided() -> None:
    texts = ["a", "b", "a", "c"]
    prompts = [Prompt(id=str(i), text=text) for i, text in enumerate(texts)]
    pairs = [(a.text, b.text) for a, b in zip(prompts, mismatched(prompts), strict=True)]
    assert all(a != b for a, b in pairs)
    with pytest.raises(ValueError, match="two different prompts"):
        mismatched([prompts[0], prompts[2]])


def test_the_free_form_prompts_are_of_the_papers_shape() -> None:
    prompts = load_prompts(FREEFORM, split="heldout")
    assert len(prompts) == len({prompt.text.lower() for prompt in prompts}) == 101
    lengths = [len(prompt.text.split()) for prompt in prompts]
    assert (min(lengths), max(lengths)) == (3, 25)
    with FREEFORM.open(encoding="utf-8", newline="") as file:
        styles = Counter(row["style"] for row in csv.DictReader(file))
    assert len(styles) == 10
    assert set(styles.values()) == {10, 11}
