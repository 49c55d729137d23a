"""The settings of an update: rates, which parts learn, how the samples are cut. It runs nothing."""

from __future__ import annotations

from dataclasses import dataclass

from musicrl.optimizer import OptimizerConfig
from musicrl.sampler.sampling import Precision


@dataclass(frozen=True, kw_only=True)
class UpdateConfig:
    """How an update steps. The paper gives none of these numbers."""

    learning_rate: float = 1e-4
    """Of what Adam steps of the policy. Where every rate is 0, weights stay and figures are still
    reported."""
    parts: tuple[str, ...] = ()
    """Parts of the policy that learn, by how the names of their parameters start (none: all). The
    value network learns whole."""
    muon_learning_rate: float | None = None
    """Of the policy's linear layers and embeddings, when Muon steps them (none: Adam does). It
    makes their momentum orthogonal: a step of this length in every direction of a linear layer (of
    sqrt(rows / columns) times it in a tall one), and of sqrt(width) times it in an embedding."""
    muon_momentum: float | None = None
    """Decay of Muon's momentum (none: 0.95)."""
    value_learning_rate: float | None = None
    """Of the value network (none: as the policy's)."""
    warmup_steps: int = 0
    """Steps over which each learning rate rises linearly."""
    decay_steps: int = 0
    """Optimizer steps over which each learning rate falls linearly to a tenth (0: it stays). What
    the noise of single updates moved is pulled back while steps shrink."""
    value_warmup_steps: int = 0
    """First updates in which the value network learns and the policy is held."""
    microbatch_samples: int | None = None
    """Clips of one forward and backward pass (none: 16, or what microbatch_tokens says); changes
    memory, not the gradient."""
    microbatch_tokens: int | None = None
    """Tokens of one forward and backward pass, in place of a number of clips: as many whole clips as
    fit, one at least (none: microbatch_samples says)."""
    gradient_checkpointing: bool = False
    """Keep only the inputs of every layer and run it again in the backward pass: a third more work,
    for activations of one layer at a time. The gradient stays the same."""
    precision: Precision = "float32"
    """Of the networks' products with weights: "bfloat16" is faster where the processor has it; sums,
    losses, gradients and weights stay float32."""
    epochs: int = 1
    """Passes over the samples of an update."""
    minibatches: int = 1
    """Optimizer steps of an epoch, each on its part of the samples."""
    max_grad_norm: float | None = 1.0
    """Gradients of each network are scaled down to this norm (none: never)."""
    adam_beta1: float = 0.9
    adam_beta2: float = 0.99
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.microbatch_samples is not None and self.microbatch_tokens is not None:
            raise ValueError(
                f"update: microbatch_samples {self.microbatch_samples} and microbatch_tokens "
                f"{self.microbatch_tokens} both say how much a pass takes; give one of them"
            )
        counts = {
            "microbatch_samples": self.pass_size(1),
            "microbatch_tokens": 1 if self.microbatch_tokens is None else self.microbatch_tokens,
            "epochs": self.epochs,
            "minibatches": self.minibatches,
        }
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"update: {name} must be 1 or more, got {count}")
        amounts = {
            "learning_rate": self.learning_rate,
            "value_learning_rate": self.value_learning_rate or 0.0,
            "muon_learning_rate": self.muon_learning_rate or 0.0,
            "warmup_steps": self.warmup_steps,
            "decay_steps": self.decay_steps,
            "value_warmup_steps": self.value_warmup_steps,
            "weight_decay": self.weight_decay,
        }
        for name, amount in amounts.items():
            if not amount >= 0:
                raise ValueError(f"update: {name} must not be negative, got {amount}")
        decays = {
            "adam_beta1": self.adam_beta1,
            "adam_beta2": self.adam_beta2,
            "muon_momentum": self.muon_momentum or 0.0,
        }
        for name, beta in decays.items():
            if not 0 <= beta < 1:
                raise ValueError(f"update: {name} must be in [0, 1), got {beta}")
        if self.muon_momentum is not None and self.muon_learning_rate is None:
            raise ValueError("update: muon_momentum is read only with a muon_learning_rate")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"update: max_grad_norm must be above 0, got {self.max_grad_norm}")

    def pass_size(self, clip_tokens: int) -> int:
        """Clips of one forward and backward pass, of so many tokens each."""
        if self.microbatch_tokens is not None:
            return max(1, self.microbatch_tokens // clip_tokens)
        return 16 if self.microbatch_samples is None else self.microbatch_samples

    @property
    def num_steps(self) -> int:
        """Optimizer steps of one update."""
        return self.epochs * self.minibatches

    @property
    def policy_optimizer(self) -> OptimizerConfig:
        return self._optimizer(self.learning_rate, self.muon_learning_rate)

    @property
    def value_optimizer(self) -> OptimizerConfig:
        rate = self.value_learning_rate
        return self._optimizer(self.learning_rate if rate is None else rate, None)

    def _optimizer(self, learning_rate: float, muon_learning_rate: float | None) -> OptimizerConfig:
        return OptimizerConfig(
            learning_rate=learning_rate,
            muon_learning_rate=muon_learning_rate,
            muon_momentum=0.95 if self.muon_momentum is None else self.muon_momentum,
            warmup_steps=self.warmup_steps,
            decay_steps=self.decay_steps,
            max_grad_norm=self.max_grad_norm,
            beta1=self.adam_beta1,
            beta2=self.adam_beta2,
            weight_decay=self.weight_decay,
        )
