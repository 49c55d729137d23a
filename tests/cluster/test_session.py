"""What Ray reads from the environment, and which cluster a run joins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.fleet import with_absolute_paths
from cluster.session import address_of, prepare_environment, train
from cluster.training import preflight
from musicrl.config import ClusterConfig, TrainConfig

Configure = Callable[..., TrainConfig]
LOCAL_ONLY = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE": "1",
}
ALWAYS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment without any of Ray's variables."""
    fresh: dict[str, str] = {}
    monkeypatch.setattr("os.environ", fresh)
    return fresh


def settings_of_ray(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith("RAY_")}


def test_a_local_ray_is_closed_to_others_and_sends_nothing(environment: dict[str, str]) -> None:
    prepare_environment(ClusterConfig())
    assert settings_of_ray(environment) == {**ALWAYS, **LOCAL_ONLY}


def test_a_cluster_that_is_joined_keeps_its_own_network(environment: dict[str, str]) -> None:
    environment["RAY_ADDRESS"] = "10.0.0.1:6379"
    prepare_environment(ClusterConfig())
    assert settings_of_ray(environment) == {**ALWAYS, "RAY_ADDRESS": "10.0.0.1:6379"}


def test_what_the_user_has_set_stays(environment: dict[str, str]) -> None:
    environment["RAY_USAGE_STATS_ENABLED"] = "1"
    prepare_environment(ClusterConfig())
    assert environment["RAY_USAGE_STATS_ENABLED"] == "1"


def test_the_configured_address_comes_before_the_environment(environment: dict[str, str]) -> None:
    assert address_of(ClusterConfig()) is None
    environment["RAY_ADDRESS"] = "10.0.0.1:6379"
    assert address_of(ClusterConfig()) == "10.0.0.1:6379"
    assert address_of(ClusterConfig(address="10.0.0.2:6379")) == "10.0.0.2:6379"
    assert address_of(ClusterConfig(address="local")) is None
    environment["RAY_ADDRESS"] = "http://10.0.0.1:8265"
    with pytest.raises(ValueError, match=r"http://10\.0\.0\.1:8265 is that of the dashboard"):
        address_of(ClusterConfig())


def test_preflight_reads_the_world(configure: Configure) -> None:
    prompts, streams = preflight(configure())
    assert len(prompts) == 12
    assert streams == ("semantic", "coarse1.0", "coarse2.0", "coarse3.0", "coarse4.0")


def test_preflight_names_what_a_reward_lacks(configure: Configure) -> None:
    with pytest.raises(FileNotFoundError, match=r"no quality\.safetensors in .*pretrain quality"):
        preflight(configure(reward={"weights": {"quality": 1.0}}))


@pytest.mark.parametrize("name", ["policy", "codec", "embedder", "judge"])
def test_preflight_names_the_missing_file(
    configure: Configure, tiny_world: Path, tmp_path: Path, name: str
) -> None:
    for file in tiny_world.iterdir():
        if file.stem != name:
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(FileNotFoundError, match=rf"{name}\.safetensors"):
        preflight(configure(model={"weights": str(tmp_path)}))


def test_the_folder_of_a_refused_run_is_not_made(configure: Configure) -> None:
    config = configure(evaluation={"prompts": 13})
    with pytest.raises(ValueError, match="held-out prompts"):
        train(config)
    assert not config.out.exists()


def test_actors_get_absolute_paths(configure: Configure) -> None:
    config = configure(out="runs/x", model={"weights": "world", "policy": "mine/p.safetensors"})
    found = with_absolute_paths(config)
    assert found.out == Path.cwd() / "runs/x"
    assert found.model.weights == Path.cwd() / "world"
    assert found.model.policy == Path.cwd() / "mine/p.safetensors"
    assert with_absolute_paths(configure(model={"policy": None})).model.policy is None
    beside = with_absolute_paths(configure(model={"policy": Path("codec.safetensors")})).model
    assert beside.weights is not None
    assert beside.policy == beside.weights / "codec.safetensors"
