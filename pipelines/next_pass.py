"""What a pass over the work lists leaves to the next.

Recordings whose language one model has detected and that another is to transcribe: they are heard again, since samples
that waited for a model that has no engine yet would fill Ray's object store. And those that were given to actors whose
nodes are lost, where no other node has room for them.

Nothing is committed of them before: a run that ends in between loses nothing, since the next one begins with them.
"""

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from pipelines.receipts import Receipts, id_hashes
from pipelines.rows import ROUTED, WORK


class NextPass:
    """The work lists of the next pass.

    Args:
        rows_per_block: of these. No more of a model's rows are in the driver's memory.
    """

    def __init__(self, rows_per_block: int) -> None:
        self._rows_per_block = rows_per_block
        self._tables: dict[int, list[pa.Table]] = defaultdict(list)  # by model: WORK
        self._blocks: dict[int, list[Any]] = defaultdict(list)  # by model: references to WORK tables
        self._counts: Counter[int] = Counter()
        self._routed = array("q")  # hashes of ids

    def add(self, batch: pa.Table) -> pa.Table:
        """Takes in receipts: keeps what is routed, and returns those of what was committed."""
        routed = pc.equal(batch["status"], ROUTED)
        if not pc.any(routed).as_py():
            return batch
        routes = pa.Table.from_struct_array(batch.filter(routed)["route"])
        self._routed.extend(id_hashes(routes["recording_id"].to_pylist()))
        for model in pc.unique(routes["model"]).to_pylist():
            self._add_rows(model, routes.filter(pc.equal(routes["model"], model)).select(WORK.names))
        return batch.filter(pc.invert(routed))

    def add_left(self, model: int, blocks: Iterable[Any], received: Receipts) -> int:
        """Keeps those rows of work lists that were neither committed nor routed, for the same model; their number.

        Args:
            model: its position.
            blocks: references to WORK tables.
            received: what was committed.
        """
        before = self._counts[model]
        for block in blocks:
            table: pa.Table = ray.get(block)
            hashes = id_hashes(table["recording_id"].to_pylist())
            self._add_rows(model, table.filter(received.lack(hashes) & ~np.isin(hashes, self._routed)))
        return self._counts[model] - before

    def work_lists(self) -> tuple[dict[int, list[Any]], Counter[int]]:
        """By model: references to WORK tables, and their rows."""
        for model in self._tables:
            self._store(model)
        return self._blocks, +self._counts

    def _add_rows(self, model: int, rows: pa.Table) -> None:
        self._tables[model].append(rows)
        self._counts[model] += len(rows)
        if sum(map(len, self._tables[model])) >= self._rows_per_block:
            self._store(model)

    def _store(self, model: int) -> None:
        tables = [table for table in self._tables[model] if len(table)]
        if tables:
            self._blocks[model].append(ray.put(pa.concat_tables(tables).combine_chunks()))
        self._tables[model] = []
