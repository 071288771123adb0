"""An engine whose start hangs ends the deployment with an error that names the limit."""

import threading

import pytest

from cluster.nodes import Node, plan_layout
from cluster.session import connect_ray
from cluster.settings import ClusterConfig
from serve.server import deploy, stop
from serve.settings import ServeSettings
from speech.engines.base import EngineConfig
from speech.engines.fake import FakeEngine
from speech.errors import RayscribeError
from speech.models.families import Family
from testing.ports import free_port
from tests.serve.direct import MODEL


def hang(config: EngineConfig, family: Family) -> FakeEngine:
    threading.Event().wait()
    raise AssertionError("unreachable")


@pytest.mark.ray
def test_a_start_that_hangs_ends_the_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    settings = ServeSettings.from_settings({"model": MODEL, "port": free_port(), "engine_start_timeout_s": 1})
    connect_ray(None)
    try:
        with pytest.raises(RayscribeError, match=r"in 1 s \(--engine-start-timeout-s\)") as failed:
            deploy(settings, plan_layout([Node(cpus=2, slots=6)], ClusterConfig()), hang)
    finally:
        stop()
    assert failed.value.code == "deploy_failed"
