"""Combinations of attributes that no model met, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from musicrl.evaluation.heldout import EvaluationResult
from musicrl.evaluation.unseen import is_unseen, unseen_figures
from musicrl.types import Prompt

HARP_JIG = frozenset({("instrument", "harp"), ("genre", "jig")})
HARP_REEL = frozenset({("instrument", "harp"), ("genre", "reel")})
FLUTE_REEL = frozenset({("instrument", "flute"), ("genre", "reel")})
PROMPTS = tuple(
    Prompt(id=str(i), text=f"tune {i}", attributes=tuple(sorted(asked)))
    for i, asked in enumerate((HARP_JIG, FLUTE_REEL, HARP_REEL, FLUTE_REEL, frozenset()))
)
TRAINED = frozenset({HARP_JIG, frozenset({("instrument", "flute"), ("genre", "jig")}), HARP_REEL})


def test_a_combination_is_new_though_its_parts_are_known() -> None:
    assert is_unseen(PROMPTS, TRAINED).tolist() == [False, True, False, True, False]
    assert not is_unseen(PROMPTS, frozenset()).any()


def test_figures_of_what_was_never_met_and_what_they_are_less() -> None:
    columns = {
        "reward": np.array([0.6, 0.2, 0.8, 0.4, 0.7]),
        "judge/tagger": np.array([1.0, np.nan, 0.0, np.nan, 1.0]),
        "judge/clipping": np.zeros(5),
    }
    result = EvaluationResult(prompts=PROMPTS, columns=columns)
    found = unseen_figures(result, TRAINED)
    assert list(found) == ["reward", "reward less that of others"]
    assert found["reward"].count == 2
    assert found["reward"].mean == pytest.approx(0.3)
    difference = found["reward less that of others"]
    assert difference.mean == pytest.approx(0.3 - 0.7)
    assert difference.standard_error == pytest.approx(np.hypot(0.1, 0.1 / np.sqrt(3)))
    assert unseen_figures(result, frozenset({*TRAINED, FLUTE_REEL})) == {}
