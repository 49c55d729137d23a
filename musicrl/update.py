"""One update of the policy: experience in, new weights and figures out, in one process.

Owns the policy, its frozen reference, the value network and their optimizers. Knows no sampler, no
reward and no other process; the algorithm says what to minimise, `sampling.log_probs` what the
policy's distribution is.

    experience -> reference log-probs -> returns -> values -> advantages -> gradient -> version + 1
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from musicrl.algorithms.base import Algorithm, Batch, LossOut
from musicrl.algorithms.collate import collate, reward_metrics
from musicrl.algorithms.functions import token_logprobs
from musicrl.algorithms.report import advantage_metrics, mismatch_metrics, policy_metrics
from musicrl.checkpoint import load_into
from musicrl.optimizer import Optimizer, choose_parts
from musicrl.policies.base import Policy
from musicrl.policies.flat import digest, flatten, split
from musicrl.policies.recompute import layers, recompute
from musicrl.policies.value import make_value_network
from musicrl.ranks import Alone, Ranks
from musicrl.sampler.sampling import SamplingConfig, grid_log_probs
from musicrl.types import Experience, Weights
from musicrl.update_config import UpdateConfig


class PolicyUpdate:
    """The learner's work, without its process. Deterministic for given experience and threads.

    Networks are kept in evaluation mode: dropout would make the learner's log-probabilities differ
    from the sampler's. Losses are sums over the tokens of a clip, means over the clips of a step.
    """

    def __init__(
        self,
        policy: nn.Module,
        algorithm: Algorithm,
        sampling: SamplingConfig,
        config: UpdateConfig,
        *,
        reference: nn.Module | None = None,
        value: nn.Module | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """`policy` is trained in place. `reference` is what the KL is measured to, and is frozen (none:
        a copy of the policy as it is now); `value` maps tokens [B, S, K] and conditions [B, C] to
        values [B, S, K] (none: made from the policy, if the algorithm needs one); `ranks`
        share the work, and must all be given the same experience (none: alone)."""
        self.policy = policy.eval()
        self.algorithm = algorithm
        self.sampling = sampling
        self.config = config
        self.version = 0
        self._streams = cast(Policy, policy).layout.stream_names
        self._reference = self._frozen(policy, reference)
        choose_parts(policy, config.parts)
        self._value: nn.Module | None = None
        self._value_offset: float | None = None  # mean return of the first update
        if algorithm.needs_value:
            self._value = (make_value_network(policy) if value is None else value).eval()
        if config.gradient_checkpointing:
            recompute(self.policy, self._value)
        self.share(ranks or Alone())

    def share(self, ranks: Ranks) -> None:
        """Do the updates, from the first one on, as one of several ranks. Of a `state_dict` too all
        ranks that hold parts must ask, and of `weights`."""
        assert self.version == 0
        self.ranks = ranks
        for network in (self.policy, self._reference, self._value):
            if network is not None:
                ranks.spread(network, layers(network))
        self._optimizer = Optimizer(self.policy, self.config.policy_optimizer, ranks)
        if self._value is not None:
            self._value_optimizer = Optimizer(self._value, self.config.value_optimizer, ranks)

    def _frozen(self, policy: nn.Module, reference: nn.Module | None) -> nn.Module | None:
        if not (
            self.algorithm.needs_reference_tokens or self.algorithm.needs_reference_distribution
        ):
            return None
        found = copy.deepcopy(policy) if reference is None else reference
        return found.eval().requires_grad_(False)

    def step(self, experience: Sequence[Experience]) -> dict[str, float]:
        """Train on `experience`, in the given order, and return the figures of the update.

        Samples with a failed or non-finite reward take no part. A step whose loss or gradient is
        not finite is skipped and counted in `update/skipped`. The version goes up in any case.
        """
        batch, metrics = self._collate(experience)
        if batch.num_samples == 0:
            metrics["update/skipped"] = 1.0
        else:
            is_current = all((e.rollouts.version == self.version).all() for e in experience)
            with self.ranks.watch():
                metrics |= self._train(batch, is_current=is_current)
        self.version += 1
        metrics["update/version"] = float(self.version)
        return metrics

    def _collate(self, experience: Sequence[Experience]) -> tuple[Batch, dict[str, float]]:
        batch, valid = collate(experience, device=next(self.policy.parameters()).device)
        num_streams = batch.tokens.shape[2]
        if num_streams != len(self._streams):
            raise ValueError(
                f"rollouts of {num_streams} streams do not fit a policy of {len(self._streams)}"
            )
        metrics = {
            "update/samples": float(valid.sum()),
            "update/invalid_samples": float((~valid).sum()),
            **reward_metrics(experience, valid),
        }
        return batch, metrics

    def _train(self, batch: Batch, *, is_current: bool) -> dict[str, float]:
        """`is_current`: all samples are of the weights that this update starts from."""
        if self.algorithm.needs_reference_tokens:
            batch = replace(batch, reference_logprobs=self._token_logprobs(self._reference, batch))
        is_held = self.version < self.config.value_warmup_steps
        rates = {name: 0.0 if is_held else r for name, r in self._optimizer.rates.items()}
        step = _Step(is_held=is_held, rates=rates)
        returns = self.algorithm.returns(batch)
        is_first = self._value is not None and self._value_offset is None
        if is_first and returns.mean().isfinite():
            self._value_offset = float(returns.mean())
        if self.algorithm.needs_current:
            batch = replace(
                batch,
                current_logprobs=self._token_logprobs(self.policy, batch),
                values=self._values_now(batch),
            )
            returns = self.algorithm.returns(batch)
        values = self._values(batch, returns, step)
        advantages = self.algorithm.advantages(batch, returns, values)
        for rows in self._minibatches(batch.num_samples):
            if values is not None and self.config.num_steps > 1:
                self._value_step(batch, returns, rows, step)
            self._policy_step(batch, advantages, rows, step)
            if is_current and not step.mismatch:
                step.mismatch = mismatch_metrics(step.outs)
        metrics = self._metrics(step) | advantage_metrics(
            advantages=advantages, returns=returns, values=values, streams=self._streams
        )
        if "kl/sequence" in metrics and not step.is_held:
            self.algorithm.adapt(metrics["kl/sequence"])
        return metrics

    def _values(self, batch: Batch, returns: Tensor, step: _Step) -> Tensor | None:
        """Values before this update learns; where it makes a single step, that step is taken here,
        which saves a forward pass."""
        if self._value is None:
            return None
        if self.config.num_steps == 1:
            return self._value_step(batch, returns, torch.arange(batch.num_samples), step)
        return self._values_now(batch)

    @torch.no_grad()
    def _values_now(self, batch: Batch) -> Tensor:
        rows = torch.arange(batch.num_samples)
        parts = [(self._predict(batch, p.rows), p.weight) for p in self._passes(batch, rows)]
        counted = [values for values, weight in parts if weight]
        return self.ranks.join(counted, batch.behaviour_logprobs)

    def _predict(self, batch: Batch, rows: Tensor) -> Tensor:
        """Values of some samples: the network's output, which starts at 0, and the offset."""
        assert self._value is not None
        with self._autocast():
            values: Tensor = self._value(batch.tokens[rows], batch.conditions[rows])
        return values + (self._value_offset or 0.0)

    def _value_step(self, batch: Batch, returns: Tensor, rows: Tensor, step: _Step) -> Tensor:
        """One step on sum_t (G_t - V(s_t))^2 (paper section 3.2); the values before it."""
        total, parts = 0.0, []
        for part in self._passes(batch, rows):
            values = self._predict(batch, part.rows)
            loss = part.weight * (returns[part.rows] - values).square().sum() / len(rows)
            loss.backward()
            total += float(loss.detach())
            if part.weight:
                parts.append(values.detach())
        total = self.ranks.add_up(self._value_optimizer.parameters, total)
        step.value_norms.append(self._value_optimizer.step(total))
        return self.ranks.join(parts, returns[rows])

    def _policy_step(self, batch: Batch, advantages: Tensor, rows: Tensor, step: _Step) -> None:
        total, outs = 0.0, list[LossOut]()
        for part in self._passes(batch, rows):
            with torch.set_grad_enabled(not step.is_held):
                out = self._loss(batch.rows(part.rows), advantages[part.rows])
                loss = part.weight * out.loss / len(rows)
            if not step.is_held:
                loss.backward()
            total += float(loss.detach())
            if part.weight:
                outs.append(replace(out, loss=out.loss.detach()))
        learning = [] if step.is_held else self._optimizer.parameters
        total = self.ranks.add_up(learning, total)
        step.outs += self._joined(outs, batch.behaviour_logprobs[rows])
        step.losses.append(total)
        if not step.is_held:
            step.policy_norms.append(self._optimizer.step(total))

    def _joined(self, outs: list[LossOut], like: Tensor) -> list[LossOut]:
        """The figures of all ranks' rows, each of the shape of `like`."""
        if self.ranks.size == 1:
            return outs
        join, kl = self.ranks.join, [out.kl for out in outs if out.kl is not None]
        return [
            LossOut(
                loss=torch.zeros(()),  # added up already
                ratio=join([out.ratio for out in outs], like),
                entropy=join([out.entropy for out in outs], like),
                kl=None if self._reference is None else join(kl, like),
            )
        ]

    def _loss(self, batch: Batch, advantages: Tensor) -> LossOut:
        logprobs = self._logprobs(self.policy, batch)
        reference = None
        if self.algorithm.needs_reference_distribution:
            reference = self._reference_logprobs(batch)
        return self.algorithm.loss(batch, advantages, logprobs, reference)

    @torch.no_grad()
    def _reference_logprobs(self, batch: Batch) -> Tensor:
        assert self._reference is not None
        return self._logprobs(self._reference, batch)

    def _logprobs(self, policy: nn.Module, batch: Batch) -> Tensor:
        """Log-distribution [B, S, K, V] of every cell, nats."""
        with self._autocast():
            return grid_log_probs(policy, batch.tokens, batch.conditions, self.sampling, batch.kept)

    def _autocast(self) -> torch.autocast:
        device = next(self.policy.parameters()).device.type
        is_on = self.config.precision == "bfloat16"
        return torch.autocast(device, torch.bfloat16, enabled=is_on)

    @torch.no_grad()
    def _token_logprobs(self, policy: nn.Module | None, batch: Batch) -> Tensor:
        """Log-probability [B, S, K] of every token, nats."""
        assert policy is not None
        found = []
        for part in self._passes(batch, torch.arange(batch.num_samples)):
            clips = batch.rows(part.rows)
            cells = token_logprobs(logprobs=self._logprobs(policy, clips), tokens=clips.tokens)
            if part.weight:
                found.append(cells)
        return self.ranks.join(found, batch.behaviour_logprobs)

    def _minibatches(self, num_samples: int) -> Iterator[Tensor]:
        """Rows of each optimizer step; their order depends on the version and the epoch only."""
        for epoch in range(self.config.epochs):
            rows = torch.arange(num_samples)
            if self.config.minibatches > 1:
                seed = self.version * self.config.epochs + epoch
                rows = torch.randperm(num_samples, generator=torch.Generator().manual_seed(seed))
            yield from (part for part in rows.tensor_split(self.config.minibatches) if len(part))

    def _passes(self, batch: Batch, rows: Tensor) -> list[_Pass]:
        """This rank's forward (and backward) passes over rows of the batch."""
        share = self.ranks.share(rows)
        size = self.config.pass_size(batch.tokens[0].numel())
        own = [_Pass(part) for part in torch.split(share, size)] if len(share) else []
        idle = self.ranks.num_passes(len(rows), size) - len(own)
        return own + [_Pass(rows[:1], weight=0.0)] * idle

    def _metrics(self, step: _Step) -> dict[str, float]:
        norms = {"policy": step.policy_norms, "value": step.value_norms}
        sound = {name: [n for n in found if n is not None] for name, found in norms.items()}
        return {
            "update/skipped": float(sum(found.count(None) for found in norms.values())),
            **{f"update/{name}": rate for name, rate in step.rates.items()},
            "kl/alpha": self.algorithm.alpha,
            "policy/loss": fmean(step.losses),
            **{f"{name}/grad_norm": fmean(n) for name, n in sound.items() if n},
            **step.mismatch,
            **policy_metrics(step.outs, algorithm=self.algorithm, streams=self._streams),
        }

    def weights(
        self, version: int | None = None, *, out: NDArray[np.float32] | None = None
    ) -> Weights:
        """The policy's weights to publish, as `version` (none: this update's own); `out` as in
        `flatten`."""
        with self.ranks.watch():
            return flatten(self.policy, self.version if version is None else version, out=out)

    def _reference_digest(self) -> str:
        if self._reference is None:
            return ""
        with self.ranks.watch():
            return digest(split(flatten(self._reference, 0)).values())

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that continues this run bit for bit: named tensors, and numbers for JSON.

        The reference is not among them: it is made again from where the run started, and checked.
        """
        with self.ranks.watch():
            tensors = self._tensors()
        state: dict[str, Any] = {
            "version": self.version,
            "alpha": self.algorithm.alpha,
            "num_steps": self._optimizer.num_steps,
            "reference": self._reference_digest(),
            "parts": list(self.config.parts),
            "has_muon": self.config.muon_learning_rate is not None,
        }
        if self._value is not None:
            state["value_offset"] = self._value_offset
            state["value_num_steps"] = self._value_optimizer.num_steps
        return tensors, state

    def _tensors(self) -> dict[str, Tensor]:
        tensors = _prefixed("policy", self.policy.state_dict())
        tensors |= _prefixed("policy_optimizer", self._optimizer.tensors())
        if self._value is not None:
            tensors |= _prefixed("value", self._value.state_dict())
            tensors |= _prefixed("value_optimizer", self._value_optimizer.tensors())
        return tensors

    def load_state_dict(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`.

        Raises ValueError when it belongs to another reference, algorithm or network.
        """
        if state["reference"] != self._reference_digest():
            raise ValueError("the checkpoint was trained against another reference policy")
        if state["parts"] != list(self.config.parts):
            raise ValueError("the checkpoint was trained with other update.parts")
        if state["has_muon"] != (self.config.muon_learning_rate is not None):
            raise ValueError("the checkpoint was trained with another update.muon_learning_rate")
        if ("value_num_steps" in state) != (self._value is not None):
            raise ValueError("the checkpoint was trained with another algorithm.baseline")
        load_into(self.policy, _under("policy", tensors), origin="checkpoint (policy)")
        self._optimizer.load(_under("policy_optimizer", tensors), num_steps=state["num_steps"])
        if self._value is not None:
            load_into(self._value, _under("value", tensors), origin="checkpoint (value)")
            moments = _under("value_optimizer", tensors)
            self._value_optimizer.load(moments, num_steps=state["value_num_steps"])
            self._value_offset = state["value_offset"]
        self.algorithm.alpha = state["alpha"]
        self.version = state["version"]


@dataclass(frozen=True, slots=True)
class _Pass:
    """What goes through a network at once."""

    rows: Tensor
    """int64 [b], of the batch."""
    weight: float = 1.0
    """0: another rank's rows, run for its company alone, and without effect."""


class _Step:
    """What one update has done so far."""

    def __init__(self, *, is_held: bool, rates: Mapping[str, float]) -> None:
        self.is_held = is_held
        self.rates = rates
        self.outs: list[LossOut] = []
        self.mismatch: dict[str, float] = {}
        self.losses: list[float] = []
        self.policy_norms: list[float | None] = []
        self.value_norms: list[float | None] = []


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor.detach().clone() for name, tensor in tensors.items()}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}/"
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
