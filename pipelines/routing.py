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
    """The recordings that are routed in one pass over the work lists."""

    def __init__(self) -> None:
        self._tables: dict[int, list[pa.Table]] = defaultdict(list)  # by model: WORK

    def add(self, batch: pa.Table) -> pa.Table:
        """Takes in receipts, and returns those of what was committed."""
        routed = pc.equal(batch["status"], ROUTED)
        if not pc.any(routed).as_py():
            return batch
        routes = pa.Table.from_struct_array(batch.filter(routed)["route"])
        for model in pc.unique(routes["model"]).to_pylist():
            chosen = routes.filter(pc.equal(routes["model"], model))
            self._tables[model].append(chosen.select(WORK.names))
        return batch.filter(pc.invert(routed))

    def work_lists(self) -> tuple[dict[int, list[Any]], Counter[int]]:
        """The models' next work lists: references to WORK tables, and their rows."""
        tables = {model: pa.concat_tables(tables).combine_chunks() for model, tables in self._tables.items()}
        return {model: [ray.put(table)] for model, table in tables.items()}, Counter(
            {model: len(table) for model, table in tables.items()}
        )
