"""cluster/*.yaml: files of Ray's launcher, of `ray job submit` and of Docker Compose. No cloud or Docker is here."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import rayscribe
from cluster.nodes import nodes_of, plan_layout
from cluster.settings import ClusterConfig
from pipelines.job import Job
from serve.settings import ServeSettings

ROOT = Path(__file__).parent.parent.parent
LAUNCHERS = ("aws", "ssh")
COMPOSE = ("compose", "compose.gpu")


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "cluster" / f"{name}.yaml").read_text())
    return found


# Ray's launcher.


@pytest.fixture(params=LAUNCHERS)
def prepared(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A launcher's file as `ray up` reads it: with its defaults, checked against Ray's own schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = prepare_config(read(request.param))
    validate_config(config)
    return config


def test_ray_accepts_a_launchers_file_and_every_node_needs_the_token(prepared: dict[str, Any]) -> None:
    assert prepared["cluster_name"] == "rayscribe"
    assert "--env RAY_AUTH_MODE=token" in prepared["docker"]["run_options"]
    assert prepared["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    started = [*prepared["head_start_ray_commands"], *prepared["worker_start_ray_commands"]]
    assert not any("dashboard-host" in command for command in started)  # on loopback, reached through SSH


def test_ray_refuses_a_launchers_file_with_an_unknown_field() -> None:
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(read("aws") | {"max_worker": 3}))


def test_listeners_and_engines_are_on_nodes_of_their_own_on_aws() -> None:
    kinds = read("aws")["available_node_types"]
    groups = [(kinds[name]["resources"], kinds[name]["max_workers"]) for name in ("engines",)]
    groups.append(({"CPU": 8}, kinds["listeners"]["max_workers"]))  # c7i.2xlarge: Ray reads its CPUs from AWS
    layout = plan_layout(nodes_of([], groups), ClusterConfig())
    assert layout.engines == kinds["engines"]["max_workers"]
    assert all(not (share.engines and share.listeners) for share in layout.shares)
    roles = {name: kind["node_config"]["IamInstanceProfile"]["Name"] for name, kind in kinds.items()}
    assert len(set(roles.values())) == 3
    assert kinds["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert "InstanceMarketOptions" not in kinds["head"]["node_config"]


def test_all_machines_of_an_ssh_cluster_are_in_it() -> None:
    config = read("ssh")
    assert config["min_workers"] == config["max_workers"] == len(config["provider"]["worker_ips"])


def test_a_runtime_environment_is_one_that_ray_accepts_and_has_no_secret() -> None:
    from ray.runtime_env import RuntimeEnv

    told = read("runtime-env")
    RuntimeEnv(**told)
    assert not any(word in name for name in told["env_vars"] for word in ("KEY", "SECRET", "TOKEN"))


# Docker Compose.


@pytest.mark.parametrize("name", COMPOSE)
def test_commands_of_compose_are_commands(name: str) -> None:
    for service in read(name)["services"].values():
        if service["command"][0] != "rayscribe":
            continue
        parsed = rayscribe._parser().parse_args(service["command"][1:])
        settings = ServeSettings if service["command"][1] == "serve" else Job
        settings.from_settings(rayscribe._settings(parsed, settings))


def test_services_of_compose_write_to_volumes_alone_and_have_no_privileges() -> None:
    for name, service in read("compose")["services"].items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["user"] == "1000:1000"
        assert name == "storage" or {"/tmp", "cache:/home/ray"} <= {*service["volumes"]}


def test_nothing_of_compose_is_reached_from_other_machines() -> None:
    published = [port for service in read("compose")["services"].values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:8000:8000"]


def test_compose_keeps_its_files_where_git_ignores_them() -> None:
    for service in read("compose")["services"].values():
        paths = [*service.get("env_file", []), *(each for each in service["volumes"] if each.startswith("."))]
        assert all(path.startswith("../out/compose/") for path in paths)


def _has_compose() -> bool:
    docker = shutil.which("docker")
    return bool(docker) and subprocess.run([docker or "", "compose", "version"], capture_output=True).returncode == 0


@pytest.mark.skipif(not _has_compose(), reason="docker compose is not installed")
@pytest.mark.parametrize("files", [COMPOSE[:1], COMPOSE])
def test_compose_accepts_its_files(files: tuple[str, ...], tmp_path: Path) -> None:
    copied = tmp_path / "cluster"
    copied.mkdir()
    (tmp_path / "out" / "compose").mkdir(parents=True)
    (tmp_path / "out" / "compose" / "storage.env").write_text("ROOT_ACCESS_KEY=a\n")
    for name in files:
        shutil.copy(ROOT / "cluster" / f"{name}.yaml", copied)
    named = [word for name in files for word in ("-f", str(copied / f"{name}.yaml"))]
    profiles = ["--profile", "job", "--profile", "endpoint"]
    done = subprocess.run(["docker", "compose", *named, *profiles, "config"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
