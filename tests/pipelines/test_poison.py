"""Which recordings are retried, and which fail as poison."""

import pytest
import ray

from pipelines import poison
from pipelines.poison import AttemptTracker


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that has lost one of two nodes."""
    monkeypatch.setattr(poison, "draining_nodes", set)
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "here", "Alive": True}, {"NodeID": "lost", "Alive": False}])


def test_a_recording_that_crashed_its_process_twice_stays_poison(two_nodes: None) -> None:
    attempts = AttemptTracker()
    assert attempts.start_batch("engine", ["poison", "company", "done"], "here") == set()
    attempts.end("engine", ["done"])
    # The process has died, and the block is tried again.
    assert attempts.start_batch("engine", ["poison", "company", "done"], "here") == {"poison", "company"}
    assert attempts.begin("engine", "company", "here")
    assert attempts.begin("engine", "poison", "here", ended="company")
    # It has died again.
    assert attempts.start_batch("engine", ["poison", "company"], "here") == {"poison"}
    assert not attempts.begin("engine", "poison", "here")
    attempts.end("engine", ["poison"])
    assert attempts.start_batch("engine", ["poison", "other"], "here") == {"poison"}
    assert not attempts.begin("engine", "poison", "here")
    assert attempts.begin("listener", "poison", "here")  # the stages count apart


def test_the_loss_of_a_node_counts_for_no_recording(two_nodes: None) -> None:
    attempts = AttemptTracker()
    for _ in range(5):
        assert attempts.start_batch("engine", ["a"], "lost") == set()
        assert attempts.begin("listener", "a", "lost")


def test_the_end_of_a_process_on_a_node_that_drains_counts_for_no_recording(
    two_nodes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be noticed before the loss of its node is."""
    monkeypatch.setattr(poison, "draining_nodes", lambda: {"here"})
    attempts = AttemptTracker()
    for _ in range(5):
        assert attempts.start_batch("engine", ["a"], "here") == set()
