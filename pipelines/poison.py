"""Poison recordings: those that kill or hang the process that works on them.

Ray restarts an actor that has died and tries its block again, without end: that is right for a lost
machine and wrong for a file whose decoder crashes. So before a recording is worked on it is signed
in here, and signed out afterwards. One that was signed in and never out has gone down with its
process, and is a suspect. What follows is up to the stage:

- a Listener works on one recording at a time, so the suspect is the culprit;
- an engine works on hundreds, all of which become suspects; it tries each of them again *alone*, and
  those that wait for their turn are not signed in: when the culprit's turn takes the process down once
  more, it goes down alone.

Either way a recording that has gone down MAX_ATTEMPTS times is given up for the rest of the run, with a
code of its own, and its neighbours are done.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import ray

MAX_ATTEMPTS = 2


class AttemptTracker:
    """Counts, over one run, the times that a recording was begun and not ended. Runs as one Ray actor."""

    def __init__(self) -> None:
        self._unended: dict[str, list[str]] = {}  # the node of each beginning that has no end
        self._given_up: set[str] = set()

    def begin(self, stage: str, recording_id: str, node: str, ended: str | None = None) -> bool:
        """Signs a recording in, and out the one that its process had before.

        Returns:
            False if it is given up: it has gone down with its process MAX_ATTEMPTS times.
        """
        if ended is not None:
            self.end(stage, [ended])
        key = f"{stage}/{recording_id}"
        if self._crashes([key])[0] >= MAX_ATTEMPTS:
            self._given_up.add(key)
        if key in self._given_up:
            return False
        self._unended.setdefault(key, []).append(node)
        return True

    def start_batch(self, stage: str, recording_ids: list[str], node: str) -> set[str]:
        """Signs in those of a block's recordings that have never gone down; returns the others, the suspects."""
        keys = [f"{stage}/{recording_id}" for recording_id in recording_ids]
        suspects = set()
        for recording_id, key, downs in zip(recording_ids, keys, self._crashes(keys), strict=True):
            if downs or key in self._given_up:
                suspects.add(recording_id)
            else:
                self._unended[key] = [node]
        return suspects

    def end(self, stage: str, recording_ids: list[str]) -> None:
        """Signs recordings out: they were answered, with whatever answer.

        One that is given up stays so. Its block may be tried again for the sake of another, and it must not
        take that down once more.
        """
        for recording_id in recording_ids:
            self._unended.pop(f"{stage}/{recording_id}", None)

    def _crashes(self, keys: list[str]) -> list[int]:
        """How often each was begun and never ended.

        A machine that is lost is no recording's fault: beginnings on a node that is gone do not count.
        """
        if self._unended.keys().isdisjoint(keys):  # nearly always; the cluster need not be asked
            return [0] * len(keys)
        alive = {each["NodeID"] for each in ray.nodes() if each["Alive"]}
        return [sum(node in alive for node in self._unended.get(key, [])) for key in keys]


class AloneOrTogether:
    """Lets many work together, or one alone. Used from one event loop.

    One who waits to be alone goes before those who come later to work together.
    """

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._together = 0
        self._alone = False
        self._waiting_to_be_alone = 0

    @contextlib.asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._alone and not self._waiting_to_be_alone)
            self._together += 1
        try:
            yield
        finally:
            async with self._changed:
                self._together -= 1
                self._changed.notify_all()

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        async with self._changed:
            self._waiting_to_be_alone += 1
            try:
                await self._changed.wait_for(lambda: not self._alone and not self._together)
            finally:
                self._waiting_to_be_alone -= 1
            self._alone = True
        try:
            yield
        finally:
            async with self._changed:
                self._alone = False
                self._changed.notify_all()
