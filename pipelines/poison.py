"""Poison recordings: those that crash or hang the process that works on them.

Ray restarts an actor that has died and retries its block, without limit: right for a lost machine, and wrong for a file
that crashes its decoder. So a recording is registered here before it is worked on, and removed afterwards. One that
was never removed was in flight when its process ended, and is a suspect:

- a Listener works on one recording at a time, so the suspect is the cause;
- an engine works on hundreds, which all become suspects. It retries each of them *alone*; the others are not
  registered meanwhile, so that the cause is alone when it ends the process once more.

A recording that was in flight at MAX_ATTEMPTS ends of its process fails with the code ``poison`` for the rest of the
run, and the others of its block are transcribed.
"""

import ray

from cluster.ray_internals import draining_nodes

MAX_ATTEMPTS = 2


class AttemptTracker:
    """Counts, over one run, how often a recording was begun and not ended. Runs as one Ray actor."""

    def __init__(self) -> None:
        self._unended: dict[str, list[str]] = {}  # the node of each begin without an end
        self._poison: set[str] = set()

    def begin(self, stage: str, recording_id: str, node: str, ended: str | None = None) -> bool:
        """Registers a recording, and ends the one that its process worked on before.

        Returns:
            False if it is poison: it was in flight at MAX_ATTEMPTS ends of its process.
        """
        if ended is not None:
            self.end(stage, [ended])
        key = f"{stage}/{recording_id}"
        if self._crashes([key])[0] >= MAX_ATTEMPTS:
            self._poison.add(key)
        if key in self._poison:
            return False
        self._unended.setdefault(key, []).append(node)
        return True

    def start_batch(self, stage: str, recording_ids: list[str], node: str) -> set[str]:
        """Registers those of a block's recordings that are no suspects; returns the suspects."""
        keys = [f"{stage}/{recording_id}" for recording_id in recording_ids]
        suspects = set()
        for recording_id, key, crashes in zip(recording_ids, keys, self._crashes(keys), strict=True):
            if crashes or key in self._poison:
                suspects.add(recording_id)
            else:
                self._unended[key] = [node]
        return suspects

    def end(self, stage: str, recording_ids: list[str]) -> None:
        """Removes recordings: they have a result, transcribed or failed.

        A poison recording stays one: its block may be retried because of another recording.
        """
        for recording_id in recording_ids:
            self._unended.pop(f"{stage}/{recording_id}", None)

    def _crashes(self, keys: list[str]) -> list[int]:
        """How often each was begun and not ended, on nodes that stay: the loss of a node is not counted.

        The processes of a node that is taken away may end before Ray counts it as lost; it drains meanwhile.
        """
        if self._unended.keys().isdisjoint(keys):  # nearly always; saves the request to the cluster
            return [0] * len(keys)
        staying = {each["NodeID"] for each in ray.nodes() if each["Alive"]} - draining_nodes()
        return [sum(node in staying for node in self._unended.get(key, [])) for key in keys]
