"""The work that is left of each model of a run, by which they share the engines.

A row may be an hour of speech or ten seconds of it, and one model ten times slower than another: rows count by the time
that an engine has taken for one so far.
"""

from collections.abc import Sequence
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc


class WorkLeft:
    """The work that is left of one model.

    Args:
        rows: of its work list.
    """

    def __init__(self, rows: int) -> None:
        self._rows, self._done = rows, 0
        self._last: dict[datetime, datetime] = {}  # by engine, known by when it was ready: its last result

    def add(self, receipts: pa.Table) -> None:
        """Takes in a block's receipts (``pipelines.rows.RECEIPT``), which are of one engine."""
        self._done += len(receipts)
        if last := pc.max(receipts["finished_at"]).as_py():  # none where all were routed to other models
            engine = receipts["engine_ready_at"][0].as_py()
            self._last[engine] = max(last, self._last.get(engine, last))

    def end(self) -> None:
        """Nothing is left."""
        self._rows = self._done

    @property
    def rows(self) -> int:
        """Those without a receipt."""
        return max(0, self._rows - self._done)

    @property
    def row_s(self) -> float:
        """Seconds of an engine a row, those included in which it waited for clips; 0 before the first receipts."""
        engines_s = sum((last - ready).total_seconds() for ready, last in self._last.items())
        return engines_s / self._done if self._done else 0.0


def work_left(models: Sequence[WorkLeft]) -> list[float]:
    """The work that is left of each model, in seconds of an engine; in rows while no model has a receipt.

    A model without a receipt counts as the others do on average.
    """
    measured = [model.row_s for model in models if model.row_s]
    usual_s = sum(measured) / len(measured) if measured else 1.0
    return [model.rows * (model.row_s or usual_s) for model in models]
