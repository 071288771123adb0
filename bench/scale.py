"""Memory and throughput of the job as the manifest grows: up to a million rows, no model.

    python -m bench.scale [--rows 10000 100000 1000000] [--resumed 1000000] [--folder DIR]

Every row names the same tenth of a second of audio and the engine returns at once (``speech.engines.fake``), so
that what is measured is the rest: reading the manifest, Ray Data, the Listener, Parquet, attempt records.
Each size runs in its own driver process, whose peak memory is reported in two parts: its own, and what it shares with
Ray's object store, which holds the work list until the run ends.

Then a run of ``--resumed`` rows is resumed, all but a thousand of them done. The output of the run before, in the
many small files that a killed run leaves, is written directly. It is resumed twice: as it is, and, with a thousand
rows more, after the first resumed run has merged the files.

All processes share this machine. What limits a large cluster are those of which a job has one: the driver, the actor
that counts attempts, Ray's GCS. So the CPU of each kind of process is measured too, from the first engine's readiness
to the last transcript. Prints tables and, last, one line of JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table

from bench.cpu_times import ONE, ROLES, CpuTimes
from pipelines.blocks import MAX_RECORDINGS_PER_BLOCK
from pipelines.job import Job
from pipelines.output import READERS, Output
from pipelines.run import run
from planning.sampler import Sampler
from speech.engines.fake import start_fake
from speech.recording import Recording
from speech.transcript import Transcript
from storage.filesystem import Storage

AUDIO = "call.wav"
TO_DO = 1_000  # of a resumed run


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--resumed", type=int, default=1_000_000, help="0: none")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # one run: what a driver process does
    parsed = parser.parse_args(arguments)
    if parsed.one:
        output, rows = parsed.one
        print(json.dumps(_run_one(parsed.folder, output, int(rows))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = parsed.folder or Path(temporary)
        # Silence: opened, decoded and passed through the VAD for every row; it has no clips.
        soundfile.write(folder / AUDIO, np.zeros(1_600, np.float32), 16_000)
        runs = [_in_own_process(folder, f"rows-{rows}", rows) for rows in sorted(parsed.rows)]
        if parsed.resumed:
            _write_killed_run(folder, "resumed", parsed.resumed - TO_DO)
            runs += [_in_own_process(folder, "resumed", parsed.resumed + more) for more in (0, TO_DO)]
    columns = ("rows", "done before", "files before", "seconds", "until first row", "rows a second", "files after")
    table = Table(*columns, "driver's own memory, MB", "object store, MB")
    for each in runs:
        rate = each["done"] / each["work_s"] if each["work_s"] else 0
        table.add_row(
            f"{each['rows']:,}",
            f"{each['done_before']:,}",
            f"{each['files_before']:,}",
            f"{each['seconds']:.1f}",
            f"{each['until_work_s']:.1f}",
            f"{rate:.0f}",
            f"{each['files_after']:,}",
            f"{each['own_mb']:.0f}",
            f"{each['shared_mb']:.0f}",
        )
    Console(width=130).print(table)
    Console(width=130).print(_cpu_table(runs))
    print(json.dumps(runs))


def _cpu_table(runs: Sequence[dict[str, Any]]) -> Table:
    """CPU by recording; for processes of which a job has one, the rows a second at which it would need a whole core."""
    table = Table("rows", *(f"{role}, ms" for role in ROLES), "other, ms", *(f"{role} alone, rows/s" for role in ONE))
    for each in runs:
        cpu = {role: each["cpu_ms_a_row"].get(role, 0.0) for role in (*ROLES, "other")}
        alone = (f"{1000 / cpu[role]:,.0f}" if cpu[role] else "" for role in ONE)
        table.add_row(f"{each['done']:,}", *(f"{ms:.3f}" for ms in cpu.values()), *alone)
    return table


def _write_killed_run(folder: Path, name: str, rows: int) -> None:
    """Writes the output of a run that was killed after ``rows`` rows."""
    output = Output(str(folder / name), Storage())
    job = _job(folder, name)
    output.claim(job.text_settings(), {"manifest": job.manifest}, allow_changes=False)
    row = Transcript(Recording(id="any", audio=str(folder / AUDIO)), job.engine_config.model).to_row()

    def commit(start: int) -> None:
        numbers = range(start, min(start + MAX_RECORDINGS_PER_BLOCK, rows))
        output.commit([row | {"recording_id": _id(number)} for number in numbers])

    with ThreadPoolExecutor(READERS) as pool:  # I/O-bound
        list(pool.map(commit, range(0, rows, MAX_RECORDINGS_PER_BLOCK)))


def _in_own_process(folder: Path, output: str, rows: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.scale", "--folder", str(folder), "--one", output, str(rows)]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    print(lines[-1], file=sys.stderr, flush=True)  # at once: a run may take hours
    measured: dict[str, Any] = json.loads(lines[-1])
    return measured


def _run_one(folder: Path, output: str, rows: int) -> dict[str, Any]:
    job = _job(folder, output)
    with open(job.manifest, "w") as file:
        for number in range(rows):
            file.write(f'{{"audio": "{AUDIO}", "id": "{_id(number)}", "queue": "billing"}}\n')
    files_before = _files(folder / output)
    start, started_at = time.perf_counter(), time.time()
    with _PeakMemory() as peak, CpuTimes() as cpu:
        summary = run(job, start_fake)
    assert summary.first_ready_at is not None
    assert summary.last_finished_at is not None
    cpu_s = cpu.between(summary.first_ready_at.timestamp(), summary.last_finished_at.timestamp())
    return {
        "rows": rows,
        "done": summary.finished,
        "done_before": summary.done_before,
        "seconds": time.perf_counter() - start,
        "until_work_s": summary.first_ready_at.timestamp() - started_at,
        "work_s": summary.work_s,
        "files_before": files_before,
        "files_after": _files(folder / output),
        "own_mb": peak.own_mb,
        "shared_mb": peak.shared_mb,
        "cpu_ms_a_row": {role: 1000 * seconds / summary.finished for role, seconds in sorted(cpu_s.items())},
    }


class _PeakMemory(Sampler):
    """Peak memory of this process while the ``with`` block ran, sampled twice a second, in MB.

    Attributes:
        own_mb: resident, without shared memory.
        shared_mb: resident shared memory: Ray's object store.
    """

    def __init__(self) -> None:
        super().__init__(every_s=0.5)
        self.own_mb = self.shared_mb = 0.0

    def sample(self) -> None:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        anonymous, file, shared = (int(status[name].split()[0]) for name in ("RssAnon", "RssFile", "RssShmem"))
        self.own_mb = max(self.own_mb, (anonymous + file) / 1024)
        self.shared_mb = max(self.shared_mb, shared / 1024)


def _job(folder: Path, output: str) -> Job:
    # As many Listeners as cores: the fake engine uses none.
    paths = {"manifest": str(folder / f"{output}.jsonl"), "output": str(folder / output)}
    return Job.from_settings(paths | {"listeners": os.cpu_count()})


def _id(number: int) -> str:
    return f"call-{number:08}"


def _files(output: Path) -> int:
    return sum(1 for _ in output.rglob("*.parquet"))


if __name__ == "__main__":
    main()
