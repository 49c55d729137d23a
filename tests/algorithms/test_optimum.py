"""A problem small enough to list every sequence: where training ends, against what should be.

Four tokens (two steps of two streams, vocabularies 3 and 2) make 36 sequences. The policy is a
table with its own logits for every prefix, so only the algorithm can keep it from an optimum.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from musicrl.algorithms import make_algorithm
from musicrl.algorithms.base import Batch
from musicrl.algorithms.config import AlgorithmConfig
from musicrl.algorithms.functions import exact_kl, token_logprobs
from musicrl.policies.config import MusicLMConfig
from musicrl.policies.musiclm import MusicLM
from musicrl.sampler.sampling import SamplingConfig, log_probs
from musicrl.types import Experience, Prompt, RewardBatch, Rollouts
from musicrl.update import PolicyUpdate
from musicrl.update_config import UpdateConfig

SAMPLING = SamplingConfig(temperature=0.99)
ALPHA = 0.5
BETA = ALPHA / (1 - ALPHA)
MIX: dict[str, object] = {"alpha": ALPHA}
IN_REWARD: dict[str, object] = {"alpha": ALPHA, "kl_in": "reward", "kl_estimator": "k1"}


@dataclass(frozen=True)
class TableLayout:
    """Streams of given vocabularies, with nothing to decode."""

    vocab_sizes: tuple[int, ...]

    @property
    def stream_names(self) -> tuple[str, ...]:
        return tuple(f"stream{k}" for k in range(len(self.vocab_sizes)))

    @property
    def num_streams(self) -> int:
        return len(self.vocab_sizes)

    @property
    def vocab_size(self) -> int:
        return max(self.vocab_sizes)


class Table(nn.Module):
    """One row of `width` numbers for every prefix of every cell."""

    def __init__(self, layout: TableLayout, num_steps: int, width: int, seed: int = 0) -> None:
        super().__init__()
        self.layout = layout
        self.num_cells = num_steps * layout.num_streams
        num_prefixes = layout.vocab_size ** (self.num_cells - 1)
        generator = torch.Generator().manual_seed(seed)
        rows = 0.5 * torch.randn(self.num_cells, num_prefixes, width, generator=generator)
        self.rows = nn.Parameter(rows)

    def look_up(self, tokens: Tensor) -> Tensor:
        B, S, K = tokens.shape
        prefix, found = torch.zeros(B, dtype=torch.int64), []
        for t, token in enumerate(tokens.reshape(B, S * K).unbind(1)):
            found.append(self.rows[t, prefix])
            prefix = prefix * self.layout.vocab_size + token
        return torch.stack(found, dim=1).reshape(B, S, K, -1)


class TablePolicy(Table):
    def forward(self, tokens: Tensor, conditions: Tensor) -> Tensor:
        outside = torch.tensor(
            [[v >= size for v in range(self.layout.vocab_size)] for size in self.layout.vocab_sizes]
        )
        return self.look_up(tokens).masked_fill(outside, -torch.inf)


class TableValue(Table):
    def forward(self, tokens: Tensor, conditions: Tensor) -> Tensor:
        return self.look_up(tokens).squeeze(-1)


class Problem:
    """All sequences of a layout, a reference policy and a reward for each: about 0, and about 5 for
    the one that the reference finds least likely."""

    def __init__(
        self, reference: nn.Module, vocab_sizes: tuple[int, ...], num_steps: int, condition_len: int
    ) -> None:
        self.reference = reference
        self.vocab_sizes = vocab_sizes
        cells = [range(size) for _ in range(num_steps) for size in vocab_sizes]
        self.sequences = list(product(*cells))
        self.tokens = torch.tensor(self.sequences).reshape(-1, num_steps, len(vocab_sizes))
        self.conditions = torch.zeros(len(self.sequences), condition_len, dtype=torch.int64)
        self.log_reference = self.joint(self.reference).detach()
        self.rewards = 0.5 * torch.randn(
            len(self.sequences), generator=torch.Generator().manual_seed(1)
        )
        self.rewards[self.log_reference.argmin()] += 5.0

    def cells(self, policy: nn.Module) -> Tensor:
        """Log-distributions of every cell of every sequence."""
        return log_probs(policy(self.tokens, self.conditions), SAMPLING)

    def joint(self, policy: nn.Module) -> Tensor:
        """Log-probability of every sequence."""
        logp = token_logprobs(logprobs=self.cells(policy), tokens=self.tokens)
        return logp.sum((1, 2))

    def batch(self, policy: nn.Module, i: int) -> Batch:
        """The one sample of sequence `i`, drawn from `policy`."""
        rows = torch.tensor([i])
        logp = token_logprobs(logprobs=self.cells(policy), tokens=self.tokens).detach()
        reference = token_logprobs(logprobs=self.cells(self.reference), tokens=self.tokens)
        return Batch(
            conditions=self.conditions,
            tokens=self.tokens,
            behaviour_logprobs=logp,
            rewards=self.rewards,
            group=torch.zeros(len(self.sequences), dtype=torch.int64),
            reference_logprobs=reference.detach(),
        ).rows(rows)

    def closed_form(self) -> Tensor:
        """log pi* of every sequence: pi* ~ pi_ref exp(r / beta)."""
        return (self.log_reference + self.rewards / BETA).log_softmax(0)

    def fixed_point_of_the_mix(self) -> Tensor:
        """log pi of every sequence, from the last token backwards:
        pi(a|s) ~ pi_ref(a|s) exp(Q(s, a) / beta), Q(s, a) = E_pi[r | s, a]."""
        reference = dict(zip(self.sequences, self.log_reference.tolist(), strict=True))
        reward = dict(zip(self.sequences, self.rewards.tolist(), strict=True))
        log_joint: dict[tuple[int, ...], float] = {}

        def mass(prefix: tuple[int, ...]) -> float:
            found = [p for s, p in reference.items() if s[: len(prefix)] == prefix]
            return float(np.exp(found).sum())

        def solve(prefix: tuple[int, ...]) -> tuple[float, dict[tuple[int, ...], float]]:
            """E[r] below `prefix`, and the log-probabilities of its completions."""
            if prefix in reward:
                return reward[prefix], {prefix: 0.0}
            sizes = self.vocab_sizes
            below = [(*prefix, a) for a in range(sizes[len(prefix) % len(sizes)])]
            solved = [solve(s) for s in below]
            q = np.array([value for value, _ in solved])
            logits = np.log([mass(s) for s in below]) + q / BETA
            logp = logits - np.log(np.exp(logits).sum())
            joined = {
                s: p + float(logp[i]) for i, (_, part) in enumerate(solved) for s, p in part.items()
            }
            return float((np.exp(logp) * q).sum()), joined

        _, log_joint = solve(())
        return torch.tensor([log_joint[s] for s in self.sequences])

    def objective(self, log_joint: Tensor) -> float:
        """E[r] - beta KL(pi || pi_ref) of whole sequences."""
        gap = log_joint - self.log_reference
        return float((log_joint.exp() * (self.rewards - BETA * gap)).sum())

    def train(
        self,
        settings: dict[str, object],
        *,
        num_updates: int,
        learning_rate: float = 0.03,
        value_learning_rate: float = 0.03,
        value: nn.Module | None = None,
        num_samples: int = 2048,
    ) -> Tensor:
        """log pi of every sequence after training, starting from the reference."""
        algorithm = make_algorithm(AlgorithmConfig(**settings))  # type: ignore[arg-type]
        policy = copy.deepcopy(self.reference)
        config = UpdateConfig(
            learning_rate=learning_rate,
            value_learning_rate=value_learning_rate,
            microbatch_samples=2048,
            max_grad_norm=None,
        )
        update = PolicyUpdate(policy, algorithm, SAMPLING, config, value=value)
        for experience in self.samples(policy, num_updates, num_samples):
            update.step([experience])
        return self.joint(policy).detach()

    def samples(
        self, policy: nn.Module, num_updates: int, num_samples: int
    ) -> Iterator[Experience]:
        """Sequences drawn from the policy as it then is."""
        generator = torch.Generator().manual_seed(2)
        for _ in range(num_updates):
            with torch.no_grad():
                logp = token_logprobs(logprobs=self.cells(policy), tokens=self.tokens)
            drawn = logp.sum((1, 2)).exp().multinomial(num_samples, True, generator=generator)
            yield experience(
                self.tokens[drawn], self.conditions[drawn], logp[drawn], self.rewards[drawn]
            )


def experience(tokens: Tensor, conditions: Tensor, logp: Tensor, rewards: Tensor) -> Experience:
    B = len(tokens)
    rollouts = Rollouts(
        prompts=(Prompt(id="0", text=""),) * B,
        conditions=conditions.numpy().astype(np.int16),
        tokens=tokens.numpy().astype(np.int16),
        logprobs=logp.numpy(),
        group=np.zeros(B, np.int32),
        seeds=np.arange(B, dtype=np.uint64),
        version=np.zeros(B, np.int64),
    )
    scores = RewardBatch(total=rewards.numpy(), terms={}, valid=np.ones(B, np.bool_))
    return Experience(rollouts=rollouts, rewards=scores)


def divergence(log_p: Tensor, log_q: Tensor) -> float:
    return float((log_p.exp() * (log_p - log_q)).sum())


LAYOUT = TableLayout((3, 2))


def table_policy(seed: int) -> TablePolicy:
    return TablePolicy(LAYOUT, 2, LAYOUT.vocab_size, seed)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem(table_policy(seed=0), LAYOUT.vocab_sizes, num_steps=2, condition_len=1)


def table_value() -> TableValue:
    return TableValue(LAYOUT, 2, 1)


def gradient_in_expectation(problem: Problem, settings: dict[str, object]) -> Tensor:
    """E_pi of the loss's gradient: every sequence on its own, weighted by its probability."""
    config = AlgorithmConfig(baseline="none", **settings)  # type: ignore[arg-type]
    algorithm = make_algorithm(config)
    policy = table_policy(seed=3)
    total = torch.zeros_like(policy.rows)
    for i, weight in enumerate(problem.joint(policy).exp().tolist()):
        batch = problem.batch(policy, i)
        advantages = algorithm.advantages(batch, algorithm.returns(batch), None)
        own = log_probs(policy(batch.tokens, batch.conditions), SAMPLING)
        reference = log_probs(problem.reference(batch.tokens, batch.conditions), SAMPLING)
        loss = algorithm.loss(batch, advantages, own, reference.detach()).loss
        total += weight * torch.autograd.grad(loss, policy.rows)[0]
    return total


def brute_force_gradient(problem: Problem, *, beta: float) -> Tensor:
    """Of -(E[r] - beta KL(pi || pi_ref)), by differentiating the sum over all sequences."""
    policy = table_policy(seed=3)
    log_joint = problem.joint(policy)
    gap = log_joint - problem.log_reference
    loss = -(log_joint.exp() * (problem.rewards - beta * gap)).sum()
    return torch.autograd.grad(loss, policy.rows)[0]


def test_reinforce_has_the_gradient_of_the_expected_reward(problem: Problem) -> None:
    found = gradient_in_expectation(problem, {"alpha": 0.0})
    torch.testing.assert_close(found, brute_force_gradient(problem, beta=0.0), atol=1e-5, rtol=1e-4)


def test_kl_in_the_reward_has_the_gradient_of_the_sequence_kl(problem: Problem) -> None:
    found = gradient_in_expectation(problem, IN_REWARD)
    torch.testing.assert_close(
        found, brute_force_gradient(problem, beta=BETA), atol=1e-5, rtol=1e-4
    )


def test_the_mix_does_not_differentiate_the_distribution_of_the_states(problem: Problem) -> None:
    found = gradient_in_expectation(problem, MIX)
    policy = table_policy(seed=3)
    kl = exact_kl(logprobs=problem.cells(policy), reference=problem.cells(problem.reference))
    visits = problem.joint(policy).exp().detach()
    (of_kl,) = torch.autograd.grad((visits * kl.sum((1, 2))).sum(), policy.rows)
    of_reward = brute_force_gradient(problem, beta=0.0)
    torch.testing.assert_close(found, (1 - ALPHA) * of_reward + ALPHA * of_kl, atol=1e-5, rtol=1e-4)
    of_objective = (1 - ALPHA) * brute_force_gradient(problem, beta=BETA)
    assert (found - of_objective).abs().max() > 0.01


@pytest.mark.parametrize("baseline", ["value", "group_mean"])
def test_kl_in_the_reward_reaches_the_closed_form(problem: Problem, baseline: str) -> None:
    learned = problem.train(
        {**IN_REWARD, "baseline": baseline}, num_updates=250, value=table_value()
    )
    optimum = problem.closed_form()
    assert divergence(learned, optimum) < 0.01
    assert divergence(problem.log_reference, optimum) > 0.5
    assert problem.objective(optimum) == pytest.approx(
        float((problem.log_reference + problem.rewards / BETA).logsumexp(0)) * BETA,
        abs=1e-4,
    )


def test_the_mix_reaches_its_own_fixed_point_beside_the_closed_form(problem: Problem) -> None:
    learned = problem.train(MIX, num_updates=250, value=table_value())
    optimum = problem.closed_form()
    assert divergence(learned, problem.fixed_point_of_the_mix()) < 0.01
    assert divergence(learned, optimum) > 0.5
    kl, optimal_kl = (divergence(x, problem.log_reference) for x in (learned, optimum))
    assert kl > 2 * optimal_kl
    assert problem.objective(learned) < problem.objective(optimum) - 0.5


def test_the_mix_reaches_the_closed_form_of_a_single_token() -> None:
    layout = TableLayout((4,))
    problem = Problem(TablePolicy(layout, 1, 4), (4,), num_steps=1, condition_len=1)
    learned = problem.train(MIX, num_updates=200, value=TableValue(layout, 1, 1))
    assert divergence(learned, problem.closed_form()) < 0.01
    assert divergence(problem.log_reference, problem.closed_form()) > 0.1


def test_the_real_policy_reaches_the_closed_form_too() -> None:
    torch.manual_seed(0)
    config = MusicLMConfig(
        semantic_vocab=3,
        coarse_vocab=2,
        coarse_levels=1,
        codec_frames_per_step=1,
        num_steps=2,
        condition_levels=1,
        condition_vocab=2,
        width=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        depth_width=16,
        depth_layers=1,
        depth_heads=2,
    )
    problem = Problem(MusicLM(config), (3, 2), num_steps=2, condition_len=1)
    learned = problem.train(
        IN_REWARD, num_updates=300, num_samples=256, learning_rate=0.005, value_learning_rate=0.01
    )
    assert divergence(learned, problem.closed_form()) < 0.01
    assert divergence(problem.log_reference, problem.closed_form()) > 0.5
