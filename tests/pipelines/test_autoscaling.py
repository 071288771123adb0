"""A job on a head alone: Ray's autoscaler adds nodes for it while it runs, and removes them after its end."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testing.ports import free_port
from tests.pipelines.autoscaled import autoscaled
from tests.pipelines.jobs import answers_in, make_calls, manifest_of
from tests.pipelines.raylets import placed, start_driver

pytestmark = [pytest.mark.ray, pytest.mark.long]

CALLS = 600  # half a minute and more of work for two engines
NODES = {
    "listeners": {"resources": {"CPU": 2}, "labels": {"name": "cpu"}, "min_workers": 0, "max_workers": 2},
    "engines": {
        "resources": {"CPU": 0, "GPU": 1},
        "labels": {"name": "gpu", "ray.io/accelerator-type": "T4"},
        "min_workers": 0,
        "max_workers": 2,
    },
}
EMPTY_WITHIN_S = 90.0


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with autoscaled(NODES, free_port(), tmp_path) as address:
        yield address


def names_of_nodes(address: str) -> list[str]:
    from ray._private.state import GlobalState
    from ray._raylet import GcsClientOptions  # type: ignore[attr-defined]

    state = GlobalState()
    options = GcsClientOptions.create(address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
    state._initialize_global_state(options)
    try:
        return sorted(node["Labels"].get("name", "head") for node in state.node_table() if node["Alive"])
    finally:
        state.disconnect()


def test_nodes_come_for_a_job_and_go_after_it(address: str, tmp_path: Path) -> None:
    make_calls(tmp_path)
    rows: list[dict[str, object]] = [{"audio": "agent.flac", "id": f"call-{number}"} for number in range(CALLS)]
    output = tmp_path / "out"
    settings = {"manifest": manifest_of(tmp_path, *rows), "output": str(output), "gpus_per_engine": 1}
    assert names_of_nodes(address) == ["head"]
    driver = start_driver(address, "run_paced", **settings)
    most: list[str] = []
    while driver.poll() is None:
        most = max(most, names_of_nodes(address), key=len)
        time.sleep(1)
    ended = placed(driver)
    assert "waiting for a node with GPU for an engine and a node with CPUs for Listeners" in ended.shown
    assert (ended.engines, ended.listeners) == ({"gpu"}, {"cpu"})
    assert most.count("gpu") == 2  # one before the job could begin, another by the work that waited
    assert len(answers_in(output)) == CALLS
    ends_at = time.monotonic() + EMPTY_WITHIN_S
    while names_of_nodes(address) != ["head"]:
        assert time.monotonic() < ends_at, names_of_nodes(address)
        time.sleep(1)
