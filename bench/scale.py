"""Does the job stay flat as the manifest grows? Up to a million rows through the same graph, no model.

    python -m bench.scale [--rows 10000 100000 1000000] [--folder DIR]

Every row names the same second of audio and the engine answers at once (``bench.noop``), so that what
is measured is the rest: reading the manifest, Ray Data, the Listener's round, Parquet, receipts. Each
size runs in a process of its own, whose peak memory is the driver's. The largest is then run again
with all but a thousand of its rows done, for the time that a resumed run needs before it works.
Prints a table and, last, one line of JSON.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table

from bench.noop import start_noop
from pipelines.job import Job
from pipelines.transcribe import run

RESUMED_ROWS = 1_000


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # one run, in a process of its own
    parsed = parser.parse_args(arguments)
    if parsed.one:
        rows, output = parsed.one
        print(json.dumps(_run_one(parsed.folder, int(rows), output)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = parsed.folder or Path(temporary)
        _make_audio(folder)
        results = [_in_own_process(folder, rows, f"rows-{rows}") for rows in sorted(parsed.rows)]
        largest = max(parsed.rows)
        resumed = _in_own_process(folder, largest + RESUMED_ROWS, f"rows-{largest}")
    table = Table("rows in the manifest", "rows done", "seconds", "rows a second", "driver's peak memory, MB")
    for each in [*results, resumed]:
        rate = f"{each['done'] / each['seconds']:.0f}"
        table.add_row(
            f"{each['rows']:,}", f"{each['done']:,}", f"{each['seconds']:.1f}", rate, f"{each['peak_mb']:.0f}"
        )
    Console().print(table)
    print(json.dumps({"runs": results, "resumed": resumed}))


def _make_audio(folder: Path) -> None:
    """One second of silence: opened and decoded for every row, and no clip comes of it."""
    soundfile.write(folder / "second.wav", np.zeros(16_000, np.float32), 16_000)


def _in_own_process(folder: Path, rows: int, output: str) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.scale", "--folder", str(folder), "--one", str(rows), output]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    measured: dict[str, float] = json.loads(lines[-1])
    return measured


def _run_one(folder: Path, rows: int, output: str) -> dict[str, float]:
    manifest = folder / "manifest.jsonl"
    with manifest.open("w") as file:
        for number in range(rows):
            file.write(f'{{"audio": "second.wav", "id": "call-{number:08}", "queue": "billing"}}\n')
    start = time.perf_counter()
    summary = run(Job.from_settings({"manifest": str(manifest), "output": str(folder / output)}), start_noop)
    return {
        "rows": rows,
        "done": summary.finished,
        "seconds": time.perf_counter() - start,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    main()
