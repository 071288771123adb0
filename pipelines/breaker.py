"""The circuit breaker: stops a run whose recordings fail because of storage or the engine, not because of themselves.

Expired credentials, an outage or an engine that refuses all clips would turn every remaining row of a manifest into a
failed one, and the run would end as finished.
"""

from collections import Counter, deque

import pyarrow as pa

from speech.errors import RayscribeError

# The share is that of the last WINDOW recordings, so that it rises soon in a long run, too; of fewer than
# MIN_RECORDINGS it says little.
WINDOW = 1000
MIN_RECORDINGS = 100
# Of the engine, and of a bug of ours. Few recordings deserve them.
ENGINE_CODES = frozenset({"engine_refused", "engine_aborted", "internal"})
STORAGE, ENGINE = "storage_failing", "engine_failing"
MESSAGES = {
    STORAGE: "storage refused {count} of the last {all} recordings or did not respond: check the credentials, the "
    "service and, on every node, mounts and disks",
    ENGINE: "{count} of the last {all} recordings failed in the engine: the log and the column error of the output "
    "say why",
}
HOW_TO_GO_ON = (
    "Then 'rayscribe transcribe' continues with the rows that are not done, and 'rayscribe retry' tries the failed "
    "ones again (--max-failed-share sets the limit)"
)


class CircuitBreaker:
    """Counts the recordings that failed because of storage or the engine.

    Args:
        max_share: of the last WINDOW recordings, from 0 to 1; 1 never stops a run.
    """

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        self._causes: deque[str | None] = deque(maxlen=WINDOW)

    def add(self, receipts: pa.Table) -> None:
        """Counts receipts.

        Raises:
            RayscribeError: ``storage_failing`` or ``engine_failing``, whichever more recordings have.
        """
        codes = receipts["code"].to_pylist()
        for storage_failed, code in zip(receipts["storage_failed"].to_pylist(), codes, strict=True):
            self._causes.append(STORAGE if storage_failed else ENGINE if code in ENGINE_CODES else None)
        counts = Counter(cause for cause in self._causes if cause)
        if len(self._causes) >= MIN_RECORDINGS and counts.total() > self._max_share * len(self._causes):
            [(cause, count)] = counts.most_common(1)
            told = MESSAGES[cause].format(count=count, all=len(self._causes))
            raise RayscribeError(cause, f"{told}. {HOW_TO_GO_ON}")
