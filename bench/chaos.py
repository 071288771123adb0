"""Fault injection: the job is killed at random moments and run again, and its output compared.

    python -m bench.chaos [--kills 20] [--recordings 30] [--seed 0]
                          [--trials driver engine listener node storage vllm]

Manifest, audio and output are on a local S3 server (moto). The trials; moments are drawn from the seed:

    driver      the process that the user started is killed, ``--kills`` times, at any moment of the run
    engine      the actor that holds the engine is killed; Ray starts another
    listener    a Listener actor is killed; Ray starts another
    node        a worker node that holds an engine is removed, of a cluster of three (``ray.cluster_utils``)
    storage     a tenth of all requests get a 503, a reset, a truncated response or none (testing.fault_proxy)
    vllm        vLLM's EngineCore process is killed, and later the driver; processes left running are counted

All but the last run with an engine that sleeps half a second for a clip (``speech.engines.fake``), on one Ray cluster
that outlives the drivers. ``vllm`` runs the command line as a user would, each time with its own local Ray, on
demo/model. Every kill is a SIGKILL.

After each kill the same job runs again, to its end. Its output must equal that of an undisturbed run: the same ids,
once each, with the same text. A recording that was in flight and not committed is transcribed twice; these are
counted, and must not be more than an engine has in flight. Prints a table and, last, one line of JSON; the exit
code is 1 if any output differs.
"""

import argparse
import asyncio
import contextlib
import functools
import itertools
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from pipelines.blocks import BLOCKS_PER_ENGINE, recordings_per_block
from pipelines.job import Job
from pipelines.output import STATUSES, Output
from pipelines.run import run
from speech.engines.base import ClipRequest, EngineStarter
from speech.engines.fake import start_fake
from speech.transcriber import WARM_UP_ID
from storage.filesystem import Storage
from testing.fault_proxy import faults_before
from testing.synthetic_audio import DATA

NAMES = ("agent", "customer")
MODEL = "demo/model"
TRIALS = ("driver", "engine", "listener", "node", "storage", "vllm")
ACTORS = {"engine": "(Transcribe)", "listener": "(Listen)"}  # as Ray titles their processes
LISTENERS = 2
PAUSE_S = 0.5
CORES = 8  # as Ray counts them, of each cluster
STORE_BYTES = 200 << 20  # Ray's object store, of each node
# A killed driver's processes must have ended after this time. The agents of Ray's node first try for 60 s to report
# to the head, which has ended too, that their raylet is dead (ray/_private/utils.py, publish_error_to_driver).
CLEAN_UP_TIMEOUT_S = 90.0

Row = tuple[str, str, str]  # id, status, text


@dataclass(frozen=True)
class Outcome:
    """The result of one kind of trial."""

    trial: str
    engine: str
    kills: int
    same: bool  # every output equals the undisturbed run's
    twice: int | None  # the most recordings transcribed twice after one kill
    in_flight: int | None  # the most recordings that can be in flight in the engines
    seconds: float
    note: str = ""


class Bench:
    """The trials, and the bucket with their recordings."""

    def __init__(self, options: dict[str, Any], folder: Path, recordings: int, seed: int) -> None:
        self._options = options
        self._storage = Storage(options)
        self._folder = folder
        self._seed = seed
        self._random = random.Random(seed)
        self._storage.filesystem("s3://chaos")[0].mkdir("chaos")
        for name in NAMES:
            self._storage.write_bytes(f"s3://chaos/{name}.flac", (DATA / f"{name}.flac").read_bytes())
        rows: list[dict[str, Any]] = [
            {"audio": f"{NAMES[number % 2]}.flac", "id": f"call-{number:03}"} for number in range(recordings)
        ]
        rows.append({"audio": "missing.flac", "id": "missing"})
        self._recordings = len(rows)
        self._storage.write_bytes("s3://chaos/calls.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())

    def undisturbed(self) -> None:
        """The run that all others are compared with."""
        start = time.perf_counter()
        if self._start("undisturbed").wait():
            raise RuntimeError(f"the job has failed; its log is {self._log('undisturbed')}")
        self._run_s = time.perf_counter() - start
        self._expected = self._rows("undisturbed")
        assert len(self._expected) == self._recordings

    def driver(self, kills: int) -> Outcome:
        start = time.perf_counter()
        same, twice, committed = True, 0, list[int]()
        for number in itertools.count():
            name = f"driver-{number:02}"
            driver = self._start(name)
            with contextlib.suppress(subprocess.TimeoutExpired):
                driver.wait(timeout=self._random.uniform(0, self._run_s))
                continue  # the run ended before the kill was due
            driver.kill()
            driver.wait()
            committed.append(len(self._rows(name)))
            self._run(name)
            same &= self._rows(name) == self._expected
            twice = max(twice, self._twice(name))
            if len(committed) == kills:
                break
        note = f"of {self._recordings} recordings {', '.join(map(str, sorted(committed)))} were committed"
        return self._outcome("driver", kills, same, twice, start, note)

    def actor(self, trial: str) -> Outcome:
        start = time.perf_counter()
        driver = self._start(trial)
        self._await_started(trial, self._random.randint(1, self._recordings // 2), driver)
        actor = _process(psutil.Process(), ACTORS[trial])
        assert actor is not None
        actor.kill()
        return self._outcome(trial, 1, driver.wait() == 0 and self._same(trial), self._twice(trial), start)

    def node(self) -> Outcome:
        start = time.perf_counter()
        started = self._random.randint(1, self._recordings // 2)
        code = self._start("node", nodes=3, kill_node_after=started).wait()
        same = self._same("node")
        note = "" if code == 0 else f"the job ended with {code}"
        return self._outcome("node", 1, code == 0 and same, self._twice("node"), start, note, engines=2)

    def storage(self) -> Outcome:
        start = time.perf_counter()
        with faults_before(self._options["endpoint_url"], share=0.1, seed=self._seed, stall_s=5.0) as proxy:
            options = self._options | {"endpoint_url": proxy.endpoint, "config_kwargs": {"read_timeout": 1.0}}
            for _ in range(2):
                self._run("storage", options)
        faults = ", ".join(f"{kind} {count}" for kind, count in sorted(proxy.injected.items()))
        note = f"{proxy.passed} requests passed; {faults}"
        return self._outcome("storage", 0, self._same("storage"), self._twice("storage"), start, note)

    def vllm(self) -> Outcome:
        start = time.perf_counter()
        if self._start_cli("vllm-undisturbed").wait() not in (0, 3):
            raise RuntimeError(f"the job has failed; its log is {self._log('vllm-undisturbed')}")
        driver = self._start_cli("vllm")
        committed = self._await_committed("vllm", 1, driver)
        killed = _process(psutil.Process(driver.pid), "EngineCore")
        assert killed is not None
        killed.kill()
        _await(lambda: _process(psutil.Process(driver.pid), "EngineCore", killed) is not None, driver)
        committed = self._await_committed("vllm", committed, driver)
        self._await_committed("vllm", committed + 1, driver)
        started = psutil.Process(driver.pid).children(recursive=True)
        driver.kill()
        driver.wait()
        killed_at = time.perf_counter()
        _, left = psutil.wait_procs(started, timeout=CLEAN_UP_TIMEOUT_S)
        left = [each for each in left if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
        ended_s = time.perf_counter() - killed_at
        names = ", ".join(_command(each) for each in left)
        finished = self._start_cli("vllm").wait() in (0, 3)
        same = finished and not left and self._rows("vllm") == self._rows("vllm-undisturbed")
        note = f"{len(started)} processes of the killed driver, {len(left)} left after {ended_s:.0f} s {names}"
        return Outcome("vllm", MODEL, 2, same, None, None, time.perf_counter() - start, note)

    def _outcome(
        self, trial: str, kills: int, same: bool, twice: int, start: float, note: str = "", engines: int = 1
    ) -> Outcome:
        in_flight = BLOCKS_PER_ENGINE * engines * recordings_per_block(self._recordings, LISTENERS)
        seconds = time.perf_counter() - start
        return Outcome(trial, "no-op", kills, same and twice <= in_flight, twice, in_flight, seconds, note)

    def _same(self, name: str) -> bool:
        """Runs a job again, which should find nothing to do; whether its output equals the undisturbed run's."""
        self._run(name)
        return self._rows(name) == self._expected

    def _run(self, name: str, options: dict[str, Any] | None = None) -> None:
        """Runs a job to its end, in this process."""
        with self._log(name).open("a") as log, contextlib.redirect_stderr(log):
            run(_job(f"s3://chaos/{name}", options or self._options), self._engine(name))

    def _start(self, name: str, **more: Any) -> subprocess.Popen[bytes]:
        """Starts a job in a driver process; on this process's cluster, or on a new one of ``nodes`` nodes."""
        import ray

        job = {"output": f"s3://chaos/{name}", "options": self._options, "started": str(self._started(name))}
        job |= {"address": ray.get_runtime_context().gcs_address, **more}
        return self._popen(name, "bench.chaos", "--drive", json.dumps(job))

    def _start_cli(self, name: str) -> subprocess.Popen[bytes]:
        arguments = ["transcribe", "s3://chaos/calls.jsonl", "--output", f"s3://chaos/{name}", "--model", MODEL]
        arguments += ["--storage-options", json.dumps(self._options), "--concurrent-clips", "1"]
        return self._popen(name, "rayscribe", *arguments)

    def _popen(self, name: str, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        with self._log(name).open("ab") as log:
            return subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=log, stderr=log)

    def _await_started(self, name: str, count: int, driver: subprocess.Popen[bytes]) -> None:
        _await(lambda: _lines(self._started(name)) >= count, driver)

    def _await_committed(self, name: str, count: int, driver: subprocess.Popen[bytes]) -> int:
        """Waits until at least ``count`` recordings are committed; returns how many are."""
        _await(lambda: len(self._rows(name)) >= count, driver)
        return len(self._rows(name))

    def _rows(self, name: str) -> list[Row]:
        """Every row of an output, sorted, so that two outputs can be compared."""
        output = Output(f"s3://chaos/{name}", self._storage)
        return sorted(
            (row["recording_id"], status, row["text"])
            for status in STATUSES
            for batch in output.batches(status, ["recording_id", "text"])
            for row in batch.to_pylist()
        )

    def _twice(self, name: str) -> int:
        """Recordings of which more clips were started than in the undisturbed run."""
        once = Counter(self._started("undisturbed").read_text().split())
        started = Counter(self._started(name).read_text().split())
        return sum(started[recording] > once[recording] for recording in started)

    def _engine(self, name: str) -> Callable[..., Any]:
        return start_slow(str(self._started(name)))

    def _started(self, name: str) -> Path:
        return self._folder / f"{name}.started"

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of the driver")
    parser.add_argument("--recordings", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", nargs="+", choices=TRIALS, default=TRIALS)
    parser.add_argument("--drive", type=json.loads, help=argparse.SUPPRESS)  # one job: what a driver process runs
    parsed = parser.parse_args(arguments)
    os.environ["RAY_AUTH_MODE"] = "disabled"  # no token file is left in the home directory
    if parsed.drive:
        return _drive(**parsed.drive)
    folder = Path(tempfile.mkdtemp(prefix="rayscribe-chaos-"))
    with _s3() as options:
        bench = Bench(options, folder, parsed.recordings, parsed.seed)
        outcomes = []
        for outcome in _outcomes(bench, parsed.trials, parsed.kills):
            print(outcome, file=sys.stderr)
            outcomes.append(outcome)
    table = Table("trial", "engine", "kills", "output the same", "twice, at most", "in flight", "seconds", "")
    for each in outcomes:
        cells = [each.trial, each.engine, each.kills, "yes" if each.same else "NO", each.twice, each.in_flight]
        cells += [f"{each.seconds:.0f}", each.note]
        table.add_row(*("" if cell is None else str(cell) for cell in cells))
    Console(width=150).print(table)
    print(json.dumps([asdict(each) for each in outcomes]))
    if not all(each.same for each in outcomes):
        print(f"the logs are in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


def _outcomes(bench: Bench, trials: Sequence[str], kills: int) -> Iterator[Outcome]:
    """Runs the trials, those with the fake engine on one Ray cluster."""
    if set(trials) - {"vllm"}:
        with _ray():
            bench.undisturbed()
            if "driver" in trials:
                yield bench.driver(kills)
            for trial in ACTORS:
                if trial in trials:
                    yield bench.actor(trial)
            if "node" in trials:
                yield bench.node()
            if "storage" in trials:
                yield bench.storage()
    if "vllm" in trials:
        yield bench.vllm()


def _drive(
    output: str, options: dict[str, Any], started: str, address: str, nodes: int = 1, kill_node_after: int = 0
) -> int:
    """Runs the job; with ``nodes`` > 1 on a new cluster that loses a node. Returns 1 if none was lost."""
    import ray

    lost, cluster = threading.Event(), None
    if nodes > 1:
        from ray.cluster_utils import Cluster

        resources = {"num_cpus": CORES, "object_store_memory": STORE_BYTES}
        cluster = Cluster(initialize_head=True, head_node_args=resources | {"num_cpus": 0})
        workers = [cluster.add_node(**resources) for _ in range(nodes - 1)]
        address = cluster.address
        losing = (cluster, workers, started, kill_node_after, lost)
        threading.Thread(target=_lose_node, args=losing, daemon=True).start()
    run(_job(output, options, address, engines=nodes - 1 or 1), start_slow(started))
    if cluster is not None:  # in this order, or Ray ends the process with an error
        ray.shutdown()
        cluster.shutdown()
    return int(cluster is not None and not lost.is_set())


def start_slow(started: str) -> EngineStarter:
    """An engine that takes PAUSE_S for a clip and appends the id of each clip's recording to the file ``started``."""
    return functools.partial(start_fake, before=functools.partial(_record_start, started))


async def _record_start(started: str, clip: ClipRequest) -> None:
    if clip.id != WARM_UP_ID:
        with open(started, "a") as file:  # short appends are atomic
            file.write(f"{clip.recording_id}\n")
    await asyncio.sleep(PAUSE_S)


def _lose_node(cluster: Any, workers: list[Any], started: str, count: int, lost: threading.Event) -> None:
    """Removes a node that holds an engine, once ``count`` clips are started."""
    _await(lambda: _lines(Path(started)) >= count)
    while True:
        for node in workers:
            [raylet] = node.all_processes["raylet"]
            if _process(psutil.Process(raylet.process.pid), ACTORS["engine"]):
                lost.set()  # before the removal, which waits for every process of the node
                cluster.remove_node(node, allow_graceful=False)
                return


def _job(output: str, options: dict[str, Any], address: str | None = None, engines: int = 1) -> Job:
    return Job.from_settings(
        {
            "manifest": "s3://chaos/calls.jsonl",
            "output": output,
            "storage_options": options,
            "address": address,
            "listeners": LISTENERS,
            "engines": engines,
        }
    )


@contextlib.contextmanager
def _ray() -> Iterator[None]:
    """A Ray cluster that outlives the drivers."""
    import ray

    ray.init(
        address="local",
        num_cpus=CORES,
        object_store_memory=STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


@contextlib.contextmanager
def _s3() -> Iterator[dict[str, Any]]:
    """A local S3 server; yields the storage options to reach it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {"key": "chaos", "secret": "chaos", "endpoint_url": f"http://{host}:{port}"}
    server.stop()


def _await(condition: Callable[[], bool], driver: subprocess.Popen[bytes] | None = None) -> None:
    while not condition():
        if driver and driver.poll() is not None:
            raise RuntimeError("the job ended before the condition was met")
        time.sleep(0.05)


def _process(ancestor: psutil.Process, title: str, other_than: psutil.Process | None = None) -> psutil.Process | None:
    """The first descendant of a process with ``title`` in its command line, other than the given one."""
    descendants = ancestor.children(recursive=True)
    return next((each for each in descendants if title in _command(each) and each != other_than), None)


def _command(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline()).strip()  # a title that replaces a longer one is padded
    return ""


def _lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


if __name__ == "__main__":
    sys.exit(main())
