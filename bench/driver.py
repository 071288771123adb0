"""What a job costs the processes of which it has one: the driver, the actor that counts attempts, Ray's GCS.

    python -m bench.driver [--blocks 1000] [--recordings 4 32 128]

Blocks of recordings pass the job's dataset, on whose actors Listen and Transcribe do nothing: no audio is opened and no
file is written. All else is the job's own. Measured is the CPU of each process by block and by recording, for several
sizes of blocks, and the rows a second at which the driver would need a whole core. Prints a table, the cost of a block
and of a recording (least squares), and, last, one line of JSON.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from bench.cpu_times import ONE, CpuTimes
from pipelines.in_flight import InFlight
from pipelines.job import Job
from pipelines.progress import Progress
from pipelines.rows import RECEIPT, WORK
from pipelines.summary import Summary
from pipelines.work_list import WORK_ROWS_PER_BLOCK, Work
from storage.filesystem import Storage


class Listen:
    """Registers its blocks as the job's does."""

    def __init__(self, *arguments: Any) -> None:
        self._in_flight = InFlight(arguments[4])

    def __call__(self, work: pa.Table) -> Iterator[pa.Table]:
        ids = work["recording_id"].to_pylist()
        self._in_flight.begin_block(ids)
        self._in_flight.end_block(ids[0])
        yield work.select(["recording_id"])


class Transcribe:
    """Gives receipts."""

    def __init__(self, *arguments: Any) -> None:
        self._ready_at = datetime.now(UTC)

    def __call__(self, listened: pa.Table) -> pa.Table:
        ids = listened["recording_id"].to_pylist()
        usage = dict.fromkeys(RECEIPT.field("usage").type.names, 1)
        receipt = {
            "file": f"status=ok/{ids[0]}.parquet",
            "model": "no-op",
            "status": "ok",
            "storage_failed": False,
            **dict.fromkeys(("duration_s", "speech_s", "listen_s", "waiting_s"), 1.0),
            "usage": usage,
            "finished_at": datetime.now(UTC),
            "engine_ready_at": self._ready_at,
        }
        return pa.Table.from_pylist([receipt | {"recording_id": each} for each in ids], schema=RECEIPT)


class NoLease:
    """Stands for the lease of an output."""

    def check(self) -> None:
        """Always held."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=1_000)
    parser.add_argument("--recordings", type=int, nargs="+", default=[4, 32, 128], help="in a block")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # one size: what a driver process does
    parsed = parser.parse_args(arguments)
    if parsed.one:
        print(json.dumps(_run_one(parsed.blocks, parsed.one)))
        return
    runs = []
    for size in parsed.recordings:
        command = [sys.executable, "-m", "bench.driver", "--blocks", str(parsed.blocks), "--one", str(size)]
        runs.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1]))
        print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    table = Table("recordings a block", "blocks a second", *(f"{role}, ms a block" for role in ONE), "rows/s of a core")
    for run in runs:
        milliseconds = [1000 * run["cpu_s"].get(role, 0.0) / run["blocks"] for role in ONE]
        allowed = run["recordings"] / run["cpu_s"]["driver"]
        rate = f"{run['blocks'] / run['seconds']:.0f}"
        table.add_row(str(run["size"]), rate, *(f"{each:.2f}" for each in milliseconds), f"{allowed:,.0f}")
    Console(width=130).print(table)
    row_s = block_s = 0.0
    if len(runs) > 1:
        costs = [run["cpu_s"]["driver"] / run["blocks"] for run in runs]
        row_s, block_s = np.polyfit([run["size"] for run in runs], costs, 1).tolist()
        print(f"the driver: {1e3 * block_s:.2f} ms a block and {1e3 * row_s:.3f} ms a recording")
    print(json.dumps({"block_s": block_s, "row_s": row_s, "runs": runs}))


def _run_one(count: int, size: int) -> dict[str, Any]:
    import ray

    from cluster.session import connect_ray
    from pipelines import graph, run, stages

    vars(graph).update(recordings_per_block=lambda to_do, listeners: size)
    for module in (graph, stages):
        vars(module).update(Listen=Listen, Transcribe=Transcribe)
    connect_ray(None)
    rows = count * size
    work = Work(count=rows, counts=Counter({0: rows}))
    for start in range(0, rows, WORK_ROWS_PER_BLOCK):
        numbers = range(start, min(start + WORK_ROWS_PER_BLOCK, rows))
        cells = [{"recording_id": f"call-{number:08}", "row": "{}", "attempt": 1} for number in numbers]
        work.blocks[0].append(ray.put(pa.Table.from_pylist(cells, schema=WORK)))
    job = Job.from_settings({"manifest": "none", "output": "none", "listeners": os.cpu_count()})
    summary = Summary()
    with Progress() as progress, CpuTimes() as cpu:
        run._execute(job, None, Storage(), None, NoLease(), work, summary, progress)  # type: ignore[arg-type]
    assert summary.first_ready_at is not None
    assert summary.last_finished_at is not None
    cpu_s = cpu.between(summary.first_ready_at.timestamp(), summary.last_finished_at.timestamp())
    return {"size": size, "blocks": count, "recordings": rows, "seconds": summary.work_s, "cpu_s": cpu_s}


if __name__ == "__main__":
    main()
