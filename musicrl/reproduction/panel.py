"""Who compares the models: simulated raters that training never met, and judges that it never saw.

A simulated rater marks a clip 1 to 5 (paper section 4.3): its utility, as `prefs simulate` models
it, with the noise that makes two raters agree as configured, cut into five grades. The population
is that of `prefs simulate`; tastes and noise are drawn anew. One panel hears text adherence and
quality through the rewarded models, as the choices did that the preference model learned from; the
other through the judges', which no reward and no choice ever met. Every name says what is simulated.

Axes: L models, P prompts, R raters, M marked pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from musicrl.bounds import at_least
from musicrl.evaluation.judges import EMBEDDING, NO_QUALITY, QUALITY
from musicrl.evaluation.winrate import Marks
from musicrl.preference.raters import Pairs, SimulatedRaterConfig, SimulatedRaters
from musicrl.preference.simulate import MEASURES
from musicrl.reproduction.measured import Measured

Floats = NDArray[np.float64]
STREAM = 0x7A1E
"""Opens the seeds of these raters: `prefs simulate` draws from generators of another kind."""
EDGES = np.array([-1.5, -0.5, 0.5, 1.5])
"""Between the five grades, in deviations of what is felt of the base's clips."""
GUMBEL_MEAN, GUMBEL_DEVIATION = float(np.euler_gamma), float(np.pi / np.sqrt(6))
JUDGED: Mapping[str, str] = {"text": f"judge/{EMBEDDING}", "quality": f"judge/{QUALITY}"}
"""Where the held-out judges' scores stand, by the term that they take the place of."""
SIMULATED, SIMULATED_JUDGE = "simulated raters", "simulated raters, held-out judge"


class Panel(Protocol):
    """Marks clips of two models for the same prompts."""

    name: str

    def marks(self, a: str, b: str) -> Marks: ...

    def changes(self, model: str) -> dict[str, Floats]:
        """What a model's clips have more than the base's of each term that all like, float64 [P]
        each, in deviations among clips of a prompt; none where there are no terms."""
        ...


@dataclass(frozen=True, kw_only=True)
class PanelConfig:
    """Simulated raters of the evaluation."""

    rater: SimulatedRaterConfig = field(default_factory=SimulatedRaterConfig)
    """The population that they are drawn from."""
    raters_per_pair: int = 15
    """Raters of every pair of clips. The paper has 3; simulated ones cost nothing, and intervals
    are over prompts, whatever their number."""
    seed: int = 0
    """Of their tastes and noise: never those of `prefs simulate`, whatever its seed."""

    def __post_init__(self) -> None:
        if not 1 <= self.raters_per_pair <= self.rater.raters:
            raise ValueError(
                f"raters_per_pair must be 1 to {self.rater.raters}, the raters there are, "
                f"got {self.raters_per_pair}"
            )
        at_least(0, seed=self.seed)


class JudgePanel:
    """A model that is no reward, as a rater: its score is the mark, so that ties are rare."""

    def __init__(self, name: str, column: str, models: Mapping[str, Measured]) -> None:
        self.name = name
        self._scores = {model: m.result.columns[column] for model, m in models.items()}

    def marks(self, a: str, b: str) -> Marks:
        """One pair a prompt, [P]."""
        return Marks(a=self._scores[a], b=self._scores[b], prompt=np.arange(len(self._scores[a])))

    def changes(self, model: str) -> dict[str, Floats]:
        return {}


class SimulatedPanel:
    """Raters of the clips of L models, on the scale of the base's.

    `base` and `control` are two of the models: two clips of every prompt by the same policy, among
    which utilities deviate by 1 and the noise is set.
    """

    def __init__(
        self,
        name: str,
        models: Mapping[str, Measured],
        *,
        heard: Mapping[str, str],
        base: str,
        control: str,
        config: PanelConfig,
        seed: int,
    ) -> None:
        """`heard` names the columns of terms that are not heard as they were rewarded. Raises
        ValueError naming a term that was not measured."""
        self.name = name
        self._names, self._config, self._seed = list(models), config, seed
        pair = self._names.index(base), self._names.index(control)
        weights = {term: weight for term, weight in config.rater.weights.items() if weight}
        self._terms = {term: on_scale(_scores(term, models, heard), pair) for term in weights}
        """float64 [L, P] each."""
        shared = np.zeros((len(models), len(models[base].result.prompts)))
        for term, weight in weights.items():
            shared += weight * self._terms[term]
        tastes = self._tastes(models, pair)
        self._raters = SimulatedRaters(
            shared.ravel(), tastes.reshape(len(tastes), -1), config.rater, _known(shared, pair)
        )
        self._base, self._num_prompts = pair[0], shared.shape[1]
        self._felt: Floats = (self._raters.utilities / self._raters.temperature).reshape(
            tastes.shape
        )
        """float64 [R, L, P], in units of the noise."""
        self._edges = _edges(self._felt[:, pair[0]])

    def marks(self, a: str, b: str) -> Marks:
        """Marks of both models' clips by `raters_per_pair` raters a prompt, in an order each."""
        first, second = self._names.index(a), self._names.index(b)
        rater, count = self._config.rater, self._config.raters_per_pair
        rng = np.random.default_rng((STREAM, self._config.seed, self._seed, first, second))
        prompt = np.repeat(np.arange(self._num_prompts), count)
        who = [rng.choice(rater.raters, count, replace=False) for _ in range(self._num_prompts)]
        felt = self._felt[np.concatenate(who), :, prompt]
        bias = rater.position_bias / 2 * rng.choice([1.0, -1.0], len(prompt))
        is_awake = rng.random(len(prompt)) >= rater.lapse
        return Marks(
            a=self._grade(felt[:, first], bias, is_awake, rng),
            b=self._grade(felt[:, second], -bias, is_awake, rng),
            prompt=prompt,
        )

    def changes(self, model: str) -> dict[str, Floats]:
        row = self._names.index(model)
        return {term: scores[row] - scores[self._base] for term, scores in self._terms.items()}

    @property
    def _centre(self) -> float:
        """What a rater feels who did not listen, before noise."""
        return float(self._edges.mean()) - GUMBEL_MEAN

    def _grade(
        self, felt: Floats, bias: Floats, is_awake: NDArray[np.bool_], rng: np.random.Generator
    ) -> Floats:
        """Marks 1 to 5 of what is felt [M], NaN where nothing is. The noise is Gumbel's: the
        difference of two is the logistic one under which Bradley and Terry's rater chooses."""
        heard = np.where(is_awake, felt + bias, self._centre) + rng.gumbel(size=len(felt))
        grades = 1.0 + (heard[:, None] > self._edges).sum(1)
        return np.where(np.isfinite(felt), grades, np.nan)

    def _tastes(self, models: Mapping[str, Measured], pair: tuple[int, int]) -> Floats:
        """Tastes [R, L, P]: clips along a direction of the judge's embedding for each rater. The
        directions cancel over the raters; two clips of the base deviate by 1 over all of them."""
        clips: Floats = np.stack([m.clips.embeddings["judge"] for m in models.values()])
        rng = np.random.default_rng((STREAM, self._config.seed, self._seed))
        directions = rng.normal(size=(self._config.rater.raters, clips.shape[2]))
        directions -= directions.mean(0)
        tastes = np.einsum("rd,lpd->rlp", directions, clips - clips[pair[0]])
        change = tastes[:, pair[1]] - tastes[:, pair[0]]
        unit: Floats = tastes / np.sqrt(np.nanmean(change**2) / 2)
        return unit


def on_scale(scores: Floats, pair: tuple[int, int]) -> Floats:
    """Scores [L, P] less the base's mean, so that two clips of the base for one prompt deviate by
    1; where they never differ, so that the clips of all models for one prompt do.

    What is the same for all clips of every prompt stays 0: nobody can choose by it.
    """
    base, again = scores[pair[0]], scores[pair[1]]
    deviation = np.sqrt(np.nanmean((base - again) ** 2) / 2)
    if not deviation > 1e-9:
        deviation = np.sqrt(np.nanmean((scores - np.nanmean(scores, 0)) ** 2))
    scaled: Floats = (scores - np.nanmean(base)) / max(float(deviation), 1e-9)
    return scaled


def column_of(term: str, heard: Mapping[str, str]) -> str:
    """Where a term of a rater's utility stands among the measured columns."""
    usual = f"judge/{term}" if term in MEASURES else f"reward/{term}"
    return heard.get(term, usual)


def _scores(term: str, models: Mapping[str, Measured], heard: Mapping[str, str]) -> Floats:
    """A term of all models, float64 [L, P]. Raises ValueError when it was not measured."""
    column = column_of(term, heard)
    for measured in models.values():
        if column not in measured.result.columns:
            hint = f": {NO_QUALITY}" if column == JUDGED["quality"] else ""
            raise ValueError(f"the raters' term {term!r} needs {column!r}, not measured{hint}")
    return np.stack([m.result.columns[column] for m in models.values()])


def panels_of(
    models: Mapping[str, Measured], *, base: str, control: str, config: PanelConfig, seed: int
) -> list[Panel]:
    """All who compare the models; the first one's verdict counts. `seed` is the run's."""

    def simulated(name: str, heard: Mapping[str, str]) -> SimulatedPanel:
        return SimulatedPanel(
            name,
            models,
            heard=heard,
            base=base,
            control=control,
            config=config,
            seed=seed,
        )

    return [
        simulated(SIMULATED_JUDGE, JUDGED),
        simulated(SIMULATED, {}),
        JudgePanel("judge: embedding", "judge/embedding", models),
        JudgePanel("judge: tagger", "judge/tagger", models),
    ]


def _known(shared: Floats, pair: tuple[int, int]) -> Pairs:
    """Pairs of the base's two clips of each prompt, where both have a utility."""
    P = shared.shape[1]
    (known,) = np.nonzero(np.isfinite(shared[list(pair)]).all(0))
    return Pairs(first=known + pair[0] * P, second=known + pair[1] * P)


def _edges(felt: Floats) -> Floats:
    """Between the grades, for what R raters feel of P clips of the base, [R, P]."""
    spread = np.sqrt(np.nanvar(felt) + GUMBEL_DEVIATION**2)
    edges: Floats = np.nanmean(felt) + GUMBEL_MEAN + spread * EDGES
    return edges
