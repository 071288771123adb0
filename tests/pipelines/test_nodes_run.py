"""The job on a real cluster of several raylets: where its actors run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipelines.jobs import answers_in, make_calls, manifest_of
from tests.pipelines.raylets import place_listeners, transcribe_on

CALLS = 40


@pytest.fixture(scope="module")
def address(needs_ray: None) -> Iterator[str]:
    """A head without work, two CPU nodes, one that plays a GPU node, one with a resource of its own."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    cluster.add_node(num_cpus=0)
    cluster.add_node(num_cpus=2, labels={"name": "cpu-0"})
    cluster.add_node(num_cpus=2, labels={"name": "cpu-1"})
    cluster.add_node(num_cpus=4, num_gpus=1, labels={"name": "gpu", "ray.io/accelerator-type": "T4"})
    cluster.add_node(num_cpus=2, resources={"engine": 1}, labels={"name": "special"})
    cluster.wait_for_nodes()
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    make_calls(tmp_path)
    rows: list[dict[str, object]] = [{"audio": "agent.flac", "id": f"call-{n}"} for n in range(CALLS)]
    return manifest_of(tmp_path, *rows)


def test_engines_are_where_the_gpus_are_and_listeners_elsewhere(address: str, manifest: str, tmp_path: Path) -> None:
    placed = transcribe_on(address, manifest=manifest, output=str(tmp_path / "out"), listeners=4)
    assert placed.engines == {"gpu"}
    assert placed.listeners <= {"cpu-0", "cpu-1", "special"}
    answers = answers_in(tmp_path / "out")
    assert len(answers) == CALLS
    assert {answer["text"].split()[0] for answer in answers} == {"gpu"}


def test_engines_where_a_custom_resource_is(address: str, manifest: str, tmp_path: Path) -> None:
    placed = transcribe_on(
        address, manifest=manifest, output=str(tmp_path / "out"), engine_resource="engine", listeners=8
    )
    assert placed.engines == {"special"}
    assert "special" not in placed.listeners
    assert len(answers_in(tmp_path / "out")) == CALLS


def test_listeners_fill_nodes_without_engines_before_those_with(address: str) -> None:
    """There are six CPUs without a GPU."""
    assert "gpu" not in place_listeners(address, 6)
    assert place_listeners(address, 8).count("gpu") == 2
