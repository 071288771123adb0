"""Throughput of the job as nodes are added, and as one goes and another comes.

    python -m bench.scaling [--nodes 1 2 4] [--manifest M] [--copies 4] [--engine-rtfx 40]

Each size is a cluster of its own of so many raylets on this machine, beside a head without work. Every node plays one
with a GPU; its engine needs time as a real one does and no processor (``testing.pacing``). All else is real, on the
cores of this machine, which all nodes share: keep ``--engine-rtfx`` so low that the Listeners of all have room on them.
Work grows with the nodes. Efficiency is the share of one node's RTFx, times the nodes.

Then, on two nodes, one is killed when a quarter of the work is committed, and another joins at half of it: recordings a
second before, between and after, the last from the first recording of the new node on. Prints two tables and, last,
one line of JSON.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from pipelines import manifest
from pipelines.job import Job
from pipelines.run import run
from speech.engines.base import ClipRequest, EngineConfig
from speech.engines.fake import FakeEngine
from speech.models.families import Family
from storage.filesystem import Storage
from testing.pacing import Pacer

CLIP_RTFX = 20.0
# Of each raylet, as Ray counts them: two for the engine, two for Listeners.
CPUS_PER_NODE = 4
# Of the manifest, for the run in which nodes change: half a minute or more for each of its parts.
CHANGE_COPIES = 6


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--manifest", default="demo/samples/manifest.jsonl")
    parser.add_argument("--copies", type=int, default=4, help="of the manifest, for each node")
    parser.add_argument("--engine-rtfx", type=float, default=40.0)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # one run: what a driver process does
    parsed = parser.parse_args(arguments)
    if parsed.one:
        print(json.dumps(_run_one(json.loads(parsed.one), parsed.engine_rtfx)))
        return
    rows = [row for _, row in manifest.read(parsed.manifest, Storage())]
    results: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for nodes in parsed.nodes:
            where = Path(folder, str(nodes))
            results.append(_on_cluster(nodes, rows, parsed.copies, parsed.engine_rtfx, where))
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
        parts = _with_changes(rows, CHANGE_COPIES * parsed.copies, parsed.engine_rtfx, Path(folder, "changes"))
    table = Table("nodes", "recordings", "seconds of work", "RTFx", "efficiency")
    one = results[0]["rtfx"] / results[0]["nodes"]
    for each in results:
        each["efficiency"] = each["rtfx"] / (each["nodes"] * one)
        figures = f"{each['nodes']:.0f}", f"{each['recordings']:.0f}", f"{each['work_s']:.1f}", f"{each['rtfx']:.1f}"
        table.add_row(*figures, f"{each['efficiency']:.0%}")
    Console().print(table)
    table = Table("", "nodes", "seconds", "recordings", "a second")
    for name, part in parts.items():
        rate = part["recordings"] / part["seconds"]
        table.add_row(
            name, f"{part['nodes']:.0f}", f"{part['seconds']:.1f}", f"{part['recordings']:.0f}", f"{rate:.1f}"
        )
    Console().print(table)
    print(json.dumps({"sizes": results, "changes": parts}))


@contextlib.contextmanager
def _cluster(nodes: int) -> Iterator[tuple[Any, list[Any]]]:
    """A head without work, and so many nodes that play one with a GPU; these."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=0)
        workers = [_add_node(cluster, f"node-{number}") for number in range(nodes)]
        cluster.wait_for_nodes()
        yield cluster, workers
    finally:
        cluster.shutdown()


def _add_node(cluster: Any, name: str) -> Any:
    labels = {"name": name, "ray.io/accelerator-type": "T4"}
    return cluster.add_node(num_cpus=CPUS_PER_NODE, num_gpus=1, labels=labels)


def _start(
    cluster: Any, rows: Sequence[dict[str, Any]], copies: int, engine_rtfx: float, folder: Path
) -> "subprocess.Popen[str]":
    """Starts the job in a driver process; its result is the last line of its stdout."""
    folder.mkdir()
    copied = [row | {"id": f"{row['id']}-{copy}"} for copy in range(copies) for row in rows]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in copied))
    job = {"manifest": f"{folder}/manifest.jsonl", "output": f"{folder}/out", "address": cluster.address}
    command = [sys.executable, "-m", "bench.scaling", "--engine-rtfx", str(engine_rtfx), "--one", json.dumps(job)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _result(driver: "subprocess.Popen[str]") -> dict[str, float]:
    out, _ = driver.communicate()
    if driver.returncode:
        raise SystemExit(driver.returncode)
    result: dict[str, float] = json.loads(out.splitlines()[-1])
    return result


def _on_cluster(
    nodes: int, rows: Sequence[dict[str, Any]], copies: int, engine_rtfx: float, folder: Path
) -> dict[str, float]:
    with _cluster(nodes) as (cluster, _):
        return {"nodes": nodes, **_result(_start(cluster, rows, copies * nodes, engine_rtfx, folder))}


class Committed:
    """The recordings in an output's files as they appear, by the node whose engine transcribed them."""

    def __init__(self, output: Path) -> None:
        self._files, self._seen = output / "transcripts", set[Path]()
        self.by_node = Counter[str]()

    def look(self) -> int:
        """Reads new files; the number of recordings so far, those that failed included."""
        for file in {*self._files.glob("*/*.parquet")} - self._seen:
            self._seen.add(file)
            texts = pq.read_table(file, columns=["text"])["text"].to_pylist()
            self.by_node.update((text or "").split(" ")[0] for text in texts)
        return self.by_node.total()


def _with_changes(
    rows: Sequence[dict[str, Any]], copies: int, engine_rtfx: float, folder: Path
) -> dict[str, dict[str, float]]:
    """The parts of a run on two nodes, of which one is killed and replaced."""
    total = copies * len(rows)
    with _cluster(2) as (cluster, workers):
        driver = _start(cluster, rows, copies, engine_rtfx, folder)
        committed = Committed(folder / "out")

        def until(condition: Any) -> tuple[float, int]:
            """When the condition holds, and what is committed then."""
            while not condition() and driver.poll() is None:
                time.sleep(0.05)
                committed.look()
            return time.monotonic(), committed.by_node.total()

        began = until(lambda: committed.by_node.total() > 0)
        killed = until(lambda: committed.by_node.total() >= total // 4)
        cluster.remove_node(workers[0], allow_graceful=False)
        added = until(lambda: committed.by_node.total() >= total // 2)
        _add_node(cluster, "added")
        joined = until(lambda: committed.by_node["added"] > 0)
        # At the end engines wait for the last recordings, which is not what is measured.
        ended = until(lambda: committed.by_node.total() >= 0.95 * total)
        _result(driver)
    parts = {
        "before": (began, killed, 2),
        "one node less": (killed, added, 1),
        "until the new node works": (added, joined, 1),
        "after": (joined, ended, 2),
    }
    return {
        name: {"nodes": nodes, "seconds": end[0] - begin[0], "recordings": end[1] - begin[1]}
        for name, (begin, end, nodes) in parts.items()
    }


def _node_and_id(clip: ClipRequest) -> str:
    import ray

    return f"{ray.get_runtime_context().get_node_labels()['name']} {clip.recording_id}"


def start_named(config: EngineConfig, family: Family, engine_rtfx: float) -> FakeEngine:
    """An ``EngineStarter``, once its rate is bound: an engine that says which node it is on."""
    return FakeEngine(_node_and_id, before=Pacer(engine_rtfx, CLIP_RTFX).wait)


def _run_one(job: dict[str, Any], engine_rtfx: float) -> dict[str, float]:
    summary = run(Job.from_settings(job), partial(start_named, engine_rtfx=engine_rtfx))
    return {"recordings": summary.finished, "work_s": summary.work_s, "rtfx": summary.rtfx}


if __name__ == "__main__":
    main()
