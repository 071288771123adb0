"""Poison recordings: those that crash or hang the process that works on them.

Ray restarts an actor that has died and retries its block, without limit: right for a lost machine, and wrong for a file
that crashes its decoder. So what is worked on is registered here, and removed afterwards. What was never removed was in
flight when its process ended:

- a Listener works on one recording at a time, and leaves its id (``pipelines.in_flight``): it is the cause;
- an engine works on hundreds, which all become suspects. It retries each of them *alone*; the others are not
  registered meanwhile, so that the cause is alone when it ends the process once more.

A recording that was in flight at MAX_ATTEMPTS ends of its process fails with the code ``poison`` for the rest of the
run, and the others of its block are transcribed.
"""

from collections import Counter
from typing import TYPE_CHECKING

import ray

from cluster.ray_internals import draining_nodes

if TYPE_CHECKING:
    from pipelines.in_flight import Place

MAX_ATTEMPTS = 2


class AttemptTracker:
    """Counts, over one run, how often a recording was begun and not ended. Runs as one Ray actor.

    A call costs it some 0.8 ms, so both stages call it once or twice a block.
    """

    def __init__(self) -> None:
        self._blocks: dict[str, list[Place]] = {}  # of Listeners: who has begun each and not ended it
        self._crashes: Counter[str] = Counter()  # of Listeners, by recording
        self._unended: dict[str, list[str]] = {}  # of engines: the node of each begin without an end
        self._poison: set[str] = set()  # of engines

    # Listeners

    def begin_block(self, recording_ids: list[str], place: "Place") -> tuple[list["Place"], set[str]]:
        """Registers a Listener's block.

        Returns:
            The places of Listeners that have begun the block and not ended it; those of its recordings that are poison.
        """
        unended = self._blocks.get(recording_ids[0], [])
        self._blocks[recording_ids[0]] = [*unended, place]
        poison = {each for each in recording_ids if self._crashes.get(each, 0) >= MAX_ATTEMPTS}
        return unended, poison

    def count_crash(self, block: str, place: "Place", recording_id: str) -> set[str]:
        """Counts the end of the Listener at ``place`` for a recording of the block; empty: for none.

        The loss of a node is not counted.

        Returns:
            The recording, if it is poison now.
        """
        unended = self._blocks.get(block, [])
        if place in unended:
            unended.remove(place)
            self._crashes[recording_id] += bool(recording_id) and place.node in staying_nodes()
        return {recording_id} if self._crashes.get(recording_id, 0) >= MAX_ATTEMPTS else set()

    def end_block(self, block: str) -> None:
        """Removes a Listener's block, named by its first recording."""
        self._blocks.pop(block, None)

    # Engines

    def start_batch(self, recording_ids: list[str], node: str) -> set[str]:
        """Registers those of a block's recordings that are no suspects; returns the suspects."""
        suspects = set()
        for recording_id, crashes in zip(recording_ids, self._ended_with(recording_ids), strict=True):
            if crashes or recording_id in self._poison:
                suspects.add(recording_id)
            else:
                self._unended[recording_id] = [node]
        return suspects

    def begin(self, recording_id: str, node: str) -> bool:
        """Registers a suspect, which is alone in its engine.

        Returns:
            False if it is poison: it was in flight at MAX_ATTEMPTS ends of its process.
        """
        if self._ended_with([recording_id])[0] >= MAX_ATTEMPTS:
            self._poison.add(recording_id)
        if recording_id in self._poison:
            return False
        self._unended.setdefault(recording_id, []).append(node)
        return True

    def end(self, recording_ids: list[str]) -> None:
        """Removes recordings: they have a result, transcribed or failed.

        A poison recording stays one: its block may be retried because of another recording.
        """
        for recording_id in recording_ids:
            self._unended.pop(recording_id, None)

    def _ended_with(self, recording_ids: list[str]) -> list[int]:
        """How often each was begun and not ended, on nodes that stay: the loss of a node is not counted."""
        if self._unended.keys().isdisjoint(recording_ids):  # nearly always; saves the request to the cluster
            return [0] * len(recording_ids)
        staying = staying_nodes()
        return [sum(node in staying for node in self._unended.get(each, [])) for each in recording_ids]


def staying_nodes() -> set[str]:
    """The ids of nodes that are alive and not taken away.

    The processes of a node that is taken away may end before Ray counts it as lost; it drains meanwhile.
    """
    return {each["NodeID"] for each in ray.nodes() if each["Alive"]} - draining_nodes()
