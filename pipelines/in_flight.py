"""Which recording a Listener works on, kept where its death leaves it: in a file of its node.

A Listener registers a block of recordings with the AttemptTracker, in one call, and writes the id of each recording
into its file before it works on it. Told of each recording, the one tracker of a job would limit it: 0.8 ms of CPU a
call (bench.scale). The Listener that is given a block again reads the files of those that began it and did not end it.
"""

import contextlib
import os
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# Until a file of another node is read: its worker has to start.
READ_WITHIN_S = 120.0
_LENGTH_BYTES = 4


class Place(NamedTuple):
    """Where a Listener writes what it works on: its node's id, and a path there."""

    node: str
    path: str


class InFlight:
    """The recording that this process works on.

    Args:
        attempts: handle of the actor ``pipelines.poison.AttemptTracker``.
    """

    def __init__(self, attempts: Any) -> None:
        context = ray.get_runtime_context()
        folder = Path(context.get_temp_dir(), context.get_session_name())
        folder.mkdir(parents=True, exist_ok=True)
        self._place = Place(context.get_node_id(), str(folder / f"listener-{uuid.uuid4().hex}"))
        self._file = os.open(self._place.path, os.O_CREAT | os.O_WRONLY, 0o600)
        self._attempts = attempts

    def begin_block(self, recording_ids: list[str]) -> set[str]:
        """Registers a block; returns those of its recordings that are poison."""
        block = recording_ids[0]
        unended, poison = ray.get(self._attempts.begin_block.remote(recording_ids, self._place))
        for place in unended:
            crashed = recording_at(place)
            # The process may live, and be at another block: a node that was cut off, whose block is given to others.
            crashed = crashed if crashed in recording_ids else ""
            poison |= ray.get(self._attempts.count_crash.remote(block, place, crashed))
        return set(poison)

    def end_block(self, block: str) -> None:
        """The block, named by its first recording, has been listened to."""
        self._attempts.end_block.remote(block)

    def begin(self, recording_id: str) -> None:
        """From here on the end of this process counts for this recording."""
        written = recording_id.encode()
        # One write, which the kernel finishes even if the process is killed meanwhile.
        os.pwrite(self._file, len(written).to_bytes(_LENGTH_BYTES, "little") + written, 0)

    def end(self) -> None:
        """From here on the end of this process counts for no recording."""
        self.begin("")


def recording_at(place: Place) -> str:
    """The id of the recording that was in flight there, empty if none was. The loss of a node counts for none."""
    if place.node == ray.get_runtime_context().get_node_id():
        return _read(place.path)
    there = NodeAffinitySchedulingStrategy(place.node, soft=False)
    read = ray.remote(_read).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
    with contextlib.suppress(ray.exceptions.RayError):
        return str(ray.get(read.remote(place.path), timeout=READ_WITHIN_S))
    return ""


def _read(path: str) -> str:
    try:
        written = Path(path).read_bytes()
    except OSError:
        return ""
    length = int.from_bytes(written[:_LENGTH_BYTES], "little")
    return written[_LENGTH_BYTES : _LENGTH_BYTES + length].decode()
