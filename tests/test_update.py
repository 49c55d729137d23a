"""The learner's step on a small hierarchical policy with random weights."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from musicrl.algorithms import make_algorithm
from musicrl.algorithms.config import AlgorithmConfig
from musicrl.algorithms.functions import exact_kl, token_logprobs
from musicrl.checkpoint import load_tensors, save_tensors
from musicrl.policies.config import MusicLMConfig
from musicrl.policies.flat import split
from musicrl.policies.musiclm import MusicLM
from musicrl.sampler.engine import Engine
from musicrl.sampler.sampling import SamplingConfig, log_probs
from musicrl.types import Experience, Prompt, RewardBatch, Rollouts
from musicrl.update import PolicyUpdate
from musicrl.update_config import UpdateConfig

SAMPLING = SamplingConfig(temperature=0.99)
PAPER = AlgorithmConfig(alpha=0.01)
PPO = AlgorithmConfig(name="ppo", clip_ratio=0.2, alpha=0.01, kl_target=1.0, kl_estimator="k2")
GROUPS = AlgorithmConfig(
    baseline="group_mean", kl_in="reward", kl_estimator="k1", alpha=0.01, importance_cap=2.0
)


def small_policy(seed: int = 0) -> MusicLM:
    torch.manual_seed(seed)
    return MusicLM(
        MusicLMConfig(
            semantic_vocab=5,
            coarse_vocab=4,
            coarse_levels=1,
            codec_frames_per_step=2,
            num_steps=4,
            condition_levels=2,
            condition_vocab=6,
            width=16,
            num_layers=1,
            num_heads=2,
            num_kv_heads=2,
            depth_width=8,
            depth_layers=1,
            depth_heads=2,
        )
    )


def new_update(
    algorithm: AlgorithmConfig = PAPER, seed: int = 0, config: UpdateConfig | None = None
) -> PolicyUpdate:
    policy = small_policy(seed)
    return PolicyUpdate(policy, make_algorithm(algorithm), SAMPLING, config or UpdateConfig())


@torch.no_grad()
def sample(policy: MusicLM, seed: int = 0, num_samples: int = 8) -> Experience:
    """Clips drawn cell by cell; the reward counts semantic tokens 0. Four prompts, in turn."""
    generator = torch.Generator().manual_seed(seed)
    group = np.arange(num_samples, dtype=np.int32) % 4
    conditions = torch.tensor(group).long()[:, None] + torch.tensor([0, 1])
    tokens = torch.zeros(num_samples, 4, 3, dtype=torch.int64)
    for s in range(4):
        for k in range(3):
            cells = log_probs(policy(tokens, conditions), SAMPLING)
            tokens[:, s, k] = cells[:, s, k].exp().multinomial(1, generator=generator)[:, 0]
    logprobs = token_logprobs(
        logprobs=log_probs(policy(tokens, conditions), SAMPLING), tokens=tokens
    )
    rewards = (tokens[:, :, 0] == 0).float().mean(1).numpy()
    rollouts = Rollouts(
        prompts=tuple(Prompt(id=str(g), text="") for g in group),
        conditions=conditions.numpy().astype(np.int16),
        tokens=tokens.numpy().astype(np.int16),
        logprobs=logprobs.numpy(),
        group=group,
        seeds=np.arange(num_samples, dtype=np.uint64),
        version=np.zeros(num_samples, np.int64),
    )
    return Experience(rollouts=rollouts, rewards=scored(rewards))


def scored(rewards: np.ndarray, valid: np.ndarray | None = None) -> RewardBatch:
    valid = np.ones(len(rewards), np.bool_) if valid is None else valid
    return RewardBatch(total=rewards.astype(np.float32), terms={"count": rewards}, valid=valid)


def rows(experience: Experience, index: list[int]) -> Experience:
    r, scores = experience.rollouts, experience.rewards
    return Experience(
        rollouts=Rollouts(
            prompts=tuple(r.prompts[i] for i in index),
            conditions=r.conditions[index],
            tokens=r.tokens[index],
            logprobs=r.logprobs[index],
            group=r.group[index],
            seeds=r.seeds[index],
            version=r.version[index],
        ),
        rewards=scored(scores.total[index], scores.valid[index]),
    )


def policy_of(update: PolicyUpdate) -> MusicLM:
    assert isinstance(update.policy, MusicLM)
    return update.policy


def train(update: PolicyUpdate, num_updates: int) -> list[dict[str, float]]:
    """Sample from the policy as it is and step, again and again."""
    return [
        update.step([sample(policy_of(update), seed=update.version)]) for _ in range(num_updates)
    ]


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def gradients(update: PolicyUpdate) -> dict[str, Tensor]:
    """The gradients of the first step, as AdamW's first moments hold them, of both networks."""
    tensors, _ = update.state_dict()
    return {name: t / 0.1 for name, t in tensors.items() if name.endswith("exp_avg")}


def assert_same_gradients(ours: PolicyUpdate, theirs: PolicyUpdate) -> None:
    mine, other = gradients(ours), gradients(theirs)
    assert mine.keys() == other.keys()
    assert max(t.abs().max() for t in mine.values()) > 1e-3
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, other[name], atol=2e-6, rtol=1e-4)


def test_ratios_stay_one_and_weights_stay_at_learning_rate_zero() -> None:
    update = new_update(config=UpdateConfig(learning_rate=0.0, weight_decay=0.1))
    before = copy.deepcopy(dict(update.policy.state_dict()))
    figures = train(update, 20)
    assert max(f["ratio/max_deviation"] for f in figures) < 1e-5
    assert max(abs(f["kl/sequence"]) for f in figures) < 1e-5
    assert_equal(before, dict(update.policy.state_dict()))
    assert figures[-1]["update/version"] == 20


def test_training_raises_the_reward_and_the_kl() -> None:
    figures = train(new_update(config=UpdateConfig(learning_rate=0.01)), 40)
    first, last = (
        np.mean([f["reward/mean"] for f in part]) for part in (figures[:5], figures[-5:])
    )
    assert last > first + 0.3
    assert figures[-1]["kl/sequence"] > 0.5


def test_kl_to_the_reference_is_reported_exactly_and_by_stream() -> None:
    update = new_update(config=UpdateConfig(learning_rate=0.01))
    base = copy.deepcopy(policy_of(update))
    train(update, 3)
    drawn = sample(policy_of(update), seed=9)
    tokens, conditions = (
        torch.tensor(a).long() for a in (drawn.rollouts.tokens, drawn.rollouts.conditions)
    )
    with torch.no_grad():
        own, reference = (
            log_probs(p(tokens, conditions), SAMPLING) for p in (policy_of(update), base)
        )
    kl = exact_kl(logprobs=own, reference=reference)
    figures = update.step([drawn])
    assert figures["kl/sequence"] == pytest.approx(float(kl.sum((1, 2)).mean()), rel=1e-4)
    assert figures["kl/token"] == pytest.approx(figures["kl/sequence"] / 12)
    for k, name in enumerate(("semantic", "coarse1.0", "coarse1.1")):
        assert figures[f"kl/stream/{name}"] == pytest.approx(float(kl[:, :, k].mean()), rel=1e-4)
        size = (5, 4, 4)[k]
        assert 0 < figures[f"entropy/stream/{name}"] < np.log(size)
        assert figures[f"advantage/stream/{name}"] > 0


@pytest.mark.parametrize("algorithm", [PAPER, GROUPS, replace(PAPER, kl_estimator="k3")])
def test_the_microbatch_does_not_change_the_gradient(algorithm: AlgorithmConfig) -> None:
    whole, parts = (
        new_update(algorithm, config=UpdateConfig(microbatch_samples=n)) for n in (16, 3)
    )
    for update in (whole, parts):
        update.step([sample(small_policy(1))])
    assert_same_gradients(whole, parts)


def test_bfloat16_gives_nearly_the_same_gradient() -> None:
    exact, rounded = new_update(), new_update(config=UpdateConfig(precision="bfloat16"))
    experience = sample(small_policy())
    figures, others = exact.step([experience]), rounded.step([experience])
    assert figures["ratio/max_deviation"] < 1e-5 < others["ratio/max_deviation"] < 0.05
    assert others["policy/grad_norm"] == pytest.approx(figures["policy/grad_norm"], rel=0.05)
    weights = policy_of(rounded).state_dict().values()
    assert {weight.dtype for weight in weights} == {torch.float32}


def test_experience_may_come_in_pieces() -> None:
    drawn = sample(small_policy(1))
    by_prompt = [[i, i + 4] for i in range(4)]
    whole, parts = new_update(GROUPS), new_update(GROUPS)
    whole.step([rows(drawn, [0, 4, 1, 5, 2, 6, 3, 7])])
    parts.step([rows(drawn, index) for index in by_prompt])
    assert_equal(whole.state_dict()[0], parts.state_dict()[0])


def test_the_same_group_number_in_two_experiences_is_two_groups() -> None:
    drawn = sample(small_policy(1))
    same = replace(drawn.rollouts, group=np.zeros(8, np.int32))
    distinct = replace(drawn.rollouts, group=np.arange(8, dtype=np.int32) // 4)
    halves = [range(4), range(4, 8)]
    ours, theirs = new_update(GROUPS), new_update(GROUPS)
    ours.step([rows(replace(drawn, rollouts=same), list(half)) for half in halves])
    theirs.step([replace(drawn, rollouts=distinct)])
    assert_equal(ours.state_dict()[0], theirs.state_dict()[0])


def test_invalid_and_nan_samples_take_no_part() -> None:
    drawn = sample(small_policy(1))
    rewards = drawn.rewards.total.copy()
    rewards[[1, 5]] = np.nan, 1e6
    valid = np.arange(8) != 5
    clean, dirty = new_update(), new_update()
    expected = clean.step([rows(drawn, [0, 2, 3, 4, 6, 7])])
    figures = dirty.step([replace(drawn, rewards=scored(rewards, valid))])
    assert_equal(clean.state_dict()[0], dirty.state_dict()[0])
    assert (figures["update/samples"], figures["update/invalid_samples"]) == (6, 2)
    assert figures["reward/mean"] == expected["reward/mean"]
    assert all(np.isfinite(x) for x in figures.values())


def test_an_update_without_a_valid_sample_is_skipped() -> None:
    update = new_update()
    before = update.state_dict()[0]
    drawn = sample(small_policy(1))
    nothing = scored(np.full(8, np.nan), np.zeros(8, np.bool_))
    figures = update.step([replace(drawn, rewards=nothing)])
    assert figures["update/skipped"] == 1
    assert figures["update/invalid_samples"] == 8
    assert_equal(before, update.state_dict()[0])
    assert update.version == 1


def test_a_step_that_is_not_finite_is_skipped_and_the_next_is_taken() -> None:
    update = new_update()
    before = update.state_dict()[0]
    drawn = sample(policy_of(update))
    figures = update.step([replace(drawn, rewards=scored(np.full(8, 3e38)))])
    assert figures["update/skipped"] == 2  # policy and value network
    assert_equal(before, update.state_dict()[0])
    assert update.step([drawn])["update/skipped"] == 0
    assert not torch.equal(before["policy/head"], update.state_dict()[0]["policy/head"])


@pytest.mark.parametrize(
    ("algorithm", "config"),
    [
        (PAPER, UpdateConfig(warmup_steps=3, value_warmup_steps=1)),
        (PPO, UpdateConfig(epochs=2, minibatches=2)),
        (GROUPS, UpdateConfig(weight_decay=0.1)),
        (GROUPS, UpdateConfig(parts=("trunk.blocks", "trunk.start"), muon_learning_rate=0.01)),
    ],
)
def test_resume_equals_running_on(
    algorithm: AlgorithmConfig, config: UpdateConfig, tmp_path: Path
) -> None:
    through, first, second = (new_update(algorithm, config=config) for _ in range(3))
    expected = train(through, 4)
    train(first, 2)
    tensors, state = first.state_dict()
    save_tensors(tmp_path / "learner", tensors, kind="learner", config={})
    loaded, _ = load_tensors(tmp_path / "learner", kind="learner")
    second.load_state_dict(loaded, json.loads(json.dumps(state)))
    assert train(second, 2) == expected[2:]
    assert_equal(through.state_dict()[0], second.state_dict()[0])
    assert through.state_dict()[1] == second.state_dict()[1]


def test_a_checkpoint_of_another_run_is_refused() -> None:
    tensors, state = new_update().state_dict()
    with pytest.raises(ValueError, match="another reference"):
        new_update(seed=1).load_state_dict(tensors, state)
    with pytest.raises(ValueError, match=r"another algorithm\.baseline"):
        new_update(replace(PAPER, baseline="none")).load_state_dict(tensors, state)
    with pytest.raises(ValueError, match=r"other update\.parts"):
        new_update(config=UpdateConfig(parts=("head",))).load_state_dict(tensors, state)
    with pytest.raises(ValueError, match=r"another update\.muon_learning_rate"):
        new_update(config=UpdateConfig(muon_learning_rate=0.1)).load_state_dict(tensors, state)


def test_the_policy_is_held_while_the_value_network_warms_up() -> None:
    update = new_update(replace(PAPER, kl_target=1.0), config=UpdateConfig(value_warmup_steps=2))
    before, state = update.state_dict()
    train(update, 2)
    after = update.state_dict()[0]
    policy = [name for name in before if name.startswith("policy/")]
    value = [name for name in before if name.startswith("value/")]
    assert_equal({n: before[n] for n in policy}, {n: after[n] for n in policy})
    assert not all(torch.equal(before[n], after[n]) for n in value)
    assert update.state_dict()[1]["alpha"] == state["alpha"]
    train(update, 1)
    assert not torch.equal(before["policy/head"], update.state_dict()[0]["policy/head"])


def test_the_value_network_learns_the_return() -> None:
    update = new_update(config=UpdateConfig(learning_rate=0.0, value_learning_rate=0.01))
    drawn = sample(policy_of(update))
    figures = [update.step([drawn]) for _ in range(60)]
    assert figures[-1]["value/loss"] < 0.2 * figures[0]["value/loss"]
    assert figures[-1]["value/explained_variance"] > 0.5


def test_the_first_baseline_is_the_mean_return() -> None:
    figures = new_update().step([sample(small_policy())])
    assert figures["advantage/mean"] == pytest.approx(0.0, abs=1e-6)
    assert figures["advantage/std"] == pytest.approx(figures["reward/std"])


def test_ppo_moves_the_ratio_and_the_clip_holds_it() -> None:
    config = UpdateConfig(learning_rate=0.02, epochs=8)
    figures = {}
    for clip in (0.01, 0.9):
        algorithm = AlgorithmConfig(name="ppo", clip_ratio=clip, baseline="group_mean")
        update = new_update(algorithm, config=config)
        figures[clip] = update.step([sample(policy_of(update))])
    tight, loose = figures[0.01], figures[0.9]
    assert tight["ratio/limited"] > 0.1
    assert loose["ratio/limited"] < tight["ratio/limited"]
    assert tight["kl/sequence"] < loose["kl/sequence"]


def test_importance_weights_are_those_of_the_stale_sampler() -> None:
    """One sample, no baseline: the capped weight multiplies each token's gradient."""
    drawn = rows(sample(small_policy(1)), [0])
    drawn = replace(drawn, rewards=scored(np.ones(1)))
    algorithm = AlgorithmConfig(alpha=0.0, baseline="none", importance_cap=1.0)
    update = new_update(algorithm)
    policy = small_policy()
    tokens, conditions = (
        torch.tensor(a).long() for a in (drawn.rollouts.tokens, drawn.rollouts.conditions)
    )
    logp = token_logprobs(logprobs=log_probs(policy(tokens, conditions), SAMPLING), tokens=tokens)
    weight = (logp.detach() - torch.tensor(drawn.rollouts.logprobs)).exp().clamp(max=1.0)
    assert weight.min() < 0.99
    (-(weight * logp).sum()).backward()
    norm = torch.stack([p.grad.norm() for p in policy.parameters() if p.grad is not None]).norm()
    assert update.step([drawn])["policy/grad_norm"] == pytest.approx(float(norm), rel=1e-4)


TRACED = AlgorithmConfig(alpha=0.01, importance_cap=1.0, trace_cap=1.0)


def test_vtrace_on_the_policys_own_samples_is_the_plain_update() -> None:
    plain, traced = (
        new_update(AlgorithmConfig(alpha=0.01, importance_cap=1.0, trace_cap=cap))
        for cap in (None, 1.0)
    )
    for update in (plain, traced):
        train(update, 3)
    theirs = dict(plain.policy.named_parameters())
    for name, parameter in traced.policy.named_parameters():
        torch.testing.assert_close(parameter, theirs[name], rtol=0, atol=1e-5)


def test_vtrace_learns_from_the_samples_of_another_policy() -> None:
    """The same 64 stale clips again and again: what they show to pay becomes likely."""
    drawn = sample(small_policy(1), num_samples=64)
    update = new_update(TRACED, config=UpdateConfig(learning_rate=3e-3, epochs=2))
    before = sample(policy_of(update), seed=5, num_samples=64).rewards.total.mean()
    for _ in range(12):
        update.step([drawn])
    after = sample(policy_of(update), seed=5, num_samples=64).rewards.total.mean()
    assert after > before + 0.1


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(temperature=0.9, top_k=2),
        SamplingConfig(temperature=0.9, guidance=2.0),
        SamplingConfig(temperature=0.9, guidance=2.0, top_k=3),
    ],
)
def test_the_learner_replays_cuts_and_guidance_of_the_sampler(sampling: SamplingConfig) -> None:
    policy, other = small_policy(), small_policy(1)
    torch.nn.init.normal_(other.head, std=1.0)
    update = PolicyUpdate(
        policy, make_algorithm(PAPER), sampling, UpdateConfig(), reference=small_policy(2)
    )
    torch.nn.init.normal_(policy.head, std=1.0)
    conditions = torch.tensor([[0, 1], [2, 3]])
    seeds = np.arange(16, dtype=np.uint64)
    drawn = sample(policy, num_samples=16)

    def experience(sampler: MusicLM) -> Experience:
        samples = Engine(sampler, sampling).generate(conditions, samples_per_prompt=8, seeds=seeds)
        rollouts = replace(
            drawn.rollouts,
            conditions=conditions.repeat_interleave(8, dim=0).numpy().astype(np.int16),
            tokens=samples.tokens,
            logprobs=samples.logprobs,
            kept=samples.kept,
        )
        return replace(drawn, rollouts=rollouts)

    own = update.step([experience(policy)])
    assert own["mismatch/mean"] <= own["mismatch/max"] < 3e-5
    assert own["ratio/max_deviation"] < 3e-5
    stale = update.step([experience(other)])  # tokens that its own cut would remove
    assert np.isfinite([own["kl/sequence"], stale["kl/sequence"], stale["ratio/mean"]]).all()
    assert stale["ratio/max_deviation"] > 0.1
    assert "mismatch/mean" not in stale  # of version 0, and the learner has version 1
    assert stale["update/skipped"] == 0


def test_kl_target_moves_alpha() -> None:
    update = new_update(replace(PAPER, kl_target=5.0))
    figures = train(update, 3)
    assert figures[2]["kl/alpha"] < figures[0]["kl/alpha"] == 0.01


def test_the_learning_rate_warms_up() -> None:
    update = new_update(config=UpdateConfig(learning_rate=0.4, warmup_steps=4))
    rates = [0.1, 0.2, 0.3, 0.4, 0.4]
    assert [f["update/learning_rate"] for f in train(update, 5)] == pytest.approx(rates)


def test_without_report_and_alpha_there_is_no_kl() -> None:
    silent = new_update(replace(PAPER, alpha=0.0, report_kl=False))
    assert "kl/sequence" not in train(silent, 1)[0]
    assert "kl/sequence" in train(new_update(replace(PAPER, alpha=0.0)), 1)[0]


def test_weights_are_the_policys_under_the_version() -> None:
    update = new_update()
    train(update, 1)
    weights = update.weights()
    assert weights.version == 1
    own = update.policy.state_dict()
    parts = split(weights)
    assert list(parts) == list(own)
    assert all((parts[name] == own[name].numpy()).all() for name in own)
    assert update.weights(7).version == 7
    assert (update.weights(7).flat == weights.flat).all()


def test_rollouts_of_another_layout_are_refused() -> None:
    drawn = sample(small_policy())
    narrow = replace(
        drawn.rollouts,
        tokens=drawn.rollouts.tokens[..., :2],
        logprobs=drawn.rollouts.logprobs[..., :2],
    )
    with pytest.raises(ValueError, match="rollouts of 2 streams do not fit a policy of 3"):
        new_update().step([replace(drawn, rollouts=narrow)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"microbatch_samples": 0}, "microbatch_samples"),
        ({"epochs": 0}, "epochs"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"value_learning_rate": float("nan")}, "value_learning_rate"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"adam_beta2": 1.0}, "adam_beta2"),
        ({"muon_learning_rate": -1.0}, "muon_learning_rate"),
        ({"muon_learning_rate": 0.1, "muon_momentum": 1.0}, "muon_momentum"),
        ({"muon_momentum": 0.9}, "read only with a muon_learning_rate"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UpdateConfig(**settings)  # type: ignore[arg-type]


def test_only_the_chosen_parts_learn() -> None:
    config = UpdateConfig(parts=("trunk.blocks.0", "head"), learning_rate=0.01)
    update = new_update(config=config)
    before = copy.deepcopy(policy_of(update)).state_dict()
    value = copy.deepcopy(update.state_dict()[0])
    train(update, 2)
    after = policy_of(update).state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {n for n in before if n == "head" or n.startswith("trunk.blocks.0.")}
    values = {n for n, t in update.state_dict()[0].items() if not torch.equal(t, value.get(n, t))}
    assert "value/trunk.norm.weight" in values


def test_a_part_that_the_policy_does_not_have_is_named() -> None:
    with pytest.raises(ValueError, match=r"update\.parts: the policy has no part 'trunk\.block',"):
        new_update(config=UpdateConfig(parts=("head", "trunk.block")))
