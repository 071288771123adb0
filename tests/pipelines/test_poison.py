"""Which recordings are retried, and which fail as poison."""

import pytest
import ray

from pipelines import poison
from pipelines.in_flight import Place
from pipelines.poison import AttemptTracker

HERE, THERE = Place("here", "1"), Place("here", "2")


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that has lost one of two nodes."""
    monkeypatch.setattr(poison, "draining_nodes", set)
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "here", "Alive": True}, {"NodeID": "lost", "Alive": False}])


# Engines


def test_a_recording_that_crashed_its_process_twice_stays_poison(two_nodes: None) -> None:
    attempts = AttemptTracker()
    assert attempts.start_batch(["poison", "company", "done"], "here") == set()
    attempts.end(["done"])
    # The process has died, and the block is tried again.
    assert attempts.start_batch(["poison", "company", "done"], "here") == {"poison", "company"}
    assert attempts.begin("company", "here")
    attempts.end(["company"])
    assert attempts.begin("poison", "here")
    # It has died again.
    assert attempts.start_batch(["poison", "company"], "here") == {"poison"}
    assert not attempts.begin("poison", "here")
    attempts.end(["poison"])
    assert attempts.start_batch(["poison", "other"], "here") == {"poison"}
    assert not attempts.begin("poison", "here")


def test_the_loss_of_a_node_counts_for_no_recording(two_nodes: None) -> None:
    attempts = AttemptTracker()
    for _ in range(5):
        assert attempts.start_batch(["a"], "lost") == set()
        assert attempts.begin("a", "lost")


def test_the_end_of_a_process_on_a_node_that_drains_counts_for_no_recording(
    two_nodes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be noticed before the loss of its node is."""
    monkeypatch.setattr(poison, "draining_nodes", lambda: {"here"})
    attempts = AttemptTracker()
    for _ in range(5):
        assert attempts.start_batch(["a"], "here") == set()
    for _ in range(3):
        attempts.begin_block(["b"], HERE)
        assert attempts.count_crash("b", HERE, "b") == set()


# Listeners


def test_the_recording_in_flight_is_counted_and_no_other(two_nodes: None) -> None:
    attempts = AttemptTracker()
    ids = ["a", "poison", "b"]
    assert attempts.begin_block(ids, HERE) == ([], set())
    assert attempts.begin_block(ids, THERE) == ([HERE], set())  # that of HERE has died
    assert attempts.count_crash("a", HERE, "poison") == set()
    assert attempts.begin_block(ids, HERE) == ([THERE], set())
    assert attempts.count_crash("a", THERE, "poison") == {"poison"}
    attempts.end_block("a")
    assert attempts.begin_block(ids, HERE) == ([], {"poison"})  # once more, because its output was lost


def test_a_death_between_recordings_counts_for_none_and_each_death_once(two_nodes: None) -> None:
    attempts = AttemptTracker()
    attempts.begin_block(["a"], HERE)
    for _ in range(5):
        [before], found = attempts.begin_block(["a"], HERE)
        assert not found
        assert attempts.count_crash("a", before, "") == set()
    attempts.begin_block(["b"], HERE)
    for _ in range(5):  # asked again after a lost answer
        assert attempts.count_crash("b", HERE, "b") == set()
