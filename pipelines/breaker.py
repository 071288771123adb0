"""The circuit breaker: stops a run whose recordings fail because of storage, not because of the recordings.

Expired credentials or an outage would turn every remaining row of a manifest into a failed one, and the run would end
as finished.
"""

from collections import deque

import pyarrow as pa

from speech.errors import RayscribeError

# The share is that of the last WINDOW recordings, so that it rises soon in a long run, too; of fewer than
# MIN_RECORDINGS it says little.
WINDOW = 1000
MIN_RECORDINGS = 100


class CircuitBreaker:
    """Counts the recordings that failed because of storage.

    Args:
        max_share: of the last WINDOW recordings, from 0 to 1; 1 never stops a run.
    """

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        self._failed: deque[bool] = deque(maxlen=WINDOW)

    def add(self, receipts: pa.Table) -> None:
        """Counts receipts.

        Raises:
            RayscribeError: ``storage_failing``.
        """
        self._failed.extend(receipts["storage_failed"].to_pylist())
        count = sum(self._failed)
        if len(self._failed) >= MIN_RECORDINGS and count > self._max_share * len(self._failed):
            raise RayscribeError(
                "storage_failing",
                f"storage refused {count} of the last {len(self._failed)} recordings or did not respond: check the "
                "credentials, the service and, on every node, mounts and disks. Then 'rayscribe transcribe' continues "
                "with the rows that are not done, and 'rayscribe retry' tries the failed ones again "
                "(--max-failed-share sets the limit)",
            )
