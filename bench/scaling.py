"""Throughput of the job as nodes are added: the share of a node's own that each of several reaches.

    python -m bench.scaling [--nodes 1 2 4] [--manifest M] [--copies 4] [--engine-rtfx 40]

Each size is a cluster of its own of so many raylets on this machine, beside a head without work. Every node plays one
with a GPU; its engine needs time as a real one does and no processor (``testing.pacing``). All else is real, on the
cores of this machine, which all nodes share: keep ``--engine-rtfx`` so low that the Listeners of all have room on them.
Work grows with the nodes. Prints a table and, last, one line of JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines import manifest
from pipelines.job import Job
from pipelines.run import run
from storage.filesystem import Storage
from testing.pacing import paced

CLIP_RTFX = 20.0
# Of each raylet, as Ray counts them: two for the engine, two for Listeners.
CPUS_PER_NODE = 4


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
            results.append(_on_cluster(nodes, rows, parsed.copies, parsed.engine_rtfx, Path(folder, str(nodes))))
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    table = Table("nodes", "recordings", "seconds of work", "RTFx", "efficiency")
    one = results[0]["rtfx"] / results[0]["nodes"]
    for each in results:
        each["efficiency"] = each["rtfx"] / (each["nodes"] * one)
        figures = f"{each['nodes']:.0f}", f"{each['recordings']:.0f}", f"{each['work_s']:.1f}", f"{each['rtfx']:.1f}"
        table.add_row(*figures, f"{each['efficiency']:.0%}")
    Console().print(table)
    print(json.dumps(results))


def _on_cluster(
    nodes: int, rows: Sequence[dict[str, Any]], copies: int, engine_rtfx: float, folder: Path
) -> dict[str, float]:
    from ray.cluster_utils import Cluster

    folder.mkdir()
    copied = [row | {"id": f"{row['id']}-{copy}"} for copy in range(copies * nodes) for row in rows]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in copied))
    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=0)
        for _ in range(nodes):
            cluster.add_node(num_cpus=CPUS_PER_NODE, num_gpus=1, labels={"ray.io/accelerator-type": "T4"})
        cluster.wait_for_nodes()
        job = {"manifest": f"{folder}/manifest.jsonl", "output": f"{folder}/out", "address": cluster.address}
        command = [sys.executable, "-m", "bench.scaling", "--engine-rtfx", str(engine_rtfx), "--one", json.dumps(job)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    finally:
        cluster.shutdown()
    return {"nodes": nodes, **json.loads(done.stdout.splitlines()[-1])}


def _run_one(job: dict[str, Any], engine_rtfx: float) -> dict[str, float]:
    summary = run(Job.from_settings(job), paced(engine_rtfx, CLIP_RTFX))
    return {"recordings": summary.finished, "work_s": summary.work_s, "rtfx": summary.rtfx}


if __name__ == "__main__":
    main()
