"""REINFORCE, KL-regularised: the algorithm of the paper (section 3.2).

Where it ends. With the KL in the REWARD the gradient is that of E[r] - beta KL(pi || pi_ref) of
whole sequences, whose maximum is pi* ~ pi_ref exp(r / beta). With the paper's mix (KL in the LOSS)
the KL of a state is differentiated where it is, not through the distribution of the states: no
action answers for the KL that it makes later actions pay. Setting the gradient of every state to
zero gives

    pi(a|s) ~ pi_ref(a|s) exp(Q(s, a) / beta),  Q(s, a) = E_pi[r | s, a],  beta = alpha/(1-alpha)

with Q WITHOUT the KL to go (solved from the last token backwards). For one token it is pi*. For
more it overspends KL on prefixes whose good continuations the reference finds unlikely, and reaches
a lower E[r] - beta KL. tests/algorithms/test_optimum.py trains to both: where the least likely of
36 four-token sequences pays 5 beta, the mix ends 0.65 nats from pi*, at 4.0 nats from the reference
in place of 1.2, its objective 0.64 lower. So alpha prices KL per state; read `kl/sequence`.
"""

from __future__ import annotations

from torch import Tensor

from musicrl.algorithms import functions
from musicrl.algorithms.config import AlgorithmConfig
from musicrl.algorithms.gradient import PolicyGradient


def reinforce(config: AlgorithmConfig) -> PolicyGradient:
    """-A_t log pi(a_t|s_t), on-policy; with `importance_cap` (ours) each token of a stale sample
    is weighted by its truncated importance ratio. The KL term is never re-weighted."""
    cap = config.importance_cap
    if cap is None:
        return PolicyGradient(config, _on_policy)

    def weighted(logp: Tensor, ratio: Tensor, advantages: Tensor) -> Tensor:
        weight = ratio.detach().clamp(max=cap)
        return functions.reinforce_loss(logp=logp, advantages=advantages, weight=weight)

    return PolicyGradient(config, weighted, lambda ratio: ratio > cap)


def _on_policy(logp: Tensor, ratio: Tensor, advantages: Tensor) -> Tensor:
    return functions.reinforce_loss(logp=logp, advantages=advantages)
