"""Recordings whose language one model has detected and that another is to transcribe.

They are the work lists of a second pass, once the first has ended, in which they are heard again: samples that waited
for a model that has no engine yet would fill Ray's object store. Nothing is committed of them before: a run that
ends in between loses nothing, since the next one detects their language again.
"""

from collections import Counter, defaultdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from pipelines.rows import ROUTED, WORK


class Routes:
    """The recordings that are routed in one pass over the work lists.

    Args:
        rows_per_block: of the next work lists. No more of a model's rows are in the driver's memory.
    """

    def __init__(self, rows_per_block: int) -> None:
        self._rows_per_block = rows_per_block
        self._tables: dict[int, list[pa.Table]] = defaultdict(list)  # by model: WORK
        self._blocks: dict[int, list[Any]] = defaultdict(list)  # by model: references to WORK tables
        self._counts: Counter[int] = Counter()

    def add(self, batch: pa.Table) -> pa.Table:
        """Takes in receipts, and returns those of what was committed."""
        routed = pc.equal(batch["status"], ROUTED)
        if not pc.any(routed).as_py():
            return batch
        routes = pa.Table.from_struct_array(batch.filter(routed)["route"])
        for model in pc.unique(routes["model"]).to_pylist():
            chosen = routes.filter(pc.equal(routes["model"], model)).select(WORK.names)
            self._tables[model].append(chosen)
            self._counts[model] += len(chosen)
            if sum(map(len, self._tables[model])) >= self._rows_per_block:
                self._store(model)
        return batch.filter(pc.invert(routed))

    def work_lists(self) -> tuple[dict[int, list[Any]], Counter[int]]:
        """The models' next work lists: references to WORK tables, and their rows."""
        for model in self._tables:
            self._store(model)
        return self._blocks, self._counts

    def _store(self, model: int) -> None:
        if tables := self._tables[model]:
            self._blocks[model].append(ray.put(pa.concat_tables(tables).combine_chunks()))
            self._tables[model] = []
