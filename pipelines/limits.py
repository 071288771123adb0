"""What limits a run: the Listeners, the engines or the storage, from queues and utilisation."""

from collections import Counter

import pyarrow as pa

from cluster.ray_internals import StageLoad

# Listeners that spend more of their time than this without computing or wanting to wait for the storage.
STORAGE_SHARE = 0.5


def what_limits(listen: StageLoad, transcribe: StageLoad, waiting_share: float) -> str | None:
    """The stage that limits now; None while neither is busy, as at the beginning and at the end.

    Args:
        listen, transcribe: what the stages are doing.
        waiting_share: of the Listeners' time, in which they waited for the storage.
    """
    if transcribe.busy:
        return "engines"
    if listen.busy:
        return "storage" if waiting_share > STORAGE_SHARE else "Listeners"
    return None


class Limits:
    """What has limited most of the time since it was last asked."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._listen_s = self._waiting_s = 0.0

    def add(self, listen: StageLoad, transcribe: StageLoad, receipts: pa.Table) -> None:
        """Takes in a batch of receipts, and what the stages are doing as it comes."""
        self._listen_s += sum(receipts["listen_s"].to_pylist())
        self._waiting_s += sum(receipts["waiting_s"].to_pylist())
        share = self._waiting_s / self._listen_s if self._listen_s else 0.0
        if limit := what_limits(listen, transcribe, share):
            self._counts[limit] += 1

    @property
    def most(self) -> str:
        """The name of what has limited most; empty if nothing has."""
        return self._counts.most_common(1)[0][0] if self._counts else ""

    def begin(self) -> None:
        """Forgets what was."""
        self._counts.clear()
        self._listen_s = self._waiting_s = 0.0
