from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from musicrl.settings import build, merge, paths, read_flags, read_yaml, to_tree, to_yaml

RANGES = "file.yaml: ranges is "
WANTED_RANGES = ", expected a mapping from names, each to a list"


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Engine settings."""

    power: float = 1.5
    fuel: Literal["wood", "coal"] = "wood"
    gears: tuple[int, ...] = (1, 2)
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.power < 0:
            raise ValueError(f"power must be 0 or more, got {self.power}")


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train settings."""

    name: str = "local"
    wagons: int = 3
    is_late: bool = False
    out: Path = Path("runs")
    spare: Path | None = None
    weights: Mapping[str, float] = field(default_factory=lambda: {"text": 1.0})
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    engine: Engine = field(default_factory=Engine)


def read(text: str) -> Train:
    return build(Train, yaml.safe_load(text) or {}, origin="file.yaml")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("wagon: 3", "file.yaml: unknown key 'wagon' (nearest: wagons)"),
        ("engine: {powr: 1}", "file.yaml: unknown key 'engine.powr' (nearest: engine.power)"),
        ("fuel: coal", "file.yaml: unknown key 'fuel' (nearest: engine.fuel)"),
        ("wagons: many", "file.yaml: wagons is 'many', expected an integer"),
        ("wagons: 2.5", "file.yaml: wagons is 2.5, expected an integer"),
        ("wagons: true", "file.yaml: wagons is True, expected an integer"),
        ("engine: {power: full}", "file.yaml: engine.power is 'full', expected a number"),
        ("engine: {power: true}", "file.yaml: engine.power is True, expected a number"),
        ("engine: {limit: low}", "file.yaml: engine.limit is 'low', expected a number or null"),
        ("engine: 3", "file.yaml: engine is 3, expected a mapping of settings"),
        ("engine:", "file.yaml: engine is None, expected a mapping of settings"),
        ("engine: {fuel: oil}", "file.yaml: engine.fuel is 'oil', expected one of wood, coal"),
        ("engine: {gears: 3}", "file.yaml: engine.gears is 3, expected a list"),
        ("ranges: {text: [1, 2, 3]}", RANGES + "{'text': (1.0, 2.0, 3)}" + WANTED_RANGES),
        ("ranges: {text: [1, a]}", RANGES + "{'text': (1.0, 'a')}" + WANTED_RANGES),
        ("is_late: 1", "file.yaml: is_late is 1, expected true or false"),
        ("out: 3", "file.yaml: out is 3, expected a path"),
        ("name: 3", "file.yaml: name is 3, expected a text"),
        (
            "weights: {text: a}",
            "file.yaml: weights is {'text': 'a'}, expected a mapping from names, each to a number",
        ),
        ("engine: {power: -1}", "file.yaml: power must be 0 or more, got -1.0"),
    ],
)
def test_refuses_in_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^file\.yaml: ") as caught:
        read(text)
    assert str(caught.value) == sentence


def test_converts_only_what_loses_nothing() -> None:
    train = read("{out: a/b, engine: {power: 2, gears: [3, 4]}, ranges: {text: [1, 5]}}")
    assert train.out == Path("a/b")
    assert type(train.engine.power) is float
    assert train.engine.gears == (3, 4)
    assert train.ranges == {"text": (1.0, 5.0)}


def test_yaml_reads_exponents_without_a_point(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 1e-4\nb: 2E+3\nc: 1.5e3\nd: e3\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": 1e-4, "b": 2000.0, "c": 1500.0, "d": "e3"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("seed: 1\nseed: 2\n", "key 'seed' stands twice in the mapping of line 1"),
        ("a: [1\n", "line 2 is not YAML: expected ',' or ']', but got '<stream end>'"),
        ("- 1\n", "expected a mapping of settings"),
        ("1: a\n", "expected a mapping of settings"),
    ],
)
def test_names_the_file_that_is_not_settings(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r".") as caught:
        read_yaml(path)
    assert str(caught.value) == f"{path}: {reason}"


def test_names_the_file_that_is_not_text_or_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    with pytest.raises(FileNotFoundError, match=r"no settings file at .*a\.yaml"):
        read_yaml(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"a\.yaml: 'utf-8' codec"):
        read_yaml(path)


def test_an_empty_file_keeps_every_default(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# nothing\n")
    assert build(Train, read_yaml(tmp_path / "a.yaml"), origin="a") == Train()


def test_flags_reach_every_kind_of_setting() -> None:
    words = "--wagons 5 --engine.power=-2e1 --is-late --spare none --engine.gears [1,5] --name 12"
    assert read_flags(Train, words.split()) == {
        "wagons": 5,
        "engine": {"power": -20.0, "gears": [1, 5]},
        "is_late": True,
        "spare": None,
        "name": "12",
    }
    assert read_flags(Train, ["--engine.gears", "7"]) == {"engine": {"gears": [7]}}
    assert read_flags(Train, ["--no-is-late"]) == {"is_late": False}


def test_a_flag_reaches_an_item_of_a_mapping_whose_key_holds_dots() -> None:
    flags = read_flags(Train, ["--weights.my.rewards:Low-Noise", "0.5"])
    assert flags == {"weights": {"my.rewards:Low-Noise": 0.5}}
    assert merge(to_tree(Train()), flags)["weights"] == {
        "text": 1.0,
        "my.rewards:Low-Noise": 0.5,
    }


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--wagon", "3"], "unknown option --wagon (nearest: --wagons)"),
        (["--power", "3"], "unknown option --power (nearest: --engine.power)"),
        (["--wagons"], "option --wagons needs a value: an integer"),
        (["--wagons", "--is-late"], "option --wagons needs a value: an integer"),
        (["three"], "unexpected argument 'three'; settings are given as --name value"),
        (["--engine.gears", "[1"], "--engine.gears is '[1', expected a list"),
    ],
)
def test_flags_are_refused_in_one_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        read_flags(Train, words)
    assert str(caught.value) == sentence


def test_paths_lists_the_leaves_in_order() -> None:
    assert list(paths(Train)) == [
        *("name", "wagons", "is_late", "out", "spare", "weights", "ranges"),
        *("engine.power", "engine.fuel", "engine.gears", "engine.limit"),
    ]


numbers = st.floats(allow_nan=False, allow_infinity=False)
engines = st.builds(
    Engine,
    power=st.floats(min_value=0, allow_infinity=False, allow_nan=False),
    fuel=st.sampled_from(["wood", "coal"]),
    gears=st.lists(st.integers()).map(tuple),
    limit=st.none() | numbers,
)
names = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1)
trains = st.builds(
    Train,
    name=names,
    wagons=st.integers(),
    is_late=st.booleans(),
    out=st.just(Path("a b/c:d")),
    spare=st.none() | st.just(Path("no")),
    weights=st.dictionaries(names, numbers),
    ranges=st.dictionaries(names, st.tuples(numbers, numbers)),
    engine=engines,
)


@given(trains)
def test_yaml_round_trip(train: Train) -> None:
    tree: dict[str, Any] = yaml.safe_load(to_yaml(train))
    assert build(Train, tree, origin="") == train
