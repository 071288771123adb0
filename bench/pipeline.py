"""Overhead of the bulk job: RTFx of the whole pipeline over RTFx of the engine alone.

    python -m bench.pipeline [--model demo/model] [--manifest demo/samples/manifest.jsonl] [--copies 10] [--rounds 3]
                             [--engine-cores N]

Both transcribe the same recordings with the same engine settings on the same machine, in turn, several times. The
pipeline opens and decodes files, runs the VAD, passes clips through Ray and writes Parquet; the bare engine gets the
clips already cut by the Listener, all at once. An engine without a GPU uses every core, and whatever the rest of the
job computes it lacks; with --engine-cores both sides' engine has so many cores, and the rest of the job the others, as
beside a GPU. Loading the model is in neither figure; Listeners work meanwhile, as far ahead as a job lets them, so that
few copies tell little of a long job. Prints a table, the CPU seconds of each process during the work, and, last, one
line of JSON.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.cpu_times import CpuTimes
from pipelines import manifest
from pipelines.job import Job
from pipelines.run import run
from speech.engines.base import Engine, EngineConfig, EngineStarter, start_engine
from speech.errors import RayscribeError
from speech.listener import Listener
from speech.models.checkpoint import family_of
from speech.models.families import Family
from speech.recording import Options, Recording
from speech.transcriber import Transcriber
from storage.filesystem import Storage


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo/model")
    parser.add_argument("--manifest", default="demo/samples/manifest.jsonl")
    parser.add_argument("--copies", type=int, default=10, help="times that each recording is transcribed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine-cores", type=int, help="of this machine's, for the engine alone")
    parsed = parser.parse_args(arguments)
    everywhere = os.sched_getaffinity(0)
    for_engine = set(sorted(everywhere)[: parsed.engine_cores])
    start = partial(start_pinned, cores=for_engine) if parsed.engine_cores else start_engine
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # as the job's engine actors have; before torch is imported
    config = EngineConfig(model=parsed.model)
    with tempfile.TemporaryDirectory() as folder:
        rows = _good_rows(parsed.manifest, parsed.model)
        copied = Path(folder, "manifest.jsonl")
        copies = [row | {"id": f"{row['id']}-{copy}"} for copy in range(parsed.copies) for row in rows]
        copied.write_text("".join(json.dumps(row) + "\n" for row in copies))
        bare, pipeline, used = [], [], []
        for number in range(parsed.rounds):
            with CpuTimes() as cpu:
                rtfx, start_s, end_s = asyncio.run(_bare_engine(copies, config, start))
            bare.append(rtfx)
            engine_used = cpu.between(start_s, end_s)
            pin(everywhere - for_engine or everywhere)
            with CpuTimes() as cpu:
                summary = run(Job(manifest=str(copied), output=f"{folder}/{number}", engine_config=config), start)
            assert summary.first_ready_at is not None
            assert summary.last_finished_at is not None
            pipeline.append(summary.rtfx)
            job_used = cpu.between(summary.first_ready_at.timestamp(), summary.last_finished_at.timestamp())
            used.append({"engine": engine_used, "job": job_used})
            print(
                f"round {number + 1}: engine {bare[-1]:.2f}, pipeline {pipeline[-1]:.2f}", file=sys.stderr, flush=True
            )
    ratios = [job / engine for job, engine in zip(pipeline, bare, strict=True)]
    table = Table("", "min", "median", "max", title=f"{len(copies)} recordings, {parsed.rounds} rounds")
    for name, figures in (("bare engine, RTFx", bare), ("pipeline, RTFx", pipeline), ("ratio", ratios)):
        table.add_row(name, *(f"{value:.2f}" for value in (min(figures), statistics.median(figures), max(figures))))
    Console().print(table)
    cpu_s = _medians(used)
    _print_cpu(cpu_s)
    result = {"bare_rtfx": bare, "pipeline_rtfx": pipeline, "median_ratio": statistics.median(ratios), "cpu_s": cpu_s}
    print(json.dumps(result))


def _medians(used: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """CPU seconds by side and role: medians over rounds."""
    medians = {}
    for side in ("engine", "job"):
        roles = sorted({role for each in used for role in each[side]})
        medians[side] = {role: statistics.median(each[side].get(role, 0.0) for each in used) for role in roles}
    return medians


def _print_cpu(used: dict[str, dict[str, float]]) -> None:
    table = Table("CPU seconds", "bare engine", "pipeline")
    for role in sorted({*used["engine"], *used["job"]}):
        table.add_row(role, *(f"{used[side].get(role, 0.0):.1f}" for side in ("engine", "job")))
    table.add_row("all", *(f"{sum(used[side].values()):.1f}" for side in ("engine", "job")))
    Console().print(table)


def _good_rows(uri: str, model: str) -> list[dict[str, object]]:
    """The rows of a manifest that can be transcribed; the bare engine would never see the others."""
    listener, family = Listener(clip_s=family_of(model).clip_s), family_of(model)
    good = []
    for _, row in manifest.read(uri, Storage()):
        try:
            recording = Recording.from_row(row, Options())
            family.check(recording.options)
            listener.listen(recording)
        except RayscribeError:
            continue
        good.append(row)
    return good


def pin(cores: set[int]) -> None:
    """Keeps this process, with all its threads and those that it will start, on these cores."""
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread), cores)


def start_pinned(config: EngineConfig, family: Family, cores: set[int]) -> Engine:
    """An ``EngineStarter``, once its cores are bound."""
    os.environ["OMP_NUM_THREADS"] = str(len(cores))  # before torch is imported
    pin(cores)
    return start_engine(config, family)


async def _bare_engine(
    rows: list[dict[str, object]], config: EngineConfig, starter: EngineStarter
) -> tuple[float, float, float]:
    """RTFx of the engine alone, on clips cut beforehand, and the times of its start and end."""
    family = family_of(config.model)
    listener = Listener(clip_s=family.clip_s)
    recordings = [Recording.from_row(row, Options()) for row in rows]
    listened = [(recording, listener.listen(recording)) for recording in recordings]
    audio_s = sum(each.duration_s for _, each in listened)
    engine = starter(config, family)
    transcriber = Transcriber(engine, family, config.model, config.concurrent_clips)
    await transcriber.transcribe(*listened[0])  # warm-up: the first request includes one-time initialisation
    start = time.time()
    await asyncio.gather(*(transcriber.transcribe(*each) for each in listened))
    end = time.time()
    engine.stop()
    return audio_s / (end - start), start, end


if __name__ == "__main__":
    main()
