"""Nothing is lost, tried: the job is killed at random moments and run again, and its output compared.

    python -m bench.chaos [--kills 20] [--recordings 48] [--seed 0] [--trials driver engine listener node]

The job runs on a real S3 protocol server on this machine (moto), with an engine that takes a second
for a clip (``bench.noop``), so that there is something to interrupt. Each trial kills one thing with
SIGKILL, at moments drawn from the seed:

    driver      the process that the user started: ``--kills`` times, wherever it then is
    engine      the actor that holds the engine; Ray starts another
    listener    an actor that decodes; Ray starts another
    node        one worker node of a local cluster of three (``ray.cluster_utils``)

Then the same command runs to its end, and the output must equal that of a run nobody disturbed: the
same ids, once each, with the same text. Recordings that were transcribed twice are counted. Prints a
table and, last, one line of JSON; the exit code is 1 if anything differs.
"""

import argparse
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from bench.noop import DECODED, start_slow
from cluster.storage import Storage
from pipelines.job import Job
from pipelines.output import STATUSES, Output
from pipelines.transcribe import run

AUDIO = Path("tests/speech/data/agent.flac")
TRIALS = ("driver", "engine", "listener", "node")
ACTORS = {"engine": "Transcribe", "listener": "Listen"}  # as Ray titles their processes


@dataclass(frozen=True)
class Outcome:
    """What one trial came to."""

    trial: str
    kills: int
    same_as_undisturbed: bool
    transcribed_twice: int
    seconds: float


class Bench:
    """The bucket, the manifest in it and the undisturbed run that all trials are held against."""

    def __init__(self, options: dict[str, Any], folder: Path, recordings: int, seed: int) -> None:
        self._options = options
        self._storage = Storage(options)
        self._folder = folder
        self._random = random.Random(seed)
        self._storage.filesystem("s3://chaos")[0].mkdir("chaos")
        self._storage.write_bytes("s3://chaos/call.flac", AUDIO.read_bytes())
        rows = [{"audio": "call.flac", "id": f"call-{number:03}"} for number in range(recordings)]
        rows.append({"audio": "missing.flac", "id": "missing"})
        self._storage.write_bytes("s3://chaos/calls.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
        start = time.perf_counter()
        self._finish("undisturbed")
        self._run_s = time.perf_counter() - start
        self._expected = self._texts("undisturbed")

    def trial(self, name: str, kills: int) -> Outcome:
        start = time.perf_counter()
        killed = {"driver": self._kill_drivers, "node": self._kill_node}.get(name, self._kill_actor)(name, kills)
        self._finish(name)
        return Outcome(
            trial=name,
            kills=killed,
            same_as_undisturbed=self._texts(name) == self._expected,
            transcribed_twice=self._twice(name),
            seconds=time.perf_counter() - start,
        )

    def _kill_drivers(self, name: str, kills: int) -> int:
        killed = 0
        for _ in range(kills):
            driver = self._start(name)
            try:
                driver.wait(timeout=self._random.uniform(0, self._run_s))
            except subprocess.TimeoutExpired:
                driver.kill()
                driver.wait()
                killed += 1
        return killed

    def _kill_actor(self, name: str, kills: int) -> int:
        driver = self._start(name)
        actor = _await_process(driver, ACTORS[name])
        time.sleep(self._random.uniform(0, self._run_s / 4))  # a moment of its work, not of the bench's timing
        actor.kill()
        driver.wait()
        return 1

    def _kill_node(self, name: str, kills: int) -> int:
        self._start(name, "--kill-node-after", str(self._random.uniform(0.2, 0.8) * self._run_s)).wait()
        return 1

    def _finish(self, name: str) -> None:
        if self._start(name).wait():
            raise RuntimeError(f"the job on {name} has failed; its log is {self._folder / name}.log")

    def _start(self, name: str, *more: str) -> subprocess.Popen[bytes]:
        """Starts the job in a process of its own, as the user would."""
        command = [sys.executable, "-m", "bench.chaos", "--drive", json.dumps(self._options), f"s3://chaos/{name}"]
        environment = os.environ | {DECODED: str(self._decoded(name)), "RAY_AUTH_MODE": "disabled"}
        log = (self._folder / f"{name}.log").open("ab")
        return subprocess.Popen([*command, *more], env=environment, stdout=log, stderr=log)

    def _texts(self, name: str) -> list[tuple[str, str, str]]:
        """Every row of an output: id, status, text. Sorted, so that two outputs can be compared."""
        output = Output(f"s3://chaos/{name}", self._storage)
        return sorted(
            (row["recording_id"], status, row["text"])
            for status in STATUSES
            for batch in output.batches(status, ["recording_id", "text"])
            for row in batch.to_pylist()
        )

    def _twice(self, name: str) -> int:
        """Recordings of which more clips were decoded than in the undisturbed run."""
        once = Counter(self._decoded("undisturbed").read_text().split())
        decoded = Counter(self._decoded(name).read_text().split())
        return sum(decoded[recording] > once[recording] for recording in decoded)

    def _decoded(self, name: str) -> Path:
        return self._folder / f"{name}.decoded"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of the driver")
    parser.add_argument("--recordings", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", nargs="+", choices=TRIALS, default=TRIALS)
    parser.add_argument("--drive", nargs=2, help=argparse.SUPPRESS)  # the job, in a process of its own
    parser.add_argument("--kill-node-after", type=float, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    if parsed.drive:
        return _drive(json.loads(parsed.drive[0]), parsed.drive[1], parsed.kill_node_after)
    folder = Path(tempfile.mkdtemp(prefix="rayscribe-chaos-"))
    with _s3() as options:
        bench = Bench(options, folder, parsed.recordings, parsed.seed)
        outcomes = [bench.trial(name, parsed.kills) for name in parsed.trials]
    table = Table("killed", "times", "output as if undisturbed", "transcribed twice", "seconds")
    for each in outcomes:
        same = "yes" if each.same_as_undisturbed else "NO"
        table.add_row(each.trial, str(each.kills), same, str(each.transcribed_twice), f"{each.seconds:.0f}")
    Console().print(table)
    print(json.dumps([asdict(each) for each in outcomes]))
    if not all(each.same_as_undisturbed for each in outcomes):
        print(f"the logs are in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


def _drive(options: dict[str, Any], output: str, kill_node_after: float | None) -> int:
    """The job itself; on a cluster of three nodes, of which one is lost, if asked."""
    address = None
    if kill_node_after is not None:
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
        nodes = [cluster.add_node(num_cpus=4) for _ in range(2)]
        threading.Timer(kill_node_after, cluster.remove_node, (nodes[0],), {"allow_graceful": False}).start()
        address = cluster.address
    job = Job.from_settings(
        {
            "manifest": "s3://chaos/calls.jsonl",
            "output": output,
            "storage_options": options,
            "address": address,
            "listeners": 2,
            "engines": 1 if address is None else 2,
        }
    )
    run(job, start_slow)
    return 0


@contextmanager
def _s3() -> Iterator[dict[str, Any]]:
    """A real S3 protocol server, and the storage options that lead to it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request otherwise
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {"key": "chaos", "secret": "chaos", "endpoint_url": f"http://{host}:{port}"}
    server.stop()


def _await_process(driver: subprocess.Popen[bytes], stage: str) -> psutil.Process:
    """The actor of a stage, among the processes that a driver has started, once it is there."""
    while driver.poll() is None:
        for process in psutil.Process(driver.pid).children(recursive=True):
            try:
                if f"({stage})" in " ".join(process.cmdline()):
                    return process
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.2)
    raise RuntimeError(f"the job ended before its {stage} actor was seen")


if __name__ == "__main__":
    sys.exit(main())
