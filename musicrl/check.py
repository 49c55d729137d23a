"""Settings of different packages that contradict each other: refused before a run starts.

Each package refuses its own contradictions when its configuration is made; here are the pairs that
no single package sees.
"""

from __future__ import annotations

from musicrl.algorithms.config import AlgorithmConfig
from musicrl.update_config import UpdateConfig


def check_settings(
    *,
    algorithm: AlgorithmConfig,
    update: UpdateConfig,
    samples_per_prompt: int,
    max_lag: int,
    reuse: int,
    is_replayed: bool,
) -> None:
    """Refuse settings of a run that contradict each other or that nothing would read; samples that
    are replayed may be of any policy.

    Raises ValueError, one sentence that names the fields.
    """
    is_on_policy = update.num_steps == 1 and max_lag == 0 and not is_replayed
    has_value = algorithm.baseline == "value"
    is_plain = algorithm.name == "reinforce" and algorithm.importance_cap is None
    refused = {
        "algorithm.name 'ppo' never clips with update.epochs 1, update.minibatches 1 and max_lag 0:"
        " every ratio is 1": algorithm.name == "ppo" and is_on_policy,
        "algorithm.importance_cap is unused with update.epochs 1, update.minibatches 1 and "
        "max_lag 0: every ratio is 1": algorithm.importance_cap is not None and is_on_policy,
        "update.epochs or update.minibatches above 1 need algorithm.name 'ppo' or "
        "algorithm.importance_cap": update.num_steps > 1 and is_plain,
        "replay.reuse above 1 needs algorithm.name 'ppo' or algorithm.importance_cap": (
            reuse > 1 and is_plain
        ),
        "algorithm.baseline 'group_mean' needs samples_per_prompt of 2 or more": (
            algorithm.baseline == "group_mean" and samples_per_prompt < 2
        ),
        "update.value_learning_rate is read only with algorithm.baseline 'value'": (
            update.value_learning_rate is not None and not has_value
        ),
        "update.value_warmup_steps is read only with algorithm.baseline 'value'": (
            update.value_warmup_steps > 0 and not has_value
        ),
    }
    for reason, is_refused in refused.items():
        if is_refused:
            raise ValueError(reason)
